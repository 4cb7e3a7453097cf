"""Options that need a package of their own; where it is missing, the message that names it."""

import importlib.util

import pytest
from conftest import run_script

import cnn_utils as utils
import runs


def test_tensorboard_gets_curves_examples_and_confusion_matrix(tmp_path):
    process = run_script("happy_sequential", "--dry-run", "--data", "synthetic", "--tensorboard",
                         "--output-dir", tmp_path)
    if importlib.util.find_spec("tensorboard") is None:
        assert process.returncode == 2 and 'pip install "tensorboard>=' in process.stderr.splitlines()[-1]
        return
    assert process.returncode == 0, process.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for part in ("train", "validation", "figures"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / part))
        events.Reload()
        found[part] = set(events.Tags()["tensors"])
    assert {"epoch_loss", "epoch_accuracy"} <= found["train"] and {"epoch_loss"} <= found["validation"]
    assert found["figures"] == {"examples", "confusion_matrix"}


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(utils.InputError, match='--magic needs the package nowhere_to_be_found: pip install "x>=1"'):
        runs.require("nowhere_to_be_found", "--magic", "x>=1")
