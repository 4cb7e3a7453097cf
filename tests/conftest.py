"""What several test files use: where things are, scripts and tiny runs, and small files in the course's schema."""

import os
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Real photographs are never part of the repository; without them, the tests that need them are skipped.
SHARED = pathlib.Path(os.environ.get("CNN_TEST_PHOTOS") or ROOT.parent / "shared" / "datasets").resolve()
REAL = {"happy": SHARED / "smile_faces", "signs": SHARED / "signs_photos"}

sys.path.insert(0, str(ROOT))
os.environ["MPLBACKEND"] = "agg"  # no windows, on machines with a display either


def run_script(script, *arguments, cwd=None):
    """Run a script as its user does, in a process of its own; return the finished process."""
    command = [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def run_code(code, *arguments):
    """Run Python code in a process of its own, with `arguments` as `sys.argv`; return the finished process."""
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def random_weights(layer, rng):
    """Return random numbers for every weight: a new batch normalisation's zeros and ones would hide mistakes."""
    return [
        rng.uniform(0.5, 1.5, weight.shape)
        if weight.name in ("gamma", "moving_variance")
        else rng.normal(0, 0.1, weight.shape)
        if len(weight.shape) == 1
        else rng.normal(0, np.sqrt(2 / np.prod(weight.shape[:-1])), weight.shape)  # keeps the signal's size
        for weight in layer.weights
    ]


def open_tiny_run(folder, *options):
    """Return the `Run` of a script called "tiny" with these options, on 30 images of three classes."""
    import cnn_utils as utils
    from support import cli

    parser = cli.ScriptParser("", "tiny", epochs=3, batch_size=8, learning_rate=0.01)
    args = parser.parse_args(["--output-dir", str(folder), *map(str, options)])
    # Settled by `cli.start_keras` in a script.
    args.deterministic, args.mixed_precision = bool(args.deterministic), bool(args.mixed_precision)
    images = np.random.default_rng(0).integers(0, 256, (39, 64, 64, 3), np.uint8)
    labels = np.arange(39) % 3
    source = utils.Source("real", pathlib.Path("train_tiny.h5"), pathlib.Path("test_tiny.h5"))
    hashes = {"train_tiny.h5": "12ab", "test_tiny.h5": "34cd"}
    data = utils.Dataset(images[:30], labels[:30], images[30:], labels[30:], ("0", "1", "2"), source, hashes)
    return utils.Run("tiny", args, data, "CPU")


def tiny_run(folder, *options, first_phase=0, stop=None):
    """Train, evaluate and save a tiny network; return its run, the model and the exit code.

    `first_phase`: the number of epochs that train only the last layer, as with --weights.
    `stop`: a number of epochs and the exception that ends the training after them.
    """
    import keras
    import tensorflow as tf

    import cnn_utils as utils

    run = open_tiny_run(folder, *options)
    args, data = run.args, run.data
    keras.utils.set_random_seed(args.seed)
    train_x, train_y, validation_x, validation_y = utils.split_validation(data.train_x, data.train_y, args.seed)
    train_y, validation_y, test_y = (utils.one_hot(y, 3) for y in (train_y, validation_y, data.test_y))
    layers = keras.layers
    hidden = layers.Dense(8, activation="relu")
    network = [layers.AveragePooling2D(8), layers.Flatten(), hidden, layers.Dropout(0.5)]
    network = [layers.Input((64, 64, 3)), layers.Rescaling(1 / 255), *network, layers.Dense(3, activation="softmax")]
    model = keras.Sequential(network, name="tiny")
    if stop:
        fit, (stop_epoch, error) = model.fit, stop

        def stopped_fit(*arguments, **options):
            fit(*arguments, **{**options, "epochs": min(options["epochs"], stop_epoch)})
            if options["epochs"] >= stop_epoch:
                raise error

        model.fit = stopped_fit

    def augment(images, seed):
        return tf.cast(images, "float32")

    stages = [utils.Stage(name, share, train_x, train_y, augment) for name, share in (("first", 1), ("second", 2))]
    for epochs in [first_phase] * bool(first_phase) + [args.epochs - first_phase]:
        curriculum = utils.Curriculum(stages, epochs, args.batch_size, args.seed, len(train_x))
        hidden.trainable = run.epochs >= first_phase
        model.compile(keras.optimizers.Adam(args.learning_rate), "categorical_crossentropy", metrics=["accuracy"])
        run.fit(model, curriculum, utils.evaluation_dataset(validation_x, validation_y))
    model = run.save_model(model, train_x, validation_x, validation_y)
    results = utils.evaluate(model, data.test_x, test_y, data.class_names)
    return run, model, run.finish(model, results, train_x, synthetic=5)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Undo what a script that runs inside a test changes for the next one: Keras's policy and open figures."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].mixed_precision.set_global_policy("float32")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


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
