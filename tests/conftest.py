"""What several test files use: where things are, and small files in the course's schema."""

import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Real photographs, beside the checkout on some machines; never part of the repository.
SHARED = ROOT.parent / "shared" / "datasets"
REAL = {"happy": SHARED / "smile_faces", "signs": SHARED / "signs_photos"}

sys.path.insert(0, str(ROOT))


def run_script(script, *arguments, cwd=None):
    """Run a script as its user does, in a process of its own; return the finished process."""
    return subprocess.run([sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)], cwd=cwd,
                          capture_output=True, text=True, timeout=300)


def random_weights(layer, rng):
    """Random numbers for every weight: fresh batch norms (0, 1, 1, 0) would hide a mistake."""
    return [rng.uniform(0.5, 1.5, weight.shape) if weight.name in ("gamma", "moving_variance")
            else rng.normal(0, 0.1, weight.shape) if len(weight.shape) == 1
            else rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape)      # keeps the signal's size
            for weight in layer.weights]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """A script that is run inside the tests sets Keras's policy and opens figures: not for the next test."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].mixed_precision.set_global_policy("float32")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def write_h5():
    """Return a function that writes a data set's file and returns its path."""
    def write(path, part="train", x=None, y=None, classes=None, **others):
        count = 12
        rng = np.random.default_rng(0)
        arrays = {f"{part}_set_x": rng.integers(0, 256, (count, 64, 64, 3), np.uint8) if x is None else x,
                  f"{part}_set_y": np.arange(count) % 6 if y is None else y,
                  "list_classes": np.arange(6) if classes is None else classes, **others}
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                if array is not ...:        # ... leaves a key out
                    file[key] = array
        return path
    return write
