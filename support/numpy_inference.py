"""The three networks in NumPy, which classifies a few images before TensorFlow would even be imported.

A `.keras` file is a zip archive: `config.json` describes the layers, `model.weights.h5` has their weights. A network
with anything that is not known here is refused, and left to Keras.
"""

import io
import json
import zipfile
from typing import NamedTuple

import h5py
import numpy as np

from datasets.images import IMAGE_SHAPE

# Images at a time, so that the feature maps of ResNet50 take less than 100 MB.
BATCH = 8


class Layer(NamedTuple):
    kind: str  # the name of its class in Keras
    config: dict
    inputs: list  # the names of the layers whose outputs it takes
    weights: list


class Dense(NamedTuple):
    """The last layer, which computes the logits."""

    kernel: np.ndarray  # (n, k) float32
    bias: np.ndarray  # (k,) float32


class Network:
    """A trained network, read from a `.keras` file; its attributes are those of a Keras model.

    Raises ValueError, KeyError, TypeError: the network has a layer, or an option of one, that is not known here.
    Raises OSError, zipfile.BadZipFile: the file is damaged.
    """

    def __init__(self, path):
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
            self._weights = _read_weights(archive.read("model.weights.h5"))
        config = model["config"]
        names = [layer["config"]["name"] for layer in config["layers"]]
        first, last = config["layers"][0], config["layers"][-1]
        known = (
            model["module"].startswith("keras")
            and model["class_name"] in ("Sequential", "Functional")
            and (first["class_name"], last["class_name"]) == ("InputLayer", "Dense")
            and first["config"]["batch_shape"] == [None, *IMAGE_SHAPE]
            and config.get("input_layers") in (None, [names[0], 0, 0])
            and config.get("output_layers") in (None, [names[-1], 0, 0])
            and len(set(names)) == len(names)
        )
        if not known:
            raise ValueError(f"expected a network from {IMAGE_SHAPE} to a Dense layer. Received: {first} to {last}")
        layers = [_read_layer(*pair, self._weights) for pair in zip(config["layers"][1:], names)]
        self._input, self._hidden, self._last = names[0], layers[:-1], layers[-1]
        self.name, self.input_shape = config["name"], (None, *IMAGE_SHAPE)
        width = self.features(np.zeros((1, *IMAGE_SHAPE))).shape[1]  # checks the shapes of all weights
        _check_shapes(self._last, width)
        self.layers = [*self._hidden, Dense(*self._last.weights)]
        self.output_shape = (None, len(self.layers[-1].bias))

    def get_weights(self):
        return [array for arrays in self._weights.values() for array in arrays]

    def features(self, images):
        """Return the input of the last layer, (m, n) float32, for images (m, height, width, 3), 0-255."""
        return np.concatenate([self._run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    def _run(self, images):
        outputs = {self._input: np.asarray(images, np.float32)}
        for layer in self._hidden:
            inputs = [outputs[name] for name in layer.inputs]
            _check_shapes(layer, inputs[0].shape[-1])
            outputs[layer.config["name"]] = FUNCTIONS[layer.kind](*inputs, layer.config, *layer.weights)
        (last,) = self._last.inputs
        return outputs[last]


# ------------------------------------------------------------------------ reading and checking


def _read_weights(content):
    """Return the weights in a file, given as bytes: a dict from layer names to lists of float32 arrays."""
    weights = {}

    def read(_, item):
        if isinstance(item, h5py.Dataset):
            # Nothing from another file, and nothing compressed or unwritten, which could fill the memory.
            plain = item.dtype.kind == "f" and item.id.get_storage_size() == item.nbytes
            if not plain or item.external or item.is_virtual:
                raise ValueError(f"expected plain arrays of floats. Received: {item}")
            weights.setdefault(item.parent.attrs["name"], []).append(item[()].astype(np.float32, copy=False))

    with h5py.File(io.BytesIO(content), "r") as file:
        file["layers"].visititems(read)  # does not follow links to other files
    return weights


def _read_layer(layer, previous, weights):
    """Return the `Layer` of an entry in `config.json`; raise a ValueError unless everything in it is known."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in EXPECTED or layer["module"] != "keras.layers" or layer["registered_name"] not in (None, kind):
        raise ValueError(f"expected a layer of {', '.join(EXPECTED)}. Received: {kind}")
    known = FLOAT32.items() <= config["dtype"].items() and EXPECTED[kind].items() <= config.items()
    others = config.keys() - EXPECTED[kind].keys() - {"dtype", *USED}
    others = [key for key in others if not key.endswith("_initializer") and config[key] not in (None, False)]
    if not known or others:
        raise ValueError(f"expected a {kind} in float32 with {EXPECTED[kind]}. Received: {config}")
    inputs = [previous]
    if "inbound_nodes" in layer:  # not in a Sequential model, whose layers are in order
        (node,) = layer["inbound_nodes"]
        (tensors,) = node["args"]
        tensors = tensors if isinstance(tensors, list) else [tensors]
        origins = [tensor["config"]["keras_history"] for tensor in tensors]
        if any(node["kwargs"].values()) or any(origin[1:] != [0, 0] for origin in origins):
            raise ValueError(f"expected a layer that is called once, without options. Received: {node}")
        inputs = [name for name, *_ in origins]
    return Layer(kind, config, inputs, weights.get(config["name"], []))


def _check_shapes(layer, channels):
    """Raise a ValueError unless a layer whose input has so many channels has the weights that Keras would give it."""
    kind, config, _, weights = layer
    expected = [(channels,)] * 4 if kind == "BatchNormalization" else []
    if kind in ("Conv2D", "Dense"):
        units = config["filters" if kind == "Conv2D" else "units"]
        expected = [(*config.get("kernel_size", ()), channels, units), (units,)][: 1 + config["use_bias"]]
    if [array.shape for array in weights] != expected:
        raise ValueError(f"expected weights {expected}. Received: {[array.shape for array in weights]}")


# ------------------------------------------------------------------------ computing


def _windows(x, size, config):
    """Return a view (m, height, width, channels, *size) of the windows of images (m, height, width, channels)."""
    rows, columns = config["strides"]
    return np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::rows, ::columns]


def _convolve(x, config, kernel, bias=0):
    size = kernel.shape[:2]
    if config["padding"] == "same" and config["strides"] == [1, 1]:
        x = np.pad(x, [(0, 0), *(((side - 1) // 2, side // 2) for side in size), (0, 0)])
    elif config["padding"] != "valid":
        raise ValueError(f"expected padding 'valid', or 'same' without strides. Received: {config}")
    return np.tensordot(_windows(x, size, config), kernel, ((4, 5, 3), (0, 1, 2))) + bias


def _normalise(x, config, gamma, beta, mean, variance):
    scale = gamma / np.sqrt(variance + config["epsilon"])
    return x * scale + (beta - mean * scale)


def _add(x, shortcut, config):
    if x.shape != shortcut.shape:
        raise ValueError(f"expected two inputs of one shape. Received: {x.shape} and {shortcut.shape}")
    return x + shortcut


# Each takes the inputs, the layer's config and its weights.
FUNCTIONS = {
    "Rescaling": lambda x, config: x * np.float32(config["scale"]) + np.float32(config["offset"]),
    "ZeroPadding2D": lambda x, config: np.pad(x, [(0, 0), *config["padding"], (0, 0)]),
    "Conv2D": _convolve,
    "MaxPooling2D": lambda x, config: _windows(x, config["pool_size"], config).max(axis=(4, 5)),
    "AveragePooling2D": lambda x, config: _windows(x, config["pool_size"], config).mean(axis=(4, 5)),
    "GlobalAveragePooling2D": lambda x, config: x.mean(axis=(1, 2)),
    "BatchNormalization": _normalise,
    "ReLU": lambda x, config: np.maximum(x, 0),
    "Add": _add,
    "Flatten": lambda x, config: x.reshape(len(x), -1),
    "Dropout": lambda x, config: x,
}

FLOAT32 = {"class_name": "DTypePolicy", "config": {"name": "float32"}}
# EXPECTED: the options that these functions take for granted. USED: those that they use, or that only training needs.
# All others must be off.
LAST = {"data_format": "channels_last"}
EXPECTED = dict.fromkeys(FUNCTIONS, {}) | {
    "ZeroPadding2D": LAST,
    "Conv2D": LAST | {"dilation_rate": [1, 1], "groups": 1, "activation": "linear"},
    "MaxPooling2D": LAST | {"padding": "valid"},
    "AveragePooling2D": LAST | {"padding": "valid"},
    "GlobalAveragePooling2D": LAST | {"keepdims": False},
    "BatchNormalization": {"axis": 3, "center": True, "scale": True},
    "ReLU": {"max_value": None, "negative_slope": 0, "threshold": 0},
    "Flatten": LAST,
    "Dense": {"use_bias": True},
}
USED = """name trainable filters units use_bias kernel_size pool_size strides padding scale offset epsilon
    activation momentum renorm_momentum rate seed""".split()
