"""The SYNTHETIC data sets: rendered once, then read from disk.

    python -m datasets.synthetic [happy|signs]      render now what the scripts would render when they need it
    python -m datasets.synthetic --sheet FOLDER     and save a sheet of them to look at

The files have the names, keys, types and sizes of the real ones, so that the
same loader reads both.
"""

import argparse
import contextlib
import hashlib
import importlib
import multiprocessing
import os
import pathlib
import signal
import tempfile

import numpy as np

from runs import InputError

HERE = pathlib.Path(__file__).resolve().parent

# Per data set: the module that renders a picture, its function, the number of classes, and for each
# file how many pictures (as in the photographs) from which seed (one each: no test picture is in train).
RECIPES = {
    "happy": ("datasets.faces", "render_face", 2, {"train": (600, 101), "test": (150, 102)}),
    "signs": ("datasets.hands", "render_hand", 6, {"train": (1080, 201), "test": (120, 202)}),
}


def render_pictures(name, count, seed, progress=""):
    """Render pictures of a data set, the same number of each class, in random order.

    Each picture has a random generator of its own, made of the seed and the
    picture's number, so that the set is the same in whatever order it is made.

    Args:
        name: "happy" or "signs".
        count: int, how many pictures.
        seed: int >= 0.
        progress: str, text of the progress bar; empty: no bar.

    Returns:
        x (count, 64, 64, 3) uint8 RGB, y (count,) int64.
    """
    from tqdm import tqdm

    classes = RECIPES[name][2]
    y = np.random.default_rng(seed).permutation(np.arange(count) % classes)
    x = np.empty((count, 64, 64, 3), np.uint8)
    processes = min(os.cpu_count() or 1, count // 100)      # below that, starting one takes longer than it saves
    jobs = [(name, label, seed, index) for index, label in enumerate(y)]
    with contextlib.ExitStack() as stack:
        if processes > 1:
            # Started afresh, not forked: a copy of a process in which TensorFlow's threads run may hang.
            # Ctrl-C is for the one that waits for them.
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(
                processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)))
            pictures = pool.imap(render_picture, jobs, chunksize=20)
        else:
            pictures = map(render_picture, jobs)
        for index, picture in enumerate(tqdm(pictures, desc=progress, total=count, unit="picture",
                                             disable=not progress)):
            x[index] = picture
    return x, y


def render_picture(job):
    """Render one picture; `job` is the data set's name, the label, the seed and the picture's number."""
    name, label, seed, index = job
    module, function, _, _ = RECIPES[name]
    return getattr(importlib.import_module(module), function)(label, np.random.default_rng([seed, index]))


def render_dataset(name, folder=None):
    """Return the train and the test file of a SYNTHETIC data set; render what is missing.

    Args:
        name: "happy" or "signs".
        folder: where the files are kept; None: `datasets/synthetic/`, or, where
            that cannot be written to, a folder in the user's home.

    Returns:
        Two paths, train and test.
    """
    folder = writable_folder() if folder is None else pathlib.Path(folder)
    return tuple(render_file(name, part, folder) for part in ("train", "test"))


def writable_folder():
    """Return the folder for rendered files: beside this file if possible."""
    # Keras keeps its data sets there, too.
    for folder in (HERE / "synthetic", pathlib.Path.home() / ".keras" / "datasets" / "synthetic"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return pathlib.Path(tempfile.mkdtemp(prefix="synthetic_"))      # at least for this run


def render_file(name, part, folder):
    """Return the path of one rendered file; render it unless this renderer has done so before.

    Raises:
        InputError: it cannot be written.
    """
    import h5py

    module, _, classes, parts = RECIPES[name]
    count, seed = parts[part]
    path = pathlib.Path(folder) / f"{part}_{name}.h5"
    renderer = fingerprint(module)
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("renderer") == renderer:
                return path
    except OSError:
        pass        # not there, or not whole: it is rendered
    x, y = render_pictures(name, count, seed, progress=f"Rendering the SYNTHETIC {part}_{name}.h5")
    # Written aside and renamed: two scripts started together, or one that is stopped, leave no half file.
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(aside, "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"] = x, y
            file["list_classes"] = np.arange(classes)
            file.attrs["renderer"], file.attrs["data"] = renderer, "SYNTHETIC"
        os.replace(aside, path)
    except OSError as error:
        # HDF5 tells of a full disk in many lines.
        reason = error.strerror or (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"{path} cannot be written: expected room for {x.nbytes:,} bytes of rendered pictures; make "
                         f"some, or give photographs with --data-dir. Received: {reason[:200]}") from None
    finally:
        aside.unlink(missing_ok=True)
    return path


def fingerprint(module):
    """Return the SHA-256 of the sources that make the pictures: another renderer, other pictures."""
    sources = [HERE / "rendering.py", HERE / f"{module.rpartition('.')[2]}.py", HERE / "synthetic.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def save_sheet(train, path, columns=12, scale=2):
    """Save a PNG with the first `columns` pictures of each class of a rendered training file, a row per class."""
    import h5py
    from PIL import Image, ImageDraw

    with h5py.File(train, "r") as file:
        x, y, classes = file["train_set_x"][()], file["train_set_y"][()], file["list_classes"][()]
    side, title = x.shape[1] * scale, 24      # pixels
    sheet = Image.new("RGB", (columns * side, title + len(classes) * side), "white")
    ImageDraw.Draw(sheet).text((6, 4), f"{train.name}, SYNTHETIC: the first pictures of the classes "
                               f"{classes.tolist()}", "black", font_size=14)
    for row, label in enumerate(classes):
        for column, index in enumerate(np.flatnonzero(y == label)[:columns]):
            picture = Image.fromarray(x[index]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(picture, (column * side, title + row * side))
    sheet.save(path)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), help="which data set (default: both)")
    parser.add_argument("--sheet", type=pathlib.Path, metavar="FOLDER", help="save a sheet of each set's pictures")
    arguments = parser.parse_args(argv)
    for name in [arguments.name] if arguments.name else RECIPES:
        train, test = render_dataset(name)
        print(f"SYNTHETIC: {train} and {test.name}")
        if arguments.sheet:
            arguments.sheet.mkdir(parents=True, exist_ok=True)
            save_sheet(train, arguments.sheet / f"synthetic_{name}.png")
            print(f"Saved {arguments.sheet / f'synthetic_{name}.png'}")


if __name__ == "__main__":
    from cnn_utils import run

    run(main)
