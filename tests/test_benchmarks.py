"""The benchmarks: only the parts that could be wrong without anyone noticing are tested here."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.__main__ import row
from benchmarks.stress import hand_mask, stress_sets


def test_a_row_holds_the_median_and_the_range():
    expected = {"figure": "speed", "median": 2.5, "unit": "x", "from": 1.0, "to": 3.0, "rounds": 3, "note": ""}
    assert row("speed", [3, 1, 2.5]) == expected


@pytest.fixture
def hands():
    """Skin-coloured arms in front of a grey wall, uint8 (8, 64, 64, 3)."""
    x = np.full((8, 64, 64, 3), 190, np.uint8)
    x[:, 24:, 20:44] = (190, 130, 100)
    return x


def test_hand_mask_separates_hand_and_wall(hands):
    mask = hand_mask(hands)[..., 0]
    assert mask[:, 28:, 24:40].min() > 0.95 and mask[:, :20].max() < 0.05


def test_stress_sets_change_what_they_name_and_are_reproducible(hands):
    sets = stress_sets(hands)
    change = {name: np.abs(x.astype(int) - hands).mean(axis=(0, 3)) for name, x in sets.items()}
    assert change["walls"][:20].mean() > 10 and change["walls"][30:, 26:38].mean() < 2
    assert change["skin"][:20].mean() < 1 and change["skin"][30:, 26:38].mean() > 10
    assert change["light"].mean() > 10
    for name, x in stress_sets(hands).items():
        np.testing.assert_array_equal(x, sets[name])


def test_an_unknown_part_is_named(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--data-dir", str(tmp_path), "speed"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2 and "Received: speed" in process.stderr
