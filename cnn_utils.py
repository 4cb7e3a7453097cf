"""What the three scripts share: data in, metrics and pictures out.

    command line   command_line, run
    start          computes_bfloat16, start_tensorflow, prepare_output_dir
    data           find_data, load_happy_dataset, load_signs_dataset
    preparation    split_validation, add_rendered, first_of_each_class, one_hot, training_batches,
                   make_variables, compute_in_float32, print_shapes
    evaluation     evaluate, save_metrics
    figures        plot_examples, plot_learning_curves, plot_confusion_matrix, plot_mistakes
    prediction     load_trained_model, read_image, predict_images

Data flows one way: files -> arrays -> model -> metrics -> figures. The heavy
libraries are imported by the functions that need them, so that `--help` and a
mistyped option answer at once.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import pathlib
import platform
import sys
import tempfile
from typing import NamedTuple

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = HERE / "datasets"

# Everything a training run writes, listed so that an earlier run can be moved aside whole.
OUTPUTS = ("model.keras", "history.csv", "metrics.json", "examples.png", "learning_curves.png",
           "confusion_matrix.png", "mistakes.png")

# Height, width and channels of every picture in the course's files, and so of what the networks take.
PICTURE_SHAPE = (64, 64, 3)


class InputError(Exception):
    """Something the user gave cannot be used: the message says what, why and what to do."""


# ---------------------------------------------------------------- command line

def whole_number(low, high=None):
    """Return an argparse type: whole numbers from `low` to `high`, both included."""
    def convert(text):
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < low or (high is not None and number > high):
            limits = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected a whole number {limits}. Received: {text!r}")
        return number
    return convert


def positive_number(text):
    """argparse type: finite numbers above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text!r}")
    return number


def existing_folder(text):
    """argparse type: the path of a folder that exists."""
    path = pathlib.Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder that exists. Received: {text!r}, "
                                         f"{'which is no folder' if path.exists() else 'where there is nothing'}")
    return path


def command_line(description, script, *, epochs, batch_size, learning_rate, mixed_precision=False):
    """Return the parser of the options that all three scripts know.

    Args:
        description: str, the script's docstring: shown by --help.
        script: str, the script's name without ".py": names the output folder.
        epochs, batch_size, learning_rate, mixed_precision: the script's defaults.

    Returns:
        `argparse.ArgumentParser`; a script may add options of its own.
    """
    parser = argparse.ArgumentParser(
        prog=f"{script}.py", description=description, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", choices=("auto", "real", "synthetic"), default="auto",
                      help="auto: the real files if they are there, else the SYNTHETIC set (default: auto)")
    data.add_argument("--data-dir", type=existing_folder, metavar="DIR",
                      help="folder with the real .h5 files (default: datasets/ beside the script)")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=whole_number(1), default=epochs, metavar="N",
                          help=f"passes over the training set (default: {epochs})")
    training.add_argument("--batch-size", type=whole_number(1), default=batch_size, metavar="N",
                          help=f"pictures per step (default: {batch_size})")
    training.add_argument("--learning-rate", type=positive_number, default=learning_rate, metavar="RATE",
                          help=f"largest step size; it falls to 0 along half a cosine (default: {learning_rate})")
    # 32 bits, because NumPy's global generator takes no more.
    training.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=1, metavar="N",
                          help="fixes the split, the order, the augmentation and the first weights (default: 1)")
    training.add_argument("--mixed-precision", action=argparse.BooleanOptionalAction, default=mixed_precision,
                          help="train with 16-bit arithmetic (bfloat16) on 32-bit weights "
                               f"(default: {'yes' if mixed_precision else 'no'}, on this machine)")
    training.add_argument("--dry-run", action="store_true",
                          help="the whole path on a few pictures, one epoch: does it work here?")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=pathlib.Path, default=HERE / "outputs" / script, metavar="DIR",
                        help=f"where everything is saved (default: outputs/{script}/ beside the script)")
    output.add_argument("--show", action="store_true", help="open the figures as well, at the end")
    output.add_argument("--predict", nargs="+", type=pathlib.Path, metavar="IMAGE",
                        help="no training: load the trained model and say what these pictures show")
    return parser


def run(main):
    """Call `main()` and leave with its exit code; an `InputError` becomes one line and code 2."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# ----------------------------------------------------------------------- start

@contextlib.contextmanager
def quiet_start():
    """Keep TensorFlow's C++ start-up chatter off standard error.

    Those lines are written before any log level is read, straight to file
    descriptor 2: only moving the descriptor aside catches them. If the import
    fails, what was caught is printed, for then it is no chatter.
    """
    # 2 hides what comes later, too: notes and warnings, not errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(stderr, caught.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def computes_bfloat16():
    """Say whether the processor has instructions for bfloat16: without them, 16 bits are slower than 32.

    Linux lists them ("avx512_bf16", "amx_bf16", ARM's "bf16"); elsewhere the answer is no.
    """
    try:
        return "bf16" in pathlib.Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def start_tensorflow(seed, mixed_precision=False):
    """Import TensorFlow quietly, fix every random generator, print the device in one line.

    Args:
        seed: int >= 0, given to Python, NumPy and TensorFlow alike.
        mixed_precision: bool; layers made from now on compute in bfloat16 and keep their
            weights in float32 (Micikevicius et al., "Mixed Precision Training", 2018;
            bfloat16 has the range of float32, so that no loss need be scaled).

    Returns:
        str, the device in words.
    """
    with quiet_start():
        import tensorflow as tf
        gpus = tf.config.list_physical_devices("GPU")
    tf.keras.utils.set_random_seed(seed)
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
        device = "GPU: " + ", ".join(names)
    else:
        device = f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    device += ", bfloat16 and float32" if mixed_precision else ", float32"
    print(f"Device: {device} (TensorFlow {tf.__version__}, Keras {tf.keras.__version__})")
    return device


def prepare_output_dir(output_dir, settings=None):
    """Make the output folder; move an earlier run with other settings aside.

    A short trial must not destroy a model that took an hour. A run with the
    same settings is written over: it would give the same files.

    Args:
        output_dir: path of the folder.
        settings: dict, JSON-serialisable, what tells this run from another;
            None: nothing is moved.

    Returns:
        `pathlib.Path` of the folder, which exists and can be written to.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    output_dir = pathlib.Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise InputError(f"Results cannot be saved: expected a folder that can be written to; choose another "
                         f"with --output-dir. Received: {output_dir} ({error.strerror})") from None
    metrics = read_json(output_dir / "metrics.json")
    if settings and metrics and any(metrics.get(key) != value for key, value in settings.items()):
        finished = datetime.datetime.fromtimestamp((output_dir / "metrics.json").stat().st_mtime)
        aside = output_dir / "earlier" / finished.strftime("%Y-%m-%d_%H-%M-%S")
        aside.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            if (output_dir / name).exists():
                os.replace(output_dir / name, aside / name)
        print(f"Moved an earlier run with other settings to {aside}")
    return output_dir


def read_json(path):
    """Return the JSON object in the file, or None if there is none that can be read."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# ------------------------------------------------------------------------ data

class DataFiles(NamedTuple):
    """Where a data set comes from: "real" or "synthetic", its two files, and why, if that needs saying."""
    kind: str
    train: pathlib.Path
    test: pathlib.Path
    note: str = ""

    def __str__(self):
        if self.kind == "synthetic":
            return f"Data: SYNTHETIC, rendered pictures, not photographs, from {self.train.parent}{self.note}"
        return f"Data: real, {self.train} and {self.test.name}"


def find_data(name, data="auto", data_dir=None):
    """Find the two files of a data set; render the synthetic ones where they are wanted.

    Args:
        name: "happy" or "signs".
        data: "real": the files must be there; "synthetic": rendered pictures;
            "auto": real if both files are there, synthetic if neither is.
        data_dir: folder of the real files; None means `datasets/` beside this
            file, whatever the working directory is.

    Returns:
        `DataFiles`.

    Raises:
        InputError: the folder or a file that is needed is missing.
    """
    folder = DATASETS if data_dir is None else pathlib.Path(data_dir)
    names = f"train_{name}.h5", f"test_{name}.h5"
    train, test = paths = [folder / file for file in names]
    note = ""
    if data != "synthetic":
        missing = [path.name for path in paths if not path.exists()]
        if not missing:
            kind = "synthetic" if any(map(is_rendered, paths)) else "real"
            if data == "real" and kind == "synthetic":
                raise InputError(f"--data real wants photographs: name the folder that holds them with --data-dir. "
                                 f"Received: {folder}, whose files are SYNTHETIC")
            return DataFiles(kind, train, test)
        if data == "real" or len(missing) == 1:
            raise InputError(
                f"{' and '.join(missing)} missing: a data set is a train and a test file, both in one folder. "
                f"Get them with `python -m datasets.download {name}`, or run with --data synthetic. "
                f"Received: {folder}")
        note = f", for neither {names[0]} nor {names[1]} is in {folder}"
    from datasets.synthetic import render_dataset
    return DataFiles("synthetic", *render_dataset(name), note)


def is_rendered(path):
    """Say whether the file was made by `datasets.synthetic`, wherever it lies and whatever its name."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("data") == "SYNTHETIC"
    except OSError:
        return False        # no HDF5 at all: `load_h5` says so


def load_happy_dataset(data="auto", data_dir=None):
    """Load Happy House: is the person smiling?

    Args:
        data, data_dir: see `find_data`.

    Returns:
        Five arrays: train_x (m, 64, 64, 3) uint8 RGB 0-255, train_y (m,) int64,
        0 = not smiling, 1 = smiling, test_x, test_y, and classes (2,) int64.

    Raises:
        InputError: a file is missing or not what it should be.
    """
    return load_files(find_data("happy", data, data_dir), 2)


def load_signs_dataset(data="auto", data_dir=None):
    """Load SIGNS: which digit, 0 to 5, does the hand show?

    Args:
        data, data_dir: see `find_data`.

    Returns:
        Five arrays: train_x (m, 64, 64, 3) uint8 RGB 0-255, train_y (m,) int64,
        test_x, test_y, and classes (6,) int64.

    Raises:
        InputError: a file is missing or not what it should be.
    """
    return load_files(find_data("signs", data, data_dir), 6)


def load_files(files, number_of_classes):
    """Load the two files of a `DataFiles`; see `load_happy_dataset` for what is returned."""
    train_x, train_y, classes = load_h5(files.train, "train")
    test_x, test_y, test_classes = load_h5(files.test, "test")
    if not np.array_equal(classes, test_classes):
        raise InputError(f"{files.train} and {files.test} must list the same classes. "
                         f"Received: {classes.tolist()} and {test_classes.tolist()}")
    if len(classes) != number_of_classes:
        raise InputError(f"{files.train} must list {number_of_classes} classes. Received: {classes.tolist()}")
    return train_x, train_y, test_x, test_y, classes


def load_h5(path, part):
    """Read one file of the course's schema.

    Args:
        path: the HDF5 file, with the keys `<part>_set_x` (m, 64, 64, 3) uint8,
            `<part>_set_y` whole numbers of shape (m,), (1, m) or (m, 1),
            and `list_classes` (k,), whole numbers or byte strings.
        part: "train" or "test".

    Returns:
        x (m, 64, 64, 3) uint8, y (m,) int64 in 0..k-1, classes (k,) int64.

    Raises:
        InputError: the file is not HDF5, a key is missing, or the arrays are
            not what the schema says.
    """
    import h5py

    keys = f"{part}_set_x", f"{part}_set_y", "list_classes"
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path} must be an HDF5 file with the keys {', '.join(keys)}. Delete it and get it "
                         f"again (python -m datasets.download). Received: {what_it_is(path, error)}") from None
    with file:
        for key in keys:
            if not isinstance(file.get(key), h5py.Dataset):
                raise InputError(f"{path} must hold the arrays {', '.join(keys)}: {key} is missing. "
                                 f"Received: {', '.join(file) or 'an empty file'}")
        shape, kind = file[keys[0]].shape, file[keys[0]].dtype
        # Before a single pixel is read: a damaged header may declare more than fits into memory.
        if len(shape) != 4 or shape[1:] != PICTURE_SHAPE or shape[0] == 0 or kind != np.uint8:
            raise InputError(f"{keys[0]} in {path} must be pictures, at least one: uint8 (number, 64, 64, 3). "
                             f"Received: {kind} {shape}")
        try:
            x, y, classes = (file[key][()] for key in keys)
        except (OSError, MemoryError) as error:
            raise InputError(f"{path} cannot be read to its end. Delete it and get it again (python -m "
                             f"datasets.download). Received: {what_it_is(path, error)}") from None
    if y.size != len(x) or y.shape not in {(len(x),), (1, len(x)), (len(x), 1)}:
        raise InputError(f"{keys[1]} in {path} must hold one label for each of the {len(x)} pictures, as (m,), "
                         f"(1, m) or (m, 1). Received: {y.shape}")
    try:
        classes = np.ravel(classes).astype(np.int64)    # b"3" and 3 alike become 3
    except ValueError:
        raise InputError(f"list_classes in {path} must hold whole numbers. "
                         f"Received: {np.ravel(classes).tolist()}") from None
    y = np.ravel(y)
    if y.dtype.kind not in "iuf" or not np.isin(y, np.arange(len(classes))).all():
        raise InputError(f"{keys[1]} in {path} must hold whole numbers from 0 to {len(classes) - 1}, one for each "
                         f"class. Received: {np.unique(y)[:10].tolist()}")
    return x, y.astype(np.int64), classes


def what_it_is(path, error):
    """Say in a few words what a file that cannot be read as HDF5 is instead."""
    from datasets import kind_of_file

    path = pathlib.Path(path)
    if path.is_dir():
        return "a folder"
    try:
        with open(path, "rb") as file:
            kind = kind_of_file(file.read(64))
    except OSError as reason:
        return reason.strerror
    if kind == "an HDF5 file":
        kind = f"a damaged or truncated HDF5 file, {error}"
    return f"{kind} ({path.stat().st_size:,} bytes)"


# ----------------------------------------------------------------- preparation

def split_validation(x, y, seed, fraction=0.1):
    """Set a part of the training set aside for validation, the same share of each class.

    Args:
        x: array (m, ...), the pictures.
        y: int array (m,), the labels.
        seed: int; the same seed gives the same split.
        fraction: share of each class that is set aside, at least one picture.

    Returns:
        train_x, train_y, validation_x, validation_y, each part in random order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    aside = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        aside[members[:max(1, round(fraction * len(members)))]] = True
    train, validation = order[~aside[order]], order[aside[order]]
    return x[train], y[train], x[validation], y[validation]


def add_rendered(x, y, name, few=False):
    """Put the SYNTHETIC training pictures beside photographs, and say so.

    Args:
        x: uint8 array (m, 64, 64, 3), photographs.
        y: int array (m,), their labels.
        name: "happy" or "signs".
        few: bool, only eight pictures of each class: for a dry run.

    Returns:
        x and y with the rendered pictures and their labels behind.
    """
    from datasets.synthetic import render_dataset

    rendered_x, rendered_y, _ = load_h5(render_dataset(name)[0], "train")
    if few:
        rendered_x, rendered_y = first_of_each_class(rendered_x, rendered_y, 8)
    print(f"\nAdded {len(rendered_x):,} SYNTHETIC pictures to the {len(x):,} photographs to train on "
          "(--no-rendered: none)")
    return np.concatenate([x, rendered_x]), np.concatenate([y, rendered_y])


def first_of_each_class(x, y, count):
    """Return the first `count` pictures of each class and their labels, in the original order."""
    keep = np.sort(np.concatenate([np.flatnonzero(y == label)[:count] for label in np.unique(y)]))
    return x[keep], y[keep]


def one_hot(y, classes):
    """Turn labels (m,) into rows (m, classes) float32: 1 in the label's column, 0 elsewhere."""
    return np.eye(classes, dtype=np.float32)[y]


def print_shapes(title, **arrays):
    """Print name, shape, type and range of each array."""
    print(f"\n{title}")
    for name, array in arrays.items():
        print(f"  {name:<14} {str(array.shape):<20} {array.dtype!s:<8} {array.min():g} to {array.max():g}")


def training_batches(x, y, batch_size, seed, augment, least=0):
    """Shuffled, augmented mini-batches, new ones in every epoch.

    Args:
        x: uint8 array (m, height, width, 3).
        y: array (m, ...), what the loss wants.
        batch_size: int.
        seed: int, fixes the order and every change made to a picture.
        augment: function of (pictures (batch, height, width, 3), seed (2,) int64)
            that returns float32 pictures, as those of `augmentation.py` do.
        least: int, pictures in an epoch: a smaller set is passed over several times.

    Returns:
        `tf.data.Dataset` of (float32 pictures 0-255, labels).
    """
    import tensorflow as tf

    def read(numbers):
        return x[numbers], y[numbers]

    def prepare(numbers, batch_seed):
        # The arrays are read where they are: as the dataset's own tensors they would be in memory a second
        # time, and in the buffer that shuffles them a third time.
        pictures, labels = tf.numpy_function(read, [numbers], (x.dtype, y.dtype))
        pictures.set_shape((None, *x.shape[1:]))
        labels.set_shape((None, *y.shape[1:]))
        return augment(pictures, batch_seed), labels

    passes = max(1, math.ceil(least / len(x)))
    numbers = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat(passes).batch(batch_size)
    # A seed for each batch: whichever thread augments it, and when, the result is the same.
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(numbers, seeds)
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def make_variables(model, y):
    """Create the variables of the optimizer and of the metrics before the first training step.

    Keras would create them in that step, and TensorFlow then traces the step a
    second time: for ResNet50, half of the wait before the first batch.

    Args:
        model: compiled Keras model.
        y: labels as the loss wants them; only their shape and type matter.
    """
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, y[:1], y[:1])
    model.reset_metrics()


def compute_in_float32(model):
    """Let a model that was trained in mixed precision answer in float32: the weights are float32 already.

    16 bits do for gradients, which are noisy anyway; an answer should be the same for a picture alone and
    in a batch, and on a processor without bfloat16 it should not be slow.
    """
    for layer in model.layers:
        layer.dtype_policy = "float32"
    model.make_predict_function(force=True)


# ------------------------------------------------------------------ evaluation

def class_probabilities(outputs):
    """Bring a model's output to one column per class.

    Args:
        outputs: array (m, 1), the probability of class 1, or (m, k).

    Returns:
        Array (m, 2) or (m, k) of probabilities; each row sums to 1.
    """
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def evaluate(model, x, y, names):
    """Measure the model on pictures it has never seen, and print the result.

    Args:
        model: compiled Keras model.
        x: uint8 array (m, height, width, 3).
        y: what the model's loss wants: (m, 1) or one-hot (m, k).
        names: the k class names.

    Returns:
        dict with `loss`, `accuracy`, `interval` (95 % Wilson score interval,
        [low, high]), `probabilities` (m, k), `labels` (m,), `predictions` (m,),
        `confusion` (k, k) int, rows = true class, and `precision` and `recall`
        (k,), NaN for a class that was never predicted or never there.
    """
    import keras
    from scipy.stats import binomtest

    outputs = model.predict(x, batch_size=64, verbose=0)
    loss = float(np.mean(keras.ops.convert_to_numpy(keras.losses.get(model.loss)(y, outputs))))
    probabilities = class_probabilities(outputs)
    labels = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(int)
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((len(names), len(names)), int)
    np.add.at(confusion, (labels, predictions), 1)
    correct = int(np.trace(confusion))
    # Wilson's interval stays inside 0-1 and is right for accuracies near 1 (Brown, Cai and DasGupta, 2001).
    interval = binomtest(correct, len(labels)).proportion_ci(0.95, method="wilson")
    with np.errstate(invalid="ignore"):
        precision = np.diag(confusion) / confusion.sum(axis=0)
        recall = np.diag(confusion) / confusion.sum(axis=1)

    print(f"\nTest loss:     {loss:.4f}")
    print(f"Test accuracy: {correct / len(labels):.2%} ({correct} of {len(labels)} right; 95 % interval "
          f"{interval.low:.2%} to {interval.high:.2%})\n")
    width = max(5, *map(len, names))
    print(f"  {'class':<{width}}  precision  recall  pictures")
    for name, p, r, count in zip(names, precision, recall, confusion.sum(axis=1)):
        print(f"  {name:<{width}}  {percent(p):>9}  {percent(r):>6}  {count:>8}")
    return {"loss": loss, "accuracy": correct / len(labels), "interval": [interval.low, interval.high],
            "probabilities": probabilities, "labels": labels, "predictions": predictions,
            "confusion": confusion, "precision": precision, "recall": recall}


def percent(value):
    """Format 0-1 as a percentage, NaN (nothing to divide by) as a dash."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def run_settings(script, files, arguments):
    """Return what tells one training run from another, as a JSON-serialisable dict."""
    options = {key: value for key, value in vars(arguments).items()
               if key not in {"data", "data_dir", "output_dir", "show", "predict"}}
    return {"script": script, "data": files.kind,
            "data_files": {path.name: sha256(path) for path in (files.train, files.test)}, **options}


def sha256(path):
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_metrics(output_dir, settings, model, results, *, names, examples, train_seconds, device):
    """Write `metrics.json`: what was run on what, and what came out.

    Args:
        output_dir: folder.
        settings: dict from `run_settings`.
        model: the trained Keras model.
        results: dict from `evaluate`.
        names: the class names.
        examples: dict with the numbers of pictures, as `train`, `validation` and `test`.
        train_seconds: float, wall time of the training.
        device: str.
    """
    import keras
    import tensorflow as tf

    metrics = {
        **settings,
        **{f"{part}_examples": count for part, count in examples.items()},
        "parameters": model.count_params(),
        "test_loss": results["loss"], "test_accuracy": results["accuracy"],
        "test_accuracy_interval": results["interval"],
        "classes": [{"name": name, "precision": none_if_nan(p), "recall": none_if_nan(r), "examples": int(count)}
                    for name, p, r, count in zip(names, results["precision"], results["recall"],
                                                 results["confusion"].sum(axis=1))],
        "confusion_matrix": results["confusion"].tolist(),
        "train_seconds": round(train_seconds, 2), "device": device,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                     "keras": keras.__version__, "numpy": np.__version__},
    }
    path = pathlib.Path(output_dir) / "metrics.json"
    path.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"Saved {path}")


def none_if_nan(value):
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)


# --------------------------------------------------------------------- figures

INK, ACCENT, SECOND, GRID = "#22303c", "#1f6fb2", "#d9822b", "#d8dee4"


def new_figure(width, height, rows=1, columns=1):
    """Return a Matplotlib figure and its axes, in the style of all figures; width and height in inches."""
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID,
             "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
             "figure.dpi": 120}
    with plt.rc_context(style):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)


def use_headless_figures(show):
    """Draw without a display unless the figures are to be opened. Call it before the first figure."""
    import matplotlib

    if not show:
        matplotlib.use("Agg")


def save_figure(figure, title, path, kind):
    """Give the figure its title, mark it if the data are synthetic, save it."""
    if kind == "synthetic":
        title += "  |  SYNTHETIC data"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    figure.savefig(path)
    print(f"Saved {path}")


def show_figures():
    """Open every figure made so far and wait until the windows are closed."""
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == "agg":
        print("There is no display to open the figures on: they are saved, see above.")
    else:
        plt.show()


def draw_pictures(pictures, captions, title, path, kind, empty=""):
    """Save a figure of pictures with captions, six in a row; `empty` is said where there is none."""
    columns = min(6, max(3, len(pictures)))
    rows = max(1, math.ceil(len(pictures) / columns))
    lines = 1 + max((caption.count("\n") for caption in captions), default=0)
    figure, axes = new_figure(1.75 * columns, rows * (1.6 + 0.17 * lines) + 0.5, rows, columns)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, caption in zip(axes.flat, pictures, captions):
        ax.imshow(picture, interpolation="nearest")     # the pixels as they are
        ax.set_title(caption, fontsize=8, color=INK, parse_math=False)      # a file's name may hold a $
    if not len(pictures):
        figure.text(0.5, 0.45, empty, ha="center")
    save_figure(figure, title, path, kind)


def plot_examples(x, y, names, path, kind):
    """Save one picture of each class, the first in the set.

    Args:
        x: uint8 array (m, height, width, 3).
        y: int array (m,).
        names: the class names.
        path: file to write, a PNG.
        kind: "real" or "synthetic".
    """
    first = [np.flatnonzero(y == label)[0] for label in range(len(names)) if label in y]
    captions = [f"{names[y[index]]} ({np.count_nonzero(y == y[index])} pictures)" for index in first]
    draw_pictures(x[first], captions, "Training set: one picture of each class", path, kind)


def plot_learning_curves(history, path, kind):
    """Save loss and accuracy by epoch, for training and validation.

    Args:
        history: dict of lists, as `model.fit(...).history`.
        path: file to write, a PNG.
        kind: "real" or "synthetic".
    """
    figure, axes = new_figure(9, 3.6, 1, 2)
    epochs = np.arange(1, len(history["loss"]) + 1)
    marker = "." if len(epochs) < 20 else None      # one or a few points alone would make no line to see
    for ax, metric in zip(axes[0], ("loss", "accuracy")):
        ax.plot(epochs, history[metric], color=ACCENT, marker=marker, label="training (augmented)")
        ax.plot(epochs, history["val_" + metric], color=SECOND, marker=marker, label="validation")
        ax.set(xlabel="epoch", ylabel=metric, xlim=(0.5, epochs[-1] + 0.5))
        ax.set_ylim(bottom=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(color=GRID, linewidth=0.6)
        ax.legend(frameon=False)
    axes[0][1].set_ylim(top=1.02)
    save_figure(figure, "Learning curves", path, kind)


def plot_confusion_matrix(results, names, path, kind):
    """Save the confusion matrix: which class was taken for which.

    Args:
        results: dict from `evaluate`.
        names: the class names.
        path: file to write, a PNG.
        kind: "real" or "synthetic".
    """
    confusion = results["confusion"]
    size = max(4.2, 0.75 * len(names) + 1.6)
    figure, axes = new_figure(size, size)
    ax = axes[0][0]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        ax.text(column, row, confusion[row, column], ha="center", va="center",
                color="white" if shares[row, column] > 0.5 else INK)
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted class", ylabel="true class")
    ax.set_xticklabels(names)
    ax.set_yticklabels(names)
    save_figure(figure, f"Test set: {results['accuracy']:.1%} right", path, kind)


def plot_mistakes(x, results, names, path, kind, most=24):
    """Save the test pictures that the model got wrong, the surest mistakes first.

    Args:
        x: uint8 array (m, height, width, 3), the test pictures.
        results: dict from `evaluate`.
        names: the class names.
        path: file to write, a PNG.
        kind: "real" or "synthetic".
        most: int, how many are drawn at the most.
    """
    labels, predictions = results["labels"], results["predictions"]
    wrong = np.flatnonzero(labels != predictions)
    surety = results["probabilities"][wrong, predictions[wrong]]
    wrong = wrong[np.argsort(-surety, kind="stable")]
    captions = [f"is {names[labels[index]]}\ntaken for {names[predictions[index]]}, "
                f"{results['probabilities'][index, predictions[index]]:.0%}" for index in wrong[:most]]
    title = f"Mistakes: {len(wrong)} of {len(labels)} test pictures"
    if len(wrong) > most:
        title += f", the {most} surest"
    draw_pictures(x[wrong[:most]], captions, title, path, kind,
                  empty=f"None: all {len(labels)} test pictures were classified correctly.")


# ------------------------------------------------------------------ prediction

def load_trained_model(output_dir, script):
    """Load the model that an earlier run of the script has saved.

    Returns:
        The Keras model, and "real", "synthetic" or "unknown": what it was trained on.

    Raises:
        InputError: there is no model, or the file is none.
    """
    import keras

    path = pathlib.Path(output_dir) / "model.keras"
    if not path.exists():
        raise InputError(f"There is no trained model yet: expected {path}. Train one first with `python {script}.py`, "
                         f"or name the folder of an earlier run with --output-dir. Received: no such file")
    try:
        model = keras.models.load_model(path)
    except Exception as error:      # Keras raises many kinds, from zip errors to missing layers
        raise InputError(f"{path} must be a model saved by {script}.py; train it again. "
                         f"Received: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    metrics = read_json(path.with_name("metrics.json")) or {}
    kind = metrics.get("data", "unknown")
    trained_on = {"synthetic": "SYNTHETIC pictures, not photographs", "real": "real photographs"}
    print(f"Model: {path}, trained on {trained_on.get(kind, 'unknown data')}"
          + (", but by a --dry-run: it has learnt next to nothing" if metrics.get("dry_run") else ""))
    return model, kind


def read_image(path, size):
    """Read any picture as the models want it.

    Turned as the camera's EXIF note says, transparency laid on white, every
    mode brought to 8-bit RGB, the largest centred square cut out and scaled:
    squeezed, a hand is no hand of the training set.

    Args:
        path: file in any format that Pillow reads; of several frames, the first.
        size: int, side of the result in pixels.

    Returns:
        uint8 array (size, size, 3), RGB.

    Raises:
        InputError: there is no such file, or it is no picture that can be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = pathlib.Path(path)
    expected = "expected a picture (JPEG, PNG, WebP, TIFF, ...)"
    try:
        with Image.open(path) as image:
            image.load()
            image = to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"{path}: {expected}; check the name. Received: no such file") from None
    except UnidentifiedImageError:
        kind = "an empty file" if path.stat().st_size == 0 else "a file that is no picture"
        raise InputError(f"{path}: {expected}. Received: {kind}") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {expected} of a usual size; scale it down. Received: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:     # Pillow's reports of damaged files
        reason = "a folder" if path.is_dir() else f"a damaged picture ({getattr(error, 'strerror', None) or error})"
        raise InputError(f"{path}: {expected} that can be read to its end. Received: {reason}") from None
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def to_rgb(image):
    """Bring a Pillow image of any mode to 8-bit RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # 16 bits (or more) of grey: Pillow would cut off at 255 instead of scaling.
        grey = np.nan_to_num(np.asarray(image, np.float64))
        # White is 65535, but floating-point pictures may also count to 1 or to 255.
        white = 65535 if image.mode != "F" else next((top for top in (1, 255) if grey.max() <= top), 65535)
        return Image.fromarray(np.clip(grey * (255 / white), 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def predict_images(model, paths, names, output_dir, kind):
    """Say what each picture shows, and save exactly what the model saw.

    Args:
        model: Keras model from raw pixels (m, size, size, 3), 0-255, to probabilities.
        paths: the picture files.
        names: the class names.
        output_dir: folder; the pictures go into its sub-folder `predictions`.
        kind: what the model was trained on: "real", "synthetic" or "unknown".

    Returns:
        int, exit code: 0, or 1 if a file could not be read (the others are still predicted).
    """
    from PIL import Image

    pictures, readable = [], []
    for path in paths:
        try:
            pictures.append(read_image(path, model.input_shape[1]))
            readable.append(path)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
    if pictures:
        folder = prepare_output_dir(pathlib.Path(output_dir) / "predictions")
        probabilities = class_probabilities(model.predict(np.stack(pictures), verbose=0))
        captions = []
        for number, (path, picture, row) in enumerate(zip(readable, pictures, probabilities), 1):
            answer = f"{names[row.argmax()]} ({row.max():.1%})"
            seen = folder / f"{number:02d}_{path.stem}.png"     # numbered: two folders may hold one name
            Image.fromarray(picture).save(seen)
            name = path.name if len(path.name) <= 24 else f"{path.name[:11]}...{path.name[-10:]}"
            captions.append(f"{name}\n{answer}")
            print(f"{path}: {answer}; what the model saw: {seen}")
        title = "What the model saw, and its answer"
        if kind == "synthetic":
            title = "What the model, trained on SYNTHETIC pictures, saw and answered"
        draw_pictures(pictures, captions, title, folder / "predictions.png", "real")     # the photos are the user's
    return 1 if len(readable) < len(paths) else 0
