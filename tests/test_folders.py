"""Images of your own in folders: how they are found, split, read, packed and trained on."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

import cnn_utils as utils
from datasets import folders
from datasets.hdf5 import load_h5
from support.errors import InputError

COLOURS = {"amber": (240, 180, 30), "blue": (30, 60, 230), "crimson": (200, 20, 50)}


def make_folder(folder, counts, size=(90, 70), ending=".png"):
    """Write images of a class's colour, each a little different; return the folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = np.array(COLOURS.get(name, (128, 128, 128))) - number
            Image.new("RGB", size, tuple(map(int, colour))).save(folder / name / f"{number:03d}{ending}")
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
        expected = np.array(list(COLOURS.values()))[y]
        assert np.abs(images[:, 32, 32].astype(int) - expected).max() <= 20


def test_the_split_is_the_same_every_time(three):
    assert folders.load_folder(three)[2].paths.tolist() == folders.load_folder(three)[2].paths.tolist()


@pytest.mark.parametrize("test", ["test", "val", "validation"])
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
    with pytest.raises(InputError, match="7 folds need at least 7 images of each class.*Received: a class of 6"):
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
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("left out: ") for line in said)
    assert "000.png" in said[0] and "001.png" in said[1]


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
    assert "red/deep: expected a folder that can be listed" in first and first.endswith("Permission denied")
    assert "loop.png: expected an image" in second and "Too many levels of symbolic links" in second
    with pytest.raises(InputError, match="expected a folder that can be listed.*Received: No such file"):
        folders.has_classes(tmp_path / "nothing")


@pytest.mark.parametrize(
    "counts, words",
    [
        ({"blue": 5}, "at least two.*Received: blue"),
        ({"blue": 5, "amber": 2}, "at least 3 readable images.*Received: amber .2."),
        ({}, "Received: no subfolder"),
    ],
)
def test_too_few_classes_or_images_are_named(tmp_path, counts, words):
    make_folder(tmp_path, counts)
    with pytest.raises(InputError, match=words):
        folders.load_folder(tmp_path)


def test_a_class_that_only_the_test_set_has_is_refused(tmp_path):
    make_folder(tmp_path / "train", {"blue": 4, "amber": 5})
    make_folder(tmp_path / "test", {"blue": 2, "crimson": 1})
    with pytest.raises(InputError, match="no class that .*train lacks. Received: crimson"):
        folders.load_folder(tmp_path)


def test_find_data_distinguishes_a_folder_of_classes_from_one_of_files(three, tmp_path):
    assert utils.find_data("signs", "auto", three).kind == "folder"
    assert utils.find_data("happy", "real", three).kind == "folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="missing"):
        utils.find_data("signs", "real", tmp_path / "empty")


@pytest.mark.parametrize(
    "make, words",
    [
        (["cat/1.png"], "Received: images in .*/cat only"),
        (["1.png", "2.png"], "Received: images in .* only"),
        (["test/cat/1.png", "test/dog/1.png"], "Received: images in .*/test only"),
    ],
)
def test_a_folder_of_images_without_classes_is_refused(tmp_path, make, words):
    for name in make:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(InputError, match=f"one subfolder of images for each class.*{words}"):
        utils.find_data("signs", "auto", tmp_path)
    assert utils.find_data("signs", "synthetic", tmp_path).kind == "synthetic"


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_a_script_trains_on_classes_of_your_own_and_names_them(three, tmp_path, script):
    process = run_script(script, "--dry-run", "--data-dir", three, "--output-dir", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert "Data: your own images" in process.stdout and "Added" not in process.stdout
    rows = [line for line in process.stdout.splitlines() if line.startswith(("  amber", "  blue", "  crim"))]
    assert [row.split()[0] for row in rows] == ["amber", "blue", "crimson"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["data"] == "folder" and [entry["name"] for entry in metrics["classes"]] == list(COLOURS)
    if script == "happy_sequential":
        inside = run_script(script, "--dry-run", "--data-dir", three, "--output-dir", three / "out")
        assert inside.returncode == 2 and inside.stderr.startswith(f"error: --output-dir must lie outside {three}")
        assert not (three / "out").exists()
    rows = list(csv.DictReader(open(tmp_path / "out" / "mistakes.csv")))
    assert len(rows) == sum(map(sum, metrics["confusion_matrix"])) - np.trace(metrics["confusion_matrix"])
    for row in rows:  # the file lies in the folder of its class
        assert os.path.dirname(row["file"]) == str(three / row["true class"]) and os.path.isfile(row["file"])
    predicted = run_script(script, "--output-dir", tmp_path / "out", "--predict", three / "blue" / "003.png")
    assert predicted.returncode == 0 and "your own images of amber, blue, crimson" in predicted.stdout
    assert any(name in predicted.stdout.split("003.png: ")[1] for name in COLOURS)


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_unbalanced_classes_are_weighted_said_and_recorded(tmp_path, script):
    folder = make_folder(tmp_path / "mine", {"blue": 30, "amber": 6})
    arguments = "--epochs", 1, "--data-dir", folder, "--output-dir", tmp_path / "out"
    process = run_script(script, *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("a rare one counts more in the loss. Weights: amber ") == 1
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # 5 and 26 images to learn from are left, of which 1 and 3 are validated on.
    assert metrics["loss_weights"] == pytest.approx({"amber": 27 / 8, "blue": 27 / 46})
    assert "Balanced accuracy: " in process.stdout and 0 <= metrics["test_balanced_accuracy"] <= 1
    report = (tmp_path / "out" / "report.html").read_text()
    assert "amber 3.38, blue 0.59" in report and "Balanced accuracy" in report
    if script == "signs_functional":
        process = run_script(script, *arguments, "--no-class-weights")
        assert process.returncode == 0 and "a rare one" not in process.stdout, process.stderr


def test_two_classes_of_your_own_keep_the_single_output(tmp_path):
    folder = make_folder(tmp_path / "mine", {"blue": 12, "amber": 12})
    process = run_script("happy_sequential", "--dry-run", "--data-dir", folder, "--output-dir", tmp_path / "out")
    assert process.returncode == 0 and "(None, 1)" in process.stdout, process.stderr


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
    packed = utils.load_signs_dataset("real", out)
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
    assert len(x) + len(test_x) == 50 and names == tuple(COLOURS) and np.bincount(test_y).tolist() == [3, 3, 2]


def test_pack_refuses_a_folder_without_classes(tmp_path):
    process = pack(tmp_path, tmp_path / "out.h5")
    assert process.returncode == 2 and "Received: no subfolder" in process.stderr
    assert not (tmp_path / "out.h5").exists()


def test_pack_does_not_replace_a_folder(tmp_path, capsys, monkeypatch):
    from datasets import pack

    monkeypatch.setattr(sys, "argv", ["pack", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        pack.main()
    assert "expected a file to write" in capsys.readouterr().err and tmp_path.is_dir()
