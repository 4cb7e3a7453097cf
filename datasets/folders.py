"""Images of your own: a folder with one subfolder for each class.

    my_images/cat/*.jpg              a seeded part of each class becomes the test set
    my_images/dog/*.png

    my_images/train/cat/*.jpg        or you provide both sets
    my_images/test/cat/*.jpg

As in `keras.utils.image_dataset_from_directory`, the names of the subfolders are the classes, in alphabetical order.
The images stay on disk and are read when needed, so memory does not grow with the folder. A cache keeps them decoded.
"""

import hashlib
import os
import pathlib
import sys

import numpy as np

from datasets.cache import read_all
from datasets.images import IMAGE_SHAPE, read_image
from datasets.splits import SPLIT_SEED, split_fold, split_validation
from support.errors import InputError, printable

TEST_FRACTION = 0.15

# Names of the folders of the two sets, in any case; none of them names a class.
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


class ImageFiles:
    """Images on disk that can be indexed like an array (m, 64, 64, 3) uint8.

    Only what is asked for is read, from the cache if there is one, else from the files.

    Args:
        paths: the m files.
        cache, rows: `datasets.cache.Cache`, and the rows (m,) of these images in it.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths, cache=None, rows=None):
        self.cache, self.rows = cache, rows
        self.paths = np.array([str(path) for path in paths], dtype=object)
        self.shape = (len(self.paths), *IMAGE_SHAPE)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Read one image, or those of a slice, a mask or an array of indices."""
        if self.cache is not None:
            return self.cache[self.rows[index]]
        if isinstance(index, (int, np.integer)):
            return read_image(self.paths[index], IMAGE_SHAPE[0])
        images = [read_image(path, IMAGE_SHAPE[0]) for path in self.paths[index]]
        return np.array(images, np.uint8).reshape(-1, *IMAGE_SHAPE)

    def take(self, indices, axis=0):
        """Return a subset, as NumPy's `take` does, without reading any file."""
        return ImageFiles(self.paths[indices], self.cache, None if self.cache is None else self.rows[indices])


def has_classes(folder):
    """Return whether a folder has subfolders with images: at least two, or one called `train`."""
    filled = [name for name in subfolders(folder) if images_in(pathlib.Path(folder) / name)]
    return len(filled) > 1 or any(name.lower() in TRAIN for name in filled)


def subfolders(folder):
    """Return the names of the visible subfolders, sorted; raise an InputError if the folder cannot be listed."""
    try:
        # A link to a parent folder would be a class of all images; macOS adds "__MACOSX" to its archives.
        here = os.path.join(os.path.realpath(folder), "")
        return sorted(
            name
            for name in os.listdir(folder)
            if not name.startswith(".")
            and name != "__MACOSX"
            and os.path.isdir(os.path.join(folder, name))
            and not here.startswith(os.path.join(os.path.realpath(os.path.join(folder, name)), ""))
        )
    except OSError as error:
        expected = "expected a folder that can be listed; change its permissions"
        raise InputError(f"{folder}: {expected}. Received: {error.strerror}") from None


def images_in(folder, on_error=None):
    """Return the visible files below a folder that have an image's suffix, sorted.

    `on_error` is called with the OSError of each folder that cannot be listed.
    """
    from PIL import Image

    suffixes = {*Image.registered_extensions(), ".heic", ".heif"}
    found = []
    # Links to folders are not followed: a link to a parent would never end.
    for place, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            pathlib.Path(place, name)
            for name in sorted(files)
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in suffixes
        ]
    return found


def names_sha256(folder, *parts):
    """Return the SHA-256 of the names and sizes of a folder's images, `ImageFiles`, as 64 hexadecimal digits."""
    paths = [path for part in parts for path in part.paths if os.path.isfile(path)]
    lines = sorted(f"{os.path.relpath(path, folder)} {os.path.getsize(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def load_folder(folder, fold=None, cache_dir=None):
    """Load images of your own.

    Args:
        folder: has one subfolder for each class, or `train` and `test`, each with one subfolder for each class.
        fold: "I/K": test on fold I of K, of the images in `train` or, without it, of all images.
        cache_dir: folder outside `folder` for the decoded images; None: they are decoded each time they are needed.

    Returns: train_x (`ImageFiles`), train_y (m,) int64, test_x, test_y, and the class names, a tuple of str.
    Raises InputError: fewer than two classes, too few images of one, or a class in `test` that `train` lacks.
    """
    folder = pathlib.Path(folder)
    if cache_dir is not None and pathlib.Path(cache_dir).resolve().is_relative_to(folder.resolve()):
        print(f"The images are decoded again in every epoch, because {cache_dir} lies in their folder")
        cache_dir = None
    by_name = {name.lower(): folder / name for name in subfolders(folder)}
    train = next((by_name[name] for name in TRAIN if name in by_name), folder)
    test = next((by_name[name] for name in TEST if name in by_name and train != folder), None)
    classes = subfolders(train)
    if len(classes) < 2:
        found = ", ".join(classes) or "no subfolder"
        raise InputError(f"{train} must hold a subfolder of images for each class, at least two. Received: {found}")
    train_x, train_y = _list_classes(train, classes, cache_dir)
    # One image of each class goes to validation, and one to the test set unless there is one.
    least = 2 if test else 3
    counts = np.bincount(train_y, minlength=len(classes))
    if counts.min() < least:
        few = ", ".join(f"{name} ({count})" for name, count in zip(classes, counts) if count < least)
        expected = f"Each class in {train} needs at least {least} readable images, better a few hundred"
        raise InputError(f"{expected}. Received: {few}")
    if fold:
        train_x, train_y, test_x, test_y, _ = split_fold(train_x, train_y, fold, unused=test)
    elif test:
        unknown = sorted(set(subfolders(test)) - set(classes))
        if unknown:
            raise InputError(f"{test} must hold no class that {train} lacks. Received: {', '.join(unknown)}")
        test_x, test_y = _list_classes(test, classes, cache_dir)
        if not len(test_x):
            expected = f"{test} must hold images in the subfolders {', '.join(classes)}"
            raise InputError(f"{expected}. Received: none that can be read")
    else:
        train_x, train_y, test_x, test_y = split_validation(train_x, train_y, SPLIT_SEED, TEST_FRACTION)
    return train_x, train_y, test_x, test_y, tuple(map(printable, classes))


def _list_classes(folder, classes, cache_dir):
    """Return the readable images of each class and their labels; name the others on standard error."""

    def report(fault):
        print(f"left out: {printable(fault)}", file=sys.stderr)

    def unlisted(error):
        expected = "expected a folder that can be listed; change its permissions"
        report(f"{error.filename}: {expected}. Received: {error.strerror}")

    listed = [(path, y) for y, name in enumerate(classes) for path in images_in(pathlib.Path(folder) / name, unlisted)]
    name = hashlib.sha256(os.path.abspath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cache_path = None if cache_dir is None else pathlib.Path(cache_dir, f"{name}.npy")
    paths = [path for path, _ in listed]
    cache, rows, faults = read_all(paths, lambda path: read_image(path, IMAGE_SHAPE[0]), cache_path)
    for found in filter(None, faults):
        report(found)
    readable = np.array([number for number, found in enumerate(faults) if found is None], np.int64)
    labels = np.array([listed[number][1] for number in readable], np.int64)
    return ImageFiles(paths, cache, rows).take(readable), labels
