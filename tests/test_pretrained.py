"""Pretrained weights: loaded whole or refused with the reason; the last layer is trained first."""

import csv
import hashlib
import importlib
import json
import re

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights, run_code, run_script

import happy_sequential
from basics.errors import InputError
from datasets import HAPPY, SIGNS
from resnet_utils import ResNet50
from support.evaluation.outputs import features
from support.training.pretrained import (
    IMAGENET_FILE,
    IMAGENET_URL,
    load_initial_weights,
    load_weights_by_name,
    takes_imagenet_pixels,
)


def randomized(model, seed=0):
    """Give every layer random weights, as if it was trained: fresh batch normalizations would hide a mistake."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(random_weights(layer, rng))
    return model


@pytest.fixture(scope="module")
def theirs():
    """The network of keras.applications, for images of any size."""
    return randomized(keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3)))


@pytest.fixture(scope="module")
def ours():
    """Our network, for four classes."""
    return randomized(ResNet50(classes=4), seed=1)


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
    load_initial_weights(model, path)
    return model


@pytest.mark.parametrize("size", [64, 96, *(pytest.param(size, marks=pytest.mark.slow) for size in (160, 224))])
def test_features_equal_those_of_keras_applications(files, size):
    theirs = keras.applications.ResNet50(
        weights=str(files(IMAGENET_FILE)), include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    model = with_weights(files(IMAGENET_FILE), input_shape=(size, size, 3), imagenet=True)
    pixels = np.random.default_rng(2).integers(0, 256, (3, size, size, 3)).astype("float32")
    pixels[0] //= 4  # a dark image
    expected = theirs.predict(keras.applications.resnet50.preprocess_input(pixels.copy()), verbose=0)
    found = features(model, pixels)
    assert expected.std(axis=0).mean() > 0.01 * expected.max()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [IMAGENET_FILE, "theirs.keras", "theirs.weights.h5"])
def test_weights_of_keras_applications_are_known_in_every_file(theirs, files, name, tmp_path):
    assert takes_imagenet_pixels(files(name)) and takes_imagenet_pixels("imagenet")
    model = with_weights(files(name), imagenet=True)
    kernel, bias = model.get_layer("conv1_conv").get_weights()
    blue_green_red, expected_bias = theirs.get_layer("conv1_conv").get_weights()
    np.testing.assert_array_equal(kernel, blue_green_red[:, :, ::-1])
    np.testing.assert_array_equal(bias, expected_bias)
    # What was trained further keeps its pixels, and does not get into a network that takes others.
    for file in ("model.keras", "model.weights.h5"):
        (model.save if file == "model.keras" else model.save_weights)(tmp_path / file)
        assert takes_imagenet_pixels(tmp_path / file)
        again = with_weights(tmp_path / file, imagenet=True)
        np.testing.assert_array_equal(again.get_layer("conv1_conv").get_weights()[0], kernel)
        with pytest.raises(InputError, match=r"1 missing .normalize., 1 unknown .subtract_mean."):
            with_weights(tmp_path / file)


@pytest.mark.parametrize("source", ["random", "ours.keras", "ours.weights.h5", "cut.keras", "cut.weights.h5"])
def test_other_weights_take_our_pixels(files, tmp_path, source):
    if source.startswith("cut"):
        source = altered(files(source.replace("cut", "ours")), tmp_path / source, cut)
    assert not takes_imagenet_pixels(files(source) if str(source).startswith("ours") else source)


@pytest.mark.parametrize("name", ["ours.keras", "ours.weights.h5"])
def test_our_own_file_is_loaded_whole_or_without_the_last_layer_if_the_classes_differ(ours, files, name, capsys):
    expected = ours.get_weights()  # the last two belong to the last layer
    for classes, same in ((4, len(expected)), (6, len(expected) - 2)):
        got = with_weights(files(name), classes=classes).get_weights()
        assert len(got) == len(expected) and got[-1].shape == (classes,)
        assert all(map(np.array_equal, got[:same], expected[:same]))
    printed = capsys.readouterr().out
    assert re.search(rf"Weights: 107 layers from .*{name}\n", printed)
    assert re.search(r"Weights: 106 layers from .*; these start random: predictions\n", printed)


# ------------------------------------------------------------------- files that are refused


def altered(path, to, change):
    to.write_bytes(change(path.read_bytes()))
    return to


def cut(content):
    return content[:100_000]


def cut_model(files, folder):
    return altered(files("ours.keras"), folder / "cut.keras", cut)


def cut_weights(files, folder):
    return altered(files("ours.weights.h5"), folder / "cut.weights.h5", cut)


def web_page(files, folder):
    return altered(files(IMAGENET_FILE), folder / IMAGENET_FILE, lambda content: b"<!doctype html>")


def empty_file(files, folder):
    return altered(files("ours.keras"), folder / "empty.keras", lambda content: b"")


def unknown_type(files, folder):
    return altered(files("ours.keras"), folder / "model.pt", lambda content: content)


def their_model(files, folder):
    return files("theirs.keras")


def their_weights(files, folder):
    return files("theirs.weights.h5")


def one_layer_too_many(files, folder):
    """Our network where that of keras.applications belongs."""
    ResNet50().save(folder / "whole.h5")
    return folder / "whole.h5"


def other_network(files, folder):
    layers = [keras.layers.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(6, name="mine")]
    keras.Sequential(layers).save(folder / "other.keras")
    return folder / "other.keras"


def with_code(files, folder):
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: x + 1)]).save(folder / "code.keras")
    return folder / "code.keras"


@pytest.mark.parametrize(
    "make, reason",
    [
        (cut_model, "it is a zip archive, 100,000 bytes"),
        (cut_weights, "it is a damaged or truncated HDF5 file"),
        (web_page, "it is a web page, 15 bytes"),
        (empty_file, "it is an empty file"),
        (unknown_type, "is of an unknown type"),
        (their_model, "1 missing (normalize), 1 unknown (subtract_mean)"),
        (their_weights, "1 missing (normalize), 1 unknown (subtract_mean)"),
        (one_layer_too_many, "expected 106 layers, found 107"),
        (other_network, "107 missing (conv1_bn, conv1_conv, conv2_block1_0_bn, ...), 1 unknown (mine)"),
        (with_code, "Lambda"),
    ],
)
def test_any_other_file_is_refused_with_what_it_is(files, tmp_path, make, reason):
    path = make(files, tmp_path)
    with pytest.raises(InputError) as refused:
        with_weights(path)
    message = str(refused.value)
    assert message.startswith(f"--weights {path} ") and reason in message and ". Give " in message
    assert "\n" not in message


@pytest.mark.slow
def test_another_variant_is_refused_and_named(files, capsys):
    with pytest.raises(InputError, match="--identity-blocks 2 3 5 3.* 6 missing .conv5_block4_1_bn, "):
        with_weights(files("ours.weights.h5"), identity_blocks=(2, 3, 5, 3))
    with pytest.raises(
        InputError, match="blocks 2 3 4 2: its layers differ, 6 unknown .conv4_block6_1_bn, .*Give the --id"
    ):
        with_weights(files("ours.keras"), identity_blocks=(2, 3, 4, 2))
    capsys.readouterr()
    with pytest.raises(InputError, match="fits only the ResNet-50 .*got 2 3 5 3.*Leave --identity-blocks at 2 3 5 2"):
        with_weights("imagenet", identity_blocks=[2, 3, 5, 3])
    assert "Downloading" not in capsys.readouterr().out


def test_the_older_file_of_the_same_name_is_told_from_the_one_that_is_needed(tmp_path):
    """In 2017, the layers of Keras's ResNet50 had other names and another order."""
    path = tmp_path / IMAGENET_FILE
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"conv1", b"bn_conv1", b"res2a_branch2a", b"bn2a_branch2a"]
        for name in ("input_1", "conv1", "bn_conv1", "res2a_branch2a", "bn2a_branch2a"):
            file.create_group(name).attrs["weight_names"] = []
    with pytest.raises(InputError) as refused:
        with_weights(path)
    assert str(refused.value) == (
        f"--weights {path} cannot be used: it is a file of 2017 for another ResNet50, which may have the same name. "
        f"Give the file of {IMAGENET_URL}"
    )


def test_the_file_of_lite0_is_refused_with_the_option_for_it():
    layers = {"stage1_block1_depthwise": [np.zeros((3, 3, 32, 1))]}
    for model in (happy_sequential.build_model(), ResNet50(identity_blocks=(0, 0, 0, 0))):
        with pytest.raises(InputError, match="The file holds EfficientNet-Lite0: give --weights lite0 instead"):
            load_weights_by_name(model, layers, "model.keras")


def test_weights_that_are_not_finite_are_refused():
    network = ResNet50()
    stored = {layer.name: layer.get_weights() for layer in network.layers}
    stored["conv3_block1_2_conv"][1][7] = np.nan
    with pytest.raises(InputError, match="NaN or infinite, in layer conv3_block1_2_conv"):
        load_weights_by_name(network, stored, "diverged.keras")


@pytest.mark.slow
def test_offline_the_message_says_how_to_place_the_file_by_hand(tmp_path, monkeypatch):
    # An empty cache, and a proxy that does not answer.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keras").mkdir()
    (tmp_path / "metrics.json").write_text('{"settings": {"seed": 1000}}')
    process = run_script(
        "signs_resnet50", "--dry-run", "--data", "synthetic", "--weights", "imagenet", "--output-dir", tmp_path
    )
    assert process.returncode == 2
    message = process.stderr.strip().splitlines()[-1]
    assert message.startswith("error: The ImageNet weights cannot be downloaded: ")
    assert f"offline, fetch {IMAGENET_URL} " in message and "Traceback" not in process.stderr
    assert f"Downloading data from {IMAGENET_URL}\n" in process.stdout  # the address that Keras uses
    assert f"put it into {tmp_path / 'keras' / 'models'} under the same name" in message and "--weights FILE" in message
    assert (tmp_path / "metrics.json").exists()  # the earlier run was not archived for nothing


# Runs the script, and prints after each `fit` which layers have changed.
WATCHED = """
import runpy, keras, numpy as np
fit = keras.Model.fit

def watched(model, *arguments, **options):
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    done = fit(model, *arguments, **options)
    changed = [name for name, weights in before.items()
               if not all(map(np.array_equal, weights, model.get_layer(name).get_weights()))]
    print("Changed:", len(changed), *changed[:1], *changed[-1:])
    return done

keras.Model.fit = watched
sys.argv[0] = "signs_resnet50.py"
runpy.run_module("signs_resnet50", run_name="__main__")
"""


@pytest.mark.slow
def test_from_a_file_the_last_layer_is_trained_first_and_then_the_last_stage(files, tmp_path):
    path = files(IMAGENET_FILE)
    arguments = ["--dry-run", "--data", "synthetic", "--weights", path, "--fine-tune", 2, "--output-dir", tmp_path]
    process = run_code(WATCHED, *arguments)
    assert process.returncode == 0, process.stderr
    changed = [line for line in process.stdout.splitlines() if line.startswith("Changed: ")]
    # In stage 5, ten convolutions and the new last layer learn; batch normalization does not.
    assert changed == ["Changed: 1 dense dense", "Changed: 11 conv5_block1_1_conv predictions"]
    with open(tmp_path / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3", "4", "5", "6"]
    settings = json.loads((tmp_path / "metrics.json").read_text())["settings"]
    assert settings["weights"] == IMAGENET_FILE and (settings["epochs"], settings["fine_tune"]) == (4, 2)
    assert settings["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # Another training can start from the result.
    with_weights(tmp_path / "model.keras", imagenet=True)


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--weights", "no/such.keras"], "('no/such.keras' does not exist)"),
        (["--weights", ROOT], f"({str(ROOT)!r} is not a file)"),
        (["--weights", "synthetic"], "('synthetic' is for the two small networks)"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_at_once(arguments, named):
    process = run_script("signs_resnet50", *arguments)
    assert process.returncode == 2
    assert named in process.stderr.splitlines()[-1] and "Traceback" not in process.stderr


# ----------------------------------------------------- the weights that come with the project

SHIPPED = {"happy_sequential": HAPPY, "signs_functional": SIGNS}


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
    from support.evaluation.outputs import class_probabilities
    from support.prediction.trained_model import load_trained_model

    model, metadata = load_trained_model(tmp_path, script, SHIPPED[script])
    assert metadata.data == "synthetic" and metadata.shows_task and metadata.feature_bank is not None
    x, y, _ = load_h5(render_dataset(SHIPPED[script].name)[1], "test")
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


def test_a_changed_network_starts_from_whatever_fits(capsys):
    """A student may leave out a block: the weights in weights/ fill the other layers."""
    model = happy_sequential.build_model()
    names = [layer.name for layer in model.layers if layer.name not in ("conv5", "bn5", "relu5")]
    shorter = keras.Sequential([model.inputs[0], *(model.get_layer(name) for name in names)], name=model.name)
    before = shorter.get_layer("conv1").get_weights()[0].copy()
    load_initial_weights(shorter, "synthetic")
    assert not np.array_equal(shorter.get_layer("conv1").get_weights()[0], before)
    assert "Weights: 13 layers from weights/" in capsys.readouterr().out


@pytest.mark.parametrize("script", SHIPPED)
def test_a_file_with_the_earlier_name_of_the_first_layer_fits(script, capsys):
    path = ROOT / "weights" / f"{script}.keras"
    names = [layer.name for layer in keras.models.load_model(path).layers]
    assert "normalise" in names and "normalize" not in names
    model = importlib.import_module(script).build_model()
    assert "normalize" in [layer.name for layer in model.layers]
    load_initial_weights(model, str(path))
    assert (
        f"Weights: {sum(bool(layer.weights) for layer in model.layers)} layers from {path}\n" in capsys.readouterr().out
    )
