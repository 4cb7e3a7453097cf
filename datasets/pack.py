"""Make a file of the course's schema from pictures of one's own.

    python -m datasets.pack FOLDER out.h5            both parts in one file: train_set_x, test_set_x, ...
    python -m datasets.pack FOLDER train_signs.h5    only what is to train on, for its name begins with train_
    python -m datasets.pack FOLDER test_signs.h5     only what is to test on

FOLDER holds one sub-folder for each class, or `train` and `test` with one for
each class. The last two commands give the files that `--data-dir` looks for;
a packed set is read many times faster than its pictures.
"""

import argparse
import pathlib

import h5py
import numpy as np

import cnn_utils as utils
import runs
from datasets.folders import load_folder


def pack(parts, names, path):
    """Write pictures and labels as a file that `cnn_utils.load_h5` reads.

    Args:
        parts: dict: "train", "test" or both; of each, x, `PictureFiles` or uint8
            array (m, 64, 64, 3), which are read 256 at a time, and y (m,) int.
        names: the class names, stored as the attribute `names` of `list_classes`.
        path: file to write; it appears under its name only when it is complete.
    """
    with runs.unfinished(path) as aside, h5py.File(aside, "w") as file:
        for part, (x, y) in parts.items():
            pictures = file.create_dataset(f"{part}_set_x", x.shape, np.uint8)
            for start in range(0, len(x), 256):
                pictures[start:start + 256] = x[start:start + 256]
            file[f"{part}_set_y"] = y
        file["list_classes"] = np.arange(len(names))
        file["list_classes"].attrs["names"] = [str(name) for name in names]
    counts = " and ".join(f"{len(x):,} pictures to {part}" for part, (x, _) in parts.items())
    print(f"Saved {path}: {counts}, of {len(names)} classes ({', '.join(map(str, names))})")


def main():
    parser = argparse.ArgumentParser(prog="python -m datasets.pack", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=utils.existing_folder, metavar="FOLDER", help="one sub-folder for each class")
    parser.add_argument("output", type=pathlib.Path, metavar="OUT.h5", help="file to write")
    arguments = parser.parse_args()
    if arguments.output.is_dir():
        parser.error(f"OUT.h5: expected a file to write. Received: {str(arguments.output)!r}, which is a folder")
    train_x, train_y, test_x, test_y, names = load_folder(arguments.folder)
    parts = {"train": (train_x, train_y), "test": (test_x, test_y)}
    wanted = [part for part in parts if arguments.output.name.startswith(part + "_")] or list(parts)
    pack({part: parts[part] for part in wanted}, names, arguments.output)
    return 0


if __name__ == "__main__":
    utils.run(main)
