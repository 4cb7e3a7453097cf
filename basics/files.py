"""Write files whole or not at all, hash them, and describe files that cannot be read."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil

from basics.errors import InputError, first_line, printable

# What `flock` answers on a network disk without locks, and what to do about it.
NO_LOCKS = errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS
WITHOUT_LOCKS = "Set the environment variable HDF5_USE_FILE_LOCKING=FALSE"

# What to do if an output folder cannot be used.
CHOOSE = "Choose another folder with --output-dir"


@contextlib.contextmanager
def atomic_write(path, min_free_bytes=0, fix=CHOOSE):
    """Yield a temporary path that is renamed to `path` on success; on failure `path` stays as it was.

    Args:
        path: the file or folder to write.
        min_free_bytes: int; with less free disk space than this, nothing is written.
        fix: str, what the user can do if it cannot be written.

    Raises InputError: it cannot be written.
    """
    path = pathlib.Path(path)
    # The suffix stays last, because many writers choose the format by it.
    temporary = path.with_name(f"unfinished_{os.getpid()}_{path.name}")
    earlier = path.with_name(f"unfinished_{os.getpid()}_earlier_{path.name}")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is neither a file nor a folder, and would be replaced by one", fix)
        if min_free_bytes and min_free_bytes > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield temporary
        if path.is_dir() and temporary.is_dir():
            os.replace(path, earlier)
        os.replace(temporary, path)
        shutil.rmtree(earlier, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        if "unable to lock file" in reason:
            reason, fix = "its disk cannot lock files", WITHOUT_LOCKS
        raise InputError(f"{path} cannot be saved: {reason}", fix) from None
    finally:
        if earlier.exists() and not path.exists():
            os.replace(earlier, path)
        shutil.rmtree(temporary, ignore_errors=True)  # if it is a folder
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_json(value, path):
    """Save a dict as indented JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def csv_table(path):
    """Yield a function that writes a list as a row of a CSV file.

    Unprintable characters are escaped. An apostrophe is put before text that a spreadsheet would run as a formula.
    """

    def cell(value):
        text = printable(str(value))
        number = isinstance(value, int | float) or re.fullmatch(r"[+-]?[\d.]+", text)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not number else text

    # Line by line, so that a killed command leaves the rows it has written.
    with atomic_write(path) as temporary, open(temporary, "w", buffering=1, encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        yield lambda row: writer.writerow([cell(value) for value in row])


def read_json(path):
    """Return the JSON object in the file, or None if it cannot be read."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def keras_home():
    """Return the folder in which Keras keeps its configuration file and what it downloads."""
    if "KERAS_HOME" in os.environ:
        return pathlib.Path(os.environ["KERAS_HOME"]).expanduser()
    home = os.path.expanduser("~")  # "~" itself if there is no home
    return pathlib.Path(home if os.access(home, os.W_OK) else "/tmp", ".keras")


def sha256(path):
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
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


def access_problem(path, error):
    """Return why a file cannot be opened and what to do about it, two str; None if only its content is at fault.

    Args:
        path: the file.
        error: what h5py raised.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return "a folder", "Move it out of the way"
    if path.is_symlink() and not path.exists():
        return "a broken link", "Link to a file that exists"
    if path.exists() and not path.is_file():
        return "neither a file nor a folder", "Replace it with a file"
    locked = re.search(r"unable to lock file, errno = (\d+)", str(error))
    if locked and int(locked[1]) in NO_LOCKS:
        return "a file on a disk that cannot lock files", f"{WITHOUT_LOCKS}, or copy it to a local disk"
    if locked:
        return "a file that another program has open for writing", "Close that program"
    try:
        with open(path, "rb"):
            return None
    except OSError as reason:
        fix = "Change its permissions" if isinstance(reason, PermissionError) else ""
        return f"a file that cannot be opened, {reason.strerror}", fix


def describe_file(path, error):
    """Describe in a few words a file that cannot be read as HDF5; `error` is what h5py raised."""
    problem = access_problem(path, error)
    if problem:
        return problem[0]
    with open(path, "rb") as file:
        kind = file_type(file.read(64))
    if kind == "an HDF5 file":
        kind = f"a damaged or truncated HDF5 file, {first_line(error)}"
    return f"{kind}, {os.path.getsize(path):,} bytes"
