"""Trained networks for other programs: ONNX, TensorFlow's SavedModel, LiteRT for phones and small machines.

Every format is written by Keras's own `model.export`, loaded back by the
runtime that will run it elsewhere, and asked about the same pictures as the
original. The exported network takes what the saved one takes: raw pixels 0-255
as float32, (batch, 64, 64, 3), red, green, blue; calibration and all are inside.
"""

import contextlib
import io
import warnings

import numpy as np

import cnn_utils as utils
import runs

# For each format the name of the result, and the packages that write it and run it: module, then what pip installs.
FORMATS = {
    "onnx": ("model.onnx", (("tf2onnx", "tf2onnx>=1.17,<1.18"), ("onnx", "onnx>=1.20,<2"),
                            ("onnxruntime", "onnxruntime>=1.23,<2"))),
    "saved_model": ("saved_model", ()),
    "litert": ("model.tflite", (("ai_edge_litert", "ai-edge-litert>=2.1,<3"),)),
}

# The largest difference of a probability that other kernels, which add up in another order, may cause.
TOLERANCE = 1e-4


def load_onnx(path):
    """Return a function from float32 pictures (m, 64, 64, 3) to outputs (m, k), run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pictures: session.run(None, {name: pictures})[0]


def load_saved_model(path):
    """The same, run by TensorFlow, which needs no Keras for it."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda pictures: loaded.serve(tf.constant(pictures)).numpy()


def load_litert(path):
    """The same, run by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))

    def answer(pictures):
        place = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(place, pictures.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, pictures)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return answer


LOADERS = {"onnx": load_onnx, "saved_model": load_saved_model, "litert": load_litert}


@contextlib.contextmanager
def silence():
    """Keep what the converters say to themselves off the screen, unless they fail."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), utils.quiet_start():
            warnings.simplefilter("ignore")
            yield
    except BaseException:
        print(said.getvalue(), end="")
        raise


def export_model(model, formats, output_dir):
    """Export a model, load every result in its own runtime, compare the answers.

    Args:
        model: trained Keras model, float32.
        formats: names from `FORMATS`.
        output_dir: folder for the results.

    Returns:
        dict: of each format the largest difference of a probability.

    Raises:
        InputError: a package is missing, or an exported network answers
            otherwise than the original; then no result is left behind.
    """
    for name in formats:
        for module, package in FORMATS[name][1]:
            runs.require(module, f"--export {name}", package)
    output_dir = runs.prepare_output_dir(output_dir)
    # Whatever the network is for: on coloured squares, too, two runtimes must agree. One picture alone, and several.
    size = model.input_shape[1:]
    squares = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.float32)
    pictures = squares.repeat(size[0] // 8, axis=1).repeat(size[1] // 8, axis=2)
    expected = np.asarray(model.predict_on_batch(pictures))
    differences = {}
    for name in formats:
        path = output_dir / FORMATS[name][0]
        with runs.unfinished(path) as aside:
            with silence():
                model.export(aside, format="tf_saved_model" if name == "saved_model" else name, verbose=False)
                answer = LOADERS[name](aside)
                found = np.concatenate([answer(pictures[:1]), answer(pictures[1:])])
            difference = float(np.abs(found - expected).max())
            if not difference <= TOLERANCE:
                raise utils.InputError(f"--export {name}: the exported network must answer like the original, to "
                                       f"{TOLERANCE:g}. Received: a difference of {difference:.2g}")
        print(f"Saved {path}: answers like the original, largest difference {difference:.1e} on {len(pictures)} "
              f"pictures; it takes float32 (batch, {', '.join(map(str, size))}), RGB 0-255")
        differences[name] = difference
    return differences
