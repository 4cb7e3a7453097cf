"""A trained model, which may come from a stranger, and what it says about images of your own."""

import json
import os
import pathlib
import sys
import zipfile

import h5py
import keras
import numpy as np
from PIL import Image

from datasets.images import IMAGE_SHAPE, read_image
from support.calibration import features, logits, softmax
from support.errors import InputError, printable
from support.explain import overlay_heatmap
from support.export import export_model
from support.figures import image_grid, show_figures
from support.files import atomic_write, file_type, read_json
from support.ood import knn_distance
from support.output import prepare_output_dir
from support.pretrained import weights_file

# Predictions with a lower probability are "not sure": more than three in ten of them would be wrong.
CONFIDENCE = 0.7

# Larger networks are refused before they are built, which may need too much memory; ours have 2,048 and 300 MB.
MAX_WIDTH = 4096
MAX_FILE_BYTES = 2**30


def predict_or_export(args, script, class_names, load_data, network=None):
    """Do what --predict or --export asks for, and return the exit code; see `load_trained_model`.

    `load_data` is the function of `cnn_utils` that loads the script's data set.
    """
    model, metadata = load_trained_model(args.output_dir, script, class_names, network)
    if args.export:
        data = _load_data_of_run(args, load_data, metadata["classes"]) if "litert" in args.export else None
        export_model(model, args.export, args.output_dir, data)
        return 0
    options = {"crop": args.crop, "tta": args.tta, "explain": args.explain}
    code = predict_images(model, metadata, args.predict, args.output_dir, **options)
    if args.show:
        show_figures()
    return code


def _load_data_of_run(args, load_data, class_names):
    """Return the `Dataset` that the options name, else that of the run; None, with a line that says so, without it."""
    metrics = read_json(pathlib.Path(args.output_dir) / "metrics.json") or {}
    folder, fold = args.data_dir or metrics.get("data_dir"), str(metrics.get("fold"))
    try:
        if args.data != "synthetic" and not (isinstance(folder, str | pathlib.Path) and os.path.isdir(folder)):
            raise InputError(f"the data of the run are not there; name their folder. Received: {folder}")
        data = load_data(args.data, folder, fold=fold if "/" in fold else None, cache_dir=args.cache_dir)
        if tuple(data.class_names) != tuple(class_names):
            raise InputError(f"the model knows {', '.join(class_names)}. Received: {', '.join(data.class_names)}")
    except InputError as error:
        print(f"model_int8.tflite needs images (--data-dir) and is left out: {printable(str(error))}")
        return None
    if data.hashes != metrics.get("data_files"):
        print("These are not the files of the run: the model may have been trained on some of the test images")
    return data


def load_trained_model(output_dir, script, class_names, network=None):
    """Load the model that a run of the script has saved, or the one in weights/, without running code from the file.

    Args:
        output_dir: folder of that run.
        script: str, the script's name without ".py".
        class_names: the class names, for a model without metadata.
        network: str, the name of the Keras model, if it is not the script's.

    Returns:
        The Keras model, and its metadata, a dict with `classes`, `data`, `dry_run`, `temperature`,
        `ood_threshold` and `feature_bank`, float16 (t, n); these two are None if the file has none.

    Raises InputError: there is no model, or the file is damaged or holds something else.
    """
    path = pathlib.Path(output_dir) / "model.keras"
    shipped = weights_file("synthetic", script)
    if not os.path.exists(path) and shipped.exists():
        print(f"There is no trained model in {output_dir}: using the one that comes with the project")
        path = shipped
    elif not os.path.exists(path):
        advice = f"Train one first with `python {script}.py`, or name the folder of an earlier run with --output-dir"
        raise InputError(f"There is no trained model yet: expected {path}. {advice}. Received: no such file")
    part = "a damaged .keras file"
    try:
        _check_file(path)
        model = keras.models.load_model(path, safe_mode=True)
        _check_network(model, network or script)
        part = "damaged metadata"
        metadata = _read_metadata(path, class_names, model.layers[-1].input.shape[-1])
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
    dense = isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(layers[-1], keras.layers.Dense)
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


def ten_crop(image):
    """Return an image (size, size, 3), its four corners, enlarged from 90 %, and the mirror images of these five.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
    """
    size, side = len(image), round(0.9 * len(image))
    corners = [(left, top, left + side, top + side) for top in (0, size - side) for left in (0, size - side)]
    whole = Image.fromarray(image)
    crops = np.stack([image, *(whole.resize((size, size), Image.Resampling.BICUBIC, box) for box in corners)])
    return np.concatenate([crops, crops[:, :, ::-1]])


def predict_images(model, metadata, paths, output_dir, *, crop="center", tta=False, explain=False):
    """Print the class of each image, or "not sure" and the reason; return 1 if a file could not be read, else 0.

    Args:
        model, metadata: from `load_trained_model`.
        paths: the image files.
        output_dir: folder; what the model saw is saved in its subfolder `predictions`.
        crop: see `read_image`.
        tta: bool, average the probabilities over ten crops of each image.
        explain: bool, save the Grad-CAM heatmaps as well.
    """
    images, readable, captions, heatmaps = [], [], [], []
    for path in paths:
        try:
            images.append(read_image(path, model.input_shape[1], crop))
            readable.append(path)
        except InputError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
    if not images:
        return 1
    folder = prepare_output_dir(pathlib.Path(output_dir) / "predictions")
    results = _classify(model, metadata, images, tta)
    for number, (path, image, (probabilities, reason)) in enumerate(zip(readable, images, results), 1):
        label = probabilities.argmax()
        answer = f"{metadata['classes'][label]} ({probabilities[label]:.1%})"
        # Numbered, because two folders may hold the same name; cut, because a name has at most 255 bytes.
        seen = folder / f"{number:02d}_{printable(path.stem).encode()[:100].decode(errors='ignore')}.png"
        with atomic_write(seen) as temporary:
            Image.fromarray(image).save(temporary)
        name = printable(path.name)
        name = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
        captions.append(f"{name}\n{'not sure: ' if reason else ''}{answer}")
        answer = f"not sure, {reason}; best guess {answer}" if reason else answer
        print(f"{printable(str(path))}: {answer}; what the model saw: {seen}")
        if explain:
            heatmaps.append(overlay_heatmap(model, image, label))
    trained = ", trained on SYNTHETIC images," if metadata["data"] == "synthetic" else ""
    # The images are the user's own, so the figures are never marked as synthetic.
    image_grid(images, captions, f"What the model{trained} saw and predicted", folder / "predictions.png", "real")
    if explain:
        title = "What led to the prediction: the brighter, the more"
        image_grid(heatmaps, captions, title, folder / "explanations.png", "real")
    return 1 if len(readable) < len(paths) else 0


def _classify(model, metadata, images, tta):
    """Return for each image the probabilities (k,) and the reason to abstain, "" if there is none."""
    crops = [ten_crop(image) if tta else image[None] for image in images]
    found = features(model, np.concatenate(crops))
    rows = softmax(logits(model, found)).reshape(len(images), len(crops[0]), -1).mean(axis=1)
    reasons = [[f"confidence below {CONFIDENCE:.0%}"] if row.max() < CONFIDENCE else [] for row in rows]
    if metadata["feature_bank"] is not None:
        threshold = metadata["ood_threshold"]
        # The first crop is the image itself.
        for reason, distance in zip(reasons, knn_distance(found[:: len(crops[0])], metadata["feature_bank"])):
            if distance > threshold:
                reason.append(f"unlike the training images (distance {distance:.2f}, usually up to {threshold:.2f})")
    return [(row, " and ".join(reason)) for row, reason in zip(rows, reasons)]
