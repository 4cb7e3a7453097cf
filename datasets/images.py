"""One image file, read as the networks want it: upright, opaque, square, 8-bit RGB."""

import contextlib
import os
import pathlib
import stat

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.errors import InputError

# Height, width and channels of the images that the networks take.
IMAGE_SHAPE = (64, 64, 3)


def read_image(path, size, crop="center"):
    """Read an image file: rotate it as its EXIF data say, lay it on white, crop it to a square, scale it.

    Args:
        path: file in any format that Pillow reads; the first of several frames is used.
        size: int, side of the result in pixels.
        crop: "center": the largest square in the middle; "stretch": the whole image, squeezed into a square; or
            (left, top, side) of a square, in pixels of the upright image.

    Returns: uint8 array (size, size, 3), RGB.
    Raises InputError: the file is missing or cannot be read as an image, or the crop reaches beyond it.
    """
    path = pathlib.Path(path)
    expected = "expected an image (JPEG, PNG, WebP, TIFF, ...)"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path}: {expected}. Received: {'a folder' if path.is_dir() else 'a device or a pipe'}")
        # Pillow would hand an EPS file to another program, Ghostscript.
        Image.init()
        with Image.open(path, formats=[name for name in Image.OPEN if name != "EPS"]) as image:
            image.load()
            # Damaged EXIF data do no harm to the pixels.
            with contextlib.suppress(Exception):
                image = ImageOps.exif_transpose(image)
            box = _crop_box(image.size, crop)
            if box is None:
                wanted = f"expected a --crop that lies within the image of {image.width} x {image.height} pixels"
                raise InputError(f"{path}: {wanted}. Received: {','.join(map(str, crop))}")
            return np.asarray(_scale(image, box, size))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: {expected}; check the name. Received: no such file") from None
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            head = file.read(12)
        if not head:
            kind = "an empty file"
        elif head[4:11] == b"ftyphei":
            kind = "a HEIC image; convert it to JPEG"
        else:
            kind = "a file that is not an image"
        raise InputError(f"{path}: {expected}. Received: {kind}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {expected} of ordinary size; scale it down. Received: {error}") from None
    except Exception as error:  # a single damaged byte can make Pillow's readers raise almost any type
        reason = f"a damaged image ({error})"
        if getattr(error, "errno", None):  # raised by the operating system, not by Pillow
            reason = "a folder" if os.path.isdir(path) else f"a file that cannot be opened ({error.strerror})"
        raise InputError(f"{path}: {expected} that can be read to its end. Received: {reason}") from None


def _crop_box(size, crop):
    """Return the part to use as (left, top, right, bottom), or None if it reaches beyond (width, height)."""
    width, height = size
    if crop == "stretch":
        return 0, 0, width, height
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
    else:
        left, top, side = crop
    return (left, top, left + side, top + side) if left + side <= width and top + side <= height else None


def _scale(image, box, size):
    """Scale a part of a Pillow image of any mode to `size` x `size` pixels of 8-bit RGB."""
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
        grey = np.nan_to_num(np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box)))
        return Image.fromarray(np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box)
