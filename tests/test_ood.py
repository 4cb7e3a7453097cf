"""Out-of-distribution detection: images unlike the training images are recognized."""

import keras
import numpy as np

import signs_functional
from support.evaluation import ood
from support.evaluation.ood import feature_bank, knn_distance, l2_normalize, ood_threshold


def test_what_is_unlike_every_training_image_is_found():
    rng = np.random.default_rng(0)
    training = np.abs(rng.normal(1, 0.1, (200, 50)))
    bank = l2_normalize(training).astype(np.float16)
    similar = np.abs(rng.normal(1, 0.1, (20, 50)))
    other = np.abs(rng.normal(0, 1, (20, 50)))
    assert knn_distance(other, bank).min() > 5 * knn_distance(similar, bank).max()
    # Ten copies of an image are needed before the image itself counts as known.
    copy = l2_normalize(other[:1])
    assert knn_distance(other, np.vstack([bank, *[copy] * 9]))[0] > 0.05
    assert knn_distance(other, np.vstack([bank, *[copy] * 10]))[0] < 0.001


def test_one_in_a_hundred_validation_images_exceeds_the_threshold(monkeypatch):
    keras.utils.set_random_seed(1)
    model = signs_functional.build_model()
    images = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 3), np.uint8)
    monkeypatch.setattr(ood, "BANK_SIZE", 40)
    bank = feature_bank(model, images, seed=1)
    assert bank.shape == (40, model.layers[-1].input.shape[-1]) and bank.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(bank.astype(np.float32), axis=1), 1, atol=1e-2)
    np.testing.assert_array_equal(bank, feature_bank(model, images, seed=1))
    assert (bank != feature_bank(model, images, seed=2)).any()
    distances = knn_distance(ood.features(model, images), bank)
    assert (distances > ood_threshold(model, images, bank)).sum() == 1
