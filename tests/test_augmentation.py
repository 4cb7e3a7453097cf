"""What augmentation may change, what it must not, and that a seed fixes all of it."""

import numpy as np
import pytest
import tensorflow as tf

import augmentation
import cnn_utils as utils

SEED = tf.constant([3, 4], tf.int64)
EVERYTHING = {
    augmentation.rewall: dict(share=0.5),
    augmentation.move: dict(flip=True, rotation=20, shift=0.1, zoom=0.2, stretch=0.1, slant=0.1),
    augmentation.relight: dict(colour=0.2, grey=0.2, tone=0.5, contrast=0.3, brightness=0.1, shadow=0.4),
    augmentation.degrade: dict(blur=0.5, noise=0.05, hole=0.4),
}


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures: 64 of them, 0-255, float32."""
    coarse = np.random.default_rng(0).uniform(0, 255, (64, 8, 8, 3))
    return tf.image.resize(coarse, (64, 64)).numpy()


@pytest.mark.parametrize("function", EVERYTHING, ids=lambda function: function.__name__)
def test_the_seed_alone_decides(function, pictures):
    once = function(pictures, SEED, **EVERYTHING[function]).numpy()
    again = function(pictures.astype(np.uint8).astype(np.float32), SEED, **EVERYTHING[function]).numpy()
    other = function(pictures, SEED + 1, **EVERYTHING[function]).numpy()
    assert once.shape == pictures.shape and once.dtype == np.float32
    assert once.min() >= 0 and once.max() <= 255
    assert np.abs(once - again).mean() < 2          # whole numbers instead of fractions, the same changes
    assert np.abs(once - other).mean() > 4
    np.testing.assert_array_equal(once, function(pictures, SEED, **EVERYTHING[function]).numpy())


@pytest.mark.parametrize("function", EVERYTHING, ids=lambda function: function.__name__)
def test_nothing_asked_for_changes_nothing(function, pictures):
    none = {"share": 0.0} if function is augmentation.rewall else {}
    np.testing.assert_allclose(function(pictures, SEED, **none).numpy(), pictures, atol=0.05)


def test_rewall_keeps_the_hand_and_changes_the_wall():
    # A skin-coloured "arm" from below before a grey wall that gets darker to one side.
    pictures = np.zeros((40, 64, 64, 3), np.float32) + np.linspace(120, 220, 64)[None, None, :, None]
    pictures[:, 24:, 20:44] = (190, 130, 100)
    changed = np.abs(augmentation.rewall(pictures, SEED, share=0.5).numpy() - pictures).max(axis=-1)
    arm, wall = changed[:, 28:, 24:40], changed[:, :20]
    assert (wall.mean(axis=(1, 2)) > 5).sum() == 20
    assert arm.max() < 1


def test_enlarge_is_bilinear():
    pattern = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(augmentation.enlarge(pattern, 64, 48), tf.image.resize(pattern, (64, 48)), atol=1e-5)


def test_flip_mirrors_about_half(pictures):
    moved = augmentation.move(pictures, SEED, flip=True).numpy()
    same = np.abs(moved - pictures).max(axis=(1, 2, 3)) < 0.1
    mirrored = np.abs(moved - pictures[:, :, ::-1]).max(axis=(1, 2, 3)) < 0.1
    assert (same ^ mirrored).all() and 16 < mirrored.sum() < 48


def test_shift_and_rotation_stay_within_their_limits():
    # One bright dot, 20 pixels right of the middle.
    dot = np.zeros((200, 65, 65, 3), np.float32)
    dot[:, 32, 52] = 255
    shifted = augmentation.move(dot, SEED, shift=0.1).numpy()[..., 0]
    turned = augmentation.move(dot, SEED, rotation=20).numpy()[..., 0]
    rows, columns = np.mgrid[:65, :65]

    def centre(picture):
        return np.array([(rows * picture).sum(), (columns * picture).sum()]) / picture.sum()

    off = np.array([centre(picture) for picture in shifted]) - (32, 52)
    assert 5 < np.abs(off).max() <= 6.6
    offsets = np.array([centre(picture) for picture in turned]) - 32
    angles = np.degrees(np.arctan2(offsets[:, 0], offsets[:, 1]))
    assert 18 < np.abs(angles).max() < 21 and angles.min() < -10 and angles.max() > 10


def test_grey_takes_all_colour(pictures):
    grey = augmentation.relight(pictures, SEED, grey=1.0).numpy()
    assert np.ptp(grey, axis=-1).max() < 0.01
    assert np.ptp(pictures, axis=-1).max() > 50


def test_hole_hides_a_rectangle_of_one_colour_in_every_second_picture(pictures):
    changed = (np.abs(augmentation.degrade(pictures, SEED, hole=0.5).numpy() - pictures) > 1e-3).any(axis=-1)
    holes = changed.any(axis=(1, 2))
    assert 16 < holes.sum() < 48
    assert changed.mean(axis=(1, 2)).max() < 0.26        # a quarter of the picture at the most


def test_blur_smooths_and_noise_roughens(pictures):
    def roughness(x):
        return np.abs(np.diff(x, axis=1)).mean()
    rough = np.random.default_rng(1).uniform(0, 255, pictures.shape).astype(np.float32)
    assert roughness(augmentation.degrade(rough, SEED, blur=1.0).numpy()) < 0.8 * roughness(rough)
    assert roughness(augmentation.degrade(pictures, SEED, noise=0.1).numpy()) > 1.2 * roughness(pictures)


def no_change(pictures, seed):
    return tf.cast(pictures, tf.float32)


def test_an_epoch_has_every_picture_once_and_another_order_each_time():
    x = np.zeros((100, 64, 64, 3), np.uint8)
    x[:, 0, 0, 0] = np.arange(100)
    y = np.arange(100, dtype=np.float32)[:, None]
    batches = utils.training_batches(x, y, 32, 5, no_change)
    assert len(batches) == 4
    epochs = []
    for _ in range(2):
        pairs = [(pictures.numpy(), labels.numpy()) for pictures, labels in batches]
        pictures, labels = (np.concatenate(part) for part in zip(*pairs))
        np.testing.assert_array_equal(pictures[:, 0, 0, 0], labels[:, 0])       # each with its own label
        assert sorted(labels[:, 0]) == list(range(100))
        epochs.append(labels[:, 0].tolist())
    assert epochs[0] != epochs[1]


def test_a_small_set_is_passed_over_several_times():
    x = np.zeros((10, 64, 64, 3), np.uint8)
    labels = np.arange(10, dtype=np.float32)[:, None]
    batches = utils.training_batches(x, labels, 8, 5, no_change, least=25)
    seen = np.concatenate([y.numpy()[:, 0] for _, y in batches])
    assert np.bincount(seen.astype(int)).tolist() == [3] * 10


def test_augmented_batches_repeat_with_the_seed_and_differ_between_epochs():
    x = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    y = np.zeros((40, 1), np.float32)

    def augment(pictures, seed):
        return augmentation.move(pictures, seed, flip=True, shift=0.2)

    def two_epochs(seed):
        batches = utils.training_batches(x, y, 8, seed, augment)
        return [np.concatenate([pictures.numpy() for pictures, _ in batches]) for _ in range(2)]

    first, second = two_epochs(1)
    again = two_epochs(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    # Not the same pictures in another order either.
    assert abs(np.sort(first.mean(axis=(1, 2, 3))) - np.sort(second.mean(axis=(1, 2, 3)))).max() > 1e-3
    assert (two_epochs(2)[0] != first).any()
