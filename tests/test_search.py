"""--crop auto: the network finds what looks like its training images, whatever the colors and the classes."""

import keras
import numpy as np
import pytest
from conftest import random_weights
from keras import layers
from PIL import Image
from test_detection import intersection_over_union, on_a_wall

import happy_sequential
import signs_functional
from datasets import SIGNS
from datasets.hdf5 import load_h5
from datasets.images import read_photo
from datasets.synthetic import hands, render_dataset
from resnet_utils import ResNet50
from support.evaluation.ood import feature_bank, knn_distance
from support.evaluation.outputs import features, logits, softmax
from support.prediction import answers, search
from support.prediction.detection import find_hand
from support.prediction.numpy_inference import Network, from_keras
from support.prediction.search import searcher
from support.prediction.trained_model import load_keras_model, load_trained_model
from support.training.pretrained import weights_file


def valid_network(flat):
    """Return a network without padding, whose windows therefore end at their borders."""
    return keras.Sequential(
        [
            layers.Input((64, 64, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, use_bias=False),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(axis=3),
            layers.ReLU(),
            layers.Conv2D(8, 4, strides=2),
            layers.AveragePooling2D(3, strides=2),
            layers.Conv2D(5, 2),
            layers.ReLU(),
            layers.Flatten() if flat else layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(4, "softmax"),
        ]
    )


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("flat", [True, False])
def test_windows_of_a_large_image_have_the_features_of_images_of_their_own(stride, flat):
    model, rng = valid_network(flat), np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
    image = rng.integers(0, 256, (101, 90, 3), np.uint8)
    found, step = from_keras(model).window_features(image, stride)
    assert step == stride and found.shape[:2] == ((101 - 64) // stride + 1, (90 - 64) // stride + 1)
    windows = [image[y : y + 64, x : x + 64] for y in range(0, 38, stride) for x in range(0, 27, stride)]
    expected = features(model, np.stack(windows))
    assert expected.std(axis=0).mean() > 0.01 * expected.mean()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5 * expected.max())


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("build", [
    happy_sequential.build_model,
    signs_functional.build_model,
    lambda: ResNet50(identity_blocks=(1, 0, 1, 0)),
])  # fmt: skip
def test_an_image_is_a_window_of_itself(build, stride):
    model, rng = build(), np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
    network, image = from_keras(model), rng.integers(0, 256, (64, 64, 3), np.uint8)
    found, step = network.window_features(image, stride)
    assert step == stride and found.shape[:2] == (1, 1)
    expected = network.features(image[None])
    # Sums of float32 in another order: the error follows the size of the terms, not that of a small sum.
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6 * expected.max())


# ------------------------------------------------------------------- finding


@pytest.fixture(scope="module")
def model():
    """Return the network that ships with the project, in NumPy, and its metadata."""
    return load_trained_model("nowhere", "signs_functional", SIGNS, load=Network, weights="synthetic")


def synthetic_hands():
    """Return SYNTHETIC hands that the network has not been trained on."""
    return load_h5(*render_dataset("signs_wide", parts=("test",), few=4), "test")[0]


def find_with(model, find=None):
    network, metadata = model
    return searcher(network, metadata.feature_bank, metadata.ood_threshold, find)


def photograph(image, rng):
    """Return a photograph of 640 x 480 pixels with an image somewhere, and where."""
    side = int(rng.integers(180, 400))
    left, top = int(rng.integers(0, 640 - side)), int(rng.integers(0, 480 - side))
    return on_a_wall(image, left, top, side), (left, top, left + side, top + side)


def photographs(wall, count, monkeypatch):
    """Return the digits of SYNTHETIC hands, photographs of 640 x 480 pixels that show them, and where."""
    if wall == "as red as skin":
        color = np.array([0.5, 0.28, 0.17])  # linear light
        monkeypatch.setattr(hands, "render_wall", lambda rng, light: np.tile(color, (128, 128, 1)))
    rng, results = np.random.default_rng(401), []
    for number in range(count):
        photo, box = photograph(hands.render_hand(number % 6, rng), rng)
        results.append((number % 6, photo.convert("L") if wall == "gray" else photo, box))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("wall", ["as rendered", "gray", "as red as skin"])
def test_hands_are_found_and_read_anywhere(model, wall, monkeypatch, tmp_path):
    network, metadata = model
    agreement, right, by_skin = [], [], []
    for digit, photo, box in photographs(wall, 24, monkeypatch):
        photo.save(tmp_path / "hand.png")
        found = read_photo(tmp_path / "hand.png", 64, "auto", find_with(model))
        (answer,) = answers.classify(network, metadata, [found.views])
        agreement.append(intersection_over_union(found.box, box) if found.found else 0)
        right.append(answer.probabilities.argmax() == digit)
        square = find_hand(np.asarray(photo.convert("RGB").resize((400, 300))))
        by_skin.append(square is not None)
    # Hands fill more of some SYNTHETIC images than of others, so a crop never agrees exactly.
    assert np.mean(np.array(agreement) > 0.3) > 0.55 and np.mean(right) > 0.5
    if wall != "as rendered":
        assert np.mean(by_skin) < 0.3  # color does not help


def test_an_image_that_is_filled_already_stays_whole(model):
    find, kept = find_with(model, find_hand), 0
    for image in synthetic_hands()[:12]:
        kept += find(np.asarray(Image.fromarray(image).resize((200, 200), Image.Resampling.BICUBIC)), 64) == [None]
    assert kept > 6
    assert find(image, 64) == [None]  # there is nothing to crop


def test_nothing_is_found_where_nothing_is(model):
    rng = np.random.default_rng(404)
    find = find_with(model)
    assert find(np.full((300, 400, 3), 200, np.uint8), 64) == []
    assert find(rng.integers(90, 120, (300, 400, 3), np.uint8), 64) == []
    assert find(np.full((2, 400, 3), 200, np.uint8), 2) == []  # too long to be searched
    assert find(np.zeros((1, 1, 3), np.uint8), 1) == []


def test_squares_lie_within_the_image_and_are_as_large_as_the_network_takes(model):
    rng = np.random.default_rng(405)
    find, sides = find_with(model, lambda image: (390, 290, 20)), []
    for image in synthetic_hands()[:8]:
        photo = np.asarray(photograph(image, rng)[0].resize((400, 300)))
        for square in find(photo, 90):
            x, y, side = square or (200, 150, 300)
            assert side >= 90 or (x, y, side) == (390, 290, 20)  # what was given is left to `read_photo`
            if side >= 90:
                assert side / 2 - 1e-6 <= min(x, y) and x + side / 2 <= 400 + 1e-6 and y + side / 2 <= 300 + 1e-6
            sides.append(side)
    assert len(set(sides)) > 3


def test_what_is_found_is_what_the_bank_shows(model):
    # The network was never trained on faces, but it finds what looks like some.
    network, _ = model
    faces = load_h5(render_dataset("happy")[0], "train")[0]
    faces, others = faces[:200], faces[-12:]
    bank = feature_bank(network, faces, seed=1)
    threshold = float(np.quantile(knn_distance(network.features(others), bank), 0.9)) / search.NEAR
    find, rng, nearer = searcher(network, bank, threshold), np.random.default_rng(408), []
    for face, hand in zip(others, synthetic_hands()):
        photo, top = on_a_wall(hand, 20, 120, 300), int(rng.integers(0, 200))
        photo.paste(Image.fromarray(face).resize((280, 280), Image.Resampling.BICUBIC), (350, top))
        squares = find(np.asarray(photo.resize((400, 300))), 40)
        x = squares[0][0] if squares and squares[0] else 0
        nearer.append(x > 200)
    assert np.mean(nearer) > 0.7


def test_keras_searches_where_numpy_does_not_know_a_layer(model, monkeypatch):
    network, metadata = model
    metadata = metadata._replace(ood_threshold=2.0)  # the nearest square counts, however far it is
    known = load_keras_model(weights_file("synthetic", "signs_functional"))
    copies = [type(layer).from_config(layer.get_config()) for layer in known.layers[1:]]
    unknown = keras.Sequential([layers.Input((64, 64, 3)), layers.Activation("linear"), *copies])
    unknown.set_weights(known.get_weights())
    with pytest.raises(ValueError, match="Activation"):
        from_keras(unknown)
    agreement = []
    for _, photo, _ in photographs("as rendered", 3, monkeypatch):
        image = np.asarray(photo.resize((400, 300)))
        (one, *_), (other, *_) = (find_with((each, metadata))(image, 64) for each in (network, unknown))
        boxes = [(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y, side in
                 (square or (200, 150, 300) for square in (one, other))]  # fmt: skip
        agreement.append(intersection_over_union(*boxes))
    assert np.mean(agreement) > 0.6
    # The same network from Keras is searched with in NumPy.
    squares = [[square or (0, 0, 0) for square in find_with((each, metadata))(image, 64)] for each in (network, known)]
    np.testing.assert_allclose(*squares, rtol=1e-3)


def test_the_probabilities_are_the_mean_over_the_views(model):
    network, metadata = model
    images = synthetic_hands()[:5]
    alone = softmax(logits(network, network.features(images)))
    one, four = answers.classify(network, metadata, [images[:1], images[1:]])
    np.testing.assert_allclose(one.probabilities, alone[0], rtol=1e-4)
    np.testing.assert_allclose(four.probabilities, alone[1:].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        four.distance, knn_distance(network.features(images[1:2]), metadata.feature_bank)[0], rtol=1e-5
    )


def test_predict_searches_for_classes_of_your_own(model, monkeypatch, tmp_path, capsys):
    network, metadata = model
    paths = []
    for number, (_, photo, _) in enumerate(photographs("gray", 8, monkeypatch)):
        paths.append(tmp_path / f"{number}.png")
        photo.save(paths[-1])
    metadata = metadata._replace(classes=tuple("abcdef"), data="folder")
    assert answers.predict_images(network, metadata, paths, [], tmp_path / "auto") == 0
    assert capsys.readouterr().out.count("cropped\n") >= 4
    assert answers.predict_images(network, metadata, paths, [], tmp_path / "center", crop="center") == 0
    assert "cropped" not in capsys.readouterr().out
