"""Open an image file of any format as upright pixels of 8 bits, or say why that cannot be done.

Every decision is taken from the file's content, never from its name or from what was opened before.
"""

import contextlib
import io
import os
import pathlib
import re
import stat
import struct
import sys

import numpy as np
from PIL import AvifImagePlugin, Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from basics.errors import InputError, first_line, require
from datasets.png_files import open_png
from datasets.tiff_files import open_tiff
from datasets.value_ranges import Samples, to_8_bits

# Enough of a file to tell its format, in bytes.
HEAD = 512

# Pillow only recognizes these formats, or hands them to another program.
NOT_DECODED = "BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"

# What people take for an image that can be read here, by its first bytes.
OTHERS = {
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL image",
    rb"\x76\x2f\x31\x01": "an OpenEXR image",
    rb"#\?(RADIANCE|RGBE)": "a Radiance HDR image",
    rb"II\xbc": "a JPEG XR image",
    rb"(P7|PF)\s": "a Netpbm image of a rare kind",
    rb"gimp xcf": "a GIMP project",
    rb".{128}DICM": "a DICOM image",
    rb"....ftypcr|FUJIFILMCCD|\0MRM|FOVb|IIRO|IIU\0": "a camera's raw image",
    rb"\s*(<\?xml.*|<!--.*)?<svg": "an SVG drawing",
    rb"\xc5\xd0\xd3\xc6|%!PS": "a PostScript drawing",
    rb"%PDF": "a PDF document",
    rb"\s*<(!doctype\s+html|html)": "a web page",
    rb"version https://git-lfs": "a Git LFS pointer, not the file itself",
    rb"....(ftyp|moov|mdat|wide)|\x1a\x45\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]": "a video",
    rb"\x89HDF": "an HDF5 file",
    rb"\x93NUMPY": "a NumPy array",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!": "an archive",
}

FIX = "Use a JPEG, PNG, WebP or TIFF file"

# How decoders say that they do not know this kind of image, although it may be fine.
UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?(supported|implemented)|unimplemented|cannot handle|not available|not installed|"
    r"unknown (kind|pixel|data organization|compression|encoding|colou?r)|no decoding plugin|not a known|not finite",
    re.IGNORECASE,
)

# A HEIF container names the compression of its images with one of these brands, or leaves that to the images.
AVIF_BRANDS = b"avif", b"avis"
HEIC_BRANDS = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"
HEIF_BRANDS = b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"1pic"

# How to turn an image whose EXIF orientation is this.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# For those of EXIF's types that an orientation may have: letters of `struct`.
LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


@contextlib.contextmanager
def open_image(path):
    """Yield an upright Pillow image with 8 bits for each channel, in any such mode; of several frames, the first.

    Any error, here or in the caller's `with` block, becomes an InputError.
    """
    path = pathlib.Path(path)
    head = b""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} is {'a folder' if path.is_dir() else 'a device or a pipe'}, not an image")
        with open(path, "rb") as file:
            head = file.read(HEAD)
            with _open(path, file, head) as image:
                turn = TURNS.get(_orientation(image.info))
                loaded = _load(image, lambda: _open(path, file, head))
                yield loaded if turn is None else loaded.transpose(turn)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "Check the name") from None
    except UnidentifiedImageError:
        problem = f"{path} is not an image that can be read" if head else f"{path} is an empty file"
        raise InputError(problem, FIX) from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{path} has too many pixels", "Scale it down", first_line(error).rstrip(".")) from None
    except Exception as error:  # a single damaged byte can make the decoders raise almost any type
        if getattr(error, "errno", None):  # raised by the operating system, not by a decoder
            fix = "Change its permissions" if isinstance(error, PermissionError) else ""
            raise InputError(f"{path} cannot be opened: {error.strerror}", fix) from None
        reason = first_line(error).rstrip(".")
        if isinstance(error.__cause__, KeyError):  # Pillow has looked for it in a table of what it supports
            reason = f"unknown kind {reason}"
        if UNSUPPORTED.search(reason) and not isinstance(error, TypeError):  # as in "unsupported operand"
            raise InputError(f"{path} cannot be read: {reason}", FIX) from None
        if "not identified by this driver" in reason:  # what Pillow says if a decoder gave up without a reason
            reason = "its header cannot be read"
        raise InputError(f"{path} is damaged: {reason}", "Copy or save it again") from None


def _open(path, file, head):
    """Return a Pillow image, not decoded yet in most formats; its `info` has `Samples` if they are known."""
    file.seek(0)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        image = open_png(file)
    elif head.startswith(b"\xff\xd8\xff"):
        image = _open_jpeg(file)
    elif head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        image = open_tiff(path, file)
    elif head[4:8] == b"ftyp" and (brand := _heif_brand(head)):
        image = _open_avif(file) if brand in AVIF_BRANDS else _open_heic(path, file)
    else:
        image = _open_other(path, file, head)
    pixels = image.width * image.height
    if Image.MAX_IMAGE_PIXELS and pixels > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow: a few bytes may declare billions
        raise Image.DecompressionBombError(f"{pixels} pixels")
    return image


def _open_jpeg(file):
    """Open a JPEG, without the further pictures that some cameras append."""
    try:
        return JpegImagePlugin.JpegImageFile(file)
    except SyntaxError as error:
        if not isinstance(error.__cause__, (IndexError, struct.error)):
            raise
    # Pillow stumbled over metadata: leave out all but EXIF data and what the colors need.
    file.seek(0)
    data = file.read()
    kept, start = data[:2], 2
    while data[start + 1 : start + 2] not in (b"", b"\xda"):  # the end, or the pixels
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        segment = data[start:end]
        adobe = segment[1] == 0xEE and len(segment) >= 16
        if segment[1] < 0xE0 or segment[4:10] == b"Exif\0\0" or adobe:
            kept += segment
        start = end
    return JpegImagePlugin.JpegImageFile(io.BytesIO(kept + data[start:]))


def _heif_brand(head):
    """Return the first brand that names the compression of the images, or else that of a HEIF container, or None."""
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[start : start + 4] for start in range(16, min(length, len(head)), 4))]
    for kinds in ((*AVIF_BRANDS, *HEIC_BRANDS), HEIF_BRANDS):
        for brand in brands:
            if brand in kinds:
                return brand
    return None


def _open_avif(file):
    """Open an AVIF image. By its standard, the orientation of the container counts, not that of EXIF or XMP data."""
    # Pillow writes that orientation into the EXIF data, which fails if these are unusual: it must not find any.
    data = re.sub(rb"(infe\x02.{7})Exif", rb"\1none", file.read(), flags=re.DOTALL)
    if b"moov" not in data:  # a still image, although some call it a sequence
        data = data[:HEAD].replace(b"avis", b"avif") + data[HEAD:]
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    image.info.pop("xmp", None)
    return image


def _open_heic(path, file):
    """Open a HEIC image; libheif applies the container's orientation, the only one that counts."""
    require("pi_heif", f"{path}: a HEIC image", "pi-heif>=1.4,<2")
    # Not registered with Pillow, because that would change what Pillow does with later files.
    from pi_heif import HeifImageFile

    image = HeifImageFile(file)
    image.info = {"icc_profile": image.info.get("icc_profile"), "samples": Samples(limits=(0, 65535))}
    return image


def _open_other(path, file, head):
    """Open an image of one of Pillow's many other formats."""
    Image.init()
    # Formats that another package has registered depend on what was imported before.
    openers = {name: opener for name, opener in Image.OPEN.items() if opener[0].__module__.startswith("PIL.")}
    openers = {name: openers[name] for name in sorted(openers) if name not in NOT_DECODED}
    marked = [name for name, (_, accept) in openers.items() if accept and _accepts(accept, head[:16])]
    if not re.search(rb"[^\t\n\r\f -~]", head):  # a text may begin like an image
        marked = [name for name in marked if name in ("FITS", "PPM", "XBM", "XPM")]
    if not marked:
        for pattern, kind in OTHERS.items():
            if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
                raise InputError(f"{path} is {kind}, which cannot be read here", FIX)
    try:
        # Some formats mark their files with nothing but zeros and ones, so those without a mark are tried as well.
        image = Image.open(file, formats=marked + [name for name, (_, accept) in openers.items() if not accept])
    except UnidentifiedImageError:
        for name in marked:
            file.seek(0)
            openers[name][0](file)  # raises the reason
        raise
    return _declare(image, file, head)


def _declare(image, file, head):
    """Add to an image's `info` what its file declares and Pillow leaves out."""
    if image.format == "JPEG2000":
        # The file declares a depth, from which Pillow scales to 16 bits.
        depth = re.search(rb"\xff\x4f\xff\x51.{38}(.)", head, re.DOTALL)
        sixteen = depth and depth[1][0] & 127 == 15
        image.info["samples"] = Samples(limits=None if sixteen else (0, 65535))
    elif image.format == "FITS" and image.mode.startswith("I"):
        raise ValueError("FITS images of 16 or 32 bits are not supported")  # Pillow ignores their zero
    elif image.format == "TGA" and not head[17] & 15:
        image.info["alpha"] = False
    elif image.format == "PPM":
        return _open_ppm(image, file)
    return image


def _accepts(accept, head):
    """Return whether a format of Pillow accepts the first bytes of a file."""
    with contextlib.suppress(Exception):  # they may be too few
        return accept(head) is True
    return False


def _open_ppm(image, file):
    """Return a Netpbm image as Pillow opened it, or decoded if Pillow would cut off its colors."""
    tile = image.tile[0]
    white = tile.args[-1] if tile.codec_name in ("ppm", "ppm_plain") else 65535
    limits = None if white == 65535 else (0, white)
    if tile.codec_name == "ppm" and image.mode == "RGB" and white > 255:
        pixels = np.memmap(file, ">u2", "r", tile.offset, (image.height, image.width, 3))
        return to_8_bits(lambda top, bottom: pixels[top:bottom], image.size, "RGB", Samples(limits=limits))
    # Pillow scales all depths to 16 bits.
    image.info["samples"] = Samples("" if image.mode == "F" else "u2", limits and (0, 65535))
    return image


# ---------------------------------------------------------------------- pixels


def _load(image, again):
    """Decode an image and return it with 8 bits for each channel; `again` opens it a second time."""
    samples = image.info.get("samples", Samples())
    rawmode = _rawmode(image)
    image.load()
    mode = image.mode
    if mode == "F" or mode.startswith("I") or (mode == "L" and samples.dtype == "i1"):
        transparent = image.info.pop("transparency", None)
        mode, rows = "L" if transparent is None else "LA", _gray(image, samples.dtype, transparent)
    elif ";16" in rawmode and mode in ("RGB", "RGBA"):
        # Pillow keeps the upper 8 of 16 bits, which is right unless white is small.
        dark = max(high for _, high in image.getextrema()[:3]) < 16
        if not (dark or samples.limits or samples.bits):
            return image
        rows = _colors(image, again(), rawmode)
    elif image.format == "XBM":
        return ImageOps.invert(image)  # a one is black, but white for Pillow
    elif mode == "La":
        return image.convert("LA")  # the only mode to which Pillow converts it
    else:
        if mode == "RGBA" and not image.info.get("alpha", True):
            image.putalpha(255)
        return image
    scaled = to_8_bits(rows, image.size, mode, samples)
    scaled.info = image.info
    return scaled


def _rawmode(image):
    """Return Pillow's name for the layout of the file's samples; "" if the decoder does not need it."""
    for tile in getattr(image, "tile", ())[:1]:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        return str(arguments[0]) if arguments else ""
    return ""


def _gray(image, dtype, transparent):
    """Return a function of rows for `to_8_bits`; pixels of the value `transparent` are, unless it is None."""

    def rows(top, bottom):
        gray = np.asarray(image.crop((0, top, image.width, bottom)))[..., np.newaxis]
        if dtype in ("i1", "u4"):  # Pillow has no mode for these, and takes them for the other sign
            gray = gray.view(dtype)
        if transparent is None:
            return gray
        return np.concatenate([gray, np.where(gray == transparent, 0, 255)], axis=-1)

    return rows


def _colors(upper, lower, rawmode):
    """Return a function of rows for `to_8_bits`: colors of 16 bits.

    Args:
        upper: the decoded image, which has the upper 8 bits.
        lower: the same image, not decoded yet.
        rawmode: Pillow's name for the layout of the file's samples.
    """
    planes = upper.format == "TIFF" and lower.tile[0].codec_name == "libtiff" and lower.tag_v2.get(284) == 2
    if planes or rawmode.startswith("RGBa") or upper.format not in ("PNG", "TIFF"):
        raise ValueError("16-bit colors in a smaller range are not supported")
    # For gray with alpha, Pillow knows one order of bytes only; as RGBA, the four bytes stay as they are.
    gray = rawmode == "LA;16B"
    # With the bytes of each sample in the other order, the lower 8 bits are the upper ones.
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    for number, tile in enumerate(lower.tile):
        rawmode, *rest = (tile.args,) if isinstance(tile.args, str) else tile.args
        swapped = "RGBA" if gray else rawmode[:-1] + other[rawmode[-1]]
        lower.tile[number] = tile._replace(args=(swapped, *rest) if rest else swapped)
    lower.load()
    channels = [1, 1, 1, 3] if gray else slice(None)

    def rows(top, bottom):
        high, low = (np.asarray(image.crop((0, top, image.width, bottom))) for image in (upper, lower))
        return high.astype(np.uint16) * 256 + low[..., channels]

    return rows


def _orientation(info):
    """Return the orientation, 1 to 8, that the EXIF data, or else the XMP data, in Pillow's `info` give an image."""
    for exif in (info.get("exif"), info.get("raw_exif")):
        with contextlib.suppress(Exception):  # damaged EXIF data do not affect the pixels
            return _exif_orientation(exif)
    if "tiff_orientation" in info:
        return info["tiff_orientation"]
    xmp = info.get("xmp") or b""
    found = re.search(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])", xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(found[1]) if found else 1


def _exif_orientation(exif):
    """Return the orientation in EXIF data, bytes; KeyError or struct.error if there is none.

    Pillow would give up at the first entry whose value lies outside the data, even if that is not needed.
    """
    exif = re.sub(rb"^(Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == 0x0112:
            return struct.unpack_from(f"{order}{LETTERS[kind]}", exif, entry + 8)[0]
    raise KeyError("orientation")
