"""Pretrained weights: loaded whole or refused with the reason, and trained in two phases."""

import csv
import hashlib
import json
import re
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights, run_script

from resnet_utils import ResNet50
from support.errors import InputError
from support.pretrained import IMAGENET_FILE, IMAGENET_URL, load_pretrained, load_weights_by_name


def randomised(model, seed=0):
    """Give every layer random weights, as if it was trained: fresh batch normalisations would hide a mistake."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(random_weights(layer, rng))
    return model


@pytest.fixture(scope="module")
def theirs():
    """The network of keras.applications, for images of any size."""
    return randomised(keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3)))


@pytest.fixture(scope="module")
def ours():
    """Our network, for four classes."""
    return randomised(ResNet50(classes=4), seed=1)


@pytest.fixture(scope="module")
def files(theirs, ours, tmp_path_factory):
    """Return a function that saves one of the two networks under a name, once, and returns the path."""
    folder = tmp_path_factory.mktemp("weights")

    def file(name):
        path = folder / name
        if path.exists():
            return path
        if name == IMAGENET_FILE:
            # The layout of the published file: layers in order, each a group that lists its arrays.
            with h5py.File(path, "w") as h5:
                layers = [layer for layer in theirs.layers if layer.weights]
                h5.attrs["layer_names"] = [layer.name.encode() for layer in layers]
                h5.attrs.update(backend=b"tensorflow", keras_version=b"2.2.4")
                for layer in layers:
                    group = h5.create_group(layer.name)
                    names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
                    group.attrs["weight_names"] = [weight.encode() for weight in names]
                    for weight, array in zip(names, layer.get_weights()):
                        group[weight] = array
        elif name.endswith(".keras"):
            (theirs if name.startswith("theirs") else ours).save(path)
        else:
            (theirs if name.startswith("theirs") else ours).save_weights(path)
        return path

    return file


def with_weights(path, **options):
    model = ResNet50(**options)
    load_pretrained(model, path)
    return model


def activations(model, pixels, start, end):
    return keras.Model(start(model), model.get_layer(end).output).predict(pixels, verbose=0)


def test_the_first_convolution_computes_the_same_from_our_pixels(theirs, files):
    pixels = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    expected = activations(
        theirs, keras.applications.resnet50.preprocess_input(pixels.copy()), lambda model: model.input, "conv1_relu"
    )
    found = activations(with_weights(files(IMAGENET_FILE)), pixels, lambda model: model.input, "conv1_relu")
    inside = np.s_[:, 2:-1, 2:-1]  # further out, the kernel reaches over the edge
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4 * expected.max())
    # There, theirs is padded with the mean colour and ours with middle grey: the results differ, but only a little.
    assert 0 < np.abs(found - expected).max() < 0.2 * expected.max()


def test_whole_stages_compute_the_same_as_those_of_keras_applications(theirs, files):
    model = with_weights(files(IMAGENET_FILE), input_shape=(96, 96, 3))
    pixels = np.random.default_rng(3).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    # Only theirs pads before the stem's pooling, so its windows are ours for an image shifted by two pixels.
    shifted = np.roll(pixels, (2, 2), axis=(1, 2))
    expected = activations(
        theirs,
        keras.applications.resnet50.preprocess_input(pixels.copy()),
        lambda model: model.input,
        "conv2_block3_out",
    )
    found = activations(model, shifted, lambda model: model.input, "conv2_block3_out")
    inside = np.s_[:, 6:17, 6:17]  # each of these numbers depends on 35 pixels
    assert np.std(expected[inside]) > 0.01 * expected.max()
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4 * expected.max())

    pooled = np.random.default_rng(4).uniform(0, 1, (2, 23, 23, 64)).astype("float32")
    expected, found = (
        activations(network, pooled, lambda model: model.get_layer("pool1_pool").output, "conv5_block3_out")
        for network in (theirs, model)
    )
    assert np.std(expected) > 0.01 * expected.max()
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


@pytest.mark.parametrize("name", ["ours.keras", "ours.weights.h5"])
def test_our_own_file_is_loaded_whole_or_without_the_last_layer_if_the_classes_differ(ours, files, name, capsys):
    expected = ours.get_weights()  # the last two belong to the last layer
    for classes, same in ((4, len(expected)), (6, len(expected) - 2)):
        got = with_weights(files(name), classes=classes).get_weights()
        assert len(got) == len(expected) and got[-1].shape == (classes,)
        assert all(map(np.array_equal, got[:same], expected[:same]))
    printed = capsys.readouterr().out
    assert re.search(r"Weights: 107 layers from .*including the last", printed)
    assert re.search(r"Weights: 106 layers from .*all but the last,", printed)


def saved(model, path):
    model.save(path)
    return path


def altered(path, to, change):
    to.write_bytes(change(path.read_bytes()))
    return to


@pytest.mark.parametrize(
    "make, received",
    [
        (
            lambda files, folder: altered(files("ours.keras"), folder / "cut.keras", lambda data: data[:100_000]),
            "cannot be opened: a zip archive (100,000 bytes)",
        ),
        (
            lambda files, folder: altered(
                files("ours.weights.h5"), folder / "cut.weights.h5", lambda data: data[:100_000]
            ),
            "a damaged or truncated HDF5 file",
        ),
        (
            lambda files, folder: altered(
                files(IMAGENET_FILE), folder / IMAGENET_FILE, lambda data: b"<!doctype html>"
            ),
            "a web page (15 bytes)",
        ),
        (lambda files, folder: altered(files("ours.keras"), folder / "empty.keras", lambda data: b""), "an empty file"),
        (lambda files, folder: altered(files("ours.keras"), folder / "model.pt", lambda data: data), "model.pt"),
        (lambda files, folder: files("theirs.keras"), "1 missing (normalise)"),
        (lambda files, folder: files("theirs.weights.h5"), "1 missing (normalise)"),
        # Ours in place of theirs: one layer too many.
        (lambda files, folder: saved(ResNet50(), folder / "whole.h5"), "expected 106 layers, found 107"),
        (
            lambda files, folder: saved(
                keras.Sequential(
                    [keras.layers.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(6, name="mine")]
                ),
                folder / "other.keras",
            ),
            "107 missing (conv1_bn, conv1_conv, conv2_block1_0_bn, ...), 1 unknown (mine)",
        ),
        (
            lambda files, folder: saved(
                keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x + 1)]),
                folder / "code.keras",
            ),
            "Lambda",
        ),
    ],
)
def test_any_other_file_is_refused_with_what_it_is(files, tmp_path, make, received):
    path = make(files, tmp_path)
    with pytest.raises(InputError) as refused:
        with_weights(path)
    message = str(refused.value)
    assert received in message.split("Received: ")[1] and str(path) in message and "\n" not in message


def test_another_variant_is_refused_and_named(files, capsys):
    with pytest.raises(InputError, match="--identity-blocks 2 3 5 3.* 6 missing .conv5_block4_1_bn, "):
        with_weights(files("ours.weights.h5"), identity_blocks=(2, 3, 5, 3))
    with pytest.raises(InputError, match="Received: 6 unknown .conv4_block6_1_bn, "):
        with_weights(files("ours.keras"), identity_blocks=(2, 3, 4, 2))
    capsys.readouterr()
    with pytest.raises(InputError, match="imagenet is the ResNet-50 .*Received: 2 3 5 3"):
        with_weights("imagenet", identity_blocks=[2, 3, 5, 3])
    assert "Downloading" not in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused():
    network = ResNet50()
    stored = {layer.name: layer.get_weights() for layer in network.layers}
    stored["conv3_block1_2_conv"][1][7] = np.nan
    with pytest.raises(InputError, match="Received: NaN or infinity in conv3_block1_2_conv"):
        load_weights_by_name(network, stored, "diverged.keras")


def test_offline_the_message_says_how_to_place_the_file_by_hand(tmp_path, monkeypatch):
    # An empty cache, and a proxy that does not answer.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keras").mkdir()
    (tmp_path / "metrics.json").write_text('{"seed": 1000}')
    process = run_script(
        "signs_resnet50", "--dry-run", "--data", "synthetic", "--weights", "imagenet", "--output-dir", tmp_path
    )
    assert process.returncode == 2
    message = process.stderr.strip().splitlines()[-1]
    assert f"offline? Fetch {IMAGENET_URL} " in message and "Traceback" not in process.stderr
    assert f"Downloading data from {IMAGENET_URL}\n" in process.stdout  # the address that Keras uses
    assert f"put it into {tmp_path / 'keras' / 'models'} under the same name" in message and "--weights FILE" in message
    assert (tmp_path / "metrics.json").exists()  # the earlier run was not archived for nothing


# Runs the script, and prints after each `fit` which layers have changed.
WATCHED = """
import sys, keras, numpy as np
sys.path.insert(0, {root!r})
import signs_resnet50
from support.errors import run_main
fit = keras.Model.fit

def watched(model, *arguments, **options):
    before = {{layer.name: layer.get_weights() for layer in model.layers if layer.weights}}
    done = fit(model, *arguments, **options)
    changed = [name for name, weights in before.items()
               if not all(map(np.array_equal, weights, model.get_layer(name).get_weights()))]
    print("Changed:", len(changed), *changed[:1], *changed[-1:])
    return done

keras.Model.fit = watched
run_main(signs_resnet50.main)
"""


def test_from_a_file_the_last_layer_is_trained_first_and_then_all(files, tmp_path):
    path = files(IMAGENET_FILE)
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            WATCHED.format(root=str(ROOT)),
            "--dry-run",
            "--data",
            "synthetic",
            "--weights",
            path,
            "--output-dir",
            tmp_path,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    changed = [line for line in process.stdout.splitlines() if line.startswith("Changed: ")]
    assert changed == ["Changed: 1 predictions predictions", "Changed: 107 conv1_conv predictions"]
    with open(tmp_path / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["weights"] == IMAGENET_FILE and metrics["epochs"] == 4
    assert metrics["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # The result is a whole model again: nothing is frozen, and it can be a start itself.
    model = keras.models.load_model(tmp_path / "model.keras")
    assert all(layer.trainable for layer in model.layers)
    with_weights(tmp_path / "model.keras")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--weights", "no/such.keras"], "'no/such.keras', which does not exist"),
        (["--weights", ROOT], "which is not a file"),
        (["--weights", "imagenet", "--epochs", "1"], "--epochs of at least 2. Received: 1"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_at_once(arguments, named):
    process = run_script("signs_resnet50", *arguments)
    assert process.returncode == 2
    assert named in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr


# ----------------------------------------------------- the weights that come with the project

SHIPPED = {"happy_sequential": ("not smiling", "smiling"), "signs_functional": ("0", "1", "2", "3", "4", "5")}


def test_the_weights_have_the_hashes_beside_them_and_are_small():
    lines = (ROOT / "weights" / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split() for line in lines)}
    assert set(listed) == {f"{script}.keras" for script in SHIPPED}
    for name, digest in listed.items():
        content = (ROOT / "weights" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest and len(content) <= 2_000_000


@pytest.mark.parametrize("script", SHIPPED)
def test_the_weights_are_right_about_most_synthetic_test_images(script, tmp_path):
    from datasets.hdf5 import load_h5
    from datasets.synthetic import render_dataset
    from support.calibration import class_probabilities
    from support.trained_model import load_trained_model

    model, metadata = load_trained_model(tmp_path, script, SHIPPED[script])
    assert metadata["data"] == "synthetic" and tuple(metadata["classes"]) == SHIPPED[script]
    x, y, _ = load_h5(render_dataset(script.split("_")[0])[1], "test")
    predictions = class_probabilities(model.predict_on_batch(x.astype(np.float32))).argmax(axis=1)
    assert (predictions == y).mean() > 0.9


def test_a_copy_of_a_model_is_the_same_each_time_and_keeps_its_answers(tmp_path):
    from weights.__main__ import copy_model

    model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 8)), np.ones((4, 2)), verbose=0)
    model.save(tmp_path / "model.keras")
    for name in ("first.keras", "second.keras"):
        copy_model(tmp_path / "model.keras", tmp_path / name)
    assert (tmp_path / "first.keras").read_bytes() == (tmp_path / "second.keras").read_bytes()
    copy = keras.models.load_model(tmp_path / "first.keras")
    assert not copy.compiled
    x = np.random.default_rng(0).normal(size=(5, 8))
    np.testing.assert_allclose(copy(x), model(x), atol=0.01)
