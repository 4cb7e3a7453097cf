"""Feed damaged files to the readers, guided by which lines of code they reach: nothing but an InputError may come out.

    pip install "atheris>=3.0,<4"
    python -m benchmarks.fuzz                        105,000 inputs for the three readers
    python -m benchmarks.fuzz --runs 1000 image      only the image reader

atheris changes bytes of a few good files, keeps what reaches code that nothing
before it reached, and changes that again. Each reader runs in a process of its
own, so that a crash of a C library is seen and counted, too; an input that
takes longer than 20 seconds counts as a hang. What failed is kept in
outputs/fuzz/ to be looked at.
"""

import argparse
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

import cnn_utils as utils
import prediction
import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
LONGEST = 8192      # bytes of an input: the good files fit, and small ones are read fast


def good_h5():
    """Yield small files of the course's schema."""
    import h5py

    shuffled = {"chunks": (1, 64, 64, 3), "shuffle": True, "compression": "gzip"}
    for kind, options in ((np.uint8, {"compression": "lzf"}), (np.uint8, {"compression": "gzip"}), (np.uint8, shuffled),
                          (np.float32, {"compression": "gzip"}), (np.uint16, {"compression": "gzip"})):
        file = io.BytesIO()
        with h5py.File(file, "w") as data:
            data.create_dataset("train_set_x", data=np.zeros((2, 64, 64, 3), kind), **options)
            data["train_set_y"], data["list_classes"] = np.array([[0, 1]]), np.array([b"0", b"1"])
        yield file.getvalue()


def good_pictures():
    """Yield small pictures of many formats and modes."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    for form, mode in (("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"),
                       ("JPEG", "CMYK"), ("GIF", "P"), ("TIFF", "RGB"), ("TIFF", "F"), ("BMP", "RGB"),
                       ("WEBP", "RGB"), ("ICO", "RGBA"), ("PPM", "RGB"), ("TGA", "RGB"), ("JPEG2000", "RGB")):
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
        image = image if mode == "I;16" else image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6        # to be turned by 90 degrees
        file = io.BytesIO()
        image.save(file, form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}))
        yield file.getvalue()


def read_h5(path):
    utils.load_h5(path, "train")


def read_picture(path):
    pixels = prediction.read_image(path, 64)
    assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8


def read_folder(path):
    """The file as one of a folder of classes: the others must be read whatever it is."""
    from datasets.folders import load_folder

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for name in ("a", "b"):
            os.mkdir(os.path.join(folder, name))
            for number in range(3):
                os.link(path.parent / "good.png", os.path.join(folder, name, f"{number}.png"))
        os.link(path, os.path.join(folder, "a", "strange.png"))
        train_x, _, test_x, _, _ = load_folder(folder)
        assert len(train_x) + len(test_x) in (6, 7)


# Inputs for each reader; a folder is seven files, and takes so much longer.
RUNS = {"h5": 50_000, "image": 50_000, "folder": 5_000}
READERS = {"h5": (read_h5, good_h5), "image": (read_picture, good_pictures), "folder": (read_folder, good_pictures)}


def attack(name, corpus, inputs):
    """Run one reader on changed inputs; ends the process when done, as libFuzzer does."""
    import warnings

    import atheris

    ours = ["runs", "cnn_utils", "prediction", "datasets.folders"]
    with atheris.instrument_imports(include=[*ours, "PIL"]):
        for module in ours:
            sys.modules.pop(module, None)
        import PIL.Image  # noqa: F401

        import cnn_utils
        import datasets.folders  # noqa: F401
        import prediction
    globals().update(utils=cnn_utils, prediction=prediction)
    warnings.simplefilter("ignore")
    reader = READERS[name][0]
    # In memory, where there is such a folder: the disk is not what is tested.
    place = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    (place / "good.png").write_bytes(next(good_pictures()))
    path = place / "input.png"
    sys.stderr = open(os.devnull, "w")       # what is left out of a folder is named there, thousands of times

    def one(data):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            reader(path)
        except cnn_utils.InputError as error:
            assert "Received: " in str(error)

    kept = ROOT / "outputs" / "fuzz"
    kept.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], f"-runs={inputs}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=6000",
                   "-seed=1", f"-artifact_prefix={kept}/{name}_", corpus], one)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"any of {', '.join(READERS)} (default: all)")
    parser.add_argument("--runs", type=utils.whole_number(1), metavar="N",
                        help=f"inputs for each reader (default: {', '.join(f'{key} {RUNS[key]}' for key in RUNS)})")
    parser.add_argument("--corpus", help=argparse.SUPPRESS)     # the process of one reader
    arguments = parser.parse_args()
    runs.require("atheris", "benchmarks.fuzz", "atheris>=3.0,<4")
    if arguments.corpus:
        return attack(arguments.readers[0], arguments.corpus, arguments.runs)
    failed = total = 0
    for name in arguments.readers or READERS:
        with tempfile.TemporaryDirectory() as corpus:
            for number, data in enumerate(READERS[name][1]()):
                pathlib.Path(corpus, f"good_{number}").write_bytes(data)
            done = subprocess.run([sys.executable, "-m", "benchmarks.fuzz", name,
                                   "--runs", str(arguments.runs or RUNS[name]),
                                   "--corpus", corpus], cwd=ROOT, capture_output=True, text=True, errors="replace")
        counts = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
        inputs = max(map(int, counts), default=0)
        total += inputs
        failed += done.returncode != 0
        outcome = ("no crash, no traceback, no hang" if done.returncode == 0 else
                   f"failed with code {done.returncode}:\n{done.stderr[-3000:]}")
        print(f"{name}: {inputs:,} inputs, {outcome}", flush=True)
    print(f"{total:,} inputs, {failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    utils.run(main)
