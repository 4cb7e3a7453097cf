"""A cache of decoded images on disk, so that neither the next epoch nor the next run decodes large photos again.

A cache is one .npy file of records: pixels, and a key of the file that they come from. The key changes with the size
and the modification time of that file, so only files that have changed are decoded again.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import time

import numpy as np
from tqdm import tqdm

from basics.errors import InputError
from basics.files import atomic_write
from datasets import IMAGE_SIZE

# A part of every key. Increase it when `read_image` changes, so that all caches become obsolete.
VERSION = 2
# Records of this many bytes are read at once, or computed ahead by the threads: 1,024 images of 64x64 pixels.
CHUNK_BYTES = 1024 * 12_305


def record_type(size):
    """Return the dtype of a record: an image of `size` x `size` pixels, and the key of its file."""
    return np.dtype([("key", "V16"), ("readable", np.bool_), ("pixels", np.uint8, (size, size, 3))])


class Cache:
    """The images in a cache file: `cache[rows]` is uint8 (n, size, size, 3).

    The file stays open, so that another run may replace it. Each access maps it anew, because a long-lived memmap would
    count towards the process's memory.

    Raises OSError, ValueError or what else NumPy finds: the file is missing, damaged or not a cache of images of this
    size.
    """

    def __init__(self, path, size=IMAGE_SIZE):
        self.record = record_type(size)
        self.file = open(path, "rb")
        np.lib.format.read_magic(self.file)
        self.shape, _, dtype = np.lib.format.read_array_header_1_0(self.file)
        if dtype != self.record or len(self.shape) != 1:
            raise ValueError("not a cache of images")
        self.offset = self.file.tell()
        self.row_of = {}  # key -> row of a readable image
        self.unreadable = set()  # keys of the others
        chunk = CHUNK_BYTES // self.record.itemsize
        for start in range(0, self.shape[0], chunk):
            part = self._map()[start : start + chunk]
            for row, (key, readable) in enumerate(zip(part["key"].tolist(), part["readable"].tolist()), start):
                if readable:
                    self.row_of[key] = row
                else:
                    self.unreadable.add(key)

    def __contains__(self, key):
        return key in self.row_of or key in self.unreadable

    def __getitem__(self, rows):
        return np.array(self._map()["pixels"][rows])

    def rows(self, keys):
        """Return the rows of the images with these keys, int (m,), -1 for those that are not readable."""
        return np.array([self.row_of.get(key, -1) for key in keys], np.int64)

    def _map(self):
        return np.memmap(self.file, self.record, "r", self.offset, self.shape)


def read_all(paths, read, cache_path=None, size=IMAGE_SIZE):
    """Read every image once, in threads, and cache it.

    Args:
        paths: the m image files.
        read: function of a path that returns uint8 (size, size, 3) or raises an InputError.
        cache_path: `pathlib.Path` of the cache file, or None. If it is None or cannot be written, nothing is cached.
        size: int, side of the images in pixels. Each size needs a cache file of its own.

    Returns: `Cache` or None, the rows (m,) int of the images in it or None, and a list (m,) of errors, str or None.
    """
    if cache_path is not None and paths:
        keys = [_key(path) for path in paths]
        old = open_cache(cache_path, size)
        faults = _known_faults(old, paths, keys, read)
        if faults is not None:
            return old, old.rows(keys), faults
        try:
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(cache_path)
            length = len(paths) * record_type(size).itemsize + 1_000_000
            with atomic_write(cache_path, length, fix="Choose another folder with --cache-dir") as temporary:
                faults = _write(temporary, paths, keys, read, old, size)
            cache = Cache(cache_path, size)
            return cache, cache.rows(keys), faults
        except (OSError, ValueError, InputError) as error:
            print(f"Images are not cached, so every epoch decodes them again. {error}")
    return None, None, [fault for _, fault in _in_order(paths, lambda number: _attempt(read, paths[number]), size)]


def open_cache(path, size):
    """Return the `Cache` in a file, or None if there is none that can be used."""
    try:
        return Cache(path, size)
    except Exception:  # NumPy raises many types; whatever the reason, the images are read again
        return None


def _known_faults(cache, paths, keys, read):
    """Return the errors of the images, a list of str or None; None if the cache lacks an image."""
    if cache is None or not all(key in cache for key in keys):
        return None
    faults = [None] * len(paths)
    for number, key in enumerate(keys):
        if key in cache.unreadable:
            # Read again, because the cache has no messages, and the reason may be gone.
            faults[number] = _attempt(read, paths[number])[1]
            if faults[number] is None:
                return None
    return faults


def _write(path, paths, keys, read, old, size):
    """Write the records of all images to a file; return the errors. `old`: the `Cache` so far, or None."""
    known = old.row_of if old is not None else {}

    def image(number):
        key = keys[number]
        return (old[known[key]], None) if key in known else _attempt(read, paths[number])

    faults, dtype = [], record_type(size)
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(paths),)}
        np.lib.format.write_array_header_1_0(file, header)
        for key, (pixels, fault) in zip(keys, _in_order(paths, image, size)):
            record = np.zeros(1, dtype)
            record["key"] = np.void(key)
            if fault is None:
                record["readable"], record["pixels"] = True, pixels
            file.write(record.tobytes())
            faults.append(fault)
    return faults


def _in_order(paths, function, size):
    """Yield `function(number)` for each path, computed in threads, with a progress bar."""
    # Threads, because Pillow releases Python's lock while it decodes.
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        tqdm(total=len(paths), desc="Reading images", unit="", leave=False, disable=None) as bar,  # no bar in a log
    ):
        chunk = CHUNK_BYTES // record_type(size).itemsize
        for start in range(0, len(paths), chunk):
            for result in pool.map(function, range(start, min(start + chunk, len(paths)))):
                bar.update()
                yield result


def _attempt(read, path):
    """Return an image and None, or None and the error message."""
    try:
        return read(path), None
    except InputError as error:
        return None, str(error)


def _key(path):
    """Return 16 bytes that change when the file may contain another image."""
    try:
        status = os.stat(path)
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "not there"
    text = f"{VERSION} {state} {os.path.abspath(path)}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _remove_leftovers(path):
    """Delete unfinished caches of killed runs: a run that is still writing has changed its file in the last hour."""
    for leftover in path.parent.glob(f"unfinished_*_{path.name}"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()
