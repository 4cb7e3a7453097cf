"""Load a saved model. The file is untrusted, so it is checked before anything is built from it."""

import json
import os
import pathlib
import zipfile
from typing import NamedTuple

import h5py
import numpy as np

from basics.errors import InputError, first_line, printable
from basics.files import file_type
from datasets import IMAGE_SIZES, Task
from datasets.images import is_image_shape
from support.evaluation.results import NOT_SURE_BELOW
from support.training import efficientnet_lite
from support.training.pretrained import weights_file

# Larger networks are refused, because building one may need too much memory. ResNet50 has 2,048 features and 300 MB.
MAX_WIDTH = 4096
MAX_FILE_BYTES = 2**30


class Metadata(NamedTuple):
    """What a run saves with the network."""

    classes: tuple  # of str
    task: Task  # of the script that saved it
    data: str  # "real", "synthetic", "folder" or "unknown"
    dry_run: bool = False
    temperature: float = 1.0
    ood_threshold: float | None = None  # None: the file has no metadata
    feature_bank: np.ndarray | None = None  # float16 (t, n)
    not_sure_below: float = NOT_SURE_BELOW  # the least probability of a sure answer
    flip: bool = True  # whether a mirrored image shows the same, False after a training with --no-flip

    @property
    def shows_task(self):
        """Whether the classes are the task's own."""
        return tuple(self.classes) == self.task.class_names


def load_keras_model(path):
    """Return the model of a `.keras` file, without running code from it."""
    import keras

    return keras.models.load_model(path, compile=False, safe_mode=True)


def load_trained_model(
    output_dir, script, task, network=None, load=load_keras_model, weights=None, not_sure_below=None, others=()
):
    """Load the model that a run of the script has saved, or else the one in weights/; no code in the file is run.

    Args:
        output_dir: folder of that run.
        script: str, the script's name without ".py".
        task: `datasets.Task`; a model without metadata gets its class names.
        network: str, the name of the Keras model, if it is not the script's.
        load: function from the path to a Keras model or a `numpy_inference.Network`.
        weights: what --weights names, another model: a `.keras` file, or "synthetic" for the one in weights/.
        not_sure_below: float, 0 to 1, put in place of the one in the metadata; None: it stays.
        others: str, names of other Keras models that are accepted as well.

    Returns: the model and its `Metadata`.
    Raises InputError: there is no model, or the file is damaged or something else.
    """
    path = pathlib.Path(output_dir) / "model.keras"
    shipped = weights_file("synthetic", script)
    if weights in ("random", "imagenet", "lite0"):
        fix = "Drop --weights, or name a .keras file"
        raise InputError(f"--weights {weights} is for training, not for a trained model", fix)
    if weights:
        path = weights_file(weights, script)
    elif not os.path.exists(path) and shipped.exists():
        path = shipped
    elif not os.path.exists(path):
        fix = f"Train one with `python {script}.py`, or name the folder of an earlier run with --output-dir"
        raise InputError(f"There is no trained model yet: {path} does not exist", fix)
    damaged = "it is damaged"
    try:
        _check_file(path)
        model = load(path)
        _check_network(model, network or script, others)
        damaged = "its metadata are damaged"
        metadata = _read_metadata(path, task, model.layers[-1].kernel.shape[0])
        outputs, classes = model.output_shape[-1], len(metadata.classes)
        if not_sure_below is not None:
            metadata = metadata._replace(not_sure_below=not_sure_below)
        if max(2, outputs) != classes:
            raise InputError(f"it has {outputs} outputs for {classes} classes")
    except Exception as error:  # zipfile, json, h5py, Keras and NumPy raise many types for damaged data
        if isinstance(error, InputError):
            reason = str(error)
        elif "Lambda" in str(error):
            reason = "it contains code (a Lambda layer), which is never run"
        elif getattr(error, "strerror", None):
            reason = f"it cannot be read ({error.strerror})"
        else:
            reason = f"{damaged} ({type(error).__name__}: {first_line(error, 300)})"
        fix = "Train again, or name the folder of another run with --output-dir"
        raise InputError(f"{path} is not a model saved by {script}.py: {reason}", fix) from None
    if path == shipped and not weights:
        print(f"There is no trained model in {output_dir}: using the one that ships with the project")
    some = ", ".join(metadata.classes[:6])
    own = f"your own images of {some}{', ...' * (len(metadata.classes) > 6)}"
    sources = {"synthetic": "SYNTHETIC images only, not photographs", "real": "real photographs", "folder": own}
    warning = ", but only in a --dry-run: it has learned next to nothing" if metadata.dry_run else ""
    print(f"Model: {path}, trained on {sources.get(metadata.data, 'unknown data')}{warning}")
    if metadata.data == "synthetic" and path != shipped and shipped.exists():
        print("The one that ships with the project has seen more people; --weights synthetic uses it")
    return model, metadata


def _check_file(path):
    """Raise an InputError unless the file is an archive of Keras 3 that is safe to load."""
    if not path.is_file():
        raise InputError(f"it is {'a folder' if path.is_dir() else 'neither a file nor a folder'}")
    with open(path, "rb") as file:
        kind = file_type(file.read(64)).replace("an HDF5 file:", "a .keras file:")
    if kind == "an HDF5 file":
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version")
            kind += f" with a model of Keras {version}" if "model_config" in file.attrs else " with weights or data"
    if kind != "a zip archive":
        raise InputError(f"it is {kind}")
    with zipfile.ZipFile(path) as archive:
        if not {"config.json", "metadata.json", "model.weights.h5"} <= set(archive.namelist()):
            raise InputError("it is a zip archive without a Keras model")
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise InputError(f"it unpacks to {size:,} bytes, more than {MAX_FILE_BYTES:,}")
        # From Python 3.13 on, a member that is not read from end to end is not checked.
        if damaged := archive.testzip():
            raise InputError(f"its {damaged} is damaged")
        version = str(json.loads(archive.read("metadata.json")).get("keras_version"))
        if not version.startswith("3."):
            raise InputError(f"it was saved by Keras {version}, not by Keras 3")
        width = _largest_integer(json.loads(archive.read("config.json"))["config"].get("layers", []))
        if width > MAX_WIDTH:
            raise InputError(f"one of its layers has {width:,} features, more than {MAX_WIDTH:,}")


def _largest_integer(config):
    """Return the largest integer in the JSON config of a network's layers."""
    if isinstance(config, dict):
        # These are numbers of objects, and shapes that follow from the sizes of the layers.
        config = [value for key, value in config.items() if key not in ("seed", "shared_object_id", "build_config")]
    if isinstance(config, list):
        return max(map(_largest_integer, config), default=0)
    return config if isinstance(config, int) else 0


def _check_network(model, name, others):
    """Raise an InputError unless a model has the name, input and last layer of the script's, and finite weights.

    Every script can use EfficientNet-Lite0 as well, and `others` are names of more networks.
    """
    inputs = getattr(model, "input_shape", None)  # an untrusted file may hold a model of any kind
    outputs = getattr(model, "output_shape", None)
    if model.name not in (name, efficientnet_lite.NAME, *others):
        raise InputError(f"its network is {printable(model.name)!r}, not {name!r}")
    if not (isinstance(inputs, tuple) and inputs[:1] == (None,) and is_image_shape(inputs[1:])):
        sizes = f"where size is a multiple of {IMAGE_SIZES.step} from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}"
        raise InputError(f"its input has shape {inputs}, not (None, size, size, 3), {sizes}")
    last = model.layers[-1]
    one_row = isinstance(outputs, tuple) and len(outputs) == 2
    if not one_row or type(last).__name__ != "Dense" or last.bias is None:
        raise InputError(f"its network ends in {printable(last.name)!r}, not in a Dense layer with a bias")
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError("some of its weights are NaN or infinite")


def _read_metadata(path, task, width):
    """Return the `Metadata` in a `.keras` file, the defaults if it has none; `width` is the number of features."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if {"run_metadata.json", "feature_bank.npy"} <= names:
            saved = json.loads(archive.read("run_metadata.json"))
            bank_file = "feature_bank.npy"
        elif {"notes.json", "familiar.npy"} <= names:  # a model saved before the files got these names
            saved = json.loads(archive.read("notes.json"))
            saved["ood_threshold"] = saved.pop("usual")
            bank_file = "familiar.npy"
        else:
            return Metadata(task.class_names, task, "unknown")
        with archive.open(bank_file) as file:
            bank = np.load(file, allow_pickle=False)
    metadata = Metadata(task=task, feature_bank=bank, **saved)
    names_ok = isinstance(metadata.classes, list) and all(isinstance(name, str) for name in metadata.classes)
    numbers = metadata.temperature, metadata.ood_threshold, metadata.not_sure_below
    numbers_ok = all(isinstance(number, float | int) and np.isfinite(number) for number in numbers)
    numbers_ok = numbers_ok and 0 <= metadata.not_sure_below <= 1
    flags_ok = isinstance(metadata.flip, bool)
    bank_ok = bank.dtype.kind == "f" and bank.shape[1:] == (width,) and len(bank) and np.isfinite(bank).all()
    if not (names_ok and numbers_ok and flags_ok and bank_ok and isinstance(metadata.data, str)):
        raise ValueError("some values are not of the types that a run saves")
    return metadata._replace(classes=tuple(map(printable, metadata.classes)))
