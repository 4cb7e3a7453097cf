"""Find the hand or the face in a photograph, so that the network sees it as large as in the training images.

The functions take a uint8 array (height, width, 3), RGB, of a few hundred pixels, and return the square to crop to as
(x, y, side): its center and side in pixels. It may reach beyond the image. None: nothing was found.
"""

import functools
import os
import threading

import numpy as np
import scipy

from basics.errors import InputError, require

# Side of the square, relative to the longer side of the hand. In the SIGNS photographs the median is 1 / 0.74.
HAND_MARGIN = 1.3

# Side of the square, relative to that of the face as OpenCV sees it, from the eyebrows to the chin: between close
# portraits (1.2, GENKI-4K) and those with shoulders (2.2, Happy House).
FACE_MARGIN = 1.7

# The second one finds some of the faces that the first one misses.
CASCADES = "haarcascade_frontalface_default.xml", "haarcascade_frontalface_alt2.xml"

# OpenCV's cascades work in several threads themselves, but only for one caller at a time.
_lock = threading.Lock()


def alone(find):
    """Return a function that gives `read_photo` the one square that `find` finds in an image, or none."""

    def squares(image, least):
        square = find(image)
        return [] if square is None else [square]

    return squares


def face_finder():
    """Return `find_face`. Raises InputError: it needs a package that is missing."""
    require("cv2", "Finding faces", "opencv-python-headless>=4.14,<5")
    _cascades()
    return find_face


def find_hand(image):
    """Find a hand in front of a wall by the redness of skin, and leave out the arm.

    support/export/live_hand.js does the same in the browser.

    The wall has to be less red than the skin, as white, grey, blue and green walls are.
    """
    pixels = image.astype(np.float32)
    # The logarithm of red over blue does not change with the brightness; 8 gray levels keep noise in the dark small.
    redness = scipy.ndimage.gaussian_filter(np.log((pixels[..., 0] + 8) / (pixels[..., 2] + 8)), max(image.shape) / 250)
    if np.ptp(redness) < 0.2:
        return None  # gray
    threshold = _otsu_threshold(redness)
    wall, skin = np.median(redness[redness <= threshold]), np.median(redness[redness > threshold])
    red = redness > 0.6 * wall + 0.4 * skin  # fingertips and the hand's edges are less red than its middle
    parts, _ = scipy.ndimage.label(red)
    sizes = np.bincount(parts[red])
    hand = parts == sizes.argmax()
    border = np.concatenate([hand[0], hand[-1], hand[:, 0], hand[:, -1]])
    # A hand is in one piece and clearly redder than the wall. What fills a third of the border is a wall itself.
    if skin - wall < 0.2 or sizes.max() < 0.6 * red.sum() or border.mean() > 0.3 or not 0.005 < hand.mean() < 0.65:
        return None
    top_left, bottom_right = _without_arm(scipy.ndimage.binary_fill_holes(hand))
    side = HAND_MARGIN * max(bottom_right - top_left)
    y, x = (top_left + bottom_right) / 2
    return x, y - 0.03 * side, side  # some of the arm is seen below the hand, as in the SIGNS photographs


def _otsu_threshold(values):
    """Return the threshold that separates two groups best: it minimizes the variance within the groups.

    Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979.
    """
    counts, edges = np.histogram(values, 256)
    middles = (edges[1:] + edges[:-1]) / 2
    fraction = counts.cumsum() / counts.sum()
    mean = (counts * middles).cumsum() / counts.sum()
    between = (mean[-1] * fraction - mean)[:-1] ** 2 / np.maximum(fraction * (1 - fraction), 1e-9)[:-1]
    return edges[between.argmax() + 1]


def _without_arm(hand):
    """Return the upper left and the lower right corner (row, column) of a mask, without what lies below the wrist."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(hand, 1))[1:-1, 1:-1][hand]  # of each point, from the outline
    points = np.argwhere(hand)
    at_border = (points == 0).any(axis=1) | (points == np.subtract(hand.shape, 1)).any(axis=1)
    # The deepest points lie in the middle of the palm, but also in a thick forearm: take the one farthest from where
    # the arm enters the image.
    from_border = _distance(points, points[at_border].mean(axis=0)) if at_border.any() else depth
    palm = np.where(depth > 0.8 * depth.max(), from_border, 0).argmax()
    palm = np.where(_distance(points, points[palm]) < depth[palm], depth, 0).argmax()
    radius = depth[palm]
    # Fingers are thinner than half the palm; what is thicker and far away is the arm.
    distance = np.where(depth > 0.55 * radius, _distance(points, points[palm]), 0)
    end = distance.argmax()
    if distance[end] > 1.5 * radius:
        along = (points - points[palm]) @ (points[end] - points[palm]) / distance[end]
        points = points[along < 1.6 * radius]
    return points.min(axis=0), points.max(axis=0) + 1


def _distance(points, point):
    return np.linalg.norm(points - point, axis=1)


def find_face(image):
    """Find the largest face that looks at the camera, with OpenCV's cascades (Viola and Jones, 2001)."""
    gray = np.ascontiguousarray((image @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8))  # ITU-R BT.601
    smallest = (max(24, max(gray.shape) // 12),) * 2
    with _lock:
        for cascade in _cascades():
            faces = cascade.detectMultiScale(gray, 1.1, 4, minSize=smallest)
            if len(faces):
                x, y, side, _ = map(float, max(faces, key=lambda face: face[2]))
                return x + side / 2, y + side / 2, FACE_MARGIN * side


@functools.cache
def _cascades():
    """Return OpenCV's detectors of faces; raise an InputError if they do not come with it."""
    import cv2

    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    if not all(os.path.isfile(os.path.join(folder, name)) for name in CASCADES):
        problem = f"OpenCV {cv2.__version__} comes without the detectors for faces"
        raise InputError(problem, 'Install OpenCV 4: pip install "opencv-python-headless<5"')
    return [cv2.CascadeClassifier(os.path.join(folder, name)) for name in CASCADES]
