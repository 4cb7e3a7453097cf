"""Images as programs and cameras write them: orientation, ranges of values, transparency, metadata, brands."""

import base64
import importlib.util
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from test_images import STORED, assert_upright, corners, four_colors

from basics.errors import InputError
from benchmarks import formats
from datasets.images import read_image
from datasets.value_ranges import value_range

# A gray picture from black to white, one column for each value that a square of 64 pixels can show.
RAMP = np.tile(np.linspace(0, 255, 64).round().astype(np.uint8), (64, 1))
COLORS = np.dstack([RAMP, RAMP.T, 255 - RAMP])


def assert_shows(path, pixels, tolerance=1):
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., np.newaxis], 3, axis=-1)
    np.testing.assert_allclose(read_image(path, 64).astype(int), pixels, atol=tolerance)


# ---------------------------------------------------------------------- orientation


def exif_data(*entries, order="<"):
    """Return EXIF data as they stand in a file; an entry is (tag, type, count, value), its value 4 bytes or an int."""
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    for tag, kind, count, value in entries:
        value = (
            value
            if isinstance(value, bytes)
            else struct.pack(f"{order}{ {1: 'Bxxx', 3: 'Hxx'}.get(kind, 'I') }", value)
        )
        data += struct.pack(f"{order}HHI4s", tag, kind, count, value)
    return data + bytes(4)


def xmp_data(text):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {text}</x:xmpmeta>'.encode()


def with_exif(path, exif):
    """Insert EXIF data into a JPEG file."""
    jpeg = path.read_bytes()
    segment = b"Exif\0\0" + exif
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:])


def with_chunks(path, *chunks, before=b"IDAT"):
    """Insert chunks, (name, data), into a PNG file."""
    png = path.read_bytes()
    place = png.index(before) - 4
    added = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(png[:place] + added + png[place:])


def turned(orientation, width=96, height=64):
    image = four_colors(width, height)
    return image if STORED[orientation] is None else image.transpose(STORED[orientation])


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
def test_every_format_has_its_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned(orientation).save(tmp_path / f"photo.{suffix}", exif=exif, quality=95)
    assert_upright(read_image(tmp_path / f"photo.{suffix}", 64, "stretch"), tolerance=16)


ORIENTATION = (0x0112, 3, 1, 6)
ODD_EXIF = {
    "a resolution that is text": exif_data(ORIENTATION, (282, 2, 3, b"72\0\0")),
    "a value outside the data before it": exif_data((271, 2, 500, 4_000_000), ORIENTATION),
    "a value of an unknown type": exif_data((271, 99, 1, 0), ORIENTATION),
    "a thumbnail outside the data": exif_data(ORIENTATION, (34665, 4, 1, 2**32 - 1)),
    "big-endian": exif_data(ORIENTATION, order=">"),
    "of 32 bits": exif_data((0x0112, 4, 1, 6)),
    "of 8 bits": exif_data((0x0112, 1, 1, 6)),
    "a second header": b"Exif\0\0" + exif_data(ORIENTATION),
    "cut after the orientation": exif_data(ORIENTATION, ORIENTATION)[:22],
}


@pytest.mark.parametrize("name", ODD_EXIF)
def test_the_orientation_counts_whatever_else_the_exif_data_hold(tmp_path, name):
    turned(6).save(tmp_path / "photo.jpg", quality=95)
    with_exif(tmp_path / "photo.jpg", ODD_EXIF[name])
    turned(6).save(tmp_path / "photo.png")
    with_chunks(tmp_path / "photo.png", (b"eXIf", ODD_EXIF[name]))
    turned(6).save(tmp_path / "photo.webp", exif=ODD_EXIF[name], quality=95)
    for suffix in ("jpg", "png", "webp"):
        assert_upright(read_image(tmp_path / f"photo.{suffix}", 64, "stretch"), tolerance=16)


@pytest.mark.parametrize("value", [0, 1, 9, 65535])
def test_a_value_that_is_no_orientation_changes_nothing(tmp_path, value):
    four_colors().save(tmp_path / "photo.jpg", quality=95)
    with_exif(tmp_path / "photo.jpg", exif_data((0x0112, 3, 1, value)))
    assert_upright(read_image(tmp_path / "photo.jpg", 64), tolerance=12)


PROFILE = (
    b"\nexif\n" + b"%8d\n" % 32 + b"\n".join(re.findall(b".{1,72}", exif_data(ORIENTATION).hex().encode())) + b"\n"
)
PNG_ORIENTATIONS = {
    "eXIf": (b"eXIf", exif_data(ORIENTATION)),
    "raw profile": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "raw profile of a JPEG": (
        b"tEXt",
        b"Raw profile type APP1\0\napp1\n 38\n" + (b"Exif\0\0" + exif_data(ORIENTATION)).hex().encode(),
    ),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_data('tiff:Orientation="6"/>')),
    "compressed XMP": (
        b"iTXt",
        b"XML:com.adobe.xmp\0\1\0en\0key\0"
        + zlib.compress(xmp_data("><tiff:Orientation>6</tiff:Orientation></rdf:Description>")),
    ),
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", PNG_ORIENTATIONS)
def test_a_png_has_its_orientation_wherever_it_stands(tmp_path, name, before):
    turned(6).save(tmp_path / "photo.png")
    with_chunks(tmp_path / "photo.png", PNG_ORIENTATIONS[name], before=before)
    assert_upright(read_image(tmp_path / "photo.png", 64, "stretch"), tolerance=2)


def test_exif_data_come_before_xmp_data(tmp_path):
    four_colors().save(tmp_path / "photo.png")
    exif = (b"eXIf", exif_data((0x0112, 3, 1, 1)))
    with_chunks(tmp_path / "photo.png", PNG_ORIENTATIONS["XMP"], exif)
    assert_upright(read_image(tmp_path / "photo.png", 64), tolerance=2)


@pytest.mark.parametrize("kind", [1, 2], ids=["bytes", "text"])
def test_a_tiff_is_turned_once_and_by_its_own_tag(tmp_path, kind):
    xmp = 700, (kind, xmp_data('tiff:Orientation="6"/>'))
    write_tiff(tmp_path / "photo.tif", np.asarray(turned(8, 64, 64)), photometric=2, tags=[(274, (3, [8])), xmp])
    assert_upright(read_image(tmp_path / "photo.tif", 64), tolerance=2)
    write_tiff(tmp_path / "upright.tif", np.asarray(four_colors(64, 64)), photometric=2, tags=[xmp])
    assert_upright(read_image(tmp_path / "upright.tif", 64), tolerance=2)


# The four colors as 80 x 64 pixels, stored lying on their side, compressed as in test_images.py.
TURNED_HEIC = """
eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYFxYW5qSSIDBChmpOQUQdkMBZnJJQxowCQzJx9siIsDAxMDI4jFeBRCA8FToBgQMK2Ci6gAsU
VmZl4amAeSFQVyUsHKgGoyypINGZAEGUFKXCsywcr5CjJLchmgKhkeZBYUFQDpA5kFyflAugKo15mRGSQ0AaxI7gPDn78/fjAw8DMnAHVIODDy
MP7/D1LADFLBDEJyu5gcEoGS2k6MjGgyCxQaXae98tRcl8ckxcMBEjoBIjgckoDq2V0YDxZtUHIAWiOcnJ9TlJecUwEU5mVgawAKiWQWF6RCPQ
xSEgDEAgWZFZkgAWYODqBpDJyZRfklQJsYJDILcmHBzcjAyNrIxMzSCmRLZRalpkHF+ZJTipPB4Qv0OaNgbkoiKCIeajCuZ/nxdt6XuUX/u/f/
/3/x6v3/n00uxO/8Myvn/5+Fu/J/7ljg+NZ6vuDTPwJVZh1q9opdDueO8T//YdTO2Wv4Z8L7DX9PiLlXbsjU8qhzXVx08+HvJbv6A/4KucYEHD
xXlTP38O7ION1XNfxmO45OTOdwvRpQu1C1V9G5/uv6uXJ6q7qebGaNiK86LxFla/po/rOSk3+9Fv87ZB/Mf+4ko51BhuSGo+durrR+ec/8FFM3
Q7v3HDfVr6LKbudvKhS4mIQ8sFff0vlpsYeCTkKD5EyOQ+XZIYWLi9dFrhDLzmV6xM2VtoEjwKGwAuhJNkjs+/oyaAF5HAyMjEKgCAIGBBskbA
AyQMEU
"""


@pytest.fixture
def heic(tmp_path):
    pytest.importorskip("pi_heif")
    path = tmp_path / "photo.heic"
    path.write_bytes(zlib.decompress(base64.b64decode(TURNED_HEIC)))
    return path


def rebrand(path, major, *compatible):
    """Give a HEIF container other brands."""
    data = path.read_bytes()
    box = b"ftyp" + major + bytes(4) + b"".join(compatible)
    length = int.from_bytes(data[:4], "big")
    # Offsets in the file must stay what they are.
    box += (compatible[-1] if compatible else major) * ((length - 4 - len(box)) // 4)
    assert len(box) + 4 == length
    path.write_bytes(struct.pack(">I", length) + box + data[length:])


def test_a_heic_photo_is_turned_as_its_container_says(heic):
    assert_upright(read_image(heic, 64, "stretch"), tolerance=16)
    data = bytearray(heic.read_bytes())
    place = data.index(struct.pack(">HHI", 0x0112, 3, 1)) + 8
    data[place : place + 2] = struct.pack(">H", 3)  # what the EXIF data say does not count
    heic.write_bytes(data)
    assert_upright(read_image(heic, 64, "stretch"), tolerance=16)


HEIC_BRANDS = [(name, b"mif1") for name in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")]


@pytest.mark.parametrize(
    "brands", [*HEIC_BRANDS, (b"mif1", b"heic"), (b"msf1", b"hevc", b"mif1"), (b"miaf", b"mif1", b"heix")]
)
def test_a_heic_photo_of_every_brand_is_read(heic, brands):
    before = dict(Image.OPEN), dict(Image.EXTENSION)
    rebrand(heic, *brands)
    assert_upright(read_image(heic, 64, "stretch"), tolerance=16)
    assert (dict(Image.OPEN), dict(Image.EXTENSION)) == before


@pytest.mark.parametrize(
    "brands",
    [(b"avif",), (b"avis", b"avif"), (b"mif1", b"avif"), (b"mif1", b"miaf", b"avif"), (b"miaf", b"MA1B", b"avif")],
)
def test_an_avif_photo_of_every_brand_is_read_without_pi_heif(tmp_path, monkeypatch, brands):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exif = Image.Exif()
    exif[0x0112], exif[271], exif[282] = 6, "Camera", 72.0
    path = tmp_path / "photo.avif"
    turned(6).save(path, exif=exif, quality=90)
    rebrand(path, *brands)
    assert_upright(read_image(path, 64, "stretch"), tolerance=16)
    # Pillow could not write such EXIF data again.
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack(">HHI", 282, 5, 1), struct.pack(">HHI", 282, 2, 3)))
    assert path.read_bytes() != data
    assert_upright(read_image(path, 64, "stretch"), tolerance=16)


def test_xmp_data_do_not_turn_an_avif_photo(tmp_path):
    four_colors().save(tmp_path / "photo.avif", xmp=xmp_data('tiff:Orientation="6"/>'), quality=90)
    assert_upright(read_image(tmp_path / "photo.avif", 64), tolerance=16)


def test_what_was_opened_before_changes_nothing(tmp_path, heic):
    avif = tmp_path / "photo.avif"
    turned(1).save(avif, quality=90)
    rebrand(avif, b"mif1", b"avif")
    first = read_image(avif, 64)
    read_image(heic, 64)
    importlib.import_module("pi_heif").register_heif_opener()  # as another package may do
    try:
        np.testing.assert_array_equal(read_image(avif, 64), first)
        assert_upright(read_image(heic, 64, "stretch"), tolerance=16)
    finally:
        Image.ID.remove("HEIF")
        del Image.OPEN["HEIF"]


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "low, high, dtype, expected",
    [
        (0, 200, "u2", (0, 255)),
        (0, 256, "u2", (0, 1023)),
        (0, 1024, "u2", (0, 4095)),
        (0, 4096, "u2", (0, 65535)),
        (0, 0, "u2", (0, 255)),
        (0, 50, "u1", (0, 255)),
        (0, 60000, "i4", (0, 65535)),
        (0, 2**31 - 1, "i4", (0, 2**31 - 1)),
        (0, 2**32 - 1, "u4", (0, 2**32 - 1)),
        (0, 200_000, "u4", (0, 200_000)),
        (0, 200, "i2", (0, 255)),
        (0, 30000, "i2", (0, 32767)),
        (0, 127, "i1", (0, 127)),
        (-128, 127, "i1", (-128, 127)),
        (-1, 3, "i2", (-128, 127)),
        (-1024, 3071, "i2", (-4096, 4095)),
        (-32768, 32767, "i2", (-32768, 32767)),
        (0, 1, "f4", (0, 1)),
        (0, 0.2, "f4", (0, 1)),
        (-0.03, 1.04, "f8", (0, 1)),
        (-1, 1, "f4", (-1, 1)),
        (-0.4, 0.9, "f4", (-1, 1)),
        (0, 7.5, "f4", (0, 7.5)),
        (0, 255, "f4", (0, 255)),
        (-9, 262, "f4", (0, 255)),
        (0, 4095, "f8", (0, 4095)),
        (0, 60000, "f4", (0, 65535)),
        (0, 1e6, "f4", (0, 1e6)),
        (-120, 120, "f4", (-128, 127)),
    ],
)
def test_the_range_is_the_smallest_usual_one(low, high, dtype, expected):
    assert value_range(low, high, dtype) == expected


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("kind", ["gray", "gray and alpha", "RGB", "RGBA"])
def test_a_16_bit_png_may_hold_fewer_bits(tmp_path, kind, bits):
    shows = RAMP if "gray" in kind else COLORS
    samples = np.atleast_3d(shows.astype(np.int64) * (2**bits - 1) // 255)
    if "A" in kind.upper().removeprefix("GRAY"):
        samples = np.dstack([samples, np.full((64, 64), 2**bits - 1)])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    color = {"gray": 0, "RGB": 2, "gray and alpha": 4, "RGBA": 6}[kind]
    write_png(tmp_path / "deep.png", 16, color, rows)
    assert_shows(tmp_path / "deep.png", shows)


def write_png(path, depth, color, rows, *chunks):
    """Write a PNG of 64 x 64 pixels from its rows, each with the byte of its filter."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 64, 64, depth, color, 0, 0, 0)), *chunks]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in [*parts, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(data)


@pytest.mark.parametrize(
    "significant, samples, white",
    [
        (16, RAMP.astype(np.uint16), 65535),  # a really dark image says so
        (12, RAMP.astype(np.uint16) * 257 & 0xFFF0, 65535),
        (12, RAMP.astype(np.uint16) * 4095 // 255, 4095),
        (14, RAMP.astype(np.uint32) * 16383 // 255, 16383),
    ],
)
def test_a_png_may_declare_its_significant_bits(tmp_path, significant, samples, white):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    write_png(tmp_path / "deep.png", 16, 0, rows, (b"sBIT", bytes([significant])))
    assert_shows(tmp_path / "deep.png", np.round(samples / white * 255))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_gray_value_of_a_png_may_be_transparent(tmp_path, depth):
    values = np.zeros((64, 64), np.int64)
    values[:32] = 2**depth - 1
    values[:, 32:] = 1  # transparent
    packed = "".join(f"{value:0{depth}b}" for value in values[0]), "".join(f"{value:0{depth}b}" for value in values[63])
    rows = [b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big") for bits in packed]
    write_png(tmp_path / "gray.png", depth, 0, b"".join([rows[0]] * 32 + [rows[1]] * 32), (b"tRNS", b"\0\1"))
    found = corners(read_image(tmp_path / "gray.png", 64))
    np.testing.assert_array_equal([color[0] for color in found.values()], [255, 255, 0, 255])


def test_one_16_bit_color_of_a_png_may_be_transparent(tmp_path):
    samples = np.zeros((64, 64, 3), ">u2")
    samples[:32] = 0, 40000, 0
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    write_png(tmp_path / "colors.png", 16, 2, rows, (b"tRNS", struct.pack(">HHH", 0, 40000, 0)))
    found = corners(read_image(tmp_path / "colors.png", 64))
    assert found["top left"].tolist() == [255] * 3 and found["bottom right"].tolist() == [0] * 3


def write_tiff(path, samples, order="<", photometric=1, compressed=False, planes=False, bits=None, tags=()):
    """Write a TIFF of samples, (64, 64) or (64, 64, channels), in one strip, or in one for each channel."""
    channels = np.moveaxis(np.atleast_3d(samples), -1, 0) if planes else [samples]
    strips = [channel.astype(samples.dtype.newbyteorder(order)).tobytes() for channel in channels]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    count = samples.shape[2] if samples.ndim == 3 else 1
    entries = {
        256: (4, [64]),
        257: (4, [64]),
        258: (3, [bits or 8 * samples.itemsize] * count),
        259: (3, [8 if compressed else 1]),
        262: (3, [photometric]),
        273: (4, [0] * len(strips)),
        277: (3, [count]),
        278: (4, [64]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planes else 1]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[samples.dtype.kind]] * count),
        **dict(tags),
    }
    sizes = {1: "B", 2: "B", 3: "H", 4: "I"}
    start = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    for _ in range(2):  # once to find out where the strips are
        directory, extra = struct.pack(f"{order}H", len(entries)), b""
        for tag, (kind, values) in sorted(entries.items()):
            data = struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
            if len(data) > 4:
                extra, data = extra + data, struct.pack(f"{order}I", start + len(extra))
            directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
        begin = start + len(extra)
        entries[273] = (4, [begin + sum(map(len, strips[:number])) for number in range(len(strips))])
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    path.write_bytes(head + directory + bytes(4) + extra + b"".join(strips))


WIDE = RAMP.astype(np.int64)
SAMPLES = {
    "8 bits": RAMP,
    "16 bits": (WIDE * 257).astype("u2"),
    "12 of 16 bits": (WIDE * 4095 // 255).astype("u2"),
    "10 of 16 bits": (WIDE * 1023 // 255).astype("u2"),
    "8 of 16 bits": RAMP.astype("u2"),
    "32 bits": (WIDE * 16843009).astype("u4"),
    "8 of 32 bits": RAMP.astype("u4"),
    "signed, 8 bits": (WIDE - 128).astype("i1"),
    "signed, 16 bits": (WIDE * 257 - 32768).astype("i2"),
    "signed, 8 of 16 bits": RAMP.astype("i2"),
    "signed, 32 bits": (WIDE * 16843009 - 2**31).astype("i4"),
    "signed, 8 of 32 bits": RAMP.astype("i4"),
    "0 to 1": (RAMP / 255).astype("f4"),
    "-1 to 1": (RAMP / 127.5 - 1).astype("f4"),
    "0 to 255": RAMP.astype("f4"),
    "0 to 65535": (WIDE * 257).astype("f4"),
}
# Kinds that Pillow cannot read, by name and order of the bytes.
RARE = {("32 bits", ">"), ("8 of 32 bits", ">")}


def read_or_named(path):
    """Return whether the packages for rare TIFFs are there; otherwise check that they are named."""
    if importlib.util.find_spec("tifffile") and importlib.util.find_spec("imagecodecs"):
        return True
    with pytest.raises(InputError, match=r"deep.tif \(a TIFF image of a rare kind\) needs .*pip install \"tifffile"):
        read_image(path, 64)
    return False


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", SAMPLES)
def test_gray_tiffs_of_every_type(tmp_path, name, order, compressed):
    write_tiff(tmp_path / "deep.tif", SAMPLES[name], order, compressed=compressed)
    if (name, order) not in RARE or read_or_named(tmp_path / "deep.tif"):
        assert_shows(tmp_path / "deep.tif", RAMP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["8 bits", "16 bits", "12 of 16 bits", "8 of 16 bits", "0 to 1"])
def test_white_may_be_zero(tmp_path, name, order):
    samples = SAMPLES[name]
    white = {"8 bits": 255, "16 bits": 65535, "12 of 16 bits": 4095, "8 of 16 bits": 255, "0 to 1": 1}[name]
    write_tiff(tmp_path / "deep.tif", (white - samples).astype(samples.dtype), order, photometric=0)
    rare = order == ">" and samples.dtype == np.uint16
    if not rare or read_or_named(tmp_path / "deep.tif"):
        assert_shows(tmp_path / "deep.tif", RAMP)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("factor", [257, 16, 4, 1])
def test_16_bit_colors_of_a_tiff_may_hold_fewer_bits(tmp_path, factor, order, compressed, planes):
    samples = COLORS.astype(np.uint16) * factor
    write_tiff(tmp_path / "deep.tif", samples, order, photometric=2, compressed=compressed, planes=planes)
    if planes and compressed and factor < 257:  # refused, not black
        with pytest.raises(InputError, match="deep.tif cannot be read: 16-bit colors in a smaller range are not"):
            read_image(tmp_path / "deep.tif", 64)
        return
    white = {257: 65535, 16: 4095, 4: 1023, 1: 255}[factor]
    assert_shows(tmp_path / "deep.tif", np.round(samples / white * 255))


@pytest.mark.parametrize(
    "dtype, factor", [("f4", 1 / 255), ("f8", 1 / 255), ("f2", 1 / 255), ("i2", 257 / 2), ("u4", 2**24)]
)
def test_rare_colors_of_a_tiff_are_read_or_the_package_is_named(tmp_path, dtype, factor):
    write_tiff(tmp_path / "deep.tif", (COLORS.astype(float) * factor).astype(dtype), photometric=2)
    if read_or_named(tmp_path / "deep.tif"):
        assert_shows(tmp_path / "deep.tif", COLORS, tolerance=2)


def test_a_rare_tiff_is_turned_too(tmp_path):
    stored = np.asarray(turned(6, 64, 64)) / 255
    write_tiff(tmp_path / "deep.tif", stored, photometric=2, tags=[(274, (3, [6]))])
    if read_or_named(tmp_path / "deep.tif"):
        assert_upright(read_image(tmp_path / "deep.tif", 64), tolerance=2)


def test_a_tiff_may_declare_black_and_white(tmp_path):
    samples = (1000 + RAMP.astype(np.uint16) * 8).astype(np.uint16)
    write_tiff(tmp_path / "deep.tif", samples, tags=[(340, (3, [1000])), (341, (3, [3040]))])
    assert_shows(tmp_path / "deep.tif", RAMP)
    dark = RAMP.astype(np.uint16)
    write_tiff(tmp_path / "dark.tif", dark, tags=[(340, (3, [0])), (341, (3, [65535]))])
    assert read_image(tmp_path / "dark.tif", 64).max() == 1


def test_a_tiff_may_pack_12_bits(tmp_path):
    values = (WIDE * 4095 // 255).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], axis=-1)
    write_tiff(tmp_path / "deep.tif", packed.astype(np.uint8), bits=12)
    assert_shows(tmp_path / "deep.tif", RAMP)


@pytest.mark.parametrize("factor", [1, 257])
def test_the_palette_of_a_tiff_may_hold_8_bits(tmp_path, factor):
    palette = np.tile(np.arange(256) * factor, 3).tolist()
    write_tiff(tmp_path / "palette.tif", RAMP, photometric=3, tags=[(320, (3, palette))])
    assert_shows(tmp_path / "palette.tif", RAMP)


@pytest.mark.parametrize("shows, photometric", [(RAMP, 1), (COLORS, 2)], ids=["gray", "color"])
@pytest.mark.parametrize("dtype, factor", [("u1", 1), ("u2", 257), ("f4", 1 / 255)])
def test_colors_may_be_multiplied_by_the_alpha_channel(tmp_path, shows, photometric, dtype, factor):
    half = np.full((64, 64), 128)
    samples = np.dstack([shows * (128 / 255), half])
    samples = (samples if dtype == "f4" else np.round(samples)) * factor
    write_tiff(tmp_path / "deep.tif", samples.astype(dtype), photometric=photometric, tags=[(338, (3, [1]))])
    rare = dtype == "f4" or (dtype == "u2" and photometric == 1)
    if not rare or read_or_named(tmp_path / "deep.tif"):
        assert_shows(tmp_path / "deep.tif", np.round(shows * (128 / 255) + 127), tolerance=2)


@pytest.mark.parametrize("factor", [1, 257])
def test_a_16_bit_jpeg_2000_image_may_hold_8_bits(tmp_path, factor):
    Image.fromarray(RAMP.astype(np.uint16) * factor).save(tmp_path / "deep.jp2", irreversible=False)
    assert_shows(tmp_path / "deep.jp2", RAMP)


def test_pixels_that_are_not_numbers_are_black(tmp_path):
    samples = (RAMP / 255).astype(np.float32)
    samples[:, :32] = np.nan
    samples[:, 32:34] = np.inf
    write_tiff(tmp_path / "holes.tif", samples)
    pixels = read_image(tmp_path / "holes.tif", 64)[5, :, 0]
    assert pixels[:32].max() == 0 and pixels[32] == 255
    np.testing.assert_allclose(pixels[34:], RAMP[5, 34:], atol=1)
    write_tiff(tmp_path / "empty.tif", np.full((64, 64), np.nan, np.float32))
    with pytest.raises(InputError, match="empty.tif cannot be read: its pixels are not finite numbers"):
        read_image(tmp_path / "empty.tif", 64)


def test_uncompressed_colors_at_half_the_resolution_are_refused(tmp_path):
    write_tiff(tmp_path / "video.tif", COLORS, photometric=6, tags=[(530, (3, [2, 2])), (279, (4, [64 * 64 * 3 // 2]))])
    with pytest.raises(InputError, match="video.tif cannot be read: colors at half the resolution, uncompressed"):
        read_image(tmp_path / "video.tif", 64)


@pytest.mark.parametrize("white", [255, 1023, 4095, 65535])
@pytest.mark.parametrize("shows", [RAMP, COLORS], ids=["gray", "color"])
def test_netpbm_images_declare_their_white(tmp_path, shows, white):
    header = b"P%d 64 64 %d\n" % (5 if shows.ndim == 2 else 6, white)
    samples = shows.astype(np.int64) * white // 255
    (tmp_path / "image.pnm").write_bytes(header + samples.astype("u1" if white == 255 else ">u2").tobytes())
    assert_shows(tmp_path / "image.pnm", shows)
    dark = shows // 2
    samples = dark.astype(np.int64) * white // 255
    (tmp_path / "dark.pnm").write_bytes(header + samples.astype("u1" if white == 255 else ">u2").tobytes())
    assert_shows(tmp_path / "dark.pnm", dark)
    (tmp_path / "narrow.pnm").write_bytes(header + shows.astype("u1" if white == 255 else ">u2").tobytes())
    expected = shows if white in (255, 65535) else np.round(shows / white * 255)
    assert_shows(tmp_path / "narrow.pnm", expected)


def test_ones_of_an_xbm_are_black(tmp_path):
    rows = ", ".join(["0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff"] * 64)
    (tmp_path / "icon.xbm").write_text(
        f"#define a_width 64\n#define a_height 64\nstatic char a_bits[] = {{\n{rows}\n}};\n"
    )
    pixels = read_image(tmp_path / "icon.xbm", 64)
    assert pixels[:, :30].min() == 255 and pixels[:, 34:].max() == 0


# ---------------------------------------------------------------------- colors


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "tga", "ico"])
def test_an_alpha_channel_that_was_never_filled_in_is_ignored(tmp_path, suffix):
    image = four_colors(64, 64).convert("RGBA")
    image.putalpha(0)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    image.save(tmp_path / f"image.{suffix}", **options)
    assert_upright(read_image(tmp_path / f"image.{suffix}", 64), tolerance=3)


@pytest.mark.parametrize("mode", ["LA", "palette", "16 bits"])
def test_unused_alpha_in_other_modes_is_ignored_too(tmp_path, mode):
    if mode == "LA":
        Image.fromarray(np.dstack([RAMP, 0 * RAMP])).save(tmp_path / "image.png")
    elif mode == "palette":
        Image.fromarray(RAMP).quantize(64).save(tmp_path / "image.png", transparency=bytes(64))
    else:
        samples = np.dstack([RAMP.astype(">u2") * 257] * 3 + [np.zeros((64, 64), ">u2")])
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
        write_png(tmp_path / "image.png", 16, 6, rows)
    assert_shows(tmp_path / "image.png", RAMP, tolerance=4)


def test_an_empty_transparent_image_is_white(tmp_path):
    Image.new("RGBA", (64, 64)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", 64).min() == 255


def test_a_tga_may_say_that_it_has_no_alpha_channel(tmp_path):
    image = four_colors(64, 64).convert("RGBA")
    image.putalpha(7)  # whatever stood in memory
    image.save(tmp_path / "image.tga")
    data = bytearray((tmp_path / "image.tga").read_bytes())
    data[17] &= 0xF0
    (tmp_path / "image.tga").write_bytes(data)
    assert_upright(read_image(tmp_path / "image.tga", 64), tolerance=2)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
def test_colors_are_what_their_profile_says(tmp_path, suffix):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile in which red and green have changed places, under another name.
    swapped = srgb.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    path = tmp_path / f"photo.{suffix}"
    four_colors().save(path, icc_profile=swapped, quality=95)
    found = corners(read_image(path, 64))
    np.testing.assert_allclose(found["top left"].astype(int), (40, 200, 40), atol=16)
    np.testing.assert_allclose(found["top right"].astype(int), (200, 40, 40), atol=16)
    four_colors().save(path, icc_profile=srgb, quality=95)
    assert_upright(read_image(path, 64), tolerance=16)
    # Profiles for gray images, and of no use at all, are ignored.
    four_colors().save(path, icc_profile=srgb.replace(b"RGB XYZ", b"GRAYXYZ"), quality=95)
    assert_upright(read_image(path, 64), tolerance=16)
    four_colors().save(path, icc_profile=bytes(3000), quality=95)
    assert_upright(read_image(path, 64), tolerance=16)


# ---------------------------------------------------------------------- metadata


def test_long_metadata_do_not_make_a_png_unreadable(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    info.add_itxt("prompt", "y" * 3_000_000, zip=True)
    for number in range(70):
        info.add_text(f"note {number}", "z" * 1_000_000)
    four_colors().save(tmp_path / "text.png", pnginfo=info)
    four_colors().save(tmp_path / "profile.png", icc_profile=bytes(9_000_000))
    for name in ("text.png", "profile.png"):
        assert_upright(read_image(tmp_path / name, 64), tolerance=2)


@pytest.mark.parametrize("key", ["interlace", "transparency", "exif", "bbox", "icc_profile", "xmp", "samples", "gamma"])
def test_texts_of_a_png_are_not_mistaken_for_properties(tmp_path, key):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, "7")
    four_colors().save(tmp_path / "image.png", pnginfo=info)
    assert_upright(read_image(tmp_path / "image.png", 64), tolerance=2)


def test_damaged_metadata_of_a_png_do_not_affect_its_pixels(tmp_path):
    four_colors().save(tmp_path / "image.png")
    chunks = [
        (b"iCCP", b"name"),
        (b"zTXt", b"a\0\7abc"),
        (b"iTXt", b"\0"),
        (b"sBIT", b""),
        (b"eXIf", b"II"),
        (b"fcTL", b""),
    ]
    with_chunks(tmp_path / "image.png", *chunks)
    data = (tmp_path / "image.png").read_bytes()
    place = data.index(b"abc")
    (tmp_path / "image.png").write_bytes(data[:place] + b"xyz" + data[place + 3 :])  # the checksum is wrong as well
    assert_upright(read_image(tmp_path / "image.png", 64), tolerance=2)


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFIF"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4\x80"),
        (0xEE, b"Adobe"),
    ],
)
def test_damaged_metadata_of_a_jpeg_do_not_affect_its_pixels(tmp_path, segment):
    turned(6).save(tmp_path / "photo.jpg", quality=95)
    with_exif(tmp_path / "photo.jpg", exif_data(ORIENTATION))
    jpeg = (tmp_path / "photo.jpg").read_bytes()
    marker, data = segment
    added = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
    (tmp_path / "photo.jpg").write_bytes(jpeg[:2] + added + jpeg[2:])
    assert_upright(read_image(tmp_path / "photo.jpg", 64, "stretch"), tolerance=12)


# ---------------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    "head, problem",
    [
        (b"\xff\x0a\xfa\x1f", "is a JPEG XL image, which cannot be read"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL image, which cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "is a PostScript drawing, which cannot"),
        (b"%PDF-1.7\n", "is a PDF document, which cannot"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing, which cannot"),
        (b"<!DOCTYPE html><html>", "is a web page, which cannot"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself, which cannot"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, which cannot"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "is a video, which cannot"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "is a video, which cannot"),
        (b"\0\0\1\xba" + bytes(100), "is a video, which cannot"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "is a camera's raw image, which cannot"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n", "is a Radiance HDR image, which cannot"),
        (b"PK\3\4" + bytes(100), "is an archive, which cannot"),
        (b"BMW is a car, and this a text that begins like a BMP image.\n", "is not an image that can be read"),
        (b"GIF images are described here.\n", "is not an image that can be read"),
        (b"II", "is not an image that can be read"),
        (b"\x89PNG\r\n\x1a\n", "is damaged: "),
        (b"GIF89a\1\0", "is damaged: "),
        (b"BM" + bytes(12) + b"\x77\0\0\0" + bytes(200), "cannot be read: Unsupported BMP header type"),
        (b"\xff\xd8\xff\xc0\0\x11\x0c\0\x40\0\x40\3" + bytes(20), "cannot be read: cannot handle 12-bit layers"),
    ],
)
def test_the_reason_is_true(tmp_path, head, problem):
    path = tmp_path / "photo.jpg"
    path.write_bytes(head)
    with pytest.raises(InputError) as error:
        read_image(path, 64)
    assert str(error.value).startswith(f"{path} {problem}")


@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "webp", "avif", "tif", "bmp", "gif", "tga", "jp2", "ppm", "ico", "qoi"]
)
def test_the_name_of_a_file_does_not_matter(tmp_path, suffix):
    four_colors(64, 64).save(tmp_path / f"image.{suffix}", quality=95)
    expected = read_image(tmp_path / f"image.{suffix}", 64)
    assert_upright(expected, tolerance=20)
    for name in ("image", "image.txt", "image.jpg_", "image.h5", "image.heic", "image.eps"):
        (tmp_path / f"image.{suffix}").rename(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, 64), expected)
        (tmp_path / name).rename(tmp_path / f"image.{suffix}")


# ---------------------------------------------------------------------- many files


@pytest.mark.parametrize("writer", formats.WRITERS)
def test_no_file_of_any_writer_is_shown_wrong(tmp_path, writer):
    cases, installed, _ = formats.WRITERS[writer]
    if not installed():
        pytest.skip(f"{writer} is not installed")
    outcomes = {}
    for number, case in enumerate(cases()):
        outcome, reason = formats.judge(case, tmp_path / f"{number}.{case.suffix}")
        outcomes.setdefault(outcome, []).append(f"{case.suffix}, {case.name}: {reason}")
    assert outcomes.get("wrong", []) == [] and len(outcomes["right"]) > 20
    assert writer != "pillow" or len(outcomes["right"]) > 100 and "refused" not in outcomes
