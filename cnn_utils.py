"""What the three scripts share: data in, metrics and pictures out.

    command line   command_line, run
    start          computes_bfloat16, start_tensorflow
    data           find_data, load_happy_dataset, load_signs_dataset, class_names
    preparation    split_validation, add_rendered, first_of_each_class, one_hot, training_batches,
                   planned_batches, plain_batches, make_variables, compute_in_float32, print_shapes
    evaluation     evaluate, save_metrics
    figures        plot_examples, plot_learning_curves, plot_confusion_matrix, plot_mistakes

How a training is saved and gone on with is in `runs.py`, what a trained model is asked in `prediction.py`.
Data flows one way: files -> arrays -> model -> metrics -> figures. The heavy
libraries are imported by the functions that need them, so that `--help` and a
mistyped option answer at once.
"""

import argparse
import contextlib
import math
import os
import pathlib
import platform
import re
import sys
import tempfile
import traceback
import warnings
from typing import NamedTuple

import numpy as np

from runs import INTERRUPTED, InputError, unfinished, write_json

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = HERE / "datasets"

# Height, width and channels of every picture in the course's files, and so of what the networks take.
PICTURE_SHAPE = (64, 64, 3)

# Where NVIDIA's driver under Linux tells of its devices.
NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")

# Deflate, HDF5's compression, makes no file more than so many times smaller.
DENSEST = 1032


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


def crop(text):
    """argparse type: "center", "stretch", or left, top and side of a square in pixels as three whole numbers."""
    if text in ("center", "stretch"):
        return text
    try:
        left, top, side = map(int, text.split(","))
    except ValueError:
        side = 0
    if side < 1 or left < 0 or top < 0:
        raise argparse.ArgumentTypeError("expected center, stretch, or X,Y,SIZE, a square's left edge, upper edge and "
                                         f"side in pixels. Received: {text!r}")
    return left, top, side


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
                      help="folder with the real .h5 files (default: datasets/ beside the script), or with one "
                           "sub-folder of pictures for each class")
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
    training.add_argument("--seeds", type=whole_number(1, 1000), default=1, metavar="N",
                          help="repeat the whole run with N seeds, from --seed on; print mean, spread and interval")
    training.add_argument("--resume", action="store_true",
                          help="go on with a run of the same settings that was interrupted or killed")
    training.add_argument("--deterministic", action="store_true",
                          help="the same result to the last bit, on the same machine; slower")
    training.add_argument("--dry-run", action="store_true",
                          help="the whole path on a few pictures, one epoch: does it work here?")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", type=pathlib.Path, default=HERE / "outputs" / script, metavar="DIR",
                        help=f"where everything is saved (default: outputs/{script}/ beside the script)")
    output.add_argument("--show", action="store_true", help="open the figures as well, at the end")
    output.add_argument("--tensorboard", action="store_true",
                        help="log curves, example pictures and the confusion matrix for TensorBoard")
    prediction = parser.add_argument_group("with a trained model")
    instead = prediction.add_mutually_exclusive_group()
    instead.add_argument("--predict", nargs="+", type=pathlib.Path, metavar="IMAGE",
                         help="no training: load the trained model and say what these pictures show")
    instead.add_argument("--export", nargs="+", choices=("onnx", "saved_model", "litert"),
                         help="no training: write the trained model for another program, and compare its answers")
    prediction.add_argument("--crop", type=crop, default="center", metavar="{center,stretch,X,Y,SIZE}",
                            help="the part of a picture to look at: the largest square in its middle, all of it "
                                 "squeezed into a square, or a square in pixels (default: center)")
    prediction.add_argument("--tta", action="store_true",
                            help="look at ten views of each picture and average the answers")
    prediction.add_argument("--explain", action="store_true",
                            help="save which parts of each picture spoke for the answer (Grad-CAM)")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error came up")
    return parser


def run(main):
    """Call `main()` and leave with its exit code; what the user can mend becomes one line and code 2.

    That is an `InputError`, and a step of the training that does not fit into
    memory. With --debug, the traceback is shown as well.
    """
    # A terminal, or the file that is printed to, may lack a letter.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    # Notes of Pillow's about large pictures and odd metadata, and of Matplotlib's about letters that a font lacks.
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", message="Glyph")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nInterrupted: there is nothing but what was announced as saved. A training that has finished an epoch "
              "is gone on with by --resume", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        inside = re.search("InputError: (.*)", str(error))
        if isinstance(error, InputError):
            message = str(error)
        elif inside:        # a picture that disappeared meanwhile, say: TensorFlow wraps what its threads raise
            message = inside[1]
        elif isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
            message = (f"The memory does not suffice: expected room for a step of the training; try --batch-size 8, or "
                       f"half of what it was. Received: {(str(error).splitlines() or ['no more memory'])[0][:200]}")
        else:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(2)


def printable(text):
    """Return the text with escapes for what has no letter: a file's name may hold any byte, a line's end too."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
                   for letter in text)


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
        except Exception:
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


def start_tensorflow(seed, mixed_precision=False, deterministic=False):
    """Import TensorFlow quietly, fix every random generator, print the device in one line.

    Args:
        seed: int >= 0, given to Python, NumPy and TensorFlow alike.
        mixed_precision: bool; layers made from now on compute in bfloat16 and keep their
            weights in float32 (Micikevicius et al., "Mixed Precision Training", 2018;
            bfloat16 has the range of float32, so that no loss need be scaled).
        deterministic: bool; every sum is made in the same order each time.

    Returns:
        str, the device in words.
    """
    with quiet_start():
        import tensorflow as tf
        gpus = tf.config.list_physical_devices("GPU")
        broken = gpus and gpu_fault(tf)
    if broken:
        print(f"The GPU cannot be used, going on with the CPU. Received: {broken}", file=sys.stderr)
        sys.stderr.flush()
        # A device cannot be given up any more once it was used: the same command again, without it.
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.execv(sys.executable, sys.orig_argv)
    tf.keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    if gpus:
        names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
        device = "GPU: " + ", ".join(names)
    else:
        device = f"CPU, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    device += ", bfloat16 and float32" if mixed_precision else ", float32"
    print(f"Device: {device} (TensorFlow {tf.__version__}, Keras {tf.keras.__version__})")
    if not gpus and NVIDIA.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        print("There is an NVIDIA GPU that TensorFlow does not find: pip install 'tensorflow[and-cuda]>=2.21,<2.22'")
    return device


def gpu_fault(tf):
    """Return why the first GPU cannot compute a convolution, in one line, or "" if it can.

    It may be listed and yet fail at its first work: a driver, CUDA and cuDNN that
    do not fit together, or a memory that another program holds.
    """
    try:
        with tf.device("/GPU:0"):
            tf.nn.conv2d(tf.ones([1, 8, 8, 1]), tf.ones([3, 3, 1, 1]), 1, "SAME").numpy()
    except (tf.errors.OpError, RuntimeError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ""


# ------------------------------------------------------------------------ data

class DataFiles(NamedTuple):
    """Where a data set comes from: its kind, its two files, and why, if that needs saying.

    "real": photographs in two .h5 files; "synthetic": rendered pictures, likewise;
    "folder": pictures of one's own, and both paths are the folder that holds them.
    """
    kind: str
    train: pathlib.Path
    test: pathlib.Path
    note: str = ""

    def __str__(self):
        if self.kind == "synthetic":
            return f"Data: SYNTHETIC, rendered pictures, not photographs, from {self.train.parent}{self.note}"
        if self.kind == "folder":
            return f"Data: your own pictures, from {self.train}"
        return f"Data: real, {self.train} and {self.test.name}"


def find_data(name, data="auto", data_dir=None):
    """Find the two files of a data set; render the synthetic ones where they are wanted.

    Args:
        name: "happy" or "signs".
        data: "real": the files must be there; "synthetic": rendered pictures;
            "auto": real if both files are there, synthetic if neither is.
        data_dir: folder of the real files, or of sub-folders with pictures; None
            means `datasets/` beside this file, whatever the working directory is.

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
        missing = [path.name for path in paths if not os.path.lexists(path)]    # False, too, where one may not look
        if not missing:
            kind = "synthetic" if any(map(is_rendered, paths)) else "real"
            if data == "real" and kind == "synthetic":
                raise InputError(f"--data real wants photographs: name the folder that holds them with --data-dir. "
                                 f"Received: {folder}, whose files are SYNTHETIC")
            return DataFiles(kind, train, test)
        if data_dir is not None and len(missing) == 2:
            from datasets.folders import has_classes, pictures_in, sub_folders
            if has_classes(folder):
                return DataFiles("folder", folder, folder)
            filled = [place for place in (folder, *(folder / name for name in sub_folders(folder)))
                      if pictures_in(place)]
            if filled and data != "real":
                raise InputError(f"{folder} must hold {names[0]} and {names[1]}, or one sub-folder of pictures for "
                                 "each class, two at least, or such sub-folders in `train`; for rendered pictures, "
                                 f"give --data synthetic. Received: pictures in {', '.join(map(str, filled[:3]))} only")
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

    if not os.path.isfile(path):
        return False        # a pipe, say, would be waited for
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
        0 = not smiling, 1 = smiling, test_x, test_y, and classes (2,) int64. Of a
        folder, x are `datasets.folders.PictureFiles` and classes the names (k,) str.

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
        test_x, test_y, and classes (6,) int64. Of a folder, x are
        `datasets.folders.PictureFiles` and classes the names (k,) str.

    Raises:
        InputError: a file is missing or not what it should be.
    """
    return load_files(find_data("signs", data, data_dir), 6)


def load_files(files, number_of_classes):
    """Load the two files of a `DataFiles`; see `load_happy_dataset` for what is returned."""
    if files.kind == "folder":
        from datasets.folders import load_folder
        return load_folder(files.train)
    train_x, train_y, classes = load_h5(files.train, "train")
    test_x, test_y, test_classes = load_h5(files.test, "test")
    if not np.array_equal(classes, test_classes):
        raise refused(f"{files.train} and {files.test} must list the same classes",
                      f"{classes.tolist()} and {test_classes.tolist()}")
    if classes.dtype.kind != "U" and len(classes) != number_of_classes:
        raise refused(f"{files.train} must list {number_of_classes} classes", classes.tolist())
    counts = np.bincount(train_y, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        raise refused(f"{files.train} must hold pictures of at least two classes: from one there is nothing to tell "
                      "apart", f"{len(train_y)} of class {train_y[0]} only")
    if 1 in counts:
        raise refused(f"{files.train} must hold at least two pictures of each class that it has, for one of them is "
                      "set aside for validation", f"one of class {np.flatnonzero(counts == 1).tolist()}")
    lacking = np.setdiff1d(test_y, train_y)
    if len(lacking):
        raise refused(f"{files.test} must hold no class that {files.train} has no picture of",
                      f"class {lacking.tolist()}")
    return train_x, train_y, test_x, test_y, classes


def refused(expected, received):
    """Return the InputError about a file of the course's schema that is not what it should be."""
    return InputError(f"{expected}. Get the file again (python -m datasets.download), or write it anew as README says "
                      f"under 'Getting the photographs'. Received: {received}")


def load_h5(path, part):
    """Read one file of the course's schema.

    Args:
        path: the HDF5 file, with the keys `<part>_set_x` (m, 64, 64, 3) uint8, or
            other numbers that are 0 to 255, or fractions of 0 to 1,
            `<part>_set_y` whole numbers of shape (m,), (1, m) or (m, 1),
            and `list_classes` (k,), whole numbers or byte strings.
        part: "train" or "test".

    Returns:
        x (m, 64, 64, 3) uint8, y (m,) int64 in 0..k-1, classes (k,) int64, or (k,)
        str in a file from `datasets.pack`, which holds the names.

    Raises:
        InputError: the file is not HDF5, a key is missing, or the arrays are
            not what the schema says.
    """
    import h5py

    keys = f"{part}_set_x", f"{part}_set_y", "list_classes"
    try:
        if not os.path.isfile(path):
            raise OSError("not a file")
        file = h5py.File(path, "r")
    except OSError as error:
        raise refused(f"{path} must be an HDF5 file with the keys {', '.join(keys)}", what_it_is(path, error)) from None
    try:
        with file:
            check_headers(file, keys, path)
            y, classes = (file[key][()] for key in keys[1:])
            x = read_pixels(file[keys[0]], keys[0], path)
            names = file["list_classes"].attrs.get("names")
    except InputError:
        raise
    except Exception as error:      # h5py raises nearly every kind for one damaged byte or another
        raise refused(f"{path} cannot be read to its end", what_it_is(path, error)) from None
    try:
        return x, *labels_and_classes(y, classes, names, len(x), keys, path)
    except InputError:
        raise
    except Exception as error:      # of objects, references and the like, NumPy raises many kinds
        raise refused(f"{keys[1]} and list_classes in {path} must be arrays of whole numbers",
                      f"{type(error).__name__}: {error}") from None


def labels_and_classes(y, classes, names, count, keys, path):
    """Check what a file of the course's schema holds besides its pictures, see `load_h5`.

    Args:
        y, classes: arrays as they were read.
        names: the attribute of `list_classes` that holds the classes' names, or None.
        count: int, number of pictures.
        keys, path: for the messages.

    Returns:
        y (count,) int64 and classes (k,), int64 or str.
    """
    if y.size != count or y.shape not in {(count,), (1, count), (count, 1)}:
        raise refused(f"{keys[1]} in {path} must hold one label for each of the {count} pictures, as (m,), "
                      "(1, m) or (m, 1)", y.shape)
    listed = np.ravel(classes)
    try:
        classes = listed.astype(np.int64)       # b"3" and 3 alike become 3
        if len(set(classes)) < len(classes) or not len(classes) or (listed.dtype.kind == "f"
                                                                    and (listed != classes).any()):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise refused(f"list_classes in {path} must hold whole numbers, each once", listed[:10].tolist()) from None
    y = np.ravel(y)
    if y.dtype.kind not in "iuf" or not np.isin(y, np.arange(len(classes))).all():
        raise refused(f"{keys[1]} in {path} must hold whole numbers from 0 to {len(classes) - 1}, one for each "
                      "class", np.unique(y)[:10].tolist())
    if names is not None:
        texts = [printable(name.decode() if isinstance(name, bytes) else str(name)) for name in np.ravel(names)]
        if len(set(texts)) != len(classes) or not all(texts):
            raise refused(f"The names of list_classes in {path} must be one for each of {len(classes)} classes, no "
                          "two alike", texts[:10])
        classes = np.array(texts)
    return y.astype(np.int64), classes


def check_headers(file, keys, path):
    """Raise an InputError unless an open HDF5 file declares what it should; no array is read for that.

    A damaged header may declare more than fits into memory: more than the file
    can hold is refused.
    """
    import h5py

    for key in keys:
        if not isinstance(file.get(key), h5py.Dataset):
            keras_model = "keras_version" in file.attrs or "model_weights" in file or {"layers", "vars"} <= set(file)
            raise refused(f"{path} must hold the arrays {', '.join(keys)}: {key} is missing",
                          f"{'a Keras model, with ' if keras_model else ''}{', '.join(file) or 'an empty file'}")
        if file[key].external or file[key].is_virtual or not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise refused(f"{path} must hold its arrays itself: a file that makes others be read is not followed",
                          f"{key} in another file")
        if file[key].shape is None:
            raise refused(f"{path} must hold the arrays {', '.join(keys)}", f"{key} without values")
    shape, kind = file[keys[0]].shape, file[keys[0]].dtype
    if shape is None or len(shape) != 4 or shape[1:] != PICTURE_SHAPE or shape[0] == 0 or kind.kind not in "uif":
        raise refused(f"{keys[0]} in {path} must be pictures, at least one: uint8 (number, 64, 64, 3)",
                      f"{kind} {shape}")
    declared = sum(file[key].size * file[key].dtype.itemsize for key in keys)
    if declared > DENSEST * os.path.getsize(path):
        raise refused(f"{path} must hold as many pictures as it declares",
                      f"{shape[0]:,} pictures declared in a file of {os.path.getsize(path):,} bytes")
    for key in keys:
        if not file[key].id.get_storage_size():
            raise refused(f"{path} must hold the arrays {', '.join(keys)}", f"{key} declared, but never written")


def read_pixels(dataset, key, path):
    """Return the pictures in an HDF5 dataset as uint8; say so if they were other numbers.

    Raises:
        InputError: some are not finite, or they are neither 0 to 255 nor 0 to 1.
    """
    if dataset.dtype == np.uint8:
        return dataset[()]
    # A part at a time: as float64, all of them are eight times as large.
    parts = [slice(start, start + 256) for start in range(0, len(dataset), 256)]
    low, high = math.inf, -math.inf
    for part in parts:
        values = dataset[part]
        finite = np.isfinite(values).all(axis=(1, 2, 3))
        if not finite.all():
            raise refused(f"{key} in {path} must hold finite numbers",
                          f"NaN or infinity, first in picture {part.start + finite.argmin()}")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low < 0 or high > 255:
        raise refused(f"{key} in {path} must hold pixels of 0 to 255, or fractions of 0 to 1",
                      f"{dataset.dtype} from {low:g} to {high:g}")
    white = 1 if dataset.dtype.kind == "f" and high <= 1.001 else 255       # a little over: rounding
    x = np.empty(dataset.shape, np.uint8)
    for part in parts:
        x[part] = np.rint(np.minimum(dataset[part].astype(np.float64) * (255 / white), 255))
    print(f"{key} in {path} holds {dataset.dtype} from {low:g} to {high:g}: taken as 0 to {white}, made uint8 0 to 255")
    return x


def class_names(classes, usual):
    """Return the names of the classes: those that the data bring along, or else the usual ones of the set."""
    return tuple(map(str, classes)) if classes.dtype.kind == "U" else usual


def what_it_is(path, error):
    """Say in a few words what a file that cannot be read as HDF5 is instead."""
    from datasets import kind_of_file

    path = pathlib.Path(path)
    if path.is_dir():
        return "a folder"
    if path.is_symlink() and not path.exists():
        return "a link that leads nowhere"
    if path.exists() and not path.is_file():
        return "neither a file nor a folder"
    if "unable to lock" in str(error):
        return "a file that another program has open for writing; end that first"
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
    # `take`: of pictures on disk it makes a list, where an index would read them.
    return x.take(train, axis=0), y[train], x.take(validation, axis=0), y[validation]


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
    return x.take(keep, axis=0), y[keep]


def one_hot(y, classes):
    """Turn labels (m,) into rows (m, classes) float32: 1 in the label's column, 0 elsewhere."""
    return np.eye(classes, dtype=np.float32)[y]


def print_shapes(title, **arrays):
    """Print name, shape, type and range of each array; pictures on disk are not read for that."""
    print(f"\n{title}")
    for name, array in arrays.items():
        values = f"{array.min():g} to {array.max():g}" if isinstance(array, np.ndarray) else "on disk"
        print(f"  {name:<15} {str(array.shape):<20} {array.dtype!s:<8} {values}")


def training_batches(x, y, batch_size, seed, augment, least=0):
    """Shuffled, augmented mini-batches, new ones in every epoch.

    Args:
        x: uint8 array (m, height, width, 3), or `PictureFiles`.
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

    def prepare(numbers, batch_seed):
        pictures, labels = read_batch(x, y, numbers)
        return augment(pictures, batch_seed), labels

    passes = max(1, math.ceil(least / len(x)))
    numbers = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat(passes).batch(batch_size)
    # A seed for each batch: whichever thread augments it, and when, the result is the same.
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(numbers, seeds)
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def planned_batches(plan, epochs, batch_size, seed, least=0):
    """Mini-batches of a training in several parts, one after the other.

    Args:
        plan: list of (share, x, y, augment): the share of the epochs, all of which
            add up to 1; for the others see `training_batches`.
        epochs: int; each part gets whole epochs, which may be none if there are few.
        batch_size, seed, least: see `training_batches`.

    Returns:
        `tf.data.Dataset` of all batches of all epochs.
    """
    batches, done, share = None, 0, 0.0
    for number, (part, x, y, augment) in enumerate(plan):
        share += part
        end = round(share * epochs)
        if end > done:
            # A seed of its own: no part should see the pictures in the order of the one before.
            batch = training_batches(x, y, batch_size, (seed + number) % 2**32, augment, least).repeat(end - done)
            batches = batch if batches is None else batches.concatenate(batch)
        done = end
    return batches


def read_batch(x, y, numbers):
    """Return the pictures and labels with these numbers, as tensors of a `tf.data` pipeline.

    The arrays are read where they are: as the dataset's own tensors they would
    be in memory a second time, and in the buffer that shuffles them a third time.
    """
    import tensorflow as tf

    pictures, labels = tf.numpy_function(lambda chosen: (x[chosen], y[chosen]), [numbers], (x.dtype, y.dtype))
    pictures.set_shape((None, *x.shape[1:]))
    labels.set_shape((None, *y.shape[1:]))
    return pictures, labels


def plain_batches(x, y, batch_size):
    """The pictures as they are, in their order: `tf.data.Dataset` of (uint8 pictures, labels)."""
    import tensorflow as tf

    numbers = tf.data.Dataset.range(len(x)).batch(batch_size)
    return numbers.map(lambda chosen: read_batch(x, y, chosen), num_parallel_calls=2).prefetch(2)


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


def labels_of(y):
    """Return class numbers (m,) from what a loss wants: a column (m, 1) or one-hot rows (m, k)."""
    return y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(int)


def evaluate(model, x, y, names):
    """Measure the model on pictures it has never seen, and print the result.

    Args:
        model: compiled Keras model.
        x: uint8 array (m, height, width, 3), or `PictureFiles`.
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

    outputs = np.concatenate([model.predict_on_batch(x[start:start + 64]) for start in range(0, len(x), 64)])
    loss = float(np.mean(keras.ops.convert_to_numpy(keras.losses.get(model.loss)(y, outputs))))
    probabilities = class_probabilities(outputs)
    labels = labels_of(y)
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


def save_metrics(output_dir, settings, model, results, *, names, examples, train_seconds, device, calibration,
                 interrupted=False):
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
        calibration: dict from `trust.plot_reliability`.
        interrupted: bool, whether Ctrl-C ended the training.
    """
    import keras
    import tensorflow as tf

    metrics = {
        **settings,
        **{f"{part}_examples": count for part, count in examples.items()},
        "parameters": model.count_params(),
        "test_loss": results["loss"], "test_accuracy": results["accuracy"],
        "test_accuracy_interval": results["interval"], **calibration,
        "classes": [{"name": name, "precision": none_if_nan(p), "recall": none_if_nan(r), "examples": int(count)}
                    for name, p, r, count in zip(names, results["precision"], results["recall"],
                                                 results["confusion"].sum(axis=1))],
        "confusion_matrix": results["confusion"].tolist(),
        "interrupted": interrupted, "train_seconds": round(train_seconds, 2), "device": device,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__,
                     "keras": keras.__version__, "numpy": np.__version__},
    }
    write_json(metrics, pathlib.Path(output_dir) / "metrics.json")


def none_if_nan(value):
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)


# --------------------------------------------------------------------- figures

INK, ACCENT, SECOND, GRID = "#22303c", "#1f6fb2", "#d9822b", "#d8dee4"


def new_figure(width, height, rows=1, columns=1, **options):
    """Return a Matplotlib figure and its axes, in the style of all figures; width and height in inches."""
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID,
             "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
             "figure.dpi": 120}
    with plt.rc_context(style):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False,
                            **options)


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
    with unfinished(path) as aside:
        figure.savefig(aside)
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
    ax.set_xticklabels(names, parse_math=False)     # a folder's name may hold a $
    ax.set_yticklabels(names, parse_math=False)
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
