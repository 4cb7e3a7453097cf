"""Which files of a folder count as images, and which are named instead."""

import os

import pytest
from PIL import Image

from datasets.listing import holds_image, images_in, left_out, other_files, scan, suffixes

IMAGE_SUFFIXES = """
    .jpg .jpeg .jpe .jfif .png .apng .webp .tif .tiff .bmp .gif .heic .heif .hif .avif .jp2 .j2k .ppm .pgm .tga .ico
    .psd .mpo .qoi .dds
""".split()
OTHER_SUFFIXES = """
    .h5 .hdf .hdf5 .pdf .mpg .mpeg .eps .ps .wmf .emf .grib .bufr .iim .palm .mp4 .avi .txt .csv .xml .json .npy .zip
    .db .ini .svg .nef .cr2 .dng
""".split()


def save(path, kind="PNG", size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, kind)
    return path


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_suffixes_of_images_count_in_upper_and_lower_case(tmp_path, suffix):
    names = [f"a{suffix}", f"b{suffix.upper()}", f"c.d{suffix}"]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == names


@pytest.mark.parametrize("suffix", OTHER_SUFFIXES)
def test_other_suffixes_do_not_although_pillow_registers_some(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"II*\0 or anything else")
    (tmp_path / f"b{suffix.upper()}").touch()
    notes = []
    assert images_in(tmp_path, None, notes.append) == [] and notes == []
    assert other_files([scan(tmp_path, None)]) == f"2 {suffix}"


def test_the_suffixes_do_not_depend_on_what_was_opened_before(tmp_path):
    before, earlier = set(suffixes()), Image.EXTENSION.get(".heics")  # which pi-heif may have registered
    suffixes.cache_clear()
    Image.register_extension("HEIF", ".heics")
    try:
        assert before <= suffixes()
    finally:
        Image.EXTENSION.pop(".heics")
        if earlier:
            Image.register_extension(earlier, ".heics")
        suffixes.cache_clear()
    assert suffixes() == before


@pytest.mark.parametrize(
    "name, kind",
    [
        ("photo.jpg_", "JPEG"),
        ("photo.pjpeg", "JPEG"),
        ("photo.jpg~", "JPEG"),
        ("photo.jpg.1", "JPEG"),
        ("photo.jpg-large", "JPEG"),
        ("photo.jpg?w=640", "JPEG"),
        ("photo.JPG ", "JPEG"),
        ("photo", "JPEG"),
        ("photo", "PNG"),
        ("photo", "TIFF"),
        ("photo.tif_", "TIFF"),
        ("photo.pn", "PNG"),
        ("photo.img", "WEBP"),
        ("photo.dat", "GIF"),
        ("photo.tmp", "BMP"),
        ("photo.txt", "PNG"),
        (".photo.png", "PNG"),
    ],
)
def test_an_image_under_an_unusual_name_is_named_and_left_out(tmp_path, name, kind):
    save(tmp_path / "cat" / name, kind)
    notes = []
    assert images_in(tmp_path, None, notes.append) == []
    assert notes == [f"1 file that holds an image has no suffix of an image: {tmp_path}/cat/{name}. "
                     "Give it one, such as .jpg"]  # fmt: skip


def test_many_images_under_unusual_names_are_counted(tmp_path):
    for number in range(7):
        save(tmp_path / "cat" / f"{number}.jpg_", "JPEG")
    (note,) = left_out([scan(tmp_path, None)])
    assert (
        note.startswith("7 files that hold an image have no suffix of an image: ")
        and "4.jpg_, and 2 more. Give" in note
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"notes about the images", b"\xff\xd8", b"BM as a beginning of text", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
     b"%PDF-1.7", b"II*\0\x08\0\0\0", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF\0\0\0\0WAVEfmt "],
)  # fmt: skip
def test_other_files_are_not_taken_for_images(tmp_path, content):
    path = tmp_path / "file.dat"
    path.write_bytes(content)
    assert not holds_image(path)


@pytest.mark.parametrize("brand", ["heic", "heix", "mif1", "avif", "msf1"])
def test_heic_and_avif_are_recognized_without_their_package(tmp_path, brand):
    (tmp_path / "photo").write_bytes(b"\0\0\0\x18ftyp" + brand.encode() + bytes(8))
    assert holds_image(tmp_path / "photo")


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "@EADIR", "#recycle", "#snapshot", "@Recycle", ".thumbnails", "lost+found", "Thumbs", "thumbnails",
     "System Volume Information", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints", ".Trash-1000"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["", "cat", "cat/deeper"])
def test_thumbnails_and_folders_of_systems_are_skipped_and_named(tmp_path, name, place):
    image = save(tmp_path / "cat" / "deeper" / "1.png")
    save(tmp_path / place / name / "2.jpg" / "SYNOPHOTO_THUMB_XL.jpg", "JPEG")
    save(tmp_path / place / name / "3.png")
    notes = []
    assert images_in(tmp_path, None, notes.append) == [image]
    kind = "a hidden folder" if name.startswith(".") else "a folder of thumbnails, copies or deleted files"
    assert notes == [f"2 images in {name}, {kind}"]


def test_an_empty_system_folder_and_hidden_files_are_not_mentioned(tmp_path):
    save(tmp_path / "1.png")
    (tmp_path / ".git").mkdir()
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / ".DS_Store").touch()
    notes = []
    assert len(images_in(tmp_path, None, notes.append)) == 1 and notes == []
    assert other_files([scan(tmp_path, None)]) == ""


def test_pipes_and_broken_links_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "link")
    os.symlink("loop", tmp_path / "loop")
    assert images_in(tmp_path) == [] and other_files([scan(tmp_path, None)]) == "3 without a suffix"


def test_links_to_folders_do_not_lead_in_circles_or_show_images_twice(tmp_path):
    for name in ("cat/1.png", "cat/more/2.png", "dog/1.png"):
        save(tmp_path / name)
    for link, target in (
        ("cat/up", tmp_path), ("cat/more/same", "."), ("dog/beside", tmp_path / "cat"), ("up", ".."),
    ):  # fmt: skip
        os.symlink(target, tmp_path / link, target_is_directory=True)
    found = [os.path.relpath(path, tmp_path) for path in images_in(tmp_path)]
    assert found == ["cat/1.png", "cat/more/2.png", "dog/1.png"]


def test_a_link_to_a_folder_elsewhere_is_followed_beside_images(tmp_path):
    for name in ("set/cat/1.png", "set/logo.png", "more/2.png", "dogs/3.png"):
        save(tmp_path / name)
    os.symlink(tmp_path / "more", tmp_path / "set" / "cat" / "more", target_is_directory=True)
    os.symlink(tmp_path / "dogs", tmp_path / "set" / "dog", target_is_directory=True)
    found = [os.path.relpath(path, tmp_path / "set") for path in images_in(tmp_path / "set")]
    assert sorted(found) == ["cat/1.png", "cat/more/2.png", "dog/3.png", "logo.png"]


def test_deep_folders_do_not_end_the_search(tmp_path):
    place = tmp_path
    for _ in range(300):
        place = place / "a"
    save(place / "1.png")
    assert len(images_in(tmp_path)) == 1 and scan(tmp_path, None).count == 1
