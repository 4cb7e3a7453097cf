"""Trained networks for other programs: ONNX, TensorFlow's SavedModel, LiteRT for phones, a page for browsers.

An exported network takes float32 images (batch, 64, 64, 3), RGB, 0-255; it normalises them itself. For LiteRT, a second
model computes in 8-bit integers; its accuracy on the test set is printed.
"""

import contextlib
import io
import os
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from support.calibration import class_probabilities
from support.errors import InputError, printable, require
from support.files import atomic_write, read_json
from support.output import prepare_output_dir
from support.predict import CONFIDENCE
from support.startup import quiet_startup
from support.trained_model import load_trained_model
from support.web import render_live_page

INT8_FILE = "model_int8.tflite"
# Their activations show which range of numbers the 8 bits of each layer have to cover.
CALIBRATION_IMAGES = 200

# The largest difference between probabilities that other kernels, which add in another order, may cause.
TOLERANCE = 1e-4


def load_onnx(path):
    """Return a function from float32 images (m, 64, 64, 3) to outputs (m, k), run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_saved_model(path):
    """The same, run by TensorFlow without Keras."""
    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(tf.constant(images)).numpy()


def load_litert(path):
    """The same, run by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))

    def predict(images):
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, images)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return predict


ONNX = {"tf2onnx": "tf2onnx>=1.17,<1.18", "onnx": "onnx>=1.20,<2", "onnxruntime": "onnxruntime>=1.23,<2"}
# For each format: the file or folder to write, the function that loads it, and the packages it needs, by module.
FORMATS = {
    "onnx": ("model.onnx", load_onnx, ONNX),
    "saved_model": ("saved_model", load_saved_model, {}),
    "litert": ("model.tflite", load_litert, {"ai_edge_litert": "ai-edge-litert>=2.1,<3"}),
}


def export(args, script, class_names, load_data, network=None):
    """Do what --export asks for, and return the exit code; see `load_trained_model`.

    `load_data` is the function of `cnn_utils` that loads the script's data set.
    """
    model, metadata = load_trained_model(args.output_dir, script, class_names, network)
    data = _load_data_of_run(args, load_data, metadata["classes"]) if "litert" in args.export else None
    export_model(model, args.export, args.output_dir, metadata | {"confidence": CONFIDENCE}, data)
    return 0


def _load_data_of_run(args, load_data, class_names):
    """Return the `Dataset` that the options name, else that of the run; None, after saying so, if it is missing."""
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


def export_model(model, formats, output_dir, metadata=None, data=None):
    """Export a model, load each result in its own runtime and compare the outputs.

    With "litert", `model_int8.tflite` is written as well, if there are images to choose its ranges by.

    Args:
        model: trained Keras model, float32.
        formats: names from `FORMATS`, or "web", the live page.
        output_dir: folder for the results.
        metadata: for "web", see `web.render_live_page`.
        data: for "litert", the `cnn_utils.Dataset` of the run; None: there are no images, and no 8-bit model.

    Returns: dict from each format to the largest difference between probabilities.
    Raises InputError: a package is missing, or the outputs differ; that result is not saved.
    """
    for name in formats:
        for module, package in FORMATS[name][2].items() if name != "web" else ():
            require(module, f"--export {name}", package)
    output_dir = prepare_output_dir(output_dir)
    # Coloured squares suit any network. One image alone and several together, because the batch size is free.
    size = model.input_shape[1:]
    squares = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
    images = squares.repeat(size[0] // 8, axis=1).repeat(size[1] // 8, axis=2)
    original = np.asarray(model.predict_on_batch(images))
    differences = {}
    if "web" in formats:  # first, because it may be refused
        differences["web"] = _save_live_page(model, metadata, images, output_dir / "live.html")
    for name in formats:
        if name == "web":
            continue
        path, load = output_dir / FORMATS[name][0], FORMATS[name][1]
        with atomic_write(path) as temporary:
            with _quiet():
                model.export(temporary, format="tf_saved_model" if name == "saved_model" else name, verbose=False)
                predict = load(temporary)
                found = np.concatenate([predict(images[:1]), predict(images[1:])])
            difference = differences[name] = float(np.abs(found - original).max())
            if not difference <= TOLERANCE:
                expected = f"--export {name}: the result must give the outputs of the original, to {TOLERANCE:g}"
                raise InputError(f"{expected}. Received: a difference of {difference:.2g}")
        takes = f"float32 (batch, {', '.join(map(str, size))}), RGB 0-255"
        print(f"Saved {path}: outputs like the original's, largest difference {difference:.1e}; it takes {takes}")
    if "litert" in formats and data is not None:
        export_int8(model, data, output_dir / INT8_FILE)
    return differences


def export_int8(model, data, path):
    """Export a model for LiteRT with weights and activations in 8 bits, and compare its answers on the test set.

    Its inputs and outputs stay float32, so it takes the place of the float32 model. The accuracy is printed, not
    judged, because how much of it may be lost depends on the use.

    Args:
        model: trained Keras model, float32.
        data: `cnn_utils.Dataset`: training images to choose the ranges by, test images to compare on.
        path: the .tflite file.

    Returns: accuracy of the model and of the 8-bit one on the test set.
    """
    chosen = np.unique(np.linspace(0, len(data.train_x) - 1, CALIBRATION_IMAGES).astype(int))
    examples = data.train_x[chosen].astype(np.float32)
    options = {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([image[None]] for image in examples),
        "target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
    }
    batches = [slice(start, start + 64) for start in range(0, len(data.test_x), 64)]
    with atomic_write(path) as temporary:
        with _quiet():
            model.export(temporary, format="litert", verbose=False, **options)
            predict = load_litert(temporary)
            found, original = (
                class_probabilities(np.concatenate([run(data.test_x[batch].astype(np.float32)) for batch in batches]))
                for run in (predict, model.predict_on_batch)
            )
        size = temporary.stat().st_size
    answers, before = found.argmax(axis=1), original.argmax(axis=1)
    accuracies = [float((labels == data.test_y).mean()) for labels in (before, answers)]
    marked = "SYNTHETIC " if data.kind == "synthetic" else ""
    print(
        f"Saved {path}: 8-bit integers, {size / 1e6:.2f} MB; {accuracies[1]:.2%} of the {len(before):,} {marked}test "
        f"images right, in float32 {accuracies[0]:.2%}; {np.count_nonzero(answers != before)} answers differ"
    )
    return accuracies


def _save_live_page(model, metadata, images, path):
    """Save the page that runs the model in a browser; return the largest difference between probabilities."""
    page, difference = render_live_page(model, metadata, images)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    print(f"Saved {path}: open it in a browser; {size}, largest difference {difference:.1e} with float16 weights")
    return difference


@contextlib.contextmanager
def _quiet():
    """Hide what the converters print, unless they fail."""
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), quiet_startup():
            warnings.simplefilter("ignore")
            yield
    except BaseException:
        print(printed.getvalue(), end="")
        raise
