"""Batches for the training, shuffled and augmented by a schedule, and for evaluation."""

import math
from functools import partial

import numpy as np

from support.evaluation.outputs import sample_weights
from support.training import distribution


class Batches:
    """The batches of one training.

    Each epoch has the same number of images. If a row of the schedule has more images than an epoch, its next epoch
    continues where this one stopped, so each image is seen equally often.

    Args:
        schedule: list of rows (epochs, (x, y), augment), one after the other: how many epochs a row takes; uint8 images
            x (m, height, width, 3), an array or `ImageFiles`, and labels y (m, ...) as the loss wants them; and a
            function of (images (batch, height, width, 3), seed int64) that returns float32 images (for the seed see
            `support.training.augmentation`), or None to change nothing. It is named by `name_of`.
        epochs: int; the rows are shortened or lengthened alike if theirs do not add up to it.
        batch_size: int; the last batch of an epoch may be smaller, unless batches must be whole (on JAX, or shared
            among devices): then an epoch is rounded up to whole batches.
        seed: int, fixes the order and every augmentation.
        examples_per_epoch: int, the number of images in an epoch.
        first_epoch: int, how many epochs the model was trained for before.
    """

    def __init__(self, schedule, epochs, batch_size, seed, examples_per_epoch, first_epoch=0):
        self.schedule = [(row_epochs, images, augment or no_augmentation) for row_epochs, images, augment in schedule]
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.first_epoch, self.last_epoch = first_epoch, first_epoch + epochs
        self.steps_per_epoch = math.ceil(examples_per_epoch / batch_size)
        if distribution.whole_batches():
            examples_per_epoch = self.steps_per_epoch * batch_size
        self.examples_per_epoch = examples_per_epoch
        self.rank = distribution.rank()
        ends = np.cumsum([row_epochs for row_epochs, _, _ in schedule])
        self.row_epochs = np.diff(np.rint(ends / ends[-1] * epochs), prepend=0).astype(int).tolist()

    @property
    def rows(self):
        """For each row that has epochs its name, and its first and last epoch, counted from 1; equal rows are one."""
        sizes = [len(x) for _, (x, _), _ in self.schedule]
        rows, end = [], self.first_epoch
        for (_, _, augment), size, epochs in zip(self.schedule, sizes, self.row_epochs):
            name = name_of(augment)
            name += f", {size:,} images" if len(set(sizes)) > 1 else ""
            if epochs and rows and rows[-1][0] == name:
                rows[-1] = (name, rows[-1][1], end + epochs)
            elif epochs:
                rows.append((name, end + 1, end + epochs))
            end += epochs
        return rows

    @property
    def example(self):
        """The labels of one image, (1, ...)."""
        return self.schedule[0][1][1][:1]

    def __str__(self):
        rows = [f"{f'{first}-{last}' if first < last else first} {name}" for name, first, last in self.rows]
        return f"{self.epochs} epochs of {self.examples_per_epoch:,} images each: {'; '.join(rows)}"

    def batches(self, number, start_epoch=0):
        """Yield indices (batch,) and an augmentation seed, int64, for each batch of row `number`.

        Each of several processes gets its part of the same batches.

        `start_epoch`: epochs of this row to leave out; the rest is the same as without.
        """
        process, processes, _ = self.rank
        size = self.batch_size // processes
        rng = np.random.default_rng([self.seed, number])
        _, (x, _), _ = self.schedule[number]
        waiting = np.empty(0, np.int64)
        for epoch in range(self.row_epochs[number]):
            while len(waiting) < self.examples_per_epoch:
                waiting = np.concatenate([waiting, rng.permutation(len(x))])
            indices, waiting = np.split(waiting, [self.examples_per_epoch])
            seeds = rng.integers(2**63, size=(self.steps_per_epoch, 2))
            for step in range(self.steps_per_epoch if epoch >= start_epoch else 0):
                first = step * self.batch_size + process * size
                part = [process * size, self.batch_size] if processes > 1 else []
                yield indices[first : first + size], np.array([*seeds[step], *part])

    def dataset(self, epochs_done=0, class_weight=None):
        """Return the training set, after the epochs that are done, counted from the model's first.

        Args:
            epochs_done: int.
            class_weight: dict from label to weight in the loss, or None. Unlike Keras's own `class_weight`, it does not
                take images that show no class for those of the first.

        Returns: `tf.data.Dataset` of (float32 images 0-255 (batch, height, width, 3), labels) and, with weights,
            float32 (batch,).
        """
        import tensorflow as tf

        seed_size = 4 if self.rank.processes > 1 else 2
        signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((seed_size,), tf.int64)
        to_skip, dataset = max(0, epochs_done - self.first_epoch), None
        for number, (_, (x, y), augment) in enumerate(self.schedule):
            skipped = min(to_skip, self.row_epochs[number])
            to_skip -= skipped
            row = tf.data.Dataset.from_generator(self.batches, output_signature=signature, args=(number, skipped))
            # Each batch has its own seed, so the result does not depend on the thread that augments it.
            weights = None if class_weight is None else sample_weights(y, class_weight)
            read = partial(_read_augmented, x, y, weights, augment)
            row = row.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            dataset = row if dataset is None else dataset.concatenate(row)
        return dataset.prefetch(tf.data.AUTOTUNE)


def name_of(augment):
    """Return the name of an augmentation in words; it may be a `functools.partial`."""
    return getattr(augment, "func", augment).__name__.replace("_", " ")


def no_augmentation(images, seed):
    """Return the images as they are, in float32."""
    import tensorflow as tf

    return tf.cast(images, tf.float32)


def _read_augmented(x, y, weights, augment, indices, seed):
    """Return the augmented images, their labels and, unless they are None, their weights."""
    images, labels = _read_batch(x, y, indices)
    if weights is None:
        return augment(images, seed), labels
    import tensorflow as tf

    return augment(images, seed), labels, tf.gather(weights, indices)


def _read_batch(x, y, indices):
    """Return images and labels as tensors; the arrays stay where they are instead of being copied into the graph."""
    import tensorflow as tf

    images, labels = tf.numpy_function(lambda chosen: (x[chosen], y[chosen]), [indices], (x.dtype, y.dtype))
    images.set_shape((None, *x.shape[1:]))
    labels.set_shape((None, *y.shape[1:]))
    return images, labels


def evaluation_batches(x, y, batch_size=64):
    """Return the images unchanged and in order: `tf.data.Dataset` of (uint8 images, labels).

    Each of several devices gets all of them, so the metrics are exact, however many devices there are.
    """
    import tensorflow as tf

    indices = tf.data.Dataset.range(len(x)).batch(batch_size)
    devices = distribution.rank().devices
    if devices > 1:
        indices = indices.map(lambda chosen: tf.tile(chosen, [devices]))
    return indices.map(lambda chosen: _read_batch(x, y, chosen), num_parallel_calls=2).prefetch(2)
