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
from conftest import ROOT, SCRIPTS, open_tiny_run, run_code, run_script, tiny_run

from basics.errors import InputError, NothingToDo
from support import startup
from support.cli import ScriptParser
from support.evaluation.results import NOT_SURE_BELOW
from support.training.checkpoint import Checkpoint
from support.training.run import SETTINGS
from support.training.run_folder import CHECKPOINT, claim, is_finished, make_room, read_checkpoint, resumable

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


@pytest.mark.slow
def test_ctrl_c_ends_the_training_and_saves_what_was_learned(tmp_path):
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
    assert metrics["training"]["interrupted"] is True and metrics["settings"]["epochs"] == 500
    epochs = len(read_history(tmp_path))
    assert 2 <= epochs < 500 and f"Interrupted after epoch {epochs}" in printed
    assert (tmp_path / CHECKPOINT).exists()  # --resume can continue
    assert {"model.keras", "learning_curves.png", "confusion_matrix.png", "report.html"} <= set(os.listdir(tmp_path))
    assert keras.models.load_model(tmp_path / "model.keras").count_params() == metrics["training"]["parameters"]


@pytest.mark.slow
def test_a_killed_and_resumed_script_gives_the_same_result():
    from benchmarks.resume import SIGNALS, kill_and_resume

    totals = kill_and_resume("signs_functional", kills=1, epochs=5, count=10, seed=3, signals=SIGNALS)
    assert [*totals] == ["INT", "TERM", "KILL"]
    for found in totals.values():
        assert found.kills == found.clean == 1 and found.saved == found.learned
        assert found.resumed == found.same >= 1


class Killed(BaseException):
    """An exception that ends the training at once."""


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Undisturbed runs of one training and of two, by the number of epochs in the first."""
    return {n: tiny_run(tmp_path_factory.mktemp("whole"), "--epochs", 6, head_epochs=n) for n in (0, 3)}


# Stopped inside each row of the schedule and each training, and at their ends.
@pytest.mark.parametrize("head_epochs, epochs_done", [(0, 1), (0, 2), (0, 4), (0, 6), (3, 1), (3, 3), (3, 5), (3, 6)])
def test_a_resumed_run_gives_the_result_of_a_whole_one(whole_runs, tmp_path, head_epochs, epochs_done):
    whole, expected, _ = whole_runs[head_epochs]
    with pytest.raises(Killed):
        tiny_run(tmp_path, "--epochs", 6, head_epochs=head_epochs, stop=(epochs_done, Killed()))
    assert set(os.listdir(tmp_path)) - {".lock"} == {CHECKPOINT}
    resumed, model, code = tiny_run(tmp_path, "--epochs", 6, "--resume", head_epochs=head_epochs)
    assert code == 0 and not (tmp_path / CHECKPOINT).exists()
    assert (tmp_path / "history.csv").read_text() == (whole.folder / "history.csv").read_text()
    for got, weights in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(got, weights)
    if epochs_done < 6:  # after the last epoch, nothing needs the optimizer's state any more
        for got, variable in zip(model.optimizer.variables, expected.optimizer.variables, strict=True):
            np.testing.assert_array_equal(got.numpy(), variable.numpy(), err_msg=variable.path)


DETERMINISTIC = ("--dry-run", "--data", "synthetic", "--output-dir")  # the default on a CPU


@pytest.mark.slow
def test_a_run_killed_after_its_last_epoch_is_not_trained_again(dry_run, tmp_path):
    """There is a checkpoint of the last epoch and no model, which must get the average of the weights."""
    code = (
        "import os, runpy, support.training.run\n"
        "support.training.run.Run.finish_training = lambda *arguments: os._exit(9)\n"  # what follows the training
        f"runpy.run_path({str(ROOT / 'happy_sequential.py')!r}, run_name='__main__')"
    )
    assert run_code(code, *DETERMINISTIC, tmp_path).returncode == 9
    assert (tmp_path / CHECKPOINT).exists() and not (tmp_path / "model.keras").exists()
    process = run_script("happy_sequential", *DETERMINISTIC, tmp_path, "--resume")
    assert process.returncode == 0 and "Epoch 4/4" not in process.stdout, process.stderr
    assert hash_of_weights(tmp_path) == hash_of_weights(dry_run("happy_sequential")[0])


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_deterministic_runs_are_the_same_to_the_last_bit(dry_run, tmp_path, script):
    first, process = dry_run(script)
    assert process.returncode == 0, process.stderr
    process = run_script(script, *DETERMINISTIC, tmp_path)
    assert process.returncode == 0, process.stderr
    assert hash_of_weights(first) == hash_of_weights(tmp_path)
    metrics = [read_metrics(folder) for folder in (first, tmp_path)]
    assert [found["training"].pop("seconds") > 0 for found in metrics] == [True, True]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_determinism_is_the_default_on_a_cpu_and_recorded(dry_run, tmp_path):
    assert read_metrics(dry_run("happy_sequential")[0])["settings"]["deterministic"] is True
    process = run_script("happy_sequential", *DETERMINISTIC, tmp_path, "--no-deterministic")
    assert process.returncode == 0 and read_metrics(tmp_path)["settings"]["deterministic"] is False, process.stderr
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
    run, _, code = tiny_run(tmp_path, stop=(1, KeyboardInterrupt()))
    assert code == 130 and run.interrupted and "Interrupted after epoch 1:" in capsys.readouterr().out
    (archived,) = (tmp_path / "earlier").iterdir()
    assert {"metrics.json", "model.keras", "history.csv", "examples.png"} <= set(os.listdir(archived))
    assert len(read_history(archived)) == 3 and read_metrics(archived)["training"]["interrupted"] is False
    assert {CHECKPOINT, "earlier", "examples.png", "model.keras"} <= set(os.listdir(tmp_path))
    (row,) = read_history(tmp_path)
    assert read_metrics(tmp_path)["training"]["interrupted"] is True
    assert row["epoch"] == "1" and {"loss", "val_loss", "accuracy", "val_accuracy"} <= set(row)
    assert [row[metric] for metric in run.history] == [str(values[0]) for values in run.history.values()]


def test_ctrl_c_in_the_first_of_two_trainings_skips_the_second(tmp_path):
    run, _, code = tiny_run(tmp_path, "--epochs", 4, head_epochs=2, stop=(1, KeyboardInterrupt()))
    assert code == 130 and run.epochs_done == len(read_history(tmp_path)) == 1
    assert run.schedule == [("unchanged", 1, 2)]


def test_ctrl_c_before_the_first_epoch_is_passed_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, stop=(0, KeyboardInterrupt()))
    assert not (tmp_path / "model.keras").exists()


def test_a_finished_run_is_known_and_not_trained_again(tmp_path):
    run, _, code = tiny_run(tmp_path, stop=(1, KeyboardInterrupt()))
    assert code == 130 and (tmp_path / CHECKPOINT).exists() and not is_finished(tmp_path, run.settings)
    run, _, code = tiny_run(tmp_path, "--resume")
    assert code == 0 and is_finished(tmp_path, run.settings) and len(read_history(tmp_path)) == 3
    assert not is_finished(tmp_path, {**run.settings, "seed": 2})
    with pytest.raises(NothingToDo, match="there is nothing to resume"):
        open_tiny_run(tmp_path, "--resume")
    # A checkpoint beside the results is that of a later run that was killed.
    write_checkpoint(tmp_path)
    assert not is_finished(tmp_path, run.settings)


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
    callback = Checkpoint(tmp_path / CHECKPOINT, CONFIG, {}, before_writing=lambda: None, started=0.0)
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    return callback


def test_a_checkpoint_of_other_settings_is_not_resumed(tmp_path, callback):
    saved = {"config": {**CONFIG, "blocks": [2, 3]}, "history": {"loss": [1.0]}, "rng_state": []}
    found = read_checkpoint(tmp_path / CHECKPOINT)
    assert resumable(tmp_path, CONFIG) == found and found.pop("seconds") > 0 and found == saved
    with pytest.raises(InputError, match="had other settings: seed was 1, now 2. .*drop --resume"):
        resumable(tmp_path, {**CONFIG, "seed": 2})
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:500])
    assert read_checkpoint(tmp_path / CHECKPOINT) is None
    make_room(tmp_path, {**CONFIG, "seed": 2})
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_that_will_not_fit_is_not_started(tmp_path, callback, monkeypatch):
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: argparse.Namespace(free=1_000_000))
    with pytest.raises(InputError, match="cannot be saved.*No space left on device"):
        callback.on_epoch_end(1, {"loss": 1.0})
    assert (tmp_path / CHECKPOINT).read_bytes() == before and os.listdir(tmp_path) == [CHECKPOINT]


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path):
    with pytest.raises(Killed):
        tiny_run(tmp_path, stop=(1, Killed()))
    whole = (tmp_path / CHECKPOINT).read_bytes()
    with h5py.File(tmp_path / CHECKPOINT, "a") as file:
        del file["layers"]
    damaged = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match="is not a checkpoint of this network: .*Drop --resume"):
        tiny_run(tmp_path, "--resume")
    assert (tmp_path / CHECKPOINT).read_bytes() == damaged
    (tmp_path / CHECKPOINT).write_bytes(whole[:-100])
    with pytest.raises(InputError, match="is damaged. Drop --resume"):
        tiny_run(tmp_path, "--resume")
    assert (tmp_path / CHECKPOINT).read_bytes() == whole[:-100]


# -------------------------------------------- a folder in use, or with earlier results


def write_results(folder, **others):
    """Put files into a folder as a finished run leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps({"settings": {**CONFIG, **others}, "training": {"interrupted": False}})
    )
    for name in ("model.keras", "examples.png", "history.csv", "mistakes.csv"):
        (folder / name).write_text("an hour's work")


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    write_results(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from basics.errors import run_main; from support.startup import quiet_startup\n"
        "with quiet_startup():\n    from support.training.run_folder import claim\n"
        f"run_main(lambda: print(claim({str(tmp_path)!r}, seconds=0), flush=True) or bool(input()))"
    )
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while first.stdout.readline() != f"{tmp_path}\n":
        assert first.poll() is None
    before = sorted(os.listdir(tmp_path))
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert f"{tmp_path} is in use by another run" in second.stderr
    assert sorted(os.listdir(tmp_path)) == before
    first.kill()  # however it ends
    first.communicate()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, input="\n").returncode == 0
    assert ".lock" not in os.listdir(tmp_path)


def test_a_run_with_other_settings_archives_the_earlier_one(tmp_path):
    write_results(tmp_path)
    (tmp_path / "notes.txt").write_text("the user's own")
    exports = "live.html", "model.onnx", "model.tflite", "model_int8.tflite", "saved_model"
    for name in exports:
        (tmp_path / name).write_text("an export")
    moved = make_room(tmp_path, {**CONFIG, "epochs": 1})
    (archived,) = tmp_path.glob("earlier/*/model.keras")
    assert archived.read_text() == archived.with_name("mistakes.csv").read_text() == "an hour's work"
    assert moved == f"Moved an earlier run with other settings to {archived.parent}"
    assert not (tmp_path / "model.keras").exists() and (tmp_path / "notes.txt").exists()
    # Beside another model, they would be wrong.
    assert all((archived.parent / name).exists() and not (tmp_path / name).exists() for name in exports)


@pytest.mark.parametrize("resumed", [False, True])
def test_exports_of_an_unfinished_model_are_moved(tmp_path, resumed):
    write_results(tmp_path)
    (tmp_path / "model.onnx").write_text("of a finished model")
    assert make_room(tmp_path, CONFIG) == "" and (tmp_path / "model.onnx").exists()
    metrics = {"settings": CONFIG, "training": {"interrupted": True}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    write_checkpoint(tmp_path)
    moved = make_room(tmp_path, CONFIG, resumed).splitlines()
    assert moved[0].startswith("Moved what was exported from the unfinished model to ") and len(moved) == 2 - resumed
    assert not (tmp_path / "model.onnx").exists() and list(tmp_path.glob("earlier/*/model.onnx"))
    assert (tmp_path / "model.keras").exists() and (tmp_path / CHECKPOINT).exists() == resumed


def test_a_run_with_the_same_settings_archives_nothing(tmp_path):
    write_results(tmp_path)
    assert make_room(tmp_path, CONFIG) == ""  # a tuple is read back as a list, which is no other setting
    assert (tmp_path / "model.keras").exists() and not (tmp_path / "earlier").exists()


def test_a_run_saved_before_settings_had_a_place_of_their_own_is_archived(tmp_path):
    write_results(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({**CONFIG, "interrupted": False}))
    assert not is_finished(tmp_path, CONFIG)
    assert make_room(tmp_path, CONFIG).startswith("Moved an earlier run") and not (tmp_path / "model.keras").exists()


def test_a_model_of_unknown_settings_is_archived(tmp_path):
    (tmp_path / "model.keras").write_text("an hour's work")
    (tmp_path / "metrics.json").write_text("{ damaged")
    moved = make_room(tmp_path, CONFIG)
    (archived,) = tmp_path.glob("earlier/*/model.keras")
    assert moved == f"Moved a model of which no settings are known to {archived.parent}"
    assert archived.read_text() == "an hour's work" and os.listdir(tmp_path) == ["earlier"]
    # A run that was killed while it saved has left a checkpoint as well, and is continued or moved by that.
    (tmp_path / "model.keras").write_text("half an hour's work")
    write_checkpoint(tmp_path)
    assert make_room(tmp_path, CONFIG, resumed=True) == "" and (tmp_path / "model.keras").exists()


@pytest.mark.parametrize("kind", ["a run", "a killed run", "a model", "a run of an earlier version"])
def test_a_dry_run_leaves_a_trained_model_where_it_is(tmp_path, kind):
    if kind == "a run":
        write_results(tmp_path)
    elif kind == "a killed run":
        write_checkpoint(tmp_path)
    else:
        (tmp_path / "model.keras").write_text("an hour's work")
    if kind.endswith("version"):
        (tmp_path / "metrics.json").write_text(json.dumps(CONFIG))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds a run that is no dry run. Choose another folder with --output-dir"):
        tiny_run(tmp_path, "--dry-run")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_dry_run_replaces_a_dry_run(tmp_path):
    for _ in range(2):
        assert tiny_run(tmp_path, "--dry-run")[2] == 0
    write_results(tmp_path, dry_run=True)
    assert tiny_run(tmp_path, "--dry-run")[2] == 0 and (tmp_path / "earlier").exists()


def test_what_a_killed_run_has_learned_is_kept(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "unfinished_12_model.keras").write_text("half")
    moved = make_room(tmp_path, CONFIG)
    (archived,) = (tmp_path / "earlier").iterdir()
    assert "unfinished run, 2 epochs" in moved and str(archived) in moved
    assert os.listdir(archived) == [CHECKPOINT] and os.listdir(tmp_path) == ["earlier"]
    assert resumable(archived, CONFIG)["history"] == {"loss": [1.0, 1.0]}  # and it can be resumed there


def test_a_resumed_run_keeps_its_checkpoint_when_it_archives_another(tmp_path):
    write_results(tmp_path, seed=9)
    write_checkpoint(tmp_path)
    make_room(tmp_path, CONFIG, resumed=True)
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, "earlier"]


def test_runs_of_one_second_are_archived_in_two_folders(tmp_path):
    for seed in (1, 2):
        write_results(tmp_path, seed=seed)
        os.utime(tmp_path / "metrics.json", (1e9, 1e9))
        make_room(tmp_path, {"seed": 3})
    archived = sorted((tmp_path / "earlier").iterdir())
    assert [read_metrics(folder)["settings"]["seed"] for folder in archived] == [1, 2]


def test_an_output_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Nothing can be saved in .*file.*--output-dir"):
        claim(tmp_path / "file" / "outputs")


# ------------------------------------------------------------ what identifies a run


@pytest.fixture
def earlier_run(tmp_path):
    """The settings of a run that left its results in `tmp_path`."""
    settings = open_tiny_run(tmp_path).settings
    (tmp_path / "metrics.json").write_text(json.dumps({"settings": settings}))
    return settings


@pytest.mark.parametrize("options", [
    ["--show"],
    ["--tensorboard"],
    ["--tta"],
    ["--explain"],
    ["--crop", "stretch"],
    ["--debug"],
    ["--not-sure-below", "0.9"],
])  # fmt: skip
def test_an_option_that_changes_no_weight_archives_nothing(tmp_path, earlier_run, options):
    settings = open_tiny_run(tmp_path, *options).settings
    assert settings == earlier_run and make_room(tmp_path, settings) == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", 2],
        ["--batch-size", 7],
        ["--learning-rate", 0.5],
        ["--seed", 9],
        ["--no-mix-synthetic"],
        ["--no-class-weights"],
        ["--fold", "2/3"],
        ["--mixed-precision"],
        ["--deterministic"],
        ["--dry-run"],
    ],
)
def test_an_option_that_changes_the_weights_archives_the_earlier_run(tmp_path, earlier_run, options):
    settings = open_tiny_run(tmp_path, *options).settings
    assert [key for key in settings if settings[key] != earlier_run[key]]
    assert make_room(tmp_path, settings).startswith("Moved an earlier run")


def test_making_a_run_changes_nothing_on_the_disk(tmp_path, earlier_run):
    before = sorted(tmp_path.rglob("*"))
    open_tiny_run(tmp_path, "--seed", 2)
    open_tiny_run(tmp_path / "new", "--seed", 2)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_option_is_known_to_identify_a_run_or_not_to():
    options = vars(ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01).parse_args([]))
    others = {"data", "data_dir", "output_dir", "show", "tensorboard", "seeds", "folds", "resume", "debug", "cache_dir"}
    others |= {"not_sure_below"}  # the weights and the predictions stay the same
    others |= {"none"}  # added to the settings where it is given
    others |= {"image_size"}  # the settings have that of the images
    others |= {"predict", "export", "crop", "tta", "explain", "default_output_dir"}
    assert others | set(SETTINGS) == set(options) and not others & set(SETTINGS)


@pytest.mark.parametrize("text, value", [
    ("0.8", 0.8), ("80%", 0.8), ("97.5%", 0.975), ("0", 0.0), ("1", 1.0), ("100%", 1.0), (".5", 0.5), ("1e-3", 0.001),
    ("80", None), ("1.01", None), ("-0.1", None), ("101%", None), ("nan", None), ("0,8", None), ("%", None), ("", None),
])  # fmt: skip
def test_the_least_probability_is_given_as_a_number_or_in_percent(capsys, text, value):
    parser = ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01)
    if value is not None:
        assert parser.parse_args(["--not-sure-below", text]).not_sure_below == value
        return
    with pytest.raises(SystemExit):
        parser.parse_args([f"--not-sure-below={text}"])
    message = "must be a probability from 0 to 1, such as 0.8, or a percentage, such as 80% (got "
    assert f"{message}{text!r})" in capsys.readouterr().err


def test_the_help_names_the_least_probability_that_is_used_without_the_option():
    words = " ".join(ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01).format_help().split())
    assert f"or else {NOT_SURE_BELOW})" in words


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
    assert errors == "The GPU cannot be used; continuing on the CPU (cuDNN: version mismatch)\n"


def test_a_gpu_that_tensorflow_does_not_find_is_mentioned(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(startup, "NVIDIA", tmp_path)
    startup.start_keras(1)
    assert "pip install 'tensorflow[and-cuda]" in capsys.readouterr().out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    startup.start_keras(1)
    assert "and-cuda" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_that_diverges_is_one_line(tmp_path):
    arguments = "--dry-run", "--data", "synthetic", "--learning-rate", "1e30", "--output-dir", tmp_path
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert "Training diverged" in process.stderr and "--learning-rate" in process.stderr
    assert not (tmp_path / "model.keras").exists()
