"""Initial weights from an earlier training, copied by layer name.

"synthetic"      the file in weights/, trained only on SYNTHETIC images; for the two small networks
"imagenet"       keras.applications.ResNet50, trained on 1.3 million photographs of 1,000 classes; for ResNet50
"lite0"          the network of `support.training.efficientnet_lite`, which has its weights from the start
*.keras          a model saved by the same script; for ResNet50, keras.applications.ResNet50 as well
*.weights.h5     the weights of such a model, from `model.save_weights`
*.h5             the file of "imagenet", downloaded by hand
"""

import json
import os
import pathlib
import re
import zipfile

import h5py
import numpy as np

from basics.errors import InputError, first_line
from basics.files import describe_file, keras_home

# The file that keras.applications downloads: ResNet50 without its last layer.
IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/" + IMAGENET_FILE
IMAGENET_MD5 = "4d473c1dd8becc155b73f8504c6f6626"

# The layers that prepare the pixels: a network without one of them takes other pixels.
PIXELS = "normalize"  # to -1..1
OLD_PIXELS = "normalise"  # its name in weights/ and in files of earlier versions
IMAGENET_PIXELS = "subtract_mean"
# keras.applications.ResNet50 pads before the stem's pooling; ours does so only with its weights.
IMAGENET_PADDING = "pool1_pad"
LITE0_LAYER = "stage1_block1_depthwise"


def weights_file(source, script):
    """Return the path of the weights: "synthetic" is the script's file in weights/; other sources are paths."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "weights"
    return folder / f"{script}.keras" if source == "synthetic" else pathlib.Path(source)


def load_initial_weights(model, source):
    """Set the initial weights of a model, and print what was loaded; "random" leaves them as they are.

    `source` is "random", "synthetic", "imagenet" or the path of a file; see the top of this module. Of "synthetic",
    whatever fits is loaded, so that a student may change the network.
    Raises InputError: the weights cannot be downloaded, or the file is damaged or belongs to another network.
    """
    if source == "random":
        return
    if source == "lite0":
        print(f"Weights: {sum(bool(layer.weights) for layer in model.layers[:-1])} layers of ImageNet's {model.name}")
        return
    if source == "imagenet":
        layers = _imagenet_layers(model)
    else:
        layers = _stored_layers(weights_file(source, model.name), model.name)
    if source == "synthetic":
        shapes = _shapes({layer.name: layer.weights for layer in model.layers})
        stored = _shapes(layers)
        fitting = [name for name in stored if stored[name] == shapes.get(name)]
        loaded = _set_weights(model, {name: layers[name] for name in fitting}, source)
        name = "weights/, trained on SYNTHETIC images only"
    else:
        loaded = load_weights_by_name(model, layers, source)
        name = source
    others = [layer.name for layer in model.layers if layer.weights and layer.name not in loaded]
    rest = f"; these start random: {', '.join(others)}" if others else ""
    print(f"Weights: {len(loaded)} layers from {name}{rest}")


def load_weights_by_name(model, layers, source):
    """Copy stored weights to the layers of the same name, and return the names of these layers.

    Args:
        model: Keras model; its last layer keeps its weights if the stored ones have another shape.
        layers: dict from layer names to lists of arrays.
        source: "imagenet" or the path of the file, for the messages.

    Raises InputError: the layers are those of another network, or their weights are NaN or infinite.
    """
    shapes = _shapes({layer.name: layer.weights for layer in model.layers})
    stored = _shapes(layers)
    differences = _differences(shapes, stored, model.layers[-1].name)
    if differences:
        problem = f"--weights {source} does not fit {model.name}"
        fix = "Give a file that the same script has saved, with the same --image-size"
        if LITE0_LAYER in layers:
            fix = "The file holds EfficientNet-Lite0: give --weights lite0 instead"
        elif model.name == "ResNet50":
            problem += f" with --identity-blocks {_identity_blocks(model)}"
            fix = "Give the --identity-blocks that the weights were trained with"
        raise InputError(f"{problem}: its layers differ, {differences}", fix)
    fitting = [name for name in stored if stored[name] == shapes.get(name)]
    return _set_weights(model, {name: layers[name] for name in fitting}, source)


def _set_weights(model, layers, source):
    """Set the weights of layers, a dict from their names to lists of arrays; return the names of those with weights."""
    loaded = sorted(name for name, arrays in layers.items() if arrays)
    for name in loaded:
        if not all(np.isfinite(array).all() for array in layers[name]):
            problem = f"--weights {source} has weights that are NaN or infinite, in layer {name}"
            raise InputError(problem, "Use the weights of a run that did not diverge")
        model.get_layer(name).set_weights(layers[name])
    return loaded


def _differences(shapes, stored, last):
    """Return in words how stored layers differ from a network's, apart from its last layer; "" if they do not."""
    both = shapes.keys() & stored.keys()
    kinds = {
        "missing": shapes.keys() - stored.keys(),
        "unknown": stored.keys() - shapes.keys(),
        "of another shape": {name for name in both if shapes[name] != stored[name]},
    }
    differences = []
    for kind, names in kinds.items():
        names = sorted(names - {last})
        if names:
            differences.append(f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
    return ", ".join(differences)


def takes_imagenet_pixels(source):
    """Return whether the weights of ResNet50 are those of `keras.applications`, or were trained further from them.

    `source` is as for `load_initial_weights`. Of a file that cannot be read, the answer is False.
    """
    name = str(source).lower()
    if source == "imagenet" or (name.endswith((".h5", ".hdf5")) and not name.endswith(".weights.h5")):
        return True
    try:
        if name.endswith(".keras"):
            with zipfile.ZipFile(source) as archive:
                layers = json.loads(archive.read("config.json"))["config"]["layers"]
            return IMAGENET_PADDING in [layer["config"]["name"] for layer in layers]
        if name.endswith(".weights.h5"):
            with h5py.File(source, "r") as file:
                return IMAGENET_PADDING in [layer["vars"].attrs["name"] for layer in file["layers"].values()]
    except Exception:  # zipfile, json and h5py raise many types; loading the file finds the reason
        pass
    return False


def rgb_order(layers):
    """Return the weights of `keras.applications.ResNet50`, changed to take red, green and blue, in this order.

    They were trained on blue, green and red minus the mean color; the layer `subtract_mean` of ours subtracts it.

    `layers`: dict from layer names to lists of arrays.
    """
    kernel, bias = layers["conv1_conv"]  # (7, 7, 3, 64) and (64,)
    return {**layers, IMAGENET_PIXELS: [], "conv1_conv": [kernel[:, :, ::-1], bias]}


def _shapes(layers):
    """Return the shapes of the weights by layer, leaving out layers without weights, except those for the pixels."""
    kept = PIXELS, IMAGENET_PIXELS
    return {name: list(map(np.shape, arrays)) for name, arrays in layers.items() if arrays or name in kept}


def _identity_blocks(model):
    """Return the --identity-blocks of a ResNet50, as on the command line: the blocks of each stage but the first."""
    names = " ".join(layer.name for layer in model.layers)
    return " ".join(str(len(re.findall(rf"conv{stage}_block\d+_out", names)) - 1) for stage in (2, 3, 4, 5))


def _imagenet_layers(model):
    """Download the ImageNet weights through Keras, which keeps the file and checks its hash."""
    import keras

    # The names are checked before 94 MB are downloaded.
    standard = keras.applications.ResNet50(weights=None, include_top=False)
    standard_names = {layer.name for layer in standard.layers if layer.weights}
    names = {layer.name for layer in model.layers if layer.weights}
    if names - {model.layers[-1].name} != standard_names:
        problem = "--weights imagenet fits only the ResNet-50 of the paper"
        raise InputError(problem, "Leave --identity-blocks at 2 3 5 2", got=_identity_blocks(model))
    try:
        path = keras.utils.get_file(
            IMAGENET_FILE, IMAGENET_URL, cache_dir=keras_home(), cache_subdir="models", file_hash=IMAGENET_MD5
        )
        return _layers_of(keras.applications.ResNet50(weights=path, include_top=False))
    except Exception as error:  # Keras raises a bare Exception if nothing answers
        folder = keras_home() / "models"
        fix = (
            f"If this machine is offline, fetch {IMAGENET_URL} (94 MB) on another one and put it into {folder} under "
            "the same name, or name it with --weights FILE"
        )
        raise InputError(f"The ImageNet weights cannot be downloaded: {first_line(error)}", fix) from None


def _stored_layers(path, network):
    """Read a file of weights for a network of this name into a dict from layer names to lists of arrays."""
    fix = "Give a .keras file that the same script has saved, or the weights of such a model as .weights.h5"
    if network == "ResNet50":
        fix += f", or {IMAGENET_FILE}"
    try:
        layers = _read_layers(path, network)
    except InputError as error:
        raise InputError(f"--weights {path} cannot be used: {error}", f"Give the file of {IMAGENET_URL}") from None
    except Exception as error:  # Keras and h5py raise many types
        damaged_zip = path.name.lower().endswith(".keras") and not zipfile.is_zipfile(path)
        if isinstance(error, OSError) or damaged_zip:
            reason = f"it is {describe_file(path, error)}"
        else:
            reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"--weights {path} cannot be used: {reason}", fix) from None
    if layers is None:
        raise InputError(f"--weights {path} is of an unknown type", fix)
    return layers


def _read_layers(path, network):
    """Return the stored layers of a file, or None if its name has another ending than those that are known."""
    import keras

    name = path.name.lower()
    if name.endswith(".keras"):
        # In safe mode, a file that contains code is refused.
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        return _layers_of(model)
    if name.endswith(".weights.h5"):
        # Keras would assign weights in the order of the layers, so those of another network could slip in.
        with h5py.File(path, "r") as file:
            groups = [layer["vars"] for layer in file["layers"].values()]
            layers = {group.attrs["name"]: [group[str(n)][()] for n in range(len(group))] for group in groups}
            return _with_our_pixels(layers)
    if name.endswith((".h5", ".hdf5")) and network == "ResNet50":
        with h5py.File(path, "r") as file:
            names = [os.fsdecode(layer) for layer in file.attrs.get("layer_names", [])]
        if "res2a_branch2a" in names:
            raise InputError("it is a file of 2017 for another ResNet50, which may have the same name")
        return _layers_of(keras.applications.ResNet50(weights=str(path), include_top=False))
    return None


def _layers_of(model):
    """Return the weights of a Keras model, a dict from layer names to lists of arrays."""
    return _with_our_pixels({layer.name: layer.get_weights() for layer in model.layers})


def _with_our_pixels(layers):
    """Return stored layers for our pixels: those of `keras.applications.ResNet50` take other ones."""
    layers = {PIXELS if name == OLD_PIXELS else name: arrays for name, arrays in layers.items()}
    theirs = IMAGENET_PADDING in layers and not {PIXELS, IMAGENET_PIXELS} & layers.keys()
    return rgb_order(layers) if theirs and len(layers.get("conv1_conv", ())) == 2 else layers
