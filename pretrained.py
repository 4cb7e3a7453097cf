"""Weights from an earlier training, for the network of resnet_utils.py.

    "imagenet"       keras.applications' ResNet50, trained on 1.3 million photographs of 1,000 kinds of things
    *.keras          a model that signs_resnet50.py has saved
    *.weights.h5     the weights of such a model, from `model.save_weights`
    *.h5             the file of "imagenet", fetched by hand

They are carried over layer by layer, by name. The last layer, which tells the
classes apart, comes along only if it has the same shape; it is trained first,
alone, and then all layers together.
"""

import contextlib
import os
import pathlib
import zipfile

import h5py
import keras
import numpy as np

import cnn_utils as utils
from resnet_utils import ResNet50

# As keras.applications asks for it: the ResNet50 without its last layer.
IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/" + IMAGENET_FILE

# The mean colour of ImageNet's photographs, 0-255, blue, green, red: what
# `keras.applications.resnet50.preprocess_input` subtracts.
IMAGENET_MEAN = (103.939, 116.779, 123.68)

HEAD = "predictions"            # the layer that tells the classes apart
PIXELS = "normalise"            # the layer that maps pixels to -1..1: a network without it wants other pixels


def pretrained_weights(source, classes, identity_blocks=(2, 3, 5, 2)):
    """Read the weights to start from, and say in one line what was carried over.

    Args:
        source: "imagenet" or the path of a file, see the top of this module.
        classes, identity_blocks: the network that is to get them, see `ResNet50`.

    Returns:
        List of float32 arrays for `set_weights` of `ResNet50(classes=classes, identity_blocks=identity_blocks)`.

    Raises:
        utils.InputError: the weights cannot be fetched, or the file is damaged or holds something else.
    """
    with stored_layers(source, identity_blocks) as stored:
        network = ResNet50(classes=classes, identity_blocks=identity_blocks)
        carried = carry_over(stored, network, source, identity_blocks)
    last = "the last one among them" if HEAD in carried else "all but the last one, which starts from random numbers"
    print(f"Weights: {len(carried)} layers from {source}, {last}")
    return network.get_weights()


@contextlib.contextmanager
def stored_layers(source, identity_blocks):
    """Open a source of weights, see `pretrained_weights`: dict, name of the layer -> list of its arrays."""
    name = str(source).lower()
    if source == "imagenet":
        yield imagenet_layers(identity_blocks)
    elif name.endswith(".keras"):
        with refusing(source, "a model that signs_resnet50.py has saved"):
            # Safe mode: a file that brings code of its own is refused, not run.
            model = keras.models.load_model(source, compile=False, safe_mode=True)
            layers = {layer.name: layer.get_weights() for layer in model.layers}
        yield layers
    elif name.endswith(".weights.h5"):
        with (refusing(source, "the weights of a model of signs_resnet50.py, as model.save_weights writes them"),
              h5py.File(source, "r") as file):
            # Read by name. Keras goes by the order and passes over what is too much: another network could slip in.
            groups = [layer["vars"] for layer in file["layers"].values()]
            yield {group.attrs["name"]: [group[str(number)] for number in range(len(group))] for group in groups}
    elif name.endswith((".h5", ".hdf5")):
        with refusing(source, "the weights of keras.applications' ResNet50 without its last layer, as in "
                              f"{IMAGENET_FILE}; our own are saved as .keras or .weights.h5"):
            model = keras.applications.ResNet50(weights=str(source), include_top=False)
        yield for_our_pixels(model)
    else:
        raise utils.InputError("--weights takes random, imagenet or a file whose name ends in .keras, .weights.h5 or "
                               f".h5. Received: {source}")


@contextlib.contextmanager
def refusing(path, expected):
    """Turn whatever the reading of a damaged or wrong file raises into an `InputError`."""
    try:
        yield
    except utils.InputError:
        raise
    except Exception as error:      # Keras and h5py raise many kinds
        if isinstance(error, OSError) or (path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path)):
            received = f"a file that cannot be opened: {utils.what_it_is(path, error)}"
        else:
            received = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise utils.InputError(f"--weights {path}: expected {expected}. Received: {received}") from None


def imagenet_layers(identity_blocks):
    """Fetch the ImageNet weights through Keras, which keeps the file and checks its hash."""
    if tuple(identity_blocks) != (2, 3, 5, 2):
        raise utils.InputError("--weights imagenet holds the ResNet-50 of the paper: leave --identity-blocks at "
                               f"2 3 5 2. Received: {' '.join(map(str, identity_blocks))}")
    try:
        model = keras.applications.ResNet50(weights="imagenet", include_top=False)
    except Exception as error:      # Keras raises a bare Exception where nothing answers
        folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")) / "models"
        raise utils.InputError(
            "The ImageNet weights are not on this machine and cannot be fetched: is it offline? Fetch "
            f"{IMAGENET_URL} (94 MB) on another machine and put it into {folder} under the same name, or name it "
            f"with --weights FILE. Received: {str(error).strip().splitlines()[0]}") from None
    return for_our_pixels(model)


def for_our_pixels(model):
    """Make the weights of keras.applications' ResNet50 fit a network that takes RGB pixels from -1 to 1.

    Theirs takes blue, green, red from 0 to 255 with `IMAGENET_MEAN` subtracted,
    and a channel of that is 127.5 * ours + 127.5 - mean. A convolution is
    linear: its kernel can take over the factor and the order of the channels,
    its bias the rest. The first convolution then computes the same numbers,
    but where its window reaches over the edge of the picture: there it sees
    the mean colour in their network, middle grey in ours. The two are less
    than 24 of 256 levels apart.

    Args:
        model: `keras.applications.ResNet50` without its last layer.

    Returns:
        dict, name of the layer -> list of its arrays.
    """
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    kernel, bias = (array.astype(np.float64) for array in layers["conv1_conv"])     # (7, 7, 3, 64) and (64,)
    shift = np.einsum("hwco,c->o", kernel, 127.5 - np.array(IMAGENET_MEAN))
    return {**layers, PIXELS: [], "conv1_conv": [127.5 * kernel[:, :, ::-1], bias + shift]}


def carry_over(stored, network, source, identity_blocks):
    """Set the weights of the network's layers to the stored ones of the same name.

    Args:
        stored: dict, name of the layer -> list of arrays; layers without any are not looked at.
        network: `ResNet50`; its last layer keeps its weights if the stored one has another shape.
        source, identity_blocks: for the message.

    Returns:
        List of the names of the layers that were set.

    Raises:
        utils.InputError: the stored layers are those of another network, or not all numbers are finite.
    """
    wanted = {layer.name: [weight.shape for weight in layer.weights] for layer in network.layers
              if layer.weights or layer.name == PIXELS}
    found = {name: [array.shape for array in arrays] for name, arrays in stored.items() if arrays or name == PIXELS}
    both = sorted((wanted.keys() & found.keys()) - {HEAD})
    differences = (
        ("missing", sorted(wanted.keys() - found.keys() - {HEAD})),
        ("unknown", sorted(found.keys() - wanted.keys() - {HEAD})),
        ("of another shape", [name for name in both if found[name] != wanted[name]]))
    if any(names for _, names in differences):
        raise utils.InputError(
            f"--weights {source}: expected the layers of signs_resnet50.py's network with --identity-blocks "
            f"{' '.join(map(str, identity_blocks))}; a model of another variant needs its own --identity-blocks. "
            "Received: " + ", ".join(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
                                     for what, names in differences if names))
    carried = [name for name in both if wanted[name]]
    if found.get(HEAD) == wanted[HEAD]:
        carried.append(HEAD)
    for name in carried:
        arrays = [np.asarray(array) for array in stored[name]]
        if not all(np.isfinite(array).all() for array in arrays):
            raise utils.InputError(f"--weights {source}: expected finite numbers; take a file from a training that "
                                   f"went well. Received: NaN or infinity in {name}")
        network.get_layer(name).set_weights(arrays)
    return carried


def choose_trained(model, head_only):
    """Let training change the last layer only, or all of them; it holds from the next `compile` on.

    Keras's batch normalisation, once frozen, also stops counting: it uses the
    mean and variance that came with the weights, and leaves them as they are.
    """
    # One by one: `model.trainable = True` does nothing where the model, unlike its layers, is True already.
    for layer in model.layers:
        layer.trainable = layer.name == HEAD or not head_only
