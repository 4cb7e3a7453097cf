"""Export: every format is loaded again by its own runtime and compared."""

import importlib.util
import json
import os
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import ROOT

import happy_sequential
import signs_functional
from support.cli import ScriptParser
from support.errors import InputError
from support.export import FORMATS, TOLERANCE, export_model


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


def test_other_predictions_are_refused_and_nothing_is_left(model, tmp_path, monkeypatch):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "earlier").write_text("an earlier export")
    outputs = model.output_shape[-1]
    monkeypatch.setattr(model, "predict_on_batch", lambda images: np.ones((len(images), outputs)))
    with pytest.raises(InputError, match="must give the outputs of the original.*Received: a difference of"):
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


def test_the_command_exports_a_trained_model(tmp_path, capsys, monkeypatch):
    signs_functional.build_model(2).save(tmp_path / "model.keras")
    notes = {"classes": ["left", "right"], "data": "folder", "dry_run": False, "temperature": 1.0, "usual": 1.0}
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as archive:
        archive.writestr("notes.json", json.dumps(notes))
        with archive.open("familiar.npy", "w") as file:
            np.save(file, np.zeros((1, 2048), np.float16))
    monkeypatch.setattr(sys, "argv", ["signs_functional.py", "--export", "saved_model", "--output-dir", str(tmp_path)])
    assert signs_functional.main() == 0
    assert "your own images of left, right" in capsys.readouterr().out
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_the_command_line_offers_every_format():
    parser = ScriptParser("", "script", epochs=1, batch_size=1, learning_rate=1)
    assert parser.parse_args(["--export", *FORMATS]).export == list(FORMATS)


def test_the_optional_packages_are_listed_as_the_messages_name_them():
    listed = (ROOT / "requirements-optional.txt").read_text()
    for _, _, packages in FORMATS.values():
        for package in packages.values():
            assert f"\n{package}\n" in listed
