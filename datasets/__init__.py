"""The data sets: `loading` finds them, `hdf5` and `folders` read them, `synthetic` renders images.

The .h5 files of the photographs belong in this folder; they are not part of the repository.
"""

from typing import NamedTuple

# The side of the images in pixels, unless --image-size says otherwise, and what it may say.
IMAGE_SIZE = 64
IMAGE_SIZES = range(32, 257, 32)
IMAGE_SIZE_HELP = "side in pixels to scale images of your own to, a multiple of 32 from 32 to 256 (default: 64)"

# What makes a group of images of your own, see `datasets.groups`.
GROUPS = NEAR_DUPLICATES, FOLDER, PREFIX, NONE = "near-duplicates", "folder", "prefix", "none"
GROUP_HELP = (
    "which images of your own stay together when the test set, the folds and the validation set are split off: "
    "near-duplicates (the default); folder, those in the same subfolder of a class; prefix, those whose names are the "
    "same up to their last number; or none"
)

# The folder of images of your own that show none of the classes, in upper or lower case.
NO_CLASS = "none"
NO_CLASS_HELP = "the folder with images that show none of your classes, to be unsure about (default: none)"


class Task(NamedTuple):
    """What a network learns."""

    name: str  # the data set: train_<name>.h5, test_<name>.h5
    class_names: tuple  # of str, in the order of the labels
    subject: str  # what fills a training image, and what --crop auto looks for
    topic: str  # what the network tells apart, for the warnings in the report and on the live page
    wide: str  # the SYNTHETIC set for pre-training and mixing: "signs_and_others" also has hands that show no digit


HAPPY = Task("happy", ("not smiling", "smiling"), "face", "smiles", "happy_wide")
SIGNS = Task("signs", ("0", "1", "2", "3", "4", "5"), "hand", "signs", "signs_and_others")
