"""Images of your own: ten crops, and "not sure" instead of a guess."""

import keras
import numpy as np
import pytest
from PIL import Image

import signs_functional
from support.ood import feature_bank
from support.predict import predict_images, ten_crop


def test_ten_crops_are_the_image_its_corners_and_their_mirror_images():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:4, :4] = 255  # the upper left corner, within the six rows and columns that other crops lack
    crops = ten_crop(image)
    assert crops.shape == (10, 64, 64, 3) and crops.dtype == np.uint8
    np.testing.assert_array_equal(crops[0], image)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    assert [bool(crop.any()) for crop in crops[:5]] == [True, True, False, False, False]


@pytest.fixture
def predict(tmp_path, capsys):
    """Return a network, and a function that returns what is printed about `one.png` with an OOD threshold."""
    keras.utils.set_random_seed(1)
    model = signs_functional.build_model()
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    Image.fromarray(images[0]).save(tmp_path / "one.png")

    def printed(threshold, **options):
        bank = feature_bank(model, images, seed=1)
        metadata = {"classes": tuple("abcdef"), "data": "real", "ood_threshold": threshold, "feature_bank": bank}
        assert predict_images(model, metadata, [tmp_path / "one.png"], tmp_path / "out", **options) == 0
        return capsys.readouterr().out

    return model, printed


def test_low_confidence_and_unfamiliar_images_are_not_sure(predict):
    _, printed = predict
    assert "one.png: not sure, confidence below 70%; best guess " in printed(2.0)
    assert "one.png: not sure, confidence below 70% and unlike the training images (distance " in printed(-1.0)


def test_a_confident_prediction_is_stated_and_explained(predict, tmp_path):
    model, printed = predict
    head = model.layers[-1]
    kernel, _ = head.get_weights()
    head.set_weights([kernel, np.array([0, 0, 50, 0, 0, 0])])
    assert "one.png: c (100.0%); what the model saw: " in printed(2.0, tta=True, explain=True)
    assert "one.png: not sure, unlike the training images (distance " in printed(-1.0)
    names = {path.name for path in (tmp_path / "out" / "predictions").glob("*.png")}
    assert names == {"01_one.png", "predictions.png", "explanations.png"}
