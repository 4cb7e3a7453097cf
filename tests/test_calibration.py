"""Calibration: the right temperature is found, becomes part of the model, and makes confidence agree with accuracy."""

import keras
import numpy as np
import pytest

import happy_sequential
import signs_functional
from support.evaluation.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    may_be_chance,
    reliability,
    undo_temperature,
)
from support.evaluation.outputs import class_labels, class_probabilities, features, logits, softmax


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    model = request.param.build_model()
    # The features of an untrained network hardly differ between images of noise; large weights make answers of them.
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([100 * kernel, bias])
    return model


def miscalibrated(temperature, count=4000, classes=4):
    """Return logits and labels drawn with their probabilities; the logits are then multiplied by `temperature`."""
    rng = np.random.default_rng(3)
    scores = rng.normal(0, 2, (count, classes))
    labels = (softmax(scores).cumsum(axis=1) < rng.random((count, 1))).sum(axis=1)
    return temperature * scores, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_true_temperature_is_found(temperature):
    scores, labels = miscalibrated(temperature)
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.06)


def test_calibration_brings_confidence_and_accuracy_together():
    scores, labels = miscalibrated(3.0)
    before, after = softmax(scores), softmax(scores / fit_temperature(scores, labels))
    assert calibration_error(before, labels) > 0.15 > 0.03 > calibration_error(after, labels)


def test_a_few_images_lead_neither_to_certainty_nor_to_despair():
    scores = np.tile([[6.0, 0.0, 0.0]], (10, 1))
    all_right = fit_temperature(scores, np.zeros(10, int))
    assert 0.5 < all_right < 2 and 0.9 < softmax(scores[:1] / all_right).max() < 0.999
    mostly_wrong = fit_temperature(scores, np.array([0, 1, 2, 1, 2, 1, 2, 1, 2, 1]))
    assert 2 < mostly_wrong < 5


def test_the_calibration_error_agrees_with_a_count_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.93, 0.07], [0.35, 0.65], [0.38, 0.62]])
    labels = np.array([0, 1, 1, 1])
    # Two predictions of 0.94 on average, one of them right; two of 0.635, both right.
    assert calibration_error(probabilities, labels) == pytest.approx((0.44 + 0.365) / 2)
    counts, confidence, accuracy = reliability(probabilities, labels)
    assert counts.tolist() == [0] * 6 + [2, 0, 0, 2]
    assert confidence[9] == pytest.approx(0.94) and accuracy[9] == 0.5 and accuracy[6] == 1 and np.isnan(confidence[0])


def test_a_difference_between_calibration_errors_is_chance_for_few_images_only():
    scores, labels = miscalibrated(1.5)
    overconfident, calibrated = softmax(scores), softmax(scores / 1.5)
    assert may_be_chance(overconfident[:40], calibrated[:40], labels[:40])
    assert not may_be_chance(overconfident, calibrated, labels)
    assert may_be_chance(calibrated, calibrated, labels)


def test_the_temperature_becomes_part_of_the_model(model, images):
    labels = np.random.default_rng(1).integers(0, 2, 30)
    y = labels[:, None] if model.output_shape[-1] == 1 else np.eye(6, dtype=np.float32)[labels]
    np.testing.assert_array_equal(class_labels(y), labels)
    before = class_probabilities(model.predict_on_batch(images))
    temperature = calibrate(model, images, y)
    after = class_probabilities(model.predict_on_batch(images))
    assert temperature != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(undo_temperature(after, temperature), before, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))


def test_features_and_logits_give_the_models_own_probabilities(model, images):
    probabilities = softmax(logits(model, features(model, images)))
    np.testing.assert_allclose(probabilities, class_probabilities(model.predict_on_batch(images)), atol=1e-5)
