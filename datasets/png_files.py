"""Open a PNG file without its metadata: Pillow refuses large ones, and mistakes some texts for properties."""

import contextlib
import io
import os
import struct
import zlib

from PIL import PngImagePlugin

from datasets.value_ranges import Samples

# Larger metadata are cut off, in bytes.
LARGEST_METADATA = 4_000_000

METADATA = b"eXIf", b"sBIT", b"iCCP", b"tEXt", b"zTXt", b"iTXt"

# ImageMagick's own way to store EXIF and XMP data.
RAW_PROFILES = b"Raw profile type exif", b"Raw profile type APP1", b"Raw profile type xmp"


def open_png(file):
    """Return Pillow's image, not decoded yet; EXIF, XMP, color profile and `Samples` are in its `info`."""
    size = os.fstat(file.fileno()).st_size
    pixels, info, header = io.BytesIO(), {}, b""
    pixels.write(file.read(8))
    while len(start := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", start)
        length = min(length, size)  # a damaged length may be four billion
        if name in METADATA:
            with contextlib.suppress(Exception):  # damaged metadata do not affect the pixels
                # What comes first counts.
                info = _metadata(name, file.read(length)) | info
            file.seek(4, io.SEEK_CUR)
        elif name == b"tRNS" or not name[:1].islower():  # capital letters begin what the pixels need
            data = file.read(length + 4)
            pixels.write(start + data)
            header = header or data
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if name == b"CgBI":
            raise ValueError("Apple's variant of PNG is not supported")
        if name == b"IEND":
            break
    pixels.seek(0)
    image = PngImagePlugin.PngImageFile(pixels)
    image.info.update(info)
    depth, color = header[8:10]
    transparent = image.info.get("transparency")
    if color == 0 and depth in (2, 4) and isinstance(transparent, int):
        # Pillow scales the samples to 8 bits, but not the value of the transparent ones.
        image.info["transparency"] = transparent * 255 // (2**depth - 1)
    elif color == 2 and depth == 16 and transparent:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def _metadata(name, data):
    """Return the entry of `info` for a chunk of metadata, or {}."""
    if name == b"eXIf":
        return {"exif": data}
    if name == b"sBIT":
        return {"samples": Samples(bits=max(data))}
    key, _, text = data.partition(b"\0")
    compressed = name != b"tEXt"
    if name == b"iTXt":
        compressed = text[0]
        _, _, text = text[2:].split(b"\0", 2)  # language, and key in that language
    elif compressed:
        text = text[1:]
    if key not in (*RAW_PROFILES, b"XML:com.adobe.xmp") and name != b"iCCP":
        return {}
    if compressed:
        text = zlib.decompressobj().decompress(text, LARGEST_METADATA)
    if key in RAW_PROFILES:
        _, _, *lines = text.split()  # kind, length, and the data as hexadecimal digits
        text = bytes.fromhex(b"".join(lines).decode("ascii"))
        return {"raw_exif" if text.startswith((b"Exif\0\0", b"II*\0", b"MM\0*")) else "xmp": text}
    return {"icc_profile" if name == b"iCCP" else "xmp": text}
