"""Where the data comes from: `synthetic` renders it, `download` fetches the photographs.

The .h5 files of the photographs belong into this folder; they are not part of
the repository.
"""
