"""Load the model that a run has saved, which may come from a stranger: it is checked before anything is built."""

import json
import os
import pathlib
import zipfile

import h5py
import numpy as np

from datasets.images import IMAGE_SHAPE
from support.errors import InputError, printable
from support.files import file_type
from support.pretrained import weights_file

# Larger networks are refused before they are built, which may need too much memory; ours have 2,048 and 300 MB.
MAX_WIDTH = 4096
MAX_FILE_BYTES = 2**30


def load_keras_model(path):
    """Return the model of a `.keras` file, without running code from it."""
    import keras

    return keras.models.load_model(path, compile=False, safe_mode=True)


def load_trained_model(output_dir, script, class_names, network=None, load=load_keras_model):
    """Load the model that a run of the script has saved, or the one in weights/, without running code from the file.

    Args:
        output_dir: folder of that run.
        script: str, the script's name without ".py".
        class_names: the class names, for a model without metadata.
        network: str, the name of the Keras model, if it is not the script's.
        load: function from the path to a Keras model, or to a `numpy_inference.Network`.

    Returns:
        The model, and its metadata, a dict with `classes`, `data`, `dry_run`, `temperature`,
        `ood_threshold` and `feature_bank`, float16 (t, n); these two are None if the file has none.

    Raises InputError: there is no model, or the file is damaged or holds something else.
    """
    path = pathlib.Path(output_dir) / "model.keras"
    shipped = weights_file("synthetic", script)
    if not os.path.exists(path) and shipped.exists():
        path = shipped
    elif not os.path.exists(path):
        advice = f"Train one first with `python {script}.py`, or name the folder of an earlier run with --output-dir"
        raise InputError(f"There is no trained model yet: expected {path}. {advice}. Received: no such file")
    part = "a damaged .keras file"
    try:
        _check_file(path)
        model = load(path)
        _check_network(model, network or script)
        part = "damaged metadata"
        metadata = _read_metadata(path, class_names, model.layers[-1].kernel.shape[0])
        outputs, classes = model.output_shape[-1], len(metadata["classes"])
        if max(2, outputs) != classes:
            raise InputError(f"a model with {outputs} outputs, where one for each of {classes} classes was expected")
    except Exception as error:  # zipfile, json, h5py, Keras and NumPy raise many types for damaged data
        reason = (str(error).splitlines() or [""])[0][:300]
        if "Lambda" in str(error):
            reason = "a network with code of its own (a Lambda layer), which is not run"
        elif getattr(error, "strerror", None):
            reason = f"a file that cannot be read ({error.strerror})"
        elif not isinstance(error, InputError):
            reason = f"{part} ({type(error).__name__}: {reason})"
        expected = f"{path} must be a model saved by {script}.py"
        advice = "train it again, or name the folder of another run with --output-dir"
        raise InputError(f"{expected}; {advice}. Received: {reason}") from None
    if path == shipped:
        print(f"There is no trained model in {output_dir}: using the one that comes with the project")
    own = f"your own images of {', '.join(metadata['classes'])}"
    sources = {"synthetic": "SYNTHETIC images only, not photographs", "real": "real photographs", "folder": own}
    warning = ", but only by a --dry-run: it has learnt next to nothing" if metadata["dry_run"] else ""
    print(f"Model: {path}, trained on {sources.get(metadata['data'], 'unknown data')}{warning}")
    return model, metadata


def _check_file(path):
    """Raise an error unless the file is an archive of Keras 3 that is safe to load."""
    if not path.is_file():
        raise InputError("a folder" if path.is_dir() else "neither a file nor a folder")
    with open(path, "rb") as file:
        kind = file_type(file.read(64)).replace("an HDF5 file:", "a .keras file:")
    if kind == "an HDF5 file":
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version")
            kind += f", a model of Keras {version}" if "model_config" in file.attrs else ", weights or data"
    if kind != "a zip archive":
        raise InputError(f"{kind}, where a .keras file of Keras 3 was expected")
    with zipfile.ZipFile(path) as archive:
        if not {"config.json", "metadata.json", "model.weights.h5"} <= set(archive.namelist()):
            raise InputError("a zip archive that is not a Keras model")
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise InputError(f"an archive of {size:,} bytes when unpacked")
        version = str(json.loads(archive.read("metadata.json")).get("keras_version"))
        if not version.startswith("3."):
            raise InputError(f"a model of Keras {version}, where Keras 3 was expected")
        width = _largest_integer(json.loads(archive.read("config.json"))["config"].get("layers", []))
        if width > MAX_WIDTH:
            raise InputError(f"another architecture, with {width:,} features in one layer")


def _largest_integer(config):
    """Return the largest integer in the JSON config of a network's layers."""
    if isinstance(config, dict):
        # Not sizes: numbers of objects, and shapes that follow from the sizes.
        config = [value for key, value in config.items() if key not in ("seed", "shared_object_id", "build_config")]
    if isinstance(config, list):
        return max(map(_largest_integer, config), default=0)
    return config if isinstance(config, int) else 0


def _check_network(model, name):
    """Raise an error unless a model has the name, input and last layer of ours, and finite weights."""
    inputs, outputs, layers = (getattr(model, key, None) for key in ("input_shape", "output_shape", "layers"))
    dense = isinstance(outputs, tuple) and len(outputs) == 2 and type(layers[-1]).__name__ == "Dense"
    dense = dense and layers[-1].bias is not None
    if model.name != name or inputs != (None, *IMAGE_SHAPE) or not dense:
        found = f"{printable(model.name)!r} from {inputs} to {outputs}, where {name!r} from {(None, *IMAGE_SHAPE)}"
        raise InputError(f"a network of another architecture, {found} was expected")
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError("weights that are not finite numbers")


def _read_metadata(path, class_names, width):
    """Return the metadata in a `.keras` file, with defaults if it has none; `width`: the number of features."""
    with zipfile.ZipFile(path) as archive:
        if not {"notes.json", "familiar.npy"} <= set(archive.namelist()):
            unknown = {"data": "unknown", "temperature": 1.0, "ood_threshold": None, "feature_bank": None}
            return {"classes": class_names, "dry_run": False, **unknown}
        metadata = {"dry_run": False, **json.loads(archive.read("notes.json"))}
        with archive.open("familiar.npy") as file:
            bank = np.load(file, allow_pickle=False)
    metadata.update(ood_threshold=metadata.pop("usual"), feature_bank=bank)
    names_ok = isinstance(metadata["classes"], list) and all(isinstance(name, str) for name in metadata["classes"])
    numbers = metadata["temperature"], metadata["ood_threshold"]
    numbers_ok = all(isinstance(number, float | int) and np.isfinite(number) for number in numbers)
    bank_ok = bank.dtype.kind == "f" and bank.shape[1:] == (width,) and len(bank) and np.isfinite(bank).all()
    if not (names_ok and numbers_ok and bank_ok and isinstance(metadata["data"], str)):
        raise ValueError("not of the types that a run saves")
    return metadata | {"classes": [printable(name) for name in metadata["classes"]]}
