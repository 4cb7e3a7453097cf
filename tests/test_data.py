"""Files in, arrays out: where the data are looked for, what is accepted, what is refused and how."""

import h5py
import numpy as np
import pytest

import cnn_utils as utils
from datasets.hdf5 import load_h5
from datasets.splits import split_validation, subset_per_class
from support.errors import InputError


@pytest.fixture
def signs_folder(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test")
    return tmp_path


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


def test_pixels_come_back_as_they_were_written(tmp_path, write_h5):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 64, 64, 3), np.uint8)
    x, _, _ = load_h5(write_h5(tmp_path / "train_signs.h5", x=pixels), "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)


# --------------------------------------------------------- finding the two files


def test_auto_takes_real_files_when_both_are_there(signs_folder):
    source = utils.find_data("signs", "auto", signs_folder)
    assert source.kind == "real"
    assert source.train == signs_folder / "train_signs.h5"
    assert "SYNTHETIC" not in str(source)
    data = utils.load_signs_dataset("auto", signs_folder)
    assert data.kind == "real" and data.source == source
    assert data.train_x.shape == data.test_x.shape == (12, 64, 64, 3)
    assert data.train_y.shape == data.test_y.shape == (12,)
    assert data.class_names == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize("missing", ["train_signs.h5", "test_signs.h5"])
@pytest.mark.parametrize("data", ["auto", "real"])
def test_one_file_alone_is_an_error_that_names_the_other(signs_folder, missing, data):
    (signs_folder / missing).unlink()
    with pytest.raises(InputError, match=rf"^{missing} missing.*datasets\.download signs.*Received: "):
        utils.find_data("signs", data, signs_folder)


def test_real_without_files_is_an_error_that_names_both(tmp_path):
    with pytest.raises(InputError, match="train_happy.h5 and test_happy.h5 missing"):
        utils.find_data("happy", "real", tmp_path)


def test_auto_without_files_is_synthetic_and_says_so(tmp_path):
    source = utils.find_data("happy", "auto", tmp_path)
    assert source.kind == "synthetic"
    assert "SYNTHETIC" in str(source) and str(tmp_path) in str(source)


def test_synthetic_is_taken_although_real_files_are_there(signs_folder):
    assert utils.find_data("signs", "synthetic", signs_folder).kind == "synthetic"


def test_synthetic_files_are_recognised_in_any_folder():
    folder = utils.find_data("signs", "synthetic").train.parent
    source = utils.find_data("signs", "auto", folder)
    assert source.kind == "synthetic" and "SYNTHETIC" in str(source)
    with pytest.raises(InputError, match="SYNTHETIC"):
        utils.find_data("signs", "real", folder)


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    before = utils.find_data("happy", "synthetic")
    monkeypatch.chdir(tmp_path)
    assert utils.find_data("happy", "synthetic") == before


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
    assert kind in str(error.value).partition("Received: ")[2]


def test_a_folder_and_a_truncated_file_are_refused(tmp_path, write_h5):
    with pytest.raises(InputError, match="Received: a folder"):
        load_h5(tmp_path, "train")
    path = write_h5(tmp_path / "train_signs.h5")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(InputError, match="damaged or truncated"):
        load_h5(path, "train")


def test_a_broken_link_is_not_reported_as_a_missing_file(tmp_path):
    for name in ("train_signs.h5", "test_signs.h5"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="train_signs.h5 must be .* Received: a broken link"):
        utils.load_signs_dataset("auto", tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": ...}, "train_set_y is missing"),
        ({"x": np.zeros((12, 64, 64), np.uint8)}, r"Received: uint8 \(12, 64, 64\)"),
        ({"x": np.zeros((12, 64, 64, 1), np.uint8)}, r"Received: uint8 \(12, 64, 64, 1\)"),
        ({"x": np.zeros((12, 32, 64, 3), np.uint8)}, r"Received: uint8 \(12, 32, 64, 3\)"),
        ({"x": np.zeros((12, 64, 64, 3), bool)}, r"Received: bool \(12, 64, 64, 3\)"),
        ({"x": np.zeros((0, 64, 64, 3), np.uint8), "y": np.zeros(0, int)}, "at least one"),
        ({"y": np.arange(11) % 6}, r"one label for each of the 12 images.*Received: \(11,\)"),
        ({"y": np.full(12, 6)}, r"from 0 to 5.*Received: \[6\]"),
        ({"y": np.full(12, -1)}, r"Received: \[-1\]"),
        ({"y": np.full(12, 0.5)}, r"Received: \[0.5\]"),
        ({"y": np.full(12, np.nan)}, r"Received: \[nan\]"),
        ({"classes": np.array([b"fist", b"one"])}, "list_classes .* integers"),
    ],
)
def test_arrays_that_break_the_schema_are_refused(tmp_path, write_h5, change, message):
    path = write_h5(tmp_path / "train_signs.h5", **change)
    with pytest.raises(InputError, match=message):
        load_h5(path, "train")


def test_an_h5_file_that_links_to_other_files_is_refused(tmp_path, write_h5):
    write_h5(tmp_path / "other.h5")
    path = write_h5(tmp_path / "train_signs.h5", x=...)
    with h5py.File(path, "a") as file:
        file["train_set_x"] = h5py.ExternalLink("other.h5", "train_set_x")
    with pytest.raises(InputError, match="must hold its arrays itself.*Received: train_set_x in another file"):
        load_h5(path, "train")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"list_classes": np.zeros(6)}, "different integers, at least one"),
        ({"list_classes": np.arange(6) + 0.5}, "different integers"),
        ({"train_set_y": np.full(12, "a", object)}, "Received: "),
        ({"list_classes": h5py.Empty("i8")}, "without values"),
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
    with pytest.raises(InputError, match="The names of list_classes in .* must be 6 different names.*Received: "):
        load_h5(path, "train")


def test_declared_dimensions_are_checked_before_anything_is_read(tmp_path):
    path = tmp_path / "train_signs.h5"
    with h5py.File(path, "w") as file:  # 12 TB declared, nothing stored
        file.create_dataset("train_set_x", (10**9, 64, 64, 3), np.float32, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.zeros(3), np.arange(6)
    with pytest.raises(InputError, match="Received: 1,000,000,000 images declared"):
        load_h5(path, "train")


def test_more_images_than_the_file_can_hold_are_refused_before_any_is_read(tmp_path):
    with h5py.File(tmp_path / "train_signs.h5", "w") as file:
        # Chunks that were never written take no room: 12 GB declared in a file of a few kB.
        file.create_dataset("train_set_x", (1_000_000, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.arange(6), np.arange(6)
    with pytest.raises(InputError, match="Received: 1,000,000 images declared in a file of"):
        load_h5(tmp_path / "train_signs.h5", "train")


def test_train_and_test_must_agree(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test", classes=np.arange(7))
    with pytest.raises(InputError, match="must list the same classes"):
        utils.load_signs_dataset("real", tmp_path)


def test_a_signs_file_is_not_taken_for_a_happy_file(tmp_path, write_h5):
    write_h5(tmp_path / "train_happy.h5", "train")
    write_h5(tmp_path / "test_happy.h5", "test")
    with pytest.raises(InputError, match=r"2 classes.*Received: \[0, 1, 2, 3, 4, 5\]"):
        utils.load_happy_dataset("real", tmp_path)


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_a_keras_model_is_recognised_as_one(tmp_path, name):
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "train_signs.h5")
    with pytest.raises(InputError, match="train_set_x is missing. .* Received: a Keras model, with "):
        load_h5(tmp_path / "train_signs.h5", "train")


# ---------------------------------------------------------- numbers other than uint8


@pytest.mark.parametrize(
    "dtype, factor, said",
    [
        (np.float32, 1 / 255, "from 0 to 1: read as 0 to 1"),
        (np.float64, 1, "from 0 to 255: read as 0 to 255"),
        (np.float16, 1, "read as 0 to 255"),
        (np.uint16, 1, "uint16 from 0 to 255: read as 0 to 255"),
        (">i4", 1, "read as 0 to 255"),
    ],
)
def test_pixels_of_other_types_are_converted_and_reported(tmp_path, write_h5, capsys, dtype, factor, said):
    pixels = np.random.default_rng(3).integers(0, 256, (300, 64, 64, 3), np.uint8)
    path = write_h5(tmp_path / "train_signs.h5", x=(pixels * factor).astype(dtype), y=np.arange(300) % 6)
    x, _, _ = load_h5(path, "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)
    printed = capsys.readouterr().out
    assert str(path) in printed and said in printed


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x.astype(np.uint16) * 257, "must hold pixels from 0 to 255, or fractions from.*uint16 from 0 to 65"),
        (lambda x: x / 127.5 - 1, "must hold pixels from 0 to 255.*Received: float64 from -1 to 1"),
        (
            lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.nan, x / 255),
            "must hold finite numbers.*Received: NaN or infinity, first in image 7",
        ),
        (lambda x: np.where(x == 200, np.inf, x.astype(np.float32)), "must hold finite numbers"),
        (lambda x: x * 1j, "must be images.*Received: complex128"),
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
        ([3] * 12, [3] * 12, "train_signs.h5 must hold images of at least two classes.*Received: 12 of class 3 only"),
        ([0] * 11 + [4], [0] * 12, r"must hold at least two images of each.*Received: one of class \[4\]"),
        ([0, 1] * 6, [0, 1, 5] * 4, r"test_signs.h5 must hold no class that .*train_signs.h5.*Received: class \[5\]"),
    ],
)
def test_classes_that_cannot_be_learnt_are_refused(tmp_path, write_h5, train_y, test_y, words):
    write_h5(tmp_path / "train_signs.h5", "train", y=np.array(train_y))
    write_h5(tmp_path / "test_signs.h5", "test", y=np.array(test_y))
    with pytest.raises(InputError, match=words):
        utils.load_signs_dataset("real", tmp_path)


def test_a_class_without_images_in_both_files_is_accepted(tmp_path, write_h5):
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, y=np.arange(12) % 5)
    data = utils.load_signs_dataset("real", tmp_path)
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
    assert utils.one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
