"""A run loses nothing: interrupted, killed, resumed, repeated; its folder locked, its earlier results archived."""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, open_tiny_run, run_code, run_script, tiny_run
from PIL import Image

from support import startup
from support.checkpoint import Checkpoint
from support.cli import ScriptParser
from support.errors import InputError
from support.output import CHECKPOINT, is_finished, prepare_output_dir, read_checkpoint
from support.run import SETTINGS

CONFIG = {"epochs": 3, "seed": 1, "blocks": (2, 3)}


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def read_history(folder):
    with open(folder / "history.csv") as file:
        return list(csv.DictReader(file))


def hash_of_weights(folder):
    weights = keras.models.load_model(folder / "model.keras").get_weights()
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in weights)).hexdigest()


# ------------------------------------------------------------- interrupted and killed


def test_ctrl_c_ends_the_training_and_saves_what_was_learnt(tmp_path):
    command = [sys.executable, "-u", ROOT / "signs_functional.py", "--data", "synthetic", "--epochs", "500"]
    command += ["--output-dir", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    metrics = read_metrics(tmp_path)
    assert metrics["interrupted"] is True and metrics["epochs"] == 500
    epochs = len(read_history(tmp_path))
    assert 2 <= epochs < 500 and f"Interrupted after {epochs} epochs" in printed
    assert (tmp_path / CHECKPOINT).exists()  # --resume can continue
    assert {"model.keras", "learning_curves.png", "confusion_matrix.png", "report.html"} <= set(os.listdir(tmp_path))
    assert keras.models.load_model(tmp_path / "model.keras").count_params() == metrics["parameters"]


@pytest.mark.slow
def test_a_killed_and_resumed_script_gives_the_same_result():
    from benchmarks.resume import kill_and_resume

    kills, finished, same = kill_and_resume("signs_functional", kills=2, epochs=5, count=10, seed=3)
    assert kills == 2 and finished >= 1 and same == finished


class Killed(BaseException):
    """An exception that ends the training at once."""


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Undisturbed runs of one phase and of two, by the number of epochs in the first."""
    return {n: tiny_run(tmp_path_factory.mktemp("whole"), "--epochs", 6, first_phase=n) for n in (0, 3)}


# Stopped inside each of the two stages and phases, and at their ends.
@pytest.mark.parametrize("first_phase, epochs_done", [(0, 1), (0, 2), (0, 4), (0, 6), (3, 1), (3, 3), (3, 5), (3, 6)])
def test_a_resumed_run_gives_the_result_of_a_whole_one(whole_runs, tmp_path, first_phase, epochs_done):
    whole, expected, _ = whole_runs[first_phase]
    with pytest.raises(Killed):
        tiny_run(tmp_path, "--epochs", 6, first_phase=first_phase, stop=(epochs_done, Killed()))
    assert set(os.listdir(tmp_path)) - {".lock"} == {CHECKPOINT}
    resumed, model, code = tiny_run(tmp_path, "--epochs", 6, "--resume", first_phase=first_phase)
    assert code == 0 and not (tmp_path / CHECKPOINT).exists()
    assert (tmp_path / "history.csv").read_text() == (whole.folder / "history.csv").read_text()
    for got, weights in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(got, weights)
    if epochs_done < 6:  # after the last epoch, nothing needs the optimizer's state any more
        for got, variable in zip(model.optimizer.variables, expected.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got.numpy(), variable.numpy(), err_msg=variable.path)


DETERMINISTIC = ("--dry-run", "--data", "synthetic", "--output-dir")  # the default on a CPU


@pytest.fixture(scope="module")
def deterministic_happy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deterministic")
    process = run_script("happy_sequential", *DETERMINISTIC, folder)
    assert process.returncode == 0, process.stderr
    return folder


def test_a_run_killed_after_its_last_epoch_is_not_trained_again(deterministic_happy_run, tmp_path):
    """There is a checkpoint of the last epoch and no model, which must get the average of the weights."""
    code = (
        "import os, happy_sequential, support.run\n"
        "support.run.Run.save_model = lambda *arguments: os._exit(9)\n"  # what follows the training
        "happy_sequential.main()"
    )
    assert run_code(code, *DETERMINISTIC, tmp_path).returncode == 9
    assert (tmp_path / CHECKPOINT).exists() and not (tmp_path / "model.keras").exists()
    process = run_script("happy_sequential", *DETERMINISTIC, tmp_path, "--resume")
    assert process.returncode == 0 and "Epoch" not in process.stdout, process.stderr
    assert hash_of_weights(tmp_path) == hash_of_weights(deterministic_happy_run)


@pytest.mark.parametrize(
    "script", ["happy_sequential", "signs_functional", pytest.param("signs_resnet50", marks=pytest.mark.slow)]
)
def test_deterministic_runs_are_the_same_to_the_last_bit(deterministic_happy_run, tmp_path, script):
    first = deterministic_happy_run
    if script != "happy_sequential":
        first = tmp_path / "first"
        process = run_script(script, *DETERMINISTIC, first)
        assert process.returncode == 0, process.stderr
    process = run_script(script, *DETERMINISTIC, tmp_path / "second")
    assert process.returncode == 0, process.stderr
    assert hash_of_weights(first) == hash_of_weights(tmp_path / "second")
    metrics = [read_metrics(folder) for folder in (first, tmp_path / "second")]
    assert [found.pop("train_seconds") > 0 for found in metrics] == [True, True]
    assert metrics[0] == metrics[1]


def test_determinism_is_the_default_on_a_cpu_and_recorded(deterministic_happy_run, tmp_path):
    assert read_metrics(deterministic_happy_run)["deterministic"] is True
    process = run_script("happy_sequential", *DETERMINISTIC, tmp_path, "--no-deterministic")
    assert process.returncode == 0 and read_metrics(tmp_path)["deterministic"] is False, process.stderr
    assert not re.search("^Device: .*deterministic", process.stdout, re.MULTILINE)
    # What a run was started with is what --resume compares.
    resumed = run_script("happy_sequential", *DETERMINISTIC, tmp_path, "--no-deterministic", "--resume")
    assert resumed.returncode == 0 and "there is nothing to resume" in resumed.stdout


@pytest.mark.parametrize("gpus, asked, expected", [(0, None, 1), (0, False, 0), (1, None, 0), (1, True, 1)])
def test_determinism_depends_on_the_device_unless_it_is_asked_for(monkeypatch, capsys, gpus, asked, expected):
    import tensorflow as tf

    enabled = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [argparse.Namespace(name="GPU:0")] * gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {})
    monkeypatch.setattr(startup, "_gpu_fault", lambda tf: "")
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: enabled.append(True))
    device, deterministic, _ = startup.start_keras(1, deterministic=asked)
    assert deterministic == bool(expected) and len(enabled) == expected and device.startswith("GPU" if gpus else "CPU")
    assert (", deterministic" in capsys.readouterr().out) == bool(expected)


def test_an_interrupted_run_does_not_replace_a_finished_one(tmp_path, capsys):
    assert tiny_run(tmp_path)[2] == 0
    Image.new("RGB", (9, 9)).save(tmp_path / "examples.png")  # drawn before the training
    run, _, code = tiny_run(tmp_path, stop=(1, KeyboardInterrupt()))
    assert code == 130 and run.interrupted and "Interrupted after 1 epochs" in capsys.readouterr().out
    (archived,) = (tmp_path / "earlier").iterdir()
    assert {"metrics.json", "model.keras", "history.csv", "examples.png"} <= set(os.listdir(archived))
    assert len(read_history(archived)) == 3 and read_metrics(archived)["interrupted"] is False
    # The new run has drawn its examples already.
    assert {CHECKPOINT, "earlier", "examples.png", "model.keras"} <= set(os.listdir(tmp_path))
    (row,) = read_history(tmp_path)
    assert read_metrics(tmp_path)["interrupted"] is True
    assert row["epoch"] == "1" and {"loss", "val_loss", "accuracy", "val_accuracy"} <= set(row)
    assert [row[metric] for metric in run.history] == [str(values[0]) for values in run.history.values()]


def test_ctrl_c_before_the_first_epoch_is_passed_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, stop=(0, KeyboardInterrupt()))
    assert not (tmp_path / "model.keras").exists()


def test_a_finished_run_is_known_and_not_trained_again(tmp_path, capsys):
    run, _, code = tiny_run(tmp_path, stop=(1, KeyboardInterrupt()))
    assert code == 130 and (tmp_path / CHECKPOINT).exists()
    assert not is_finished(tmp_path, run.config) and not open_tiny_run(tmp_path, "--resume").finished
    run, _, code = tiny_run(tmp_path, "--resume")
    assert code == 0 and is_finished(tmp_path, run.config) and len(read_history(tmp_path)) == 3
    assert not is_finished(tmp_path, {**run.config, "seed": 2})
    capsys.readouterr()
    assert open_tiny_run(tmp_path, "--resume").finished and not open_tiny_run(tmp_path).finished
    assert "there is nothing to resume" in capsys.readouterr().out
    # A checkpoint beside the results is that of a later run that was killed.
    write_checkpoint(tmp_path)
    assert not is_finished(tmp_path, run.config)


@pytest.mark.parametrize("epochs", [1, 5])
def test_n_epochs_are_n_rows_of_the_history(tmp_path, epochs):
    tiny_run(tmp_path, "--epochs", epochs)
    assert [row["epoch"] for row in read_history(tmp_path)] == [str(epoch + 1) for epoch in range(epochs)]


# ------------------------------------------------------------------- the checkpoint


def write_checkpoint(folder, epochs=2):
    with h5py.File(folder / CHECKPOINT, "w") as file:
        file["state"] = json.dumps({"config": CONFIG, "history": {"loss": [1.0] * epochs}, "rng_state": []})


@pytest.fixture
def callback(tmp_path):
    """A checkpoint callback after its first epoch."""
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callback = Checkpoint(tmp_path / CHECKPOINT, CONFIG, {})
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    return callback


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path, callback):
    saved = {"config": {**CONFIG, "blocks": [2, 3]}, "history": {"loss": [1.0]}, "rng_state": []}
    assert read_checkpoint(tmp_path / CHECKPOINT) == saved
    prepare_output_dir(tmp_path, CONFIG, resume=True)
    with pytest.raises(InputError, match="continues the run in.*Received: seed 1 then, 2 now"):
        prepare_output_dir(tmp_path, {**CONFIG, "seed": 2}, resume=True)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:500])
    assert read_checkpoint(tmp_path / CHECKPOINT) is None
    prepare_output_dir(tmp_path, {**CONFIG, "seed": 2})
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_that_will_not_fit_is_not_started(tmp_path, callback, monkeypatch):
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: argparse.Namespace(free=1_000_000))
    with pytest.raises(InputError, match="cannot be saved.*enough room.*Received: No space left on device"):
        callback.on_epoch_end(1, {"loss": 1.0})
    assert (tmp_path / CHECKPOINT).read_bytes() == before and os.listdir(tmp_path) == [CHECKPOINT]


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    with pytest.raises(Killed):
        tiny_run(tmp_path, stop=(1, Killed()))
    whole = (tmp_path / CHECKPOINT).read_bytes()
    with h5py.File(tmp_path / CHECKPOINT, "a") as file:
        del file["layers"]
    damaged = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match="must be the checkpoint of this network; leave --resume out.*Received: "):
        tiny_run(tmp_path, "--resume")
    assert (tmp_path / CHECKPOINT).read_bytes() == damaged
    (tmp_path / CHECKPOINT).write_bytes(whole[:-100])
    with pytest.raises(InputError, match="must be the checkpoint of a training.*Received: a damaged file"):
        tiny_run(tmp_path, "--resume")
    assert (tmp_path / CHECKPOINT).read_bytes() == whole[:-100]


# -------------------------------------------- a folder in use, or with earlier results


def write_results(folder, **others):
    """Put files into a folder as a finished run leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({**CONFIG, "interrupted": False, **others}))
    for name in ("model.keras", "examples.png", "history.csv", "mistakes.csv"):
        (folder / name).write_text("an hour's work")


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    write_results(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from support.errors import run_main; from support.startup import quiet_startup\n"
        "with quiet_startup():\n    from support.output import prepare_output_dir\n"
        f"run_main(lambda: print(prepare_output_dir({str(tmp_path)!r}, {{'epochs': 9}})) or bool(input()))"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while first.stdout.readline() != f"{tmp_path}\n":
        assert first.poll() is None
    before = sorted(os.listdir(tmp_path))
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert "Another run is writing into" in second.stderr and str(tmp_path) in second.stderr
    assert sorted(os.listdir(tmp_path)) == before
    first.kill()  # however it ends
    first.communicate()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, input="\n").returncode == 0
    assert ".lock" not in os.listdir(tmp_path)


def test_a_run_with_other_settings_archives_the_earlier_one(tmp_path, capsys):
    output = tmp_path / "outputs"
    write_results(output)
    (output / "notes.txt").write_text("the user's own")
    prepare_output_dir(output, {**CONFIG, "epochs": 1})
    (archived,) = output.glob("earlier/*/model.keras")
    assert archived.read_text() == archived.with_name("mistakes.csv").read_text() == "an hour's work"
    assert str(archived.parent) in capsys.readouterr().out
    assert not (output / "model.keras").exists() and (output / "notes.txt").exists()


def test_a_run_with_the_same_settings_archives_nothing(tmp_path, capsys):
    write_results(tmp_path)
    prepare_output_dir(tmp_path, CONFIG)  # a tuple is read back as a list, which is no other setting
    assert "Moved" not in capsys.readouterr().out
    assert (tmp_path / "model.keras").exists() and not (tmp_path / "earlier").exists()


def test_what_a_killed_run_has_learnt_is_kept(tmp_path, capsys):
    write_checkpoint(tmp_path)
    (tmp_path / "unfinished_12_model.keras").write_text("half")
    prepare_output_dir(tmp_path, CONFIG)
    printed = capsys.readouterr().out
    (archived,) = (tmp_path / "earlier").iterdir()
    assert "unfinished run, 2 epochs" in printed and str(archived) in printed
    assert os.listdir(archived) == [CHECKPOINT] and sorted(os.listdir(tmp_path)) == [".lock", "earlier"]
    prepare_output_dir(archived, CONFIG, resume=True)  # and it can be resumed there
    assert (archived / CHECKPOINT).exists()


def test_runs_of_one_second_are_archived_in_two_folders(tmp_path):
    for seed in (1, 2):
        write_results(tmp_path, seed=seed)
        os.utime(tmp_path / "metrics.json", (1e9, 1e9))
        prepare_output_dir(tmp_path, {"seed": 3})
    archived = sorted((tmp_path / "earlier").iterdir())
    assert [read_metrics(folder)["seed"] for folder in archived] == [1, 2]


def test_an_output_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output-dir.*Received: .*file"):
        prepare_output_dir(tmp_path / "file" / "outputs")


# ------------------------------------------------------------ what identifies a run


@pytest.fixture
def earlier_run(tmp_path):
    """The config of a run that left its results in `tmp_path`."""
    config = open_tiny_run(tmp_path).config
    (tmp_path / "metrics.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize(
    "options", [["--show"], ["--tensorboard"], ["--tta"], ["--explain"], ["--crop", "stretch"], ["--debug"]]
)
def test_an_option_that_changes_no_weight_archives_nothing(tmp_path, earlier_run, options):
    assert open_tiny_run(tmp_path, *options).config == earlier_run
    assert not (tmp_path / "earlier").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", 2],
        ["--batch-size", 7],
        ["--learning-rate", 0.5],
        ["--seed", 9],
        ["--pretrain"],
        ["--no-mix-synthetic"],
        ["--no-rendered"],
        ["--no-class-weights"],
        ["--fold", "2/3"],
        ["--mixed-precision"],
        ["--no-mixed-precision"],
        ["--deterministic"],
        ["--dry-run"],
    ],
)
def test_an_option_that_changes_the_weights_archives_the_earlier_run(tmp_path, earlier_run, options):
    config = open_tiny_run(tmp_path, *options).config
    if options[0].endswith("mixed-precision") and config == earlier_run:
        return  # this machine's default
    changed = [key for key in config if config[key] != earlier_run[key]]
    assert changed and len(list(tmp_path.glob("earlier/*/metrics.json"))) == 1


def test_every_option_is_known_to_identify_a_run_or_not_to():
    options = vars(ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01).parse_args([]))
    others = {"data", "data_dir", "output_dir", "show", "tensorboard", "seeds", "folds", "resume", "debug", "cache_dir"}
    others |= {"predict", "export", "crop", "tta", "explain"}
    assert others | set(SETTINGS) == set(options) | {"identity_blocks"} and not others & set(SETTINGS)


# ----------------------------------------------------------------------- the device


def test_after_a_gpu_fault_the_same_command_starts_again_without_it(monkeypatch, capfd):
    import tensorflow as tf

    class Gpu:
        name = "/physical_device:GPU:0"

    def broken(*arguments):
        raise tf.errors.InternalError(None, None, "cuDNN: version mismatch\nand more")

    def execute(program, arguments):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        raise SystemExit(f"{program} {' '.join(arguments)}")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [Gpu()])
    monkeypatch.setattr(tf.nn, "conv2d", broken)
    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(SystemExit) as left:
        startup.start_keras(1)
    assert str(left.value) == f"{sys.executable} {' '.join(sys.orig_argv)}"
    errors = capfd.readouterr().err
    assert errors == "The GPU cannot be used; continuing on the CPU. Received: cuDNN: version mismatch\n"


def test_a_gpu_that_tensorflow_does_not_find_is_mentioned(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(startup, "NVIDIA", tmp_path)
    startup.start_keras(1)
    assert "pip install 'tensorflow[and-cuda]" in capsys.readouterr().out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    startup.start_keras(1)
    assert "and-cuda" not in capsys.readouterr().out


def test_a_training_that_diverges_is_one_line(tmp_path):
    arguments = "--dry-run", "--data", "synthetic", "--learning-rate", "1e30", "--output-dir", tmp_path
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "The training diverged" in process.stderr and "--learning-rate" in process.stderr
    assert not (tmp_path / "model.keras").exists()
