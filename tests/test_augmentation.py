"""Augmentation: what it may change, what it must not, and that a seed fixes all of it."""

import numpy as np
import pytest
import tensorflow as tf

from support.training.augmentation import color_jitter, random_affine, replace_background, upsample

SEED = tf.constant([3, 4], tf.int64)
EVERYTHING = {
    replace_background: dict(fraction=0.5),
    random_affine: dict(flip=True, rotation=20, shift=0.1, zoom=0.2),
    color_jitter: dict(color=0.2, gray=0.2, tone=0.5, contrast=0.3, brightness=0.1, shadow=0.4),
}


@pytest.fixture(scope="module")
def images():
    """64 smooth random images, 0-255, float32."""
    coarse = np.random.default_rng(0).uniform(0, 255, (64, 8, 8, 3))
    return tf.image.resize(coarse, (64, 64)).numpy()


@pytest.mark.parametrize("function", EVERYTHING, ids=lambda function: function.__name__)
def test_the_seed_alone_decides(function, images):
    once = function(images, SEED, **EVERYTHING[function]).numpy()
    again = function(images.astype(np.uint8).astype(np.float32), SEED, **EVERYTHING[function]).numpy()
    other = function(images, SEED + 1, **EVERYTHING[function]).numpy()
    assert once.shape == images.shape and once.dtype == np.float32
    assert once.min() >= 0 and once.max() <= 255
    assert np.abs(once - again).mean() < 2  # rounded pixels, the same changes
    assert np.abs(once - other).mean() > 4
    np.testing.assert_array_equal(once, function(images, SEED, **EVERYTHING[function]).numpy())


@pytest.mark.parametrize("function", EVERYTHING, ids=lambda function: function.__name__)
def test_without_options_nothing_changes(function, images):
    none = {"fraction": 0.0} if function is replace_background else {}
    np.testing.assert_allclose(function(images, SEED, **none).numpy(), images, atol=0.05)


def test_the_background_is_replaced_and_the_hand_kept():
    # A skin-colored "arm" from below, in front of a gray wall that is darker on one side.
    images = np.zeros((40, 64, 64, 3), np.float32) + np.linspace(120, 220, 64)[None, None, :, None]
    images[:, 24:, 20:44] = (190, 130, 100)
    changed = np.abs(replace_background(images, SEED, fraction=0.5).numpy() - images).max(axis=-1)
    arm, wall = changed[:, 28:, 24:40], changed[:, :20]
    assert (wall.mean(axis=(1, 2)) > 5).sum() == 20
    assert arm.max() < 1


def test_upsampling_is_bilinear():
    pattern = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(upsample(pattern, 64, 48), tf.image.resize(pattern, (64, 48)), atol=1e-5)


def test_flip_mirrors_about_half(images):
    moved = random_affine(images, SEED, flip=True).numpy()
    same = np.abs(moved - images).max(axis=(1, 2, 3)) < 0.1
    mirrored = np.abs(moved - images[:, :, ::-1]).max(axis=(1, 2, 3)) < 0.1
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_shift_and_rotation_stay_within_their_limits():
    # One bright dot, 20 pixels to the right of the center.
    dot = np.zeros((200, 65, 65, 3), np.float32)
    dot[:, 32, 52] = 255
    shifted = random_affine(dot, SEED, shift=0.1).numpy()[..., 0]
    turned = random_affine(dot, SEED, rotation=20).numpy()[..., 0]
    rows, columns = np.mgrid[:65, :65]

    def center(image):
        return np.array([(rows * image).sum(), (columns * image).sum()]) / image.sum()

    off = np.array([center(image) for image in shifted]) - (32, 52)
    assert 5 < np.abs(off).max() <= 6.6
    offsets = np.array([center(image) for image in turned]) - 32
    angles = np.degrees(np.arctan2(offsets[:, 0], offsets[:, 1]))
    assert 18 < np.abs(angles).max() < 21 and angles.min() < -10 and angles.max() > 10


def test_gray_removes_all_color(images):
    gray = color_jitter(images, SEED, gray=1.0).numpy()
    assert np.ptp(gray, axis=-1).max() < 0.01
    assert np.ptp(images, axis=-1).max() > 50
