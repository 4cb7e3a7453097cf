"""Export: every format is loaded again by its own runtime and compared."""

import importlib.util
import json
import os
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT, random_weights, run_script

import happy_sequential
import resnet_utils
import signs_functional
from basics.errors import InputError
from datasets import SIGNS
from datasets.hdf5 import load_h5
from datasets.loading import Dataset, Source
from datasets.synthetic import render_dataset
from support.cli import ScriptParser
from support.evaluation.outputs import class_probabilities
from support.export import formats
from support.export.formats import FORMATS, INT8_FILE, TOLERANCE, export_model, load_litert


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param.build_model()


@pytest.mark.parametrize("form", FORMATS)
def test_an_exported_network_predicts_like_the_original(model, form, tmp_path, capsys):
    name, load, packages = FORMATS[form]
    for module in packages:
        pytest.importorskip(module)
    assert export_model(model, [form], tmp_path)[form] <= TOLERANCE
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "largest difference" in printed and "float32 (batch, 64, 64, 3)" in printed
    # Loaded anew, as another program would, with images that the export did not use.
    images = np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(load(tmp_path / name)(images), model.predict_on_batch(images), atol=1e-4)


def int8_data(model, kind="synthetic"):
    """A data set of SYNTHETIC hands whose labels are the answers of the model."""
    x = load_h5(render_dataset("signs")[0], "train")[0][:120]
    y = class_probabilities(model.predict(x.astype(np.float32), verbose=0)).argmax(axis=1)
    source = Source(kind, ROOT / "train.h5", ROOT / "test.h5")
    return Dataset(SIGNS, x[:60], y[:60], x[60:], y[60:], SIGNS.class_names, source, {})


def check_int8(model, tmp_path, capsys, least):
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    data = int8_data(model)
    export_model(model, ["litert"], tmp_path, data=data)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"model.tflite", INT8_FILE}
    sizes = [(tmp_path / name).stat().st_size for name in (INT8_FILE, "model.tflite")]
    assert sizes[0] < 0.4 * sizes[1]
    interpreter = Interpreter(model_path=str(tmp_path / INT8_FILE))
    interpreter.allocate_tensors()
    # Only what comes in and goes out are floating-point numbers.
    types = [np.dtype(tensor["dtype"]) for tensor in interpreter.get_tensor_details()]
    assert types.count(np.float32) == 2 and types.count(np.int8) > 10
    answers = class_probabilities(load_litert(tmp_path / INT8_FILE)(data.test_x.astype(np.float32))).argmax(axis=1)
    right = (answers == data.test_y).mean()
    assert right >= least
    said = f"{right:.2%} of the 60 SYNTHETIC test images right, 100.00% in float32; {(answers != data.test_y).sum()} "
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_the_8_bit_network_is_small_and_answers_nearly_like_the_original(model, tmp_path, capsys):
    rng = np.random.default_rng(3)
    for layer in model.layers:
        layer.set_weights(random_weights(layer, rng))
    check_int8(model, tmp_path, capsys, least=0.8)


@pytest.mark.slow
def test_the_8_bit_resnet50_answers_nearly_like_the_original(tmp_path, capsys):
    keras.utils.set_random_seed(1)
    check_int8(resnet_utils.ResNet50(), tmp_path, capsys, least=0.8)


def test_the_data_of_the_run_are_found_again(tmp_path, capsys, write_h5):
    def find(*options, class_names=SIGNS.class_names):
        parser = ScriptParser("", "script", epochs=1, batch_size=1, learning_rate=1)
        parser.set_defaults(task=SIGNS)
        args = parser.parse_args(["--export", "litert", "--output-dir", str(tmp_path), *map(str, options)])
        return formats._load_data_of_run(args, class_names)

    assert find() is None
    said = capsys.readouterr().out
    assert "Skipped model_int8.tflite" in said and "Name their folder with --data-dir" in said
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train", "test"):
        write_h5(folder / f"{part}_signs.h5", part, y=np.arange(48) % 6, x=np.zeros((48, 64, 64, 3), np.uint8))
    named = find("--data-dir", folder)
    assert len(named.test_x) == 48 and "These are not the run's files" in capsys.readouterr().out
    settings = {"data_files": named.hashes, "fold": None}
    metrics = {"settings": settings, "training": {"data_dir": str(folder)}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert len(find().train_x) == 48 and "not the run's files" not in capsys.readouterr().out
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "settings": {**settings, "fold": "2/4"}}))
    assert [len(find().test_x), len(find().train_x)] == [12, 36]
    assert find(class_names=("a", "b")) is None
    said = capsys.readouterr().out
    assert "The classes of these images are 0, 1, 2, 3, 4, 5. The model knows a, b" in said


def test_other_predictions_are_refused_and_nothing_is_left(model, tmp_path, monkeypatch):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "earlier").write_text("an earlier export")
    outputs = model.output_shape[-1]
    monkeypatch.setattr(model, "predict_on_batch", lambda images: np.ones((len(images), outputs)))
    with pytest.raises(InputError, match="outputs of --export saved_model differ from the model's by .*not saved"):
        export_model(model, ["saved_model"], tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {".lock", "saved_model", "earlier"}


@pytest.mark.parametrize(
    "form, command", [("onnx", 'pip install "tf2onnx>='), ("litert", 'pip install "ai-edge-litert>=')]
)
def test_a_missing_package_is_named_before_anything_is_written(model, form, command, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError) as error:
        export_model(model, [form], tmp_path)
    assert command in str(error.value) and not set(os.listdir(tmp_path)) - {".lock"}


@pytest.mark.slow
def test_the_command_exports_a_trained_model(tmp_path):
    signs_functional.build_model(2).save(tmp_path / "model.keras")
    metadata = {"classes": ["left", "right"], "data": "folder", "temperature": 1.0, "ood_threshold": 1.0}
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as archive:
        archive.writestr("run_metadata.json", json.dumps(metadata))
        with archive.open("feature_bank.npy", "w") as file:
            np.save(file, np.zeros((1, 768), np.float16))
    process = run_script("signs_functional", "--export", "saved_model", "--output-dir", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "your own images of left, right" in process.stdout
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_the_command_line_offers_every_format():
    parser = ScriptParser("", "script", epochs=1, batch_size=1, learning_rate=1)
    assert parser.parse_args(["--export", *FORMATS]).export == list(FORMATS)


def test_the_optional_packages_are_listed_as_the_messages_name_them():
    listed = (ROOT / "requirements-optional.txt").read_text()
    for _, _, packages in FORMATS.values():
        for package in packages.values():
            assert f"\n{package}\n" in listed
