"""Model files: what a run saves is loaded whole; any other file is refused, and the message says what it is."""

import functools
import io
import json
import re
import zipfile

import keras
import numpy as np
import pytest

import happy_sequential
import signs_functional
from basics.errors import InputError
from datasets import HAPPY, SIGNS
from support.evaluation.ood import feature_bank, ood_threshold
from support.prediction import answers as predict
from support.prediction import trained_model
from support.prediction.trained_model import Metadata, load_keras_model, load_trained_model
from support.training.run import save_model

DIGITS = SIGNS.class_names


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param.build_model()


def task_of(model):
    return HAPPY if model.output_shape[-1] == 1 else SIGNS


def test_metadata_travel_inside_the_model_file(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    classes = ("cat", "dög") if model.output_shape[-1] == 1 else tuple("abcdef")
    path = tmp_path / "model.keras"
    details = {"classes": classes, "data": "folder", "seed": 1, "dry_run": True, "not_sure_below": 0.8}
    save_model(model, path, 1.25, images, images, **details)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    task = task_of(model)
    loaded, metadata = load_trained_model(tmp_path, model.name, task)
    bank = feature_bank(model, images, seed=1)
    np.testing.assert_array_equal(metadata.feature_bank, bank)
    assert metadata._replace(feature_bank=None) == Metadata(
        classes=classes,
        task=task,
        data="folder",
        dry_run=True,
        temperature=1.25,
        ood_threshold=ood_threshold(model, images, bank),
        not_sure_below=0.8,
    )
    below = load_trained_model(tmp_path, model.name, task, not_sure_below=0.0)[1].not_sure_below
    assert below == 0.0  # what is given goes before what was saved
    assert not metadata.shows_task
    np.testing.assert_allclose(loaded.predict_on_batch(images), model.predict_on_batch(images), atol=1e-5)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert archive.testzip() is None and {"run_metadata.json", "feature_bank.npy"} <= set(archive.namelist())


@pytest.mark.parametrize(
    "metadata_file, threshold, bank_file",
    [("run_metadata.json", "ood_threshold", "feature_bank.npy"), ("notes.json", "usual", "familiar.npy")],
)
def test_new_and_old_names_inside_the_model_file_are_read(tmp_path, metadata_file, threshold, bank_file):
    bank = np.random.default_rng(0).normal(size=(5, 64 * 64 * 3)).astype(np.float16)
    saved = {"classes": list(DIGITS), "data": "real", "dry_run": False, "temperature": 0.9, threshold: 0.4}
    write_model(tmp_path / "model.keras", **{metadata_file: json.dumps(saved), bank_file: npy(bank)})
    metadata = load_trained_model(tmp_path, "signs_functional", SIGNS)[1]
    np.testing.assert_array_equal(metadata.feature_bank, bank)
    assert metadata._replace(feature_bank=None) == Metadata(DIGITS, SIGNS, "real", False, 0.9, 0.4)
    assert metadata.not_sure_below == 0.7  # which files did not hold at first
    assert metadata.shows_task


def test_a_model_without_metadata_gets_the_usual_class_names(model, tmp_path):
    model.save(tmp_path / "model.keras")
    task = task_of(model)
    metadata = load_trained_model(tmp_path, model.name, task)[1]
    assert metadata == Metadata(task.class_names, task, "unknown")
    with pytest.raises(InputError, match="it has [16] outputs for 3 classes"):
        load_trained_model(tmp_path, model.name, task._replace(class_names=("a", "b", "c")))


def test_a_missing_model_is_named_with_the_command_that_trains_it(tmp_path):
    with pytest.raises(InputError, match="no trained model yet.*Train one with `python signs_resnet50.py`"):
        load_trained_model(tmp_path, "signs_resnet50", SIGNS)


@pytest.mark.parametrize(
    "metadata, words",
    [
        (Metadata(DIGITS, SIGNS, "synthetic"), "trained on SYNTHETIC images only, not photographs\n"),
        (Metadata(DIGITS, SIGNS, "real"), "trained on real photographs\n"),
        (Metadata(tuple("abcdefg"), SIGNS, "folder"), "trained on your own images of a, b, c, d, e, f, ...\n"),
        (Metadata(DIGITS, SIGNS, "unknown", dry_run=True), "unknown data, but only in a --dry-run: it has learned "),
    ],
)
def test_what_a_model_was_trained_on_is_printed(metadata, words, tmp_path, capsys, monkeypatch):
    write_model(tmp_path / "model.keras", network(outputs=len(metadata.classes)))
    monkeypatch.setattr(trained_model, "_read_metadata", lambda *_: metadata)
    load_trained_model(tmp_path, "signs_functional", SIGNS)
    assert words in capsys.readouterr().out


def test_another_model_can_be_named(tmp_path, capsys):
    write_model(tmp_path / "model.keras", network())
    _, metadata = load_trained_model(tmp_path / "none", "signs_functional", SIGNS, weights=tmp_path / "model.keras")
    assert metadata.data == "unknown" and str(tmp_path / "model.keras") in capsys.readouterr().out
    _, metadata = load_trained_model(tmp_path, "signs_functional", SIGNS, weights="synthetic")
    assert metadata.data == "synthetic" and "There is no trained model" not in capsys.readouterr().out
    with pytest.raises(InputError, match="--weights random is for training, not for a trained model. Drop --weights"):
        load_trained_model(tmp_path, "signs_functional", SIGNS, weights="random")


def network(*layers, outputs=6, inputs=(64, 64, 3), name="signs_functional", bias=True):
    """Return a small network with the name, input and output of the script's."""
    layers = [keras.layers.Input(inputs), *layers, keras.layers.Flatten(), keras.layers.Dense(outputs, use_bias=bias)]
    return keras.Sequential(layers, name=name)


def write_model(path, model=None, **members):
    """Save a small network, or a given one, and replace or add members of the archive."""
    whole = path.with_name("whole.keras")
    (model or network()).save(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name not in members:
                new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(name, content)


def npy(array, **options):
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def zip_of_photos(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/1.png", b"")


def keras_h5(path):
    network().save(path.with_name("old.h5"))
    path.with_name("old.h5").replace(path)


def weights_h5(path):
    network().save_weights(path.with_name("one.weights.h5"))
    path.with_name("one.weights.h5").replace(path)


def truncated(path):
    write_model(path)
    path.write_bytes(path.read_bytes()[:-200])


def overwritten(path):
    write_model(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89HDF") + 3000
    content[start : start + 50] = b"x" * 50
    path.write_bytes(content)


def not_finite(path):
    model = network()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias * np.nan])
    write_model(path, model)


def huge(path):
    write_model(path, network(outputs=10))
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    write_model(path, **{"config.json": config.replace('"units": 10', '"units": 1000000000')})


def with_notes(notes, bank=None):
    """Return a function that writes a model with these notes and a feature bank, by default of another width."""
    bank = npy(np.zeros((2, 3), np.float16)) if bank is None else bank
    return lambda path: write_model(path, **{"notes.json": notes, "familiar.npy": bank})


GOOD_NOTES = '{"classes": ["0", "1", "2", "3", "4", "5"], "data": "real", "temperature": 1, "usual": 1}'
CALL = '{"module": "os", "class_name": "system", "config": {"command": "touch x"}}'
FILES = {
    "text": (lambda path: path.write_text("no model"), "it is not a .keras file: it begins with b'no model'"),
    "empty": (lambda path: path.write_bytes(b""), "it is an empty file"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><title>Not found</title>"), "it is a web page"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "it is a Git LFS pointer"),
    "folder": (lambda path: path.mkdir(), "it is a folder"),
    "zip": (zip_of_photos, "it is a zip archive without a Keras model"),
    "HDF5 model": (keras_h5, "it is an HDF5 file with a model of Keras 3"),
    "HDF5 weights": (weights_h5, "it is an HDF5 file with weights or data"),
    "old Keras": (
        lambda path: write_model(path, **{"metadata.json": '{"keras_version": "2.15.0"}'}),
        "it was saved by Keras 2.15.0, not by Keras 3",
    ),
    "truncated": (truncated, r"it is damaged \(BadZipFile: File is not a zip file\)"),
    "overwritten": (overwritten, "its model.weights.h5 is damaged"),
    "call": (lambda path: write_model(path, **{"config.json": CALL}), "TypeError|ValueError"),
    "code": (
        lambda path: write_model(path, network(keras.layers.Lambda(lambda x: x))),
        r"it contains code \(a Lambda layer\), which is never run",
    ),
    "other name": (
        lambda path: write_model(path, network(name="other")),
        "its network is 'other', not 'signs_functional'",
    ),
    "other input": (
        lambda path: write_model(path, network(inputs=(28, 28, 1))),
        r"its input has shape \(None, 28, 28, 1\), not \(None, size, size, 3\)",
    ),
    "other output": (lambda path: write_model(path, network(outputs=10)), "it has 10 outputs for 6 classes"),
    "no bias": (
        lambda path: write_model(path, network(bias=False)),
        "its network ends in 'dense.*', not in a Dense layer with a bias",
    ),
    "NaN": (not_finite, "some of its weights are NaN or infinite"),
    "huge": (huge, "one of its layers has 1,000,000,000 features, more than 4,096"),
    "cut notes": (with_notes("{"), "its metadata are damaged"),
    "wrong notes": (
        with_notes('{"classes": "abcdef", "data": "real", "temperature": 1, "usual": 1}'),
        "its metadata are damaged",
    ),
    "wrong threshold": (
        with_notes(GOOD_NOTES[:-1] + ', "not_sure_below": 70}', npy(np.zeros((2, 64 * 64 * 3), np.float16))),
        "its metadata are damaged",
    ),
    "wrong bank": (with_notes(GOOD_NOTES), "its metadata are damaged"),
    "pickle": (
        with_notes(GOOD_NOTES, npy(np.array([print], dtype=object), allow_pickle=True)),
        "its metadata are damaged .*allow_pickle",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_other_file_is_refused_with_what_it_is(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.keras"
    write, reason = FILES[kind]
    write(path)
    with pytest.raises(
        InputError,
        match=rf"^{path} is not a model saved by signs_functional.py: (.*{reason}).*\. Train again, or name ",
    ) as error:
        load_trained_model(tmp_path, "signs_functional", SIGNS)
    assert "\n" not in str(error.value)
    # Word for word the same where NumPy is to answer.
    load = functools.partial(predict._load_in_numpy, load_keras_model)
    with pytest.raises(InputError, match=f"^{re.escape(str(error.value))}$"):
        load_trained_model(tmp_path, "signs_functional", SIGNS, load=load)
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_a_model_names_the_script(tmp_path):
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(InputError, match="is not a model saved by signs_functional.py"):
        load_trained_model(tmp_path, "signs_functional", SIGNS)


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    write_model(tmp_path / "model.keras", **{"notes.json": " " * 500_000})
    load_trained_model(tmp_path, "signs_functional", SIGNS)
    monkeypatch.setattr(trained_model, "MAX_FILE_BYTES", 500_000)
    with pytest.raises(InputError, match=r"it unpacks to \d{3},\d{3} bytes, more than 500,000\. "):
        load_trained_model(tmp_path, "signs_functional", SIGNS)
