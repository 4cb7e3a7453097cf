"""The live page of `--export web`: one HTML file that runs the network in a browser, for a camera or an image.

The text and the markup are in the Jinja2 template live.html beside this file, the look is in live.css, the network in
live_network.js, the search in live_search.js, the color of skin in live_hand.js, what happens on the page in live.js,
and classes that the user teaches it in live_teach.js. The page cannot connect to anything.
"""

import base64
import hashlib
import pathlib

import jinja2
import numpy as np

from basics.errors import InputError
from datasets.parts import ROLE_OF
from support.evaluation.ood import K
from support.evaluation.outputs import class_probabilities, features, logits, softmax
from support.evaluation.results import percentage
from support.prediction import search
from support.prediction.detection import HAND_MARGIN
from support.prediction.numpy_inference import from_keras

# A page of this size opens at once and can be sent by e-mail.
MAX_BYTES = 1_500_000

# Of a larger network, each number takes 12 bits in place of 16, and the page may have this size.
LARGE_BYTES = 8_000_000
STEPS = 2047  # of 12 bits, on each side of 0

# The largest difference between probabilities that rounded weights may cause.
TOLERANCE = 0.005

# With fewer dimensions, the compressed feature bank could no longer tell unfamiliar images apart.
LEAST_RANK = 32

# The options of layers that the page's script reads.
OPTIONS = "padding", "pool_size", "strides", "scale", "offset", "epsilon", "max_value"

# What to do after "not sure", by topic, in one line of a phone.
ADVICE = {
    "signs": "Come closer, or try a plain, light wall.",
    "smiles": "Fill the square with your face, in even light.",
    "other": "Fill the square, or try better light.",
}


def render_live_page(model, metadata, images):
    """Return the page as str, and the largest difference between its probabilities and the model's.

    Args:
        model: trained Keras model of layers that `numpy_inference.Network` knows.
        metadata: `trained_model.Metadata`.
        images: float32 array (m, size, size, 3), RGB 0-255, for the comparison.

    Raises InputError: the network has other layers or is too large, or the probabilities differ.
    """
    large = 2 * model.count_params() * 4 / 3 > MAX_BYTES
    limit = LARGE_BYTES if large else MAX_BYTES
    if 1.5 * model.count_params() * 4 / 3 > LARGE_BYTES:
        raise _too_large(model, LARGE_BYTES)
    with np.errstate(over="ignore", invalid="ignore"):  # what float16 cannot hold is refused below
        network = _read_network(model, large)
        probabilities = softmax(logits(network, features(network, images)))
    difference = float(np.abs(probabilities - class_probabilities(model.predict_on_batch(images))).max())
    if not difference <= TOLERANCE:
        problem = f"--export web: with rounded weights, {model.name} gives other answers, by up to {difference:.2g}"
        raise InputError(problem, "Use --export onnx")
    subject = metadata.task.subject if metadata.shows_task and metadata.data != "folder" else None
    hand = subject == "hand"
    topic = metadata.task.topic if metadata.shows_task else "other"
    content = _serialize(network, large) | {
        "size": model.input_shape[1],
        "classes": metadata.classes,
        "not_sure_below": metadata.not_sure_below,
        "not_sure_below_text": percentage(metadata.not_sure_below),
        "hand_margin": HAND_MARGIN if hand else None,  # None: the color of skin says nothing
        "search": _search_settings(network) if metadata.feature_bank is not None and subject != "face" else None,
        "advice": ADVICE[topic],
        "bank": None,
        "parts": sorted({"fold", "kfold", *ROLE_OF}),  # no names for classes that the user teaches the page
    }
    room = limit - len(_render(model, metadata, topic, content).encode()) - 1000
    if metadata.feature_bank is not None:
        bank = metadata.feature_bank.astype(np.float32)
        # Each number takes two bytes, and base64 turns three bytes into four.
        rank = min(*bank.shape, int(room * 3 / 4 / 2 / sum(bank.shape)))
        if rank < min(*bank.shape, LEAST_RANK):
            raise _too_large(model, limit)
        content["bank"] = _compress(bank, rank) | {"threshold": metadata.ood_threshold, "neighbors": K}
    elif room < 0:
        raise _too_large(model, limit)
    return _render(model, metadata, topic, content), difference


def _read_network(model, large):
    """Return a Keras model as a `Network` with rounded kernels; an InputError unless the page can run it."""
    try:
        network = from_keras(model, np.float32 if large else np.float16)
    except (ValueError, KeyError, TypeError) as error:
        raise _refused(model, error) from None
    for layer in network.layers[:-1]:
        if isinstance(layer.config.get("offset"), list) or isinstance(layer.config.get("scale"), list):
            raise _refused(model, f"the layer {layer.config['name']!r} ({layer.kind}) treats channels differently")
        if large:
            layer.weights[:] = [_in_steps(array)[0] if array.ndim > 1 else array for array in layer.weights]
    head = network.layers[-1]
    if large:
        network.layers[-1] = head._replace(kernel=_in_steps(head.kernel)[0])
    if head.activation not in ("sigmoid", "softmax"):
        raise _refused(model, f"it ends in {model.layers[-1].name!r} without sigmoid or softmax")
    return network


def _in_steps(kernel):
    """Return a kernel rounded to 12 bits, float32; the number of steps, int, of each weight; the steps by channel."""
    channels = kernel.reshape(-1, kernel.shape[-1] if kernel.shape[-1] > 1 else kernel.shape[-2])
    step = np.maximum(np.abs(channels).max(axis=0), 1e-30) / STEPS
    numbers = np.rint(channels / step)
    return (numbers * step).reshape(kernel.shape).astype(np.float32), numbers.astype(np.int64), step


def _search_settings(network):
    """Return what the page needs to search for squares, or None if it would have to compute unknown layers."""
    *layers, _ = network.layers
    kinds = [layer.kind for layer in layers]
    first = next((index for index, kind in enumerate(kinds) if kind in ("Flatten", "GlobalAveragePooling2D")), None)
    previous = [network.input_name, *(layer.config["name"] for layer in layers)]
    # A chain of layers that treat rows and columns alike.
    simple = network.shares_maps() and all(
        layer.inputs == [name]
        and layer.kind != "DepthwiseConv2D"
        and all(len(set(layer.config.get(option, [1]))) == 1 for option in ("pool_size", "strides"))
        for layer, name in zip(layers, previous)
    )
    if first is None or not simple or set(kinds[first + 1 :]) - {"Flatten", "Dropout"}:
        return None
    return {
        "sides": search.SIDES.tolist(),
        "max_aspect": search.MAX_ASPECT,
        "candidates": search.CANDIDATES,
        "given": search.GIVEN,
        "near": search.NEAR,
        "views": search.VIEWS,
        "map_side": network.map_shape()[0],
    }


def _refused(model, reason):
    return InputError(f"--export web cannot run {model.name}: {reason}", "Use --export onnx")


def _too_large(model, limit):
    problem = f"--export web writes a page of at most {limit / 1e6:g} MB, too little for {model.name}"
    return InputError(problem, "Use --export onnx", got=f"{4e-6 * model.count_params():.2g} MB of weights")


def _serialize(network, large):
    """Return the layers of a network with the options that the page reads, and their weights in order.

    Kernels are float16 or, if they are large, steps of 12 bits; biases and the like, which are few, float32. Each layer
    names its inputs by number: 0 is the image, 1 the output of the first layer.
    """
    *hidden, head = network.layers
    places = {name: number for number, name in enumerate([network.input_name, *(x.config["name"] for x in hidden)])}
    layers = [(layer.kind, layer.config, layer.inputs, layer.weights) for layer in hidden]
    layers.append(("Dense", {}, [hidden[-1].config["name"]], [head.kernel, head.bias]))
    arrays = [array for *_, weights in layers for array in weights]
    kernels = [array for array in arrays if array.ndim > 1]
    vectors = [array for array in arrays if array.ndim == 1]
    steps = [_in_steps(array)[2] for array in kernels] if large else []
    return {
        "layers": [
            {"kind": kind, "inputs": [places[name] for name in inputs], "shapes": [array.shape for array in weights]}
            | {name: config[name] for name in OPTIONS if name in config}
            for kind, config, inputs, weights in layers
        ],
        "kernels": _base64(
            _pack(kernels) if large else np.concatenate([x.astype(np.float16).ravel() for x in kernels])
        ),
        "vectors": _base64(np.concatenate([*vectors, *steps]).astype(np.float32)),
        "steps": large,
    }


def _pack(kernels):
    """Return the steps of all kernels as bytes, uint8, two numbers in three of them."""
    numbers = np.concatenate([_in_steps(kernel)[1].ravel() for kernel in kernels]) + STEPS
    first, second = np.pad(numbers, (0, len(numbers) % 2)).reshape(-1, 2).T
    return np.stack([first & 255, first >> 8 | (second & 15) << 4, second >> 4], axis=1).astype(np.uint8).ravel()


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


def _render(model, metadata, topic, content):
    """Return the page as str."""
    folder = pathlib.Path(__file__).parent
    scripts = ["live_network.js", "live_search.js", "live_hand.js", "live.js", "live_teach.js"]
    if not content["hand_margin"]:
        scripts.remove("live_hand.js")
    script = "".join((folder / name).read_text(encoding="utf-8") for name in scripts)
    style = (folder / "live.css").read_text(encoding="utf-8")
    # The browser runs only the script with this hash.
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for name, text in (("script", script), ("style", style))
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("live.html").render(
        network=content,
        script=script,
        style=style,
        hashes=hashes,
        name=model.name,
        classes=len(metadata.classes),
        data=metadata.data,
        dry_run=metadata.dry_run,
        topic=topic,
    )
