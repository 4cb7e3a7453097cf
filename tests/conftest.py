"""What several test files use: where things are, scripts and tiny runs, and small files in the course's schema."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
from filelock import FileLock

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Real photographs are never part of the repository; without them, the tests that need them are skipped.
SHARED = pathlib.Path(os.environ.get("CNN_TEST_PHOTOS") or ROOT.parent / "shared" / "datasets").resolve()
REAL = {"happy": SHARED / "smile_faces", "signs": SHARED / "signs_photos"}
SCRIPTS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}

sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "agg"  # no windows, on machines with a display either
os.environ["KERAS_HOME"] = os.devnull  # no keras.json of the user
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as the scripts set it; importing JAX sets another for every later process
# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_script(script, *arguments, cwd=None):
    """Run a script as its user does, in a process of its own; return the finished process."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def run_code(code, *arguments):
    """Run Python code in a process of its own, with `arguments` as `sys.argv`; return the finished process."""
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def random_weights(layer, rng):
    """Return random numbers for every weight: a new batch normalization's zeros and ones would hide mistakes."""
    return [
        rng.uniform(0.5, 1.5, weight.shape)
        if weight.name in ("gamma", "moving_variance")
        else rng.normal(0, 0.1, weight.shape)
        if len(weight.shape) == 1
        else rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape)  # keeps the signal's size
        for weight in layer.weights
    ]


def tiny_dataset():
    """Return a `Dataset` of 39 random images of three classes."""
    from datasets import SIGNS
    from datasets.loading import Dataset, Source

    images = np.random.default_rng(0).integers(0, 256, (39, 64, 64, 3), np.uint8)
    labels = np.arange(39) % 3
    source = Source("real", pathlib.Path("train_tiny.h5"), pathlib.Path("test_tiny.h5"))
    hashes = {"train_tiny.h5": "12ab", "test_tiny.h5": "34cd"}
    return Dataset(SIGNS, images[:30], labels[:30], images[30:], labels[30:], ("0", "1", "2"), source, hashes)


def tiny_results(outputs, y, loss=0.5):
    """Return the `Results` of a network's outputs for images of three classes."""
    import cnn_utils as utils

    return utils.measure(np.asarray(outputs), np.asarray(y), ("0", "1", "2"), loss)


def open_tiny_run(folder, *options):
    """Return the `Run` of a script called "tiny" with these options, on 30 images of three classes."""
    import cnn_utils as utils
    from datasets import SIGNS
    from support import cli

    parser = cli.ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01)
    parser.set_defaults(script="tiny", task=SIGNS, network="tiny", own_options=[], device="CPU")
    args = parser.parse_args(["--output-dir", str(folder), *map(str, options)])
    # Settled by `cli.start_script` in a script.
    parser.settle_defaults(args, synthetic=False)
    args.deterministic, args.mixed_precision = bool(args.deterministic), bool(args.mixed_precision)
    return utils.Run(args, tiny_dataset())


def tiny_network():
    """Return an untrained network with a hidden layer, dropout and three classes."""
    import keras

    layers = keras.layers
    network = [layers.Input((64, 64, 3)), layers.Rescaling(1 / 255), layers.AveragePooling2D(8), layers.Flatten()]
    network += [layers.Dense(8, activation="relu", name="hidden"), layers.Dropout(0.5)]
    return keras.Sequential([*network, layers.Dense(3, activation="softmax")], name="tiny")


def unchanged(images, seed):
    """An augmentation that changes nothing."""
    import tensorflow as tf

    return tf.cast(images, "float32")


def tiny_run(folder, *options, head_epochs=0, stop=None):
    """Train, evaluate and save a tiny network, as the scripts do; return its run, the model and the exit code.

    `head_epochs`: the number of epochs that train only the last layer, as with --weights.
    `stop`: a number of epochs and the exception that ends the training after them.
    """
    import keras

    import cnn_utils as utils

    run = open_tiny_run(folder, *options)
    args, data = run.args, run.data
    keras.utils.set_random_seed(args.seed)
    train_x, train_y, validation_x, validation_y = utils.split_validation(data.train_x, data.train_y, args.seed)
    train_y, validation_y, test_y = (utils.one_hot(y, 3) for y in (train_y, validation_y, data.test_y))
    model = tiny_network()
    schedule = [(1, (train_x, train_y), unchanged), (2, (train_x, train_y), unchanged)]
    for first, last in ([(0, head_epochs)] if head_epochs else []) + [(head_epochs, args.epochs)]:
        batches = utils.Batches(schedule, last - first, args.batch_size, args.seed, len(train_x), first_epoch=first)
        model.get_layer("hidden").trainable = first >= head_epochs
        model.compile(keras.optimizers.Adam(args.learning_rate), "categorical_crossentropy", metrics=["accuracy"])
        with run.training(model, batches):
            model.fit(
                batches.dataset(run.epochs_done),
                validation_data=utils.evaluation_batches(validation_x, validation_y),
                initial_epoch=run.epochs_done,
                epochs=min(last, stop[0]) if stop else last,
                steps_per_epoch=batches.steps_per_epoch,
                callbacks=run.callbacks,
                shuffle=False,
            )
            if stop and last >= stop[0]:
                raise stop[1]
    model = run.finish_training(model)
    temperature = utils.calibrate(model, validation_x, validation_y)
    run.save_model(model, temperature, train_x, validation_x)
    test_batches = utils.evaluation_batches(data.test_x, test_y)
    loss, _ = model.evaluate(test_batches, verbose=0)
    results = utils.measure(model.predict(test_batches, verbose=0), test_y, data.class_names, loss)
    utils.plot_examples(data.train_x, data.train_y, data.class_names, run.folder / "examples.png", data.kind)
    utils.plot_confusion_matrix(results, data.class_names, run.folder / "confusion_matrix.png", data.kind)
    run.save_results(model, results, train_x, temperature=temperature, synthetic=5)
    return run, model, run.say_what_next()


@pytest.fixture(autouse=True)
def the_same_random_numbers():
    """Let every test draw the same random numbers in every run; Keras takes its own seeds from Python's."""
    random.seed(0)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Undo what a script that runs inside a test changes for the next one: Keras's policy and open figures."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].mixed_precision.set_global_policy("float32")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def dry_run(tmp_path_factory, worker_id):
    """Return a function that gives a script's dry run on a source: its folder, which stays as it is, and the process.

    Each is done once, by the test process that asks first.
    """
    folders = tmp_path_factory.getbasetemp()
    folders = folders if worker_id == "master" else folders.parent  # which the test processes share

    @functools.cache
    def dry_run(script, source="synthetic"):
        folder, done = folders / f"{script}_{source}", folders / f"{script}_{source}.json"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                data = ["--data-dir", REAL[SCRIPTS[script]]] if source == "real" else ["--data", "synthetic"]
                # Started in another folder: nothing may depend on the working directory.
                process = run_script(script, "--dry-run", "--output-dir", folder, *data, cwd=folders)
                done.write_text(json.dumps([process.returncode, process.stdout, process.stderr]))
        return folder, subprocess.CompletedProcess(script, *json.loads(done.read_text()))

    return dry_run


@pytest.fixture
def write_h5():
    """Return a function that writes the file of a data set and returns its path."""

    def write(path, part="train", x=None, y=None, classes=None, **others):
        count = 12
        rng = np.random.default_rng(0)
        arrays = {
            f"{part}_set_x": rng.integers(0, 256, (count, 64, 64, 3), np.uint8) if x is None else x,
            f"{part}_set_y": np.arange(count) % 6 if y is None else y,
            "list_classes": np.arange(6) if classes is None else classes,
            **others,
        }
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                if array is not ...:  # ... leaves a key out
                    file[key] = array
        return path

    return write
