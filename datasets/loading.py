"""Load a data set: find its files, read them, and check that training and test set belong together.

Data flows one way: files -> arrays -> model -> metrics -> figures.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from basics.errors import InputError
from basics.files import sha256
from datasets import FOLDER, HAPPY, IMAGE_SIZE, NONE, SIGNS, Task
from datasets.folders import ImageFiles, load_parts, names_sha256, print_classes
from datasets.hdf5 import has_part, is_synthetic, load_groups, load_h5, load_none
from datasets.listing import count_suffixes, listed, scan
from datasets.parts import NoClasses, find_layout
from datasets.splits import print_torn_groups, split_fold, split_indices, subset_per_class
from datasets.synthetic import render_dataset, start_rendering

DATASETS = pathlib.Path(__file__).resolve().parent

# Fewer photographs than this are not mixed with SYNTHETIC images, which made the smile network worse when there were
# only a hundred photographs (docs/what_was_tried.md).
LEAST_PHOTOGRAPHS = 600

# Training images of each class in a dry run; it tests on half as many.
DRY_RUN_IMAGES = 8

VALIDATION_FRACTION = 0.1

# With fewer test images of a class, each is worth more than five points of its accuracy.
FEW_TEST_IMAGES = 20


class Source(NamedTuple):
    """Where a data set comes from: two .h5 files, or a folder of your own images as both `train` and `test`."""

    kind: str  # "real", "synthetic" or "folder"
    train: pathlib.Path
    test: pathlib.Path
    note: str = ""

    def __str__(self):
        if self.kind == "synthetic":
            return f"Data: SYNTHETIC images, not photographs, from {self.train.parent}{self.note}"
        if self.kind == "folder":
            return f"Data: your own images, from {self.train}"
        return f"Data: real, {self.train} and {self.test.name}"


class Dataset(NamedTuple):
    """A data set: images (m, size, size, 3) uint8 RGB 0-255, arrays or `ImageFiles`; labels (m,) int64."""

    task: Task
    train_x: Any
    train_y: np.ndarray
    test_x: Any
    test_y: np.ndarray
    class_names: tuple
    source: Source
    hashes: dict  # file name -> SHA-256; for a folder, of the names and sizes of its images
    test_names: Any = None  # (t,), the files of the test images, or their indices in the .h5 file
    validation_x: Any = None  # images and labels that came for validation; None: training images are split off for it
    validation_y: Any = None
    groups: Any = None  # int (m,), which training images a split keeps together; None: each stands alone
    none_x: Any = None  # training images that show none of the classes; None: there are none
    test_none_x: Any = None  # the same of the test images

    @property
    def kind(self):
        return self.source.kind

    @property
    def image_size(self):
        """The side of the images in pixels."""
        return self.train_x.shape[1]

    @property
    def shows_task(self):
        """Whether the classes are those of the task, so that its SYNTHETIC images show them too."""
        return tuple(self.class_names) == self.task.class_names

    def split_validation(self, seed):
        """Return train_x, train_y, validation_x and validation_y.

        The validation images are those that came with the data, or else a tenth of each class of the training images.
        These are chosen by the seed, and groups of them stay together. Training images that show none of the k classes
        come last and have the label k.
        """
        if self.validation_x is not None:
            return *self._with_none(self.train_x, self.train_y), self.validation_x, self.validation_y
        train, validation = split_indices(self.train_y, seed, VALIDATION_FRACTION, self.groups)
        print_torn_groups(self.groups, train, validation, "validation")
        x, y = self.train_x, self.train_y
        train_x, train_y = self._with_none(x.take(train, axis=0), y[train])
        return train_x, train_y, x.take(validation, axis=0), y[validation]

    def training_groups(self, seed):
        """Return the groups of the training images that `split_validation` returns, int (m,); None if there are none.

        Each image that shows none of the classes is a group of its own.
        """
        if self.groups is None:
            return None
        groups = self.groups
        if self.validation_x is None:
            groups = groups[split_indices(self.train_y, seed, VALIDATION_FRACTION, groups)[0]]
        none = 0 if self.none_x is None else len(self.none_x)
        return np.append(groups, groups.max() + 1 + np.arange(none))

    def _with_none(self, x, y):
        """Return training images and labels with those that show none of the classes."""
        if self.none_x is None:
            return x, y
        x = x.join(self.none_x) if isinstance(x, ImageFiles) else np.concatenate([x, self.none_x])
        return x, np.append(y, np.full(len(self.none_x), len(self.class_names)))


def load_happy_dataset(
    data="auto", data_dir=None, dry_run=False, fold=None, cache_dir=None, group_by=None, none=None, image_size=None
):
    """Load Happy House: is the person smiling?

    Args:
        data: "real": the photographs, which must be there; "synthetic": SYNTHETIC images, rendered if necessary;
            "auto": the photographs if both files are there; SYNTHETIC images if neither is and `data_dir` is None.
        data_dir: folder with two .h5 files, or with subfolders of your own images; None: the folder of this module.
        dry_run: bool, load only a few images of each class.
        fold: "I/K": test on fold I of K of the training set and train on the others; the test set is not used.
        cache_dir: folder for decoded copies of your own images; None: they are not kept.
        group_by: what makes a group of your own images, which a split keeps together, see `datasets.groups`; None:
            near-duplicates.
        none: the subfolder of your own images that show none of the classes; None: `none`, if it is there.
        image_size: int, the side of the images in pixels; None: 64, or that of the .h5 files.

    Returns: `Dataset`; label 0 = not smiling, 1 = smiling.
    Raises InputError: a file is missing or cannot be used.
    """
    return load_dataset(HAPPY, data, data_dir, dry_run, fold, cache_dir, group_by, none, image_size)


def load_signs_dataset(
    data="auto", data_dir=None, dry_run=False, fold=None, cache_dir=None, group_by=None, none=None, image_size=None
):
    """Load SIGNS: which digit, 0 to 5, does the hand show? Arguments, result and errors: see `load_happy_dataset`."""
    return load_dataset(SIGNS, data, data_dir, dry_run, fold, cache_dir, group_by, none, image_size)


def mix_synthetic(data, x, y, *, wanted=True, copies=1, many=False, dry_run=False):
    """Mix the SYNTHETIC training images of a task into its photographs, and print how many there are.

    Nothing is mixed unless these are at least `LEAST_PHOTOGRAPHS` photographs of the task's own classes and of 64x64
    pixels.

    Args:
        data: `Dataset`.
        x, y: the part of it to train on, uint8 array (m, size, size, 3) and labels (m,).
        wanted: bool; False mixes nothing.
        copies: int, how many times each photograph is used.
        many: bool; mix in about five times as many, for a network that starts from random weights.
        dry_run: bool; True mixes in only a few SYNTHETIC images, however few photographs there are.

    Returns: images, labels, and the number of SYNTHETIC images among them. The label k, one past the last of the k
        classes, marks images that show none of the classes.
    """
    enough = dry_run or len(x) >= LEAST_PHOTOGRAPHS
    if not (wanted and enough and data.kind == "real" and data.shows_task):
        return x, y, 0
    if data.image_size != IMAGE_SIZE:
        print(f"\nNo SYNTHETIC images are mixed in: they have {IMAGE_SIZE}x{IMAGE_SIZE} pixels")
        return x, y, 0
    synthetic_x, synthetic_y = load_pretraining(data.task, dry_run, part="more" if many else "train")
    times = "" if copies == 1 else f", each of them used {copies} times"
    print(f"\nMixed {len(synthetic_x):,} SYNTHETIC images with the {len(x):,} photographs{times} (--no-mix-synthetic)")
    mixed_x = np.concatenate([x] * copies + [synthetic_x])
    mixed_y = np.concatenate([y] * copies + [synthetic_y])
    return mixed_x, mixed_y, len(synthetic_x)


def load_pretraining(task, dry_run=False, part="pretrain"):
    """Return the images and labels of a task's wide SYNTHETIC set, for pre-training; labels as in `mix_synthetic`.

    Args:
        task: `datasets.Task`.
        dry_run: bool, load only a few images of each class.
        part: "pretrain", or, of hands only, "more"; "train" has the fewest. `mix_synthetic` mixes in these two.
    """
    if dry_run:
        part = "train"
    (path,) = render_dataset(task.wide, parts=(part,), few=DRY_RUN_IMAGES if dry_run else None)
    x, y, _ = load_h5(path, part)
    return subset_per_class(x, y, DRY_RUN_IMAGES if dry_run else None)


def is_synthetic_set(task, data="auto", data_dir=None):
    """Return whether the data set of a task is SYNTHETIC, and whether the scripts render it where it is missing.

    For `data` and `data_dir` see `load_happy_dataset`.
    """
    folder = DATASETS if data_dir is None else pathlib.Path(data_dir)
    files = [folder / f"{part}_{task.name}.h5" for part in ("train", "test")]
    there = [path for path in files if os.path.lexists(path)]
    rendered = data == "synthetic" or (data == "auto" and data_dir is None and not there)
    return rendered or any(map(is_synthetic, there)), rendered


def render_in_background(task, dry_run=False):
    """Begin to render the SYNTHETIC set of a task, while Keras starts."""
    start_rendering(task.name, few=DRY_RUN_IMAGES if dry_run else None)


def find_data(task, data="auto", data_dir=None, dry_run=False, group_by=None):
    """Return the `Source` of a task's data set; render SYNTHETIC files if they are needed.

    For the arguments and the errors see `load_happy_dataset`.
    """
    folder = DATASETS if data_dir is None else pathlib.Path(data_dir)
    few = DRY_RUN_IMAGES if dry_run else None
    if data == "synthetic":
        return Source("synthetic", *render_dataset(task.name, few=few))
    train, test = f"train_{task.name}.h5", f"test_{task.name}.h5"
    paths = [folder / train, folder / test]
    missing = [path.name for path in paths if not os.path.lexists(path)]
    if not missing:
        kind = "synthetic" if any(map(is_synthetic, paths)) else "real"
        if data == "real" and kind == "synthetic":
            fix = "Drop --data real, or name a folder of photographs with --data-dir"
            raise InputError(f"The images in {folder} are SYNTHETIC", fix)
        return Source(kind, *paths)
    if data_dir is not None and len(missing) == 2:
        root = scan(folder, on_error=lambda error: None)  # `load_parts` names them
        try:
            find_layout(root, subfolders=group_by == FOLDER)
        except NoClasses as error:
            raise InputError(error.problem, _what_it_must_hold(root, train, test)) from None
        return Source("folder", folder, folder)
    if data == "real" or len(missing) == 1:
        verb = "is" if len(missing) == 1 else "are"
        place = "" if data_dir is None else f" --data-dir {folder}"
        fix = f"Run `python -m datasets.download {task.name}{place}`, or use --data synthetic"
        raise InputError(f"{' and '.join(missing)} {verb} missing in {folder}", fix)
    note = f", because {train} and {test} are not in {folder}"
    return Source("synthetic", *render_dataset(task.name, few=few), note)


def _what_it_must_hold(root, train, test):
    """Return what to put into a folder, a `Folder`, that has neither .h5 files of the task nor classes."""
    fix = f"It must hold {train} and {test}, or one subfolder of images for each class, at least two"
    others = [path for folder in root.walk() for path in folder.others]
    files = [path.name for path in others if path.suffix.lower() in (".h5", ".hdf5")]
    found = ""
    if files:
        found = f"; there are only {listed(files)}"
    elif others and not root.count:
        found = f"; there are only {count_suffixes(others)} files"
    return f"{fix}{found}. For SYNTHETIC images, use --data synthetic"


def check_image_size(wanted, size, place):
    """Raise an InputError if --image-size, int or None, asks for images of another size than those in a file have."""
    if wanted not in (None, size):
        problem = f"--image-size {wanted}: the images in {place} have {size}x{size} pixels"
        fix = "Drop it: it is for folders of images, and for datasets.pack, which makes .h5 files of them"
        raise InputError(problem, fix)


def load_dataset(
    task,
    data="auto",
    data_dir=None,
    dry_run=False,
    fold=None,
    cache_dir=None,
    group_by=None,
    none=None,
    image_size=None,
):
    """Load the data set of a task; arguments, result and errors are those of `load_happy_dataset`."""
    source = find_data(task, data, data_dir, dry_run, group_by)
    print(source)
    class_names = task.class_names
    if source.kind == "folder":
        own = load_parts(source.train, fold, cache_dir, group_by, none, image_size or IMAGE_SIZE)
        train_x, train_y, test_x, test_y, class_names, validation_x, validation_y, groups, none_x, test_none_x = own
        parts = [x for x in (train_x, validation_x, test_x, none_x, test_none_x) if x is not None]
        hashes = {source.train.name: names_sha256(source.train, *parts)}
        test_names = test_x.paths
    else:
        if group_by not in (None, NONE):
            raise InputError(f"--group-by {group_by} is for folders of your own images", "Drop it", source.train.name)
        if none:
            raise InputError(f"--none {none} is for folders of your own images", "Drop it", source.train.name)
        train_x, train_y, classes = load_h5(source.train, "train")
        test_x, test_y, test_classes = load_h5(source.test, "test")
        validation_x = validation_y = None
        if has_part(source.train, "validation"):
            validation_x, validation_y, _ = load_h5(source.train, "validation")
        groups = load_groups(source.train, "train", len(train_x))
        none_x, test_none_x = load_none(source.train, "train"), load_none(source.test, "test")
        _check_classes(task, source, classes, test_classes, train_y, test_y, validation_y)
        for place, images in ((source.train, (validation_x, none_x)), (source.test, (test_x, test_none_x))):
            _check_sizes(train_x, images, source.train, place)
        check_image_size(image_size, train_x.shape[1], source.train)
        if isinstance(classes, tuple):
            class_names = classes
        hashes = {path.name: sha256(path) for path in (source.train, source.test)}
        test_names = np.arange(len(test_x))
        if fold:
            split = split_fold(train_x, train_y, fold, source.test, groups)
            train_x, train_y, test_x, test_y, test_names = split
            groups = None if groups is None else np.delete(groups, test_names)
            test_none_x = None  # of the test file
    none_parts = {"train": none_x, "test": test_none_x}
    print_classes(class_names, none_parts, train=train_y, validation=validation_y, test=test_y)
    if dry_run:
        train_x, train_y = subset_per_class(train_x, train_y, DRY_RUN_IMAGES)
        test_names, _ = subset_per_class(test_names, test_y, DRY_RUN_IMAGES // 2)
        test_x, test_y = subset_per_class(test_x, test_y, DRY_RUN_IMAGES // 2)
        groups = None
        if validation_x is not None:
            validation_x, validation_y = subset_per_class(validation_x, validation_y, DRY_RUN_IMAGES // 2)
        none_x = None if none_x is None else none_x.take(np.arange(min(DRY_RUN_IMAGES, len(none_x))), axis=0)
        if test_none_x is not None:
            test_none_x = test_none_x.take(np.arange(min(DRY_RUN_IMAGES // 2, len(test_none_x))), axis=0)
    print_shapes("As loaded", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    if not dry_run and np.bincount(test_y, minlength=len(class_names)).min() < FEW_TEST_IMAGES:
        print(f"Some classes have fewer than {FEW_TEST_IMAGES} test images: the test accuracy is only a rough estimate")
    return Dataset(
        task,
        train_x,
        train_y,
        test_x,
        test_y,
        class_names,
        source,
        hashes,
        test_names,
        validation_x,
        validation_y,
        groups,
        none_x,
        test_none_x,
    )


def _check_sizes(train_x, others, train, place):
    """Raise an InputError unless all images, arrays or None, have the size of the training images."""
    for x in others:
        if x is not None and x.shape[1:] != train_x.shape[1:]:
            sizes = [f"{images.shape[1]}x{images.shape[2]}" for images in (train_x, x)]
            problem = f"The images in {train} have {sizes[0]} pixels, and images in {place} {sizes[1]}"
            raise InputError(problem, "Pack both again with the same --image-size")


def _check_classes(task, source, classes, test_classes, train_y, test_y, validation_y=None):
    """Raise an InputError unless both files list the same classes and each class can be learned."""
    names, test_names = list(map(str, classes)), list(map(str, test_classes))
    if names != test_names:
        fix = "Use a training and a test file of the same data set"
        found = f"{', '.join(names)} and {', '.join(test_names)}"
        raise InputError(f"{source.train} and {source.test} list different classes", fix, found)
    if not isinstance(classes, tuple) and len(classes) != len(task.class_names):
        problem = f"{source.train} must list {len(task.class_names)} classes, or give its own classes names"
        fix = f"Use the files of {task.name}, or write the names as docs/own_data.md describes"
        raise InputError(problem, fix, classes.tolist())
    counts = np.bincount(train_y, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        problem = f"{source.train} needs images of at least two classes"
        found = f"{len(train_y)} images of class {names[train_y[0]]} only"
        raise InputError(problem, "Add images of another class", found)
    if 1 in counts:
        few = ", ".join(names[label] for label in np.flatnonzero(counts == 1))
        problem = f"{source.train} has only one image of class {few}"
        raise InputError(problem, "Add at least one more: one image of each class is used for validation")
    for which, y in ((f"{source.test} has images", test_y), (f"{source.train} has validation images", validation_y)):
        unknown = [] if y is None else [names[label] for label in np.setdiff1d(y, train_y)]
        if unknown:
            problem = f"{which} of class {', '.join(unknown)}, but {source.train.name} has none to train on"
            raise InputError(problem, "Add training images of the class, or remove the others")


def print_shapes(title, **arrays):
    """Print the name, shape, type and range of each array. Images on disk are not read for this."""
    print(f"\n{title}")
    for name, array in arrays.items():
        values = f"{array.min():g} to {array.max():g}" if isinstance(array, np.ndarray) else "on disk"
        print(f"  {name:<15} {str(array.shape):<20} {array.dtype!s:<8} {values}")
