"""The SYNTHETIC data sets, rendered once into .h5 files with the schema of the photographs."""

import contextlib
import hashlib
import importlib
import os
import pathlib
import tempfile

from support.errors import InputError
from support.files import atomic_write

HERE = pathlib.Path(__file__).resolve().parent

# For each data set: the module and the function that render an image, the number of classes, and for each file
# the number of images and the seed. Training and test set are as large as those of the photographs; the seeds differ,
# so no image is in two files.
RECIPES = {
    "happy": ("faces", "render_face", 2, {"train": (600, 101), "test": (150, 102), "pretrain": (12000, 103)}),
    "signs": ("hands", "render_hand", 6, {"train": (1080, 201), "test": (120, 202)}),
    # The seventh label stands for a hand that shows no digit, from which a network learns when to be unsure.
    "signs_and_others": ("hands", "render_hand", 7, {"train": (1260, 203), "pretrain": (14000, 204)}),
    # Only hands that show no digit, to test on; the labels are the indices of hands.NO_DIGITS.
    "signs_other": ("hands", "render_no_digit", 9, {"test": (270, 205)}),
}


def render_images(name, count, seed, progress=""):
    """Render images of a data set, the same number of each class, in random order.

    Each image has its own random generator, made of the seed and the image's index,
    so the result does not depend on the number of processes.

    Args:
        name: one of RECIPES.
        count: int, number of images.
        seed: int >= 0.
        progress: str, text of the progress bar; no bar if it is empty.

    Returns: x (count, 64, 64, 3) uint8 RGB, y (count,) int64.
    """
    import multiprocessing
    import signal

    import numpy as np
    from tqdm import tqdm

    y = np.random.default_rng(seed).permutation(np.arange(count) % RECIPES[name][2])
    x = np.empty((count, 64, 64, 3), np.uint8)
    jobs = [(name, label, seed, index) for index, label in enumerate(y)]
    processes = min(os.cpu_count() or 1, count // 100)  # starting one costs as much as rendering 100 images
    with contextlib.ExitStack() as stack:
        if processes > 1:
            # Spawned, because a fork of a process with TensorFlow's threads may hang.
            # They ignore Ctrl-C: the main process handles it.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)))
            images = pool.imap(render_image, jobs, chunksize=20)
        else:
            images = map(render_image, jobs)
        for index, image in enumerate(tqdm(images, progress, count, unit="image", disable=not progress)):
            x[index] = image
    return x, y


def render_image(job):
    """Render one image (64, 64, 3) uint8; `job` is the data set's name, the label, the seed and the image's index."""
    import numpy as np

    name, label, seed, index = job
    module, function, _, _ = RECIPES[name]
    renderer = getattr(importlib.import_module(f"datasets.synthetic.{module}"), function)
    return renderer(label, np.random.default_rng([seed, index]))


def render_dataset(name, folder=None, parts=("train", "test")):
    """Return the files of a SYNTHETIC data set; render those that are missing.

    Args:
        name: one of RECIPES.
        folder: where the files are kept; None: this package's folder or, if it is read-only, one in the user's home.
        parts: which of the set's files.

    Returns: tuple of paths, one for each part.
    Raises InputError: a file cannot be written.
    """
    folder = writable_folder() if folder is None else pathlib.Path(folder)
    return tuple(_render_file(name, part, folder) for part in parts)


def writable_folder():
    """Return the folder for rendered files: this package's, or one beside Keras's data sets, or a temporary one."""
    for folder in (HERE, pathlib.Path.home() / ".keras" / "datasets" / "synthetic"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return pathlib.Path(tempfile.mkdtemp(prefix="synthetic_"))


def _render_file(name, part, folder):
    """Return the path of one file; render it unless it is complete and the same renderer made it."""
    import h5py
    import numpy as np

    module, function, classes, parts = RECIPES[name]
    count, seed = parts[part]
    path = folder / f"{part}_{name}.h5"
    # When the renderer's source code or the recipe changes, the images are rendered again.
    sources = b"".join((HERE / source).read_bytes() for source in ("rendering.py", f"{module}.py"))
    renderer = hashlib.sha256(sources + repr((function, classes, count, seed)).encode()).hexdigest()
    with contextlib.suppress(OSError), h5py.File(path, "r") as file:
        if file.attrs.get("renderer") == renderer:
            return path
    x, y = render_images(name, count, seed, progress=f"Rendering the SYNTHETIC {path.name}")
    try:
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"] = x, y
            file["list_classes"] = np.arange(classes)
            file.attrs["renderer"], file.attrs["data"] = renderer, "SYNTHETIC"
    except InputError as error:
        expected = f"expected room for {x.nbytes:,} bytes; free some space, or use photographs with --data-dir"
        reason = str(error).rpartition("Received: ")[2]
        raise InputError(f"{path} cannot be written: {expected}. Received: {reason}") from None
    return path
