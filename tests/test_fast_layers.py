"""The faster layers and Adam, against Keras's own and against float64; put in for a training and taken out again."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_weights

import happy_sequential
import resnet_utils
import signs_functional
from support.training import fast_layers
from support.training.fast_layers import accelerate, restore

SHAPE = 5, 7, 6, 16


# ------------------------------------------------------------------- batch normalization


def normalized(layer, x, sensitivity, training):
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
    for layer in keras.layers.BatchNormalization, fast_layers.BatchNormalization:
        layer = layer(momentum=0.9, epsilon=1.001e-5, dtype=keras.DTypePolicy(policy))
        results.append(normalized(layer, x, sensitivity, training))
    (expected_type, expected), (got_type, got) = results
    assert got_type == expected_type
    for name, theirs, ours in zip("y dx dgamma dbeta gamma beta mean variance".split(), expected, got, strict=True):
        assert theirs.dtype == ours.dtype
        # In 16 bits, only outputs and the gradient for x are rounded: the statistics are not.
        tolerance = (rounding if name in ("y", "dx") else 2e-6) * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


def test_a_frozen_layer_uses_and_keeps_its_stored_statistics():
    layer = fast_layers.BatchNormalization()
    layer.build(SHAPE)
    layer.set_weights(random_weights(layer, np.random.default_rng(2)))
    before = layer.get_weights()
    layer.trainable = False
    x = np.random.default_rng(3).normal(size=SHAPE).astype("float32")
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for expected, got in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "shape, options",
    [
        ((4, 16), {}),
        (SHAPE, {"axis": 1}),
        (SHAPE, {"axis": 3, "scale": False}),
        ((5, 7, 6, 24), {"axis": 3}),
        (SHAPE, {"axis": 3, "renorm": True}),
    ],
)
def test_what_the_operation_cannot_do_or_does_slowly_is_left_to_keras(monkeypatch, shape, options):
    monkeypatch.delattr(tf.raw_ops, "FusedBatchNormV3")
    x = np.random.default_rng(4).normal(size=shape).astype("float32")
    layers = keras.layers.BatchNormalization, fast_layers.BatchNormalization
    theirs, ours = (layer(**options)(x, training=True) for layer in layers)
    np.testing.assert_array_equal(ours, theirs)


def test_every_option_of_keras_is_known_or_must_be_off():
    """A new option of Keras's layer that is on by default would keep the fused operation from ever being used."""
    config = keras.layers.BatchNormalization().get_config()
    assert fast_layers.KNOWN <= set(config)
    assert not any(value for name, value in config.items() if name not in fast_layers.KNOWN)


# --------------------------------------------------------------------------- convolution

# kernel size, options, side of the images: products, the gradient alone as a product, and what is left to Keras
CASES = [
    (1, {}, 6),
    (1, {"strides": 2}, 7),
    (1, {"strides": 2, "padding": "same", "use_bias": False}, 6),
    (1, {}, 1),
    (3, {"padding": "same"}, 4),
    (3, {"padding": "same"}, 2),
    ((2, 3), {"padding": "same", "use_bias": False}, 4),
    (3, {"padding": "same"}, 6),
    (3, {}, 4),
    (3, {"padding": "same", "strides": 2}, 4),
    (3, {"padding": "same", "dilation_rate": 2}, 4),
    (1, {"groups": 2}, 4),
]

# No sum here has more terms: 5 images of at most 7x7 pixels, or 3x3 kernels over 8 channels.
TERMS = 5 * 7 * 7

# The largest relative error of a rounding: half of the last of float32's 24 and bfloat16's 8 bits.
U32, U16 = 2.0**-24, 2.0**-8


def convolved(layer, x, sensitivity, weights):
    """Return the output and the gradients for x and all weights, in a traced step."""
    layer.build(x.shape)
    layer.set_weights(weights)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            wide = tf.float64 if outputs.dtype == tf.float64 else tf.float32
            part = tf.cast(sensitivity[:, : outputs.shape[1], : outputs.shape[2]], wide)
            loss = tf.reduce_sum(tf.cast(outputs, wide) * part)
        return outputs, *tape.gradient(loss, [x, *(weight.value for weight in layer.weights)])

    results = step(tf.constant(x))
    return [result.dtype for result in results], [np.asarray(tf.cast(result, tf.float64)) for result in results]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kernel_size, options, side", CASES)
def test_a_convolution_is_exact_up_to_its_roundings(policy, kernel_size, options, side):
    """The reference is float64, and the bound that of the roundings, whatever processor and library compute them."""
    rng = np.random.default_rng(0)
    x, sensitivity = rng.normal(size=(5, side, side, 6)), rng.normal(size=(5, side, side, 8))
    layer, same, other = (
        conv(8, kernel_size, dtype=keras.DTypePolicy(policy), **options)
        for conv in (fast_layers.Conv2D, keras.layers.Conv2D, keras.layers.Conv2D)
    )
    other.build(x.shape)
    weights = random_weights(other, np.random.default_rng(1))
    # Numbers that the layer's type holds exactly: only its own roundings count.
    narrow = tf.bfloat16 if policy == "mixed_bfloat16" else tf.float32
    x, sensitivity, *weights = (
        np.asarray(tf.cast(tf.cast(array, narrow), tf.float64)) for array in (x, sensitivity, *weights)
    )
    exact_layer, terms_layer = (keras.layers.Conv2D(8, kernel_size, dtype="float64", **options) for _ in range(2))
    _, exact = convolved(exact_layer, x, sensitivity, weights)
    # The sums of the sizes of all terms, to which the error of a sum is proportional (Higham, "Accuracy and Stability
    # of Numerical Algorithms", 2002, section 4.2).
    _, terms = convolved(terms_layer, np.abs(x), np.abs(sensitivity), [np.abs(array) for array in weights])
    types, got = convolved(layer, x.astype("float32"), sensitivity, weights)
    assert types == convolved(same, x.astype("float32"), sensitivity, weights)[0]
    # In 16 bits, products are added up in float32, and the sum is rounded or cut off (2 U16); the bias is added to
    # that, and the result is rounded (U16).
    bound = TERMS * U32 + (3 * U16 if policy == "mixed_bfloat16" else 0)
    for name, ours, expected, size in zip("y dx dkernel dbias".split(), got, exact, terms):
        assert expected.std() > 0.01
        assert (np.abs(ours - expected) <= bound * size).all(), name


def test_a_network_for_images_of_any_size_can_be_built():
    inputs = keras.Input((None, None, 6))
    layer = fast_layers.Conv2D(8, 1, strides=2)
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(2).normal(size=(2, 5, 7, 6)).astype("float32")
    expected = tf.nn.conv2d(x, layer.kernel.value, 2, "VALID")
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- a whole training


@pytest.fixture
def deep(monkeypatch):
    """Let every network count as deep."""
    monkeypatch.setattr(fast_layers, "MANY_LAYERS", 0)


def trained(fast, **options):
    """Return a small network after five epochs with Keras's Adam or the faster one."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(16, 1, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(axis=3, momentum=0.9, name="bn")(x)
    outputs = layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 20)
    model.compile(keras.optimizers.Adam(schedule, name="adam", **options), loss="categorical_crossentropy")
    if fast:
        accelerate(model)
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(32, 8, 8, 3)), np.eye(2)[rng.integers(0, 2, 32)]
    model.fit(x, y, batch_size=8, epochs=5, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("options", [{}, {"use_ema": True, "ema_momentum": 0.9}], ids=["adam", "ema"])
def test_an_accelerated_training_gives_the_weights_of_keras(deep, options):
    plain, fast = trained(False, **options), trained(True, **options)
    assert type(fast.optimizer) is fast_layers.Adam and type(fast.get_layer("bn")) is fast_layers.BatchNormalization
    for expected, got in zip(plain.optimizer.variables, fast.optimizer.variables, strict=True):
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-3, atol=1e-5, err_msg=expected.path)
    for expected, got in zip(plain.get_weights(), fast.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_what_was_put_in_is_taken_out_and_saved_as_kerass_own(deep, tmp_path):
    model = trained(True)
    restore(model)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    assert type(model.optimizer) is keras.optimizers.Adam
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    for expected, got in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected.numpy())
    x = np.random.default_rng(6).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_computes_something_else_stays(deep):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    for optimizer in (keras.optimizers.Adam(amsgrad=True), keras.optimizers.AdamW(), keras.optimizers.SGD()):
        model.compile(optimizer, "mse")
        accelerate(model)
        assert type(model.optimizer) is type(optimizer) and "keras" in type(model.optimizer).__module__


def test_accelerating_changes_neither_names_nor_weights(deep):
    keras.utils.set_random_seed(1)
    model = resnet_utils.ResNet50(identity_blocks=(1, 0, 0, 0))
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.compile("adam", "categorical_crossentropy")
    accelerate(model)
    assert any(type(layer) is fast_layers.Conv2D for layer in model.layers)
    for weight in model.weights:
        np.testing.assert_array_equal(weight.numpy(), before[weight.path])


def test_only_what_pays_is_put_in():
    """In signs_functional.py, one layer has 24 channels, which oneDNN computes slowly."""
    for script, norm in (happy_sequential, fast_layers), (signs_functional, keras.layers):
        model = script.build_model()
        model.compile("adam", "categorical_crossentropy")
        accelerate(model)
        assert type(model.get_layer("bn1")) is norm.BatchNormalization
        assert type(model.optimizer) is keras.optimizers.Adam
        assert {type(layer) for layer in model.layers if "conv" in layer.name} == {keras.layers.Conv2D}
