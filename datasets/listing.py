"""What a folder holds: images, subfolders, and files that are left out, with the reason."""

import collections
import functools
import os
import pathlib

from basics.errors import InputError, printable

# What Pillow registers suffixes for although it decodes no image from them.
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}

# Images that need a package; reading one names it.
MORE_SUFFIXES = {".heic", ".heif", ".hif", ".avif"}

# Folders of thumbnails, deleted files and other copies, which file systems, network drives and archivers make.
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@tmp", "lost+found"),
    *("$recycle.bin", "recycler", "recycled", "system volume information", "thumbs", "thumbnails"),
}

# Formats that are recognized by their content. Raw photos of many cameras begin like a TIFF file but are none, so a
# TIFF file must also have a name like one.
CONTENTS = "JPEG", "PNG", "GIF", "WEBP", "BMP", "JPEG2000", "TIFF"
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis"}

# This many files of a kind are named.
NAMED = 5


class Folder:
    """A folder and what is in it, from `scan`.

    Attributes:
        path: `pathlib.Path`.
        images: paths of the images directly in it, by their suffix, sorted.
        folders: the `Folder`s directly in it, sorted by name.
        unusual: paths of the files directly in it that hold an image, although their suffix is of no image.
        others: paths of the other visible files directly in it.
        skipped: paths of the folders directly in it that are hidden or made by a system.
    """

    def __init__(self, path):
        self.path = path
        self.images, self.folders, self.unusual, self.others, self.skipped = [], [], [], [], []

    @property
    def name(self):
        return self.path.name

    @functools.cached_property
    def count(self):
        """The number of files below it that hold an image, whatever their suffix."""
        return sum(len(folder.images) + len(folder.unusual) for folder in self.walk())

    @functools.cached_property
    def filled(self):
        """The `Folder`s directly in it that have images somewhere."""
        return [folder for folder in self.folders if folder.count]

    def walk(self):
        """Yield the folder and all below it, each before its subfolders."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders)

    def paths(self):
        """Return the paths of all images below it."""
        return [path for folder in self.walk() for path in folder.images]


def scan(folder, on_error, strict=True):
    """Return a `Folder` with everything below it.

    Links to folders are followed unless they lead back to where they are, or from beside images to another place below
    the folder, which may be another class.

    Args:
        folder: path.
        on_error: called with the OSError of each folder that cannot be listed.
        strict: bool, whether to raise an InputError instead if the folder itself cannot be listed.
    """
    root = Folder(pathlib.Path(folder))
    known = suffixes()
    waiting = [(root, (pathlib.Path(os.path.realpath(folder)),))]
    while waiting:
        here, above = waiting.pop()
        try:
            with os.scandir(here.path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as error:
            if here is root and strict:
                raise unlisted(here.path, error) from None
            on_error(error)
            continue
        inner = []
        for name in names:
            path = here.path / name
            if os.path.isdir(path):
                skipped = name.startswith(".") or name.lower() in SYSTEM_FOLDERS
                (here.skipped if skipped else inner).append(path)
            else:
                _sort_in(here, path, known)
        for path in inner:
            place = pathlib.Path(os.path.realpath(path))
            beside = here.images and place.is_relative_to(above[0])
            if path.is_symlink() and (beside or _leads_back(place, above)):
                continue
            here.folders.append(Folder(path))
            waiting.append((here.folders[-1], (*above, place)))
    return root


def _leads_back(place, above):
    """Return whether a link shows again what is around it; `above` are the folders that it is in, the root first."""
    upwards = any(folder.is_relative_to(place) for folder in above)
    return upwards or len(above) > 1 and place.is_relative_to(above[1])


def _sort_in(folder, path, known):
    """Add a file to the list of the `Folder` that it belongs to; `known` are the suffixes of images."""
    hidden = path.name.startswith(".")
    suffix = path.suffix.lower()
    if suffix in known and not hidden:
        folder.images.append(path)
    elif (suffix in known or not hidden) and holds_image(path):
        folder.unusual.append(path)
    elif not hidden:
        folder.others.append(path)


@functools.cache
def suffixes():
    """Return the suffixes of image files, a set of str such as ".jpg"."""
    from PIL import Image

    registered = Image.registered_extensions().items()
    return {suffix for suffix, name in registered if name not in NO_IMAGES} | MORE_SUFFIXES


def holds_image(path):
    """Return whether a file begins like a common image format, whatever its name."""
    from PIL import Image

    if not os.path.isfile(path):
        return False  # opening a pipe would wait for its writer
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            if head[4:8] == b"ftyp":
                return head[8:12] in HEIF_BRANDS
            like_tiff = not path.suffix or path.suffix.lower().startswith(".tif")
            Image.open(file, formats=[name for name in CONTENTS if name != "TIFF" or like_tiff]).close()
    except Exception:  # Pillow raises many types for damaged headers
        return False
    return True


def unlisted(folder, error):
    """Return the InputError about a folder that cannot be listed, for an OSError."""
    fix = "Change its permissions" if isinstance(error, PermissionError) else ""
    return InputError(f"{folder} cannot be listed: {error.strerror}", fix)


def images_in(folder, on_error=None, on_left_out=None):
    """Return the paths of the images below a folder, in the order of their names; each folder before its subfolders.

    Only the suffix counts. Hidden files and folders, and the folders of thumbnails of systems, are left out.

    Args:
        folder: path.
        on_error: called with the OSError of each folder that cannot be listed.
        on_left_out: called with a sentence about each kind of images that are left out.
    """
    found = scan(folder, on_error or (lambda error: None), strict=False)
    for reason in left_out([found]) if on_left_out else ():
        on_left_out(reason)
    return found.paths()


def left_out(folders):
    """Return a sentence about each kind of files with images below these `Folder`s that are left out."""
    everything = [below for folder in folders for below in folder.walk()]
    reasons = []
    unusual = [path for folder in everything for path in folder.unusual]
    if unusual:
        fix = "Give them the suffix of their format, such as .jpg" if len(unusual) > 1 else "Give it one, such as .jpg"
        what = "files that hold an image have" if len(unusual) > 1 else "file that holds an image has"
        reasons.append(f"{len(unusual):,} {what} no suffix of an image: {listed(unusual)}. {fix}")
    counts = collections.Counter()
    for path in (path for folder in everything for path in folder.skipped):
        counts[path.name] += sum(
            pathlib.Path(name).suffix.lower() in suffixes() for _, _, names in os.walk(path) for name in names
        )
    for name, count in counts.items():
        if count:
            kind = "a hidden folder" if name.startswith(".") else "a folder of thumbnails, copies or deleted files"
            reasons.append(f"{_images(count)} in {name}, {kind}")
    return reasons


def other_files(folders):
    """Return in words how many files below these `Folder`s are no images, by suffix; "" if there are none."""
    found = (path for folder in folders for below in folder.walk() for path in below.others)
    return count_suffixes(found)


def count_suffixes(paths):
    """Return in words how many of the paths have which suffix, the most frequent first; "" if there are none."""
    counts = collections.Counter(path.suffix.lower() or "without a suffix" for path in paths).most_common()
    words = [f"{count:,} {suffix}" for suffix, count in counts[:NAMED]]
    return ", ".join(words + ["..."] * (len(counts) > NAMED))


def listed(names):
    """Return names as text, the first few of many."""
    names = [printable(str(name)) for name in names]
    return ", ".join(names[:NAMED] + [f"and {len(names) - NAMED:,} more"] * (len(names) > NAMED))


def _images(count):
    return f"{count:,} image{'s' * (count != 1)}"
