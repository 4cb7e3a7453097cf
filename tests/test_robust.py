"""Nothing lost: interrupted runs, files that appear whole or not at all, the same answer twice."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT, run_script

import cnn_utils as utils


def test_ctrl_c_ends_the_training_and_saves_what_was_learnt(tmp_path):
    command = [sys.executable, "-u", str(ROOT / "signs_functional.py"), "--data", "synthetic", "--epochs", "500",
               "--output-dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"] is True and metrics["epochs"] == 500
    with open(tmp_path / "history.csv") as file:
        epochs = len(list(csv.DictReader(file)))
    assert 2 <= epochs < 500 and f"Interrupted after {epochs} epochs" in printed
    assert (tmp_path / utils.BACKUP).exists()       # --resume may go on
    assert {"model.keras", "learning_curves.png", "confusion_matrix.png", "report.html"} <= set(os.listdir(tmp_path))
    assert keras.models.load_model(tmp_path / "model.keras").count_params() == metrics["parameters"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened():
    from benchmarks.resume import kill_and_resume

    kills, runs, same = kill_and_resume("signs_functional", kills=2, epochs=5, count=10, seed=3)
    assert kills == 2 and runs >= 1 and same == runs


def test_a_run_killed_after_its_last_epoch_is_not_trained_again(tmp_path):
    """The backup of the last epoch is there, the model is not: the average of its weights must be in the model."""
    script = "happy_sequential"
    arguments = ["--dry-run", "--deterministic", "--data", "synthetic", "--output-dir"]
    assert run_script(script, *arguments, tmp_path / "a").returncode == 0
    argv = [script, *arguments, str(tmp_path / "b")]
    code = (f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {argv}\n"
            f"import cnn_utils, {script}\n"
            "cnn_utils.compute_in_float32 = lambda model: os._exit(9)\n"        # what comes right after the training
            f"{script}.main()")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 9
    assert (tmp_path / "b" / utils.BACKUP).exists() and not (tmp_path / "b" / "model.keras").exists()
    process = run_script(script, *arguments, tmp_path / "b", "--resume")
    assert process.returncode == 0 and "Epoch" not in process.stdout, process.stderr
    assert hash_of_weights(tmp_path / "a") == hash_of_weights(tmp_path / "b")


def test_a_backup_of_other_settings_is_not_gone_on_with(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    (tmp_path / "history.csv").write_text("epoch,loss\n0,1.0\n")
    callback = utils.back_up(tmp_path / utils.BACKUP, {"seed": 1, "blocks": (2, 3)}, {})
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    assert utils.read_backup(tmp_path / utils.BACKUP) == {
        "settings": {"seed": 1, "blocks": [2, 3]}, "history": {"loss": [1.0]}, "log": "epoch,loss\n0,1.0\n",
        "generators": []}
    utils.prepare_output_dir(tmp_path, {"seed": 1, "blocks": (2, 3)}, resume=True)
    with pytest.raises(utils.InputError, match="goes on with the run in.*Received: seed 1 then, 2 now"):
        utils.prepare_output_dir(tmp_path, {"seed": 2, "blocks": (2, 3)}, resume=True)
    (tmp_path / utils.BACKUP).write_bytes((tmp_path / utils.BACKUP).read_bytes()[:500])
    assert utils.read_backup(tmp_path / utils.BACKUP) is None
    utils.prepare_output_dir(tmp_path, {"seed": 2, "blocks": (2, 3)})
    assert not (tmp_path / utils.BACKUP).exists()


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, folder):
    path = tmp_path / "result.json"
    if folder:
        path.mkdir()
        (path / "inside").write_text("of before")
    else:
        path.write_text("of before")
    with pytest.raises(ZeroDivisionError), utils.unfinished(path) as aside:
        aside.write_text("half of")
        1 / 0       # noqa: B018
    assert [name for name in os.listdir(tmp_path)] == ["result.json"]
    assert (path / "inside" if folder else path).read_text() == "of before"
    with utils.unfinished(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["result.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(utils.InputError, match="cannot be saved.*--output-dir.*Received: No space left on device"):
        with utils.unfinished(tmp_path / "result.json"):
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)


@pytest.mark.parametrize("error, words", [(MemoryError("Unable to allocate 9 GiB"), "--batch-size"),
                                          (utils.InputError("Wrong. Received: x"), "Wrong")])
@pytest.mark.parametrize("debug", [False, True])
def test_what_the_user_can_mend_is_one_line_unless_debugging(monkeypatch, capsys, error, words, debug):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"] + ["--debug"] * debug)
    with pytest.raises(SystemExit) as left:
        utils.run(main)
    said = capsys.readouterr().err
    assert left.value.code == 2 and words in said.splitlines()[-1] and said.splitlines()[-1].startswith("error: ")
    assert ("Traceback" in said) == debug and (said.count("\n") == 1) == (not debug)


def test_memory_that_tensorflow_cannot_get_names_the_batch_size(monkeypatch, capsys):
    import tensorflow as tf

    def main():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[512,64,64,64]")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit):
        utils.run(main)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "try --batch-size" in said and "shape[512,64,64,64]" in said


def hash_of_weights(folder):
    weights = keras.models.load_model(folder / "model.keras").get_weights()
    return hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in weights)).hexdigest()


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional", "signs_resnet50"])
def test_deterministic_runs_are_the_same_to_the_last_bit(tmp_path, script):
    hashes, metrics = [], []
    for name in "ab":
        process = run_script(script, "--dry-run", "--deterministic", "--data", "synthetic",
                             "--output-dir", tmp_path / name)
        assert process.returncode == 0, process.stderr
        hashes.append(hash_of_weights(tmp_path / name))
        found = json.loads((tmp_path / name / "metrics.json").read_text())
        metrics.append({key: value for key, value in found.items() if key != "train_seconds"})
    assert hashes[0] == hashes[1] and metrics[0] == metrics[1]
