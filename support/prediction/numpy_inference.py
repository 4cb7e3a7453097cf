"""The networks of the scripts in NumPy, which classifies a few images before TensorFlow would even be imported.

A `.keras` file is a zip archive: `config.json` describes the layers, `model.weights.h5` has their weights. A network
with anything that is not known here is refused, and left to Keras. The live page takes its layers from here as well.
"""

import functools
import io
import json
import math
import pathlib
import tempfile
import zipfile
from typing import NamedTuple

import h5py
import numpy as np

from datasets.images import is_image_shape

# Pixels at a time, as in 8 images of 64x64, so that the feature maps of ResNet50 take less than 100 MB.
BATCH_PIXELS = 8 * 64 * 64


class Layer(NamedTuple):
    kind: str  # the name of its class in Keras
    config: dict
    inputs: list  # the names of the layers whose outputs it takes
    weights: list


class Dense(NamedTuple):
    """The last layer, which computes the logits."""

    kernel: np.ndarray  # (n, k) float32
    bias: np.ndarray  # (k,) float32
    activation: str


class Network:
    """A trained network, read from a `.keras` file; its attributes are those of a Keras model.

    Args:
        path: the `.keras` file.
        kernel_dtype: the precision that the kernels are rounded to; everything is computed in float32.

    Raises ValueError, KeyError, TypeError: the network has a layer, or an option of one, that is not known here.
    Raises OSError, zipfile.BadZipFile: the file is damaged.
    """

    def __init__(self, path, kernel_dtype=np.float32):
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
            self._weights = _read_weights(archive.read("model.weights.h5"), kernel_dtype)
        config = model["config"]
        names = [layer["config"]["name"] for layer in config["layers"]]
        first, last = config["layers"][0], config["layers"][-1]
        count, *shape = first["config"]["batch_shape"] if first["class_name"] == "InputLayer" else (None,)
        known = (
            model["module"].startswith("keras")
            and model["class_name"] in ("Sequential", "Functional")
            and (first["class_name"], last["class_name"]) == ("InputLayer", "Dense")
            and count is None
            and is_image_shape(shape)
            and config.get("input_layers") in (None, [names[0], 0, 0])
            and config.get("output_layers") in (None, [names[-1], 0, 0])
            and len(set(names)) == len(names)
        )
        if not known:
            ends = f"{first['class_name']} to {last['class_name']}"
            raise ValueError(f"it does not lead from an image to a Dense layer (got {ends}, {count, *shape})")
        layers = [_read_layer(*pair, self._weights) for pair in zip(config["layers"][1:], names)]
        self.input_name, self._hidden, self._last = names[0], layers[:-1], layers[-1]
        for layer in self._hidden:
            if layer.kind not in FUNCTIONS:
                raise ValueError(f"the layer {layer.config['name']!r} ({layer.kind}) is not the last")
        self.name, self.input_shape = config["name"], (None, *shape)
        width = self.features(np.zeros((1, *shape))).shape[1]  # checks the shapes of all weights
        _check_shapes(self._last, width)
        self.layers = [*self._hidden, Dense(*self._last.weights, self._last.config["activation"])]
        self.output_shape = (None, len(self.layers[-1].bias))

    def get_weights(self):
        return [array for arrays in self._weights.values() for array in arrays]

    def features(self, images):
        """Return the input of the last layer, (m, n) float32, for images (m, height, width, 3), 0-255."""
        (last,) = self._last.inputs
        batch = max(1, BATCH_PIXELS // self.input_shape[1] ** 2)
        batches = (images[start : start + batch] for start in range(0, len(images), batch))
        return np.concatenate([self._outputs(images)[last] for images in batches])

    def _outputs(self, images):
        """Return the outputs of all layers but the last, a dict from their names to arrays."""
        outputs = {self.input_name: np.asarray(images, np.float32)}
        for layer in self._hidden:
            inputs = [outputs[name] for name in layer.inputs]
            _check_shapes(layer, inputs[0].shape[-1])
            outputs[layer.config["name"]] = FUNCTIONS[layer.kind](*inputs, layer.config, *layer.weights)
        return outputs

    def map_shape(self):
        """Return the shape (height, width, channels) of the last maps, which become the features."""
        outputs = self._outputs(np.zeros((1, *self.input_shape[1:])))
        return next(x for x in reversed(outputs.values()) if x.ndim == 4).shape[1:]

    def shares_maps(self):
        """Return whether `window_features` knows all layers: the padding of steps depends on the size of the image."""
        return not any(
            layer.config.get("padding") == "same" and set(layer.config["strides"]) != {1} for layer in self._hidden
        )

    def window_features(self, image, stride):
        """Return the features of all windows of a larger image, each as large as the network's input.

        Windows that overlap share their feature maps, so hundreds of them take as long as a few images. The maps keep
        a position for each window; where the network would drop positions, the layers behind skip them instead (Giusti
        et al., "Fast Image Scanning with Deep Max-Pooling Convolutional Neural Networks", 2013). The features are
        approximate: the maps of an image alone end at its border, those of a window go on.

        Args:
            image: (height, width, 3), 0-255, not smaller than the network's input.
            stride: int, the most pixels from one window to the next.

        Returns: float32 (rows, columns, n), and the number of pixels from one window to the next.
        Raises ValueError: the network does not treat rows and columns alike.
        """
        map_shape = self.map_shape()
        outputs = {self.input_name: np.asarray(image, np.float32)[None]}
        steps = {self.input_name: (1, 1)}  # pixels between positions of a map, positions between those of one window
        for layer in self._hidden:
            name, first = layer.config["name"], layer.inputs[0]
            inputs, (pixels, gap) = [outputs[name] for name in layer.inputs], steps[first]
            config = layer.config | {"gap": gap}
            step, other = config.get("strides", (1, 1))
            if step != other or any(steps[name] != (pixels, gap) for name in layer.inputs):
                raise ValueError(f"the layer {name!r} ({layer.kind}) does not treat rows and columns alike")
            if layer.kind == "ZeroPadding2D":
                config["padding"] = [[gap * count for count in pair] for pair in config["padding"]]
            if layer.kind in ("Flatten", "GlobalAveragePooling2D") and inputs[0].ndim == 4:
                rows, columns = ((image.shape[i] - self.input_shape[1 + i]) // pixels + 1 for i in (0, 1))
                windows = _windows(inputs[0], map_shape[:2], gap)[0, :rows, :columns]
                inputs = [windows.transpose(0, 1, 3, 4, 2).reshape(-1, *map_shape)]
            if pixels * step <= stride:
                pixels *= step
            else:
                config["strides"], gap = [1, 1], gap * step
            outputs[name] = FUNCTIONS[layer.kind](*inputs, config, *layer.weights)
            steps[name] = pixels, gap
        (last,) = self._last.inputs
        return outputs[last].reshape(rows, columns, -1), pixels


def from_keras(model, kernel_dtype=np.float32):
    """Return a Keras model as a `Network`; raises and arguments as there."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return Network(path, kernel_dtype)


# ------------------------------------------------------------------------ reading and checking


def _read_weights(content, kernel_dtype):
    """Return the weights in a file, given as bytes: a dict from layer names to lists of float32 arrays.

    Kernels, the arrays of more than one dimension, are rounded to `kernel_dtype`.
    """
    weights = {}

    def read(_, item):
        if isinstance(item, h5py.Dataset):
            # Nothing from another file, and nothing compressed or unwritten, which could fill the memory.
            plain = item.dtype.kind == "f" and item.id.get_storage_size() == item.nbytes
            if not plain or item.external or item.is_virtual:
                raise ValueError(f"its weights are not plain arrays of floats (got {item})")
            array = item[()] if item.ndim < 2 else item[()].astype(kernel_dtype, copy=False)
            weights.setdefault(item.parent.attrs["name"], []).append(array.astype(np.float32, copy=False))

    with h5py.File(io.BytesIO(content), "r") as file:
        file["layers"].visititems(read)  # does not follow links to other files
    return weights


def _read_layer(layer, previous, weights):
    """Return the `Layer` of an entry in `config.json`; raise a ValueError unless everything in it is known."""
    kind, config = layer["class_name"], layer["config"]
    which = f"the layer {config['name']!r} ({kind})"
    if kind not in EXPECTED or layer["module"] != "keras.layers" or layer["registered_name"] not in (None, kind):
        raise ValueError(f"{which} is none of {', '.join(EXPECTED)}")
    if config.get("axis") == -1:  # the last axis, Keras's default, is axis 3 of images
        config = config | {"axis": 3}
    known = FLOAT32.items() <= config["dtype"].items() and EXPECTED[kind].items() <= config.items()
    others = config.keys() - EXPECTED[kind].keys() - {"dtype", *USED}
    others = [key for key in others if not key.endswith("_initializer") and config[key] not in (None, False)]
    if not known or others:
        raise ValueError(f"{which} has options that are not known here")
    inputs = [previous]
    if "inbound_nodes" in layer:  # not in a Sequential model, whose layers are in order
        (node,) = layer["inbound_nodes"]
        (tensors,) = node["args"]
        tensors = tensors if isinstance(tensors, list) else [tensors]
        origins = [tensor["config"]["keras_history"] for tensor in tensors]
        if any(node["kwargs"].values()) or any(origin[1:] != [0, 0] for origin in origins):
            raise ValueError(f"{which} is called with options")
        inputs = [name for name, *_ in origins]
    return Layer(kind, config, inputs, weights.get(config["name"], []))


def _check_shapes(layer, channels):
    """Raise a ValueError unless a layer whose input has so many channels has the weights that Keras would give it."""
    kind, config, _, weights = layer
    expected = [(channels,)] * 4 if kind == "BatchNormalization" else []
    if kind == "DepthwiseConv2D":
        expected = [(*config["kernel_size"], channels, 1), (channels,)][: 1 + config["use_bias"]]
    if kind in ("Conv2D", "Dense"):
        units = config["filters" if kind == "Conv2D" else "units"]
        expected = [(*config.get("kernel_size", ()), channels, units), (units,)][: 1 + config["use_bias"]]
    if [array.shape for array in weights] != expected:
        shapes = [array.shape for array in weights]
        raise ValueError(f"the layer {config['name']!r} ({kind}) has weights of the wrong shapes (got {shapes})")


# ------------------------------------------------------------------------ computing


def _windows(x, size, gap):
    """Return a view (m, height, width, channels, *size) of the windows of maps (m, height, width, channels).

    Inside a window, positions are `gap` apart.
    """
    size = [gap * (side - 1) + 1 for side in size]
    return np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[..., ::gap, ::gap]


def _pool(x, config, add):
    """Combine the positions of each window of maps (m, height, width, channels) with a function of two arrays."""
    (rows, columns), gap, sides = config["strides"], config.get("gap", 1), config["pool_size"]
    height, width = (length - gap * (side - 1) for length, side in zip(x.shape[1:3], sides))
    if min(height, width) < 1:
        raise ValueError(f"the layer {config['name']!r} has nothing to pool")
    shifts = [(gap * i, gap * j) for i in range(sides[0]) for j in range(sides[1])]
    # Several times as fast as NumPy's maximum over the small axes of a view.
    return functools.reduce(add, (x[:, i : i + height : rows, j : j + width : columns] for i, j in shifts))


def _pad(x, size, config):
    """Return maps (m, height, width, channels), padded with zeros as the option `padding` says."""
    if config["padding"] != "same":
        return x
    gap, pads = config.get("gap", 1), [(0, 0)]
    for length, side, step in zip(x.shape[1:3], size, config["strides"]):
        missing = max(0, (-(-length // step) - 1) * step + side - length)  # the last window starts inside the map
        pads.append((gap * (missing // 2), gap * (missing - missing // 2)))
    return np.pad(x, [*pads, (0, 0)])


def _convolve(x, config, kernel, bias=0):
    size, gap, (rows, columns) = kernel.shape[:2], config.get("gap", 1), config["strides"]
    windows = _windows(_pad(x, size, config), size, gap)[:, ::rows, ::columns]
    return np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))) + bias


def _convolve_depthwise(x, config, kernel, bias=0):
    size, gap, (rows, columns) = kernel.shape[:2], config.get("gap", 1), config["strides"]
    windows = _windows(_pad(x, size, config), size, gap)[:, ::rows, ::columns]
    # One position of the kernel after the other: each is a product of two arrays.
    products = (windows[..., row, column] * kernel[row, column, :, 0] for row, column in np.ndindex(size))
    return sum(products) + bias


def _normalize(x, config, gamma, beta, mean, variance):
    scale = gamma / np.sqrt(variance + config["epsilon"])
    return x * scale + (beta - mean * scale)


def _add(x, shortcut, config):
    if x.shape != shortcut.shape:
        raise ValueError(f"the layer {config['name']!r} (Add) adds arrays of different shapes")
    return x + shortcut


# Each takes the inputs, the layer's config and its weights.
FUNCTIONS = {
    "Rescaling": lambda x, config: x * np.float32(config["scale"]) + np.float32(config["offset"]),
    "ZeroPadding2D": lambda x, config: np.pad(x, [(0, 0), *config["padding"], (0, 0)]),
    "Conv2D": _convolve,
    "DepthwiseConv2D": _convolve_depthwise,
    "MaxPooling2D": lambda x, config: _pool(x, config, np.maximum),
    "AveragePooling2D": lambda x, config: _pool(x, config, np.add) / np.float32(math.prod(config["pool_size"])),
    "GlobalAveragePooling2D": lambda x, config: x.mean(axis=(1, 2)),
    "BatchNormalization": _normalize,
    "ReLU": lambda x, config: np.clip(x, 0, config["max_value"]),
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
    "DepthwiseConv2D": LAST | {"dilation_rate": [1, 1], "depth_multiplier": 1, "activation": "linear"},
    "MaxPooling2D": LAST | {"padding": "valid"},
    "AveragePooling2D": LAST | {"padding": "valid"},
    "GlobalAveragePooling2D": LAST | {"keepdims": False},
    "BatchNormalization": {"axis": 3, "center": True, "scale": True},
    "ReLU": {"negative_slope": 0, "threshold": 0},
    "Flatten": LAST,
    "Dense": {"use_bias": True},
}
USED = """name trainable filters units use_bias kernel_size pool_size strides padding scale offset epsilon
    activation max_value momentum renorm_momentum rate seed""".split()
