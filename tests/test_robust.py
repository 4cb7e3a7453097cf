"""Nothing lost: interrupted runs, files that appear whole or not at all, the same answer twice."""

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

import cnn_utils as utils
import prediction
import runs


def test_ctrl_c_ends_the_training_and_saves_what_was_learnt(tmp_path):
    command = [
        sys.executable,
        "-u",
        str(ROOT / "signs_functional.py"),
        "--data",
        "synthetic",
        "--epochs",
        "500",
        "--output-dir",
        str(tmp_path),
    ]
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
    assert (tmp_path / runs.BACKUP).exists()  # --resume may go on
    assert {"model.keras", "learning_curves.png", "confusion_matrix.png", "report.html"} <= set(os.listdir(tmp_path))
    assert keras.models.load_model(tmp_path / "model.keras").count_params() == metrics["parameters"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened():
    from benchmarks.resume import kill_and_resume

    kills, finished, same = kill_and_resume("signs_functional", kills=2, epochs=5, count=10, seed=3)
    assert kills == 2 and finished >= 1 and same == finished


def test_a_run_killed_after_its_last_epoch_is_not_trained_again(tmp_path):
    """The backup of the last epoch is there, the model is not: the average of its weights must be in the model."""
    script = "happy_sequential"
    arguments = ["--dry-run", "--deterministic", "--data", "synthetic", "--output-dir"]
    assert run_script(script, *arguments, tmp_path / "a").returncode == 0
    argv = [script, *arguments, str(tmp_path / "b")]
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = {argv}\n"
        f"import cnn_utils, {script}\n"
        "cnn_utils.compute_in_float32 = lambda model: os._exit(9)\n"  # what comes right after the training
        f"{script}.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).returncode == 9
    assert (tmp_path / "b" / runs.BACKUP).exists() and not (tmp_path / "b" / "model.keras").exists()
    process = run_script(script, *arguments, tmp_path / "b", "--resume")
    assert process.returncode == 0 and "Epoch" not in process.stdout, process.stderr
    assert hash_of_weights(tmp_path / "a") == hash_of_weights(tmp_path / "b")


def test_a_backup_of_other_settings_is_not_gone_on_with(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callback = runs.back_up(tmp_path / runs.BACKUP, {"seed": 1, "blocks": (2, 3)}, {})
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    assert runs.read_backup(tmp_path / runs.BACKUP) == {
        "settings": {"seed": 1, "blocks": [2, 3]},
        "history": {"loss": [1.0]},
        "generators": [],
    }
    runs.prepare_output_dir(tmp_path, {"seed": 1, "blocks": (2, 3)}, resume=True)
    with pytest.raises(utils.InputError, match="goes on with the run in.*Received: seed 1 then, 2 now"):
        runs.prepare_output_dir(tmp_path, {"seed": 2, "blocks": (2, 3)}, resume=True)
    (tmp_path / runs.BACKUP).write_bytes((tmp_path / runs.BACKUP).read_bytes()[:500])
    assert runs.read_backup(tmp_path / runs.BACKUP) is None
    runs.prepare_output_dir(tmp_path, {"seed": 2, "blocks": (2, 3)})
    assert not (tmp_path / runs.BACKUP).exists()


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, folder):
    path = tmp_path / "result.json"
    if folder:
        path.mkdir()
        (path / "inside").write_text("of before")
    else:
        path.write_text("of before")
    with pytest.raises(ZeroDivisionError), runs.unfinished(path) as aside:
        aside.write_text("half of")
        1 / 0  # noqa: B018
    assert [name for name in os.listdir(tmp_path)] == ["result.json"]
    assert (path / "inside" if folder else path).read_text() == "of before"
    if folder:
        with pytest.raises(utils.InputError, match="cannot be saved.*Received: Is a directory"):
            with runs.unfinished(path) as aside:  # a file does not take the place of a folder
                aside.write_text("new")
        assert (path / "inside").read_text() == "of before"
    with runs.unfinished(path) as aside:
        aside.mkdir() if folder else aside.write_text("new")
    assert os.listdir(tmp_path) == ["result.json"] and (os.listdir(path) == [] if folder else path.read_text() == "new")


def test_a_backup_that_will_not_fit_is_not_begun(tmp_path, monkeypatch):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callback = runs.back_up(tmp_path / runs.BACKUP, SETTINGS, {})
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    before = (tmp_path / runs.BACKUP).read_bytes()
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda folder: argparse.Namespace(free=1_000_000))
    with pytest.raises(utils.InputError, match="cannot be saved.*room in it.*Received: No space left on device"):
        callback.on_epoch_end(1, {"loss": 1.0})
    assert (tmp_path / runs.BACKUP).read_bytes() == before and os.listdir(tmp_path) == [runs.BACKUP]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(utils.InputError, match="cannot be saved.*--output-dir.*Received: No space left on device"):
        with runs.unfinished(tmp_path / "result.json"):
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)


@pytest.mark.parametrize(
    "error, words",
    [(MemoryError("Unable to allocate 9 GiB"), "--batch-size"), (utils.InputError("Wrong. Received: x"), "Wrong")],
)
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
        process = run_script(
            script, "--dry-run", "--deterministic", "--data", "synthetic", "--output-dir", tmp_path / name
        )
        assert process.returncode == 0, process.stderr
        hashes.append(hash_of_weights(tmp_path / name))
        found = json.loads((tmp_path / name / "metrics.json").read_text())
        metrics.append({key: value for key, value in found.items() if key != "train_seconds"})
    assert hashes[0] == hashes[1] and metrics[0] == metrics[1]


# ---- a folder that is in use, finished, or holds something of before

SETTINGS = {"epochs": 3, "seed": 1, "blocks": (2, 3)}


def finished_run(folder, **others):
    """Put files into a folder as a run leaves them."""
    (folder / "metrics.json").write_text(json.dumps({**SETTINGS, "interrupted": False, **others}))
    for name in ("model.keras", "examples.png", "history.csv"):
        (folder / name).write_text("of before")


def backup_of(folder, epochs=2):
    with h5py.File(folder / runs.BACKUP, "w") as file:
        file["state"] = json.dumps({"settings": SETTINGS, "history": {"loss": [1.0] * epochs}, "generators": []})


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    finished_run(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runs, cnn_utils as utils\n"
        f"utils.run(lambda: print(runs.prepare_output_dir({str(tmp_path)!r}, {{'epochs': 9}})) or bool(input()))"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while first.stdout.readline() != f"{tmp_path}\n":
        assert first.poll() is None
    before = sorted(os.listdir(tmp_path))
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and second.stderr.count("\n") == 1, second.stderr
    assert "Another run is writing into" in second.stderr and str(tmp_path) in second.stderr
    assert sorted(os.listdir(tmp_path)) == before
    first.kill()  # however it ends
    first.communicate()
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, input="\n").returncode
        == 0
    )
    assert ".lock" not in os.listdir(tmp_path)


def test_a_finished_run_is_known_and_not_trained_again(tmp_path, capsys):
    assert not runs.is_finished(tmp_path, SETTINGS)
    finished_run(tmp_path)
    assert runs.is_finished(tmp_path, SETTINGS) and not runs.is_finished(tmp_path, {**SETTINGS, "seed": 2})
    backup_of(tmp_path)
    assert not runs.is_finished(tmp_path, SETTINGS)
    assert runs.finish(tmp_path, interrupted=True) == 130 and (tmp_path / runs.BACKUP).exists()
    assert runs.finish(tmp_path, interrupted=False) == 0 and runs.is_finished(tmp_path, SETTINGS)
    finished_run(tmp_path, interrupted=True)
    assert not runs.is_finished(tmp_path, SETTINGS)
    # The same settings, tuples and all, are not "other settings".
    runs.prepare_output_dir(tmp_path, SETTINGS)
    assert "Moved" not in capsys.readouterr().out and (tmp_path / "model.keras").exists()


def test_what_a_killed_run_has_learnt_is_not_thrown_away(tmp_path, capsys):
    backup_of(tmp_path)
    (tmp_path / "unfinished_12_model.keras").write_text("half")
    runs.prepare_output_dir(tmp_path, SETTINGS)
    printed = capsys.readouterr().out
    (aside,) = (tmp_path / "earlier").iterdir()
    assert "not finished, 2 epochs" in printed and str(aside) in printed
    assert os.listdir(aside) == [runs.BACKUP] and sorted(os.listdir(tmp_path)) == [".lock", "earlier"]
    runs.prepare_output_dir(aside, SETTINGS, resume=True)  # and it can be gone on with
    assert (aside / runs.BACKUP).exists()


def test_runs_of_one_second_are_moved_to_two_folders(tmp_path):
    for seed in (1, 2):
        finished_run(tmp_path, seed=seed)
        os.utime(tmp_path / "metrics.json", (1e9, 1e9))
        runs.prepare_output_dir(tmp_path, {"seed": 3})
    moved = sorted((tmp_path / "earlier").iterdir())
    assert [json.loads((one / "metrics.json").read_text())["seed"] for one in moved] == [1, 2]


def test_half_a_training_does_not_replace_a_whole_one(tmp_path, capsys):
    finished_run(tmp_path)
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    fit = model.fit

    def interrupted_fit(*arguments, **options):
        fit(*arguments, **{**options, "epochs": 1})
        raise KeyboardInterrupt

    model.fit = interrupted_fit
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.ones((4, 1)))).repeat()
    history, interrupted = runs.fit(
        model,
        batches,
        output_dir=tmp_path,
        settings=SETTINGS,
        epochs=3,
        steps_per_epoch=1,
        validation_data=batches.take(1),
    )
    assert interrupted and len(history["loss"]) == 1
    (aside,) = (tmp_path / "earlier").iterdir()
    assert {"metrics.json", "model.keras", "history.csv"} <= set(os.listdir(aside))
    assert sorted(os.listdir(tmp_path)) == [runs.BACKUP, "earlier", "examples.png"]
    runs.save_history(history, tmp_path / "history.csv")
    with open(tmp_path / "history.csv") as file:
        (row,) = csv.DictReader(file)
    assert row == {"epoch": "1", "loss": str(history["loss"][0]), "val_loss": str(history["val_loss"][0])}


def test_a_folder_that_becomes_read_only_is_named(tmp_path, monkeypatch):
    def refused(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    (tmp_path / "metrics.json").write_text("of before")
    with pytest.raises(utils.InputError, match="metrics.json cannot be saved.*Received: Permission denied"):
        runs.write_json({}, tmp_path / "metrics.json")
    assert (tmp_path / "metrics.json").read_text() == "of before"
    finished_run(tmp_path)
    with pytest.raises(utils.InputError, match="cannot be moved aside.*Received: .*Permission denied"):
        runs.prepare_output_dir(tmp_path, {"seed": 2})


# ---- names that are no text, GPUs that are none


def test_names_of_any_bytes_are_printed_drawn_and_saved(tmp_path, capsys):
    import signs_functional
    from datasets.folders import load_folder

    odd = os.fsdecode(b"\xff\n\x1b[31m$x_1$<b>.png")
    for name in ("a", os.fsdecode(b"b\xfe")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (80, 60), (90, 60 * number, 9)).save(tmp_path / "in" / name / f"{number}{odd}")
    (tmp_path / "in" / "a" / odd).write_text("no picture")
    train_x, train_y, _, _, classes = load_folder(tmp_path / "in")
    assert list(classes) == ["a", "b\\udcfe"]
    utils.use_headless_figures(False)
    utils.plot_examples(train_x, train_y, utils.class_names(classes, ()), tmp_path / "examples.png", "folder")
    notes = {"classes": tuple(classes), "data": "folder", "temperature": 1.0, "familiar": None}
    paths = [tmp_path / "in" / "a" / f"0{odd}", tmp_path / "in" / "a" / odd]
    code = prediction.predict_images(signs_functional.build_model(2), notes, paths, tmp_path / "out")
    said = capsys.readouterr()
    assert code == 1 and "\x1b" not in said.out + said.err and (said.out + said.err).isascii()
    assert said.err.count("\n") == 2 and "\\udcff\\n\\x1b[31m$x_1$<b>.png" in said.out
    assert len(list((tmp_path / "out" / "predictions").glob("*.png"))) == 2


def test_pictures_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "one.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(utils.InputError, match=r"Received: a file that cannot be opened \(Permission denied\)"):
        prediction.read_image(tmp_path / "one.png", 64)


def test_a_broken_gpu_is_said_and_the_same_command_starts_without_it(monkeypatch, capfd):
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
        utils.start_tensorflow(1)
    assert str(left.value) == f"{sys.executable} {' '.join(sys.orig_argv)}"
    errors = capfd.readouterr().err
    assert errors == "The GPU cannot be used, going on with the CPU. Received: cuDNN: version mismatch\n"


def test_a_gpu_that_tensorflow_does_not_find_is_mentioned(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(utils, "NVIDIA", tmp_path)
    utils.start_tensorflow(1)
    assert "pip install 'tensorflow[and-cuda]" in capsys.readouterr().out
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    utils.start_tensorflow(1)
    assert "and-cuda" not in capsys.readouterr().out


# ---- what a careful reader has broken


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("x.jpg", "train_signs.h5", "test_signs.h5", "model.keras"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(utils.InputError, match="x.jpg: expected a picture.*Received: a device or a pipe"):
        prediction.read_image(tmp_path / "x.jpg", 64)
    with pytest.raises(utils.InputError, match="train_signs.h5 must be.*Received: neither a file nor a folder"):
        utils.load_signs_dataset("auto", tmp_path)
    with pytest.raises(utils.InputError, match="must be a model.*Received: neither a file nor a folder"):
        prediction.load_trained_model(tmp_path, "signs_functional", ("a", "b"))


def test_a_damaged_backup_is_named_and_kept(tmp_path):
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    callback = runs.back_up(tmp_path / runs.BACKUP, SETTINGS, {})
    callback.set_model(model)
    callback.on_epoch_end(0, {"loss": 1.0})
    whole = (tmp_path / runs.BACKUP).read_bytes()
    with h5py.File(tmp_path / runs.BACKUP, "a") as file:
        del file["layers"]
    with pytest.raises(utils.InputError, match="must be the backup of this network; leave --resume out.*Received: "):
        runs.fit(
            model,
            None,
            output_dir=tmp_path,
            settings=SETTINGS,
            epochs=3,
            steps_per_epoch=1,
            validation_data=None,
            resume=True,
        )
    (tmp_path / runs.BACKUP).write_bytes(whole[:-100])
    with pytest.raises(utils.InputError, match="must be the backup of a training.*Received: a damaged file"):
        runs.prepare_output_dir(tmp_path, SETTINGS, resume=True)
    assert (tmp_path / runs.BACKUP).read_bytes() == whole[:-100]


@pytest.mark.parametrize(
    "make, words",
    [
        (["cat/1.png"], "Received: pictures in .*/cat only"),
        (["1.png", "2.png"], "Received: pictures in .* only"),
        (["test/cat/1.png", "test/dog/1.png"], "Received: pictures in .*/test only"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_not_passed_over(tmp_path, make, words):
    for name in make:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    with pytest.raises(utils.InputError, match=f"one sub-folder of pictures for each class.*{words}"):
        utils.find_data("signs", "auto", tmp_path)
    assert utils.find_data("signs", "synthetic", tmp_path).kind == "synthetic"


def test_an_h5_file_that_would_make_others_be_read_is_refused(tmp_path, write_h5):
    write_h5(tmp_path / "other.h5")
    path = write_h5(tmp_path / "train_signs.h5", x=...)
    with h5py.File(path, "a") as file:
        file["train_set_x"] = h5py.ExternalLink("other.h5", "train_set_x")
    with pytest.raises(utils.InputError, match="must hold its arrays itself.*Received: train_set_x in another file"):
        utils.load_h5(path, "train")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"list_classes": np.zeros(6)}, "whole numbers, each once"),
        ({"list_classes": np.arange(6) + 0.5}, "each once"),
        ({"train_set_y": np.full(12, "a", object)}, "Received: "),
        ({"list_classes": h5py.Empty("i8")}, "without values"),
    ],
)
def test_labels_and_classes_of_the_wrong_kind_are_refused(tmp_path, write_h5, change, words):
    path = write_h5(tmp_path / "train_signs.h5")
    with h5py.File(path, "a") as file:
        for key, value in change.items():
            del file[key]
            file[key] = value
    with pytest.raises(utils.InputError, match=words):
        utils.load_h5(path, "train")


@pytest.mark.parametrize("names", [5, ["a"] * 6, ["a", "b"], [""] * 6])
def test_names_that_are_none_are_refused(tmp_path, write_h5, names):
    path = write_h5(tmp_path / "train_signs.h5")
    with h5py.File(path, "a") as file:
        file["list_classes"].attrs["names"] = names
    with pytest.raises(utils.InputError, match="The names of list_classes in .* must be one for each of 6 classes"):
        utils.load_h5(path, "train")


def test_a_picture_that_disappears_during_the_training_is_one_line(monkeypatch, capsys):
    import tensorflow as tf

    def main():
        raise tf.errors.UnknownError(
            None,
            None,
            "prediction.InputError: a.png: expected a picture. Received: no such "
            "file\nTraceback (most recent call last):\n",
        )

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as left:
        utils.run(main)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: a.png: expected a picture. Received: no such file\n"


def test_pack_does_not_replace_a_folder(tmp_path, capsys, monkeypatch):
    from datasets import pack

    monkeypatch.setattr(sys, "argv", ["pack", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        pack.main()
    assert "expected a file to write" in capsys.readouterr().err and tmp_path.is_dir()
