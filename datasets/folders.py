"""Pictures of one's own: a folder with one sub-folder for each class.

    my_pictures/cat/*.jpg                   a seeded part of each class becomes the test set
    my_pictures/dog/*.png

    my_pictures/train/cat/*.jpg             or both sets are given
    my_pictures/test/cat/*.jpg

The convention is that of `keras.utils.image_dataset_from_directory`: the names
of the sub-folders are the classes, in alphabetical order. The pictures stay on
disk and are read when they are needed, so that memory does not grow with the
folder.
"""

import concurrent.futures
import os
import pathlib
import sys

import numpy as np

from cnn_utils import PICTURE_SHAPE, InputError, printable, split_validation
from prediction import read_image

# The share of each class that becomes the test set where none is given.
TEST_SHARE = 0.15
# The split has a seed of its own: another --seed must not make yesterday's training pictures today's test.
SPLIT_SEED = 1

# What the folders of the two sets are called, in any case: none of these is the name of a class.
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")


class PictureFiles:
    """Pictures on disk that can be indexed like an array (m, 64, 64, 3) uint8.

    Only what is asked for is read, and nothing is kept: an epoch reads every
    file anew. Where that is too slow, `python -m datasets.pack` makes the
    course's files of a folder.

    Args:
        paths: the m files.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths):
        self.paths = np.array([str(path) for path in paths], dtype=object)
        self.shape = (len(self.paths), *PICTURE_SHAPE)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Read one picture, or those of a slice, a mask or an array of numbers."""
        if isinstance(index, (int, np.integer)):
            return read_image(self.paths[index], PICTURE_SHAPE[0])
        chosen = self.paths[index]
        pictures = np.empty((len(chosen), *PICTURE_SHAPE), np.uint8)
        for number, path in enumerate(chosen):
            pictures[number] = read_image(path, PICTURE_SHAPE[0])
        return pictures

    def take(self, indices, axis=0):
        """Return a part of the pictures, as NumPy's `take` does, without reading any."""
        return PictureFiles(self.paths[indices])


def has_classes(folder):
    """Say whether a folder holds sub-folders with pictures: at least two, or one called `train`."""
    filled = [name for name in sub_folders(folder) if pictures_in(pathlib.Path(folder) / name)]
    return len(filled) > 1 or any(name.lower() in TRAIN for name in filled)


def sub_folders(folder):
    """Return the names of the visible sub-folders, sorted; raise an InputError if that may not be looked at."""
    try:
        # `os.path.isdir`: a link that leads to itself is no folder, and no error.
        # "__MACOSX" is what macOS adds to its archives. A link that leads back up would be a class of all pictures.
        above = os.path.join(os.path.realpath(folder), "")
        return sorted(name for name in os.listdir(folder)
                      if not name.startswith(".") and name != "__MACOSX" and os.path.isdir(os.path.join(folder, name))
                      and not above.startswith(os.path.join(os.path.realpath(os.path.join(folder, name)), "")))
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that may be listed; change its permissions. "
                         f"Received: {error.strerror}") from None


def pictures_in(folder, unlisted=None):
    """Return the visible files below a folder whose names end as pictures' do, sorted.

    `unlisted` is called with the OSError of each folder that may not be looked at.
    """
    from PIL import Image

    endings = set(Image.registered_extensions())
    found = []
    # Links to folders are not followed: one that leads back up would never end.
    for place, folders, files in os.walk(folder, onerror=unlisted):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [pathlib.Path(place, name) for name in sorted(files)
                  if not name.startswith(".") and pathlib.Path(name).suffix.lower() in endings]
    return found


def readable(paths):
    """Return for each path None, or why it cannot be read as a picture."""
    def fault(path):
        try:
            read_image(path, PICTURE_SHAPE[0])
        except InputError as error:
            return str(error)
        return None
    # Pillow lets other threads work while it decodes.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(fault, paths))


def list_folder(folder, classes):
    """Find the readable pictures of each class; name those that cannot be read on standard error.

    Args:
        folder: path with one sub-folder for each class.
        classes: names of the sub-folders; one that is not there has no pictures.

    Returns:
        `PictureFiles` and their labels (m,) int64.
    """
    paths, y = [], []
    for label, name in enumerate(classes):
        here = pictures_in(pathlib.Path(folder) / name, unlisted=lambda error: print(
            f"left out: {printable(str(error.filename))}: expected a folder that may be listed; change its "
            f"permissions. Received: {error.strerror}", file=sys.stderr))
        paths += here
        y += [label] * len(here)
    faults = readable(paths)
    for fault in filter(None, faults):
        print(f"left out: {printable(fault)}", file=sys.stderr)
    good = np.array([fault is None for fault in faults], bool)
    return PictureFiles([path for path, fault in zip(paths, faults) if fault is None]), np.array(y, np.int64)[good]


def load_folder(folder):
    """Load pictures of one's own.

    Args:
        folder: path with one sub-folder for each class, or with `train` and
            `test`, each with one sub-folder for each class.

    Returns:
        train_x (`PictureFiles`), train_y (m,) int64, test_x, test_y, and the
        names of the classes as an array of str.

    Raises:
        InputError: fewer than two classes, a class without pictures to train
            on, or a class in `test` that `train` lacks.
    """
    folder = pathlib.Path(folder)
    names = sub_folders(folder)
    by_name = {name.lower(): folder / name for name in names}
    train = next((by_name[name] for name in TRAIN if name in by_name), folder)
    test = next((by_name[name] for name in TEST if name in by_name), None)
    if train == folder:
        test = None
    classes = sub_folders(train)
    if len(classes) < 2:
        raise InputError(f"{train} must hold a sub-folder of pictures for each class, two at least. "
                         f"Received: {', '.join(classes) or 'no sub-folder'}")
    train_x, train_y = list_folder(train, classes)
    # Two, for one of them is set aside for validation; three where the test set comes from here, too.
    least = 2 if test else 3
    counts = np.bincount(train_y, minlength=len(classes))
    if counts.min() < least:
        few = ", ".join(f"{name} ({count})" for name, count in zip(classes, counts) if count < least)
        raise InputError(f"Each class in {train} must have {least} pictures at least that can be read, and should "
                         f"have a hundred. Received: {few}")
    if test:
        others = sorted(set(sub_folders(test)) - set(classes))
        if others:
            raise InputError(f"{test} must hold no class that {train} lacks. Received: {', '.join(others)}")
        test_x, test_y = list_folder(test, classes)
        if not len(test_x):
            raise InputError(f"{test} must hold pictures in the sub-folders {', '.join(classes)}. "
                             f"Received: none that can be read")
    else:
        train_x, train_y, test_x, test_y = split_validation(train_x, train_y, SPLIT_SEED, TEST_SHARE)
    return train_x, train_y, test_x, test_y, np.array([printable(name) for name in classes])
