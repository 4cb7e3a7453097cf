"""Metrics, figures and files: what is printed and written is what was measured."""

import argparse
import io
import json
import zipfile

import keras
import matplotlib.image
import numpy as np
import pytest

import cnn_utils as utils
import prediction
import runs

NAMES = ("0", "1", "2")


class Answers:
    """Stands in for a trained model: gives prepared outputs."""

    def __init__(self, outputs, loss):
        self.outputs, self.loss, self.given = np.asarray(outputs, "float32"), loss, 0

    def predict_on_batch(self, x):
        # Asked for at most 64 pictures at a time, in their order.
        start, self.given = self.given, self.given + len(x)
        return self.outputs[start:self.given]

    def count_params(self):
        return 7


@pytest.fixture
def results(capsys):
    """Five pictures, three right; class 2 is never predicted."""
    outputs = [[.8, .1, .1], [.1, .7, .2], [.6, .3, .1], [.2, .7, .1], [.1, .9, .0]]
    labels = np.array([0, 1, 0, 2, 2])
    model = Answers(outputs, "categorical_crossentropy")
    return utils.evaluate(model, np.zeros((5, 8, 8, 3), np.uint8), utils.one_hot(labels, 3), NAMES)


def test_evaluate_measures_what_a_hand_count_gives(results):
    assert results["accuracy"] == 3 / 5
    assert results["confusion"].tolist() == [[2, 0, 0], [0, 1, 0], [0, 2, 0]]
    np.testing.assert_allclose(results["precision"], [1, 1 / 3, np.nan])
    np.testing.assert_allclose(results["recall"], [1, 1, 0])
    assert results["loss"] == pytest.approx(-np.mean(np.log([.8, .7, .6, .1, 1e-7])), rel=1e-3)


def test_the_interval_is_wilsons():
    # 118 of 120, worked out from Wilson's formula (1927) with z = 1.959964: 94.13 % to 99.54 %.
    labels = np.zeros((120, 1), "float32")
    outputs = np.where(np.arange(120) < 118, 0.1, 0.9)[:, None]
    found = utils.evaluate(Answers(outputs, "binary_crossentropy"), labels, labels, ("not smiling", "smiling"))
    assert found["interval"] == pytest.approx([0.94126, 0.99542], abs=1e-4)


def test_evaluate_prints_accuracy_interval_and_table(capsys, results):
    model = Answers([[.9, .1], [.2, .8]], "categorical_crossentropy")
    utils.evaluate(model, np.zeros((2, 8, 8, 3)), utils.one_hot(np.array([0, 1]), 2), ("fist", "palm"))
    printed = capsys.readouterr().out
    assert "Test accuracy: 100.00% (2 of 2 right; 95 % interval 34.24% to 100.00%)" in printed
    assert [line.split() for line in printed.splitlines() if "palm" in line] == [["palm", "100.0%", "100.0%", "1"]]


def test_a_column_of_probabilities_becomes_two():
    np.testing.assert_allclose(utils.class_probabilities(np.array([[.3], [.9]])), [[.7, .3], [.1, .9]])


def test_several_seeds_are_summed_up_as_students_t_says():
    summary = runs.summarise({1: 0.97, 2: 0.99, 3: 0.98})
    # Worked out by hand: deviation 0.01, t of two degrees of freedom 4.3027.
    assert summary["mean"] == pytest.approx(0.98) and summary["standard_deviation"] == pytest.approx(0.01)
    assert summary["mean_interval"] == pytest.approx([0.98 - 4.3027 * 0.01 / 3**0.5, 1.0], abs=1e-4)
    assert summary["lowest"] == 0.97 and summary["highest"] == 0.99
    assert "mean_interval" not in runs.summarise({1: 0.9})


def test_metrics_json_holds_what_a_reader_needs(tmp_path, write_h5, results):
    train, test = write_h5(tmp_path / "train_signs.h5"), write_h5(tmp_path / "test_signs.h5", "test")
    arguments = argparse.Namespace(seed=1, epochs=2, batch_size=32, learning_rate=0.1, dry_run=False)
    settings = runs.run_settings("signs_functional", utils.DataFiles("synthetic", train, test), arguments)
    utils.save_metrics(tmp_path, settings, Answers([], ""), results, names=NAMES, device="CPU", train_seconds=1.5,
                       calibration={"temperature": 1.5},
                       examples={"train": 10, "validation": 2, "test": 5})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = {"script": "signs_functional", "data": "synthetic", "seed": 1, "epochs": 2, "batch_size": 32,
                "train_examples": 10, "validation_examples": 2, "test_examples": 5, "parameters": 7,
                "test_accuracy": 0.6, "train_seconds": 1.5, "temperature": 1.5}
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["test_accuracy_interval"] == results["interval"]
    assert metrics["data_files"] == {"train_signs.h5": runs.sha256(train), "test_signs.h5": runs.sha256(test)}
    assert metrics["classes"][2] == {"name": "2", "precision": None, "recall": 0.0, "examples": 2}
    assert set(metrics["versions"]) == {"python", "tensorflow", "keras", "numpy"}


def finished_run(folder, settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({**settings, "test_accuracy": 0.99}))
    (folder / "model.keras").write_text("an hour's work")


def test_a_run_with_other_settings_moves_the_earlier_one_aside(tmp_path, capsys):
    output = tmp_path / "outputs"
    finished_run(output, {"epochs": 60, "seed": 1})
    (output / "notes.txt").write_text("the user's own")
    runs.prepare_output_dir(output, {"epochs": 1, "seed": 1})
    moved = list(output.glob("earlier/*/model.keras"))
    assert len(moved) == 1 and moved[0].read_text() == "an hour's work"
    assert str(moved[0].parent) in capsys.readouterr().out
    assert not (output / "model.keras").exists() and (output / "notes.txt").exists()


def test_a_run_with_the_same_settings_moves_nothing(tmp_path):
    finished_run(tmp_path, {"epochs": 60, "seed": 1})
    runs.prepare_output_dir(tmp_path, {"epochs": 60, "seed": 1})
    assert (tmp_path / "model.keras").exists() and not (tmp_path / "earlier").exists()


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(utils.InputError, match="--output-dir.*Received: .*file"):
        runs.prepare_output_dir(tmp_path / "file" / "outputs")


def titles(monkeypatch):
    """Collect the titles of the figures that are saved from now on."""
    found = []
    save = utils.save_figure

    def listen(figure, title, path, kind):
        save(figure, title, path, kind)
        found.append(figure.get_suptitle() + " " + " ".join(text.get_text() for text in figure.texts))
    monkeypatch.setattr(utils, "save_figure", listen)
    return found


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_every_figure_is_a_picture_and_synthetic_ones_say_so(tmp_path, monkeypatch, results, kind):
    utils.use_headless_figures(show=False)
    found = titles(monkeypatch)
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    utils.plot_examples(x, np.array([0, 1, 2, 1, 2]), NAMES, tmp_path / "examples.png", kind)
    history = {key: [2.0, 1.0] for key in ("loss", "val_loss", "accuracy", "val_accuracy")}
    utils.plot_learning_curves(history, tmp_path / "learning_curves.png", kind)
    utils.plot_confusion_matrix(results, NAMES, tmp_path / "confusion_matrix.png", kind)
    utils.plot_mistakes(x, results, NAMES, tmp_path / "mistakes.png", kind)
    assert len(found) == 4
    assert all(("SYNTHETIC" in title) == (kind == "synthetic") for title in found)
    for path in tmp_path.glob("*.png"):
        assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5, f"{path.name} is blank"


def test_mistakes_are_counted_and_their_absence_is_said(tmp_path, monkeypatch, results):
    found = titles(monkeypatch)
    x = np.zeros((5, 8, 8, 3), np.uint8)
    utils.plot_mistakes(x, results, NAMES, tmp_path / "some.png", "real")
    utils.plot_mistakes(x, {**results, "predictions": results["labels"]}, NAMES, tmp_path / "none.png", "real")
    assert found[0].startswith("Mistakes: 2 of 5 test pictures")
    assert "None: all 5 test pictures were classified correctly." in found[1]


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_a_saved_model_takes_raw_pixels_one_or_many(tmp_path, script):
    model = __import__(script).build_model()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):      # as after some training, not as fresh
            layer.set_weights([np.random.default_rng(1).uniform(0.5, 1.5, w.shape) for w in layer.weights])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    together = loaded.predict(pixels, verbose=0)
    np.testing.assert_allclose(together, model.predict(pixels, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(loaded.predict(pixels[2:3], verbose=0)[0], together[2], rtol=1e-4, atol=1e-6)


def test_no_model_and_a_file_that_is_none_are_named(tmp_path):
    with pytest.raises(utils.InputError, match="Train one first with `python signs_functional.py`"):
        prediction.load_trained_model(tmp_path, "signs_functional", NAMES)
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(utils.InputError, match="must be a model saved by signs_functional.py"):
        prediction.load_trained_model(tmp_path, "signs_functional", NAMES)


def test_a_caption_may_hold_what_matplotlib_takes_for_mathematics(tmp_path):
    utils.use_headless_figures(show=False)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    utils.draw_pictures(picture, ["a$\\x$.png\n3 (90.0%)"], "Title", tmp_path / "a.png", "real")
    assert (tmp_path / "a.png").stat().st_size > 1000


# ---- a stranger's model

def write_model(path, model=None, **members):
    """Save a small network as the script would, or a given one; replace members of the archive."""
    if model is None:
        model = keras.Sequential([keras.layers.Input((64, 64, 3)), keras.layers.Flatten(), keras.layers.Dense(6)],
                                 name="signs_functional")
    model.save(path.with_name("whole.keras"))
    with zipfile.ZipFile(path.with_name("whole.keras")) as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            if name not in members:
                archive.writestr(name, whole.read(name))
        for name, content in members.items():
            archive.writestr(name, content)


def others(path):
    """Write, one after the other, files that are no model of ours; say what must be told of each."""
    layers = keras.layers
    path.write_text("no model")
    yield "not a .keras file: it begins with b'no model'"
    path.write_bytes(b"")
    yield "an empty file"
    path.write_text("<!DOCTYPE html><title>Not found</title>")
    yield "a web page"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    yield "a Git LFS pointer"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/1.png", b"")
    yield "a zip archive that holds no Keras model"
    model = keras.Sequential([layers.Input((64, 64, 3)), layers.Flatten(), layers.Dense(6)], name="signs_functional")
    model.save(path.with_name("old.h5"))
    path.with_name("old.h5").replace(path)
    yield "a model in an HDF5 file, of Keras 3"
    model.save_weights(path.with_name("one.weights.h5"))
    path.with_name("one.weights.h5").replace(path)
    yield "an HDF5 file, weights or data"
    write_model(path, **{"metadata.json": '{"keras_version": "2.15.0"}'})
    yield "a model of Keras 2.15.0, where Keras 3 was expected"
    write_model(path)
    path.write_bytes(path.read_bytes()[:-200])
    yield r"a damaged .keras file \(File is not a zip file\)"
    write_model(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89HDF") + 3000
    content[start:start + 50] = b"x" * 50
    path.write_bytes(content)
    yield "BadZipFile|OSError|damaged"
    write_model(path, **{"config.json": '{"module": "os", "class_name": "system", "config": {"command": "touch x"}}'})
    yield "TypeError|ValueError"
    write_model(path, keras.Sequential([layers.Input((64, 64, 3)), layers.Lambda(lambda x: x), layers.Flatten(),
                                        layers.Dense(6)], name="signs_functional"))
    yield r"the network holds code of its own \(a Lambda layer\), which is not run"
    write_model(path, keras.Sequential([layers.Input((64, 64, 3)), layers.Flatten(), layers.Dense(6)], name="other"))
    yield "a network of another architecture, 'other' from"
    write_model(path, keras.Sequential([layers.Input((28, 28, 1)), layers.Flatten(), layers.Dense(6)],
                                       name="signs_functional"))
    yield r"another architecture, 'signs_functional' from \(None, 28, 28, 1\)"
    write_model(path, keras.Sequential([layers.Input((64, 64, 3)), layers.Flatten(), layers.Dense(10)],
                                       name="signs_functional"))
    yield "a model with 10"
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    write_model(path, **{"config.json": config.replace('"units": 10', '"units": 1000000000')})
    yield "another architecture, with 1,000,000,000 features in one layer"
    array = io.BytesIO()
    np.save(array, np.zeros((2, 3), np.float16))
    for notes in ("{", '{"classes": "abcdef", "data": "real", "temperature": 1, "usual": 1}',
                  '{"classes": ["0", "1", "2", "3", "4", "5"], "data": "real", "temperature": 1, "usual": 1}'):
        write_model(path, **{"notes.json": notes, "familiar.npy": array.getvalue()})
        yield "notes on the classes that are damaged"
    array = io.BytesIO()
    np.save(array, np.array([print], dtype=object), allow_pickle=True)
    write_model(path, **{"notes.json": "{}", "familiar.npy": array.getvalue()})
    yield "notes on the classes that are damaged .*allow_pickle"
    path.unlink()
    path.mkdir()
    yield "a folder"


def test_a_file_that_is_no_model_of_the_script_is_told_apart(tmp_path):
    path = tmp_path / "model.keras"
    for words in others(path):
        with pytest.raises(utils.InputError, match=rf"^{path} must .*Received: (.*{words})") as error:
            prediction.load_trained_model(tmp_path, "signs_functional", tuple("012345"))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    write_model(tmp_path / "model.keras", **{"notes.json": " " * 500_000})
    assert prediction.model_kind(tmp_path / "model.keras") == ""
    monkeypatch.setattr(prediction, "LARGEST_FILE", 500_000)
    with pytest.raises(utils.InputError, match=r"Received: an archive of \d{3},\d{3} bytes when unpacked"):
        prediction.load_trained_model(tmp_path, "signs_functional", tuple("012345"))
