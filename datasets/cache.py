"""Images decoded once and kept on disk, so that neither the next epoch nor the next run decodes large photos again.

A cache is one .npy file of records: pixels, and a key of the file that they come from. The key changes with the size
and the modification time of that file, so only what has changed is decoded again.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import time

import numpy as np
from tqdm import tqdm

from datasets.images import IMAGE_SHAPE
from support.errors import InputError
from support.files import atomic_write

# A part of every key: increase it when `read_image` changes, and all caches become obsolete.
VERSION = 1
RECORD = np.dtype([("key", "V16"), ("readable", np.bool_), ("pixels", np.uint8, IMAGE_SHAPE)])
# The number of records that are read or waited for at once: 12 MB.
CHUNK = 1024


class Cache:
    """The images in a cache file: `cache[rows]` is uint8 (n, 64, 64, 3).

    The file stays open, so that it may be replaced. Each access maps it anew: a map that stays would count as memory
    once its pages have been read.

    Raises OSError or ValueError: there is no such file, or it is not a whole cache.
    """

    def __init__(self, path):
        self.file = open(path, "rb")
        np.lib.format.read_magic(self.file)
        self.shape, _, dtype = np.lib.format.read_array_header_1_0(self.file)
        if dtype != RECORD or len(self.shape) != 1:
            raise ValueError("not a cache of images")
        self.offset = self.file.tell()
        self.rows, self.unreadable = {}, set()
        for start in range(0, *self.shape, CHUNK):
            part = self._map()[start : start + CHUNK]
            for row, (key, readable) in enumerate(zip(part["key"].tolist(), part["readable"].tolist()), start):
                if readable:
                    self.rows[key] = row
                else:
                    self.unreadable.add(key)

    def _map(self):
        return np.memmap(self.file, RECORD, "r", self.offset, self.shape)

    def __getitem__(self, rows):
        return np.array(self._map()["pixels"][rows])


def read_all(paths, read, cache_path=None):
    """Read every image once, in threads, and keep it.

    Args:
        paths: the m image files.
        read: function of a path that returns uint8 (64, 64, 3) or raises an InputError.
        cache_path: `pathlib.Path` of the cache file; None, or a place that cannot be written to: nothing is kept.

    Returns: `Cache` or None, the rows (m,) int of the images in it, and a list (m,) of errors, None for what was read.
    """
    if not paths:
        cache_path = None
    keys, old = [_key(path) for path in paths], None
    if cache_path is not None:
        with contextlib.suppress(OSError, ValueError):
            old = Cache(cache_path)
    if old is not None and old.unreadable.union(old.rows).issuperset(keys):
        # Read again, because errors are not kept, and these may be gone.
        faults = [None if key in old.rows else _attempt(read, path)[1] for path, key in zip(paths, keys)]
        if all(key in old.rows or fault for key, fault in zip(keys, faults)):
            return old, _rows(old, keys), faults
    if cache_path is not None:
        try:
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(cache_path)
            with atomic_write(cache_path, len(paths) * RECORD.itemsize + 1_000_000) as temporary:
                faults = _write(temporary, paths, keys, read, old)
            cache = Cache(cache_path)
            return cache, _rows(cache, keys), faults
        except (OSError, ValueError, InputError) as error:
            print(f"The images are decoded again in every epoch, because they cannot be kept. {error}")
    return None, None, [fault for _, fault in _in_order(paths, lambda number: _attempt(read, paths[number]))]


def _write(path, paths, keys, read, old):
    """Write the records of all images to a file; return the errors."""
    known = old.rows if old is not None else {}

    def image(number):
        key = keys[number]
        return (old[known[key]], None) if key in known else _attempt(read, paths[number])

    faults = []
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(RECORD), "fortran_order": False, "shape": (len(paths),)}
        np.lib.format.write_array_header_1_0(file, header)
        for key, (pixels, fault) in zip(keys, _in_order(paths, image)):
            record = np.zeros(1, RECORD)
            record["key"] = np.void(key)
            if fault is None:
                record["readable"], record["pixels"] = True, pixels
            file.write(record.tobytes())
            faults.append(fault)
    return faults


def _in_order(paths, function):
    """Yield `function(number)` for each path, computed in threads, with a progress bar."""
    # Threads, because Pillow releases Python's lock while it decodes.
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        tqdm(total=len(paths), desc="Reading images", unit="", leave=False, disable=None) as bar,  # no bar in a log
    ):
        for start in range(0, len(paths), CHUNK):
            for result in pool.map(function, range(start, min(start + CHUNK, len(paths)))):
                bar.update()
                yield result


def _attempt(read, path):
    """Return an image and None, or None and what is wrong with its file."""
    try:
        return read(path), None
    except InputError as error:
        return None, str(error)


def _key(path):
    """Return 16 bytes that change when the file may hold another image."""
    try:
        status = os.stat(path)
        changed = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        changed = "not there"
    text = f"{VERSION} {changed} {os.path.abspath(path)}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _rows(cache, keys):
    return np.array([cache.rows.get(key, -1) for key in keys], np.int64)


def _remove_leftovers(path):
    """Delete what a killed run left: it would have been written to within the last hour if it were still running."""
    for leftover in path.parent.glob(f"unfinished_*_{path.name}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
