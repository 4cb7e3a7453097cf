"""The benchmarks: only the parts that could be wrong without anyone noticing are tested here."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from test_detection import on_a_wall

from basics.errors import InputError
from benchmarks.__main__ import row
from benchmarks.cases import trained, whole_photographs
from benchmarks.stress import hand_mask, stress_sets
from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support.prediction.numpy_inference import Network
from support.prediction.trained_model import load_trained_model


def test_a_row_holds_the_median_and_the_range():
    expected = {"figure": "speed", "median": 2.5, "unit": "x", "from": 1.0, "to": 3.0, "rounds": 3, "note": ""}
    assert row("speed", [3, 1, 2.5]) == expected


@pytest.fixture
def hands():
    """Skin-colored arms in front of a gray wall, uint8 (8, 64, 64, 3)."""
    x = np.full((8, 64, 64, 3), 190, np.uint8)
    x[:, 24:, 20:44] = (190, 130, 100)
    return x


def test_hand_mask_separates_hand_and_wall(hands):
    mask = hand_mask(hands)[..., 0]
    assert mask[:, 28:, 24:40].min() > 0.95 and mask[:, :20].max() < 0.05


def test_stress_sets_change_what_they_name_and_are_reproducible(hands):
    sets = stress_sets(hands)
    change = {name: np.abs(x.astype(int) - hands).mean(axis=(0, 3)) for name, x in sets.items()}
    assert change["background"][:20].mean() > 10 and change["background"][30:, 26:38].mean() < 2
    assert change["skin"][:20].mean() < 1 and change["skin"][30:, 26:38].mean() > 10
    assert change["lighting"].mean() > 10
    for name, x in stress_sets(hands).items():
        np.testing.assert_array_equal(x, sets[name])


def test_answers_for_whole_photographs_are_counted_by_finder(tmp_path):
    network, metadata = load_trained_model("nowhere", "signs_functional", SIGNS, load=Network, weights="synthetic")
    images, labels = (part[:6] for part in load_h5(*render_dataset("signs_wide", parts=("test",), few=4), "test")[:2])
    for number, (image, label) in enumerate(zip(images, labels)):
        photo = on_a_wall(image, 50 * number, 80, 300)
        photo.convert("L").save(tmp_path / f"{label}_{number}.jpg", quality=95)
    counts = whole_photographs(network, metadata, tmp_path)
    by_finder = {finder: [count for name, count in counts.items() if finder in name] for finder in ("color", "search")}
    assert [sum(count) for count in by_finder.values()] == [6, 6]
    assert counts["search: right and sure"] > counts["color: right and sure"]
    assert whole_photographs(network, metadata, tmp_path / "nowhere") == {}


@pytest.mark.parametrize("script", ["signs_functional", "signs_resnet50"])
def test_strangers_takes_any_network_of_the_task(dry_run, script):
    model = dry_run(script)[0] / "model.keras"
    loaded, metadata = trained("signs_functional", SIGNS, 1, None, model, others=("ResNet50",))
    assert loaded.name == {"signs_resnet50": "ResNet50"}.get(script, script)
    assert metadata.classes == SIGNS.class_names
    with pytest.raises(InputError, match="not 'happy_sequential'"):
        trained("happy_sequential", HAPPY, 1, None, model)


def test_a_damaged_model_of_strangers_is_named(tmp_path):
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(InputError, match="is not a model saved by signs_functional.py"):
        trained("signs_functional", SIGNS, 1, None, tmp_path / "model.keras", others=("ResNet50",))


def test_strangers_needs_strangers(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--data-dir", str(tmp_path), "strangers"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "strangers needs --other-dir or --smiles-dir" in process.stderr


def test_an_unknown_part_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--data-dir", str(tmp_path), "speed"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "PART must be any of first, onednn, signs, " in process.stderr
    assert process.stderr.endswith("(got 'speed')\n")


def test_a_part_after_the_models_is_not_taken_for_one(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--data-dir", str(tmp_path), "--signs-models", __file__, "strangers"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "for --signs-models. Write each PART before the options" in process.stderr


def test_the_fuzzer_names_its_readers_and_their_inputs():
    command = [sys.executable, "-m", "benchmarks.fuzz"]
    printed = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "50,000 for h5" in " ".join(printed.split()) and "{" not in printed
    process = subprocess.run([*command, "movies"], cwd=ROOT, capture_output=True, text=True)
    words = "READER must be any of h5, image, folder, cache, features (got 'movies')"
    assert process.returncode == 2 and words in process.stderr
