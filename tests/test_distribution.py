"""Training on several devices and in several processes: the same training, and no process waits forever."""

import csv
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, run_code, run_script, unchanged

import signs_functional
from basics.errors import LOST, InputError, one_line_errors
from benchmarks.__main__ import environments
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support import startup
from support.training import distribution
from support.training.batches import Batches, evaluation_batches
from support.training.distribution import Rank

LIMIT = 240  # seconds; a process that waits for another one must not wait forever


def set_rank(rank, monkeypatch):
    monkeypatch.setattr(distribution, "rank", lambda: rank)


# ------------------------------------------------------------------ parts of a batch


def test_each_part_of_a_batch_is_augmented_as_in_the_whole():
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8))
    whole = signs_functional.strong_augmentation(images, tf.constant([5, 6], tf.int64)).numpy()
    for first, size in (0, 2), (2, 7), (9, 3):
        seed = tf.constant([5, 6, first, 12], tf.int64)
        part = signs_functional.strong_augmentation(images[first : first + size], seed).numpy()
        np.testing.assert_allclose(part, whole[first : first + size], atol=0.02)


def test_processes_split_the_same_batches_and_none_is_short(monkeypatch):
    x = np.zeros((70, 2, 2, 3), np.uint8)
    schedule = [(1, (x, np.arange(70.0)[:, None]), unchanged)]
    found = []
    for processes, process in (1, 0), (2, 0), (2, 1):
        set_rank(Rank(process, processes, 2), monkeypatch)
        batches = Batches(schedule, 2, 16, 1, 70)
        assert batches.steps_per_epoch == 5 and batches.examples_per_epoch == 80
        found.append(list(batches.batches(0)))
        labels = [batch_y.numpy()[:, 0] for _, batch_y in batches.dataset()]
        assert [list(batch) for batch in labels] == [list(indices) for indices, _ in found[-1]]
    for (indices, seed), (first, first_seed), (second, second_seed) in zip(*found):
        assert len(first) == len(second) == 8 and list(indices) == [*first, *second]
        assert list(first_seed) == [*seed, 0, 16] and list(second_seed) == [*seed, 8, 16]


def test_every_device_validates_on_every_image(monkeypatch):
    x, y = np.zeros((5, 2, 2, 3), np.uint8), np.arange(5)[:, None]
    set_rank(Rank(0, 1, 3), monkeypatch)
    batches = [labels.numpy()[:, 0].tolist() for _, labels in evaluation_batches(x, y, batch_size=4)]
    assert batches == [[0, 1, 2, 3] * 3, [4] * 3]


def test_one_device_keeps_the_short_last_batch():
    schedule = [(1, (np.zeros((70, 2, 2, 3), np.uint8), np.zeros((70, 1))), unchanged)]
    batches = Batches(schedule, 1, 16, 1, 70)
    assert [len(indices) for indices, _ in batches.batches(0)] == [16, 16, 16, 16, 6]


# ------------------------------------------------------------------ wrong commands

ADDRESS, COUNT, NUMBER = distribution.VARIABLES


@pytest.mark.parametrize(
    "variables",
    [
        {COUNT: "2"},
        {ADDRESS: "localhost", COUNT: "2", NUMBER: "0"},
        {ADDRESS: "localhost:99", COUNT: "2", NUMBER: "2"},
        {ADDRESS: "localhost:99", COUNT: "two", NUMBER: "0"},
    ],
)
def test_variables_that_do_not_fit_are_named(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match=f"do not fit together .got {ADDRESS}=.*0 to N - 1$"):
        distribution.join_processes()


def test_process_0_needs_a_free_port(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        values = f"localhost:{port}", "2", "0"
        for name, value in zip(distribution.VARIABLES, values):
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"cannot listen on port {port} of {ADDRESS}: .*Set another port"):
            distribution.join_processes()


def test_several_processes_need_jax_and_one_run(monkeypatch):
    assert not distribution.several_processes()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="needs JAX .got KERAS_BACKEND=tensorflow.*Set KERAS_BACKEND=jax"):
        distribution.join_processes()
    process = run_script("happy_sequential", "--seeds", "2")
    assert process.returncode == 2 and "cannot be combined with several processes" in process.stderr
    monkeypatch.setenv(COUNT, "1")
    assert not distribution.several_processes()


def test_a_backend_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    process = run_script("happy_sequential", "--dry-run")
    assert process.returncode == 2
    assert process.stderr == "error: KERAS_BACKEND must be tensorflow or jax (got torch). Change or unset it\n"


def test_without_jax_the_package_is_named(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match='pip install "jax>='):
        startup.start_keras(1)


# ------------------------------------------------------------------ devices of one machine

# Splits the processor into logical devices before the script starts.
LOGICAL = """
import os, runpy, tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.argv[0] = "signs_functional.py"
runpy.run_module("signs_functional", run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_is_distributed_over_the_devices_of_tensorflow(tmp_path):
    arguments = ["--data", "synthetic", "--dry-run", "--distribute", "--no-mix-synthetic", "--output-dir", tmp_path]
    process = run_code(LOGICAL, *arguments, "--batch-size", "15")
    assert process.returncode == 2
    assert "--batch-size 15 cannot be split equally among 2 devices. Use a multiple of 2" in process.stderr
    process = run_code(LOGICAL, *arguments)
    assert process.returncode == 0 and "Distributed over 2 devices" in process.stdout, process.stderr
    model = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.synchronized for layer in model.layers if hasattr(layer, "synchronized")] == [False] * 5


@pytest.mark.slow
def test_batch_normalization_is_synchronized_over_devices():
    code = """
import numpy as np, tensorflow as tf, keras
from support.training import distribution
from support import startup
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
assert distribution.start(True, 4) == 2
model = keras.Sequential([keras.layers.Input((1, 1, 1)), keras.layers.BatchNormalization(momentum=0)])
distribution.synchronize(model)
model.compile(keras.optimizers.SGD(0.0), "mse")
x = np.array([0, 2, 10, 12], np.float32).reshape(4, 1, 1, 1)
model.fit(tf.data.Dataset.from_tensors((x, x)), verbose=0)
alone = distribution.teardown(model)
print(*alone.layers[0].moving_mean.numpy(), *alone.layers[0].moving_variance.numpy(), tf.distribute.has_strategy())
"""
    process = run_code(code)
    # Of the two devices, each would have seen a variance of 1.
    assert process.stdout.split() == ["6.0", "26.0", "False"], process.stderr


# ------------------------------------------------------------------ several processes


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A folder with 77 SYNTHETIC images to train on, 70 without the validation split, and 30 to test on."""
    import h5py

    folder = tmp_path_factory.mktemp("few")
    for path, part, count in zip(render_dataset("signs"), ("train", "test"), (77, 30)):
        x, y, classes = load_h5(path, part)
        with h5py.File(folder / path.name, "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"], file["list_classes"] = x[:count], y[:count], classes
            file.attrs["data"] = "SYNTHETIC"
    return folder


def start_processes(count, folder, data, *options):
    """Start signs_functional.py on JAX in `count` processes that train together; their output goes to files."""
    pytest.importorskip("jax")
    command = [sys.executable, "-u", ROOT / "signs_functional.py", "--data-dir", data, "--batch-size", "16"]
    command += ["--no-mix-synthetic", "--output-dir", folder, *options]
    started = []
    for number, environment in enumerate(environments(count)):
        with open(f"{folder}.{number}.txt", "w") as file:
            process = subprocess.Popen([*map(str, command)], env=environment, stdout=file, stderr=subprocess.STDOUT)
        started.append(process)
    return started


def printed(folder, number=0):
    with open(f"{folder}.{number}.txt", encoding="utf-8") as file:
        return file.read()


def results(folder):
    """Return the history, (epochs, metrics), and the weights of a run."""
    with open(folder / "history.csv", newline="") as file:
        history = np.array([[float(value) for value in row] for row in list(csv.reader(file))[1:]])
    return history, keras.models.load_model(folder / "model.keras", compile=False).get_weights()


@pytest.mark.slow
def test_two_processes_train_as_one_does(few_images, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, count in (one, 1), (two, 2):
        # Four steps: rounding grows from step to step.
        processes = start_processes(count, folder, few_images, "--epochs", "2", "--batch-size", "40")
        codes = [process.wait(LIMIT) for process in processes]
        assert codes == [0] * count, printed(folder)
    (history, weights), (other_history, other_weights) = results(one), results(two)
    assert history.shape == (2, 5)
    np.testing.assert_allclose(other_history, history, atol=1e-3)
    # On average, because Adam divides each gradient by its size: where it is close to 0, rounding decides its sign.
    # The four steps move a weight by about 6e-3.
    for alone, together in zip(weights, other_weights, strict=True):
        assert np.sqrt(np.mean((together - alone) ** 2)) < 5e-4
    assert "2 epochs of 80 images each" in printed(two) and "Distributed over 2 devices" in printed(two)
    assert "Test accuracy" in printed(two)
    last = printed(two, 1).splitlines()
    assert len(last) == 2 and last[1] == "Process 1 of 2: process 0 prints and saves the results"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_and_the_run_is_resumed(victim, few_images, tmp_path):
    folder, options = tmp_path / "run", ["--epochs", "8"]
    processes = start_processes(2, folder, few_images, *options)
    deadline = time.monotonic() + LIMIT
    while "Epoch 3/8" not in printed(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    assert processes[1 - victim].wait(60) not in (0, None)
    assert LOST in printed(folder, 1 - victim) and "Traceback" not in printed(folder, 1 - victim)
    assert processes[victim].wait(60) == -signal.SIGKILL
    if victim == 1:
        processes = start_processes(2, folder, few_images, *options, "--resume")
        assert [process.wait(LIMIT) for process in processes] == [0, 0], printed(folder)
        assert "Resuming after epoch" in printed(folder) and len(results(folder)[0]) == 8


@pytest.mark.parametrize("operation", ["AllReduce", "all-reduce", "all_gather"])
def test_a_lost_process_is_one_line_whatever_jax_was_doing(operation, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise RuntimeError(f"INTERNAL: Gloo {operation} failed: Connection reset by peer\nmore")
    assert ended.value.code == 2
    reason = f"INTERNAL: Gloo {operation} failed: Connection reset by peer"
    assert capsys.readouterr().err == f"error: {LOST} (got {reason})\n"


def test_processes_with_other_settings_are_told_apart(monkeypatch):
    set_rank(Rank(1, 2, 1), monkeypatch)
    monkeypatch.setattr(distribution, "broadcast", lambda value: {"seed": 1, "epochs": 2})
    with pytest.raises(InputError, match="Process 1 has other settings than process 0: seed is 3, not 1. Start all"):
        distribution.check_same({"seed": 3, "epochs": 2})
