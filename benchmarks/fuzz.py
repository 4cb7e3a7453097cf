"""Feed damaged files to the readers, guided by the code they reach. Only an InputError may come out.

    pip install "atheris>=3.0,<4"
    python -m benchmarks.fuzz                        145,000 inputs for the five readers
    python -m benchmarks.fuzz --runs 1000 image      1,000 inputs for the image reader

atheris changes the bytes of a few good files and builds on the changes that reach new code. Each reader runs in a
process of its own, so that a crash of a C library is counted too. An input that takes longer than 20 seconds counts as
a hang. Inputs that failed are kept in outputs/fuzz/.
"""

import argparse
import io
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import zlib

import h5py
import numpy as np
from PIL import Image, ImageCms

from basics.errors import InputError, require, run_main
from datasets.cache import open_cache
from datasets.cache import record_type as image_record
from datasets.folders import load_folder
from datasets.hdf5 import load_h5
from datasets.images import read_image
from support.cli import ROOT, integer
from support.training.transfer import read_features
from support.training.transfer import record_type as feature_record

# The program of a reader's process. atheris must instrument the modules that guide it while it imports them.
PROGRAM = """
import sys, atheris
guides = ["basics.errors", "basics.files", "datasets", "support.training.transfer", "numpy.lib", "PIL"]
with atheris.instrument_imports(include=guides):
    from PIL import Image
    Image.init()
    from benchmarks.fuzz import fuzz
fuzz(*sys.argv[1:])
"""
# Inputs for each reader.
RUNS = {"h5": 50_000, "image": 50_000, "folder": 5_000, "cache": 20_000, "features": 20_000}
# Of the caches: so many pixels a side, and so many features an image.
PIXELS, FEATURES = 8, 5
# Pillow's formats and modes.
IMAGE_KINDS = (
    "PNG RGB", "PNG RGBA", "PNG P", "PNG I;16", "JPEG RGB", "JPEG CMYK", "GIF P", "TIFF RGB", "TIFF F", "TIFF I;16",
    "BMP RGB", "WEBP RGB", "ICO RGBA", "PPM RGB", "PPM I;16", "TGA RGB", "JPEG2000 RGB", "AVIF RGB", "XBM 1",
)  # fmt: skip


def good_h5():
    """Yield small files of the course's schema, as bytes."""
    for dtype, options in (
        ("u1", {"compression": "lzf"}),
        ("u1", {"compression": "gzip"}),
        ("u1", {"compression": "gzip", "chunks": (1, 64, 64, 3), "shuffle": True}),
        ("f4", {"compression": "gzip"}),
        ("u2", {"compression": "gzip"}),
    ):
        file = io.BytesIO()
        with h5py.File(file, "w") as data:
            data.create_dataset("train_set_x", data=np.zeros((2, 64, 64, 3), dtype), **options)
            data["train_set_y"] = np.array([[0, 1]])
            data["list_classes"] = np.array([b"0", b"1"])
        yield file.getvalue()


def good_images():
    """Yield small images of many formats and modes, as bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    profile = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"\0s\0R\0G\0B", b"\0n\0e\0w\0!")
    )
    for kind in IMAGE_KINDS:
        name, mode = kind.split()
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        else:
            image = Image.fromarray(pixels).convert(mode)
        file = io.BytesIO()
        if name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            image.save(file, name, exif=exif, icc_profile=profile)
        else:
            image.save(file, name)
        yield file.getvalue()
    yield from deep_pngs(pixels)


def deep_pngs(pixels):
    """Yield PNGs of 16-bit colors that hold 12 bits, with chunks that Pillow cannot write."""
    for color, channels in ((2, [0, 1, 2]), (4, [0, 1]), (6, [0, 1, 2, 0])):
        rows = b"".join(b"\0" + row.tobytes() for row in pixels[..., channels].astype(">u2") * 16)
        height, width, _ = pixels.shape
        chunks = (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
            (b"sBIT", bytes([12] * len(channels))),
            (b"tRNS", bytes(6)),
            (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n49492a0008000000\n")),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
        yield b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )


def good_caches(record):
    """Yield files of records, as bytes: the caches of images and of features."""
    for count in (0, 1, 3):
        file = io.BytesIO()
        records = np.zeros(count, record)
        records["key"] = [np.void(bytes([number]) * 16) for number in range(count)]
        np.save(file, records, allow_pickle=False)
        yield file.getvalue()


def check(reader, path):
    """Read the file with one of the readers, and check what it returns."""
    if reader == "h5":
        load_h5(path, "train")
    elif reader == "image":
        pixels = read_image(path, 64)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
    elif reader == "cache":
        cache = open_cache(path, PIXELS)
        if cache is not None:
            rows = [*cache.row_of.values()]
            assert cache[rows].shape == (len(rows), PIXELS, PIXELS, 3)
    elif reader == "features":
        for features in read_features(path, feature_record(FEATURES)).values():
            assert features.shape == (FEATURES,) and np.isfinite(features).all()
    else:  # as one image of a folder, whose six others must be read in any case
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
                os.makedirs(f"{folder}/{name[0]}", exist_ok=True)
                os.link(path.parent / "corpus" / "good_0", f"{folder}/{name}.png")
            os.link(path, f"{folder}/a/damaged.png")
            train_x, _, test_x, _, _ = load_folder(folder)
            assert len(train_x) + len(test_x) in (6, 7)


def good_files(reader):
    """Return what a reader has to read, an iterable of bytes."""
    if reader == "h5":
        return good_h5()
    if reader in ("cache", "features"):
        return good_caches(image_record(PIXELS) if reader == "cache" else feature_record(FEATURES))
    return good_images()


def fuzz(reader, folder, runs):
    """Give one reader changed inputs, starting from the files in `folder`/corpus. libFuzzer ends the process."""
    import atheris

    path = pathlib.Path(folder, "input.png")

    def read(data):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            check(reader, path)
        except InputError as error:
            assert str(path.parent) in str(error)

    os.makedirs("outputs/fuzz", exist_ok=True)
    # The good files fit in 8,192 bytes, and small files are read fast.
    options = f"-runs={runs}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=6000", "-seed=1"
    atheris.Setup(["fuzz", *options, f"-artifact_prefix=outputs/fuzz/{reader}_", f"{folder}/corpus"], read)
    atheris.Fuzz()


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__, formatter_class=raw)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"any of {', '.join(RUNS)} (default: all)")
    counts = ", ".join(f"{count:,} for {reader}" for reader, count in RUNS.items())
    parser.add_argument("--runs", type=integer(1), metavar="N", help=f"inputs for each reader (default: {counts})")
    args = parser.parse_args()
    for unknown in set(args.readers) - set(RUNS):
        parser.error(f"READER must be any of {', '.join(RUNS)} (got {unknown!r})")
    require("atheris", "benchmarks.fuzz", "atheris>=3.0,<4")
    failures = total = 0
    for reader in args.readers or RUNS:
        # In memory where possible, because writing to a disk is slower.
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            pathlib.Path(folder, "corpus").mkdir()
            for number, data in enumerate(good_files(reader)):
                pathlib.Path(folder, "corpus", f"good_{number}").write_bytes(data)
            command = [sys.executable, "-W", "ignore", "-c", PROGRAM, reader, folder, str(args.runs or RUNS[reader])]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        inputs = max(map(int, re.findall(r"^#(\d+)\s", process.stderr, re.MULTILINE)), default=0)
        outcome = "no crash, no traceback, no hang"
        if process.returncode:
            failures += 1
            outcome = f"failed with code {process.returncode}:\n{process.stdout[-2000:]}{process.stderr[-2000:]}"
        print(f"{reader}: {inputs:,} inputs, {outcome}", flush=True)
        total += inputs
    print(f"{total:,} inputs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    run_main(main)
