"""A saved model is plain Keras: it opens and predicts where nothing of this project is."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, run_code

# Prints the probabilities for random images; nothing of the project can be imported.
OUTSIDE = """
import sys, importlib.util
import keras, numpy as np
assert importlib.util.find_spec("support") is None
model = keras.models.load_model(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype("float32")
np.save(sys.argv[2], model.predict(images, verbose=0))
kinds = {type(layer).__module__.partition(".")[0] for layer in model.layers}
print(*kinds, type(model.optimizer).__module__.partition(".")[0])
"""

# The same with the project's own loader.
INSIDE = """
import pathlib, numpy as np
from datasets import HAPPY, SIGNS
from support.prediction.trained_model import load_trained_model
path = pathlib.Path(sys.argv[1])
task = HAPPY if sys.argv[3] == "happy_sequential" else SIGNS
network = "ResNet50" if sys.argv[3] == "signs_resnet50" else None
model, _ = load_trained_model(path.parent, sys.argv[3], task, network)
images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype("float32")
np.save(sys.argv[2], model.predict(images, verbose=0))
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_saved_model_opens_and_predicts_without_the_project(dry_run, script, tmp_path):
    folder, trained = dry_run(script)
    assert trained.returncode == 0, trained.stderr
    model = folder / "model.keras"
    # -I leaves the current folder, PYTHONPATH and the script's folder out of sys.path.
    command = [sys.executable, "-I", "-c", OUTSIDE, str(model), str(tmp_path / "outside.npy")]
    outside = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert outside.returncode == 0, outside.stderr
    assert outside.stdout.split() == ["keras", "keras"]
    inside = run_code(INSIDE, model, tmp_path / "inside.npy", script)
    assert inside.returncode == 0, inside.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "outside.npy"), np.load(tmp_path / "inside.npy"))


def test_no_class_pretends_to_be_of_keras():
    files = [*ROOT.glob("*.py")]
    for room in ("basics", "benchmarks", "datasets", "support", "weights"):
        files += (ROOT / room).rglob("*.py")
    assert len(files) > 30
    assert not [path for path in files if "__module__ =" in path.read_text(encoding="utf-8")]
