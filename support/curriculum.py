"""Batches for training in several stages, shuffled and augmented, and for evaluation."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from support import distribution


class Stage(NamedTuple):
    """A part of the training that draws its images from `x` and changes them with `augment`.

    name: str, for the learning curves. share: number, how much of the training it takes, relative to the other
    stages. x: uint8 array (m, height, width, 3), or `ImageFiles`. y: array (m, ...), labels as the loss wants
    them. augment: function of (images (batch, height, width, 3), seed int64) that returns float32 images; for the
    seed see `support.augmentation`.
    """

    name: str
    share: float
    x: Any
    y: np.ndarray
    augment: Any


class Curriculum:
    """The batches for training in several stages (Bengio et al., "Curriculum Learning", 2009).

    Each epoch has the same number of images. A stage that has more of them goes on with the rest
    in its next epoch, so each image is seen equally often.

    Args:
        stages: list of `Stage`. Each gets whole epochs by its share, at least one if there are enough.
        epochs: int.
        batch_size: int; the last batch of an epoch may be smaller, unless batches must be whole (on JAX, or shared
            among devices): then an epoch is rounded up to whole batches.
        seed: int, fixes the order and every augmentation.
        examples_per_epoch: int, the number of images in an epoch.
    """

    def __init__(self, stages, epochs, batch_size, seed, examples_per_epoch):
        self.stages, self.epochs, self.batch_size, self.seed = stages, epochs, batch_size, seed
        self.steps_per_epoch = math.ceil(examples_per_epoch / batch_size)
        if distribution.whole_batches():
            examples_per_epoch = self.steps_per_epoch * batch_size
        self.examples_per_epoch = examples_per_epoch
        self.place = distribution.place()
        ends = np.rint(np.cumsum([stage.share for stage in stages]) / sum(stage.share for stage in stages) * epochs)
        if epochs >= len(stages):
            # Every stage ends at least one epoch after the one before, and leaves one for each that follows.
            number = np.arange(len(stages))
            ends = np.maximum.accumulate(np.maximum(ends - number, 1)) + number
            ends = np.minimum(ends, epochs - number[::-1])
        self.stage_epochs = np.diff(ends, prepend=0).astype(int).tolist()

    @property
    def boundaries(self):
        """For each stage that has epochs its name, and its first and last epoch, counted from 1."""
        ends = np.cumsum(self.stage_epochs).tolist()
        return [(stage.name, end - n + 1, end) for stage, n, end in zip(self.stages, self.stage_epochs, ends) if n]

    def __str__(self):
        stages = [f"{f'{first}-{last}' if first < last else first} {name}" for name, first, last in self.boundaries]
        return f"{self.epochs} epochs of {self.examples_per_epoch:,} images each: {'; '.join(stages)}"

    def batches(self, number, start_epoch=0):
        """Yield indices (batch,) and an augmentation seed, int64, for each batch of stage `number`.

        Each of several processes gets its part of the same batches.

        `start_epoch`: epochs of this stage to leave out; the rest is the same as without.
        """
        process, processes, _ = self.place
        size = self.batch_size // processes
        rng = np.random.default_rng([self.seed, number])
        pool = len(self.stages[number].x)
        waiting = np.empty(0, np.int64)
        for epoch in range(self.stage_epochs[number]):
            while len(waiting) < self.examples_per_epoch:
                waiting = np.concatenate([waiting, rng.permutation(pool)])
            indices, waiting = np.split(waiting, [self.examples_per_epoch])
            seeds = rng.integers(2**63, size=(self.steps_per_epoch, 2))
            for step in range(self.steps_per_epoch if epoch >= start_epoch else 0):
                first = step * self.batch_size + process * size
                part = [process * size, self.batch_size] if processes > 1 else []
                yield indices[first : first + size], np.array([*seeds[step], *part])

    def dataset(self, start_epoch=0):
        """Return the training set from an epoch on, counted from 0.

        Returns: `tf.data.Dataset` of (float32 images 0-255 (batch, height, width, 3), labels).
        """
        import tensorflow as tf

        seed_size = 4 if self.place.processes > 1 else 2
        signature = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((seed_size,), tf.int64)
        dataset = None
        for number, stage in enumerate(self.stages):
            skipped = min(start_epoch, self.stage_epochs[number])
            start_epoch -= skipped
            if skipped == self.stage_epochs[number]:
                continue
            part = tf.data.Dataset.from_generator(self.batches, output_signature=signature, args=(number, skipped))
            # Each batch has its own seed, so the result does not depend on the thread that augments it.
            part = part.map(partial(_read_augmented, stage), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            dataset = part if dataset is None else dataset.concatenate(part)
        return dataset.prefetch(tf.data.AUTOTUNE)


def _read_augmented(stage, indices, seed):
    """Return the augmented images and their labels."""
    images, labels = _read_batch(stage.x, stage.y, indices)
    return stage.augment(images, seed), labels


def _read_batch(x, y, indices):
    """Return images and labels as tensors; the arrays stay where they are instead of being copied into the graph."""
    import tensorflow as tf

    images, labels = tf.numpy_function(lambda chosen: (x[chosen], y[chosen]), [indices], (x.dtype, y.dtype))
    images.set_shape((None, *x.shape[1:]))
    labels.set_shape((None, *y.shape[1:]))
    return images, labels


def evaluation_dataset(x, y, batch_size=64):
    """Return the images unchanged and in order: `tf.data.Dataset` of (uint8 images, labels).

    Each of several devices gets all of them, so the metrics are exact whatever their number.
    """
    import tensorflow as tf

    indices = tf.data.Dataset.range(len(x)).batch(batch_size)
    devices = distribution.place().devices
    if devices > 1:
        indices = indices.map(lambda chosen: tf.tile(chosen, [devices]))
    return indices.map(lambda chosen: _read_batch(x, y, chosen), num_parallel_calls=2).prefetch(2)
