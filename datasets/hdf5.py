"""The course's HDF5 schema: <part>_set_x, <part>_set_y and list_classes, where <part> is train or test."""

import math
import os

import h5py
import numpy as np

from datasets.images import IMAGE_SHAPE
from support.errors import InputError, printable
from support.files import describe_file

# Deflate, HDF5's compression, shrinks no data by more than this factor.
MAX_COMPRESSION = 1032


def schema_error(expected, received):
    """Return the InputError about a file that breaks the schema."""
    advice = "Get the file again (python -m datasets.download), or write it again as docs/own_data.md describes"
    return InputError(f"{expected}. {advice}. Received: {received}")


def load_h5(path, part):
    """Read one file of the course's schema.

    Args:
        path: the HDF5 file, with the keys `<part>_set_x` (m, 64, 64, 3), uint8, or other numbers from 0 to 255, or
            fractions from 0 to 1; `<part>_set_y`, integers of shape (m,), (1, m) or (m, 1); and `list_classes` (k,),
            integers or byte strings.
        part: "train" or "test".

    Returns:
        x (m, 64, 64, 3) uint8, y (m,) int64 in 0..k-1, and the class names, a tuple of str if the file holds names
        (`datasets.pack` writes them), else int64 (k,).
    Raises InputError: the file is not HDF5, a key is missing, or the arrays break the schema.
    """
    keys = f"{part}_set_x", f"{part}_set_y", "list_classes"
    try:
        if not os.path.isfile(path):
            raise OSError("not a file")
        file = h5py.File(path, "r")
    except OSError as error:
        expected = f"{path} must be an HDF5 file with the keys {', '.join(keys)}"
        raise schema_error(expected, describe_file(path, error)) from None
    try:
        with file:
            _check_headers(file, keys, path)
            y, classes = (file[key][()] for key in keys[1:])
            x = _read_pixels(file[keys[0]], keys[0], path)
            names = file["list_classes"].attrs.get("names")
    except InputError:
        raise
    except Exception as error:  # h5py raises nearly every type for one damaged byte or another
        raise schema_error(f"{path} cannot be read to the end", describe_file(path, error)) from None
    try:
        return x, *_labels_and_classes(y, classes, names, len(x), keys, path)
    except InputError:
        raise
    except Exception as error:  # NumPy raises many types for objects and references
        expected = f"{keys[1]} and list_classes in {path} must be integer arrays"
        raise schema_error(expected, f"{type(error).__name__}: {error}") from None


def is_synthetic(path):
    """Return whether `datasets.synthetic` made the file, whatever its name and place."""
    if not os.path.isfile(path):
        return False  # opening a pipe would wait for its writer
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("data") == "SYNTHETIC"
    except OSError:
        return False  # not HDF5: `load_h5` explains


def _check_headers(file, keys, path):
    """Raise an InputError unless the file declares what it should; no array is read.

    A damaged header may declare more data than fits into memory, so more than the file can hold is refused.
    """
    for key in keys:
        if not isinstance(file.get(key), h5py.Dataset):
            keras_model = "keras_version" in file.attrs or "model_weights" in file or {"layers", "vars"} <= set(file)
            found = ("a Keras model, with " if keras_model else "") + (", ".join(file) or "an empty file")
            raise schema_error(f"{path} must hold the arrays {', '.join(keys)}: {key} is missing", found)
        if file[key].external or file[key].is_virtual or not isinstance(file.get(key, getlink=True), h5py.HardLink):
            expected = f"{path} must hold its arrays itself: links to other files are not followed"
            raise schema_error(expected, f"{key} in another file")
        if file[key].shape is None:
            raise schema_error(f"{path} must hold the arrays {', '.join(keys)}", f"{key} without values")
    shape, dtype = file[keys[0]].shape, file[keys[0]].dtype
    if len(shape) != 4 or shape[1:] != IMAGE_SHAPE or shape[0] == 0 or dtype.kind not in "uif":
        expected = f"{keys[0]} in {path} must be images, at least one: uint8 (m, 64, 64, 3)"
        raise schema_error(expected, f"{dtype} {shape}")
    size = os.path.getsize(path)
    if sum(file[key].size * file[key].dtype.itemsize for key in keys) > MAX_COMPRESSION * size:
        found = f"{shape[0]:,} images declared in a file of {size:,} bytes"
        raise schema_error(f"{path} must hold as many images as it declares", found)
    for key in keys:
        if not file[key].id.get_storage_size():
            raise schema_error(f"{path} must hold the arrays {', '.join(keys)}", f"{key} declared, but never written")


def _read_pixels(dataset, key, path):
    """Return the images in an HDF5 dataset as uint8, and say so if they had another type."""
    if dataset.dtype == np.uint8:
        return dataset[()]
    # In chunks, because float64 takes eight times the memory.
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
        expected = f"{key} in {path} must hold pixels from 0 to 255, or fractions from 0 to 1"
        raise schema_error(expected, f"{dataset.dtype} from {low:g} to {high:g}")
    white = 1 if dataset.dtype.kind == "f" and high <= 1.001 else 255  # rounding may exceed 1 slightly
    x = np.empty(dataset.shape, np.uint8)
    for chunk in chunks:
        x[chunk] = np.rint(np.minimum(dataset[chunk].astype(np.float64) * (255 / white), 255))
    print(f"{key} in {path} holds {dataset.dtype} from {low:g} to {high:g}: read as 0 to {white}, converted to uint8")
    return x


def _labels_and_classes(y, classes, names, count, keys, path):
    """Check labels and classes as they were read; return what `load_h5` returns of them."""
    if y.size != count or y.shape not in {(count,), (1, count), (count, 1)}:
        expected = f"{keys[1]} in {path} must hold one label for each of the {count} images, as (m,), (1, m) or (m, 1)"
        raise schema_error(expected, y.shape)
    listed = np.ravel(classes)
    try:
        classes = listed.astype(np.int64)  # byte strings such as b"3" as well
        whole = listed.dtype.kind != "f" or (listed == classes).all()
        if not (whole and 0 < len(set(classes)) == len(classes)):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        expected = f"list_classes in {path} must hold different integers, at least one"
        raise schema_error(expected, listed[:10].tolist()) from None
    y = np.ravel(y)
    if y.dtype.kind not in "iuf" or not np.isin(y, np.arange(len(classes))).all():
        expected = f"{keys[1]} in {path} must hold integers from 0 to {len(classes) - 1}, one for each class"
        raise schema_error(expected, np.unique(y)[:10].tolist())
    if names is not None:
        texts = [printable(name.decode() if isinstance(name, bytes) else str(name)) for name in np.ravel(names)]
        if len(set(texts)) != len(classes) or not all(texts):
            expected = f"The names of list_classes in {path} must be {len(classes)} different names"
            raise schema_error(expected, texts[:10])
        classes = tuple(texts)
    return y.astype(np.int64), classes
