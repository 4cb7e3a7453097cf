"""Make the SIGNS test photographs harder: the same hands with other backgrounds, skin tones and lighting.

    python -m benchmarks.stress DATA FILE.png       save a few of them as an image (DATA: a folder with test_signs.h5)

All SIGNS photographs show similar hands in front of one bright wall, so a model can be right about every test image and
still fail on other photos. These sets are harder and need no new labels. They share no code with the augmentation of
the scripts.
"""

import sys

import numpy as np
from PIL import Image
from scipy import ndimage

from basics.errors import run_main
from datasets.hdf5 import load_h5


def hand_mask(x):
    """Return how much each pixel belongs to the hand, floats from 0 to 1 of shape (m, height, width, 1).

    `x`: uint8 (m, height, width, 3), hands in front of a plain wall. Skin is redder than the wall, even in shadow.
    """
    # The logarithm of red over blue does not change with brightness.
    redness = np.log((x[..., 0] + 1.0) / (x[..., 2] + 1.0))
    redness = ndimage.gaussian_filter(redness, (0, 0.7, 0.7))
    # The hand enters from below, so the upper edges show mostly wall.
    edges = [redness[:, :3], redness[:, :40, :3], redness[:, :40, -3:]]
    wall = np.median(np.concatenate([edge.reshape(len(x), -1) for edge in edges], axis=1), axis=1)[:, None, None]
    skin = np.quantile(redness, 0.97, axis=(1, 2))[:, None, None]
    return np.clip(2.5 * (redness - wall) / (skin - wall + 1e-6) - 0.6, 0, 1)[..., np.newaxis]


def other_backgrounds(x, rng):
    """Replace the background by one of random color and texture, from paint to foliage."""
    m, side = x.shape[:2]
    texture = np.zeros(x.shape)
    for cells in (4, 8, 16, 32, 64):
        coarse = 0.5 * rng.normal(size=(m, cells, cells, 3)) + rng.normal(size=(m, cells, cells, 1))
        texture += rng.uniform(0, 1, (m, 1, 1, 1)) * ndimage.zoom(coarse, (1, side / cells, side / cells, 1), order=1)
    texture *= rng.uniform(10, 60, (m, 1, 1, 1)) / texture.std(axis=(1, 2, 3), keepdims=True)
    background = np.clip(texture + rng.uniform(0, 255, (m, 1, 1, 3)), 0, 255)
    mask = hand_mask(x)
    return to_pixels(mask * x + (1 - mask) * background)


def other_skin(x, rng):
    """Make the hand darker, down to a quarter of its brightness, or brighter, and vary its hue slightly."""
    tone = np.exp(rng.uniform(-1.4, 0.3, (len(x), 1, 1, 1)) + rng.uniform(-0.1, 0.1, (len(x), 1, 1, 3)))
    return to_pixels(x * (1 + hand_mask(x) * (tone - 1)))


def other_lighting(x, rng):
    """Light the image with a colored lamp from one side, change its brightness, and add camera noise and blur."""
    m, height, width = x.shape[:3]
    angle = rng.uniform(0, 2 * np.pi, (m, 1, 1))
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slope = np.cos(angle) * rows + np.sin(angle) * columns
    lamp = np.exp(rng.uniform(0, 0.7, (m, 1, 1)) * slope + rng.uniform(-0.8, 0.2, (m, 1, 1)))[..., np.newaxis]
    light = x * lamp * np.exp(rng.uniform(-0.25, 0.25, (m, 1, 1, 3)))
    sigmas = rng.uniform(0, 1.2, m)
    blurred = np.stack([ndimage.gaussian_filter(image, (s, s, 0)) for image, s in zip(light, sigmas)])
    return to_pixels(blurred + rng.uniform(0, 12, (m, 1, 1, 1)) * rng.normal(size=x.shape))


def to_pixels(x):
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def stress_sets(x, seed=0):
    """Return a dict from what was changed to the changed images, uint8 (m, height, width, 3)."""
    rng = np.random.default_rng(seed)
    sets = {"background": other_backgrounds(x, rng), "skin": other_skin(x, rng), "lighting": other_lighting(x, rng)}
    everything = other_lighting(other_backgrounds(other_skin(x, rng), rng), rng)
    return sets | {"background, skin and lighting": everything}


def main(data, path):
    x, y, classes = load_h5(f"{data}/test_signs.h5", "test")
    x = x[np.concatenate([np.flatnonzero(y == label)[:2] for label in range(len(classes))])]
    sheet = np.vstack([np.hstack(images) for images in (x, *stress_sets(x).values())])
    Image.fromarray(sheet.repeat(2, axis=0).repeat(2, axis=1)).save(path)
    print(f"Saved {path}")


if __name__ == "__main__":
    run_main(lambda: main(*sys.argv[1:]))
