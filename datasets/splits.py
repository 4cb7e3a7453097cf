"""Parts of a labeled set: the validation split, the folds of a cross-validation, and a few images of each class."""

import numpy as np

from basics.errors import InputError

# Fixed, so that another --seed does not move training images of an earlier run into the test set.
SPLIT_SEED = 1

# Why a group has to be split.
TOO_FEW = "a class would have too few images on one side"


def split_validation(x, y, seed, fraction=0.1, groups=None):
    """Split off a stratified validation set.

    Args:
        x: array (m, ...) of images, or `ImageFiles`.
        y: int array (m,), the labels.
        seed: int; the same seed gives the same split.
        fraction: float, the part of each class that is split off; at least one image.
        groups: int array (m,): images of the same group stay together, unless a class would be on one side only. The
            part may then be larger or smaller. None: each image stands alone.

    Returns: train_x, train_y, validation_x, validation_y, each part in random order.
    """
    train, validation = split_indices(y, seed, fraction, groups)
    # `take`, because indexing `ImageFiles` would read the files.
    return x.take(train, axis=0), y[train], x.take(validation, axis=0), y[validation]


def split_indices(y, seed, fraction, groups=None):
    """Return the indices of both parts of a stratified split, the larger one first; see `split_validation`."""
    order = np.random.default_rng(seed).permutation(len(y))
    chosen = np.zeros(len(y), bool)
    if groups is not None:
        chosen = _choose_groups(y, groups, order, fraction)
    # Image by image, if there are no groups, or the groups of a class cannot be split.
    for label in np.setdiff1d(y, y[chosen]):
        members = order[y[order] == label]
        chosen[members[: _wanted(len(members), fraction)]] = True
    return order[~chosen[order]], order[chosen[order]]


def _wanted(count, fraction):
    return max(1, round(fraction * count))


def _choose_groups(y, groups, order, fraction):
    """Return which images to split off, bool (m,): whole groups, as close to the fraction of each class as they allow.

    Of each class, images remain. A class whose groups do not allow that is not split.
    """
    _, y, totals = np.unique(y, return_inverse=True, return_counts=True)
    members = _members(groups, order)
    counts = [np.unique(y[group], return_counts=True) for group in members]  # which classes, and how many of each
    wanted = np.array([_wanted(total, fraction) for total in totals])
    missing = wanted.copy()
    left = totals - np.minimum(2, totals - 1)  # how many may go: two stay, to train on and to validate on
    chosen = np.zeros(len(y), bool)

    def fits(number):
        classes, count = counts[number]
        return (count <= left[classes]).all()

    def choose(number):
        classes, count = counts[number]
        missing[classes] -= count
        left[classes] -= count
        chosen[members[number]] = True

    for number, (classes, count) in enumerate(counts):
        nearer = np.abs(missing[classes] - count).sum() < np.abs(missing[classes]).sum()
        if nearer and fits(number):
            choose(number)
    for label in range(len(totals)):
        if missing[label] == wanted[label]:  # all its groups are larger than what is wanted: the smallest of them
            fitting = [number for number, (classes, _) in enumerate(counts) if label in classes and fits(number)]
            if fitting:
                choose(min(fitting, key=lambda number: len(members[number])))
    return chosen


def _members(groups, order):
    """Return the indices of each group, a list of arrays, in the order of their first images."""
    _, first, number = np.unique(groups[order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))[number]  # of the group of each image of `order`
    return np.split(order[np.argsort(rank, kind="stable")], np.cumsum(np.bincount(rank))[:-1])


def stratified_folds(y, count, groups=None):
    """Return the fold of each label in y (m,), an int array (m,) from 0; the same arguments give the same folds.

    The folds differ by at most one in their number of images, and by at most one in that of each class. With groups
    (m,), whole groups are dealt out, and the folds may differ by more.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(y))
    if groups is not None and len(np.unique(groups)) < len(groups):
        return _grouped_folds(y, groups, count, order)
    folds = np.empty(len(y), int)
    # Dealt out like cards, one class after the other.
    folds[order[np.argsort(y[order], kind="stable")]] = np.arange(len(y)) % count
    return folds


def _grouped_folds(y, groups, count, order):
    """Return the folds of groups: the largest first, each goes to the fold that has the least of its classes."""
    _, y, totals = np.unique(y, return_inverse=True, return_counts=True)
    groups = np.unique(groups, return_inverse=True)[1]
    one_by_one = np.zeros(len(totals), bool)
    while True:
        folds = np.empty(len(y), int)
        filled = np.zeros((count, len(totals)), int)  # the images of each class in each fold
        sizes = np.zeros(count)
        for members in sorted(_members(groups, order), key=len, reverse=True):
            classes, number = np.unique(y[members], return_counts=True)
            fold = np.lexsort((sizes, filled[:, classes] @ (number / totals[classes])))[0]
            filled[fold, classes] += number
            sizes[fold] += len(members)
            folds[members] = fold
        # Two images of each class must be left to train and to validate on, so the groups of others are split.
        whole = (totals - filled.max(axis=0) < 2) & ~one_by_one
        if not whole.any():
            return folds
        one_by_one |= whole
        groups = np.where(whole[y], groups.max() + 1 + np.arange(len(y)), groups)


def split_fold(x, y, fold, ignored=None, groups=None, folds=None):
    """Split a set for one run of a cross-validation, and print how.

    Args:
        x, y: images, array (m, ...) or `ImageFiles`, and labels (m,).
        fold: "I/K": fold I of K, counted from 1, becomes the test set.
        ignored: the test set that is ignored, named in the message.
        groups: int array (m,) or None, see `stratified_folds`.
        folds: int array (m,), the fold of each image from 0; None: those of `stratified_folds`.

    Returns: train_x, train_y, test_x, test_y, and the indices (t,) of the test images in x.
    Raises InputError: a class has too few images.
    """
    number, count = map(int, fold.split("/"))
    reason = TOO_FEW if folds is None else "the folds are your own"
    if folds is None:
        fewest = np.unique(y, return_counts=True)[1].min()
        least = max(count, 4)
        if fewest < least:
            fix = "Use fewer folds, or add images" if fewest >= 4 else "Add images"
            raise InputError(f"{count} folds need at least {least} images of each class", fix, f"a class of {fewest}")
        folds = stratified_folds(y, count, groups)
        if len(np.unique(folds)) < count:
            problem = f"{count} folds need at least {count} groups of images"
            raise InputError(problem, "Use fewer folds", f"{len(np.unique(groups))} groups")
    in_fold = folds == number - 1
    test, train = np.flatnonzero(in_fold), np.flatnonzero(~in_fold)
    instead = f"; {ignored} is not used" if ignored else ""
    print_torn_groups(groups, train, test, "testing", reason)
    print(f"Fold {number} of {count}: testing on {len(test):,} of {len(y):,} images, training on the others{instead}")
    return x.take(train, axis=0), y[train], x.take(test, axis=0), y[test], test


def print_torn_groups(groups, train, others, purpose, reason=TOO_FEW):
    """Print how many groups are on both sides of a split.

    Args:
        groups: int array (m,), or None.
        train, others: the indices of both sides.
        purpose: "validation" or "testing", what the others are for.
        reason: str, why groups are split.
    """
    torn = 0 if groups is None else len(np.intersect1d(groups[train], groups[others]))
    if torn:
        print(f"Groups: {torn:,} had to be split for {purpose}, because {reason}")


def subset_per_class(x, y, count):
    """Return the first `count` images of each class and their labels, in the original order; None: all."""
    keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:count] for label in np.unique(y)]))
    return x.take(keep, axis=0), y[keep]
