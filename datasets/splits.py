"""Parts of a labelled set: the validation split, the folds of a cross-validation, and a few images of each class."""

import numpy as np

from support.errors import InputError

# Fixed, so that another --seed does not move yesterday's training images into today's test set.
SPLIT_SEED = 1


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


def stratified_folds(y, count):
    """Return the fold of each label in y (m,), int array (m,) from 0; the same labels give the same folds.

    Each fold gets the same number of images of each class, or one more, and the same number of images, or one more.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    folds = np.empty(len(y), int)
    # Dealt out like cards, one class after the other.
    folds[order[np.argsort(y[order], kind="stable")]] = np.arange(len(y)) % count
    return folds


def split_fold(x, y, fold, unused=None):
    """Split a set for one run of a cross-validation, and say so.

    Args:
        x, y: images, array (m, ...) or `ImageFiles`, and labels (m,).
        fold: "I/K": fold I of K, counted from 1, is tested on.
        unused: what is not used instead, for the message.

    Returns: train_x, train_y, test_x, test_y, and the positions (t,) of the test images in x.
    Raises InputError: a class has too few images.
    """
    number, count = map(int, fold.split("/"))
    fewest, least = int(np.unique(y, return_counts=True)[1].min()), max(count, 4)
    if fewest < least:
        expected = f"{count} folds need at least {least} images of each class: give a smaller number or add images"
        raise InputError(f"{expected}. Received: a class of {fewest}")
    in_fold = stratified_folds(y, count) == number - 1
    test, train = np.flatnonzero(in_fold), np.flatnonzero(~in_fold)
    instead = f"; {unused} is not used" if unused else ""
    print(f"Fold {number} of {count}: {len(test):,} of {len(y):,} images to test on, the others to train on{instead}")
    return x.take(train, axis=0), y[train], x.take(test, axis=0), y[test], test


def subset_per_class(x, y, count):
    """Return the first `count` images of each class and their labels, in the original order."""
    keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:count] for label in np.unique(y)]))
    return x.take(keep, axis=0), y[keep]
