"""Your own images in folders: how they are found, split, read, packed and trained on."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

import signs_functional
from basics.errors import InputError
from datasets import HAPPY, SIGNS, folders
from datasets.hdf5 import load_h5
from datasets.loading import find_data, load_dataset

COLORS = {"amber": (240, 180, 30), "blue": (30, 60, 230), "crimson": (200, 20, 50)}


def make_folder(folder, counts, size=(90, 70), ending=".png"):
    """Write images of a class's color, each a little different; return the folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            color = np.array(COLORS.get(name, (128, 128, 128))) - number
            Image.new("RGB", size, tuple(map(int, color))).save(folder / name / f"{number:03d}{ending}")
    return folder


@pytest.fixture
def three(tmp_path):
    return make_folder(tmp_path / "mine", {"blue": 20, "amber": 20, "crimson": 10})


def test_subfolders_are_classes_in_alphabetical_order(three):
    train_x, train_y, test_x, test_y, classes = folders.load_folder(three)
    assert classes == ("amber", "blue", "crimson")
    assert len(train_x) == len(train_y) == 42 and len(test_x) == len(test_y) == 8
    assert np.bincount(test_y).tolist() == [3, 3, 2]
    assert not set(train_x.paths) & set(test_x.paths)
    assert train_x.shape == (42, 64, 64, 3) and train_x.dtype == np.uint8
    for x, y in ((train_x, train_y), (test_x, test_y)):
        images = x[np.arange(len(x))]
        expected = np.array(list(COLORS.values()))[y]
        assert np.abs(images[:, 32, 32].astype(int) - expected).max() <= 20


def test_the_split_is_the_same_every_time(three):
    assert folders.load_folder(three)[2].paths.tolist() == folders.load_folder(three)[2].paths.tolist()


@pytest.mark.parametrize("test", ["test", "testing", "evaluation"])
def test_a_given_test_set_is_used(tmp_path, test):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / test, {"blue": 2, "amber": 1})
    train_x, _, test_x, test_y, classes = folders.load_folder(tmp_path)
    assert (len(train_x), len(test_x)) == (9, 3) and test_y.tolist() == [0, 1, 1]
    assert classes == ("amber", "blue") and all(f"/{test}/" in path for path in test_x.paths)


@pytest.mark.parametrize("test", [False, True])
def test_the_folds_of_a_folder_hold_every_image_once(tmp_path, capsys, test):
    make_folder(tmp_path / "train" if test else tmp_path, {"blue": 11, "amber": 6})
    if test:
        make_folder(tmp_path / "test", {"blue": 1, "amber": 1})
    tested = []
    for number in (1, 2, 3):
        train_x, train_y, test_x, test_y, _ = folders.load_folder(tmp_path, f"{number}/3")
        assert not set(train_x.paths) & set(test_x.paths) and len(train_x) + len(test_x) == 17
        assert np.bincount(test_y)[0] == 2 and np.bincount(test_y)[1] in (3, 4)
        tested += test_x.paths.tolist()
    assert len(set(tested)) == len(tested) == 17 and not any("/test/" in path for path in tested)
    assert capsys.readouterr().out.count(f"; {tmp_path / 'test'} is not used") == (3 if test else 0)
    with pytest.raises(InputError, match="7 folds need at least 7 images of each class .got a class of 6.. Use fewer"):
        folders.load_folder(tmp_path, "1/7")


def test_images_are_read_only_when_needed(three, monkeypatch):
    read = []
    monkeypatch.setattr(folders, "read_image", lambda path, size: read.append(path) or np.zeros((64, 64, 3), np.uint8))
    x = folders.ImageFiles(sorted((three / "blue").iterdir()))
    part = x.take(np.array([3, 1, 2]), axis=0)
    assert len(part) == 3 and not read
    assert part[1].shape == (64, 64, 3) and [os.path.basename(path) for path in read] == ["001.png"]
    assert part[:2].shape == (2, 64, 64, 3) and part[np.array([True, False, True])].shape == (2, 64, 64, 3)
    assert len(read) == 5


def test_a_file_that_is_not_an_image_is_named_and_left_out(three, capsys):
    (three / "blue" / "000.png").write_text("not an image")
    (three / "blue" / "001.png").write_bytes((three / "blue" / "002.png").read_bytes()[:80])
    (three / "blue" / "notes.txt").write_text("about the images")
    (three / "blue" / ".hidden.png").write_text("")
    train_x, train_y, test_x, _, _ = folders.load_folder(three)
    assert len(train_x) + len(test_x) == 48
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("left out: ") and "000.png is not an image that can be read" in first
    assert second.startswith("left out: ") and "001.png" in second


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path):
    make_folder(tmp_path, {"blue": 3, "amber": 3})
    make_folder(tmp_path / "blue", {"holiday": 2}, ending=".jpg")
    os.symlink(tmp_path, tmp_path / "blue" / "loop", target_is_directory=True)
    train_x, train_y, test_x, test_y, classes = folders.load_folder(tmp_path)
    assert classes == ("amber", "blue")
    assert np.bincount(np.concatenate([train_y, test_y])).tolist() == [3, 5]


def test_links_to_themselves_and_folders_that_cannot_be_listed_are_named(tmp_path, capsys, monkeypatch):
    for name in ("blue", "red", "red/deep"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (9, 9), name.split("/")[0]).save(tmp_path / name / f"{number}.png")
    for name in ("loop", "red/loop", "red/loop.png"):
        os.symlink(os.path.basename(name), tmp_path / name)
    listing = os.scandir

    def refused(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listing(folder)

    monkeypatch.setattr(os, "scandir", refused)
    train_x, _, test_x, _, classes = folders.load_folder(tmp_path)
    assert classes == ("blue", "red") and len(train_x) + len(test_x) == 8
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("red/deep cannot be listed: Permission denied. Change its permissions")
    assert second.endswith("loop.png cannot be opened: Too many levels of symbolic links")
    with pytest.raises(InputError, match="nothing cannot be listed: No such file or directory$"):
        folders.load_folder(tmp_path / "nothing")


@pytest.mark.parametrize(
    "counts, words",
    [
        ({"blue": 5}, "at least two .got blue"),
        ({"blue": 5, "amber": 2}, "Too few readable images in .*: amber .2.. Each class needs at least 3"),
        ({}, "at least two .got no subfolder"),
    ],
)
def test_too_few_classes_or_images_are_named(tmp_path, counts, words):
    make_folder(tmp_path, counts)
    with pytest.raises(InputError, match=words):
        folders.load_folder(tmp_path)


def test_a_class_that_only_the_test_set_has_is_refused(tmp_path):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / "test", {"blue": 2, "crimson": 1})
    with pytest.raises(InputError, match="test has classes that .*train lacks: crimson"):
        folders.load_folder(tmp_path)


def test_a_class_without_test_images_is_named(tmp_path, capsys):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / "test", {"blue": 2})
    _, _, test_x, test_y, classes = folders.load_folder(tmp_path)
    assert classes == ("amber", "blue") and test_y.tolist() == [1, 1] and len(test_x) == 2
    assert capsys.readouterr().err == f"no test images of one class: {tmp_path}/test/amber does not exist\n"


def test_a_test_set_without_readable_images_is_refused(tmp_path):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    (tmp_path / "test" / "blue").mkdir(parents=True)
    with pytest.raises(InputError, match="test has no readable images of the classes amber, blue"):
        folders.load_folder(tmp_path)


def test_find_data_distinguishes_a_folder_of_classes_from_one_of_files(three, tmp_path):
    assert find_data(SIGNS, "auto", three).kind == "folder"
    assert find_data(HAPPY, "real", three).kind == "folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There are no images to train on in .*empty. It must hold train_signs.h5 and"):
        find_data(SIGNS, "real", tmp_path / "empty")


@pytest.mark.parametrize(
    "make, words",
    [
        (["cat/1.png"], "no images to train on in .*: only its subfolder cat has images"),
        (["1.png", "2.png"], "no images to train on in .*: its images are not in subfolders that name their classes"),
        (["test/cat/1.png", "test/dog/1.png"], "no images to train on in .*: only its subfolder test has images"),
    ],
)
def test_a_folder_of_images_without_classes_is_refused(tmp_path, make, words):
    for name in make:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(InputError, match=f"{words}.*one subfolder of images for each class, at least two"):
        find_data(SIGNS, "auto", tmp_path)
    assert find_data(SIGNS, "synthetic", tmp_path).kind == "synthetic"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_a_script_trains_on_classes_of_your_own_and_names_them(three, tmp_path, script):
    process = run_script(script, "--dry-run", "--data-dir", three, "--output-dir", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert "Data: your own images" in process.stdout and "SYNTHETIC images with" not in process.stdout
    rows = [line for line in process.stdout.splitlines() if line.startswith(("  amber", "  blue", "  crim"))]
    assert [row.split()[0] for row in rows] == ["amber", "blue", "crimson"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["data"] == "folder"
    if script == "signs_functional":  # it may have to do with few images of anything
        assert [row["name"] for row in metrics["training"]["schedule"]] == ["crop augmentation"]
    assert [entry["name"] for entry in metrics["results"]["classes"]] == list(COLORS)
    if script == "happy_sequential":
        inside = run_script(script, "--dry-run", "--data-dir", three, "--output-dir", three / "out")
        assert inside.returncode == 2 and f"would become a class of {three}" in inside.stderr
        assert not (three / "out").exists()
    rows = list(csv.DictReader(open(tmp_path / "out" / "mistakes.csv")))
    confusion = np.array(metrics["results"]["confusion_matrix"])
    assert len(rows) == confusion.sum() - np.trace(confusion)
    for row in rows:  # the file lies in the folder of its class
        assert os.path.dirname(row["file"]) == str(three / row["true class"]) and os.path.isfile(row["file"])
    predicted = run_script(script, "--output-dir", tmp_path / "out", "--predict", three / "blue" / "003.png")
    assert predicted.returncode == 0 and "your own images of amber, blue, crimson" in predicted.stdout
    (answer,) = (line for line in predicted.stdout.splitlines() if line.startswith("003.png  "))
    assert any(name in answer for name in COLORS)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_unbalanced_classes_are_weighted_printed_and_recorded(tmp_path, script):
    folder = make_folder(tmp_path / "mine", {"blue": 30, "amber": 6})
    # In steps so small, it learns nothing, so the balanced accuracy is another than the accuracy.
    arguments = "--epochs", 1, "--learning-rate", 1e-9, "--data-dir", folder, "--output-dir", tmp_path / "out"
    process = run_script(script, *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("a rare one counts more in the loss. Weights: amber ") == 1
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # The test set takes 1 and 4 images, the validation split 1 and 3 of the others.
    assert metrics["training"]["class_weights"] == pytest.approx({"amber": 27 / 8, "blue": 27 / 46})
    assert "Balanced accuracy: " in process.stdout and 0 <= metrics["results"]["test_balanced_accuracy"] <= 1
    report = (tmp_path / "out" / "report.html").read_text()
    assert "amber 3.38, blue 0.59" in report and "Balanced accuracy" in report
    if script == "signs_functional":
        assert metrics["training"]["examples_per_epoch"] == signs_functional.LEAST_IMAGES
        process = run_script(script, *arguments, "--no-class-weights")
        assert process.returncode == 0 and "a rare one" not in process.stdout, process.stderr


@pytest.mark.slow
def test_two_classes_of_your_own_keep_the_single_output(tmp_path):
    folder = make_folder(tmp_path / "mine", {"blue": 12, "amber": 12})
    process = run_script("happy_sequential", "--dry-run", "--data-dir", folder, "--output-dir", tmp_path / "out")
    assert process.returncode == 0 and "(None, 1)" in process.stdout, process.stderr


# ------------------------------------------------------------------------- parts


def test_validation_images_that_came_with_the_folder_are_used_for_validation(tmp_path, capsys):
    make_folder(tmp_path / "in" / "train", {"blue": 9, "amber": 8})
    make_folder(tmp_path / "in" / "val", {"blue": 4, "amber": 3})
    make_folder(tmp_path / "in" / "test", {"blue": 2, "amber": 5})
    data = load_dataset(SIGNS, "auto", tmp_path / "in")
    train_x, train_y, validation_x, validation_y = data.split_validation(5)
    assert train_x is data.train_x and all("/val/" in path for path in validation_x.paths)
    assert [np.bincount(y).tolist() for y in (train_y, validation_y, data.test_y)] == [[8, 9], [3, 4], [5, 2]]
    printed = capsys.readouterr().out
    assert "Parts: training train, validation val, test test" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["class", "train", "validation", "test"] in rows
    assert ["amber", "8", "3", "5"] in rows and ["blue", "9", "4", "2"] in rows
    other = load_dataset(SIGNS, "auto", tmp_path / "in", dry_run=True)
    assert len(other.validation_x) == 7 and len(other.train_x) == 16
    (tmp_path / "in" / "val" / "blue" / "000.png").unlink()
    assert load_dataset(SIGNS, "auto", tmp_path / "in").hashes != data.hashes


def test_a_folder_with_validation_images_only_holds_test_images_back(tmp_path, capsys):
    make_folder(tmp_path / "train", {"blue": 20, "amber": 20})
    make_folder(tmp_path / "validation", {"blue": 4, "amber": 3})
    own = folders.load_parts(tmp_path)
    assert [len(x) for x in (own.train_x, own.validation_x, own.test_x)] == [34, 7, 6]
    assert all("/train/" in path for path in own.test_x.paths)
    assert "Test set: 15% of the training images of each class, always the same ones" in capsys.readouterr().out
    own = folders.load_parts(tmp_path, "1/2")
    assert [len(x) for x in (own.train_x, own.validation_x, own.test_x)] == [20, 7, 20]


def test_folds_that_came_with_the_folder_are_the_folds(tmp_path):
    for number in (1, 2, 3):
        make_folder(tmp_path / f"fold{number}", {"blue": 2 + number, "amber": 4})
    with pytest.raises(InputError, match="has 3 folds, but no test images. Train with --folds 3"):
        folders.load_parts(tmp_path)
    with pytest.raises(InputError, match="has 3 folds of its own .got 1/5.. Use --folds 3"):
        folders.load_parts(tmp_path, "1/5")
    for number in (1, 2, 3):
        own = folders.load_parts(tmp_path, f"{number}/3")
        assert all(f"/fold{number}/" in path for path in own.test_x.paths) and len(own.test_x) == 6 + number
        assert not any(f"/fold{number}/" in path for path in own.train_x.paths) and len(own.train_x) == 18 - number
    make_folder(tmp_path / "test", {"blue": 1, "amber": 1})
    own = folders.load_parts(tmp_path)
    assert len(own.train_x) == 24 and all("/test/" in path for path in own.test_x.paths)


def test_a_fold_with_nearly_all_images_of_a_class_is_refused(tmp_path):
    make_folder(tmp_path / "fold1", {"blue": 5, "amber": 4})
    make_folder(tmp_path / "fold2", {"blue": 1, "amber": 4})
    with pytest.raises(InputError, match="Without fold 1 of .* too few images are left to train on: blue .1."):
        folders.load_parts(tmp_path, "1/2")


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_class_that_only_another_part_has_is_refused(tmp_path, part):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / part, {"blue": 2, "crimson": 1})
    with pytest.raises(InputError, match=f"{part} has classes that .*train lacks: crimson. Add training images"):
        folders.load_folder(tmp_path)


def test_classes_of_all_parts_are_matched_whatever_their_case(tmp_path):
    make_folder(tmp_path / "train", {"Blue": 4, "amber": 5})
    make_folder(tmp_path / "test", {"blue": 2, "Amber": 1})
    own = folders.load_parts(tmp_path)
    assert own.class_names == ("Blue", "amber") and np.bincount(own.test_y).tolist() == [2, 1]


def test_a_class_missing_in_the_test_images_is_not_a_matter_of_permissions(tmp_path, capsys):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / "val", {"amber": 1})
    make_folder(tmp_path / "test", {"blue": 2})
    (tmp_path / "test" / "amber").mkdir()
    folders.load_folder(tmp_path)
    err = capsys.readouterr().err
    assert f"no test images of one class: {tmp_path}/test/amber has no images\n" in err
    assert f"no validation images of one class: {tmp_path}/val/blue does not exist\n" in err
    assert "permissions" not in err


def test_what_is_no_image_of_a_class_is_named_and_counted(three, capsys):
    for name in ("notes.txt", "labels.csv", "blue/more.txt", "blue/clip.mpg", "blue/set.h5", "blue/scan.pdf"):
        (three / name).write_text("no image")
    Image.new("RGB", (9, 9)).save(three / "blue" / "renamed.jpg_", "JPEG")
    Image.new("RGB", (9, 9)).save(three / "cover.png")
    (three / "blue" / "@eaDir").mkdir()
    Image.new("RGB", (9, 9)).save(three / "blue" / "@eaDir" / "thumb.jpg")
    (three / "blue" / "000.png").write_bytes(b"damaged")
    train_x, _, test_x, _, classes = folders.load_folder(three)
    assert len(train_x) + len(test_x) == 49 and classes == tuple(COLORS)
    printed = capsys.readouterr()
    assert sorted(line.replace(str(three), "IN") for line in printed.err.splitlines()) == [
        "left out: 1 file that holds an image has no suffix of an image: IN/blue/renamed.jpg_. "
        "Give it one, such as .jpg",
        "left out: 1 image in @eaDir, a folder of thumbnails, copies or deleted files",
        "left out: 1 image lies in IN, beside the folders: cover.png",
        "left out: IN/blue/000.png is not an image that can be read. Use a JPEG, PNG, WebP or TIFF file",
    ]
    assert "Other files, which are no images: 2 .txt, 1 .csv, 1 .mpg, 1 .pdf, 1 .h5" in printed.out
    assert "Left out: 1 of 50 training images, which cannot be read" in printed.out


def test_a_class_whose_images_all_have_unusual_names_is_not_lost(tmp_path, capsys):
    make_folder(tmp_path, {"blue": 4, "amber": 4})
    make_folder(tmp_path, {"crimson": 4})
    for path in (tmp_path / "crimson").iterdir():
        path.rename(path.with_suffix(".png_"))
    with pytest.raises(InputError, match="Too few readable images in .*: crimson .0."):
        folders.load_folder(tmp_path)
    assert "4 files that hold an image have no suffix of an image" in capsys.readouterr().err


def test_long_and_wide_class_names_make_a_table(tmp_path, capsys):
    folders.print_classes(("猫", "a long name"), train=np.array([0, 1, 1] * 1000), validation=None, test=np.array([1]))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "class             train        test",
        "猫                1,000           0",
        "a long name       2,000           1",
    ]


@pytest.mark.slow
def test_a_script_uses_the_validation_images_of_a_folder(tmp_path):
    make_folder(tmp_path / "in" / "train", {"blue": 9, "amber": 8})
    make_folder(tmp_path / "in" / "val", {"blue": 4, "amber": 3})
    process = run_script(
        "signs_functional", "--epochs", 1, "--data-dir", tmp_path / "in", "--output-dir", tmp_path / "out"
    )
    assert process.returncode == 0, process.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["training"]["validation_examples"] == 7 and metrics["training"]["train_examples"] == 15
    assert metrics["settings"]["group_by"] == "near-duplicates" and metrics["results"]["test_examples"] == 2
    assert "validation_x    (7, 64, 64, 3)" in process.stdout


# ------------------------------------------------------------------------- packing


def pack(*arguments):
    command = [sys.executable, "-m", "datasets.pack", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_packed_folder_is_a_data_set_like_any_other(three, tmp_path):
    out = tmp_path / "packed"
    out.mkdir()
    for part in ("train", "test"):
        process = pack(three, out / f"{part}_signs.h5")
        assert process.returncode == 0 and "of 3 classes (amber, blue, crimson)" in process.stdout, process.stderr
    assert sorted(path.name for path in out.iterdir()) == ["test_signs.h5", "train_signs.h5"]
    packed = load_dataset(SIGNS, "real", out)
    train_x, train_y, test_x, test_y, classes = folders.load_folder(three)
    np.testing.assert_array_equal(packed.train_x, train_x[:])
    np.testing.assert_array_equal(packed.test_x, test_x[:])
    np.testing.assert_array_equal(packed.train_y, train_y)
    np.testing.assert_array_equal(packed.test_y, test_y)
    assert packed.class_names == classes


def test_a_file_of_both_parts_holds_all_images(three, tmp_path):
    assert pack(three, tmp_path / "out.h5").returncode == 0
    x, y, names = load_h5(tmp_path / "out.h5", "train")
    test_x, test_y, _ = load_h5(tmp_path / "out.h5", "test")
    assert len(x) + len(test_x) == 50 and names == tuple(COLORS) and np.bincount(test_y).tolist() == [3, 3, 2]


def test_a_packed_folder_trains_as_the_folder_does(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    for part, count in (("train", 24), ("val", 6)):
        for number in range(count):
            place = tmp_path / "in" / part / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(colors[number % 6] // 2 + number).save(place / f"{number}.png")
    (tmp_path / "out").mkdir()
    for part in ("train", "test"):
        assert pack(tmp_path / "in", tmp_path / "out" / f"{part}_signs.h5").returncode == 0
    own, packed = load_dataset(SIGNS, "auto", tmp_path / "in"), load_dataset(SIGNS, "auto", tmp_path / "out")
    assert packed.kind == "real" and len(np.unique(own.groups)) < len(own.groups)
    np.testing.assert_array_equal(packed.groups, own.groups)
    for one, other in zip(own.split_validation(2), packed.split_validation(2)):
        np.testing.assert_array_equal(one[:], other)
    np.testing.assert_array_equal(packed.test_x, own.test_x[:])
    assert packed.validation_x.shape == (6, 64, 64, 3)
    process = pack(tmp_path / "in", tmp_path / "both.h5", "--group-by", "none")
    assert process.returncode == 0, process.stderr
    assert "20 train images and 6 validation images and 4 test images of 2 classes (a, b)" in process.stdout
    rows = [line.split() for line in process.stdout.splitlines()]
    assert ["class", "train", "validation", "test"] in rows and ["a", "10", "3", "2"] in rows


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train_set_groups": np.arange(3)}, "train_set_groups in .* must hold an integer for each of the 12 images"),
        ({"train_set_groups": np.zeros(12)}, "must hold an integer for each of the 12 images .got float64"),
        ({"validation_set_x": np.zeros((2, 9, 9, 3), np.uint8)}, "validation_set_x in .* must hold RGB images"),
        ({"validation_set_y": ...}, "has no array validation_set_y"),
        ({"validation_set_y": np.array([0, 7])}, "validation_set_y in .* must hold integers from 0 to 5"),
    ],
)
def test_validation_images_and_groups_of_a_file_are_checked(tmp_path, write_h5, change, words):
    extra = {"validation_set_x": np.zeros((2, 64, 64, 3), np.uint8), "validation_set_y": np.array([0, 1])}
    write_h5(tmp_path / "train_signs.h5", "train", **{**extra, **change})
    write_h5(tmp_path / "test_signs.h5", "test")
    with pytest.raises(InputError, match=words):
        load_dataset(SIGNS, "real", tmp_path)


def test_a_class_of_the_validation_images_alone_is_refused(tmp_path, write_h5):
    extra = {"validation_set_x": np.zeros((2, 64, 64, 3), np.uint8), "validation_set_y": np.array([0, 5])}
    write_h5(tmp_path / "train_signs.h5", "train", y=np.arange(12) % 5, **extra)
    write_h5(tmp_path / "test_signs.h5", "test", y=np.arange(12) % 5)
    with pytest.raises(
        InputError, match="train_signs.h5 has validation images of class 5, but train_signs.h5 has none"
    ):
        load_dataset(SIGNS, "real", tmp_path)


def test_pack_refuses_folds_that_came_with_the_folder(tmp_path):
    for number in (1, 2):
        make_folder(tmp_path / f"fold{number}", {"blue": 3, "amber": 4})
    process = pack(tmp_path, tmp_path / "out.h5")
    assert process.returncode == 2 and "has 2 folds, but no test images" in process.stderr


def test_pack_refuses_a_folder_without_classes(tmp_path):
    process = pack(tmp_path, tmp_path / "out.h5")
    assert process.returncode == 2 and "got no subfolder" in process.stderr
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(
    "name, problem",
    [
        ("", "OUT.h5 must be a file, not a folder"),
        ("1.png", "OUT.h5 must be a new file, or an .h5 file to replace"),
        ("nowhere/out.h5", "the folder of OUT.h5 must exist"),
    ],
)
def test_pack_replaces_only_h5_files(name, problem, tmp_path, capsys, monkeypatch):
    from datasets import pack

    (tmp_path / "1.png").write_text("a photo")
    monkeypatch.setattr(sys, "argv", ["pack", str(tmp_path), str(tmp_path / name)])
    with pytest.raises(SystemExit):
        pack.main()
    assert problem in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["1.png"] and (tmp_path / "1.png").read_text() == "a photo"
