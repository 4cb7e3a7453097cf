"""Images that show none of the classes, in a folder called none: they teach a network to be unsure."""

import json
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

from basics.errors import InputError
from datasets import HAPPY, SIGNS, folders
from datasets.loading import load_dataset
from happy_sequential import encode_labels
from support.evaluation.outputs import class_weights, one_hot, sample_weights, shows_none
from support.training.batches import Batches

RNG = np.random.default_rng(0)


def make_folder(folder, counts):
    """Write images of random squares, a different one each time."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colors = RNG.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(colors).resize((64, 64), 0).save(folder / name / f"{number}.png")
    return folder


def names(x):
    return {path.split("/")[-2] for path in x.paths}


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
@pytest.mark.parametrize("fold", [None, "2/3"])
def test_images_of_none_are_apart_in_every_split(tmp_path, name, fold, capsys):
    make_folder(tmp_path, {"cat": 12, "dog": 12, name: 9, "zebra": 12})
    data = load_dataset(SIGNS, "auto", tmp_path, fold=fold)
    assert data.class_names == ("cat", "dog", "zebra")
    assert names(data.none_x) == names(data.test_none_x) == {name}
    assert len(data.none_x) + len(data.test_none_x) == 9 and len(data.test_none_x) == (3 if fold else 1)
    assert not {name} & (names(data.train_x) | names(data.test_x)) and data.test_y.max() == data.train_y.max() == 2
    assert len(data.groups) == len(data.train_x)
    assert data.test_names.tolist() == data.test_x.paths.tolist()
    train_x, train_y, validation_x, validation_y = data.split_validation(1)
    count = len(data.none_x)
    assert (
        (train_y[-count:] == 3).all() and (train_y[:-count] < 3).all() and names(train_x.take(train_y == 3)) == {name}
    )
    assert name not in names(validation_x) and validation_y.max() == 2
    assert len(train_x) + len(validation_x) == len(data.train_x) + count == len(train_y) + len(validation_y)
    printed = capsys.readouterr().out
    assert f"Images in {name} show none of the classes" in printed
    rows = [line.rsplit(maxsplit=2) for line in printed.splitlines()]
    assert ["none of these", str(count), str(len(data.test_none_x))] in rows


def test_the_images_are_those_of_their_labels_with_a_cache(tmp_path):
    folder = make_folder(tmp_path / "in", {"cat": 8, "dog": 8, "none": 5})
    data = load_dataset(SIGNS, "auto", folder, cache_dir=tmp_path / "cache")
    train_x, _, _, _ = data.split_validation(1)
    plain, _, _, _ = load_dataset(SIGNS, "auto", folder).split_validation(1)
    np.testing.assert_array_equal(train_x[:], plain[:])
    assert train_x.paths.tolist() == plain.paths.tolist()


def test_another_name_can_be_given(tmp_path):
    make_folder(tmp_path, {"cat": 6, "dog": 6, "other": 4, "none": 5})
    own = folders.load_parts(tmp_path, none="Other")
    assert own.class_names == ("cat", "dog", "none") and names(own.none_x) == {"other"}
    with pytest.raises(InputError, match="--none nothing: .* has no folder of this name"):
        folders.load_parts(tmp_path, none="nothing")


def test_one_class_beside_none_is_refused_with_advice(tmp_path):
    make_folder(tmp_path, {"glasses": 6, "none": 6})
    with pytest.raises(InputError, match="Images in none show none of the classes: if it is one, give it another name"):
        folders.load_parts(tmp_path)


def test_parts_that_came_with_the_folder(tmp_path, capsys):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        make_folder(tmp_path / part, {"cat": count, "dog": count, "none": count})
    data = load_dataset(SIGNS, "auto", tmp_path)
    assert (len(data.none_x), len(data.test_none_x), len(data.validation_x)) == (6, 2, 6)
    assert np.bincount(data.split_validation(1)[1]).tolist() == [6, 6, 6]
    assert "Left out: 3 validation images that show none of the classes" in capsys.readouterr().out


def test_other_parts_need_no_images_of_none(tmp_path, capsys):
    make_folder(tmp_path / "train", {"cat": 6, "dog": 6, "none": 3})
    make_folder(tmp_path / "test", {"cat": 6, "dog": 6})
    data = load_dataset(SIGNS, "auto", tmp_path)
    assert (
        len(data.none_x) == 3 and data.test_none_x is None and "test images of one class" not in capsys.readouterr().err
    )


def test_without_such_a_folder_nothing_changes(tmp_path):
    make_folder(tmp_path, {"cat": 6, "nonesuch": 6})
    data = load_dataset(SIGNS, "auto", tmp_path)
    assert data.class_names == ("cat", "nonesuch") and data.none_x is data.test_none_x is None


@pytest.mark.parametrize("option", [(), ("--none", "other")])
def test_a_packed_folder_keeps_them(tmp_path, option):
    folder = make_folder(tmp_path / "in", {"cat": 8, "dog": 8, option[1] if option else "none": 8})
    (tmp_path / "out").mkdir()
    for part in ("train", "test"):
        command = [sys.executable, "-m", "datasets.pack", folder, tmp_path / "out" / f"{part}_happy.h5", *option]
        process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        count = 7 if part == "train" else 1
        assert f"of 2 classes (cat, dog), and {count} images of none of them" in process.stdout
    own = load_dataset(HAPPY, "auto", tmp_path / "in", none=option[1] if option else None)
    packed = load_dataset(HAPPY, "auto", tmp_path / "out")
    for one, other in zip(own.split_validation(3), packed.split_validation(3)):
        np.testing.assert_array_equal(one[:], other)
    np.testing.assert_array_equal(own.test_none_x[:], packed.test_none_x)
    assert packed.class_names == ("cat", "dog")
    assert load_dataset(HAPPY, "auto", tmp_path / "out", fold="1/2").test_none_x is None


def test_images_of_none_in_a_file_must_be_images(tmp_path):
    for part in ("train", "test"):
        with h5py.File(tmp_path / f"{part}_happy.h5", "w") as file:
            file[f"{part}_set_x"] = RNG.integers(0, 256, (6, 64, 64, 3), np.uint8)
            file[f"{part}_set_y"] = np.arange(6) % 2
            file["list_classes"] = np.arange(2)
            file[f"{part}_none_x"] = RNG.integers(0, 256, (6, 64, 64), np.uint8)
    with pytest.raises(InputError, match="train_none_x in .* must hold RGB images of 64x64 pixels"):
        load_dataset(HAPPY, "auto", tmp_path)


def test_the_option_is_for_folders(tmp_path):
    with pytest.raises(InputError, match="--none other is for folders of your own images"):
        load_dataset(HAPPY, "synthetic", none="other", dry_run=True)


# ------------------------------------------------------------------------ labels and weights


def test_the_labels_are_equal_shares():
    assert encode_labels(np.array([0, 1, 2]), 2).tolist() == [[0], [1], [0.5]]
    np.testing.assert_allclose(encode_labels(np.array([1, 3]), 3), [[0, 1, 0], [1 / 3] * 3])
    for classes in (2, 3, 6, 7, 30, 1000):
        encoded = encode_labels(np.arange(classes + 1), classes)
        assert shows_none(encoded).tolist() == [False] * classes + [True]


@pytest.mark.parametrize("encode", [one_hot, encode_labels])
def test_images_of_none_have_the_weight_of_an_average_image(encode):
    y = np.array([0] * 2 + [1] * 18 + [2] * 10)
    weights = class_weights(encode(y, 2), ("rare", "common"))
    assert weights == pytest.approx({0: 5, 1: 20 / 36})  # the ten are not counted
    found = sample_weights(encode(y, 2), weights)
    np.testing.assert_allclose(found, [5] * 2 + [20 / 36] * 18 + [1] * 10, rtol=1e-6)


def test_the_batches_weigh_classes_as_keras_does():
    x, y = RNG.integers(0, 256, (40, 4, 4, 3), np.uint8), np.array([0] * 4 + [1] * 36)
    weights = class_weights(one_hot(y, 2), ("rare", "common"))
    batches = Batches([(1, (x, one_hot(y, 2)), None)], 1, 8, 1, 40)
    losses = []
    for ours in (weights, None):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])
        model.compile("sgd", "categorical_crossentropy")
        keras_weights = weights if ours is None else None
        history = model.fit(
            batches.dataset(0, ours), class_weight=keras_weights, steps_per_epoch=5, verbose=0, shuffle=False
        )
        losses.append(history.history["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ------------------------------------------------------------------------ the scripts


@pytest.mark.slow
@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_the_answer_for_other_images_is_not_sure(tmp_path, script):
    """Horizontal and vertical stripes are classes; plain images, beside them, are none."""
    folder = tmp_path / "mine"
    for name in ("across", "down", "none"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            low, high = RNG.integers(0, 100, 3), RNG.integers(150, 256, 3)
            stripes = (np.arange(64) // RNG.integers(4, 9) % 2)[:, None] * np.ones((64, 64))
            stripes = {"across": stripes, "down": stripes.T, "none": np.ones((64, 64)) * RNG.random()}[name]
            pixels = low + stripes[..., None] * (high - low) + RNG.normal(0, 8, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    arguments = "--epochs", 12, "--group-by", "none", "--data-dir", folder, "--output-dir", tmp_path / "out"
    process = run_script(script, *arguments)
    assert process.returncode == 0, process.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    none, training = metrics["results"]["none"], metrics["training"]
    assert none["examples"] == 9 and none["not_sure"] >= 8 and metrics["results"]["test_examples"] == 18
    assert f'Of 9 test images that show none of the classes, {none["not_sure"]} get "not sure"' in process.stdout
    assert metrics["results"]["test_accuracy"] > 0.9
    assert training["none_examples"] == 51
    assert training["train_examples"] + training["validation_examples"] == 180 - 9 - 18
    assert "show none of the classes" in (tmp_path / "out" / "report.html").read_text()
    process = run_script(script, "--output-dir", tmp_path / "out", "--predict", folder / "none")
    answers = (tmp_path / "out" / "predictions" / "predictions.csv").read_text().splitlines()
    assert sum(",no," in line for line in answers) > 50, process.stdout
