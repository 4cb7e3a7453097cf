"""Model files: what a run saves is loaded whole, and any other file is refused with what it is."""

import functools
import io
import re
import types
import zipfile

import keras
import numpy as np
import pytest

import happy_sequential
import signs_functional
from support import predict, trained_model
from support.errors import InputError
from support.ood import feature_bank, ood_threshold
from support.run import Run
from support.trained_model import load_trained_model

DIGITS = tuple("012345")


@pytest.fixture(params=[happy_sequential, signs_functional], ids=lambda script: script.__name__)
def model(request):
    keras.utils.set_random_seed(1)
    return request.param.build_model()


def test_metadata_travel_inside_the_model_file(model, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    labels = np.arange(30) % 2
    binary = model.output_shape[-1] == 1
    classes, y = (["cat", "dög"], labels[:, None]) if binary else (list("abcdef"), np.eye(6, dtype=np.float32)[labels])
    source = types.SimpleNamespace(train=tmp_path / "images")
    data = types.SimpleNamespace(kind="folder", hashes={}, source=source, class_names=classes)
    args = types.SimpleNamespace(output_dir=tmp_path / "out", resume=False, weights="random", seed=1, dry_run=False)
    run = Run(model.name, args, data, "CPU")
    run.save_model(model, images, images, y)
    assert {path.name for path in run.folder.iterdir()} == {".lock", "model.keras", "history.csv"}
    loaded, metadata = load_trained_model(run.folder, model.name, ("x", "y"))
    bank = feature_bank(model, images, seed=1)
    np.testing.assert_array_equal(metadata.pop("feature_bank"), bank)
    assert metadata == {
        "classes": classes,
        "data": "folder",
        "dry_run": False,
        "temperature": run.temperature,
        "ood_threshold": ood_threshold(model, images, bank),
    }
    assert run.temperature != 1
    np.testing.assert_allclose(loaded.predict_on_batch(images), model.predict_on_batch(images), atol=1e-5)
    with zipfile.ZipFile(run.folder / "model.keras") as archive:
        assert archive.testzip() is None


def test_a_model_without_metadata_gets_the_usual_class_names(model, tmp_path):
    model.save(tmp_path / "model.keras")
    names = ("no", "yes") if model.output_shape[-1] == 1 else DIGITS
    metadata = load_trained_model(tmp_path, model.name, names)[1]
    assert metadata["classes"] == names and metadata["feature_bank"] is None
    with pytest.raises(InputError, match="Received: a model with [16] outputs, where one for each of 3 classes was"):
        load_trained_model(tmp_path, model.name, ("a", "b", "c"))


def test_a_missing_model_is_named_with_the_command_that_trains_it(tmp_path):
    with pytest.raises(InputError, match="Train one first with `python signs_resnet50.py`"):
        load_trained_model(tmp_path, "signs_resnet50", DIGITS)


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
    "text": (lambda path: path.write_text("no model"), "not a .keras file: it begins with b'no model'"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><title>Not found</title>"), "a web page"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "zip": (zip_of_photos, "a zip archive that is not a Keras model"),
    "HDF5 model": (keras_h5, "an HDF5 file, a model of Keras 3"),
    "HDF5 weights": (weights_h5, "an HDF5 file, weights or data"),
    "old Keras": (
        lambda path: write_model(path, **{"metadata.json": '{"keras_version": "2.15.0"}'}),
        "a model of Keras 2.15.0, where Keras 3 was expected",
    ),
    "truncated": (truncated, r"a damaged .keras file \(BadZipFile: File is not a zip file\)"),
    "overwritten": (overwritten, "BadZipFile|OSError|damaged"),
    "call": (lambda path: write_model(path, **{"config.json": CALL}), "TypeError|ValueError"),
    "code": (
        lambda path: write_model(path, network(keras.layers.Lambda(lambda x: x))),
        r"a network with code of its own \(a Lambda layer\), which is not run",
    ),
    "other name": (
        lambda path: write_model(path, network(name="other")),
        "a network of another architecture, 'other' from",
    ),
    "other input": (
        lambda path: write_model(path, network(inputs=(28, 28, 1))),
        r"another architecture, 'signs_functional' from \(None, 28, 28, 1\)",
    ),
    "other output": (lambda path: write_model(path, network(outputs=10)), "a model with 10"),
    "no bias": (lambda path: write_model(path, network(bias=False)), "a network of another architecture"),
    "NaN": (not_finite, "weights that are not finite numbers"),
    "huge": (huge, "another architecture, with 1,000,000,000 features in one layer"),
    "cut notes": (with_notes("{"), "damaged metadata"),
    "wrong notes": (
        with_notes('{"classes": "abcdef", "data": "real", "temperature": 1, "usual": 1}'),
        "damaged metadata",
    ),
    "wrong bank": (with_notes(GOOD_NOTES), "damaged metadata"),
    "pickle": (
        with_notes("{}", npy(np.array([print], dtype=object), allow_pickle=True)),
        "damaged metadata .*allow_pickle",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_other_file_is_refused_with_what_it_is(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.keras"
    write, reason = FILES[kind]
    write(path)
    with pytest.raises(InputError, match=rf"^{path} must .*Received: (.*{reason})") as error:
        load_trained_model(tmp_path, "signs_functional", DIGITS)
    assert "\n" not in str(error.value)
    # Word for word the same where NumPy is to answer.
    load = functools.partial(predict._load_in_numpy, lambda: None)
    with pytest.raises(InputError, match=f"^{re.escape(str(error.value))}$"):
        load_trained_model(tmp_path, "signs_functional", DIGITS, load=load)
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_not_a_model_names_the_script(tmp_path):
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(InputError, match="must be a model saved by signs_functional.py"):
        load_trained_model(tmp_path, "signs_functional", DIGITS)


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    write_model(tmp_path / "model.keras", **{"notes.json": " " * 500_000})
    load_trained_model(tmp_path, "signs_functional", DIGITS)
    monkeypatch.setattr(trained_model, "MAX_FILE_BYTES", 500_000)
    with pytest.raises(InputError, match=r"Received: an archive of \d{3},\d{3} bytes when unpacked"):
        load_trained_model(tmp_path, "signs_functional", DIGITS)
