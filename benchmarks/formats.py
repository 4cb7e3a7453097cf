"""Write one picture as files of many kinds, with several programs, and compare what the image reader makes of each.

    python -m benchmarks.formats                     all writers that are installed
    python -m benchmarks.formats pillow opencv       some of them

The writers are Pillow, which this project needs anyway, and, where they are installed, OpenCV, tifffile, imageio and
ImageMagick. Each has its own habits: how it stores 16 bits, transparency, or which way up an image is. A file is right
if it is read as the picture; refused, if the reader says that it cannot read its kind; and wrong otherwise.
"""

import argparse
import collections
import functools
import importlib.util
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

from basics.errors import InputError, run_main
from basics.text import pad
from datasets.images import read_image

SIDE = 64

# Mean and largest difference, of 255, up to which an image counts as the picture.
LOSSLESS, LOSSY = (1, 3), (8, 255)

# How a camera stores an upright scene with each EXIF orientation: the inverse of what a viewer does.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


OUTCOMES = "right", "refused", "wrong", "not written"


class Case(NamedTuple):
    """A file, and what it shows."""

    name: str  # what is special about the file
    suffix: str
    write: Any  # function of the path
    shows: np.ndarray  # uint8 (SIDE, SIDE, 3)
    tolerance: tuple = LOSSLESS


def picture():
    """Return a picture whose channels, corners and edges all differ, uint8 (SIDE, SIDE, 3)."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    image = Image.fromarray(np.round(np.stack([40 + 200 * x, 230 - 200 * y, 90 + 80 * x * y], -1)).astype(np.uint8))
    ImageDraw.Draw(image).rectangle((6, 4, 26, 18), fill=(250, 240, 20))
    ImageDraw.Draw(image).ellipse((30, 34, 60, 58), fill=(20, 10, 160))
    return np.asarray(image)


COLOR = picture()
GRAY = np.asarray(Image.fromarray(COLOR).convert("L"))
BILEVEL = np.where(GRAY > 127, np.uint8(255), np.uint8(0))
# The left quarter is transparent.
ALPHA = np.full((SIDE, SIDE), 255, np.uint8)
ALPHA[:, : SIDE // 4] = 0
RGBA = np.dstack([COLOR, ALPHA])


def as_rgb(gray):
    return np.repeat(gray[..., np.newaxis], 3, axis=-1)


SHOWN = {
    "RGB": COLOR,
    "L": as_rgb(GRAY),
    "1": as_rgb(BILEVEL),
    "RGBA": np.where(ALPHA[..., np.newaxis] == 0, np.uint8(255), COLOR),
    "LA": as_rgb(np.where(ALPHA == 0, np.uint8(255), GRAY)),
}


def gray_samples():
    """Yield the gray picture as samples of other types: a name and an array (SIDE, SIDE)."""
    wide = GRAY.astype(np.int64)
    yield "16 bits", (wide * 257).astype(np.uint16)
    yield "12 of 16 bits", (wide * 4095 // 255).astype(np.uint16)
    yield "10 of 16 bits", (wide * 1023 // 255).astype(np.uint16)
    yield "8 of 16 bits", GRAY.astype(np.uint16)
    yield "32 bits", (wide * 16843009).astype(np.uint32)
    yield "8 of 32 bits", GRAY.astype(np.uint32)
    yield "signed, 8 bits", (wide - 128).astype(np.int8)
    yield "signed, 16 bits", (wide * 257 - 32768).astype(np.int16)
    yield "signed, 8 of 16 bits", GRAY.astype(np.int16)
    yield "signed, 16 of 32 bits", (wide * 257).astype(np.int32)
    for bits in (16, 32, 64):
        for name, samples in (("0 to 1", wide / 255), ("0 to 255", wide), ("-1 to 1", wide / 127.5 - 1)):
            yield f"floating point of {bits} bits, {name}", samples.astype(f"f{bits // 8}")


def pillow_cases():
    color, gray = Image.fromarray(COLOR), Image.fromarray(GRAY)
    images = {
        "RGB": color,
        "L": gray,
        "1": Image.fromarray(BILEVEL).convert("1"),
        "RGBA": Image.fromarray(RGBA),
        "LA": Image.fromarray(np.dstack([GRAY, ALPHA])),
        "P": color.quantize(256),
        "CMYK": color.convert("CMYK"),
        "YCbCr": color.convert("YCbCr"),
        "I;16": Image.fromarray(GRAY.astype(np.uint16) * 257),
        "I": Image.fromarray(GRAY.astype(np.int32) * 257),
        "F": Image.fromarray(GRAY.astype(np.float32)),
    }
    shows = {**SHOWN, "P": COLOR, "CMYK": COLOR, "YCbCr": COLOR, "I;16": SHOWN["L"], "I": SHOWN["L"], "F": SHOWN["L"]}

    def case(suffix, mode, tolerance=LOSSLESS, name="", **options):
        if mode in ("P", "YCbCr"):
            tolerance = LOSSY
        return Case(f"{mode} {name}", suffix, lambda path: images[mode].save(path, **options), shows[mode], tolerance)

    for mode in ("RGB", "L", "CMYK"):
        yield case("jpg", mode, LOSSY, quality=95)
    yield case("jpg", "RGB", LOSSY, "progressive", progressive=True)
    for suffix, modes in (
        ("png", "RGB L 1 RGBA LA P I;16"),
        ("tif", "RGB L 1 RGBA LA P CMYK YCbCr I;16 I F"),
        ("bmp", "RGB L 1 P"),
        ("gif", "RGB L 1"),
        ("tga", "RGB L RGBA LA"),
        ("pnm", "RGB L 1 I"),
        ("pfm", "F"),
        ("sgi", "RGB L RGBA"),
        ("pcx", "RGB L 1"),
        ("dds", "RGB L RGBA LA"),
        ("im", "RGB L 1 CMYK YCbCr I F"),
        ("ico", "RGB RGBA"),
        ("icns", "RGBA"),
        ("qoi", "RGB RGBA"),
        ("msp", "1"),
        ("jp2", "RGB L RGBA LA I;16"),
        ("spi", "F"),
    ):
        for mode in modes.split():
            options = {"sizes": [(SIDE, SIDE)]} if suffix == "ico" else {}
            options |= {"format": "SPIDER"} if suffix == "spi" else {}
            yield case(suffix, mode, LOSSY if suffix in ("gif", "icns") else LOSSLESS, **options)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for mode in ("RGB", "I;16", "I", "F"):
            yield case("tif", mode, name=compression, compression=compression)
    yield case("tif", "RGB", LOSSY, "jpeg", compression="jpeg")
    yield case("tif", "1", name="group4", compression="group4")
    yield case("webp", "RGB", name="lossless", lossless=True)
    for suffix in ("webp", "avif"):
        yield case(suffix, "RGB", LOSSY, quality=95)
        yield case(suffix, "RGBA", LOSSY, quality=95)
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    text.add_text("interlace", "1")
    yield case("png", "RGB", name="long texts", pnginfo=text)
    yield case("png", "RGB", name="large color profile", icc_profile=bytes(1_500_000))
    unused = Image.fromarray(np.dstack([COLOR, 0 * ALPHA]))
    for suffix in ("png", "tif", "tga"):
        yield Case("unused alpha", suffix, unused.save, COLOR)
    for orientation, stored in STORED.items():
        for suffix in ("jpg", "png", "webp", "avif", "tif"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            write = functools.partial(color.transpose(stored).save, exif=exif, quality=95)
            yield Case(f"orientation {orientation}", suffix, write, COLOR, LOSSY)


def opencv_cases():
    import cv2

    bgr, bgra = COLOR[..., ::-1], RGBA[..., [2, 1, 0, 3]]

    def case(name, suffix, samples, shows, tolerance=LOSSLESS, options=()):
        return Case(name, suffix, lambda path: cv2.imwrite(str(path), samples, options), SHOWN[shows], tolerance)

    for suffix in ("png", "bmp", "tif", "ppm", "webp", "jp2", "ras"):
        yield case("BGR", suffix, bgr, "RGB", LOSSY if suffix in ("jp2", "webp") else LOSSLESS)
    for suffix in ("png", "bmp", "tif", "pgm", "jp2", "ras"):
        yield case("gray", suffix, GRAY, "L", LOSSY if suffix == "jp2" else LOSSLESS)
    yield case("BGR", "jpg", bgr, "RGB", LOSSY)
    yield case("gray", "jpg", GRAY, "L", LOSSY)
    yield case("BGR", "avif", bgr, "RGB", LOSSY)
    yield case("bilevel", "png", BILEVEL, "1", options=[cv2.IMWRITE_PNG_BILEVEL, 1])
    for suffix in ("png", "bmp", "tif", "webp"):
        yield case("BGRA", suffix, bgra, "RGBA", LOSSY if suffix == "webp" else LOSSLESS)
    for name, factor in (("16 bits", 257), ("8 of 16 bits", 1), ("12 of 16 bits", 16)):
        for suffix in ("png", "tif", "ppm"):
            yield case(f"BGR, {name}", suffix, bgr.astype(np.uint16) * factor, "RGB")
        for suffix in ("png", "tif"):
            yield case(f"BGRA, {name}", suffix, bgra.astype(np.uint16) * factor, "RGBA")
        for suffix in ("png", "tif", "pgm"):
            yield case(f"gray, {name}", suffix, GRAY.astype(np.uint16) * factor, "L")
    for factor in (1, 257):
        yield case("gray, 16 bits", "jp2", GRAY.astype(np.uint16) * factor, "L", LOSSY)
    yield case("BGR, 16 bits", "jp2", bgr.astype(np.uint16) * 257, "RGB", LOSSY)
    for depth in (10, 12):
        samples = (bgr.astype(np.int64) * (2**depth - 1) // 255).astype(np.uint16)
        yield case(f"{depth} bits", "avif", samples, "RGB", LOSSY, options=[cv2.IMWRITE_AVIF_DEPTH, depth])
    for name, samples in gray_samples():
        if samples.dtype in (np.int8, np.int16, np.int32, np.float32, np.float64):
            yield case(name, "tif", samples, "L")
    yield case("BGR, floating point", "tif", bgr.astype(np.float32) / 255, "RGB")
    yield case("BGR, double", "tif", bgr / 255.0, "RGB")
    yield case("gray", "pfm", GRAY.astype(np.float32) / 255, "L")
    yield case("BGR, floating point", "pfm", bgr.astype(np.float32) / 255, "RGB")
    yield case("BGR", "hdr", bgr.astype(np.float32) / 255, "RGB")


def tifffile_cases():
    import tifffile

    def case(name, samples, shows, **options):
        options = {"metadata": None, "photometric": "rgb" if shows in ("RGB", "RGBA") else "minisblack"} | options
        return Case(name, "tif", lambda path: tifffile.imwrite(path, samples, **options), SHOWN[shows])

    codecs = [None, "zlib"] + ["lzw"] * (importlib.util.find_spec("imagecodecs") is not None)
    for order in "<>":
        for compression in codecs:
            layout = {"byteorder": order, "compression": compression}
            label = f"{order} {compression or 'uncompressed'}"
            for name, samples in gray_samples():
                yield case(f"{name}, {label}", samples, "L", **layout)
            for name, samples in (
                ("16 bits", COLOR.astype(np.uint16) * 257),
                ("8 of 16 bits", COLOR.astype(np.uint16)),
            ):
                planes = {"planarconfig": "separate"}
                yield case(f"RGB, {name}, {label}", samples, "RGB", **layout)
                yield case(f"RGB in planes, {name}, {label}", np.moveaxis(samples, -1, 0), "RGB", **layout, **planes)
            yield case(f"RGB, floating point, {label}", COLOR.astype(np.float32) / 255, "RGB", **layout)
            for name, samples in (("8 bits", 255 - GRAY), ("16 bits", (255 - GRAY.astype(np.uint16)) * 257)):
                yield case(f"white is zero, {name}, {label}", samples, "L", photometric="miniswhite", **layout)
            yield case(f"tiles, {label}", GRAY.astype(np.uint16) * 257, "L", tile=(32, 32), **layout)
    yield case("BigTIFF", COLOR, "RGB", bigtiff=True)
    yield case("ImageJ", GRAY.astype(np.uint16), "L", imagej=True, metadata={})
    yield case("predictor", GRAY.astype(np.uint16) * 257, "L", compression="zlib", predictor=True)
    yield case("alpha of 16 bits", RGBA.astype(np.uint16) * 257, "RGBA", extrasamples=["unassalpha"])
    yield case("gray with alpha", np.dstack([GRAY, ALPHA]), "LA", planarconfig="contig", extrasamples=["unassalpha"])
    multiplied = np.dstack([np.where(ALPHA == 0, 0, GRAY), ALPHA])
    yield case("gray multiplied by alpha", multiplied, "LA", planarconfig="contig", extrasamples=["assocalpha"])
    palette = np.stack([np.arange(256, dtype=np.uint16)] * 3)
    for name, factor in (("8 bits", 1), ("16 bits", 257)):
        yield case(f"palette of {name}", GRAY, "L", photometric="palette", colormap=palette * factor)
    if "lzw" in codecs:
        yield case("floating-point predictor", (GRAY / 255).astype(np.float32), "L", compression="zlib", predictor=3)
        for bits in (10, 12, 14):
            packed = (GRAY.astype(np.int64) * (2**bits - 1) // 255).astype(np.uint16)
            yield case(f"{bits} bits, packed", packed, "L", bitspersample=bits)
        for compression in ("zstd", "webp", "jpegxl", "jpeg2000"):
            yield case(compression, COLOR, "RGB", compression=compression)
    yield case("pages", np.stack([GRAY, 255 - GRAY]), "L")


def imageio_cases():
    import imageio.v3 as imageio

    def case(name, suffix, samples, shows, tolerance=LOSSLESS, **options):
        return Case(name, suffix, lambda path: imageio.imwrite(path, samples, **options), SHOWN[shows], tolerance)

    for suffix in ("png", "bmp", "tif", "ppm", "tga", "webp", "jpg", "gif", "jp2"):
        tolerance = LOSSY if suffix in ("webp", "jpg", "gif") else LOSSLESS
        yield case("RGB", suffix, COLOR, "RGB", tolerance)
        yield case("gray", suffix, GRAY, "L", tolerance)
    for suffix in ("png", "tif"):
        yield case("RGBA", suffix, RGBA, "RGBA")
        yield case("gray, 16 bits", suffix, GRAY.astype(np.uint16) * 257, "L")
        yield case("gray, 12 of 16 bits", suffix, GRAY.astype(np.uint16) * 16, "L")
    if importlib.util.find_spec("tifffile"):
        yield case("gray, floating point", "tif", GRAY.astype(np.float32) / 255, "L", plugin="tifffile")
        yield case("gray, double", "tif", GRAY / 255.0, "L", plugin="tifffile")


# For each file: arguments of ImageMagick, its format and suffix, and what the file shows, "~" if it is lossy.
MAGICK = """
-depth 8 png24:.png RGB | -depth 16 png48:.png RGB | -depth 8 png32:.png RGBA | -depth 16 png64:.png RGBA
-depth 8 .png L | -depth 16 .png L | .png 1 | -colors 200 png8:.png ~RGB | -interlace PNG .png RGB | -depth 16 .png LA
-quality 95 .jpg ~RGB | -quality 95 .jpg ~L | -colorspace CMYK -quality 95 .jpg ~RGB | -interlace JPEG .jpg ~RGB
.tif RGB | -depth 16 .tif RGB | .tif L | -depth 16 .tif L | -depth 16 -endian MSB .tif L | .tif 1 | .tif RGBA
-depth 16 .tif RGBA | -depth 16 .tif LA | -depth 4 .tif L4 | -depth 2 .tif L2 | -depth 12 .tif L | -depth 32 .tif L
-depth 32 -define quantum:format=floating-point .tif L | -depth 32 -define quantum:format=floating-point .tif RGB
-depth 16 -define quantum:format=floating-point .tif L | -depth 64 -define quantum:format=floating-point .tif L
-endian MSB -compress Zip -depth 16 .tif L
-negate -depth 16 -define quantum:polarity=min-is-white .tif L | -negate -define quantum:polarity=min-is-white .tif L
-negate -define quantum:polarity=min-is-white .tif 1 | -compress LZW .tif RGB | -compress Zip -depth 16 .tif RGB
-compress JPEG -quality 95 .tif ~RGB | -compress Group4 .tif 1 | -compress RLE .tif RGB | -interlace Plane .tif RGB
-interlace Plane -depth 16 .tif RGB | -colorspace CMYK .tif RGB | -colorspace CMYK -depth 16 .tif RGB
-colorspace Lab .tif ~RGB | -colors 200 -type Palette .tif ~RGB | ptif:.tif RGB
.bmp RGB | bmp3:.bmp RGB | bmp2:.bmp RGB | .bmp RGBA | .bmp L | .bmp 1 | -compress RLE -colors 200 .bmp ~RGB
-colors 200 .gif ~RGB | .gif ~RGBA | .gif ~L | .gif 1 | .ppm RGB | -depth 16 .ppm RGB | -compress none .ppm RGB
-depth 10 .ppm RGB | -depth 16 .pgm L | -depth 12 .pgm L | -compress none .pgm L | .pbm 1 | -compress none .pbm 1
-orient TopLeft .tga RGB | -orient TopLeft .tga RGBA | -orient TopLeft .tga L
-orient TopLeft -compress RLE .tga RGB | .pcx RGB | .pcx L | .pcx 1 | .sgi RGB | -depth 16 .sgi RGB
.sgi L | .ras RGB | .ras L | -colors 200 .xpm ~RGB | .xbm 1 | .psd RGB | .psd L | .psd RGBA | -depth 16 .psd RGB
.dds ~RGB | -define dds:compression=none .dds RGB | .ico RGB | .ico RGBA | -quality 95 .webp ~RGB
-define webp:lossless=true .webp RGB | -quality 95 .jp2 ~RGB | -depth 16 -quality 0 .jp2 L | .j2k ~RGB
-quality 95 .heic ~RGB | -quality 95 .avif ~RGB | .fits L | -depth 16 .fits L
.miff RGB | .pam RGB | .viff RGB | .hdr RGB
"""
# The same numbers as in STORED, 2 to 8, as ImageMagick calls them.
MAGICK_ORIENTATIONS = "TopRight", "BottomRight", "BottomLeft", "LeftTop", "RightTop", "RightBottom", "LeftBottom"


def magick_cases():
    program = magick_program()
    pixels = {"RGB": COLOR, "RGBA": RGBA, "L": GRAY, "LA": np.dstack([GRAY, ALPHA]), "1": BILEVEL}
    shown = dict(SHOWN)
    for bits in (2, 4):
        steps = 2**bits - 1
        pixels[f"L{bits}"] = np.round(np.round(GRAY / 255 * steps) * (255 / steps)).astype(np.uint8)
        shown[f"L{bits}"] = as_rgb(pixels[f"L{bits}"])

    def case(arguments, target, kind, samples=None):
        kind, lossy = kind.lstrip("~"), kind.startswith("~")
        form, _, suffix = target.rpartition(".")

        def write(path):
            source = path.with_name("source.png")
            Image.fromarray(pixels[kind] if samples is None else samples).save(source)
            subprocess.run([program, source, *arguments, f"{form}{path}"], check=True, capture_output=True)

        return Case(" ".join([*arguments, form, kind]), suffix, write, shown[kind], LOSSY if lossy else LOSSLESS)

    for line in MAGICK.strip().replace("\n", " | ").split(" | "):
        *arguments, target, kind = line.split()
        yield case(arguments, target, kind)
    for name, stored in zip(MAGICK_ORIENTATIONS, STORED.values()):
        yield case(["-orient", name], ".tif", "RGB", np.asarray(Image.fromarray(COLOR).transpose(stored)))


def magick_program():
    """Return the path of ImageMagick's command, or None."""
    for name in ("magick", "convert", "convert-im6"):
        path = shutil.which(name)
        if path and "ImageMagick" in subprocess.run([path, "-version"], capture_output=True, text=True).stdout:
            return path
    return None


# For each writer: its cases, whether it is installed, and what installs it.
WRITERS = {
    "pillow": (pillow_cases, lambda: True, ""),
    "opencv": (opencv_cases, lambda: importlib.util.find_spec("cv2"), 'pip install "opencv-python-headless>=4.14,<5"'),
    "tifffile": (tifffile_cases, lambda: importlib.util.find_spec("tifffile"), 'pip install "tifffile[codecs]"'),
    "imageio": (imageio_cases, lambda: importlib.util.find_spec("imageio"), "pip install imageio"),
    "imagemagick": (magick_cases, magick_program, "apt-get install imagemagick"),
}


def judge(case, path):
    """Write and read the file; return "right", "refused", "wrong" or "not written", and the reason."""
    try:
        case.write(path)
    except Exception as error:  # the program was built without this format
        return "not written", str(error)
    if not path.is_file():
        return "not written", ""
    try:
        difference = np.abs(read_image(path, SIDE).astype(int) - case.shows)
    except InputError as error:
        return "refused", str(error).replace(str(path), path.name)
    mean, largest = difference.mean(), difference.max()
    right = mean <= case.tolerance[0] and largest <= case.tolerance[1]
    return "right" if right else "wrong", f"differs by {mean:.1f} on average, by {largest} at most"


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.formats", description=__doc__, formatter_class=raw)
    parser.add_argument("writers", nargs="*", metavar="WRITER", help=f"any of {', '.join(WRITERS)} (default: all)")
    args = parser.parse_args()
    for unknown in set(args.writers) - set(WRITERS):
        parser.error(f"WRITER must be any of {', '.join(WRITERS)} (got {unknown!r})")
    total = collections.Counter()
    for writer in args.writers or WRITERS:
        cases, installed, command = WRITERS[writer]
        if not installed():
            print(f"{writer} is missing: {command}")
            continue
        counts = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            for number, case in enumerate(cases()):
                path = pathlib.Path(folder, f"{number}.{case.suffix}")
                outcome, reason = judge(case, path)
                counts[outcome] += 1
                if outcome in ("refused", "wrong"):
                    print(f"  {outcome}: {case.suffix}, {case.name}: {reason}")
        print(f"{pad(writer, 12)}" + ", ".join(f"{counts[name]} {name}" for name in OUTCOMES), flush=True)
        total += counts
    print(f"{pad('all', 12)}" + ", ".join(f"{total[name]} {name}" for name in OUTCOMES))
    return 1 if total["wrong"] else 0


if __name__ == "__main__":
    run_main(main)
