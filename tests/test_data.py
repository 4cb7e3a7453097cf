"""Files in, arrays out: where the data are looked for, what is accepted, what is refused and how."""

import h5py
import numpy as np
import pytest

import cnn_utils as utils


@pytest.fixture
def signs_folder(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test")
    return tmp_path


@pytest.mark.parametrize("shape", [(12,), (1, 12), (12, 1)])
def test_labels_of_every_usual_shape_become_one_axis(tmp_path, write_h5, shape):
    labels = np.array([5, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5])
    path = write_h5(tmp_path / "train_signs.h5", y=labels.reshape(shape))
    _, y, _ = utils.load_h5(path, "train")
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, labels)


def test_byte_string_classes_are_the_numbers_they_spell(tmp_path, write_h5):
    path = write_h5(tmp_path / "train_signs.h5", classes=np.array([b"0", b"1", b"2", b"3", b"4", b"5"]))
    np.testing.assert_array_equal(utils.load_h5(path, "train")[2], np.arange(6))


def test_pixels_come_back_as_they_were_written(tmp_path, write_h5):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 64, 64, 3), np.uint8)
    x, _, _ = utils.load_h5(write_h5(tmp_path / "train_signs.h5", x=pixels), "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)


def test_auto_takes_real_files_when_both_are_there(signs_folder):
    files = utils.find_data("signs", "auto", signs_folder)
    assert files.kind == "real"
    assert files.train == signs_folder / "train_signs.h5"
    assert "SYNTHETIC" not in str(files)
    train_x, train_y, test_x, test_y, classes = utils.load_signs_dataset("auto", signs_folder)
    assert train_x.shape == test_x.shape == (12, 64, 64, 3)
    assert train_y.shape == test_y.shape == (12,)
    assert classes.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("missing", ["train_signs.h5", "test_signs.h5"])
@pytest.mark.parametrize("data", ["auto", "real"])
def test_one_file_alone_is_an_error_that_names_the_other(signs_folder, missing, data):
    (signs_folder / missing).unlink()
    with pytest.raises(utils.InputError, match=rf"^{missing} missing.*datasets\.download signs.*Received: "):
        utils.find_data("signs", data, signs_folder)


def test_real_without_files_is_an_error_that_names_both(tmp_path):
    with pytest.raises(utils.InputError, match="train_happy.h5 and test_happy.h5 missing"):
        utils.find_data("happy", "real", tmp_path)


def test_auto_without_files_is_synthetic_and_says_so(tmp_path):
    files = utils.find_data("happy", "auto", tmp_path)
    assert files.kind == "synthetic"
    assert "SYNTHETIC" in str(files) and str(tmp_path) in str(files)


def test_synthetic_is_taken_although_real_files_are_there(signs_folder):
    assert utils.find_data("signs", "synthetic", signs_folder).kind == "synthetic"


def test_rendered_files_are_synthetic_wherever_they_lie():
    folder = utils.find_data("signs", "synthetic").train.parent
    files = utils.find_data("signs", "auto", folder)
    assert files.kind == "synthetic" and "SYNTHETIC" in str(files)
    with pytest.raises(utils.InputError, match="SYNTHETIC"):
        utils.find_data("signs", "real", folder)


def test_paths_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    before = utils.find_data("happy", "synthetic")
    monkeypatch.chdir(tmp_path)
    assert utils.find_data("happy", "synthetic") == before


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
    with pytest.raises(utils.InputError) as error:
        utils.load_h5(path, "train")
    assert str(path) in str(error.value)
    assert kind in str(error.value).partition("Received: ")[2]


def test_a_folder_and_a_truncated_file_are_refused(tmp_path, write_h5):
    with pytest.raises(utils.InputError, match="Received: a folder"):
        utils.load_h5(tmp_path, "train")
    path = write_h5(tmp_path / "train_signs.h5")
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(utils.InputError, match="damaged or truncated"):
        utils.load_h5(path, "train")


def test_a_link_that_leads_nowhere_is_no_missing_file(tmp_path):
    for name in ("train_signs.h5", "test_signs.h5"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    with pytest.raises(utils.InputError, match="train_signs.h5 must be .* Received: a link that leads nowhere"):
        utils.load_signs_dataset("auto", tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"y": ...}, "train_set_y is missing"),
    ({"x": np.zeros((12, 64, 64), np.uint8)}, r"Received: uint8 \(12, 64, 64\)"),
    ({"x": np.zeros((12, 64, 64, 1), np.uint8)}, r"Received: uint8 \(12, 64, 64, 1\)"),
    ({"x": np.zeros((12, 32, 64, 3), np.uint8)}, r"Received: uint8 \(12, 32, 64, 3\)"),
    ({"x": np.zeros((12, 64, 64, 3), bool)}, r"Received: bool \(12, 64, 64, 3\)"),
    ({"x": np.zeros((0, 64, 64, 3), np.uint8), "y": np.zeros(0, int)}, "at least one"),
    ({"y": np.arange(11) % 6}, r"one label for each of the 12 pictures.*Received: \(11,\)"),
    ({"y": np.full(12, 6)}, r"from 0 to 5.*Received: \[6\]"),
    ({"y": np.full(12, -1)}, r"Received: \[-1\]"),
    ({"y": np.full(12, 0.5)}, r"Received: \[0.5\]"),
    ({"y": np.full(12, np.nan)}, r"Received: \[nan\]"),
    ({"classes": np.array([b"fist", b"one"])}, "list_classes .* whole numbers"),
])
def test_arrays_that_break_the_schema_are_refused(tmp_path, write_h5, change, message):
    path = write_h5(tmp_path / "train_signs.h5", **change)
    with pytest.raises(utils.InputError, match=message):
        utils.load_h5(path, "train")


def test_declared_dimensions_are_checked_before_anything_is_read(tmp_path):
    path = tmp_path / "train_signs.h5"
    with h5py.File(path, "w") as file:      # 12 TB declared, nothing stored
        file.create_dataset("train_set_x", (10**9, 64, 64, 3), np.float32, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.zeros(3), np.arange(6)
    with pytest.raises(utils.InputError, match="Received: 1,000,000,000 pictures declared"):
        utils.load_h5(path, "train")


def test_train_and_test_must_agree(tmp_path, write_h5):
    write_h5(tmp_path / "train_signs.h5", "train")
    write_h5(tmp_path / "test_signs.h5", "test", classes=np.arange(7))
    with pytest.raises(utils.InputError, match="must list the same classes"):
        utils.load_signs_dataset("real", tmp_path)


def test_a_signs_file_is_no_happy_file(tmp_path, write_h5):
    write_h5(tmp_path / "train_happy.h5", "train")
    write_h5(tmp_path / "test_happy.h5", "test")
    with pytest.raises(utils.InputError, match=r"2 classes.*Received: \[0, 1, 2, 3, 4, 5\]"):
        utils.load_happy_dataset("real", tmp_path)


def test_the_validation_split_is_a_stratified_seeded_partition():
    x, y = np.arange(600), np.repeat(np.arange(6), [50, 70, 80, 100, 120, 180])
    train_x, train_y, validation_x, validation_y = utils.split_validation(x, y, seed=4)
    np.testing.assert_array_equal(np.sort(np.concatenate([train_x, validation_x])), x)
    np.testing.assert_array_equal(y[train_x], train_y)
    np.testing.assert_array_equal(y[validation_x], validation_y)
    np.testing.assert_array_equal(np.bincount(validation_y), [5, 7, 8, 10, 12, 18])
    np.testing.assert_array_equal(utils.split_validation(x, y, seed=4)[2], validation_x)
    assert not np.array_equal(utils.split_validation(x, y, seed=5)[2], validation_x)


def test_first_of_each_class_keeps_every_class():
    y = np.array([0, 0, 0, 1, 2, 2])
    x, kept = utils.first_of_each_class(np.arange(6), y, 2)
    assert x.tolist() == [0, 1, 3, 4, 5] and kept.tolist() == [0, 0, 1, 2, 2]


def test_one_hot():
    assert utils.one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_more_pictures_than_the_file_can_hold_are_refused_before_any_is_read(tmp_path):
    with h5py.File(tmp_path / "train_signs.h5", "w") as file:
        # Chunks that were never written take no room: 12 GB declared in a file of a few kB.
        file.create_dataset("train_set_x", (1_000_000, 64, 64, 3), np.uint8, chunks=(1, 64, 64, 3))
        file["train_set_y"], file["list_classes"] = np.arange(6), np.arange(6)
    with pytest.raises(utils.InputError, match="Received: 1,000,000 pictures declared in a file of"):
        utils.load_h5(tmp_path / "train_signs.h5", "train")


# ---- other numbers than uint8

@pytest.mark.parametrize("dtype, factor, said", [
    (np.float32, 1 / 255, "from 0 to 1: taken as 0 to 1"), (np.float64, 1, "from 0 to 255: taken as 0 to 255"),
    (np.float16, 1, "taken as 0 to 255"), (np.uint16, 1, "uint16 from 0 to 255: taken as 0 to 255"),
    (">i4", 1, "taken as 0 to 255")])
def test_pixels_as_other_numbers_are_taken_and_that_is_said(tmp_path, write_h5, capsys, dtype, factor, said):
    pixels = np.random.default_rng(3).integers(0, 256, (300, 64, 64, 3), np.uint8)
    path = write_h5(tmp_path / "train_signs.h5", x=(pixels * factor).astype(dtype), y=np.arange(300) % 6)
    x, _, _ = utils.load_h5(path, "train")
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, pixels)
    printed = capsys.readouterr().out
    assert str(path) in printed and said in printed


@pytest.mark.parametrize("change, words", [
    (lambda x: x.astype(np.uint16) * 257, "must hold pixels of 0 to 255, or fractions of.*uint16 from 0 to 65535"),
    (lambda x: x / 127.5 - 1, "must hold pixels of 0 to 255.*Received: float64 from -1 to 1"),
    (lambda x: np.where(np.arange(len(x))[:, None, None, None] == 7, np.nan, x / 255),
     "must hold finite numbers.*Received: NaN or infinity, first in picture 7"),
    (lambda x: np.where(x == 200, np.inf, x.astype(np.float32)), "must hold finite numbers"),
    (lambda x: x * 1j, "must be pictures.*Received: complex128")])
def test_pixels_that_cannot_be_brought_to_0_to_255_are_refused(tmp_path, write_h5, change, words):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 64, 64, 3), np.uint8)
    pixels[0, 0, 0] = 0, 255, 200
    path = write_h5(tmp_path / "train_signs.h5", x=change(pixels))
    with pytest.raises(utils.InputError, match=f"train_set_x in .*train_signs.h5 {words}"):
        utils.load_h5(path, "train")


# ---- classes without pictures

@pytest.mark.parametrize("train_y, test_y, words", [
    ([3] * 12, [3] * 12, "train_signs.h5 must hold pictures of at least two classes.*Received: 12 of class 3 only"),
    ([0] * 11 + [4], [0] * 12, r"must hold at least two pictures of each.*Received: one of class \[4\]"),
    ([0, 1] * 6, [0, 1, 5] * 4, r"test_signs.h5 must hold no class that .*train_signs.h5.*Received: class \[5\]")])
def test_classes_that_cannot_be_learnt_are_refused(tmp_path, write_h5, train_y, test_y, words):
    write_h5(tmp_path / "train_signs.h5", "train", y=np.array(train_y))
    write_h5(tmp_path / "test_signs.h5", "test", y=np.array(test_y))
    with pytest.raises(utils.InputError, match=words):
        utils.load_signs_dataset("real", tmp_path)


def test_a_class_that_neither_file_shows_harms_nobody(tmp_path, write_h5):
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, y=np.arange(12) % 5)
    _, train_y, _, test_y, classes = utils.load_signs_dataset("real", tmp_path)
    assert len(classes) == 6 and set(train_y) == set(test_y) == set(range(5))


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_a_keras_model_is_told_from_data(tmp_path, name):
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.save_weights(tmp_path / name) if "weights" in name else model.save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "train_signs.h5")
    with pytest.raises(utils.InputError, match="train_set_x is missing. .* Received: a Keras model, with "):
        utils.load_h5(tmp_path / "train_signs.h5", "train")
