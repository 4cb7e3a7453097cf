"""Ctrl-C, SIGTERM and SIGHUP end a command as soon as nothing gets lost, and what was learned is saved."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from conftest import ROOT, run_code, tiny_run

from basics import errors, signals
from basics.errors import run_main
from support import seeds
from support.training.checkpoint import SignalCheck
from support.training.run_folder import CHECKPOINT

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def usual_handlers():
    """Undo what a shell does that starts the tests in the background: it lets them ignore some of the signals."""
    usual = signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL
    before = [signal.signal(number, handler) for number, handler in zip(ENDING, usual)]
    yield
    for number, handler in zip(ENDING, before):
        signal.signal(number, handler)


def send(number):
    """Send this process a signal, and let Python handle it."""
    os.kill(os.getpid(), number)
    for _ in range(10):
        time.sleep(0.001)


@pytest.mark.parametrize("number", ENDING)
def test_each_signal_is_an_interrupt_with_its_own_exit_code(number):
    before = [signal.getsignal(each) for each in ENDING]
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        send(number)
    assert signals.exit_code() == 128 + number
    assert signals.came_from_keyboard() == (number == signal.SIGINT)
    assert [signal.getsignal(each) for each in ENDING] == before


def test_ctrl_c_without_a_signal_is_130():
    with signals.as_interrupts():
        pass
    assert signals.exit_code() == 130


def test_signals_that_are_ignored_stay_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        with signals.as_interrupts():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_batch_system_that_repeats_itself_does_not_end_the_saving():
    with signals.as_interrupts():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGHUP)
        with pytest.raises(KeyboardInterrupt):  # but Ctrl-C does
            send(signal.SIGINT)
    with signals.as_interrupts():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt):
                send(number)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_while_it_is_held(number):
    with signals.as_interrupts():
        signals.hold()
        send(number)
        with pytest.raises(KeyboardInterrupt):
            signals.check()
        signals.check()
        signals.release()
    assert signals.exit_code() == 128 + number


def test_a_second_ctrl_c_does_not_wait():
    with signals.as_interrupts():
        signals.hold()
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        signals.release()
    with signals.as_interrupts():
        signals.hold()
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signals.release()


def test_a_signal_waits_until_the_end_of_a_block():
    done = False
    with signals.as_interrupts(), pytest.raises(KeyboardInterrupt):
        with signals.held():
            send(signal.SIGTERM)
            done = True
    assert done
    with signals.as_interrupts():
        with signals.held():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_an_interrupt_that_python_drops_comes_with_the_next_check(monkeypatch):
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Finished:
        def __del__(self):
            send(signal.SIGTERM)

    with signals.as_interrupts():
        Finished()
        with pytest.raises(KeyboardInterrupt):
            signals.check()
        signals.check()
    assert len(dropped) == 1


def test_keras_is_imported_to_the_end():
    """A library in C++ may crash Python if its import is interrupted."""
    code = """
import atexit, os, signal
from basics.errors import one_line_errors
from support.startup import start_keras
class Finder:
    def find_spec(name, *_):
        if name == "tensorflow":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
atexit.register(lambda: print("tensorflow.python" in sys.modules))
with one_line_errors():
    start_keras(1)
"""
    process = run_code(code)
    assert process.returncode == 130 and process.stdout == "True\n", process.stderr
    assert process.stderr.startswith("\nInterrupted. ")


def test_another_thread_leaves_signals_alone():
    handlers = []

    def work():
        with signals.as_interrupts():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("resumable", [False, True])
def test_the_line_promises_only_what_is_there(monkeypatch, capsys, resumable):
    monkeypatch.setattr(errors, "resumable", resumable)
    with pytest.raises(SystemExit) as ended:
        run_main(send, signal.SIGTERM)
    assert ended.value.code == 143
    advice = "; --resume continues after the last epoch that had finished" if resumable else ""
    assert capsys.readouterr().err == f"\nInterrupted. Only the files listed above were saved{advice}\n"


def test_ctrl_c_between_two_steps_of_a_script_is_one_line():
    code = (
        "import os, signal, time\nfrom basics.errors import one_line_errors\n"
        "with one_line_errors():\n    pass\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)"
    )
    process = run_code(code)
    assert process.returncode == -signal.SIGINT
    assert process.stderr == "\nInterrupted. Only the files listed above were saved\n"


# --------------------------------------------------------------------------- a training


class SendingCheck(SignalCheck):
    """A `SignalCheck` that sends this process a signal in an epoch, counted from 1, before it does its own work."""

    def __init__(self, number, epoch, method):
        super().__init__()
        self.signal, self.at, self.method = number, epoch, method

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._send("on_epoch_end")

    def on_train_batch_end(self, batch, logs=None):
        self._send("on_train_batch_end")
        super().on_train_batch_end(batch, logs)

    def _send(self, method):
        if (self.epoch, method) == (self.at, self.method):
            self.at = None
            send(self.signal)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("whole"), "--epochs", 4)


@pytest.mark.parametrize(
    "number, method, epoch, done",
    [
        (signal.SIGINT, "on_epoch_end", 1, 1),
        (signal.SIGINT, "on_train_batch_end", 2, 1),
        (signal.SIGTERM, "on_train_batch_end", 2, 1),
        (signal.SIGTERM, "on_epoch_end", 4, 4),
        (signal.SIGHUP, "on_epoch_end", 1, 1),
    ],
)
def test_a_training_that_gets_a_signal_saves_and_can_be_resumed(
    whole_run, tmp_path, monkeypatch, number, method, epoch, done
):
    monkeypatch.setattr("support.training.run.SignalCheck", lambda: SendingCheck(number, epoch, method))
    with signals.as_interrupts():
        run, _, code = tiny_run(tmp_path, "--epochs", 4)
    assert code == 128 + number and run.interrupted and run.epochs_done == done
    training = json.loads((tmp_path / "metrics.json").read_text())["training"]
    assert training["interrupted"] is True and (tmp_path / "model.keras").exists() and (tmp_path / CHECKPOINT).exists()
    monkeypatch.undo()
    resumed, model, code = tiny_run(tmp_path, "--epochs", 4, "--resume")
    whole, expected, _ = whole_run
    assert code == 0 and resumed.history == whole.history
    for got, weights in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(got, weights)


def test_a_signal_before_the_first_epoch_has_nothing_to_save(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "support.training.run.SignalCheck", lambda: SendingCheck(signal.SIGTERM, 1, "on_train_batch_end")
    )
    with pytest.raises(KeyboardInterrupt), signals.as_interrupts():
        tiny_run(tmp_path)
    assert not errors.resumable and not (tmp_path / "model.keras").exists()


# --------------------------------------------------------------------------- the scripts


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, number",
    [
        ("happy_sequential", signal.SIGTERM),
        ("signs_functional", signal.SIGHUP),  # for Ctrl-C, see test_run.py
        ("signs_resnet50", signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_training_and_saves_what_was_learned(tmp_path, script, number):
    command = [sys.executable, "-u", ROOT / f"{script}.py", "--data", "synthetic", "--epochs", "500"]
    command += ["--output-dir", tmp_path]
    if script == "signs_resnet50":
        command += ["--identity-blocks", "0", "1", "1", "0"]  # its epochs are shorter
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("Epoch 2/"):
            process.send_signal(number)
            break
    printed, faults = process.communicate(timeout=300)
    assert process.returncode == 128 + number and "Traceback" not in faults, faults
    assert "Interrupted after epoch 1" in printed and "--resume continues" in printed
    training = json.loads((tmp_path / "metrics.json").read_text())["training"]
    assert training["interrupted"] is True and (tmp_path / CHECKPOINT).exists()
    model = keras.models.load_model(tmp_path / "model.keras")
    assert model.count_params() == training["parameters"]


def test_sigterm_is_passed_on_to_the_run_of_a_seed(tmp_path, monkeypatch):
    """`docker stop` sends it to the first process alone."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(tmp_path / 'started')!r}).touch()\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(sys, "argv", [str(script)])

    def stop():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    args = type("Args", (), {"seed": 1, "seeds": 2, "output_dir": tmp_path, "cache_dir": tmp_path})
    with signals.as_interrupts():
        assert seeds.run_seeds(args) == 143
    thread.join()


@pytest.mark.slow
def test_sigterm_keeps_what_was_answered(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number in range(400):
        Image.new("RGB", (900, 900), (number % 256, 9, 9)).save(tmp_path / "in" / f"{number:03}.png")
    command = [sys.executable, ROOT / "signs_functional.py", "--predict", tmp_path / "in", "--output-dir", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        tables = [*tmp_path.glob("unfinished_*/**/*predictions.csv")]
        if tables and tables[0].read_bytes().count(b"\n") > 1:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in printed
    rows = (tmp_path / "predictions" / "predictions.csv").read_text().count("\n") - 1
    assert 1 <= rows <= 400
