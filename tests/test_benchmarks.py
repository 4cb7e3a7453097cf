"""The benchmarks: that they run is seen when they run; here, the parts that could lie."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from benchmarks.__main__ import row
from benchmarks.stress import hand_share, stress_sets


def test_a_row_holds_the_median_and_the_range():
    assert row("what", [3, 1, 2.5], "<= 2") == {"what": "what", "median": 2.5, "low": 1.0, "high": 3.0, "rounds": 3,
                                                "unit": "x", "aim": "<= 2", "note": ""}


@pytest.fixture
def hands():
    """Skin-coloured arms before a grey wall, uint8 (8, 64, 64, 3)."""
    x = np.full((8, 64, 64, 3), 190, np.uint8)
    x[:, 24:, 20:44] = (190, 130, 100)
    return x


def test_hand_share_tells_hand_from_wall(hands):
    share = hand_share(hands)[..., 0]
    assert share[:, 28:, 24:40].min() > 0.95 and share[:, :20].max() < 0.05


def test_stress_sets_change_what_they_say_and_repeat(hands):
    sets = stress_sets(hands)
    change = {name: np.abs(x.astype(int) - hands).mean(axis=(0, 3)) for name, x in sets.items()}
    assert change["walls"][:20].mean() > 10 and change["walls"][30:, 26:38].mean() < 2
    assert change["skin"][:20].mean() < 1 and change["skin"][30:, 26:38].mean() > 10
    assert change["light"].mean() > 10
    for name, x in stress_sets(hands).items():
        np.testing.assert_array_equal(x, sets[name])


def test_an_unknown_part_is_named(tmp_path):
    process = subprocess.run([sys.executable, "-m", "benchmarks", "--data-dir", str(tmp_path), "speed"], cwd=ROOT,
                             capture_output=True, text=True)
    assert process.returncode == 2 and "Received: speed" in process.stderr
