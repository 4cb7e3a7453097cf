"""Pack images of your own into a file of the course's schema, which is read much faster than the images.

    python -m datasets.pack FOLDER out.h5            both parts in one file: train_set_x, test_set_x, ...
    python -m datasets.pack FOLDER train_signs.h5    only the training set: the name begins with train_
    python -m datasets.pack FOLDER test_signs.h5     only the test set

FOLDER holds one subfolder for each class, or `train` and `test` with one for each class.
The last two commands write the files that `--data-dir` looks for.
"""

import argparse
import pathlib

import h5py
import numpy as np

from datasets.folders import load_folder
from support.errors import run_main
from support.files import atomic_write


def pack(parts, class_names, path):
    """Write images and labels as a file that `datasets.hdf5.load_h5` reads.

    Args:
        parts: dict with "train", "test" or both: x, `ImageFiles` or uint8 array (m, 64, 64, 3), and y (m,) int.
        class_names: stored as the attribute `names` of `list_classes`.
        path: file to write.
    """
    with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
        for part, (x, y) in parts.items():
            images = file.create_dataset(f"{part}_set_x", x.shape, np.uint8)
            for start in range(0, len(x), 256):
                images[start : start + 256] = x[start : start + 256]
            file[f"{part}_set_y"] = y
        file["list_classes"] = np.arange(len(class_names))
        file["list_classes"].attrs["names"] = [str(name) for name in class_names]
    counts = " and ".join(f"{len(x):,} {part} images" for part, (x, _) in parts.items())
    print(f"Saved {path}: {counts} of {len(class_names)} classes ({', '.join(map(str, class_names))})")


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m datasets.pack", description=__doc__, formatter_class=raw)
    parser.add_argument("folder", metavar="FOLDER", help="folder with one subfolder for each class")
    parser.add_argument("output", type=pathlib.Path, metavar="OUT.h5", help="file to write")
    args = parser.parse_args()
    if not pathlib.Path(args.folder).is_dir():
        parser.error(f"FOLDER: expected a folder that exists. Received: {args.folder!r}")
    if args.output.is_dir():
        parser.error(f"OUT.h5: expected a file to write. Received: {str(args.output)!r}, which is a folder")
    train_x, train_y, test_x, test_y, class_names = load_folder(args.folder)
    parts = {"train": (train_x, train_y), "test": (test_x, test_y)}
    wanted = [part for part in parts if args.output.name.startswith(part + "_")] or list(parts)
    pack({part: parts[part] for part in wanted}, class_names, args.output)
    return 0


if __name__ == "__main__":
    run_main(main)
