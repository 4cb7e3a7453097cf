"""Groups of images that show the same scene: near-duplicates, or images that a subfolder or a name puts together.

A split keeps a group together, because a network that has seen one frame of a video knows the next one.
"""

import os
import re

import numpy as np
from PIL import Image
from tqdm import tqdm

from basics.errors import InputError
from datasets import FOLDER, IMAGE_SIZE, NEAR_DUPLICATES, NONE, PREFIX
from datasets.listing import listed

# The largest shift between two images, in pixels, and the side of the cells that are averaged: images of 64x64 become
# thumbnails of 15x15. Without the shift, a copy moved by two pixels would be as far from its original (0.4 to 0.8)
# as the images of two different people are.
MAX_SHIFT, CELL = 2, 4
SHIFTS = [(down, right) for down in range(-MAX_SHIFT, MAX_SHIFT + 1) for right in range(-MAX_SHIFT, MAX_SHIFT + 1)]

# Images closer than this are near-duplicates. Measured on photographs and synthetic images, and checked by eye: JPEG
# copies of quality 30, copies 30% darker, shifted by up to 2 pixels or all of this at once stay below 0.22. Of 120
# photographs of hands, those below 0.25 show the same hand in the same pose a moment earlier or later; above it, poses
# begin to differ. Different people are at least 0.45 apart in 750 photographs, different hands and faces 0.29 in 1,950
# synthetic images.
NEAR_DUPLICATE = 0.25

# The number of images read at a time, because those on disk may not fit into memory.
CHUNK = 256

# Every image is compared with every other one, so twice as many images take four times as long.
MOST_COMPARED = 20_000


def thumbnails(gray, down=0, right=0):
    """Reduce images to vectors whose scalar product measures similarity, whatever the brightness and contrast.

    Args:
        gray: float32 (n, height, width), 0-255.
        down, right: int from -MAX_SHIFT to MAX_SHIFT, the position of the window in pixels from the center.

    Returns: float32 (n, cells + 1), rows of length 1.
    """
    n, height, width = len(gray), gray.shape[1] - 2 * MAX_SHIFT, gray.shape[2] - 2 * MAX_SHIFT
    top, left = MAX_SHIFT + down, MAX_SHIFT + right
    window = gray[:, top : top + height, left : left + width]
    rows = window.reshape(n, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4)).reshape(n, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    # A constant column, as large as a contrast of one gray level, makes two blank images similar.
    rows = np.hstack([rows, np.full((n, 1), np.sqrt(rows.shape[1]), np.float32)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shifted_thumbnails(gray):
    """Return the thumbnails of images at each of SHIFTS, one after the other, because large products are faster."""
    return np.concatenate([thumbnails(gray, *shift) for shift in SHIFTS])


def gray_chunks(x):
    """Yield the images in gray, float32 (up to CHUNK, 64, 64): larger ones are scaled down, which keeps the distances.

    Args:
        x: uint8 (m, size, size, 3) RGB: an array, or `ImageFiles`, which are read in chunks.
    """
    for start in range(0, len(x), CHUNK):
        images = x[np.arange(start, min(start + CHUNK, len(x)))]
        if images.shape[1] != IMAGE_SIZE:
            images = np.array([_resized(image) for image in images])
        yield np.asarray(images, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # luma, ITU-R BT.601


def _resized(image):
    return np.asarray(Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))


def near_duplicate_groups(x):
    """Return the group of each image, int (m,): near-duplicates, and what they are near-duplicates of, share one.

    Args:
        x: uint8 (m, size, size, 3) RGB: an array, or `ImageFiles`, which are read in chunks.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nearest = 1 - NEAR_DUPLICATE**2 / 2  # the scalar product of thumbnails at that distance
    rows = [thumbnails(gray).T for gray in gray_chunks(x)]
    groups = np.arange(len(x))
    chunks = tqdm(gray_chunks(x), "Comparing images", len(rows), unit="", leave=False, disable=None)
    for number, gray in enumerate(chunks):
        shifted = shifted_thumbnails(gray)
        pairs = []
        for other, unshifted in enumerate(rows):
            similar = (shifted @ unshifted > nearest).reshape(len(SHIFTS), len(gray), -1).any(axis=0)
            pairs.append(np.argwhere(similar) + (number * CHUNK, other * CHUNK))
        one, other = groups[np.concatenate(pairs)].T
        # Joined at once, because all pairs of many equal images would not fit into memory.
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(x), len(x)))
        groups = connected_components(graph, directed=False)[1][groups]
    return groups


def nearest_pairs(x, y):
    """Return each image that has a near-duplicate with the nearest of these, those of another class first.

    Args:
        x: as for `near_duplicate_groups`.
        y: labels (m,).

    Returns: list of (index, index of an earlier one, distance), no pair twice.
    """
    groups = near_duplicate_groups(x)
    gray = np.concatenate(list(gray_chunks(x)))
    pairs = {}
    for group in np.flatnonzero(np.bincount(groups) > 1):
        members = np.flatnonzero(groups == group)
        plain = thumbnails(gray[members]).T
        for number, index in enumerate(members):
            similarity = (shifted_thumbnails(gray[index : index + 1]) @ plain).max(axis=0)
            similarity[number] = -1
            distance = np.sqrt(np.maximum(2 - 2 * similarity, 0))
            elsewhere = (y[members] != y[index]) & (distance < NEAR_DUPLICATE)
            nearest = np.where(elsewhere, distance - 2, distance).argmin()
            pair = max(index, members[nearest]), min(index, members[nearest])
            pairs[pair] = min(float(distance[nearest]), pairs.get(pair, 2))
    return [(int(one), int(other), distance) for (one, other), distance in pairs.items()]


def find_groups(x, paths, y, class_names, folders, by):
    """Return the group of each image and a line of text about them; None and "" if each image stands alone.

    Args:
        x: uint8 (m, size, size, 3) RGB: an array, or `ImageFiles`, which are read in chunks.
        paths: the files (m,).
        y: labels (m,).
        class_names: tuple of str, for messages.
        folders: the folder (m,) of the class that each image is in.
        by: one of NEAR_DUPLICATES, FOLDER (the subfolder of the class), PREFIX (the name up to its last number) and
            NONE.

    Returns: int (m,) or None, and str.
    Raises InputError: a name puts all images of a class into one group, or each image into one of its own.
    """
    if by == NONE:
        return None, ""
    if by == NEAR_DUPLICATES:
        if len(x) > MOST_COMPARED:
            limit = f"Groups: of more than {MOST_COMPARED:,} images, near-duplicates are not looked for"
            return None, f"{limit}. If yours show the same scenes several times, use --group-by folder or prefix"
        groups = near_duplicate_groups(x)
    else:
        name_of = _subfolder if by == FOLDER else _prefix
        names = [name_of(path, folder) for path, folder in zip(paths, folders)]
        groups = np.unique(names, return_inverse=True)[1]
        _check_named(groups, y, class_names, by)
    return groups, _describe(groups, y, class_names, by)


def _describe(groups, y, class_names, by):
    """Return a line about groups: how many there are, what they are, and what a split does with them."""
    sizes = np.unique(groups, return_counts=True)[1]
    if sizes.max() == 1:
        return f"Groups: {len(groups):,}, as no two images are near-duplicates"
    count = f"{len(groups):,} images in {len(sizes):,} group{'s' * (len(sizes) > 1)}"
    kind = {
        NEAR_DUPLICATES: "near-duplicates share one",
        FOLDER: "one for each subfolder of the classes",
        PREFIX: "one for each beginning of a file name",
    }
    line = f"Groups: {count}, {kind[by]}; the largest has {sizes.max():,}. Each stays on one side of a split"
    whole = [name for label, name in enumerate(class_names) if len(np.unique(groups[y == label])) < 2]
    if whole:
        line += f", except where a class has no other: {listed(whole)}. Its results will flatter"
    return line


def _subfolder(path, folder):
    """Return the name of the subfolder of a class that an image is in, or the path of one that is in none."""
    first, *others = os.path.relpath(path, folder).split(os.sep)
    return first if others else str(path)


def _prefix(path, folder):
    """Return a file's name up to its last number: "cat_video3_" of cat_video3_0001.jpg."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return re.sub(r"\d+\D*$", "", stem)


def _check_named(groups, y, class_names, by):
    """Raise an InputError if groups by name cannot be split, or are none."""
    if len(np.unique(groups)) == len(groups):
        what = "the classes have no subfolders" if by == FOLDER else "no two names are the same up to their last number"
        raise InputError(f"--group-by {by} finds no groups: {what}", "Drop it to find near-duplicates instead")
    for label, name in enumerate(class_names):
        if len(np.unique(groups[y == label])) < 2:
            problem = f"--group-by {by} puts all {np.count_nonzero(y == label):,} images of {name} into one group"
            raise InputError(problem, "Each class needs at least two: drop it to find near-duplicates instead")
