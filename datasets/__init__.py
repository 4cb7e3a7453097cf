"""Where the data come from: `hdf5` and `folders` read them, `synthetic` renders them, `download` fetches them.

The .h5 files of the photographs belong in this folder; they are not part of the repository.
"""
