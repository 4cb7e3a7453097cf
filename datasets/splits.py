"""Parts of a labelled set: the validation split, and a few images of each class."""

import numpy as np


def split_validation(x, y, seed, fraction=0.1):
    """Split off a stratified validation set.

    Args:
        x: array (m, ...) of images, or `ImageFiles`.
        y: int array (m,), the labels.
        seed: int; the same seed gives the same split.
        fraction: share of each class that is split off, at least one image.

    Returns: train_x, train_y, validation_x, validation_y, each part in random order.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    in_validation = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        in_validation[members[: max(1, round(fraction * len(members)))]] = True
    train, validation = order[~in_validation[order]], order[in_validation[order]]
    # `take`, because indexing `ImageFiles` would read the files.
    return x.take(train, axis=0), y[train], x.take(validation, axis=0), y[validation]


def subset_per_class(x, y, count):
    """Return the first `count` images of each class and their labels, in the original order."""
    keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:count] for label in np.unique(y)]))
    return x.take(keep, axis=0), y[keep]
