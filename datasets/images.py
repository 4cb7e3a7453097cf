"""One image file, read as the networks want it: upright, opaque, square, 8-bit RGB."""

import contextlib
import os
import pathlib
import stat
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.errors import InputError, require

# Height, width and channels of the images that the networks take.
IMAGE_SHAPE = (64, 64, 3)

# Hands and faces are found in a copy that is at most this many pixels wide and high.
OVERVIEW = 400


class Photo(NamedTuple):
    """What the network sees of an image, and where that is in the whole image; from `read_photo`."""

    pixels: np.ndarray  # uint8 (size, size, 3), RGB
    overview: np.ndarray  # the whole image, uint8 (height, width, 3), RGB, at most OVERVIEW pixels wide and high
    scale: float  # pixels of the overview for each pixel of the upright image
    box: tuple  # left, top, right and bottom of what the network sees, in pixels of the upright image
    found: bool  # whether the subject was found there


def read_image(path, size, crop="center"):
    """Read an image file: rotate it as its EXIF data say, lay it on white, crop it to a square, scale it.

    Args:
        path: file in any format that Pillow reads, or HEIC; the first of several frames is used.
        size: int, side of the result in pixels.
        crop: "center": the largest square in the middle; "stretch": the whole image, squeezed into a square; or
            (left, top, side) of a square, in pixels of the upright image.

    Returns: uint8 array (size, size, 3), RGB.
    Raises InputError: the file is missing or cannot be read as an image, or the crop reaches beyond it.
    """
    with _open(path) as image:
        return np.asarray(_scale(image, _crop_box(path, image.size, crop), (size, size)))


def read_photo(path, size, crop="auto", find=None):
    """Read an image file as `read_image` does; return a `Photo`, which also has the part that was used.

    Args:
        path, size, crop: as for `read_image`. "auto" crops to what `find` finds, and to the middle otherwise.
        find: function of the overview, see `Photo`, that returns the centre and the side of a square in it,
            (x, y, side), or None.
    """
    with _open(path) as image:
        scale = min(1, OVERVIEW / max(image.size))
        shape = tuple(max(1, round(scale * side)) for side in image.size)
        overview = np.asarray(_scale(image, (0, 0, *image.size), shape))
        square = find(overview) if find and crop == "auto" else None
        if square:
            x, y, side = (value / scale for value in square)
            # Fewer pixels than the network takes would have to be invented.
            side = min(max(round(side), size), *image.size)
            left, top = (round(min(max(middle - side / 2, 0), most - side)) for middle, most in zip((x, y), image.size))
            box = left, top, left + side, top + side
        else:
            box = _crop_box(path, image.size, "center" if crop == "auto" else crop)
        return Photo(np.asarray(_scale(image, box, (size, size))), overview, scale, box, square is not None)


@contextlib.contextmanager
def _open(path):
    """Yield an upright Pillow image; what goes wrong with it, then or later, becomes an InputError."""
    path = pathlib.Path(path)
    expected = "expected an image (JPEG, PNG, WebP, TIFF, ...)"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: {expected}. Received: {'a folder' if path.is_dir() else 'a device or a pipe'}")
        with open(path, "rb") as file:
            head = file.read(12)
        if head[4:11] in (b"ftyphei", b"ftyphev"):
            require("pi_heif", f"{path}: a HEIC image", "pi-heif>=1.4,<2")
            import pi_heif

            pi_heif.register_heif_opener()
        # Pillow would hand an EPS file to another program, Ghostscript.
        Image.init()
        with Image.open(path, formats=[name for name in Image.OPEN if name != "EPS"]) as image:
            image.load()
            # Damaged EXIF data do no harm to the pixels.
            with contextlib.suppress(Exception):
                image = ImageOps.exif_transpose(image)
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: {expected}; check the name. Received: no such file") from None
    except UnidentifiedImageError:
        kind = "a file that is not an image" if head else "an empty file"
        raise InputError(f"{path}: {expected}. Received: {kind}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {expected} of ordinary size; scale it down. Received: {error}") from None
    except Exception as error:  # a single damaged byte can make Pillow's readers raise almost any type
        reason = f"a damaged image ({error})"
        if getattr(error, "errno", None):  # raised by the operating system, not by Pillow
            reason = "a folder" if os.path.isdir(path) else f"a file that cannot be opened ({error.strerror})"
        raise InputError(f"{path}: {expected} that can be read to its end. Received: {reason}") from None


def _crop_box(path, size, crop):
    """Return the part to use as (left, top, right, bottom); an InputError if it reaches beyond (width, height)."""
    width, height = size
    if crop == "stretch":
        return 0, 0, width, height
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
    else:
        left, top, side = crop
    if left + side > width or top + side > height:
        expected = f"expected a --crop that lies within the image of {width} x {height} pixels"
        raise InputError(f"{path}: {expected}. Received: {','.join(map(str, crop))}")
    return left, top, left + side, top + side


def _scale(image, box, size):
    """Scale a part of a Pillow image of any mode to `size`, width and height in pixels, of 8-bit RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow would cut off 16-bit grey at 255 instead of scaling it.
        white = 65535
        if image.mode == "F":
            if not np.isfinite(np.asarray(image)).all():
                raise ValueError("pixels that are not finite numbers")
            # The range of floating-point images may also be 0-1 or 0-255.
            white = next((top for top in (1, 255) if image.getextrema()[1] <= top), 65535)
        else:
            image = image.convert("I").convert("F")
        # Reduced first, because a file of a few bytes may declare many millions of such pixels.
        grey = np.nan_to_num(np.asarray(image.resize(size, Image.Resampling.LANCZOS, box)))
        return Image.fromarray(np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS, box)
