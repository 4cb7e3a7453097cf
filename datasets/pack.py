"""Pack your own images into a file in the course's schema, which is read much faster than the images.

    python -m datasets.pack FOLDER out.h5            both parts in one file: train_set_x, test_set_x, ...
    python -m datasets.pack FOLDER train_signs.h5    only the training set, because the name begins with train_
    python -m datasets.pack FOLDER test_signs.h5     only the test set

FOLDER holds one subfolder for each class, or `train`, `val` (or none) and `test` with one for each class.
The last two commands write the files that `--data-dir` looks for. Validation images go into the training file.
"""

import argparse
import pathlib

import h5py
import numpy as np

from basics.errors import run_main
from basics.files import atomic_write
from datasets import GROUP_HELP, GROUPS, IMAGE_SIZE, IMAGE_SIZE_HELP, IMAGE_SIZES, NO_CLASS_HELP
from datasets.folders import load_parts, print_classes


def pack(parts, class_names, path, groups=None, none=None):
    """Write images and labels as a file that `datasets.hdf5.load_h5` reads.

    Args:
        parts: dict with some of "train", "validation" and "test": x, `ImageFiles` or uint8 array (m, size, size, 3),
            and y (m,) int.
        class_names: stored as the attribute `names` of `list_classes`.
        path: file to write.
        groups: int (m,), which training images a split keeps together, or None.
        none: dict from "train" and "test" to images that show none of the classes, or to None; None: there are none.

    Raises InputError: it cannot be written.
    """
    fix = "Choose another place for it"
    none = {part: x for part, x in (none or {}).items() if part in parts and x is not None}
    with atomic_write(path, fix=fix) as temporary, h5py.File(temporary, "w") as file:
        for part, (x, y) in parts.items():
            _write_images(file, f"{part}_set_x", x)
            file[f"{part}_set_y"] = y
        for part, x in none.items():
            _write_images(file, f"{part}_none_x", x)
        if groups is not None and "train" in parts:
            file["train_set_groups"] = groups
        file["list_classes"] = np.arange(len(class_names))
        file["list_classes"].attrs["names"] = [str(name) for name in class_names]
    counts = " and ".join(f"{len(x):,} {part} images" for part, (x, _) in parts.items())
    others = f", and {sum(map(len, none.values())):,} images of none of them" if none else ""
    print(f"Saved {path}: {counts} of {len(class_names)} classes ({', '.join(map(str, class_names))}){others}")


def _write_images(file, key, x):
    """Write images in chunks, because those of a folder are read then."""
    images = file.create_dataset(key, x.shape, np.uint8)
    for start in range(0, len(x), 256):
        images[start : start + 256] = x[start : start + 256]


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m datasets.pack", description=__doc__, formatter_class=raw)
    parser.add_argument("folder", metavar="FOLDER", help="folder with one subfolder for each class")
    parser.add_argument("output", type=pathlib.Path, metavar="OUT.h5", help="file to write")
    parser.add_argument("--group-by", choices=GROUPS, help=GROUP_HELP)
    parser.add_argument("--none", metavar="NAME", help=NO_CLASS_HELP)
    parser.add_argument(
        "--image-size", type=int, choices=IMAGE_SIZES, default=IMAGE_SIZE, metavar="N", help=IMAGE_SIZE_HELP
    )
    args = parser.parse_args()
    if not pathlib.Path(args.folder).is_dir():
        parser.error(f"FOLDER must be an existing folder (got {args.folder!r})")
    if args.output.is_dir():
        parser.error(f"OUT.h5 must be a file, not a folder (got {str(args.output)!r})")
    if not args.output.absolute().parent.is_dir():
        parser.error(f"the folder of OUT.h5 must exist (got {str(args.output)!r})")
    if args.output.exists() and not (args.output.is_file() and h5py.is_hdf5(args.output)):
        parser.error(f"OUT.h5 must be a new file, or an .h5 file to replace (got {str(args.output)!r})")
    own = load_parts(args.folder, group_by=args.group_by, none=args.none, size=args.image_size)
    none = {"train": own.none_x, "test": own.test_none_x}
    print_classes(own.class_names, none, train=own.train_y, validation=own.validation_y, test=own.test_y)
    parts = {"train": (own.train_x, own.train_y)}
    if own.validation_x is not None:
        parts["validation"] = own.validation_x, own.validation_y
    parts["test"] = own.test_x, own.test_y
    part, underscore, _ = args.output.name.partition("_")
    if underscore and part == "train":
        del parts["test"]
    elif underscore and part == "test":
        parts = {part: parts[part]}
    pack(parts, own.class_names, args.output, own.groups, none)
    return 0


if __name__ == "__main__":
    run_main(main)
