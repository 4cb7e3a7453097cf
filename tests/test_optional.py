"""Options that need a package of their own: they work, or the message names the package."""

import importlib.util

import pytest
from conftest import run_script

from basics.errors import InputError, require


@pytest.mark.slow
def test_tensorboard_gets_curves_examples_and_confusion_matrix(tmp_path):
    arguments = ["--dry-run", "--data", "synthetic", "--tensorboard", "--output-dir", tmp_path]
    process = run_script("happy_sequential", *arguments)
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
    with pytest.raises(InputError, match='^--magic needs nowhere_to_be_found: pip install "x>=1"$'):
        require("nowhere_to_be_found", "--magic", "x>=1")
