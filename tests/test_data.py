"""Files in, arrays out: where the data are looked for, what is accepted, what is refused and how."""

import errno
import subprocess
import sys

import h5py
import numpy as np
import pytest

from basics.errors import InputError
from datasets import HAPPY, SIGNS, hdf5, loading
from datasets.hdf5 import load_h5
from datasets.loading import find_data, load_dataset
from datasets.splits import split_validation, subset_per_class
from support.evaluation.outputs import one_hot


@pytest.fixture
def signs_folder(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test")
    return tmp_path


def test_a_small_test_set_is_noted(signs_folder, capsys):
    note = "Some classes have fewer than 20 test images"
    load_dataset(SIGNS, "auto", signs_folder)
    assert note in capsys.readouterr().out
    load_dataset(SIGNS, "synthetic")
    assert note not in capsys.readouterr().out


# ------------------------------------------------------------------ the schema


@pytest.mark.parametrize("shape", [(12,), (1, 12), (12, 1)])
def test_labels_of_every_usual_shape_become_one_axis(tmp_path, write_h5, shape):
    labels = np.array([5, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5])
    path = write_h5(tmp_path / "train_signs.h5", y=labels.reshape(shape))
    _, y, _ = load_h5(path, "train")
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, labels)


def test_byte_string_classes_become_the_numbers_they_spell(tmp_path, write_h5):
    path = write_h5(tmp_path / "train_signs.h5", classes=np.array([b"0", b"1", b"2", b"3", b"4", b"5"]))
    np.testing.assert_array_equal(load_h5(path, "train")[2], np.arange(6))


NAMED_CLASSES = {
    "integers from 1": (np.arange(1, 7), ("1", "2", "3", "4", "5", "6")),
    "bytes from 1": (np.array([b"1", b"2", b"3", b"4", b"5", b"6"]), ("1", "2", "3", "4", "5", "6")),
    "backwards": (np.arange(5, -1, -1), ("5", "4", "3", "2", "1", "0")),
    "bytes backwards": (np.array([b"5", b"4", b"3", b"2", b"1", b"0"]), ("5", "4", "3", "2", "1", "0")),
    "another order": (np.array([1, 0, 2, 3, 4, 5]), ("1", "0", "2", "3", "4", "5")),
    "tens": (np.arange(0, 60, 10, dtype=np.uint8), ("0", "10", "20", "30", "40", "50")),
    "negative": (np.arange(-3, 3, dtype=np.int8), ("-3", "-2", "-1", "0", "1", "2")),
    "floats": (np.arange(1.0, 7), ("1", "2", "3", "4", "5", "6")),
    "big-endian": (np.arange(1, 7, dtype=">i4"), ("1", "2", "3", "4", "5", "6")),
    "two axes": (np.arange(1, 7).reshape(1, 6), ("1", "2", "3", "4", "5", "6")),
    "words": (np.array([b"fist", b"one", b"two", b"three", b"four", b"five"]), "fist one two three four five".split()),
    "words in UTF-8": (np.array([c.encode() for c in "ä猫é日ü6"]), tuple("ä猫é日ü6")),
    "padded words": (np.array([b"0 ", b"1 ", b"2 ", b"3 ", b"4 ", b"x "]), ("0", "1", "2", "3", "4", "x")),
    "leading zeros": (np.array([b"00", b"01", b"02", b"03", b"04", b"05"]), ("00", "01", "02", "03", "04", "05")),
    "strings of any length": (np.array(["a", "bb", "c", "d", "e", "f"], object), ("a", "bb", "c", "d", "e", "f")),
    "not UTF-8": (np.array([b"\xff", b"b", b"c", b"d", b"e", b"f"]), ("\\xff", "b", "c", "d", "e", "f")),
    "a new line": (np.array([b"a\nb", b"b", b"c", b"d", b"e", b"f"]), ("a\\nb", "b", "c", "d", "e", "f")),
}


@pytest.mark.parametrize("classes, names", NAMED_CLASSES.values(), ids=NAMED_CLASSES)
def test_the_names_in_the_file_are_the_names_of_the_classes(tmp_path, write_h5, capsys, classes, names):
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, classes=classes)
    assert load_h5(tmp_path / "train_signs.h5", "train")[2] == tuple(names)
    data = load_dataset(SIGNS, "real", tmp_path)
    assert data.class_names == tuple(names) and not data.shows_task
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all([name, "2", "2"] in rows for name in names)


@pytest.mark.parametrize("classes", [np.arange(6.0), np.arange(6, dtype=np.uint8), np.arange(6).astype("S1")])
def test_names_that_are_the_labels_leave_the_names_of_the_task(tmp_path, write_h5, classes):
    write_h5(tmp_path / "train_signs.h5", "train", classes=classes)
    write_h5(tmp_path / "test_signs.h5", "test")
    data = load_dataset(SIGNS, "real", tmp_path)
    assert data.class_names == SIGNS.class_names and data.shows_task
    for part, values in ("train", [False, True]), ("test", [0, 1]):
        write_h5(tmp_path / f"{part}_happy.h5", part, y=np.arange(12) % 2, classes=np.array(values))
    assert load_dataset(HAPPY, "real", tmp_path).class_names == ("not smiling", "smiling")


def test_two_classes_with_names_of_their_own_are_used_by_name(tmp_path, write_h5):
    for part in ("train", "test"):
        classes = np.array([b"non-cat", b"cat"])
        write_h5(tmp_path / f"{part}_happy.h5", part, y=np.arange(12) % 2, classes=classes)
    data = load_dataset(HAPPY, "real", tmp_path)
    assert data.class_names == ("non-cat", "cat") and not data.shows_task


@pytest.mark.parametrize(
    "train, test",
    [
        (np.arange(1, 7), np.arange(6)),
        (np.arange(6), np.arange(5, -1, -1)),
        (np.array([b"a", b"b"]), np.array([b"b", b"a"])),
    ],
)
def test_files_that_name_their_labels_differently_are_refused(tmp_path, write_h5, train, test):
    write_h5(tmp_path / "train_signs.h5", "train", y=np.arange(12) % 2, classes=train)
    write_h5(tmp_path / "test_signs.h5", "test", y=np.arange(12) % 2, classes=test)
    with pytest.raises(InputError, match="list different classes .got "):
        load_dataset(SIGNS, "real", tmp_path)


def test_the_same_names_may_be_stored_in_different_ways(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train", classes=np.arange(1, 7))
    write_h5(tmp_path / "test_signs.h5", "test", classes=np.array([b"1", b"2", b"3", b"4", b"5", b"6"]))
    assert load_dataset(SIGNS, "real", tmp_path).class_names == ("1", "2", "3", "4", "5", "6")


def test_messages_about_classes_give_their_names(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train", y=np.arange(12) % 5, classes=np.arange(1, 7))
    write_h5(tmp_path / "test_signs.h5", "test", classes=np.arange(1, 7))
    with pytest.raises(InputError, match="test_signs.h5 has images of class 6, but train_signs.h5 has none"):
        load_dataset(SIGNS, "real", tmp_path)


@pytest.mark.parametrize(
    "files, words",
    [
        (["train.h5", "test.h5"], "at least two; there are only test.h5, train.h5. For SYNTHETIC"),
        (["train_happy.h5", "test_happy.h5"], "there are only test_happy.h5, train_happy.h5"),
        (["a.pdf", "b.mpg", "c.pdf"], "there are only 2 .pdf, 1 .mpg files"),
        (["cat/1.h5", "dog/2.h5"], "There are no images to train on in .*there are only 1.h5, 2.h5"),
    ],
)
def test_a_folder_of_other_files_is_not_said_to_hold_images(tmp_path, files, words):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=words) as error:
        find_data(SIGNS, "auto", tmp_path)
    assert "its images" not in str(error.value) and "has images" not in str(error.value)


def test_pixels_come_back_as_they_were_written(tmp_path, write_h5):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 64, 64, 3), np.uint8)
    x, _, _ = load_h5(write_h5(tmp_path / "train_signs.h5", x=pixels), "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)


# --------------------------------------------------------- finding the two files


def test_auto_takes_real_files_when_both_are_there(signs_folder):
    source = find_data(SIGNS, "auto", signs_folder)
    assert source.kind == "real"
    assert source.train == signs_folder / "train_signs.h5"
    assert "SYNTHETIC" not in str(source)
    data = load_dataset(SIGNS, "auto", signs_folder)
    assert data.kind == "real" and data.source == source
    assert data.train_x.shape == data.test_x.shape == (12, 64, 64, 3)
    assert data.train_y.shape == data.test_y.shape == (12,)
    assert data.class_names == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize("missing", ["train_signs.h5", "test_signs.h5"])
@pytest.mark.parametrize("data", ["auto", "real"])
def test_one_file_alone_is_an_error_that_names_the_other(signs_folder, missing, data):
    (signs_folder / missing).unlink()
    command = f"python -m datasets.download signs --data-dir {signs_folder}"
    with pytest.raises(InputError, match=f"^{missing} is missing in {signs_folder}. Run `{command}`"):
        find_data(SIGNS, data, signs_folder)


def test_real_without_files_is_an_error_that_names_both(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DATASETS", tmp_path)
    message = f"train_happy.h5 and test_happy.h5 are missing in {tmp_path}. Run `python -m datasets.download happy`"
    with pytest.raises(InputError, match=message):
        find_data(HAPPY, "real")


def test_auto_without_files_is_synthetic_and_named_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DATASETS", tmp_path)
    source = find_data(HAPPY, "auto")
    assert source.kind == "synthetic"
    assert "SYNTHETIC" in str(source) and f"are not in {tmp_path}" in str(source)


@pytest.mark.parametrize("data", ["auto", "real"])
def test_a_named_folder_without_images_is_an_error(tmp_path, data):
    message = "There are no images to train on in .*train_happy.h5 and test_happy.h5.*--data synthetic"
    with pytest.raises(InputError, match=message):
        find_data(HAPPY, data, tmp_path)
    assert find_data(HAPPY, "synthetic", tmp_path).kind == "synthetic"


def test_synthetic_is_taken_although_real_files_are_there(signs_folder):
    assert find_data(SIGNS, "synthetic", signs_folder).kind == "synthetic"


def test_synthetic_files_are_recognized_in_any_folder():
    folder = find_data(SIGNS, "synthetic").train.parent
    source = find_data(SIGNS, "auto", folder)
    assert source.kind == "synthetic" and "SYNTHETIC" in str(source)
    with pytest.raises(InputError, match="are SYNTHETIC. Drop --data real"):
        find_data(SIGNS, "real", folder)


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    before = find_data(HAPPY, "synthetic")
    monkeypatch.chdir(tmp_path)
    assert find_data(HAPPY, "synthetic") == before


# ---------------------------------------------------------- files that are refused

BAD_FILES = {
    "an empty file": b"",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7379760\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>",
    "a zip archive": b"PK\x03\x04" + bytes(40),
    "not an HDF5 file: it begins with b'datasets/train_signs.h5'": b"datasets/train_signs.h5",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_not_hdf5_is_named_for_what_it_is(tmp_path, kind):
    path = tmp_path / "train_signs.h5"
    path.write_bytes(BAD_FILES[kind])
    with pytest.raises(InputError) as error:
        load_h5(path, "train")
    assert str(path) in str(error.value)
    assert kind in str(error.value).partition("(got ")[2]
    assert "Download the file again" in str(error.value)


def test_a_folder_and_a_truncated_file_are_refused(tmp_path, write_h5):
    with pytest.raises(InputError, match="got a folder") as error:
        load_h5(tmp_path, "train")
    assert "Download" not in str(error.value)
    path = write_h5(tmp_path / "train_signs.h5")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="damaged or truncated"):
        load_h5(path, "train")


def test_a_broken_link_is_not_reported_as_a_missing_file(tmp_path):
    for name in ("train_signs.h5", "test_signs.h5"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="train_signs.h5 must be .*got a broken link.*Link to a file that exists"):
        load_dataset(SIGNS, "auto", tmp_path)


@pytest.mark.parametrize(
    "number, message",
    [
        (errno.EAGAIN, "another program has open for writing.*Close that program"),
        (errno.ENOLCK, "on a disk that cannot lock files.*HDF5_USE_FILE_LOCKING=FALSE"),
        (errno.EOPNOTSUPP, "on a disk that cannot lock files.*HDF5_USE_FILE_LOCKING=FALSE"),
    ],
)
def test_a_file_that_cannot_be_locked_is_told_from_one_in_use(tmp_path, write_h5, monkeypatch, number, message):
    path = write_h5(tmp_path / "train_signs.h5")

    def refused(*arguments):
        raise OSError(f"Unable to synchronously open file (unable to lock file, errno = {number}, error message = ...)")

    monkeypatch.setattr(h5py, "File", refused)
    with pytest.raises(InputError, match=message):
        load_h5(path, "train")


def test_a_file_in_use_by_another_process_is_named(tmp_path, write_h5):
    path = write_h5(tmp_path / "train_signs.h5")
    program = f"import h5py\nfile = h5py.File({str(path)!r}, 'r+')\nprint('open', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(InputError, match="got a file that another program has open for writing"):
            load_h5(path, "train")
        process.communicate(b"\n")


def test_a_file_larger_than_the_memory_is_not_called_damaged(tmp_path, write_h5, monkeypatch):
    path = write_h5(tmp_path / "train_signs.h5")

    def refused(*arguments):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(hdf5, "_read_pixels", refused)
    with pytest.raises(InputError, match="does not fit into memory .got Unable to allocate 9 GiB"):
        load_h5(path, "train")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": ...}, r"has no array train_set_y \(got list_classes, train_set_x\)"),
        ({"x": np.zeros((12, 64, 64), np.uint8)}, r"got uint8 \(12, 64, 64\)"),
        ({"x": np.zeros((12, 64, 64, 1), np.uint8)}, r"got uint8 \(12, 64, 64, 1\)"),
        ({"x": np.zeros((12, 32, 64, 3), np.uint8)}, r"got uint8 \(12, 32, 64, 3\)"),
        ({"x": np.zeros((12, 64, 64, 3), bool)}, r"got bool \(12, 64, 64, 3\)"),
        ({"x": np.uint8(3)}, r"got uint8 \(\)"),
        ({"x": np.zeros((0, 64, 64, 3), np.uint8), "y": np.zeros(0, int)}, "at least one"),
        ({"y": np.arange(11) % 6}, r"one label for each of the 12 images.*got \(11,\)"),
        ({"y": np.full(12, 6)}, r"from 0 to 5.*got \[6\]"),
        ({"y": np.full(12, -1)}, r"got \[-1\]"),
        ({"y": np.full(12, 0.5)}, r"got \[0.5\]"),
        ({"y": np.full(12, np.nan)}, r"got \[nan\]"),
        ({"classes": np.array([b"fist", b"one"])}, r"train_set_y .* from 0 to 1, one for each class .got \[0, 1, 2"),
    ],
)
def test_arrays_that_break_the_schema_are_refused(tmp_path, write_h5, change, message):
    path = write_h5(tmp_path / "train_signs.h5", **change)
    with pytest.raises(InputError, match=message):
        load_h5(path, "train")


@pytest.mark.parametrize(
    "link, message",
    [
        (h5py.ExternalLink("other.h5", "train_set_x"), "got a link to another file"),
        (h5py.SoftLink("/pixels"), "got a link to another place in the file"),
    ],
)
def test_an_array_that_is_a_link_is_refused(tmp_path, write_h5, link, message):
    write_h5(tmp_path / "other.h5")
    path = write_h5(tmp_path / "train_signs.h5", x=..., pixels=np.zeros((12, 64, 64, 3), np.uint8))
    with h5py.File(path, "a") as file:
        file["train_set_x"] = link
    with pytest.raises(InputError, match=f"train_set_x in .*train_signs.h5 must be an array .{message}"):
        load_h5(path, "train")


def test_an_array_with_its_values_in_another_file_is_refused(tmp_path, write_h5):
    path = write_h5(tmp_path / "train_signs.h5", x=...)
    with h5py.File(path, "a") as file:
        size = 12 * 64 * 64 * 3
        file.create_dataset("train_set_x", (12, 64, 64, 3), "u1", external=[("raw", 0, size)])
    with pytest.raises(InputError, match="got one whose values are in another file"):
        load_h5(path, "train")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"list_classes": np.zeros(6)}, "different integers, at least one"),
        ({"list_classes": np.arange(6) + 0.5}, "different integers"),
        ({"train_set_y": np.full(12, "a", object)}, "train_set_y in .* must hold integers"),
        ({"list_classes": h5py.Empty("i8")}, "got one without values"),
    ],
)
def test_labels_and_classes_of_the_wrong_kind_are_refused(tmp_path, write_h5, change, words):
    path = write_h5(tmp_path / "train_signs.h5")
    with h5py.File(path, "a") as file:
        for key, value in change.items():
            del file[key]
            file[key] = value
    with pytest.raises(InputError, match=words):
        load_h5(path, "train")


@pytest.mark.parametrize("names", [5, ["a"] * 6, ["a", "b"], [""] * 6])
def test_class_names_that_cannot_be_used_are_refused(tmp_path, write_h5, names):
    path = write_h5(tmp_path / "train_signs.h5")
    with h5py.File(path, "a") as file:
        file["list_classes"].attrs["names"] = names
    with pytest.raises(InputError, match="`names` of list_classes in .* must hold 6 different names.*got "):
        load_h5(path, "train")


def test_declared_dimensions_are_checked_before_anything_is_read(tmp_path):
    path = tmp_path / "train_signs.h5"
    with h5py.File(path, "w") as file:  # 12 TB declared, nothing stored
        file.create_dataset("train_set_x", (10**9, 64, 64, 3), np.float32, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.zeros(3), np.arange(6)
    with pytest.raises(InputError, match=r"declares more data than it can hold .got 49,152,000,000,0\d\d bytes"):
        load_h5(path, "train")


def test_more_images_than_the_file_can_hold_are_refused_before_any_is_read(tmp_path):
    with h5py.File(tmp_path / "train_signs.h5", "w") as file:
        # Chunks that were never written take no room: 12 GB declared in a file of a few kB.
        file.create_dataset("train_set_x", (1_000_000, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.arange(6), np.arange(6)
    with pytest.raises(InputError, match=r"got 12,288,000,\d\d\d bytes of data declared in a file of"):
        load_h5(tmp_path / "train_signs.h5", "train")


def test_an_array_that_was_never_written_is_refused(tmp_path, write_h5):
    path = write_h5(tmp_path / "train_signs.h5", y=...)
    with h5py.File(path, "a") as file:
        file.create_dataset("train_set_y", (12,), np.int64)
    with pytest.raises(InputError, match="train_set_y in .* was declared, but never written"):
        load_h5(path, "train")


def test_train_and_test_must_agree(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test", classes=np.arange(7))
    with pytest.raises(InputError, match="list different classes .got 0, 1, 2, 3, 4, 5 and 0, 1, 2, 3, 4, 5, 6"):
        load_dataset(SIGNS, "real", tmp_path)


def test_a_signs_file_is_not_taken_for_a_happy_file(tmp_path, write_h5):
    write_h5(tmp_path / "train_happy.h5", "train")
    write_h5(tmp_path / "test_happy.h5", "test")
    with pytest.raises(InputError, match=r"must list 2 classes.*got \[0, 1, 2, 3, 4, 5\].*files of happy"):
        load_dataset(HAPPY, "real", tmp_path)


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_a_keras_model_is_recognized_as_one(tmp_path, name):
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "train_signs.h5")
    with pytest.raises(InputError, match="has no array train_set_x .got a Keras model with "):
        load_h5(tmp_path / "train_signs.h5", "train")


# ---------------------------------------------------------- numbers other than uint8


@pytest.mark.parametrize(
    "dtype, factor, message",
    [
        (np.float32, 1 / 255, "from 0 to 1: read as 0 to 1"),
        (np.float64, 1, "from 0 to 255: read as 0 to 255"),
        (np.float16, 1, "read as 0 to 255"),
        (np.uint16, 1, "uint16 from 0 to 255: read as 0 to 255"),
        (">i4", 1, "read as 0 to 255"),
    ],
)
def test_pixels_of_other_types_are_converted_and_reported(tmp_path, write_h5, capsys, dtype, factor, message):
    pixels = np.random.default_rng(3).integers(0, 256, (300, 64, 64, 3), np.uint8)
    path = write_h5(tmp_path / "train_signs.h5", x=(pixels * factor).astype(dtype), y=np.arange(300) % 6)
    x, _, _ = load_h5(path, "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)
    printed = capsys.readouterr().out
    assert str(path) in printed and message in printed


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x.astype(np.uint16) * 257, "must hold pixels from 0 to 255, or fractions from.*uint16 from 0 to 65"),
        (lambda x: x / 127.5 - 1, "must hold pixels from 0 to 255.*got float64 from -1 to 1"),
        (
            lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.nan, x / 255),
            "must hold finite numbers.*got NaN or infinity, first in image 7",
        ),
        (lambda x: np.where(x == 200, np.inf, x.astype(np.float32)), "must hold finite numbers"),
        (lambda x: x * 1j, "must hold RGB images.*got complex128"),
    ],
)
def test_pixels_that_cannot_be_converted_are_refused(tmp_path, write_h5, change, words):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 64, 64, 3), np.uint8)
    pixels[0, 0, 0] = 0, 255, 200
    path = write_h5(tmp_path / "train_signs.h5", x=change(pixels))
    with pytest.raises(InputError, match=f"train_set_x in .*train_signs.h5 {words}"):
        load_h5(path, "train")


# ------------------------------------------------------------ classes without images


@pytest.mark.parametrize(
    "train_y, test_y, words",
    [
        ([3] * 12, [3] * 12, "train_signs.h5 needs images of at least two classes .got 12 images of class 3 only"),
        ([0] * 11 + [4], [0] * 12, "has only one image of class 4. Add at least one more"),
        ([0, 1] * 6, [0, 1, 5] * 4, "test_signs.h5 has images of class 5, but train_signs.h5 has none"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(tmp_path, write_h5, train_y, test_y, words):
    write_h5(tmp_path / "train_signs.h5", "train", y=np.array(train_y))
    write_h5(tmp_path / "test_signs.h5", "test", y=np.array(test_y))
    with pytest.raises(InputError, match=words):
        load_dataset(SIGNS, "real", tmp_path)


def test_a_class_without_images_in_both_files_is_accepted(tmp_path, write_h5):
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, y=np.arange(12) % 5)
    data = load_dataset(SIGNS, "real", tmp_path)
    assert len(data.class_names) == 6 and set(data.train_y) == set(data.test_y) == set(range(5))


# ------------------------------------------------------------------ parts of a set


def test_the_validation_split_is_a_stratified_seeded_partition():
    x, y = np.arange(600), np.repeat(np.arange(6), [50, 70, 80, 100, 120, 180])
    train_x, train_y, validation_x, validation_y = split_validation(x, y, seed=4)
    np.testing.assert_array_equal(np.sort(np.concatenate([train_x, validation_x])), x)
    np.testing.assert_array_equal(y[train_x], train_y)
    np.testing.assert_array_equal(y[validation_x], validation_y)
    np.testing.assert_array_equal(np.bincount(validation_y), [5, 7, 8, 10, 12, 18])
    np.testing.assert_array_equal(split_validation(x, y, seed=4)[2], validation_x)
    assert not np.array_equal(split_validation(x, y, seed=5)[2], validation_x)


def test_a_subset_has_the_first_images_of_each_class():
    y = np.array([0, 0, 0, 1, 2, 2])
    x, kept = subset_per_class(np.arange(6), y, 2)
    assert x.tolist() == [0, 1, 3, 4, 5] and kept.tolist() == [0, 0, 1, 2, 2]


def test_one_hot():
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
