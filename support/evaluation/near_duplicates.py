"""Near-duplicates: test images that look almost the same as a training image, and so flatter the accuracy."""

from typing import NamedTuple

import numpy as np

from datasets.groups import CHUNK, NEAR_DUPLICATE, SHIFTS, gray_chunks, shifted_thumbnails, thumbnails


class NearDuplicates(NamedTuple):
    """The most similar training image of each of t test images."""

    index: np.ndarray  # (t,) int64, which training image it is
    distance: np.ndarray  # (t,) float32: 0 for equal up to brightness and contrast, 1.4 for nothing in common

    @property
    def found(self):
        """Whether each test image has a near-duplicate, bool (t,)."""
        return self.distance < NEAR_DUPLICATE

    def summary(self, correct):
        """Return a dict for `metrics.json`: their number, and the accuracy on the test images with and without one.

        Args:
            correct: bool (t,), whether each test image was classified correctly.
        """
        groups = {"accuracy_with": correct[self.found], "accuracy_without": correct[~self.found]}
        accuracies = {name: float(group.mean()) if len(group) else None for name, group in groups.items()}
        return {"count": int(np.count_nonzero(self.found)), **accuracies}


def find_near_duplicates(train_x, test_x):
    """Find the most similar training image for each test image.

    Thumbnails are compared at the relative shift that fits best (Torralba, Fergus and Freeman, "80 Million Tiny
    Images", 2008, section 3). Why it matters: Barz and Denzler, "Do We Train on Test Data?", 2020.

    Args:
        train_x, test_x: uint8 (m, size, size, 3) and (t, size, size, 3) RGB, m at least 1: arrays, or
            `ImageFiles`, which are read in chunks.

    Returns: `NearDuplicates`; the distance of an image to its negative is 2.
    """
    tests = [shifted_thumbnails(gray) for gray in gray_chunks(test_x)]
    index = np.zeros(len(test_x), np.int64)
    best = np.full(len(test_x), -np.inf, np.float32)
    for number, gray in enumerate(gray_chunks(train_x)):
        train = thumbnails(gray).T
        for test_number, test in enumerate(tests):
            similarity = (test @ train).reshape(len(SHIFTS), -1, train.shape[1]).max(axis=0)
            nearest = similarity.argmax(axis=1)
            value = similarity.max(axis=1)
            part = slice(test_number * CHUNK, test_number * CHUNK + len(value))
            index[part] = np.where(value > best[part], number * CHUNK + nearest, index[part])
            best[part] = np.maximum(best[part], value)
    return NearDuplicates(index, np.sqrt(np.maximum(2 - 2 * best, 0)))
