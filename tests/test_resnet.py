"""The residual network: its size, its blocks against a trusted implementation, what it refuses."""

import keras
import numpy as np
import pytest
from conftest import random_weights

import signs_resnet50
from resnet_utils import ResNet50, convolutional_block, identity_block


def layers_with_weights(model):
    """Convolutions and dense layers outside the shortcuts: the 50 layers that ResNet-50 is named after."""
    return [
        layer
        for layer in model.layers
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)) and "_0_" not in layer.name
    ]


def test_resnet50_has_the_parameters_and_layers_of_the_paper():
    model = ResNet50(classes=6)
    assert model.count_params() == 23_600_006
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == 23_546_886
    assert len(layers_with_weights(model)) == 50
    assert model.output_shape == (None, 6)


def test_the_described_variant_has_53_layers():
    model = ResNet50(classes=6, identity_blocks=(2, 3, 5, 3))
    assert len(layers_with_weights(model)) == 53
    # One more identity block of stage 5: 1x1, 3x3 and 1x1 kernels, biases, and 4 numbers per channel of 3 batch norms.
    more = (2048 * 512 + 512) + (9 * 512 * 512 + 512) + (512 * 2048 + 2048) + 4 * (512 + 512 + 2048)
    assert model.count_params() == 23_600_006 + more


def test_activations_equal_those_of_keras_applications_with_the_same_weights():
    trusted = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3))
    ours = ResNet50()
    rng = np.random.default_rng(0)
    shared = {layer.name for layer in trusted.layers if layer.weights}
    assert {layer.name for layer in ours.layers if layer.weights} - shared == {"predictions"}
    for name in sorted(shared):
        weights = random_weights(trusted.get_layer(name), rng)
        trusted.get_layer(name).set_weights(weights)
        ours.get_layer(name).set_weights(weights)

    # In two parts, because the one difference lies between them: Keras pads before the stem's pooling.
    pixels = rng.integers(0, 256, (2, 64, 64, 3)).astype("float32")
    theirs, mine = (keras.Model(model.input, model.get_layer("conv1_relu").output) for model in (trusted, ours))
    np.testing.assert_allclose(mine(pixels), theirs(pixels / 127.5 - 1), rtol=1e-4, atol=1e-4)

    pooled = rng.uniform(0, 1, (2, 15, 15, 64)).astype("float32")
    ends = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out")
    theirs, mine = (
        keras.Model(model.get_layer("pool1_pool").output, [model.get_layer(end).output for end in ends])
        for model in (trusted, ours)
    )
    for end, expected, answer in zip(ends, theirs(pooled), mine(pooled)):
        assert np.std(expected) > 0.01, f"{end} carries no signal that could differ"
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(), err_msg=end)


def test_one_image_gets_the_same_prediction_alone_and_in_a_batch():
    model = ResNet50()
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(random_weights(layer, rng))
    pixels = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    together, alone = model.predict(pixels, verbose=0), model.predict(pixels[1:2], verbose=0)
    np.testing.assert_allclose(together.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(alone[0], together[1], rtol=1e-3, atol=1e-5)


def test_layers_of_one_shape_start_with_different_weights():
    model = ResNet50()
    first, second = (model.get_layer(f"conv2_block{block}_2_conv").get_weights()[0] for block in (2, 3))
    assert first.shape == second.shape and not np.allclose(first, second)


def test_an_identity_block_keeps_the_shape_and_a_convolutional_block_changes_it():
    x = keras.Input((16, 16, 256))
    assert identity_block(x, (64, 64, 256)).shape == (None, 16, 16, 256)
    assert convolutional_block(x, (128, 128, 512)).shape == (None, 8, 8, 512)
    assert convolutional_block(x, (64, 64, 256), strides=1, name="same").shape == (None, 16, 16, 256)


def test_an_identity_block_refuses_an_input_with_other_channels():
    with pytest.raises(ValueError, match="must have 256 channels.*got 64.*use convolutional_block"):
        identity_block(keras.Input((16, 16, 64)), (64, 64, 256))


@pytest.mark.parametrize("blocks", [(2, 3, 5), (2, 3, 5, -1), (2, 3, 5, 2.5)])
def test_impossible_identity_blocks_are_refused(blocks):
    with pytest.raises(ValueError, match="must be four integers .*got "):
        ResNet50(identity_blocks=blocks)


def test_the_script_builds_the_same_network():
    assert signs_resnet50.build_model(4).get_config() == ResNet50(classes=4).get_config()
