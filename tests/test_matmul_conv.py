"""Convolution as matrix products, against Keras's own layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights

from support.matmul_conv import Conv2D

# kernel size, options, side of the images: products, the gradient alone as a product, and what is left to Keras
CASES = [
    (1, {}, 6),
    (1, {"strides": 2}, 7),
    (1, {"strides": 2, "padding": "same", "use_bias": False}, 6),
    (1, {"activation": "relu"}, 1),
    (3, {"padding": "same"}, 4),
    (3, {"padding": "same"}, 2),
    ((2, 3), {"padding": "same", "use_bias": False}, 4),
    (3, {"padding": "same"}, 6),
    (3, {}, 4),
    (3, {"padding": "same", "strides": 2}, 4),
    (3, {"padding": "same", "dilation_rate": 2}, 4),
    (1, {"groups": 2}, 4),
]


def outcome(layer, x, sensitivity):
    """Return the type of the output, and the output and the gradients for x and all weights, in a traced step."""
    layer.build(x.shape)
    layer.set_weights(random_weights(layer, np.random.default_rng(1)))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * sensitivity[:, : outputs.shape[1], : outputs.shape[2]])
        return outputs, *tape.gradient(loss, [x, *(weight.value for weight in layer.weights)])

    outputs, *gradients = step(tf.constant(x))
    return outputs.dtype, [np.asarray(outputs, np.float32), *map(np.asarray, gradients)]


@pytest.mark.parametrize("policy, rounding", [("float32", 2e-6), ("mixed_bfloat16", 2**-7)])
@pytest.mark.parametrize("kernel_size, options, side", CASES)
def test_outputs_and_gradients_are_those_of_keras(policy, rounding, kernel_size, options, side):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, side, side, 6)).astype("float32")
    sensitivity = rng.normal(size=(5, side, side, 8)).astype("float32")
    results = []
    for layer in keras.layers.Conv2D, Conv2D:
        layer = layer(8, kernel_size, dtype=keras.DTypePolicy(policy), **options)
        results.append(outcome(layer, x, sensitivity))
    (expected_type, expected), (got_type, got) = results
    assert got_type == expected_type
    for name, theirs, ours in zip("y dx dkernel dbias".split(), expected, got):
        assert theirs.dtype == ours.dtype and theirs.std() > 0.01
        # TensorFlow adds up the bias's gradient in an order that changes from run to run: the error of such a sum grows
        # with the sizes of its terms, even if they cancel.
        size = np.abs(sensitivity).sum(axis=(0, 1, 2)).max() if name == "dbias" else np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding * size, err_msg=name)


def test_images_of_any_size_are_left_to_keras():
    inputs = keras.Input((None, None, 6))
    layer = Conv2D(8, 1, strides=2)
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(2).normal(size=(2, 5, 7, 6)).astype("float32")
    expected = tf.nn.conv2d(x, layer.kernel.value, 2, "VALID")
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_a_saved_model_is_loaded_with_the_layer_of_keras(tmp_path):
    model = keras.Sequential([keras.layers.Input((7, 7, 6)), Conv2D(8, 1, strides=2, name="conv")])
    model.layers[0].set_weights(random_weights(model.layers[0], np.random.default_rng(3)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded.layers[0]) is keras.layers.Conv2D
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    x = np.random.default_rng(4).normal(size=(2, 7, 7, 6)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)
