"""The course's HDF5 schema: <part>_set_x, <part>_set_y and list_classes, where <part> is train or test."""

import contextlib
import math
import os

import h5py
import numpy as np

from basics.errors import InputError, first_line, printable
from basics.files import access_problem, describe_file
from datasets import IMAGE_SIZES
from datasets.images import is_image_shape

# Deflate, the compression that HDF5 uses, cannot shrink data by more than this factor.
MAX_COMPRESSION = 1032


def schema_error(problem, got):
    """Return an InputError about a file that does not follow the schema, with advice; arguments as for `InputError`."""
    fix = "Download the file again (python -m datasets.download), or write it as docs/own_data.md describes"
    return InputError(problem, fix, got)


def load_h5(path, part):
    """Read one file of the course's schema.

    Args:
        path: the HDF5 file. Its keys are `<part>_set_x` (m, size, size, 3) of one of IMAGE_SIZES, uint8, or other
            numbers from 0 to 255, or fractions from 0 to 1; `<part>_set_y`, integers of shape (m,), (1, m) or (m, 1);
            and `list_classes` (k,), the names of the labels 0, 1, ...: integers or strings.
        part: "train", "test" or, in a file that `datasets.pack` wrote, "validation".

    Returns:
        x (m, size, size, 3) uint8, y (m,) int64 in 0..k-1, and the class names: a tuple of str, or int64 (k,) if they
        are the labels themselves. The attribute `names` of `list_classes`, which `datasets.pack` writes, comes first.
    Raises InputError: the file cannot be read, is not HDF5, lacks a key, or its arrays do not follow the schema.
    """
    keys = f"{part}_set_x", f"{part}_set_y", "list_classes"
    try:
        if not os.path.isfile(path):
            raise OSError("not a file")
        file = h5py.File(path, "r")
    except OSError as error:
        problem, inaccessible = f"{path} must be an HDF5 file with {', '.join(keys)}", access_problem(path, error)
        if inaccessible:
            found, fix = inaccessible
            raise InputError(problem, fix, found) from None
        raise schema_error(problem, describe_file(path, error)) from None
    with _explained(path), file:
        _check_headers(file, keys, path)
        y, classes = file[keys[1]][()], file[keys[2]][()]
        x = _read_pixels(file[keys[0]], keys[0], path)
        names = file["list_classes"].attrs.get("names")
    try:
        return x, *_labels_and_classes(y, classes, names, len(x), keys, path)
    except InputError:
        raise
    except Exception as error:  # NumPy raises many types for objects and references
        problem = f"{keys[1]} and list_classes in {path} must be arrays of integers"
        raise schema_error(problem, first_line(error)) from None


@contextlib.contextmanager
def _explained(path):
    """Turn what goes wrong while a file is read into an InputError."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        fix = "Use a folder of images instead, which are read when they are needed"
        raise InputError(f"{path} does not fit into memory", fix, first_line(error)) from None
    except Exception as error:  # a single damaged byte can make h5py raise almost any type
        raise schema_error(f"{path} cannot be read to the end", describe_file(path, error)) from None


def has_part(path, part):
    """Return whether a file has images of a part beside its own, as those that `datasets.pack` writes may have."""
    try:
        with h5py.File(path, "r") as file:
            return f"{part}_set_x" in file
    except OSError:
        return False  # `load_h5` explains


def load_groups(path, part, count):
    """Return the group of each of `count` images of a part, int64, which a split keeps together; None if it has none.

    Raises InputError: they cannot be used.
    """
    key = f"{part}_set_groups"
    with _explained(path), h5py.File(path, "r") as file:
        if key not in file:
            return None
        _check_headers(file, (f"{part}_set_x", key), path)
        groups = file[key][()]
    if groups.shape != (count,) or groups.dtype.kind not in "iu":
        found = f"{groups.dtype} {groups.shape}"
        raise schema_error(f"{key} in {path} must hold an integer for each of the {count} images", found)
    return groups.astype(np.int64)


def load_none(path, part):
    """Return the images of a part that show none of the classes, as `load_h5` returns images; None if it has none.

    Raises InputError: they cannot be used.
    """
    key = f"{part}_none_x"
    with _explained(path), h5py.File(path, "r") as file:
        if key not in file:
            return None
        _check_headers(file, (key,), path)
        return _read_pixels(file[key], key, path)


def is_synthetic(path):
    """Return whether `datasets.synthetic` made the file, whatever its name and folder."""
    if not os.path.isfile(path):
        return False  # opening a pipe would wait for its writer
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("data") == "SYNTHETIC"
    except OSError:
        return False  # not HDF5: `load_h5` explains


def _check_headers(file, keys, path):
    """Raise an InputError unless the headers of the arrays follow the schema; no array is read.

    A damaged header may declare more data than memory can hold, so no array may be larger than the file allows.
    """
    for key in keys:
        link = file.get(key, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place in the file"
            raise schema_error(f"{key} in {path} must be an array", f"a link to {kind}")
        array = file.get(key)
        if not isinstance(array, h5py.Dataset):
            found = ", ".join(file) or "an empty file"
            if "keras_version" in file.attrs or "model_weights" in file or {"layers", "vars"} <= set(file):
                found = f"a Keras model with {found}"
            raise schema_error(f"{path} has no array {key}", found)
        if array.external or array.is_virtual:
            raise schema_error(f"{key} in {path} must be an array", "one whose values are in another file")
        if array.shape is None:
            raise schema_error(f"{key} in {path} must be an array", "one without values")
    images, size = file[keys[0]], os.path.getsize(path)
    if not is_image_shape(images.shape[1:]) or len(images) == 0 or images.dtype.kind not in "uif":
        sizes = f"64x64 pixels, or another multiple of {IMAGE_SIZES.step} up to {IMAGE_SIZES[-1]}"
        problem = f"{keys[0]} in {path} must hold RGB images of {sizes}, at least one: uint8 (m, 64, 64, 3)"
        raise schema_error(problem, f"{images.dtype} {images.shape}")
    declared = sum(file[key].size * file[key].dtype.itemsize for key in keys)
    if declared > MAX_COMPRESSION * size:
        found = f"{declared:,} bytes of data declared in a file of {size:,} bytes"
        raise schema_error(f"{path} declares more data than it can hold", found)
    for key in keys:
        if not file[key].id.get_storage_size():
            raise schema_error(f"{key} in {path} was declared, but never written", None)


def _read_pixels(dataset, key, path):
    """Return the images in an HDF5 dataset as uint8; print how they were converted if they had another type."""
    if dataset.dtype == np.uint8:
        return dataset[()]
    # In chunks, because float64 takes eight times as much memory.
    chunks = [slice(start, start + 256) for start in range(0, len(dataset), 256)]
    low, high = math.inf, -math.inf
    for chunk in chunks:
        values = dataset[chunk]
        finite = np.isfinite(values).all(axis=(1, 2, 3))
        if not finite.all():
            found = f"NaN or infinity, first in image {chunk.start + finite.argmin()}"
            raise schema_error(f"{key} in {path} must hold finite numbers", found)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low < 0 or high > 255:
        problem = f"{key} in {path} must hold pixels from 0 to 255, or fractions from 0 to 1"
        raise schema_error(problem, f"{dataset.dtype} from {low:g} to {high:g}")
    white = 1 if dataset.dtype.kind == "f" and high <= 1.001 else 255  # rounding may exceed 1 slightly
    x = np.empty(dataset.shape, np.uint8)
    for chunk in chunks:
        x[chunk] = np.rint(np.minimum(dataset[chunk].astype(np.float64) * (255 / white), 255))
    print(f"{key} in {path} holds {dataset.dtype} from {low:g} to {high:g}: read as 0 to {white}, converted to uint8")
    return x


def _labels_and_classes(y, classes, names, count, keys, path):
    """Check labels and classes as they were read; return labels and class names as `load_h5` does."""
    if y.shape not in {(count,), (1, count), (count, 1)}:
        problem = f"{keys[1]} in {path} must hold one label for each of the {count} images: (m,), (1, m) or (m, 1)"
        raise schema_error(problem, y.shape)
    listed = np.ravel(classes)
    texts = [_class_name(value) for value in listed]
    if None in texts or not (texts and all(texts)) or len(set(texts)) < len(texts):
        problem = f"list_classes in {path} must hold different integers, at least one, or the names of the classes"
        raise schema_error(problem, listed[:10].tolist()) from None
    numbers = np.arange(len(texts))
    classes = numbers if texts == [str(number) for number in numbers] else tuple(texts)
    y = np.ravel(y)
    if y.dtype.kind not in "iuf" or not np.isin(y, numbers).all():
        problem = f"{keys[1]} in {path} must hold integers from 0 to {len(classes) - 1}, one for each class"
        raise schema_error(problem, np.unique(y)[:10].tolist())
    if names is not None:
        texts = [_class_name(name) for name in np.ravel(names)]
        if len(set(texts)) != len(classes) or not all(texts):
            problem = f"The attribute `names` of list_classes in {path} must hold {len(classes)} different names"
            raise schema_error(problem, texts[:10])
        classes = tuple(texts)
    return y.astype(np.int64), classes


def _class_name(value):
    """Return the name of a class as text, without unprintable characters; None if it is neither integer nor string."""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, str):
        return printable(value.strip())
    if isinstance(value, np.generic) and value.dtype.kind in "biuf" and value == np.int64(value):
        return str(int(value))
    return None
