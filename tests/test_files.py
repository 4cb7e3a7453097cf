"""Files appear whole or not at all, whatever their names, and an error that the user can fix is one line."""

import os
import sys

import pytest
from PIL import Image

import cnn_utils as utils
from basics.errors import InputError, first_line, require, run_main
from basics.files import atomic_write, write_json
from datasets import SIGNS
from datasets.folders import load_folder
from datasets.images import read_image
from support.prediction.answers import predict_images
from support.prediction.trained_model import Metadata, load_trained_model
from support.training.run_folder import make_room

# -------------------------------------------------------------------- whole or not


@pytest.mark.parametrize("folder", [False, True])
def test_a_failed_write_leaves_what_was_there(tmp_path, folder):
    path = tmp_path / "result.json"
    if folder:
        path.mkdir()
        (path / "inside").write_text("of before")
    else:
        path.write_text("of before")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half of")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == ["result.json"]
    assert (path / "inside" if folder else path).read_text() == "of before"
    if folder:
        with pytest.raises(InputError, match="result.json cannot be saved: Is a directory"):
            with atomic_write(path) as temporary:  # a file does not replace a folder
                temporary.write_text("new")
        assert (path / "inside").read_text() == "of before"
    with atomic_write(path) as temporary:
        temporary.mkdir() if folder else temporary.write_text("new")
    assert os.listdir(tmp_path) == ["result.json"] and (os.listdir(path) == [] if folder else path.read_text() == "new")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is neither a file nor a folder"):
        write_json({}, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be saved: No space left on device.*--output-dir"):
        with atomic_write(tmp_path / "result.json"):
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)


def test_a_folder_that_becomes_read_only_is_named(tmp_path, monkeypatch):
    def refused(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    (tmp_path / "metrics.json").write_text("of before")
    with pytest.raises(InputError, match="metrics.json cannot be saved: Permission denied. Choose another folder"):
        write_json({}, tmp_path / "metrics.json")
    assert (tmp_path / "metrics.json").read_text() == "of before"
    (tmp_path / "metrics.json").write_text('{"settings": {"seed": 1}}')
    with pytest.raises(InputError, match="Earlier results cannot be moved to .*earlier.*: Permission denied"):
        make_room(tmp_path, {"seed": 2})


# ------------------------------------------------------------------ errors in a line


@pytest.mark.parametrize(
    "error, words",
    [
        (
            MemoryError("Unable to allocate 9 GiB"),
            "error: Not enough memory (got Unable to allocate 9 GiB). Try half the",
        ),
        (InputError("Wrong", "Do it right", "x"), "error: Wrong (got x). Do it right"),
        (InputError("Wrong", got=0), "error: Wrong (got 0)"),
        (InputError("Wrong", "Do it right"), "error: Wrong. Do it right"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_what_the_user_can_fix_is_one_line_unless_debugging(monkeypatch, capsys, error, words, debug):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"] + ["--debug"] * debug)
    with pytest.raises(SystemExit) as left:
        run_main(main)
    printed = capsys.readouterr().err
    assert left.value.code == 2 and printed.splitlines()[-1].startswith(words)
    assert ("Traceback" in printed) == debug and (printed.count("\n") == 1) == (not debug)


def test_other_errors_keep_their_traceback(monkeypatch, capsys):
    def main():
        return {}["a mistake of ours"]

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(KeyError):
        run_main(main)


@pytest.mark.parametrize(
    "reason, words",
    [
        ("OOM when allocating tensor with shape[512,64,64,64]", "Not enough memory"),
        ("events.out.tfevents.1; No space left on device", "The disk is full"),
    ],
)
def test_memory_or_disk_space_that_tensorflow_lacks_is_one_line(monkeypatch, capsys, reason, words):
    import tensorflow as tf

    def main():
        raise tf.errors.ResourceExhaustedError(None, None, reason)

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit):
        run_main(main)
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {words} (got {reason}). ") and printed.count("\n") == 1
    assert ("--batch-size" in printed) == ("OOM" in reason)


def test_an_image_that_disappears_during_the_training_is_one_line(monkeypatch, capsys):
    import tensorflow as tf

    wrapped = "basics.errors.InputError: a.png does not exist. Check the name\nTraceback (most recent ...\n"

    def main():
        raise tf.errors.UnknownError(None, None, wrapped)

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as left:
        run_main(main)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: a.png does not exist. Check the name\n"


def test_ctrl_c_is_one_line_and_code_130(monkeypatch, capsys):
    def main():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as left:
        run_main(main)
    printed = capsys.readouterr().err
    assert left.value.code == 130 and "Interrupted" in printed and "Traceback" not in printed


def test_the_first_line_of_an_error_is_never_empty():
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError()) == first_line(ValueError(" \n")) == "ValueError"
    assert first_line(ValueError("x" * 900)) == "x" * 200


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(InputError, match='--magic needs nowhere_to_be_found: pip install "x>=1"'):
        require("nowhere_to_be_found", "--magic", "x>=1")


# -------------------------------------------- odd names, and files that cannot be read


def test_names_of_any_bytes_are_printed_drawn_and_saved(tmp_path, capsys):
    import signs_functional

    odd = os.fsdecode(b"\xff\n\x1b[31m$x_1$<b>.png")
    for name in ("a", os.fsdecode(b"b\xfe")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (80, 60), (90, 60 * number, 9)).save(tmp_path / "in" / name / f"{number}{odd}")
    (tmp_path / "in" / "a" / odd).write_text("not an image")
    train_x, train_y, _, _, class_names = load_folder(tmp_path / "in")
    assert class_names == ("a", "b\\udcfe")
    utils.plot_examples(train_x, train_y, class_names, tmp_path / "examples.png", "folder")
    metadata = Metadata(class_names, SIGNS, "folder")
    paths = [tmp_path / "in" / "a" / f"0{odd}", tmp_path / "in" / "a" / odd]
    code = predict_images(signs_functional.build_model(2), metadata, paths, [], tmp_path / "out")
    printed = capsys.readouterr()
    assert code == 1 and "\x1b" not in printed.out + printed.err and (printed.out + printed.err).isascii()
    assert printed.err.count("\n") == 2 and "\\udcff\\n\\x1b[31m$x_1$<b>.png" in printed.out
    assert len(list((tmp_path / "out" / "predictions").glob("*.png"))) == 2


def test_an_image_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "one.png").write_bytes(b"x")
    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(InputError, match="one.png cannot be opened: Permission denied. Change its permissions"):
        read_image(tmp_path / "one.png", 64)


def test_a_pipe_is_not_waited_for(tmp_path):
    for name in ("x.jpg", "train_signs.h5", "test_signs.h5", "model.keras"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="x.jpg is a device or a pipe, not an image"):
        read_image(tmp_path / "x.jpg", 64)
    with pytest.raises(InputError, match="train_signs.h5 must be .*got neither a file nor a folder"):
        utils.load_signs_dataset("auto", tmp_path)
    with pytest.raises(InputError, match="is not a model saved by.*neither a file nor a folder"):
        load_trained_model(tmp_path, "signs_functional", SIGNS)
