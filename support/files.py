"""Files: written whole or not at all, hashed, and described in words when they are not what was expected."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil

from support.errors import InputError, printable


@contextlib.contextmanager
def atomic_write(path, min_free_bytes=0):
    """Yield a temporary path that is renamed to `path` on success; on failure `path` stays as it was.

    Args:
        path: the file or folder to write.
        min_free_bytes: int; nothing is started unless the disk has this much room.

    Raises InputError: it cannot be written.
    """
    path = pathlib.Path(path)
    # The suffix stays last because many writers choose the format by it.
    temporary = path.with_name(f"unfinished_{os.getpid()}_{path.name}")
    try:
        if min_free_bytes > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield temporary
        if path.is_dir() and temporary.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or ["no reason given"])[0][:200]
        expected = "expected a folder that can be written to, with enough room; choose another with --output-dir"
        raise InputError(f"{path} cannot be saved: {expected}. Received: {reason}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # if it is a folder
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(value, path):
    """Save a dict as indented JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"Saved {path}")


@contextlib.contextmanager
def csv_table(path):
    """Yield a function that writes a list as a row of a CSV file, at once, so that little is lost in a crash.

    Unprintable characters are escaped. A text that a spreadsheet would run as a formula begins with an apostrophe.
    """

    def cell(value):
        text = printable(str(value))
        number = isinstance(value, int | float) or re.fullmatch(r"[+-]?[\d.]+", text)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not number else text

    with atomic_write(path) as temporary, open(temporary, "w", buffering=1, encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        yield lambda row: writer.writerow([cell(value) for value in row])
    print(f"Saved {path}")


def read_json(path):
    """Return the JSON object in the file, or None if there is none that can be read."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path):
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_type(head):
    """Name the type of a data file from its first 64 bytes or more."""
    if not head:
        return "an empty file"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page"
    return f"not an HDF5 file: it begins with {head[:24]!r}"


def describe_file(path, error):
    """Describe in a few words a file that cannot be read as HDF5; `error` is what h5py raised."""
    path = pathlib.Path(path)
    if path.is_dir():
        return "a folder"
    if path.is_symlink() and not path.exists():
        return "a broken link"
    if path.exists() and not path.is_file():
        return "neither a file nor a folder"
    if "unable to lock" in str(error):
        return "a file that another program has open for writing; close that program first"
    try:
        with open(path, "rb") as file:
            kind = file_type(file.read(64))
    except OSError as reason:
        return reason.strerror
    if kind == "an HDF5 file":
        kind = f"a damaged or truncated HDF5 file, {error}"
    return f"{kind} ({path.stat().st_size:,} bytes)"
