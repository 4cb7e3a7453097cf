"""Batch normalisation in one operation, against Keras's own layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights

from support.fused_batch_norm import BatchNormalization

SHAPE = 5, 7, 6, 16


def outcome(layer, x, sensitivity, training):
    """Return the output, the gradients for x, gamma and beta, and all weights after one call in a traced step."""
    layer.build(SHAPE)
    layer.set_weights(random_weights(layer, np.random.default_rng(1)))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * sensitivity)
        return outputs, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    outputs, *gradients = step(tf.constant(x))
    return outputs.dtype, [np.asarray(outputs, np.float32), *map(np.asarray, gradients), *layer.get_weights()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy, rounding", [("float32", 2e-6), ("mixed_bfloat16", 2**-8)])
def test_outputs_gradients_and_moving_averages_are_those_of_keras(policy, rounding, training):
    rng = np.random.default_rng(0)
    x, sensitivity = (2 + 3 * rng.normal(size=(2, *SHAPE))).astype("float32")
    results = []
    for layer in keras.layers.BatchNormalization, BatchNormalization:
        layer = layer(momentum=0.9, epsilon=1.001e-5, dtype=keras.DTypePolicy(policy))
        results.append(outcome(layer, x, sensitivity, training))
    (expected_type, expected), (got_type, got) = results
    assert got_type == expected_type
    for name, theirs, ours in zip("y dx dgamma dbeta gamma beta mean variance".split(), expected, got, strict=True):
        assert theirs.dtype == ours.dtype
        # In 16 bits, only outputs and the gradient for x are rounded: the statistics are not.
        tolerance = (rounding if name in ("y", "dx") else 2e-6) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


def test_a_frozen_layer_uses_and_keeps_its_stored_statistics():
    layer = BatchNormalization()
    layer.build(SHAPE)
    layer.set_weights(random_weights(layer, np.random.default_rng(2)))
    before = layer.get_weights()
    layer.trainable = False
    x = np.random.default_rng(3).normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for expected, got in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "shape, axis, options", [((4, 16), -1, {}), (SHAPE, 1, {}), (SHAPE, 3, {"scale": False}), ((5, 7, 6, 24), 3, {})]
)
def test_what_the_operation_cannot_do_or_does_slowly_is_left_to_keras(shape, axis, options):
    x = np.random.default_rng(4).normal(size=shape).astype("float32")
    layers = keras.layers.BatchNormalization, BatchNormalization
    theirs, ours = (layer(axis=axis, **options)(x, training=True) for layer in layers)
    np.testing.assert_array_equal(ours, theirs)


def test_a_saved_model_is_loaded_with_the_layer_of_keras(tmp_path):
    model = keras.Sequential([keras.layers.Input(SHAPE[1:]), BatchNormalization(momentum=0.9, name="bn")])
    model.layers[0].set_weights(random_weights(model.layers[0], np.random.default_rng(5)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(loaded.layers[0]) is keras.layers.BatchNormalization
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    x = np.random.default_rng(6).normal(size=SHAPE).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)
