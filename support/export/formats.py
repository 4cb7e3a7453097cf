"""Export a trained network for other programs: ONNX, TensorFlow's SavedModel, LiteRT for phones, a page for browsers.

An exported network takes float32 images (batch, size, size, 3), RGB, 0-255, and normalizes them itself. For LiteRT, a
second model computes in 8-bit integers; its accuracy on the test set is printed.
"""

import contextlib
import io
import os
import pathlib
import warnings

import numpy as np
import tensorflow as tf

from basics.errors import InputError, printable, require
from basics.files import atomic_write, read_json
from datasets import NONE
from datasets.loading import load_dataset
from support.evaluation.outputs import class_probabilities
from support.export.live_page import render_live_page
from support.prediction.trained_model import load_trained_model
from support.startup import quiet_startup
from support.training.run_folder import EXPORTS, claim

INT8_FILE = EXPORTS["int8"]
# The activations of this many training images show which range of numbers the 8 bits of each layer must cover.
CALIBRATION_IMAGES = 200

# The largest difference between probabilities that is accepted: other runtimes add in another order.
TOLERANCE = 1e-4


def load_onnx(path):
    """Return a function from float32 images (m, size, size, 3) to outputs (m, k), computed by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def load_saved_model(path):
    """Return such a function, computed by TensorFlow without Keras."""
    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(tf.constant(images)).numpy()


def load_litert(path):
    """Return such a function, computed by LiteRT."""
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
# For each format: the file or folder to write, the function that loads it, and the packages it needs by module name.
FORMATS = {
    "onnx": (EXPORTS["onnx"], load_onnx, ONNX),
    "saved_model": (EXPORTS["saved_model"], load_saved_model, {}),
    "litert": (EXPORTS["litert"], load_litert, {"ai_edge_litert": "ai-edge-litert>=2.1,<3"}),
}


def export(args):
    """Do what --export asks for, and return the exit code; `args` is the parsed command line."""
    model, metadata = load_trained_model(
        args.output_dir, args.script, args.task, args.network, weights=args.weights, not_sure_below=args.not_sure_below
    )
    data = _load_data_of_run(args, metadata.classes, model.input_shape[1]) if "litert" in args.export else None
    export_model(model, args.export, args.output_dir, metadata, data)
    return 0


def _load_data_of_run(args, class_names, image_size=None):
    """Return the `Dataset` that the options name, or else that of the run; None if there is none, which is printed."""
    metrics = read_json(pathlib.Path(args.output_dir) / "metrics.json") or {}
    settings = metrics.get("settings", {})
    folder = args.data_dir or metrics.get("training", {}).get("data_dir")
    fold = settings.get("fold")
    fold = fold if isinstance(fold, str) and "/" in fold else None
    # Runs without this setting have split the images of a folder one by one.
    group_by = args.group_by or settings.get("group_by", NONE)
    none = args.none or settings.get("none")
    try:
        if args.data != "synthetic" and not (isinstance(folder, str | pathlib.Path) and os.path.isdir(folder)):
            raise InputError("The run's data are not there", "Name their folder with --data-dir", got=folder)
        data = load_dataset(
            args.task,
            args.data,
            folder,
            fold=fold,
            cache_dir=args.cache_dir,
            group_by=group_by,
            none=none,
            image_size=image_size,
        )
        if tuple(data.class_names) != tuple(class_names):
            problem = f"The classes of these images are {', '.join(data.class_names)}"
            raise InputError(problem, f"The model knows {', '.join(class_names)}")
    except InputError as error:
        print(f"Skipped {INT8_FILE}, which needs images of the run. {printable(str(error))}")
        return None
    if data.hashes != settings.get("data_files"):
        print("These are not the run's files: the model may have been trained on some of the test images")
    return data


def export_model(model, formats, output_dir, metadata=None, data=None):
    """Export a model, load each result in its own runtime and compare the outputs.

    With "litert", `model_int8.tflite` is written as well, if there are images to choose its ranges by.

    Args:
        model: trained Keras model, float32.
        formats: names from `FORMATS`, or "web", the live page.
        output_dir: folder for the results.
        metadata: for "web", see `live_page.render_live_page`.
        data: for "litert", the `datasets.loading.Dataset` of the run; None: no 8-bit model is written.

    Returns: dict from each format to the largest difference between probabilities.
    Raises InputError: a package is missing, or the outputs differ; that result is not saved.
    """
    others = [name for name in formats if name != "web"]
    for name in others:
        for module, package in FORMATS[name][2].items():
            require(module, f"--export {name}", package)
    output_dir = claim(output_dir)
    # Any network can be compared on colored squares.
    height, width, _ = model.input_shape[1:]
    squares = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
    images = squares.repeat(height // 8, axis=1).repeat(width // 8, axis=2)
    differences = {}
    if "web" in formats:  # first, because it may be refused
        differences["web"] = _save_live_page(model, metadata, images, output_dir / EXPORTS["web"])
    for name in others:
        differences[name] = _export_one(model, name, images, output_dir)
    if "litert" in formats and data is not None:
        export_int8(model, data, output_dir / INT8_FILE)
    return differences


def _export_one(model, name, images, output_dir):
    """Export a model in one format; return the largest difference between its probabilities and the original's."""
    file_name, load, _ = FORMATS[name]
    path = output_dir / file_name
    original = np.asarray(model.predict_on_batch(images))
    with atomic_write(path) as temporary:
        with _quiet():
            model.export(temporary, format="tf_saved_model" if name == "saved_model" else name, verbose=False)
            predict = load(temporary)
            # One image alone and several together, because the batch size is free.
            found = np.concatenate([predict(images[:1]), predict(images[1:])])
        difference = float(np.abs(found - original).max())
        if not difference <= TOLERANCE:  # NaN is refused as well
            problem = f"The outputs of --export {name} differ from the model's by {difference:.2g}"
            raise InputError(problem, f"It is not saved, because the difference is larger than {TOLERANCE:g}")
    takes = f"float32 ({', '.join(map(str, ('batch', *images.shape[1:])))}), RGB 0-255"
    print(f"Saved {path}: same outputs as the model, largest difference {difference:.1e}; it takes {takes}")
    return difference


def export_int8(model, data, path):
    """Export a model for LiteRT with weights and activations in 8 bits, and compare its answers on the test set.

    Its inputs and outputs stay float32, so it can replace the float32 model. The accuracy is printed, not judged: how
    much of it may be lost depends on the use.

    Args:
        model: trained Keras model, float32.
        data: `datasets.loading.Dataset`: training images to choose the ranges by, test images to compare on.
        path: the .tflite file.

    Returns: accuracy of the model and of the 8-bit one on the test set.
    """
    chosen = np.unique(np.linspace(0, len(data.train_x) - 1, CALIBRATION_IMAGES).astype(int))
    examples = data.train_x[chosen].astype(np.float32)
    with atomic_write(path) as temporary:
        with _quiet():
            model.export(
                temporary,
                format="litert",
                verbose=False,
                optimizations=[tf.lite.Optimize.DEFAULT],
                representative_dataset=lambda: ([image[None]] for image in examples),
                target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]},
            )
            answers = _predicted_labels(load_litert(temporary), data.test_x)
            before = _predicted_labels(model.predict_on_batch, data.test_x)
        size = temporary.stat().st_size
    accuracy_before = float((before == data.test_y).mean())
    accuracy = float((answers == data.test_y).mean())
    marked = "SYNTHETIC " if data.kind == "synthetic" else ""
    print(
        f"Saved {path}: 8-bit integers, {size / 1e6:.2f} MB; {accuracy:.2%} of the {len(before):,} {marked}test images "
        f"right, {accuracy_before:.2%} in float32; {np.count_nonzero(answers != before)} answers differ"
    )
    return accuracy_before, accuracy


def _predicted_labels(run, x):
    """Return the labels (m,) that a function from float32 images to outputs predicts for uint8 images (m, ...)."""
    batches = (x[start : start + 64].astype(np.float32) for start in range(0, len(x), 64))
    return class_probabilities(np.concatenate([run(batch) for batch in batches])).argmax(axis=1)


def _save_live_page(model, metadata, images, path):
    """Save the page that runs the model in a browser; return the largest difference between probabilities."""
    page, difference = render_live_page(model, metadata, images)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    size = path.stat().st_size / 1e6
    fidelity = f"largest difference {difference:.1e} with rounded weights"
    print(f"Saved {path}: open it in a browser; {size:.2f} MB, {fidelity}")
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
