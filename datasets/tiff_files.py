"""Open a TIFF file: Pillow decodes most of its many kinds, and tifffile some more."""

import logging
import re

import numpy as np
from PIL import Image, ImagePalette, TiffImagePlugin

from basics.errors import require
from datasets.value_ranges import Samples, to_8_bits

# The numbers of the tags that are read here.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, BYTES, PLANES = 256, 257, 258, 259, 262, 274, 279, 284
PALETTE, SAMPLE_FORMAT, LOWEST, HIGHEST = 320, 339, 340, 341

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6

# Compressions that Pillow knows by name, but cannot decode: WebP and SGI's.
NOT_IN_PILLOW = 50001, 34676, 34677

# tifffile decodes at most this many bytes.
LARGEST = 2**31


def open_tiff(path, file):
    """Return a Pillow image with `Samples` in its `info`, not decoded yet; or one of 8 bits that tifffile decoded.

    Raises InputError: tifffile is missing. Other errors are those of Pillow and tifffile.
    """
    try:
        image = TiffImagePlugin.TiffImageFile(file)
    except SyntaxError as error:
        # A mere number is that of a compression.
        if re.fullmatch(r"unknown pixel mode|\d+", str(error)):
            return _open_with_tifffile(path, file)
        raise
    tags = image.tag_v2
    if _first(tags, COMPRESSION) in NOT_IN_PILLOW:
        return _open_with_tifffile(path, file)
    # Pillow applies the TIFF's own orientation; XMP data could only disturb that.
    image.info.pop("xmp", None)
    width, height = tags[WIDTH], tags[HEIGHT]
    image.info["samples"] = _declared(tags)
    if image.mode == "P" and max(tags[PALETTE]) < 256:  # 8 bits instead of 16, which Pillow would make black
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[PALETTE]))
    tile = image.tile[0]
    if tile.codec_name == "libtiff":
        # libtiff has already put the bytes in the order of this machine.
        rawmode = re.sub(r"(?<=\d)B?([SF])$", r"N\1", tile.args[0])
        image.tile = [tile._replace(args=(rawmode, *tile.args[1:]))]
    elif _first(tags, PLANES) == 2 and _first(tags, BITS) == 16:
        # Pillow would read the planes as if they had 8 bits.
        order = "L" if tags.prefix == b"II" else "B"
        image.tile = [tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) for tile in image.tile]
    elif _first(tags, PHOTOMETRIC) == YCBCR and np.sum(tags.get(BYTES, np.inf)) < 3 * width * height:
        raise ValueError("colors at half the resolution, uncompressed, are not supported")
    return image


def _open_with_tifffile(path, file):
    """Return an image of 8 bits from samples that Pillow does not know; its `info` has "tiff_orientation"."""
    for module in ("tifffile", "imagecodecs"):
        require(module, f"{path} (a TIFF image of a rare kind)", "tifffile[codecs]>=2026.3,<2027")
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said once, in the error
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        gray = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        # 1 and 2 are alpha channels; any other extra channel has no meaning.
        mode = ("L" if gray else "RGB") + ("A" if page.extrasamples[:1] in ((1,), (2,)) else "")
        numbers = page.dtype is not None and page.dtype.kind in "uif" and page.imagedepth == 1
        if not numbers or not (gray or page.photometric == RGB) or page.samplesperpixel < len(mode):
            raise ValueError(f"photometric {page.photometric} with samples of type {page.dtype} is not supported")
        if page.nbytes > LARGEST:
            raise MemoryError(f"{page.nbytes} bytes")
        pixels = page.asarray()
        tags = {tag.code: tag.value for tag in page.tags}
    size = page.imagewidth, page.imagelength
    pixels = np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 and pixels.ndim == 3 else pixels
    pixels = pixels.reshape(size[1], size[0], -1)[..., : len(mode)]
    image = to_8_bits(lambda top, bottom: pixels[top:bottom], size, mode, _declared(tags))
    if page.extrasamples[:1] == (1,):  # the colors are already multiplied by the alpha channel
        image = Image.frombytes(mode.replace("A", "a"), size, image.tobytes()).convert(mode)
    image.info["tiff_orientation"] = _first(tags, ORIENTATION)
    return image


def _declared(tags):
    """Return the `Samples` that a directory of tags declares."""
    bits, kind = _first(tags, BITS), _first(tags, SAMPLE_FORMAT)
    limits = None
    if _first(tags, LOWEST, 0) < _first(tags, HIGHEST, 0):
        limits = _first(tags, LOWEST, 0), _first(tags, HIGHEST, 0)
    elif kind == 1 and bits not in (8, 16, 32, 64):
        limits = 0, 2**bits - 1
    letter = {2: "i", 3: "f"}.get(kind, "u")
    dtype = f"{letter}{bits // 8}" if bits in (8, 16, 32) else ""
    return Samples(dtype, limits, white_is_zero=_first(tags, PHOTOMETRIC) == WHITE_IS_ZERO)


def _first(tags, number, default=1):
    """Return the value of a tag for the first channel; the default if it is missing or not a number."""
    value = np.ravel(tags.get(number, default))[0]
    return value.item() if isinstance(value, np.number) else default
