"""The live page of `--export web`: one HTML file that runs the network in a browser, for a camera or an image.

The text and the markup are in the Jinja2 template live.html beside this file, the look is in live.css, the network in
live_network.js, and what happens on the page in live.js. The page cannot connect to anything.
"""

import base64
import hashlib
import pathlib

import jinja2
import keras
import numpy as np

from support.calibration import class_probabilities
from support.errors import InputError
from support.ood import K

# A page of this size opens at once and can be sent by e-mail.
MAX_BYTES = 1_500_000

# The largest difference between probabilities that float16 weights may cause.
TOLERANCE = 0.005

# With fewer dimensions, the compressed feature bank would no longer tell how unlike an image is.
LEAST_RANK = 32

LAYERS = (
    "Rescaling, Conv2D with stride 1, BatchNormalization, ReLU, MaxPooling2D, AveragePooling2D, "
    "GlobalAveragePooling2D, Flatten, Dropout and Dense"
)


def render_live_page(model, metadata, images):
    """Return the page as str, and the largest difference between its probabilities and the model's.

    Args:
        model: trained Keras model, a chain of `LAYERS` that ends in probabilities.
        metadata: dict from `trained_model.load_trained_model`, with `confidence`, below which the answer is "not sure".
        images: float32 array (m, 64, 64, 3), RGB 0-255, for the comparison.

    Raises InputError: the network has other layers or is too large, or the probabilities differ.
    """
    if 2 * model.count_params() > MAX_BYTES:
        raise _too_large(model)
    steps, arrays = _steps(model)
    probabilities = class_probabilities(_forward(steps, arrays, images))
    difference = float(np.abs(probabilities - class_probabilities(model.predict_on_batch(images))).max())
    if not difference <= TOLERANCE:
        expected = f"--export web: float16 weights must give the outputs of the original, to {TOLERANCE:g}"
        raise InputError(f"{expected}; use --export onnx. Received: a difference of {difference:.2g}")
    network = {"classes": metadata["classes"], "confidence": metadata["confidence"], "steps": steps, "bank": None}
    for name, dtype in ("kernels", np.float16), ("vectors", np.float32):
        network[name] = _base64(np.concatenate([array.ravel() for array in arrays if array.dtype == dtype]))
    room = MAX_BYTES - len(_render(model, metadata, network).encode()) - 1000
    if metadata["feature_bank"] is not None:
        bank = metadata["feature_bank"].astype(np.float32)
        # Each number takes two bytes, and base64 turns three bytes into four.
        rank = min(*bank.shape, int(room * 3 / 4 / 2 / sum(bank.shape)))
        if rank < min(*bank.shape, LEAST_RANK):
            raise _too_large(model)
        network["bank"] = _compress(bank, rank) | {"threshold": metadata["ood_threshold"], "neighbours": K}
    elif room < 0:
        raise _too_large(model)
    return _render(model, metadata, network), difference


def _steps(model):
    """Return the network as a list of steps (dicts with `type`, `shapes` and options) and their arrays in order.

    Kernels are float16; biases and the like, which are few, float32.
    """
    steps, arrays = [], []

    def add(kind, *weights, **options):
        with np.errstate(over="ignore"):  # infinity is refused later
            weights = [np.asarray(array, np.float16 if np.ndim(array) > 1 else np.float32) for array in weights]
        steps.append({"type": kind, "shapes": [array.shape for array in weights], **options})
        arrays.extend(weights)

    def add_activation(layer):
        if layer.activation.__name__ != "linear":
            add(layer.activation.__name__)

    tensor = model.inputs[0]
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        if not isinstance(model, keras.Sequential):  # a Sequential model is always a chain
            if layer.input is not tensor:
                raise _refused(f"the layer {layer.name!r} ({kind}), whose input is not the output of the one before")
            tensor = layer.output
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        pooled = kind in ("MaxPooling2D", "AveragePooling2D") and layer.pool_size == layer.strides
        plain = kind == "Conv2D" and (layer.strides, layer.dilation_rate, layer.groups) == ((1, 1), (1, 1), 1)
        if kind == "Dropout":
            pass  # does nothing after the training
        elif kind == "Rescaling" and np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
            add("rescale", scale=float(layer.scale), offset=float(layer.offset))
        elif plain and layer.padding in ("same", "valid") and activation in ("linear", "relu"):
            kernel, *bias = layer.get_weights()
            add("conv", kernel, *(bias or [np.zeros(layer.filters)]), padding=layer.padding)
            add_activation(layer)
        elif kind == "BatchNormalization" and layer.axis in (-1, len(layer.output.shape) - 1):
            # The four arrays become two: a factor and a summand for each channel.
            scale = 1 / np.sqrt(np.float64(layer.moving_variance) + layer.epsilon)
            scale = scale * np.asarray(layer.gamma) if layer.scale else scale
            add("normalise", scale, (np.asarray(layer.beta) if layer.center else 0) - layer.moving_mean * scale)
        elif kind == "ReLU" and (layer.max_value, layer.negative_slope, layer.threshold) == (None, 0, 0):
            add("relu")
        elif pooled and layer.padding == "valid" and layer.pool_size[0] == layer.pool_size[1]:
            add("max_pool" if kind == "MaxPooling2D" else "average_pool", size=layer.pool_size[0])
        elif kind == "GlobalAveragePooling2D" and not layer.keepdims and layer.input.shape[1] == layer.input.shape[2]:
            add("global_average")
        elif kind == "Flatten":
            add("flatten")
        elif kind == "Dense" and layer.input.ndim == 2 and activation in ("linear", "relu", "sigmoid", "softmax"):
            kernel, *bias = layer.get_weights()
            add("dense", kernel, *(bias or [np.zeros(layer.units)]))
            add_activation(layer)
        else:
            raise _refused(f"the layer {layer.name!r} ({kind}{' with other options' if kind in LAYERS else ''})")
    if steps[-1]["type"] not in ("sigmoid", "softmax"):
        raise _refused(f"the last layer {model.layers[-1].name!r} without sigmoid or softmax")
    return steps, arrays


def _too_large(model):
    expected = f"--export web writes a page of at most {MAX_BYTES / 1e6:.1f} MB; use --export onnx for this network"
    return InputError(f"{expected}. Received: {model.name} with {4e-6 * model.count_params():.2g} MB of weights")


def _refused(found):
    expected = f"--export web runs a chain of these layers: {LAYERS}; use --export onnx for other networks"
    return InputError(f"{expected}. Received: {found}")


def _forward(steps, arrays, images):
    """Return what the steps make of float32 images (m, height, width, 3), (m, k), as live_network.js computes it."""
    ops, weights, x = keras.ops, iter(array.astype(np.float32) for array in arrays), images
    for step in steps:
        kind, size = step["type"], step.get("size")
        if kind == "rescale":
            x = x * step["scale"] + step["offset"]
        elif kind == "conv":
            x = ops.conv(x, next(weights), 1, step["padding"]) + next(weights)
        elif kind == "normalise":
            x = x * next(weights) + next(weights)
        elif kind == "dense":
            x = ops.matmul(x, next(weights)) + next(weights)
        elif kind == "flatten":
            x = ops.reshape(x, (len(images), -1))
        elif kind == "global_average":
            x = ops.mean(x, axis=(1, 2))
        elif kind.endswith("pool"):
            x = getattr(ops, kind)(x, size, size)
        else:  # relu, sigmoid or softmax
            x = getattr(ops, kind)(x)
    return ops.convert_to_numpy(x)


def _compress(bank, rank):
    """Return the feature bank (t, n) as the product of two smaller matrices, (t, rank) and (rank, n).

    All training images stay in it. Of all products of this rank, the truncated singular value decomposition is the
    nearest to the bank (Eckart and Young, "The Approximation of One Matrix by Another of Lower Rank", 1936), so the
    distances hardly change and the threshold stays.
    """
    _, vectors = np.linalg.eigh(bank @ bank.T)  # in the order of growing eigenvalues
    images = vectors[:, -rank:]
    matrices = {"images": images, "directions": images.T @ bank}
    return {name: _base64(matrix.astype(np.float16)) for name, matrix in matrices.items()} | {"rank": rank}


def _base64(array):
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")


def _render(model, metadata, network):
    """Return the page as str."""
    folder = pathlib.Path(__file__).parent
    script = "".join((folder / name).read_text(encoding="utf-8") for name in ("live_network.js", "live.js"))
    style = (folder / "live.css").read_text(encoding="utf-8")
    # The browser runs only the script with this hash.
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for name, text in (("script", script), ("style", style))
    }
    classes = list(metadata["classes"])
    topic = "signs" if model.name.startswith("signs") and set(classes) <= set("012345") else "other"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("live.html").render(
        network=network,
        script=script,
        style=style,
        hashes=hashes,
        name=model.name,
        classes=classes,
        data=metadata["data"],
        dry_run=metadata["dry_run"],
        topic="smiles" if classes == ["not smiling", "smiling"] else topic,
    )
