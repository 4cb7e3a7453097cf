"""The SYNTHETIC data sets, rendered once into .h5 files in the schema of the photographs."""

import atexit
import contextlib
import functools
import hashlib
import importlib
import os
import pathlib
import sys
import tempfile
import threading

from basics.files import atomic_write, keras_home

HERE = pathlib.Path(__file__).resolve().parent

# For each data set: the module and the function that render an image, the number of classes, and for each file
# the number of images and the seed. The seeds of a set differ, so no image is in two of its files.
RECIPES = {
    # In place of the photographs: the same few people again and again, as many images as in Happy House and SIGNS.
    "happy": ("moments", "render_face", 2, {"train": (600, 101), "test": (150, 102)}),
    "signs": ("moments", "render_hand", 6, {"train": (1080, 201), "test": (120, 202)}),
    # For pre-training, and to be mixed with photographs: another person at another place in each image.
    "happy_wide": ("faces", "render_face", 2, {"train": (600, 101), "test": (150, 102), "pretrain": (12000, 103)}),
    "signs_wide": ("hands", "render_hand", 6, {"train": (1080, 201), "test": (120, 202)}),
    # The seventh label marks hands that show no digit, from which a network learns when to be unsure.
    "signs_and_others": (
        "hands",
        "render_hand",
        7,
        {"train": (1260, 203), "more": (6000, 206), "pretrain": (42000, 204)},
    ),
    # Only hands that show no digit, for testing. The labels are indices into hands.NO_DIGITS.
    "signs_other": ("hands", "render_no_digit", 8, {"test": (240, 205)}),
}

# Held while a thread renders, so that no set is rendered twice.
RENDERING = threading.Lock()

# Set when the command ends.
_stop = threading.Event()

# The files of a set are rendered again when one of these changes.
SOURCES = {
    "faces": ("rendering.py", "faces.py"),
    "hands": ("rendering.py", "hands.py"),
    "moments": ("rendering.py", "faces.py", "hands.py", "moments.py"),
}


class _Stopped(Exception):
    """The command ends while images are rendered."""


def render_images(name, count, seed):
    """Render images of a data set, the same number of each class, in random order.

    Each image has its own random generator, seeded with `seed` and the image's index, so the result does not depend on
    the number of processes.

    Args:
        name: one of RECIPES.
        count: int, number of images.
        seed: int >= 0.

    Returns: x (count, 64, 64, 3) uint8 RGB, y (count,) int64.
    """
    return _render_parts(name, [(count, seed)])[0]


def _render_parts(name, parts, few=None, progress=""):
    """Render several parts of a data set, each a (count, seed); return what `render_images` returns for each.

    Args:
        name: one of RECIPES.
        parts: list of (count, seed).
        few: int, render only so many images of each class, the first ones; None: all.
        progress: str, text of the progress bar; no bar if it is empty.
    """
    import multiprocessing
    import signal

    import numpy as np
    from tqdm import tqdm

    from datasets.splits import subset_per_class
    from datasets.synthetic.moments import SITTINGS

    results, jobs = [], []
    for part, (count, seed) in enumerate(parts):
        y = np.random.default_rng(seed).permutation(np.arange(count) % RECIPES[name][2])
        indices, y = subset_per_class(np.arange(count), y, few)
        results.append((np.empty((len(y), 64, 64, 3), np.uint8), y))
        jobs += [(name, label, seed, index, part, row) for row, (index, label) in enumerate(zip(indices, y))]
    # All moments of a sitting go to the same process, because a process keeps what they have in common.
    jobs.sort(key=lambda job: job[3] % SITTINGS)
    chunk = min(-(-len(jobs) // SITTINGS), 50)
    processes = min(os.cpu_count() or 1, len(jobs) // 100)  # starting one costs as much as rendering 100 images
    with contextlib.ExitStack() as stack:
        if processes > 1:
            # Spawned, because a fork of a process with TensorFlow's threads may hang.
            # The workers ignore Ctrl-C, which the main process handles.
            context = multiprocessing.get_context("spawn")
            with _without_main_module():
                pool = stack.enter_context(context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)))
            images = pool.imap(render_image, jobs, chunksize=chunk)
        else:
            images = map(render_image, jobs)
        for job, image in zip(jobs, tqdm(images, progress, len(jobs), unit="image", disable=not progress)):
            if _stop.is_set():
                raise _Stopped
            *_, part, row = job
            results[part][0][row] = image
    return results


@contextlib.contextmanager
def _without_main_module():
    """Keep processes that are spawned meanwhile from importing the script, and Keras with it, which takes seconds."""
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    main.__file__ = main.__spec__ = None
    try:
        yield
    finally:
        main.__file__, main.__spec__ = file, spec


def render_image(job):
    """Render one image (64, 64, 3) uint8; `job`: the data set's name, the label, the seed, the image's index, ..."""
    import numpy as np

    name, label, seed, index, *_ = job
    module, function, _, _ = RECIPES[name]
    renderer = getattr(importlib.import_module(f"datasets.synthetic.{module}"), function)
    rng = np.random.default_rng([seed, index])
    return renderer(label, rng, index) if module == "moments" else renderer(label, rng)


def start_rendering(name, **options):
    """Begin `render_dataset` with these arguments in the background, where its errors are ignored.

    The next call of `render_dataset` waits for it, and raises what is wrong. If the command ends before, so does this.
    """
    # Imported here, because at the end Python first calls what was registered last: `stop` before what these register.
    import multiprocessing.pool  # noqa: F401

    import h5py  # noqa: F401

    # Keras gets another home while it is imported.
    folder = options.pop("folder", None) or writable_folder()

    def render():
        with contextlib.suppress(Exception), RENDERING:
            _render_missing(name, folder, **options)

    def stop():
        _stop.set()
        thread.join()

    # A daemon, because Python would wait for any other thread before it calls `stop`.
    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    atexit.register(stop)


def render_dataset(name, folder=None, parts=("train", "test"), few=None):
    """Return the files of a SYNTHETIC data set; render the missing ones.

    Args:
        name: one of RECIPES.
        folder: where the files are kept; None: see `writable_folder`.
        parts: which of the set's files, such as "train" and "test".
        few: int; where a file is missing, only so many images of each class are rendered, the first ones, into another
            file, for a dry run. None: all images.

    Returns: tuple of paths, one for each part.
    Raises InputError: a file cannot be written.
    """
    with RENDERING:
        return _render_missing(name, folder, parts, few)


def _render_missing(name, folder=None, parts=("train", "test"), few=None):
    """Do what `render_dataset` says, in the only thread that renders."""
    folder = writable_folder() if folder is None else pathlib.Path(folder)
    paths = {part: folder / f"{part}_{name}.h5" for part in parts}
    fingerprints = {part: _fingerprint(name, part) for part in parts}
    missing = [part for part in parts if not _is_current(paths[part], fingerprints[part])]
    if few:
        for part in missing:
            paths[part] = folder / f"{part}_{name}_{few}.h5"
            fingerprints[part] += f" {few}"
        missing = [part for part in missing if not _is_current(paths[part], fingerprints[part])]
    if missing:
        files = " and ".join(paths[part].name for part in missing)
        recipe = [RECIPES[name][3][part] for part in missing]
        images = _render_parts(name, recipe, few, progress=f"Rendering the SYNTHETIC {files}")
        for part, (x, y) in zip(missing, images):
            _write_file(paths[part], part, x, y, RECIPES[name][2], fingerprints[part])
    return tuple(paths.values())


@functools.cache
def writable_folder():
    """Return the first that can be written to: this package's folder, one in the user's home, a temporary one."""
    for folder in (HERE, keras_home() / "datasets" / "synthetic"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return pathlib.Path(tempfile.mkdtemp(prefix="synthetic_"))


def _fingerprint(name, part):
    """Return a hash of all that decides about a file's images: the renderer's source code and the recipe."""
    module, function, classes, parts = RECIPES[name]
    sources = b"".join((HERE / source).read_bytes() for source in SOURCES[module])
    return hashlib.sha256(sources + repr((function, classes, *parts[part])).encode()).hexdigest()


def _is_current(path, fingerprint):
    """Return whether a file is complete and was rendered by the renderer with this fingerprint."""
    import h5py

    with contextlib.suppress(OSError), h5py.File(path, "r") as file:
        return file.attrs.get("renderer") == fingerprint
    return False


def _write_file(path, part, x, y, classes, fingerprint):
    """Write a part of a data set in the schema of the photographs."""
    import h5py
    import numpy as np

    fix = f"Make sure that its folder can be written to and has {x.nbytes:,} bytes of free space"
    with atomic_write(path, fix=fix) as temporary, h5py.File(temporary, "w") as file:
        file[f"{part}_set_x"] = x
        file[f"{part}_set_y"] = y
        file["list_classes"] = np.arange(classes)
        file.attrs["renderer"] = fingerprint
        file.attrs["data"] = "SYNTHETIC"
