"""Where the data come from: `hdf5` and `folders` read them, `synthetic` renders them, `download` fetches them.

The .h5 files of the photographs belong in this folder; they are not part of the repository.
"""

HAPPY_CLASSES = ("not smiling", "smiling")
SIGNS_CLASSES = ("0", "1", "2", "3", "4", "5")
