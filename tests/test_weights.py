"""ResNet50 from trained weights: Keras's own layout, our files, and what is refused."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import run_script
from keras.src.legacy.saving import legacy_h5_format

import cnn_utils as utils
from resnet_utils import IMAGENET_ADDRESS, IMAGENET_FILE, ResNet50, load_weights


def perturb(model, seed):
    """Random numbers for all weights, those of the batch normalisations, too; small enough for 50 layers."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) if w.name in ("gamma", "moving_variance")
                               else rng.normal(0, 0.05, w.shape) for w in layer.weights])
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the layout of Keras's ImageNet weights, and the model that wrote it."""
    import h5py

    path = tmp_path_factory.mktemp("published") / IMAGENET_FILE
    trained = perturb(keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3)), 1)
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, trained)
    return path, trained


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A trained network of three classes as .keras and as .weights.h5, and the model itself."""
    folder = tmp_path_factory.mktemp("ours")
    model = perturb(ResNet50(classes=3), 2)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return folder, model


def assert_equal_weights(model, trained, but=()):
    for layer in model.layers:
        if layer.weights and layer.name not in but:
            for found, expected in zip(layer.get_weights(), trained.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(found, expected, err_msg=layer.name)


def test_keras_weights_are_carried_over_with_their_normalisation(published):
    path, trained = published
    model = ResNet50()
    load_weights(model, str(path))
    assert_equal_weights(model, trained, but={"conv1_conv", "predictions"})
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    theirs, mine = (keras.Model(each.inputs[0], each.get_layer("conv1_relu").output) for each in (trained, model))
    expected = np.asarray(theirs(keras.applications.resnet50.preprocess_input(pixels.copy())))
    found = np.asarray(mine(pixels))
    # The outermost two rows and columns see the frame of zeros, which means another colour in each.
    inside = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-3, atol=1e-3 * expected.max())
    assert expected[inside].std() > 0.1


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_our_own_files_are_carried_over_whatever_their_classes(ours, name):
    folder, trained = ours
    same, other = ResNet50(classes=3), ResNet50(classes=6)
    head = other.layers[-1].get_weights()
    load_weights(same, folder / name)
    load_weights(other, folder / name)
    assert_equal_weights(same, trained)
    assert_equal_weights(other, trained, but={"predictions"})
    np.testing.assert_array_equal(other.layers[-1].get_weights()[0], head[0])


def test_what_is_no_weights_of_this_network_is_told_apart(ours, tmp_path):
    small = keras.Sequential([keras.layers.Input((64, 64, 3)), keras.layers.Conv2D(2, 3, name="conv1_conv"),
                              keras.layers.Flatten(), keras.layers.Dense(3)])
    small.save(tmp_path / "small.keras")
    small.save_weights(tmp_path / "small.weights.h5")
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "empty.weights.h5").write_bytes(b"")
    whole = (ours[0] / "model.weights.h5").read_bytes()
    (tmp_path / "cut.weights.h5").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "page.h5").write_text("<html>not found</html>")
    model = ResNet50()
    before = model.get_weights()
    for name, words in [("small.keras", "shapes"), ("small.weights.h5", "no weights that fit"),
                        ("text.keras", "Received: "), ("empty.weights.h5", "an empty file"),
                        ("cut.weights.h5", "truncated"), ("page.h5", "a web page"), ("absent.keras", "no such file"),
                        (".", "a folder")]:
        with pytest.raises(utils.InputError) as error:
            load_weights(model, tmp_path / name)
        assert words in str(error.value) and "expected weights of this network" in str(error.value), name
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_a_connection_it_says_where_the_file_belongs(monkeypatch):
    def fail(*arguments, **options):
        raise Exception(f"URL fetch failure on {IMAGENET_ADDRESS}: None -- [Errno -3] Temporary failure")

    monkeypatch.setattr("keras.src.applications.resnet.file_utils.get_file", fail)
    with pytest.raises(utils.InputError) as error:
        load_weights(ResNet50(), "imagenet")
    for words in (IMAGENET_ADDRESS, "models", "--weights FILE", "Received: URL fetch failure"):
        assert words in str(error.value)


def test_fine_tuning_trains_the_last_layer_first(published, tmp_path):
    process = run_script("signs_resnet50", "--dry-run", "--data", "synthetic", "--weights", published[0],
                         "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.index("Training the last layer") < process.stdout.index("Training all layers")
    with open(tmp_path / "history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["weights"] == str(published[0]) and len(metrics["weights_sha256"]) == 64


def test_a_frozen_layer_keeps_weights_and_averages():
    model = ResNet50()
    for layer in model.layers[:-1]:
        layer.trainable = False
    before = [layer.get_weights() for layer in model.layers]
    model.compile("sgd", "categorical_crossentropy")
    model.fit(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype("float32"),
              utils.one_hot(np.arange(8) % 6, 6), verbose=0)
    changed = [layer.name for layer, old in zip(model.layers, before)
               if any((a != b).any() for a, b in zip(old, layer.get_weights()))]
    assert changed == ["predictions"]
