"""Scale the samples of an image to 8 bits: which of their values are black and white?"""

from typing import NamedTuple

import numpy as np
from PIL import Image

# White in 8, 10, 12 and 16 bits.
WHITES = 255, 1023, 4095, 65535

# Sharpened floating-point images reach a little beyond their range.
OVERSHOOT = 0.1

# This many pixels are scaled at a time, because a file of a few bytes may declare many millions of them.
STRIP = 2**20


class Samples(NamedTuple):
    """What a file declares about its samples."""

    dtype: str = ""  # NumPy's type, if Pillow's mode does not tell
    limits: tuple | None = None  # the values that mean black and white
    bits: int | None = None  # how many bits of a PNG's samples are significant
    white_is_zero: bool = False


def value_range(low, high, dtype):
    """Return the values that mean black and white if the file does not declare them.

    It is the smallest of the usual ranges that holds all values: 8, 10, 12 or 16 bits; 0 to 1 for floating-point
    numbers; from -1 to 1, or signed numbers of 8 bits or more, if some values are negative. If none of them is
    plausible, the largest value is white.

    Args:
        low, high: float or int, the smallest and the largest value of the image.
        dtype: NumPy's type of its samples.
    """
    floating = np.dtype(dtype).kind == "f"
    if low < 0 and not (floating and -low <= OVERSHOOT * high):
        if floating and max(-low, high) <= 1 + OVERSHOOT:
            return -1, 1
        half = 128
        while low < -half or high >= half:
            half *= 2
        return -half, half - 1
    if floating:
        if high <= 1 + OVERSHOOT:
            return 0, 1
        # In a range of 8 bits, less than 16 would be all but black.
        whites = [white for white in WHITES if high >= 16 and high <= white * (1 + OVERSHOOT)]
        return 0, min(whites, default=high)
    largest = np.iinfo(dtype).max
    if high <= min(largest, 65535):
        return 0, min(white for white in (*WHITES, largest) if high <= white <= largest)
    # No image uses only a small part of 32 bits.
    return 0, largest if high > largest // 16 else high


def to_8_bits(rows, size, mode, samples):
    """Return a Pillow image with 8 bits for each channel.

    Args:
        rows: function of two numbers of rows, the first one and the one after the last, that returns their samples,
            (rows, width, channels) of any type.
        size: (width, height) in pixels.
        mode: "L", "LA", "RGB" or "RGBA", Pillow's mode of the result. The range of an alpha channel is its own.
        samples: `Samples`, what the file declares.

    Raises ValueError: no sample is a finite number.
    """
    width, height = size
    step = max(1, STRIP // width)
    strips = [(top, min(top + step, height)) for top in range(0, height, step)]
    lows, highs = zip(*(_extremes(rows(*strip)) for strip in strips))
    lows, highs = np.min(lows, axis=0), np.max(highs, axis=0)
    if not np.isfinite(lows).all():
        raise ValueError("its pixels are not finite numbers")
    dtype = samples.dtype or rows(0, 1).dtype
    colors = len(mode) - mode.endswith("A")
    low, high = lows[:colors].min().item(), highs[:colors].max().item()
    limits = samples.limits or value_range(low, high, dtype)
    if samples.bits:
        # By the standard, samples are scaled to 16 bits whatever the number of significant ones; not all writers do it.
        narrow = 2**samples.bits - 1
        limits = (0, narrow if high <= narrow else 65535)
    if samples.white_is_zero:
        limits = limits[::-1]
    alpha = [value_range(low, high, dtype) for low, high in zip(lows[colors:].tolist(), highs[colors:].tolist())]
    black, white = np.array([limits] * colors + alpha, np.float64).T
    image = Image.new(mode, size)
    for top, bottom in strips:
        pixels = _scale(rows(top, bottom), black, white)
        image.paste(Image.fromarray(pixels[..., 0] if len(mode) == 1 else pixels), (0, top))
    return image


def _scale(samples, black, white):
    """Return samples of shape (rows, width, channels) as uint8: `black`, (channels,), as 0 and `white` as 255."""
    if samples.dtype != np.uint16:
        scaled = (samples - black) * (255 / (white - black))
        return np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)
    # There are fewer values than pixels, so that a table is faster.
    tables = _scale(np.arange(65536)[:, np.newaxis], black, white)
    return np.stack([table[values] for table, values in zip(tables.T.copy(), np.moveaxis(samples, -1, 0))], axis=-1)


def _extremes(samples):
    """Return the smallest and the largest finite sample of each channel, (channels,); infinite if there is none."""
    planes = np.moveaxis(samples, -1, 0).reshape(samples.shape[-1], -1)
    low, high = planes.min(axis=1), planes.max(axis=1)
    if samples.dtype.kind == "f" and not np.isfinite((low, high)).all():
        finite = np.isfinite(planes)
        low = planes.min(axis=1, where=finite, initial=np.inf)
        high = planes.max(axis=1, where=finite, initial=-np.inf)
    return low, high
