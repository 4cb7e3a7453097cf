"""The three networks computed in NumPy: a few images are answered before TensorFlow would be imported.

A `.keras` file is a zip archive: `config.json` has the layers and `model.weights.h5` the weights. Whatever is not known
here exactly is refused and left to Keras.
"""

import io
import json
import zipfile
from typing import NamedTuple

import h5py
import numpy as np

from datasets.images import IMAGE_SHAPE

# Images at a time, so that the feature maps take less than 100 MB.
BATCH = 8


class Dense(NamedTuple):
    """The last layer: it computes the logits."""

    kernel: np.ndarray  # (n, k) float32
    bias: np.ndarray  # (k,) float32


class Network:
    """A trained network, read from a `.keras` file. The attributes are those of a Keras model that predictions need.

    Raises ValueError: the network has a layer, or an option of a layer, that is not known here.
    Raises others: the file is damaged.
    """

    def __init__(self, path):
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))["config"]
            self._weights = _read_weights(archive.read("model.weights.h5"))
        first, *self._hidden, last = config["layers"]
        names = [layer["config"]["name"] for layer in config["layers"]]
        ends = [config.get("input_layers", [names[0], 0, 0]), config.get("output_layers", [names[-1], 0, 0])]
        ours = first["class_name"] == "InputLayer" and first["config"]["batch_shape"] == [None, *IMAGE_SHAPE]
        if not ours or last["class_name"] != "Dense" or ends != [[names[0], 0, 0], [names[-1], 0, 0]]:
            raise ValueError(f"expected a network from {IMAGE_SHAPE} to a Dense layer. Received: {first}, {last}")
        self._inputs = [_inputs(layer, before) for layer, before in zip(config["layers"][1:], names)]
        for layer in config["layers"][1:]:
            _check_layer(layer)
        self.name, self.input_shape = config["name"], (None, *IMAGE_SHAPE)
        # Run once, so that weights of a wrong shape are found now.
        width = self.features(np.zeros((1, *IMAGE_SHAPE), np.uint8)).shape[1]
        self.layers = [*self._hidden, Dense(*self._weights_of(last, width))]
        self.output_shape = (None, last["config"]["units"])

    def get_weights(self):
        return [array for arrays in self._weights.values() for array in arrays]

    def features(self, images):
        """Return the input of the last layer, (m, n) float32, for images (m, height, width, channels), 0-255."""
        return np.concatenate([self._run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])

    def _run(self, images):
        x = np.asarray(images, np.float32)
        maps = {self._inputs[0][0]: x}
        for layer, names in zip(self._hidden, self._inputs):
            x, *others = (maps[name] for name in names)
            weights = self._weights_of(layer, x.shape[-1])
            maps[layer["config"]["name"]] = FUNCTIONS[layer["class_name"]](layer["config"], weights, x, *others)
        ((last,),) = self._inputs[len(self._hidden) :]
        return maps[last]

    def _weights_of(self, layer, channels):
        """Return the weights of a layer whose input has so many channels; raise a ValueError if their shapes differ."""
        config, kind = layer["config"], layer["class_name"]
        weights = self._weights.get(config["name"], [])
        expected = []
        if kind in ("Conv2D", "Dense"):
            units = config["filters" if kind == "Conv2D" else "units"]
            expected = [(*config.get("kernel_size", ()), channels, units), (units,)][: 1 + config["use_bias"]]
        elif kind == "BatchNormalization":
            expected = [(channels,)] * 4
        if [array.shape for array in weights] != expected:
            raise ValueError(f"expected weights {expected}. Received: {[array.shape for array in weights]}")
        return weights


def _read_weights(content):
    """Return the weights in a file, bytes, float32, as a dict from layer names to lists."""
    weights = {}
    with h5py.File(io.BytesIO(content), "r") as file:

        def read(_, item):
            if isinstance(item, h5py.Dataset):
                # Neither numbers from another file nor compressed ones, which could unpack to any size.
                if item.external or item.is_virtual or item.chunks or item.dtype.kind != "f":
                    raise ValueError(f"expected plain arrays of floats. Received: {item}")
                weights.setdefault(item.parent.attrs["name"], []).append(item[()].astype(np.float32, copy=False))

        file["layers"].visititems(read)  # it does not follow links to other files
    return weights


def _inputs(layer, before):
    """Return the names of the layers whose outputs a layer takes; `before` is the one before it in the list."""
    if "inbound_nodes" not in layer:  # a Sequential model
        return [before]
    (node,) = layer["inbound_nodes"]
    (tensors,) = node["args"]
    origins = [tensor["config"]["keras_history"] for tensor in (tensors if isinstance(tensors, list) else [tensors])]
    # `training` and `mask` may be given, but not be set.
    if any(node["kwargs"].values()) or any(origin[1:] != [0, 0] for origin in origins):
        raise ValueError(f"expected layers that are called once, without options. Received: {node}")
    return [name for name, *_ in origins]


def _check_layer(layer):
    """Raise a ValueError unless everything in the config of a layer is known."""
    kind, config = layer["class_name"], layer["config"]
    if kind not in EXPECTED or layer["module"] != "keras.layers" or layer["registered_name"] not in (None, kind):
        raise ValueError(f"expected a layer of {', '.join(EXPECTED)}. Received: {kind}")
    used = {*USED, *EXPECTED[kind]} | {key for key in config if key.endswith("_initializer")}
    other = {key: value for key, value in config.items() if key not in used and value not in (None, False)}
    if other or not EXPECTED[kind].items() <= config.items() or config["dtype"]["config"] != {"name": "float32"}:
        raise ValueError(f"expected a {kind} in float32 with {EXPECTED[kind]}. Received: {config}")


# ------------------------------------------------------------------ what the layers compute


def _windows(x, size, strides):
    """Return a view (m, height, width, channels, rows, columns) of all windows of images."""
    return np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, :: strides[0], :: strides[1]]


def _convolve(config, weights, x):
    kernel, *bias = weights
    if config["padding"] == "same" and config["strides"] == [1, 1]:
        x = np.pad(x, [(0, 0), *(((side - 1) // 2, side // 2) for side in kernel.shape[:2]), (0, 0)])
    elif config["padding"] != "valid":
        raise ValueError(f"expected padding 'valid', or 'same' without strides. Received: {config}")
    windows = _windows(x, kernel.shape[:2], config["strides"])
    return sum(bias, np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))))


def _normalise(config, weights, x):
    gamma, beta, mean, variance = weights
    scale = gamma / np.sqrt(variance + config["epsilon"])
    return x * scale + (beta - mean * scale)


def _add(config, weights, x, shortcut):
    if x.shape != shortcut.shape:
        raise ValueError(f"expected two inputs of one shape. Received: {x.shape} and {shortcut.shape}")
    return x + shortcut


FUNCTIONS = {
    "Rescaling": lambda config, weights, x: x * np.float32(config["scale"]) + np.float32(config["offset"]),
    "ZeroPadding2D": lambda config, weights, x: np.pad(x, [(0, 0), *config["padding"], (0, 0)]),
    "Conv2D": _convolve,
    "MaxPooling2D": lambda config, weights, x: _windows(x, config["pool_size"], config["strides"]).max((4, 5)),
    "AveragePooling2D": lambda config, weights, x: _windows(x, config["pool_size"], config["strides"]).mean((4, 5)),
    "GlobalAveragePooling2D": lambda config, weights, x: x.mean((1, 2)),
    "BatchNormalization": _normalise,
    "ReLU": lambda config, weights, x: np.maximum(x, 0),
    "Add": _add,
    "Flatten": lambda config, weights, x: x.reshape(len(x), -1),
    "Dropout": lambda config, weights, x: x,
}

# Options that the functions take for granted, and those that they use or that only training needs.
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
USED = {"name", "trainable", "dtype", "filters", "units", "use_bias", "kernel_size", "pool_size", "strides", "padding"}
USED |= {"scale", "offset", "epsilon", "activation", "momentum", "renorm_momentum", "rate", "seed"}
