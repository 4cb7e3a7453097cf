"""Held-aside photographs made harder: the same hands before other walls, in other skins and other light.

    python -m benchmarks.stress DATA FILE.png       save a sheet of them to look at (DATA: a folder with test_signs.h5)

All SIGNS photographs show much the same hands before one light wall; a model
that only knows these can still be right about every test picture. These sets
ask for more, and unlike photographs from elsewhere they need no new labels.
They share no code with the augmentation that the scripts train with.
"""

import sys

import numpy as np
from scipy import ndimage

import cnn_utils as utils


def hand_share(x):
    """How far each pixel belongs to the hand: skin is redder than a white wall, in light and in shadow.

    Args:
        x: uint8 array (m, height, width, 3), photographs of a hand before a plain wall.

    Returns:
        float array (m, height, width, 1), 0 to 1.
    """
    # The logarithm of red over blue does not change with brightness.
    redness = np.log((x[..., 0] + 1.0) / (x[..., 2] + 1.0))
    redness = ndimage.gaussian_filter(redness, (0, 0.7, 0.7))
    # The hand comes from below: the upper edges are mostly wall.
    above = [redness[:, :3], redness[:, :40, :3], redness[:, :40, -3:]]
    wall = np.median(np.concatenate([part.reshape(len(x), -1) for part in above], axis=1), axis=1)[:, None, None]
    skin = np.quantile(redness, 0.97, axis=(1, 2))[:, None, None]
    return np.clip(2.5 * (redness - wall) / (skin - wall + 1e-6) - 0.6, 0, 1)[..., np.newaxis]


def other_walls(x, rng):
    """Put a wall of random colour and texture behind the hand, from paint to foliage."""
    m, side = x.shape[:2]
    texture = np.zeros(x.shape)
    for cells in (4, 8, 16, 32, 64):
        coarse = 0.5 * rng.normal(size=(m, cells, cells, 3)) + rng.normal(size=(m, cells, cells, 1))
        texture += rng.uniform(0, 1, (m, 1, 1, 1)) * ndimage.zoom(coarse, (1, side / cells, side / cells, 1), order=1)
    texture *= rng.uniform(10, 60, (m, 1, 1, 1)) / texture.std(axis=(1, 2, 3), keepdims=True)
    wall = np.clip(texture + rng.uniform(0, 255, (m, 1, 1, 3)), 0, 255)
    share = hand_share(x)
    return whole(share * x + (1 - share) * wall)


def other_skin(x, rng):
    """Make the hand darker, down to a quarter of its light, or lighter, and a little redder or yellower."""
    tone = np.exp(rng.uniform(-1.4, 0.3, (len(x), 1, 1, 1)) + rng.uniform(-0.1, 0.1, (len(x), 1, 1, 3)))
    return whole(x * (1 + hand_share(x) * (tone - 1)))


def other_light(x, rng):
    """A coloured lamp at one side, dimmer or brighter, a noisy and unsharp camera."""
    m, height, width = x.shape[:3]
    angle = rng.uniform(0, 2 * np.pi, (m, 1, 1))
    rows, columns = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    slope = np.cos(angle) * rows + np.sin(angle) * columns
    lamp = np.exp(rng.uniform(0, 0.7, (m, 1, 1)) * slope + rng.uniform(-0.8, 0.2, (m, 1, 1)))[..., np.newaxis]
    light = x * lamp * np.exp(rng.uniform(-0.25, 0.25, (m, 1, 1, 3)))
    blurred = np.stack([ndimage.gaussian_filter(one, (sigma, sigma, 0)) for one, sigma in
                        zip(light, rng.uniform(0, 1.2, m))])
    return whole(blurred + rng.uniform(0, 12, (m, 1, 1, 1)) * rng.normal(size=x.shape))


def whole(x):
    """Back to pixels: uint8, 0-255."""
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def stress_sets(x, seed=0):
    """Return the sets as a dict: what is other, and the pictures, uint8 (m, height, width, 3)."""
    rng = np.random.default_rng(seed)
    return {"walls": other_walls(x, rng), "skin": other_skin(x, rng), "light": other_light(x, rng),
            "walls, skin and light": other_light(other_walls(other_skin(x, rng), rng), rng)}


def main(folder, path):
    from PIL import Image

    _, _, x, y, _ = utils.load_signs_dataset("real", folder)
    first = np.concatenate([np.flatnonzero(y == label)[:2] for label in range(6)])
    rows = [x[first], *stress_sets(x[first]).values()]
    sheet = Image.fromarray(np.vstack([np.hstack(list(row)) for row in rows]))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.BICUBIC).save(path)
    print(f"Saved {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
