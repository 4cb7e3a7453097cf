"""The training batches: every image gets its turn, every planned batch is trained on, and a seed repeats them."""

import argparse
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cnn_utils as utils
from support.augmentation import random_affine
from support.curriculum import Curriculum, Stage, evaluation_dataset

# The shares of the three scripts' stages, with SYNTHETIC images beside photographs and without.
DEFAULTS = {
    "happy_sequential": (60, [45, 15], [12, 36, 12]),
    "signs_functional": (40, [16, 24], [40]),
    "signs_resnet50": (26, [9, 9, 8], [18, 8]),
}


def no_change(images, seed):
    return tf.cast(images, tf.float32)


def noted(images, seed):
    """Write the batch's seed into the second pixel, to see which one it got."""
    images = tf.cast(images, tf.float32)
    noise = tf.random.stateless_uniform((1, 1, 1, 1), seed) * tf.ones_like(images[:, :1, :1])
    return tf.concat([images[:, :1, :1], noise], axis=2)


def numbered(count, first=0, name="stage", share=1, augment=no_change):
    """A stage whose images carry their number in the first pixel, and as their label."""
    x = np.zeros((count, 2, 2, 3), np.uint8)
    x[:, 0, 0, 0] = first + np.arange(count)
    return Stage(name, share, x, np.arange(first, first + count, dtype=np.float32)[:, None], augment)


def bare(*shares):
    """Stages of one image, for tests that only count epochs."""
    return [numbered(1, name=f"stage {number}", share=share) for number, share in enumerate(shares)]


def labels_by_epoch(curriculum, start_epoch=0):
    """The labels of each epoch that the dataset delivers; each image must have its own."""
    batches = []
    for images, labels in curriculum.dataset(start_epoch):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels[:, 0])
        batches.append(labels.numpy()[:, 0].astype(int).tolist())
    steps = curriculum.steps_per_epoch
    assert len(batches) == (curriculum.epochs - start_epoch) * steps
    return [sum(batches[start : start + steps], []) for start in range(0, len(batches), steps)]


# ------------------------------------------------------------------- boundaries


@pytest.mark.parametrize("script", DEFAULTS)
def test_the_default_stages_take_the_epochs_that_they_name(script):
    epochs, mixed, plain = DEFAULTS[script]
    assert sum(mixed) == epochs
    assert Curriculum(bare(*mixed), epochs, 32, 1, 100).stage_epochs == mixed
    shares = [share * epochs / sum(plain) for share in plain]
    assert Curriculum(bare(*plain), epochs, 32, 1, 100).stage_epochs == shares


def test_boundaries_count_from_1_and_name_the_stages():
    curriculum = Curriculum(bare(4, 27, 30, 14), 75, 32, 1, 972)
    assert curriculum.boundaries == [("stage 0", 1, 4), ("stage 1", 5, 31), ("stage 2", 32, 61), ("stage 3", 62, 75)]
    assert curriculum.steps_per_epoch == math.ceil(972 / 32)


def test_four_epochs_are_enough_for_every_stage_of_every_script():
    for _, mixed, plain in DEFAULTS.values():
        for shares in (mixed, plain):
            stage_epochs = Curriculum(bare(*shares), 4, 32, 1, 100).stage_epochs
            assert min(stage_epochs) >= 1 and sum(stage_epochs) == 4


@settings(max_examples=300, deadline=None, derandomize=True)
@given(shares=st.lists(st.integers(1, 100), min_size=1, max_size=6), epochs=st.integers(1, 200))
@example(shares=[100, 1, 1, 1], epochs=4)
@example(shares=[1, 1, 1, 100], epochs=4)
@example(shares=[1, 100, 1], epochs=3)
def test_stages_share_all_epochs_and_each_gets_one_if_there_are_enough(shares, epochs):
    curriculum = Curriculum(bare(*shares), epochs, 32, 1, 100)
    stage_epochs = curriculum.stage_epochs
    assert sum(stage_epochs) == epochs and min(stage_epochs) >= 0
    if epochs >= len(shares):
        assert min(stage_epochs) >= 1
    wanted = [share * epochs / sum(shares) for share in shares]
    if min(wanted) >= 2:  # nothing has to be given away to smaller stages
        assert all(abs(got - want) <= 1 for got, want in zip(stage_epochs, wanted))
    # The boundaries cover the epochs without gap or overlap.
    covered = [epoch for _, first, last in curriculum.boundaries for epoch in range(first, last + 1)]
    assert covered == list(range(1, epochs + 1))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_fewer_epochs_than_stages_are_all_delivered(epochs):
    stages = [numbered(7, first=40 * number, share=share) for number, share in enumerate([4, 27, 30, 14])]
    delivered = labels_by_epoch(Curriculum(stages, epochs, 3, 1, 7))
    assert len(delivered) == epochs and all(len(labels) == 7 for labels in delivered)
    # Each epoch has the images of one stage, and the stages keep their order.
    numbers = [{label // 40 for label in labels} for labels in delivered]
    assert all(len(number) == 1 for number in numbers) and [*map(min, numbers)] == sorted(map(min, numbers))


# --------------------------------------------------------------- what an epoch has


def test_an_epoch_has_every_image_once_and_another_order_each_time():
    curriculum = Curriculum([numbered(100)], 2, 32, 5, 100)
    assert curriculum.steps_per_epoch == 4
    first, second = labels_by_epoch(curriculum)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second and first != list(range(100))


def test_a_small_set_is_seen_several_times_in_an_epoch():
    labels = labels_by_epoch(Curriculum([numbered(10)], 2, 8, 5, 30))
    assert [np.bincount(epoch).tolist() for epoch in labels] == [[3] * 10] * 2
    # Each pass over the set has all its images.
    assert all(sorted(epoch[start : start + 10]) == list(range(10)) for epoch in labels for start in (0, 10, 20))


def test_the_last_smaller_batch_is_delivered_in_every_stage():
    stages = [numbered(10, share=1), numbered(25, first=100, share=2), numbered(4, first=200, share=1)]
    curriculum = Curriculum(stages, 8, 4, 3, 10)
    sizes = [len(labels) for _, labels in curriculum.dataset()]
    assert sizes == [4, 4, 2] * 8
    assert sum(sizes) == curriculum.epochs * curriculum.examples_per_epoch


def test_a_stage_with_more_images_than_an_epoch_shows_each_equally_often():
    stages = [numbered(10, share=2), numbered(25, first=100, share=5), numbered(10, share=1)]
    curriculum = Curriculum(stages, 16, 4, 3, 10)
    assert curriculum.stage_epochs == [4, 10, 2]
    delivered = labels_by_epoch(curriculum)
    # After any number of epochs, to within one.
    for epochs in range(1, 11):
        counts = np.bincount(np.array(delivered[4 : 4 + epochs]).ravel(), minlength=125)[100:]
        assert counts.sum() == 10 * epochs and np.ptp(counts) <= 1
    assert np.bincount(sum(delivered[:4], [])).tolist() == [4] * 10
    assert np.bincount(sum(delivered[14:], [])).tolist() == [2] * 10


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    epochs=st.integers(1, 9),
    batch_size=st.integers(1, 40),
    examples=st.integers(1, 40),
)
def test_no_planned_image_is_dropped(sizes, epochs, batch_size, examples):
    stages = [numbered(size) for size in sizes]
    curriculum = Curriculum(stages, epochs, batch_size, 7, examples)
    steps = 0
    for number, (size, count) in enumerate(zip(sizes, curriculum.stage_epochs)):
        batches = [indices for indices, _ in curriculum.batches(number)]
        steps += len(batches)
        seen = np.bincount(np.concatenate([*batches, np.empty(0, int)]), minlength=size)
        assert len(seen) == size and seen.sum() == count * examples and np.ptp(seen) <= 1
    assert steps == epochs * curriculum.steps_per_epoch == epochs * math.ceil(examples / batch_size)


# ------------------------------------------------------------------ seeds and resume


def test_augmented_batches_repeat_with_the_seed_and_differ_between_epochs():
    x = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    y = np.zeros((40, 1), np.float32)

    def augment(images, seed):
        return random_affine(images, seed, flip=True, shift=0.2)

    def two_epochs(seed):
        curriculum = Curriculum([Stage("only", 1, x, y, augment)], 2, 8, seed, 40)
        images = np.concatenate([images for images, _ in curriculum.dataset()])
        assert images.dtype == np.float32 and images.shape == (80, 64, 64, 3)
        return images[:40], images[40:]

    first, second = two_epochs(1)
    again = two_epochs(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    # Not the same images in another order either.
    assert abs(np.sort(first.mean(axis=(1, 2, 3))) - np.sort(second.mean(axis=(1, 2, 3)))).max() > 1e-3
    assert (two_epochs(2)[0] != first).any()


def test_stages_with_the_same_images_get_orders_and_seeds_of_their_own():
    stages = [numbered(20, share=1, augment=noted), numbered(20, share=1, augment=noted)]
    images = np.array([images for images, _ in Curriculum(stages, 2, 20, 1, 20).dataset()])
    assert images[0, :, 0, 0, 0].tolist() != images[1, :, 0, 0, 0].tolist()
    assert images[0, 0, 0, 1, 0] != images[1, 0, 0, 1, 0]


@pytest.mark.parametrize("start_epoch", range(9))
def test_a_resumed_training_gets_bit_for_bit_what_the_whole_one_gets(start_epoch):
    """Nine epochs in four stages: every start, at a boundary or inside a stage, with leftovers in hand or not."""
    sizes, shares = (10, 23, 7, 10), (1, 4, 3, 1)
    stages = [
        numbered(size, first=60 * number, share=share, augment=noted)
        for number, (size, share) in enumerate(zip(sizes, shares))
    ]
    curriculum = Curriculum(stages, 9, 4, 11, 10)
    assert curriculum.stage_epochs == [1, 4, 3, 1]
    whole = [(images.numpy(), labels.numpy()) for images, labels in curriculum.dataset()]
    part = [(images.numpy(), labels.numpy()) for images, labels in curriculum.dataset(start_epoch)]
    assert len(part) == len(whole) - start_epoch * curriculum.steps_per_epoch
    for (images, labels), (expected_images, expected_labels) in zip(part, whole[-len(part) :]):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


# ------------------------------------------------------------------------ training


class Seen(keras.layers.Layer):
    """Counts the images that are trained on."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False, name="count")

    def call(self, x, training=False):
        if training:
            self.count.assign_add(keras.ops.cast(keras.ops.shape(x)[0], "float32"))
        return x


def test_fit_trains_on_every_planned_batch(tmp_path):
    stages = [numbered(10, share=1), numbered(26, share=3), numbered(10, share=1)]
    curriculum = Curriculum(stages, 5, 4, 1, 10)
    seen = Seen()
    model = keras.Sequential([keras.layers.Input((2, 2, 3)), seen, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    args = argparse.Namespace(
        output_dir=tmp_path, resume=False, tensorboard=False, show=False, weights="random", seed=1
    )
    data = argparse.Namespace(kind="real", source=None, hashes={}, class_names=("0", "1"))
    run = utils.Run("script", args, data, "CPU")
    x, y = stages[0].x, stages[0].y
    history = run.fit(model, curriculum, evaluation_dataset(x, y))
    assert curriculum.steps_per_epoch == 3
    assert [len(history[metric]) for metric in ("loss", "val_loss")] == [5, 5]
    assert int(model.optimizer.iterations.numpy()) == 5 * 3
    assert int(seen.count.numpy()) == 5 * 10


def test_an_evaluation_set_keeps_every_image_unchanged_and_in_order():
    x, y = numbered(150).x, numbered(150).y
    batches = [(images.numpy(), labels.numpy()) for images, labels in evaluation_dataset(x, y)]
    assert [len(images) for images, _ in batches] == [64, 64, 22]
    images, labels = map(np.concatenate, zip(*batches))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(labels, y)
