"""The networks in NumPy: the answers of Keras, without importing it, and Keras's for all that is not known."""

import csv
import io
import re
import shutil
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights
from PIL import Image

import happy_sequential
import signs_functional
from datasets import HAPPY, SIGNS
from resnet_utils import ResNet50
from support import cli
from support.evaluation.outputs import class_probabilities, features, logits, softmax
from support.prediction import answers as prediction
from support.prediction.numpy_inference import Network
from support.prediction.trained_model import load_keras_model

NETWORKS = {
    "happy_sequential": happy_sequential.build_model,
    "signs_functional": signs_functional.build_model,
    "signs_resnet50": lambda classes=6: ResNet50(classes=classes, identity_blocks=(1, 0, 2, 0)),
}


@pytest.mark.parametrize("classes", [2, 6])
@pytest.mark.parametrize("script", NETWORKS)
def test_features_and_probabilities_are_those_of_keras(script, classes, tmp_path):
    model, rng = NETWORKS[script](classes), np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
    images = rng.integers(0, 256, (9, 64, 64, 3), np.uint8)
    images[0] //= 4  # a dark one, so that not all are alike
    expected, head = features(model, images), model.layers[-1]
    kernel, bias = head.get_weights()
    # Differences of about 1 between the logits: certainty would hide mistakes.
    head.set_weights([kernel / np.std((expected - expected.mean(axis=0)) @ kernel), bias])
    model.save(tmp_path / "model.keras")
    network = Network(tmp_path / "model.keras")
    found = features(network, images)
    assert found.dtype == np.float32 and expected.std(axis=0).mean() > 0.01 * expected.mean()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
    wanted = class_probabilities(model.predict_on_batch(images))
    np.testing.assert_allclose(softmax(logits(network, found)), wanted, rtol=0, atol=1e-4)
    assert 0.01 < wanted.std(axis=0).max()
    # An image alone gets what it gets among others.
    np.testing.assert_allclose(features(network, images[4:5])[0], found[4], rtol=1e-4, atol=1e-5 * expected.max())
    assert (network.name, network.input_shape, network.output_shape) == (
        *(model.name, (None, 64, 64, 3)),
        (None, head.units),
    )


def read_table(folder):
    with open(folder / "predictions" / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def model_of(tmp_path):
    """Return a function that gives a trained model of a script in `folder`."""

    def save(script, folder):
        folder.mkdir(exist_ok=True)
        if script == "signs_resnet50":  # no weights come with it
            keras.utils.set_random_seed(1)
            ResNet50().save(folder / "model.keras")
        else:
            shutil.copy(ROOT / "weights" / f"{script}.keras", folder / "model.keras")
        return folder

    return save


@pytest.mark.parametrize("script", NETWORKS)
def test_predict_imports_neither_tensorflow_nor_keras(script, model_of, tmp_path):
    Image.effect_mandelbrot((90, 80), (-3, -2.5, 2, 2.5), 100).save(tmp_path / "one.png")
    command = [sys.executable, "-X", "importtime", ROOT / f"{script}.py", "--output-dir", model_of(script, tmp_path)]
    process = subprocess.run([*command, "--predict", tmp_path / "one.png"], capture_output=True, text=True)
    imported = set(re.findall(r"^import time: .*\| +(\w+)", process.stderr, re.M))
    assert process.returncode == 0 and "\none.png " in process.stdout, process.stderr
    assert {"support", "numpy", "h5py", "matplotlib"} <= imported
    assert not imported & {"tensorflow", "keras", "jax", "torch"}


def arguments(script, folder, images, *options):
    """Return the parsed command line of --predict."""
    parser = cli.ScriptParser("", script, epochs=1, batch_size=1, learning_rate=1)
    task = HAPPY if script == "happy_sequential" else SIGNS
    parser.set_defaults(script=script, task=task, network=script, own_options=[])
    return parser.parse_args(["--output-dir", str(folder), "--predict", str(images), *options])


@pytest.mark.parametrize("options", [[], ["--tta"]], ids=["alone", "tta"])
@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_both_ways_write_the_same_table(script, options, model_of, tmp_path, monkeypatch, capsys):
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for number in range(5):
        noise = Image.fromarray(rng.integers(0, 256, (3 + number, 3, 3), np.uint8))
        noise.resize((150, 100), Image.Resampling.BICUBIC).save(images / f"{number}.png")
    (images / "5.png").write_text("not an image")
    tables, printed, started = [], [], []
    monkeypatch.setattr(prediction, "start_keras", lambda *args, **options: started.append(1))
    for limit in (prediction.FEW_FOR_NUMPY, 0):
        monkeypatch.setattr(prediction, "FEW_FOR_NUMPY", limit)
        assert prediction.predict(arguments(script, model_of(script, tmp_path / "out"), images, *options)) == 1
        tables.append(read_table(tmp_path / "out"))
        printed.append([line for line in capsys.readouterr().out.splitlines() if not line.startswith("Device: ")])
    assert started == [1] and printed[0] == printed[1] and len(tables[0]) == len(tables[1]) == 6
    for ours, theirs in zip(*tables):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key.startswith("probability ") and value:
                assert float(ours[key]) == pytest.approx(float(value), abs=1e-4)
            else:
                assert ours[key] == value


def test_kernels_can_be_rounded_to_16_bits_as_in_the_live_page(tmp_path):
    model = signs_functional.build_model()
    model.save(tmp_path / "model.keras")
    exact, rounded = Network(tmp_path / "model.keras"), Network(tmp_path / "model.keras", np.float16)
    for one, other in zip(exact.get_weights(), rounded.get_weights()):
        assert other.dtype == np.float32
        np.testing.assert_array_equal(other, one.astype(np.float16) if one.ndim > 1 else one)
    assert any((one != other).any() for one, other in zip(exact.get_weights(), rounded.get_weights()))


# ------------------------------------------------------------------ what is left to Keras

layers = keras.layers
OTHER_LAYERS = {
    "another layer": lambda x: layers.LayerNormalization()(x),
    "dilation": lambda x: layers.Conv2D(3, 3, dilation_rate=2)(x),
    "groups": lambda x: layers.Conv2D(3, 3, groups=3)(x),
    "an activation": lambda x: layers.Conv2D(3, 3, activation="relu")(x),
    "padded pooling": lambda x: layers.MaxPooling2D(3, padding="same")(x),
    "another axis": lambda x: layers.BatchNormalization(axis=1)(x),
    "no scale": lambda x: layers.BatchNormalization(scale=False)(x),
    "a slope": lambda x: layers.ReLU(negative_slope=0.1)(x),
    "16 bits": lambda x: layers.Conv2D(3, 3, dtype="mixed_bfloat16")(x),
    "three paths": lambda x: layers.Add()([x, x, x]),
    "two shapes": lambda x: layers.Add()([x, layers.Conv2D(1, 1)(x)]),
    "dropout that stays on": lambda x: layers.Dropout(0.5)(x, training=True),
    "a model inside": lambda x: keras.Sequential([layers.Conv2D(3, 3)])(x),
    "an operation": lambda x: x + x,
    "a layer of numbers": lambda x: layers.Dense(3)(x),
    "no bias": lambda x: layers.Conv2D(3, 3)(x),
}


def network(middle, bias=True):
    """Return a network of the scripts' input and output with a layer in the middle."""
    inputs = layers.Input((64, 64, 3))
    outputs = layers.Dense(6, use_bias=bias)(layers.Flatten()(middle(inputs)))
    return keras.Model(inputs, outputs, name="signs_functional")


@pytest.mark.parametrize("kind", OTHER_LAYERS)
def test_a_network_that_is_not_known_exactly_is_left_to_keras(kind, tmp_path):
    model, loaded = network(OTHER_LAYERS[kind], bias=kind != "no bias"), []
    model.save(tmp_path / "model.keras")
    with pytest.raises((ValueError, KeyError, TypeError)):
        Network(tmp_path / "model.keras")
    prediction._load_in_numpy(lambda path: loaded.append(load_keras_model(path)), tmp_path / "model.keras")
    assert isinstance(*loaded, keras.Model)


def rewrite(path, function):
    """Change the weights in a `.keras` file with `function(h5py.File)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(members["model.weights.h5"])
    with h5py.File(content, "r+") as file:
        function(file)
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in {**members, "model.weights.h5": content.getvalue()}.items():
            archive.writestr(name, member)


def replaced(**options):
    """Return a function that replaces the kernel of the convolution in a file."""

    def replace(file):
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars"].create_dataset("0", **options)

    return replace


def linked(file):
    del file["layers/conv2d/vars/0"]
    file["layers/conv2d/vars/0"] = h5py.ExternalLink("other.h5", "kernel")


KERNEL = np.zeros((3, 3, 3, 4), np.float32)
FAULTS = {
    "another shape": replaced(data=KERNEL[..., :3]),
    "compressed": replaced(data=KERNEL, compression="gzip"),
    "never written": replaced(shape=(4096,) * 4, dtype="f4"),
    "integers": replaced(data=KERNEL.astype(int)),
    "external": replaced(shape=KERNEL.shape, dtype="f4", external=[("other.bin", 0, h5py.h5f.UNLIMITED)]),
    "a link to another file": linked,
    "no names": lambda file: file["layers/conv2d/vars"].attrs.pop("name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_weights_that_keras_would_not_have_saved_are_refused(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as file:
        file["kernel"] = KERNEL
    (tmp_path / "other.bin").write_bytes(KERNEL.tobytes())
    path = tmp_path / "model.keras"
    network(lambda x: layers.Conv2D(4, 3)(x)).save(path)
    assert Network(path).output_shape == (None, 6)
    rewrite(path, FAULTS[fault])
    with pytest.raises((ValueError, KeyError, OSError)):
        Network(path)


def test_keras_answers_after_all_for_a_network_of_other_layers(tmp_path, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(prediction, "start_keras", lambda *args, **options: started.append(1))
    network(lambda x: layers.ReLU(negative_slope=0.1)(layers.AveragePooling2D(8)(x))).save(tmp_path / "model.keras")
    Image.new("RGB", (70, 70)).save(tmp_path / "one.png")
    assert prediction.predict(arguments("signs_functional", tmp_path, tmp_path / "one.png")) == 0
    assert started == [1] and "\none.png " in capsys.readouterr().out
    (row,) = read_table(tmp_path)
    model = load_keras_model(tmp_path / "model.keras")
    wanted = softmax(logits(model, features(model, np.zeros((1, 64, 64, 3), np.uint8))))[0]
    np.testing.assert_allclose([float(row[f"probability {name}"]) for name in SIGNS.class_names], wanted, atol=1e-4)
