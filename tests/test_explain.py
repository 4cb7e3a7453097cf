"""Grad-CAM: the evidence for a class is found, in every network as it was saved."""

import keras
import numpy as np
import pytest

import happy_sequential
import signs_functional
from resnet_utils import ResNet50
from support.prediction.explain import grad_cam, last_conv_layer, overlay_heatmap


def test_the_evidence_for_a_class_is_found():
    # This network predicts 1 by the brightness of the upper left, and 0 by that of the lower right.
    inputs = keras.layers.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(4)(inputs)
    flat = keras.layers.Flatten()(keras.layers.ReLU()(maps))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(flat))
    kernel = np.zeros((4, 4, 3, 2), np.float32)
    kernel[:2, :2, :, 1] = kernel[2:, 2:, :, 0] = 1
    model.layers[-1].set_weights([kernel.reshape(48, 2), np.zeros(2)])
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8, :8] = 200
    heatmap = grad_cam(model, image, 1)
    assert heatmap.shape == (4, 4) and heatmap[:2, :2].min() == 1 and heatmap[2:].max() == heatmap[:, 2:].max() == 0


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("script", [happy_sequential, signs_functional], ids=lambda script: script.__name__)
def test_grad_cam_works_on_each_network_as_it_was_saved(script, tmp_path, label):
    keras.utils.set_random_seed(1)
    script.build_model().save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    heatmap = grad_cam(model, image, label)
    assert heatmap.shape == (4, 4) and heatmap.min() >= 0 and (heatmap.max() == 1 or not heatmap.any())
    overlay = overlay_heatmap(model, image, label)
    assert overlay.shape == (256, 256, 3) and overlay.dtype == np.uint8


@pytest.mark.parametrize("blocks", [(0, 0, 0, 0), (1, 0, 0, 1)])
def test_paths_that_meet_behind_the_last_maps_are_followed(blocks):
    """Of 32x32 pixels, the last stage of a ResNet50 has a single position."""
    keras.utils.set_random_seed(1)
    model = ResNet50((32, 32, 3), identity_blocks=blocks)
    assert model.layers[-3].output.shape[1:3] == (1, 1)
    heatmap = grad_cam(model, np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), 2)
    assert heatmap.shape == (2, 2) and heatmap.min() >= 0 and (heatmap.max() == 1 or not heatmap.any())


def test_a_network_without_feature_maps_is_refused():
    model = keras.Sequential([keras.layers.Input((48,)), keras.layers.Dense(2)], name="flat")
    with pytest.raises(ValueError, match="more than one position; flat has none"):
        last_conv_layer(model)
