"""Load your own images: a folder with one subfolder for each class.

    my_images/cat/*.jpg              a random part of each class becomes the test set, always the same one
    my_images/dog/*.png

    my_images/train/cat/*.jpg        or you provide the parts: training, validation (or none) and test
    my_images/val/cat/*.jpg
    my_images/test/cat/*.jpg

    my_images/none/*.jpg             images that show none of the classes, to be unsure about

As in `keras.utils.image_dataset_from_directory`, the names of the subfolders are the classes, in alphabetical order.
The images stay on disk and are read when needed, so memory does not grow with the folder. A cache stores them decoded.
"""

import hashlib
import os
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from basics.errors import InputError, printable
from basics.text import display_width, pad
from datasets import FOLDER, IMAGE_SIZE, NEAR_DUPLICATES, NO_CLASS
from datasets.cache import read_all
from datasets.groups import MOST_COMPARED, find_groups
from datasets.images import read_image
from datasets.listing import images_in, left_out, listed, other_files, scan, unlisted
from datasets.parts import NoClasses, find_layout, same_name
from datasets.splits import SPLIT_SEED, print_torn_groups, split_fold, split_indices

__all__ = ["ImageFiles", "OwnImages", "images_in", "load_folder", "load_parts", "names_sha256", "print_classes"]

TEST_FRACTION = 0.15


class ImageFiles:
    """Images on disk that can be indexed like an array (m, size, size, 3) uint8.

    Only the images that are asked for are read, from the cache if there is one, otherwise from the files.

    Args:
        paths: the m files.
        cache, rows: `datasets.cache.Cache` or None, and the rows (m,) of these images in it.
        size: int, side of the images in pixels.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths, cache=None, rows=None, size=IMAGE_SIZE):
        self.cache, self.rows = cache, rows
        self.paths = np.array([str(path) for path in paths], dtype=object)
        self.shape = (len(self.paths), size, size, 3)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Read one image, or those of a slice, a mask or an array of indices."""
        if self.cache is not None:
            return self.cache[self.rows[index]]
        if isinstance(index, (int, np.integer)):
            return read_image(self.paths[index], self.shape[1])
        images = [read_image(path, self.shape[1]) for path in self.paths[index]]
        return np.array(images, np.uint8).reshape(-1, *self.shape[1:])

    def take(self, indices, axis=0):
        """Return a subset, as NumPy's `take` does, without reading any file."""
        rows = None if self.cache is None else self.rows[indices]
        return ImageFiles(self.paths[indices], self.cache, rows, self.shape[1])

    def join(self, other):
        """Return these images and those of `other`, which has the same cache and size."""
        rows = None if self.cache is None else np.concatenate([self.rows, other.rows])
        return ImageFiles(np.concatenate([self.paths, other.paths]), self.cache, rows, self.shape[1])


class OwnImages(NamedTuple):
    """The images of a folder: `ImageFiles` (m, size, size, 3), and labels (m,) int64."""

    train_x: ImageFiles
    train_y: np.ndarray
    test_x: ImageFiles
    test_y: np.ndarray
    class_names: tuple  # of str
    validation_x: Any = None  # `ImageFiles`; None: there is no folder of them
    validation_y: Any = None
    groups: Any = None  # int (m,), of the training images; None: each image stands alone
    none_x: Any = None  # training images that show none of the classes, `ImageFiles`; None: there are none
    test_none_x: Any = None  # the same of the test images


class _Read(NamedTuple):
    """The readable images of a part."""

    x: ImageFiles
    y: np.ndarray  # (m,) int64
    folders: np.ndarray  # (m,) object, the folder of the class that each is in
    folds: np.ndarray  # (m,) int, 0 if there are no folds
    pixels: Any  # uint8 (m, size, size, 3) if they are needed again, and not cached; else x


def names_sha256(folder, *parts):
    """Return the SHA-256 of the names and sizes of a folder's images, `ImageFiles`, as 64 hexadecimal digits."""
    paths = [path for part in parts for path in part.paths if os.path.isfile(path)]
    lines = sorted(f"{os.path.relpath(path, folder)} {os.path.getsize(path)}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def load_folder(folder, fold=None, cache_dir=None):
    """Return training images, their labels, test images, their labels and the class names; see `load_parts`."""
    return load_parts(folder, fold, cache_dir)[:5]


def load_parts(folder, fold=None, cache_dir=None, group_by=None, none=None, size=IMAGE_SIZE):
    """Load your own images, and print what is used and what is left out.

    Args:
        folder: has one subfolder for each class, or folders for training, validation and test with one for each class,
            or folds; see `datasets.parts`.
        fold: "I/K": test on fold I of K, of the images in `train` or, if there is no `train`, of all images.
        cache_dir: folder outside `folder` for the decoded images; None: they are decoded each time they are needed.
        group_by: what makes a group of images, which a split keeps together, see `datasets.groups.find_groups`; None:
            near-duplicates.
        none: the class, in upper or lower case, whose images show none of the others; None: NO_CLASS, if it is there.
        size: int, one of IMAGE_SIZES, the side of the images in pixels.

    Returns: `OwnImages`.
    Raises InputError: it is not clear what is what, there are fewer than two classes or too few images of one, or
        `test` has a class that `train` lacks.
    """
    folder = pathlib.Path(folder)
    if cache_dir is not None and pathlib.Path(cache_dir).resolve().is_relative_to(folder.resolve()):
        print(f"Images are not cached, because {cache_dir} lies in their folder: every epoch decodes them again")
        cache_dir = None
    layout = _find_parts(folder, fold, group_by)
    sources = layout.folds or [layout.train]
    names = sorted({name for part in sources for name in part.classes})
    train_path = sources[0].path if len(sources) == 1 else folder
    empty = _names_of_none(names, none, train_path)
    names = [name for name in names if name not in empty] + empty
    classes = len(names) - len(empty)
    if classes < 2:
        problem = f"{train_path} must hold a subfolder of images for each class, at least two"
        fix = f"Images in {empty[0]} show none of the classes: if it is one, give it another name" if empty else None
        raise InputError(problem, fix, ", ".join(names))
    if empty:
        print(f"Images in {listed(empty)} show none of the classes: the network learns to be unsure about them")
    grouped = fold or not (layout.test and layout.validation)
    group_by = group_by or NEAR_DUPLICATES if grouped else group_by
    keep = grouped and group_by == NEAR_DUPLICATES
    train = _read(sources, names, cache_dir, train_path, "training", size, keep)
    _check_counts(train.y, names, train_path, least=2 if layout.test else 3)
    class_names = tuple(map(printable, names[:classes]))
    validation_x = validation_y = groups = None
    if layout.validation:
        read = _read_other(layout.validation, names, cache_dir, train_path, "validation", size)
        validation_x, validation_y, unused = _without_none(*read, classes)
        if unused is not None:
            print(f"Left out: {len(unused):,} validation images that show none of the classes")
    if grouped:
        groups, line = find_groups(train.pixels, train.x.paths, train.y, class_names, train.folders, group_by)
        if line:
            print(line)
    elif group_by:
        print(f"--group-by {group_by} changes nothing: there are folders for training, validation and test")
    x, y = train.x, train.y
    if fold:
        folds = train.folds if layout.folds else None
        _check_fold(folder, fold, layout, y, names, folds)
        ignored = layout.test and layout.test.path
        train_x, train_y, test_x, test_y, test = split_fold(x, y, fold, ignored, groups, folds)
        groups = None if groups is None else np.delete(groups, test)
    elif layout.test:
        train_x, train_y = x, y
        test_x, test_y = _read_other(layout.test, names, cache_dir, train_path, "test", size)
    else:
        kept, test = split_indices(y, SPLIT_SEED, TEST_FRACTION, groups)
        print_torn_groups(groups, kept, test, "testing")
        train_x, train_y, test_x, test_y = x.take(kept), y[kept], x.take(test), y[test]
        groups = None if groups is None else groups[kept]
    groups = None if groups is None else groups[train_y < classes]
    train_x, train_y, none_x = _without_none(train_x, train_y, classes)
    test_x, test_y, test_none_x = _without_none(test_x, test_y, classes)
    rest = validation_x, validation_y, groups, none_x, test_none_x
    return OwnImages(train_x, train_y, test_x, test_y, class_names, *rest)


def _names_of_none(names, wanted, path):
    """Return which of the names stand for none of the classes: the wanted one, or NO_CLASS, in upper or lower case."""
    found = [name for name in names if same_name(name) == same_name(wanted or NO_CLASS)]
    if wanted and not found:
        problem = f"--none {wanted}: {path} has no folder of this name"
        raise InputError(problem, "Name one of its folders", listed(names))
    return found


def _without_none(x, y, classes):
    """Return the images of the classes, their labels, and the images of none of them or None."""
    none = np.flatnonzero(y >= classes)
    shown = np.flatnonzero(y < classes)
    return x.take(shown), y[shown], x.take(none) if len(none) else None


def _find_parts(folder, fold, group_by):
    """Return the `datasets.parts.Layout` of a folder, and print what is used; an InputError if that is not clear."""
    root = scan(folder, lambda error: _print_left_out(unlisted(error.filename, error)))
    try:
        layout = find_layout(root, subfolders=group_by == FOLDER)
    except NoClasses as error:
        problem = f"{folder} must hold a subfolder of images for each class, at least two"
        raise InputError(problem, got=", ".join(error.names) or "no subfolder") from None
    _print_parts(folder, root, layout, fold)
    if layout.folds and not fold and not layout.test:
        count = len(layout.folds)
        fix = f"Train with --folds {count}, which tests on each of them, or call one of them test"
        raise InputError(f"{folder} has {count} folds, but no test images", fix)
    return layout


def _check_counts(y, names, path, least):
    """Raise an InputError if a class has too few images: one is for validation and, without a test set, one for it."""
    counts = np.bincount(y, minlength=len(names))
    few = ", ".join(f"{name} ({count})" for name, count in zip(names, counts) if count < least)
    if few:
        problem = f"Too few readable images in {path}: {few}"
        raise InputError(problem, f"Each class needs at least {least}, better a few hundred")


def _print_parts(folder, root, layout, fold):
    """Print which folder is which part, and what is left out; the latter on standard error."""
    parts = {"training": layout.train, "validation": layout.validation, "test": layout.test}
    parts = {role: part.path for role, part in parts.items() if part}
    parts.update((f"fold {number}", part.path) for number, part in enumerate(layout.folds, 1))
    if list(parts.values()) != [folder]:
        print("Parts: " + ", ".join(f"{role} {os.path.relpath(path, folder)}" for role, path in parts.items()))
    if not (layout.test or layout.folds or fold):
        print(f"Test set: {TEST_FRACTION:.0%} of the training images of each class, always the same ones")
    for note in layout.left_out + left_out([root]):
        _print_left_out(note)
    others = other_files([root])
    if others:
        print(f"Other files, which are no images: {others}")


def _print_left_out(reason):
    print(f"left out: {printable(str(reason))}", file=sys.stderr)


def _check_fold(folder, fold, layout, y, names, folds):
    """Raise an InputError if the folds of a folder do not fit the option, or one of them holds most of a class."""
    if folds is None:
        return
    number, count = map(int, fold.split("/"))
    if count != len(layout.folds):
        raise InputError(f"{folder} has {len(layout.folds)} folds of its own", f"Use --folds {len(layout.folds)}", fold)
    counts = np.bincount(y[folds != number - 1], minlength=len(names))
    few = ", ".join(f"{name} ({count})" for name, count in zip(names, counts) if count < 2)
    if few:
        problem = f"Without fold {number} of {folder}, too few images are left to train on: {few}"
        raise InputError(problem, "Each class needs at least 2 there")


def _read_other(part, names, cache_dir, train_path, role, size):
    """Return the images and labels of the validation or the test part; `names` are the classes of the training part."""
    known = set(names)
    by_comparable = {same_name(name): name for name in names}
    classes = {}
    for name, folder in part.classes.items():
        alike = name if name in known else by_comparable.get(same_name(name), name)
        classes[name if alike in classes else alike] = folder
    unknown = sorted(set(classes) - known)
    if unknown:
        problem = f"{part.path} has classes that {train_path} lacks: {', '.join(unknown)}"
        raise InputError(problem, "Add training images of them, or remove them")
    read = _read([part._replace(classes=classes)], names, cache_dir, part.path, role, size)
    if not len(read.x):
        problem = f"{part.path} has no readable images of the classes {', '.join(names)}"
        raise InputError(problem, "Add some, or remove the folder to hold back a part of the training images")
    for name in names:
        if name not in classes and same_name(name) != same_name(NO_CLASS):
            place = part.path / name
            problem = "has no images" if place.is_dir() else "does not exist"
            print(f"no {role} images of one class: {printable(str(place))} {problem}", file=sys.stderr)
    return read.x, read.y


def _read(parts, names, cache_dir, path, role, size, keep=False):
    """Return the readable images of a part or of several folds; name the others on standard error.

    Args:
        parts: list of `datasets.parts.Part`.
        names: the class names, in the order of their labels.
        cache_dir: as for `load_parts`.
        path: the folder that the cache file is named after.
        role: "training", "validation" or "test".
        size: int, side of the images in pixels.
        keep: bool, whether the images are needed once more, and should not be decoded again for that.
    """
    paths, labels, folders, folds = [], [], [], []
    for label, name in enumerate(names):
        for number, part in enumerate(parts):
            if name in part.classes:
                found = part.classes[name].paths()
                paths += found
                labels += [label] * len(found)
                folders += [_innermost(part.classes[name])] * len(found)
                folds += [number] * len(found)
    cache_path = None
    if cache_dir is not None:
        name = hashlib.sha256(os.path.abspath(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        cache_path = pathlib.Path(cache_dir, f"{name}.npy" if size == IMAGE_SIZE else f"{name}_{size}.npy")
    kept = {}

    def read(path):
        image = read_image(path, size)
        if keep and len(paths) <= MOST_COMPARED:
            kept[path] = image
        return image

    cache, rows, faults = read_all(paths, read, cache_path, size)
    for fault in filter(None, faults):
        _print_left_out(fault)
    readable = np.array([number for number, fault in enumerate(faults) if fault is None], np.int64)
    if len(readable) < len(paths):
        print(f"Left out: {len(paths) - len(readable):,} of {len(paths):,} {role} images, which cannot be read")
    x = ImageFiles(paths, cache, rows, size).take(readable)
    y, folders = np.array(labels, np.int64)[readable], np.array(folders, object)[readable]
    pixels = x
    if kept and cache is None:
        pixels = np.array([kept[paths[number]] for number in readable], np.uint8)
    return _Read(x, y, folders, np.array(folds, np.int64)[readable], pixels)


def _innermost(folder):
    """Return the path of a class's `Folder`, or that of the one of the same name which holds all of its images."""
    while not folder.images and [inner.name for inner in folder.filled] == [folder.name]:
        folder = folder.filled[0]
    return str(folder.path)


def print_classes(class_names, none=None, **parts):
    """Print a line for each class: its name, and the number of its images in each part, labels (m,) or None.

    `none` is a dict from parts to their images that show none of the classes, or None.
    """
    parts = {name: np.bincount(y, minlength=len(class_names)) for name, y in parts.items() if y is not None}
    none = {name: len(x) for name, x in (none or {}).items() if x is not None}
    if none:
        class_names = (*class_names, "none of these")
        parts = {name: np.append(counts, none.get(name, 0)) for name, counts in parts.items()}
    width = max(map(display_width, ["class", *class_names]))
    print(f"\n{pad('class', width)}" + "".join(f"  {name:>10}" for name in parts))
    for label, name in enumerate(class_names):
        print(pad(name, width) + "".join(f"  {counts[label]:>10,}" for counts in parts.values()))
