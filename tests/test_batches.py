"""The training batches: every image gets its turn, every planned batch is trained on, and a seed repeats them."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import open_tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st

from support.training import checkpoint
from support.training.augmentation import random_affine
from support.training.batches import Batches, evaluation_batches

# The epochs of the rows of the three scripts' schedules: by default, from random weights, for images of your own.
DEFAULTS = [[45, 15], [30, 22, 8], [16, 24], [40], [9, 9, 8]]


def no_change(images, seed):
    return tf.cast(images, tf.float32)


def noted(images, seed):
    """Write the batch's seed into the second pixel, to see which one it got."""
    images = tf.cast(images, tf.float32)
    noise = tf.random.stateless_uniform((1, 1, 1, 1), seed) * tf.ones_like(images[:, :1, :1])
    return tf.concat([images[:, :1, :1], noise], axis=2)


def numbered(count, first=0, epochs=1, augment=no_change):
    """A row whose images carry their number in the first pixel, and as their label."""
    x = np.zeros((count, 2, 2, 3), np.uint8)
    x[:, 0, 0, 0] = first + np.arange(count)
    return epochs, (x, np.arange(first, first + count, dtype=np.float32)[:, None]), augment


def bare(*epochs):
    """Rows of a different number of images each, for tests that only count epochs."""
    return [numbered(number, epochs=count) for number, count in enumerate(epochs, 1)]


def labels_by_epoch(batches, epochs_done=0):
    """The labels of each epoch that the dataset delivers; each image must have its own."""
    delivered = []
    for images, labels in batches.dataset(epochs_done):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels[:, 0])
        delivered.append(labels.numpy()[:, 0].astype(int).tolist())
    steps = batches.steps_per_epoch
    assert len(delivered) == (batches.epochs - epochs_done) * steps
    return [sum(delivered[start : start + steps], []) for start in range(0, len(delivered), steps)]


# ------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("epochs", DEFAULTS, ids=str)
def test_the_rows_take_the_epochs_that_they_name_and_four_are_enough_for_all(epochs):
    assert Batches(bare(*epochs), sum(epochs), 32, 1, 100).row_epochs == epochs
    dry_run = Batches(bare(*epochs), 4, 32, 1, 100).row_epochs
    assert min(dry_run) >= 1 and sum(dry_run) == 4


def test_rows_count_from_1_and_are_named_by_augmentation_and_size():
    batches = Batches(bare(4, 27, 30, 14), 75, 32, 1, 972)
    names = [f"no change, {count} images" for count in (1, 2, 3, 4)]
    assert batches.rows == list(zip(names, (1, 5, 32, 62), (4, 31, 61, 75)))
    assert batches.steps_per_epoch == math.ceil(972 / 32)
    later = Batches(bare(1, 1), 2, 32, 1, 100, first_epoch=5)
    assert later.rows == [("no change, 1 images", 6, 6), ("no change, 2 images", 7, 7)] and later.last_epoch == 7


def test_rows_of_one_size_are_named_by_augmentation_alone_and_equal_ones_are_one():
    schedule = [numbered(7), numbered(7), numbered(7, augment=noted)]
    assert Batches(schedule, 3, 32, 1, 7).rows == [("no change", 1, 2), ("noted", 3, 3)]


def test_without_augmentation_the_images_stay_as_they_are():
    batches = Batches([numbered(10, augment=None)], 1, 10, 1, 10)
    assert batches.rows == [("no augmentation", 1, 1)] and sorted(labels_by_epoch(batches)[0]) == list(range(10))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.lists(st.integers(1, 100), min_size=1, max_size=6), epochs=st.integers(1, 200))
def test_rows_share_all_epochs_in_proportion(rows, epochs):
    batches = Batches(bare(*rows), epochs, 32, 1, 100)
    assert sum(batches.row_epochs) == epochs and min(batches.row_epochs) >= 0
    wanted = [row * epochs / sum(rows) for row in rows]
    assert all(abs(got - want) <= 1 for got, want in zip(batches.row_epochs, wanted))
    # The rows cover the epochs without gap or overlap.
    covered = [epoch for _, first, last in batches.rows for epoch in range(first, last + 1)]
    assert covered == list(range(1, epochs + 1))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_fewer_epochs_than_rows_are_all_delivered(epochs):
    schedule = [numbered(7, first=40 * number, epochs=share) for number, share in enumerate([4, 27, 30, 14])]
    delivered = labels_by_epoch(Batches(schedule, epochs, 3, 1, 7))
    assert len(delivered) == epochs and all(len(labels) == 7 for labels in delivered)
    # Each epoch has the images of one row, and the schedule keep their order.
    numbers = [{label // 40 for label in labels} for labels in delivered]
    assert all(len(number) == 1 for number in numbers) and [*map(min, numbers)] == sorted(map(min, numbers))


# --------------------------------------------------------------- what an epoch has


def test_an_epoch_has_every_image_once_and_another_order_each_time():
    batches = Batches([numbered(100)], 2, 32, 5, 100)
    assert batches.steps_per_epoch == 4
    first, second = labels_by_epoch(batches)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second and first != list(range(100))


def test_a_small_set_is_seen_several_times_in_an_epoch():
    labels = labels_by_epoch(Batches([numbered(10)], 2, 8, 5, 30))
    assert [np.bincount(epoch).tolist() for epoch in labels] == [[3] * 10] * 2
    # Each pass over the set has all its images.
    assert all(sorted(epoch[start : start + 10]) == list(range(10)) for epoch in labels for start in (0, 10, 20))


def test_the_last_smaller_batch_is_delivered_in_every_row():
    schedule = [numbered(10, epochs=1), numbered(25, first=100, epochs=2), numbered(4, first=200, epochs=1)]
    batches = Batches(schedule, 8, 4, 3, 10)
    sizes = [len(labels) for _, labels in batches.dataset()]
    assert sizes == [4, 4, 2] * 8
    assert sum(sizes) == batches.epochs * batches.examples_per_epoch


def test_a_row_with_more_images_than_an_epoch_shows_each_equally_often():
    schedule = [numbered(10, epochs=2), numbered(25, first=100, epochs=5), numbered(10, epochs=1)]
    batches = Batches(schedule, 16, 4, 3, 10)
    assert batches.row_epochs == [4, 10, 2]
    delivered = labels_by_epoch(batches)
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
    schedule = [numbered(size) for size in sizes]
    batches = Batches(schedule, epochs, batch_size, 7, examples)
    steps = 0
    for number, (size, count) in enumerate(zip(sizes, batches.row_epochs)):
        indices = [indices for indices, _ in batches.batches(number)]
        steps += len(indices)
        seen = np.bincount(np.concatenate([*indices, np.empty(0, int)]), minlength=size)
        assert len(seen) == size and seen.sum() == count * examples and np.ptp(seen) <= 1
    assert steps == epochs * batches.steps_per_epoch == epochs * math.ceil(examples / batch_size)


# ------------------------------------------------------------------ seeds and resume


def test_augmented_batches_repeat_with_the_seed_and_differ_between_epochs():
    x = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    y = np.zeros((40, 1), np.float32)

    def augment(images, seed):
        return random_affine(images, seed, flip=True, shift=0.2)

    def two_epochs(seed):
        batches = Batches([(1, (x, y), augment)], 2, 8, seed, 40)
        images = np.concatenate([images for images, _ in batches.dataset()])
        assert images.dtype == np.float32 and images.shape == (80, 64, 64, 3)
        return images[:40], images[40:]

    first, second = two_epochs(1)
    again = two_epochs(1)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    # Not the same images in another order either.
    assert abs(np.sort(first.mean(axis=(1, 2, 3))) - np.sort(second.mean(axis=(1, 2, 3)))).max() > 1e-3
    assert (two_epochs(2)[0] != first).any()


def test_schedule_with_the_same_images_get_orders_and_seeds_of_their_own():
    schedule = [numbered(20, epochs=1, augment=noted), numbered(20, epochs=1, augment=noted)]
    images = np.array([images for images, _ in Batches(schedule, 2, 20, 1, 20).dataset()])
    assert images[0, :, 0, 0, 0].tolist() != images[1, :, 0, 0, 0].tolist()
    assert images[0, 0, 0, 1, 0] != images[1, 0, 0, 1, 0]


@pytest.mark.parametrize("start_epoch", range(9))
def test_a_resumed_training_gets_bit_for_bit_what_the_whole_one_gets(start_epoch):
    """Nine epochs in four rows: every start, at a boundary or inside a row, with leftovers in hand or not."""
    sizes, shares = (10, 23, 7, 10), (1, 4, 3, 1)
    schedule = [
        numbered(size, first=60 * number, epochs=share, augment=noted)
        for number, (size, share) in enumerate(zip(sizes, shares))
    ]
    batches = Batches(schedule, 9, 4, 11, 10)
    assert batches.row_epochs == [1, 4, 3, 1]
    whole = [(images.numpy(), labels.numpy()) for images, labels in batches.dataset()]
    part = [(images.numpy(), labels.numpy()) for images, labels in batches.dataset(start_epoch)]
    assert len(part) == len(whole) - start_epoch * batches.steps_per_epoch
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
    schedule = [numbered(10, epochs=1), numbered(26, epochs=3), numbered(10, epochs=1)]
    batches = Batches(schedule, 5, 4, 1, 10)
    seen = Seen()
    model = keras.Sequential([keras.layers.Input((2, 2, 3)), seen, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-6), "mse", metrics=["accuracy"])
    run = open_tiny_run(tmp_path)
    _, (x, y), _ = schedule[0]
    with run.training(model, batches):
        model.fit(
            batches.dataset(),
            validation_data=evaluation_batches(x, y),
            epochs=5,
            steps_per_epoch=batches.steps_per_epoch,
            callbacks=run.callbacks,
            shuffle=False,
        )
    history = run.history
    assert batches.steps_per_epoch == 3
    assert [len(history[metric]) for metric in ("loss", "val_loss")] == [5, 5]
    assert int(model.optimizer.iterations.numpy()) == 5 * 3
    assert int(seen.count.numpy()) == 5 * 10


def test_an_evaluation_set_keeps_every_image_unchanged_and_in_order():
    _, (x, y), _ = numbered(150)
    batches = [(images.numpy(), labels.numpy()) for images, labels in evaluation_batches(x, y)]
    assert [len(images) for images, _ in batches] == [64, 64, 22]
    images, labels = map(np.concatenate, zip(*batches))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, x)
    np.testing.assert_array_equal(labels, y)


def test_the_time_left_is_printed_once_after_the_second_epoch(monkeypatch, capsys):
    clock = iter(range(0, 3000, 30))
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: next(clock))
    callback = checkpoint.TimeLeft()
    callback.set_params({"epochs": 8})
    for epoch in range(3, 8):  # after --resume
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch)
    assert capsys.readouterr().out == "About 2 minutes left\n"
