"""Networks for other programs: exported, loaded back by their own runtime, compared."""

import importlib.util
import os
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import cnn_utils as utils
import export
import happy_sequential
import runs
import signs_functional


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param.build_model()


@pytest.mark.parametrize("form", export.FORMATS)
def test_an_exported_network_answers_like_the_original(model, form, tmp_path, capsys):
    name, packages = export.FORMATS[form]
    for module, _ in packages:
        pytest.importorskip(module)
    assert export.export_model(model, [form], tmp_path)[form] <= export.TOLERANCE
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [name]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "largest difference" in printed and "float32 (batch, 64, 64, 3)" in printed
    # Loaded anew, as another program would, and asked about pictures that the export did not see.
    pictures = np.random.default_rng(5).integers(0, 256, (3, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(export.LOADERS[form](tmp_path / name)(pictures), model.predict_on_batch(pictures),
                               atol=1e-4)


def test_another_answer_is_refused_and_nothing_is_left(model, tmp_path, monkeypatch):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "earlier").write_text("the export of before")
    wrong = model.output_shape[-1]
    monkeypatch.setitem(export.LOADERS, "saved_model", lambda path: lambda pictures: np.ones((len(pictures), wrong)))
    with pytest.raises(utils.InputError, match="must answer like the original.*Received: a difference of"):
        export.export_model(model, ["saved_model"], tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {".lock", "saved_model", "earlier"}


@pytest.mark.parametrize("form, words", [("onnx", 'pip install "tf2onnx>='),
                                         ("litert", 'pip install "ai-edge-litert>=')])
def test_a_missing_package_is_named_before_anything_is_written(model, form, words, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(utils.InputError) as error:
        export.export_model(model, [form], tmp_path)
    assert words in str(error.value) and not set(os.listdir(tmp_path)) - {".lock"}


def test_the_command_exports_what_was_trained(tmp_path, capsys, monkeypatch):
    model = signs_functional.build_model(2)
    notes = {"classes": ["left", "right"], "data": "folder", "dry_run": False, "temperature": 1.0, "usual": 1.0}
    runs.save_model(model, tmp_path / "model.keras", notes, np.zeros((1, 2048), np.float16))
    monkeypatch.setattr(sys, "argv", ["signs_functional.py", "--export", "saved_model", "--output-dir", str(tmp_path)])
    assert signs_functional.main() == 0
    assert "your own pictures of left, right" in capsys.readouterr().out
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_the_optional_packages_are_listed_as_the_messages_name_them():
    listed = (ROOT / "requirements-optional.txt").read_text()
    for _, packages in export.FORMATS.values():
        for _, package in packages:
            assert f"\n{package}\n" in listed
