"""Near-duplicates: test images that look almost the same as a training image, and so flatter the accuracy."""

import numpy as np

# The largest shift between two images, in pixels, and the side of the cells that are averaged: images of 64x64 become
# thumbnails of 15x15. Without the shift, a copy moved by two pixels would be as far from its original (0.4 to 0.8)
# as the images of two different people are.
MAX_SHIFT, CELL = 2, 4

# Images closer than this are near-duplicates. Measured on photographs and synthetic images, and checked by eye: JPEG
# copies of quality 30, copies 30% darker, shifted by up to 2 pixels or all of this at once stay below 0.22. Of 120
# photographs of hands, those below 0.25 show the same hand in the same pose a moment earlier or later; above it, poses
# begin to differ. Different people are at least 0.45 apart in 750 photographs, different hands and faces 0.29 in 1,950
# synthetic images.
NEAR_DUPLICATE = 0.25

# The number of images read at a time, because those on disk may not fit into memory.
CHUNK = 256


def find_near_duplicates(train_x, test_x):
    """Find the most similar training image for each test image.

    Thumbnails are compared at the relative shift that fits best (Torralba, Fergus and Freeman, "80 Million Tiny
    Images", 2008, section 3). Why it matters: Barz and Denzler, "Do We Train on Test Data?", 2020.

    Args:
        train_x, test_x: uint8 (m, 64, 64, 3) and (t, 64, 64, 3) RGB, m at least 1: arrays, or
            `ImageFiles`, which are read in chunks.

    Returns:
        index (t,) int64, the most similar training image of each test image, and distance (t,) float32:
        0 for equal up to brightness and contrast, 1.4 for nothing in common, 2 for the negative.
    """
    shifts = [(down, right) for down in range(-MAX_SHIFT, MAX_SHIFT + 1) for right in range(-MAX_SHIFT, MAX_SHIFT + 1)]
    # All shifts of a chunk are stacked, because a few large matrix products are faster than many small ones.
    tests = [np.concatenate([thumbnails(grey, *shift) for shift in shifts]) for grey in _grey_chunks(test_x)]
    index = np.zeros(len(test_x), np.int64)
    best = np.full(len(test_x), -np.inf, np.float32)
    for number, grey in enumerate(_grey_chunks(train_x)):
        train = thumbnails(grey).T
        for test_number, test in enumerate(tests):
            similarity = (test @ train).reshape(len(shifts), -1, train.shape[1]).max(axis=0)
            nearest = similarity.argmax(axis=1)
            value = similarity.max(axis=1)
            part = slice(test_number * CHUNK, test_number * CHUNK + len(value))
            index[part] = np.where(value > best[part], number * CHUNK + nearest, index[part])
            best[part] = np.maximum(best[part], value)
    return index, np.sqrt(np.maximum(2 - 2 * best, 0))


def thumbnails(grey, down=0, right=0):
    """Reduce images to vectors whose scalar product measures similarity, whatever the brightness and contrast.

    Args:
        grey: float32 (n, height, width), 0-255.
        down, right: int from -MAX_SHIFT to MAX_SHIFT, the position of the window in pixels from the centre.

    Returns: float32 (n, cells + 1), rows of length 1.
    """
    n, height, width = len(grey), grey.shape[1] - 2 * MAX_SHIFT, grey.shape[2] - 2 * MAX_SHIFT
    top, left = MAX_SHIFT + down, MAX_SHIFT + right
    window = grey[:, top : top + height, left : left + width]
    rows = window.reshape(n, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4)).reshape(n, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    # A constant column, as large as a contrast of one grey level, makes two blank images similar.
    rows = np.hstack([rows, np.full((n, 1), np.sqrt(rows.shape[1]), np.float32)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _grey_chunks(x):
    """Yield the images in grey, float32 (up to CHUNK, height, width)."""
    for start in range(0, len(x), CHUNK):
        images = np.asarray(x[np.arange(start, min(start + CHUNK, len(x)))], np.float32)
        yield images @ np.array([0.299, 0.587, 0.114], np.float32)  # luma, ITU-R BT.601
