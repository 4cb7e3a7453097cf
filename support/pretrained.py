"""Weights from earlier training, copied by layer name.

"synthetic"      the file in weights/, from training on SYNTHETIC images alone; for the two small networks
"imagenet"       keras.applications.ResNet50, trained on 1.3 million photographs of 1,000 classes; for ResNet50
*.keras          a model that the same script has saved
*.weights.h5     the weights of such a model, from `model.save_weights`
*.h5             the file of "imagenet", downloaded by hand
"""

import os
import pathlib
import re
import zipfile

import h5py
import numpy as np

from support.errors import InputError
from support.files import describe_file

# The file that keras.applications downloads: ResNet50 without its last layer.
IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/" + IMAGENET_FILE

# The mean colour of ImageNet, 0-255, in the order blue, green, red; keras.applications subtracts it.
IMAGENET_MEAN = (103.939, 116.779, 123.68)

PIXELS = "normalise"  # the layer that maps pixels to -1..1: a network without it expects other pixels


def weights_file(source, script):
    """Return the path of the weights: "synthetic" is the script's file in weights/; other sources are paths."""
    folder = pathlib.Path(__file__).resolve().parents[1] / "weights"
    return folder / f"{script}.keras" if source == "synthetic" else pathlib.Path(source)


def load_pretrained(model, source):
    """Set the weights of a built model, and say in one line what was loaded.

    `source` is "synthetic", "imagenet" or the path of a file, see the top of this module.
    Raises InputError: the weights cannot be downloaded, or the file is damaged or of another network.
    """
    if source == "imagenet":
        layers = _imagenet_layers(model)
    else:
        layers = _stored_layers(weights_file(source, model.name), model.name)
    loaded = load_weights_by_name(model, layers, source)
    last = "including the last" if model.layers[-1].name in loaded else "all but the last, which starts at random"
    name = "weights/, trained on SYNTHETIC images only" if source == "synthetic" else source
    print(f"Weights: {len(loaded)} layers from {name}, {last}")


def load_weights_by_name(model, layers, source):
    """Copy stored weights to the layers of the same name, and return the names of these layers.

    Args:
        model: Keras model; its last layer is left out if the stored one has another shape.
        layers: dict from layer names to lists of arrays.
        source: "imagenet" or the path of the file, for the messages.

    Raises InputError: the layers are those of another network, or hold NaN or infinity.
    """
    expected = _shapes({layer.name: layer.weights for layer in model.layers})
    stored = _shapes(layers)
    other = {name for name in expected.keys() & stored.keys() if expected[name] != stored[name]}
    missing, unknown, differences = expected.keys() - stored.keys(), stored.keys() - expected.keys(), []
    for names, what in (missing, "missing"), (unknown, "unknown"), (other, "of another shape"):
        names = sorted(names - {model.layers[-1].name})
        if names:
            differences.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
    if differences:
        expected, advice = f"the layers of {model.name}", "give a file that the same script has saved"
        if model.name == "ResNet50":
            expected += f" with --identity-blocks {_identity_blocks(model)}"
            advice = "give the --identity-blocks that the weights were trained with"
        raise InputError(f"--weights {source}: expected {expected}; {advice}. Received: {', '.join(differences)}")
    loaded = sorted(name for name in stored if stored[name] == expected.get(name) != [])
    for name in loaded:
        if not all(np.isfinite(array).all() for array in layers[name]):
            expected = "expected finite numbers; use the weights of a run that did not diverge"
            raise InputError(f"--weights {source}: {expected}. Received: NaN or infinity in {name}")
        model.get_layer(name).set_weights(layers[name])
    return loaded


def fold_preprocessing(model):
    """Return the weights of `keras.applications.ResNet50`, changed to take RGB pixels from -1 to 1.

    It was trained on blue, green, red from 0 to 255 minus `IMAGENET_MEAN`; such a channel is
    127.5 * ours + 127.5 - mean. A convolution is linear, so the first kernel can contain the
    factor and the order of the channels, and its bias the rest. The results differ only at the
    edge: there the padding is the mean colour, here middle grey, at most 24 of 256 levels away.

    Returns a dict from layer names to lists of arrays.
    """
    layers = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    kernel, bias = (array.astype(np.float64) for array in layers["conv1_conv"])  # (7, 7, 3, 64) and (64,)
    shift = np.einsum("hwco,c->o", kernel, 127.5 - np.array(IMAGENET_MEAN))
    return {**layers, PIXELS: [], "conv1_conv": [127.5 * kernel[:, :, ::-1], bias + shift]}


def set_trainable(model, head_only):
    """Train only the last layer, or all layers, from the next `compile` on.

    A frozen batch normalisation uses its stored mean and variance and does not update them.
    """
    # One by one, because `model.trainable = True` does nothing if the model itself is trainable already.
    for layer in model.layers:
        layer.trainable = layer is model.layers[-1] or not head_only


def _shapes(layers):
    """Return the shapes of the weights by layer; a layer without weights counts only if it changes the pixels."""
    return {name: list(map(np.shape, arrays)) for name, arrays in layers.items() if arrays or name == PIXELS}


def _identity_blocks(model):
    """Return the --identity-blocks of a ResNet50, as on the command line: in each stage all blocks but the first."""
    names = " ".join(layer.name for layer in model.layers)
    return " ".join(str(len(re.findall(rf"conv{stage}_block\d+_out", names)) - 1) for stage in (2, 3, 4, 5))


def _imagenet_layers(model):
    """Download the ImageNet weights through Keras, which keeps the file and checks its hash."""
    import keras

    # The names are checked before 94 MB are downloaded.
    standard = keras.applications.ResNet50(weights=None, include_top=False)
    names, expected = ({layer.name for layer in network.layers if layer.weights} for network in (model, standard))
    if names - {model.layers[-1].name} != expected:
        expected = "--weights imagenet is the ResNet-50 of the paper: leave --identity-blocks at 2 3 5 2"
        raise InputError(f"{expected}. Received: {_identity_blocks(model)}")
    try:
        return fold_preprocessing(keras.applications.ResNet50(weights="imagenet", include_top=False))
    except Exception as error:  # Keras raises a bare Exception if nothing answers
        folder = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")) / "models"
        expected = "The ImageNet weights are not on this machine and cannot be downloaded: is it offline?"
        advice = f"Fetch {IMAGENET_URL} (94 MB) on another machine and put it into {folder} under the same name"
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{expected} {advice}, or name it with --weights FILE. Received: {reason}") from None


def _stored_layers(path, network):
    """Read a file of weights: dict from layer names to lists of arrays; `network` is the name of the model."""
    import keras

    name = path.name.lower()
    try:
        if name.endswith(".keras"):
            expected = f"a model of {network} that its script has saved"
            # In safe mode, a file that brings code of its own is refused, not run.
            model = keras.models.load_model(path, compile=False, safe_mode=True)
            return {layer.name: layer.get_weights() for layer in model.layers}
        if name.endswith(".weights.h5"):
            expected = f"the weights of a model of {network}, as model.save_weights writes them"
            # Keras would go by the order of the layers and ignore the rest, so another network could slip in.
            with h5py.File(path, "r") as file:
                groups = [layer["vars"] for layer in file["layers"].values()]
                return {group.attrs["name"]: [group[str(n)][()] for n in range(len(group))] for group in groups}
        if name.endswith((".h5", ".hdf5")) and network == "ResNet50":
            expected = f"the weights of keras.applications.ResNet50 without its last layer, as in {IMAGENET_FILE}"
            return fold_preprocessing(keras.applications.ResNet50(weights=str(path), include_top=False))
    except Exception as error:  # Keras and h5py raise many types
        if isinstance(error, OSError) or (name.endswith(".keras") and not zipfile.is_zipfile(path)):
            received = f"a file that cannot be opened: {describe_file(path, error)}"
        else:
            received = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        raise InputError(f"--weights {path}: expected {expected}. Received: {received}") from None
    expected = "a file whose name ends in .keras or .weights.h5"
    raise InputError(f"--weights: expected {expected}. Received: {path}")
