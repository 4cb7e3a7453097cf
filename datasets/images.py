"""Read one image file as the networks need it: upright, opaque, square, 8-bit RGB."""

import contextlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from basics.errors import InputError
from datasets import IMAGE_SIZES
from datasets.image_files import open_image

# Hands and faces are found in a copy that is at most this many pixels wide and high.
OVERVIEW = 400


def is_image_shape(shape):
    """Return whether the networks take images of this shape: (size, size, 3), with one of IMAGE_SIZES."""
    return len(shape) == 3 and shape[0] == shape[1] and shape[0] in IMAGE_SIZES and shape[2] == 3


class Photo(NamedTuple):
    """What the network sees of an image, and where it is in the whole image; from `read_photo`."""

    views: np.ndarray  # uint8 (v, size, size, 3), RGB: the part that shows the subject best, and those that come next
    overview: np.ndarray  # the whole image, uint8 (height, width, 3), RGB, at most OVERVIEW pixels wide and high
    scale: float  # pixels of the overview for each pixel of the upright image
    box: tuple  # left, top, right and bottom of the first view, in pixels of the upright image
    found: bool  # whether the subject was found there

    @property
    def pixels(self):
        """The first view, uint8 (size, size, 3)."""
        return self.views[0]


def read_image(path, size, crop="center"):
    """Read an image file: rotate it as its EXIF data say, put it on white, crop it to a square, scale it.

    Args:
        path: file in any format that Pillow reads, or HEIC; the first of several frames is used.
        size: int, side of the result in pixels.
        crop: "center": the largest square in the middle; "stretch": the whole image, squeezed into a square; or
            (left, top, side) of a square, in pixels of the upright image.

    Returns: uint8 array (size, size, 3), RGB.
    Raises InputError: the file is missing or cannot be read as an image, or the crop reaches beyond it.
    """
    with open_image(path) as image:
        return np.asarray(_scale(image, _crop_box(path, image.size, crop), (size, size)))


def read_photo(path, size, crop="auto", find=None):
    """Read an image file as `read_image` does; return a `Photo`, which also has the part that was used.

    Args:
        path, size, crop: as for `read_image`. "auto" crops to what `find` finds, and to the middle otherwise.
        find: function of the overview (see `Photo`) and the least side of a square in it. It returns squares, a list
            of (x, y, side), the center and the side, the best first; None stands for the largest in the middle.
    """
    with open_image(path) as image:
        scale = min(1, OVERVIEW / max(image.size))
        shape = tuple(max(1, round(scale * side)) for side in image.size)
        overview = np.asarray(_scale(image, (0, 0, *image.size), shape))
        squares = find(overview, min(scale * size, *shape)) if find and crop == "auto" else []
        boxes = [
            _crop_box(path, image.size, "center" if crop == "auto" else crop)
            if square is None
            else _box_around(square, scale, image.size, size)
            for square in squares or [None]
        ]
        views = np.stack([np.asarray(_scale(image, box, (size, size))) for box in boxes])
        return Photo(views, overview, scale, boxes[0], bool(squares))


def _box_around(square, scale, image_size, least):
    """Return the part of an image for a square (x, y, side) of its overview, as (left, top, right, bottom)."""
    width, height = image_size
    x, y, side = (value / scale for value in square)
    # A smaller square would have to be enlarged, which adds no detail.
    side = min(max(round(side), least), width, height)
    left = round(min(max(x - side / 2, 0), width - side))
    top = round(min(max(y - side / 2, 0), height - side))
    return left, top, left + side, top + side


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
        problem = f"--crop does not lie within {path}, which has {width} x {height} pixels"
        raise InputError(problem, "Choose a square inside the image", ",".join(map(str, crop)))
    return left, top, left + side, top + side


def _scale(image, box, size):
    """Scale a part of a Pillow image of any mode to 8-bit RGB of `size`, (width, height) in pixels."""
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"))
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    image = image.resize(size, Image.Resampling.LANCZOS, box)
    # As in a viewer, colors are what their profile says. A profile that is damaged or of another kind is ignored.
    with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if "sRGB" not in ImageCms.getProfileDescription(source):
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def _on_white(image):
    """Return an RGBA image in front of white, or only its colors if its alpha channel was never filled in."""
    *colors, (_, most) = image.getextrema()
    if most == 0 and any(high for _, high in colors):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
