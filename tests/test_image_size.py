"""--image-size and --no-flip: other sizes, from the reader to the prediction, and classes that have a side."""

import csv
import functools
import json
import zipfile

import conftest
import keras
import numpy as np
import pytest
from conftest import open_tiny_run, run_script, tiny_dataset, tiny_run
from PIL import Image

import happy_sequential
import signs_functional
import signs_resnet50
from basics.errors import InputError
from datasets import HAPPY, IMAGE_SIZES, SIGNS
from datasets.cache import Cache
from datasets.folders import load_parts
from datasets.groups import near_duplicate_groups
from datasets.hdf5 import load_h5
from datasets.images import read_image
from datasets.loading import load_signs_dataset, mix_synthetic
from datasets.pack import pack
from support.evaluation.outputs import features, logits, softmax
from support.export.formats import export_model
from support.prediction.answers import classify, ten_crop
from support.prediction.explain import grad_cam
from support.prediction.numpy_inference import Network
from support.prediction.trained_model import load_trained_model
from support.training.batches import Batches, name_of
from support.training.pretrained import load_initial_weights
from support.training.run import save_model

SIZES = [64, 96, 224]
RNG = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Return a folder of two classes, arrows to the left and to the right, 14 photographs each."""
    folder = tmp_path / "photos"
    for name, turn in ("left", 1), ("right", -1):
        (folder / name).mkdir(parents=True)
        for number in range(14):
            pixels = RNG.integers(0, 90, (240, 300, 3), np.uint8)
            rows, columns = np.mgrid[-120:120, -150:150]
            pixels[np.abs(rows) < 60 + turn * columns] += RNG.integers(60, 160, 3).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def image_files(tmp_path):
    """Return a function that writes .h5 files of random images with some side and classes."""

    def write(size, test_size=None, classes=SIGNS.class_names, task="signs"):
        y = np.arange(24) % len(classes)
        for part, side in ("train", size), ("test", test_size or size):
            x = RNG.integers(0, 256, (24, side, side, 3), np.uint8)
            pack({part: (x, y)}, classes, tmp_path / f"{part}_{task}.h5")
        return tmp_path

    return write


def images_of(size, count=3):
    return RNG.integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_a_folder_is_read_in_the_wanted_size_and_cached_by_size(photos, tmp_path, size):
    caches = tmp_path / "cache"
    for cache_dir in (None, caches, caches):
        own = load_parts(photos, cache_dir=cache_dir, size=size)
        assert own.train_x.shape[1:] == own.train_x[:2].shape[1:] == own.test_x[0].shape == (size, size, 3)
        expected = [read_image(path, size) for path in own.train_x.paths[:3]]
        np.testing.assert_array_equal(own.train_x[:3], expected)
        np.testing.assert_array_equal(own.train_x.join(own.test_x).take(np.array([0, 1]))[:], expected[:2])


def test_each_size_has_its_own_cache(photos, tmp_path):
    for size in (64, 96, 64):
        load_parts(photos, cache_dir=tmp_path / "cache", size=size)
    paths = sorted((tmp_path / "cache").iterdir(), key=lambda path: path.stat().st_size)
    assert len(paths) == 2 and paths[1].stem == f"{paths[0].stem}_96"
    assert Cache(paths[1], 96)[[0]].shape == (1, 96, 96, 3)
    with pytest.raises(ValueError, match="not a cache"):
        Cache(paths[1])


def test_the_size_of_h5_files_is_kept_and_another_one_refused(image_files, capsys):
    folder = image_files(96)
    data = load_signs_dataset(data_dir=folder)
    assert data.image_size == 96 and data.test_x.shape[1:] == (96, 96, 3)
    assert load_signs_dataset(data_dir=folder, image_size=96).image_size == 96
    with pytest.raises(InputError, match="--image-size 64: the images in .*train_signs.h5 have 96x96 pixels. Drop it"):
        load_signs_dataset(data_dir=folder, image_size=64)
    # SYNTHETIC images have 64x64 pixels.
    x, _, synthetic = mix_synthetic(data, data.train_x, data.train_y, dry_run=True)
    assert x is data.train_x and synthetic == 0
    assert "No SYNTHETIC images are mixed in: they have 64x64 pixels" in capsys.readouterr().out


def test_training_and_test_images_of_two_sizes_are_refused(image_files):
    with pytest.raises(InputError, match="train_signs.h5 have 96x96 pixels, and images in .*test_signs.h5 64x64"):
        load_signs_dataset(data_dir=image_files(96, 64))


@pytest.mark.parametrize("shape", [(100, 100), (64, 96), (288, 288), (16, 16)], ids=str)
def test_h5_files_of_other_shapes_are_refused(write_h5, tmp_path, shape):
    path = write_h5(tmp_path / "train_signs.h5", x=np.ones((12, *shape, 3), np.uint8))
    with pytest.raises(InputError, match="RGB images of 64x64 pixels, or another multiple of 32 up to 256"):
        load_h5(path, "train")


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_near_duplicates_are_found_in_images_of_any_size(size):
    x = RNG.integers(0, 256, (3, 8, 8, 3), np.uint8).repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    x[2] = 0.8 * x[0]
    groups = near_duplicate_groups(x)
    assert groups[0] == groups[2] != groups[1]


@pytest.mark.parametrize("size", [32, *SIZES, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", [
    happy_sequential,
    signs_functional,
    pytest.param(signs_resnet50, marks=pytest.mark.slow),
], ids=lambda script: script.__name__)  # fmt: skip
def test_numpy_computes_what_keras_does(script, size, tmp_path):
    model = script.build_model(3, image_size=size)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.linspace(0.5, 1.5, layer.moving_variance.shape[0]))
    model.save(tmp_path / "model.keras")
    network, images = Network(tmp_path / "model.keras"), images_of(size)
    assert network.input_shape == model.input_shape == (None, size, size, 3)
    expected = features(model, images)
    assert expected.shape[1] <= 2048
    np.testing.assert_allclose(features(network, images), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_networks_for_64_pixels_are_as_they_were(tmp_path):
    functional, resnet = signs_functional.build_model(), signs_resnet50.build_model()
    assert [layer.name for layer in functional.layers][-4:] == ["relu5", "flatten", "dropout", "digits"]
    assert resnet.get_layer("avg_pool").get_config()["pool_size"] == (2, 2)
    for model in functional, happy_sequential.build_model():
        model, metadata = load_trained_model(tmp_path, model.name, {"happy_sequential": HAPPY}.get(model.name, SIGNS))
        assert model.input_shape == (None, 64, 64, 3) and metadata.flip


def test_a_network_for_larger_images_takes_the_convolutions_that_ship(capsys):
    load_initial_weights(signs_functional.build_model(5, 96), "synthetic")
    assert "Weights: 10 layers from weights/, trained on SYNTHETIC images only" in capsys.readouterr().out


@pytest.mark.parametrize("size", [64, *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_a_network_of_any_size_is_trained_saved_exported_and_explained(size, tmp_path):
    model = signs_functional.build_model(3, size)
    model.compile("adam", "categorical_crossentropy")
    x, y = images_of(size, 8), np.eye(3, dtype=np.float32)[np.arange(8) % 3]
    augment = functools.partial(signs_functional.weak_augmentation, flip=False)
    batches = Batches([(1, (x, y), augment)], 1, 4, 1, 8)
    assert batches.rows == [("weak augmentation", 1, 1)]
    model.fit(batches.dataset(), steps_per_epoch=2, verbose=0)
    save = functools.partial(save_model, classes=("a", "b", "c"), data="folder", seed=1, dry_run=False)
    save(model, tmp_path / "model.keras", 1.0, x, x, flip=False)
    loaded, metadata = load_trained_model(tmp_path, "signs_functional", SIGNS)
    assert loaded.input_shape[1] == size and not metadata.flip
    found = classify(loaded, metadata, x[:, None])
    expected = softmax(logits(model, features(model, x)))
    np.testing.assert_allclose([prediction.probabilities for prediction in found], expected, atol=1e-4)
    differences = export_model(loaded, ["saved_model", "web"], tmp_path, metadata)
    assert set(differences) == {"saved_model", "web"}
    page = (tmp_path / "live.html").read_text(encoding="utf-8")
    assert f'id="seen" width="{size}" height="{size}"' in page and f"{size} × {size} pixels" in page
    assert f'"size": {size}' in page
    heatmap = grad_cam(loaded, x[0], 1)
    assert heatmap.shape[0] == heatmap.shape[1] >= 4


def test_nothing_is_mirrored_with_no_flip():
    image = images_of(64, 1)[0]
    assert len(ten_crop(image)) == 10
    crops = ten_crop(image, flip=False)
    assert len(crops) == 5
    np.testing.assert_array_equal(crops, ten_crop(image)[:5])
    # A bright left half stays on the left; the first images may have another background.
    halves = np.zeros((64, 64, 64, 3), np.uint8)
    halves[:, :, :32] = 200
    for script in happy_sequential, signs_functional, signs_resnet50:
        for augment in script.weak_augmentation, script.strong_augmentation:
            for flip in True, False:
                changed = np.asarray(augment(halves, np.array([1, 2], np.int64), flip=flip))[16:]
                bright_left = changed[:, :, :32].mean(axis=(1, 2, 3)) > changed[:, :, 32:].mean(axis=(1, 2, 3))
                assert 8 < bright_left.sum() < 40 if flip else bright_left.all(), (script.__name__, name_of(augment))


@pytest.mark.slow
@pytest.mark.parametrize("script, size", [("happy_sequential", 96), ("signs_functional", 224), ("signs_resnet50", 96)])
def test_a_script_trains_and_predicts_in_another_size(script, size, photos, tmp_path):
    out = tmp_path / "out"
    options = ["--data-dir", photos, "--dry-run", "--output-dir", out]
    if script == "signs_resnet50":
        options += ["--identity-blocks", 0, 1, 1, 0]  # a small one
    process = run_script(script, *options, "--image-size", size, "--no-flip")
    assert process.returncode == 0, process.stderr
    assert f"None, {size}, {size}, 3" in process.stdout
    settings = json.loads((out / "metrics.json").read_text())["settings"]
    assert (settings["image_size"], settings["flip"]) == (size, False)
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "image size" in report and f"{size} × {size} × 3" in report
    with zipfile.ZipFile(out / "model.keras") as file:
        assert json.loads(file.read("run_metadata.json"))["flip"] is False
    process = run_script(script, "--predict", photos / "left", "--tta", "--output-dir", out)
    assert process.returncode == 0, process.stderr
    with open(out / "predictions" / "predictions.csv", encoding="utf-8-sig") as file:
        assert len(list(csv.DictReader(file))) == 14
    assert Image.open(next((out / "predictions").glob("01_*.png"))).size == (size, size)


def test_a_run_is_not_resumed_in_another_size(tmp_path, monkeypatch):
    tiny_run(tmp_path, stop=(1, KeyboardInterrupt()))
    data = tiny_dataset()
    larger = data._replace(train_x=data.train_x.repeat(2, axis=1).repeat(2, axis=2))
    monkeypatch.setattr(conftest, "tiny_dataset", lambda: larger)
    with pytest.raises(InputError, match="had other settings: image_size was 64, now 128. .*drop --resume"):
        open_tiny_run(tmp_path, "--resume")


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--image-size", 100], "invalid choice"),
        (["--image-size", 512], "invalid choice"),
        (["--data", "synthetic", "--image-size", 96], "--image-size 96: the images in the SYNTHETIC set have 64x64"),
        (["--predict", "x.jpg", "--image-size", 96], "--image-size has no effect with --predict"),
    ],
    ids=str,
)
def test_sizes_that_cannot_be_had_are_refused(options, problem):
    process = run_script("signs_functional", *options)
    assert process.returncode and problem in process.stderr
