"""Where the data come from: `synthetic` renders them, `download` fetches the photographs.

The .h5 files of the photographs belong into this folder; they are not part of
the repository.
"""


def kind_of_file(head):
    """Say in words what a data file is, from its first 64 bytes or more."""
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
