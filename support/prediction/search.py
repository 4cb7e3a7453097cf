"""Find the part of a photograph that looks most like the training images, with the trained network itself.

Squares of a few sizes, everywhere in the photograph, are compared with the training images as `support.evaluation.ood`
does it: by the distance of their features to those in the model's feature bank. Neither colors nor classes matter, so
this also works for gray photographs, for walls as red as skin, and for classes of your own.
"""

import concurrent.futures
import functools
import os
import threading

import numpy as np
from PIL import Image

from support.evaluation.ood import knn_distance
from support.evaluation.outputs import features
from support.prediction.numpy_inference import Network, from_keras

# Sides of the squares, relative to the shorter side of the image: seven, from all of it to about a third.
SIDES = 2.0 ** -(np.arange(7) / 4)

# Longer images are not searched: the squares in them would be many, or small.
MAX_ASPECT = 4

# So many squares are looked at again, each alone.
CANDIDATES = 12

# The whole image, or what another finder has found, is kept unless another square is so much nearer: of hundreds, one
# is always nearer by chance.
GIVEN = 0.75

# For the same reason, a square of hundreds has to be so much nearer than a training image has to be.
NEAR = 0.7

# The probabilities of so many squares, the nearest, are averaged.
VIEWS = 5

# Larger networks are slow, so they look at fewer squares.
MANY_WEIGHTS = 2_000_000

# Keras models are called by one thread at a time.
_lock = threading.Lock()


def searcher(model, bank, ood_threshold, find=None):
    """Return a function that finds the squares of an image that look most like the training images.

    Args:
        model: Keras model or `numpy_inference.Network`.
        bank: float array (t, n), from `support.evaluation.ood.feature_bank`.
        ood_threshold: float, the greatest distance to the bank of an image that looks like the training images.
        find: another finder: a function from an image to a square (x, y, side), its center and its side, or None.
    """
    network = _in_numpy(model)
    if isinstance(network, Network) and not network.shares_maps():
        return lambda image, least: [None]  # looking at each square alone would take minutes
    threads = concurrent.futures.ThreadPoolExecutor(min(len(SIDES), os.cpu_count() or 1))

    def search(image, least):
        """Return squares (x, y, side) of an image, uint8 (height, width, 3), RGB, of a few hundred pixels.

        The nearest comes first. None stands for the largest square in the center. The list is empty if no square is
        near enough. `least` is the least side of a square in pixels.
        """
        whole = Image.fromarray(image)
        short, long = sorted(whole.size)
        guess = find(image) if find and long > least else None
        given = [None] if guess is None else [None, guess]
        squares = [_within(square, whole.size, least) for square in given]
        if least < long <= MAX_ASPECT * short:
            squares += _nearest_windows(
                network, bank, whole, [side for side in short * SIDES if side >= least], threads
            )
        distances = _distances(network, bank, whole, squares)
        kept, nearest = distances[: len(given)].argmin(), distances.min()
        if GIVEN * distances[kept] <= nearest:
            return [given[kept]] if distances[kept] <= ood_threshold else []
        if nearest > NEAR * ood_threshold:
            return [] if guess is None else [guess]
        squares = [squares[index] for index in distances.argsort(kind="stable")[:VIEWS]]
        return [(left + side / 2, top + side / 2, side) for left, top, side in squares]

    return search


def _in_numpy(model):
    """Return a model as a `Network`, which shares work among squares, or as it is if NumPy does not know its layers."""
    if isinstance(model, Network):
        return model
    try:
        return from_keras(model)
    except (ValueError, KeyError, TypeError):
        return model


def _within(square, size, least):
    """Return a square (x, y, side), or the one in the center for None, as (left, top, side) within an image."""
    width, height = size
    x, y, side = square or (width / 2, height / 2, min(size))
    side = min(max(side, least), *size)
    return min(max(x - side / 2, 0), width - side), min(max(y - side / 2, 0), height - side), side


def _nearest_windows(network, bank, image, sides, threads):
    """Return the CANDIDATES squares (left, top, side) of these sides that seem nearest to the training images."""
    large = sum(weights.size for weights in network.get_weights()) > MANY_WEIGHTS
    sides = sides[:: 1 + large]
    found = list(threads.map(functools.partial(_windows, network, bank, image, coarse=large), sides))
    squares, distances = (np.concatenate(parts) for parts in zip(*found))
    nearest = squares[distances.argsort(kind="stable")[:CANDIDATES]].tolist()
    return [_within((left + side / 2, top + side / 2, side), image.size, 1) for left, top, side in nearest]


def _windows(network, bank, image, side, coarse):
    """Return the squares of one side, (m, 3), as left, top and side, and about how far they are from the bank, (m,)."""
    size = network.input_shape[1]
    scaled = [max(size, round(length * size / side)) for length in image.size]
    pixels = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    if isinstance(network, Network):
        found, stride = network.window_features(pixels, size // (4 if coarse else 8))
    else:
        stride = size // 4
        windows = np.lib.stride_tricks.sliding_window_view(pixels, (size, size, 3))[::stride, ::stride, 0]
        found = _features(network, windows.reshape(-1, size, size, 3)).reshape(*windows.shape[:2], -1)
    rows, columns, _ = found.shape
    top, left = np.mgrid[:rows, :columns].reshape(2, -1) * stride * side / size
    return np.stack([left, top, np.full(len(top), side)], axis=1), knn_distance(found.reshape(len(top), -1), bank)


def _distances(network, bank, image, squares):
    """Return the distance to the bank of each square (left, top, side) of an image, (m,)."""
    size = (network.input_shape[1],) * 2
    boxes = [(left, top, left + side, top + side) for left, top, side in squares]
    crops = np.stack([np.asarray(image.resize(size, Image.Resampling.LANCZOS, box)) for box in boxes])
    return knn_distance(_features(network, crops), bank)


def _features(model, images):
    if isinstance(model, Network):
        return model.features(images)
    with _lock:
        return features(model, images)
