"""Metrics, figures and files: what is printed and written is what was measured."""

import csv
import json

import keras
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import open_tiny_run, tiny_run

import cnn_utils as utils
from support.calibration import class_probabilities
from support.figures import image_grid
from support.files import read_json
from support.seeds import summarise, summarise_folds

NAMES = ("0", "1", "2")


class Outputs:
    """Stands in for a trained model: returns prepared outputs."""

    def __init__(self, outputs, loss):
        self.outputs, self.loss, self.given = np.asarray(outputs, "float32"), loss, 0

    def predict_on_batch(self, x):
        # The images come in their order, at most 64 at a time.
        assert len(x) <= 64
        start, self.given = self.given, self.given + len(x)
        return self.outputs[start : self.given]


@pytest.fixture
def results(capsys):
    """Five images, three right; class 2 is never predicted."""
    outputs = [[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0]]
    labels = np.array([0, 1, 0, 2, 2])
    model = Outputs(outputs, "categorical_crossentropy")
    return utils.evaluate(model, np.zeros((5, 8, 8, 3), np.uint8), utils.one_hot(labels, 3), NAMES)


# ------------------------------------------------------------------------- metrics


def test_evaluate_gives_the_numbers_of_a_hand_count(results):
    assert results["accuracy"] == 3 / 5
    assert results["confusion"].tolist() == [[2, 0, 0], [0, 1, 0], [0, 2, 0]]
    np.testing.assert_allclose(results["precision"], [1, 1 / 3, np.nan])
    np.testing.assert_allclose(results["recall"], [1, 1, 0])
    assert results["loss"] == pytest.approx(-np.mean(np.log([0.8, 0.7, 0.6, 0.1, 1e-7])), rel=1e-3)


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_are_there(results, capsys):
    assert results["balanced_accuracy"] == pytest.approx((1 + 1 + 0) / 3)
    x, y = np.zeros((3, 8, 8, 3)), utils.one_hot(np.array([0, 0, 1]), 3)  # none of class 2
    outputs = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]
    found = utils.evaluate(Outputs(outputs, "categorical_crossentropy"), x, y, NAMES)
    assert found["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert "Balanced accuracy: 75.00%" in capsys.readouterr().out


# ------------------------------------------------------------------- class weights


def test_class_weights_are_scikit_learns_balanced_ones(capsys):
    labels = np.repeat([0, 1, 2], [40, 10, 50])
    # n_samples / (n_classes * np.bincount(y)), as scikit-learn's compute_class_weight documents it.
    expected = {0: 100 / 120, 1: 100 / 30, 2: 100 / 150}
    assert utils.class_weights(utils.one_hot(labels, 3), NAMES) == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2 and "10 to 50 images" in printed and "Weights: 0 0.83, 1 3.33, 2 0.67" in printed


@pytest.mark.parametrize(
    "counts, expected", [([30, 20], None), ([31, 20], {0: 51 / 62, 1: 51 / 40}), ([7, 0], None), ([5, 5], None)]
)
def test_class_weights_begin_above_one_and_a_half(counts, expected):
    column = np.repeat([0.0, 1.0], counts).reshape(-1, 1)
    found = utils.class_weights(column, ("a", "b"))
    assert found is None if expected is None else found == pytest.approx(expected)


def test_a_class_without_images_gets_a_weight_that_is_never_used():
    assert utils.class_weights(utils.one_hot(np.array([0, 0, 2]), 3), NAMES) == pytest.approx({0: 0.75, 1: 1, 2: 1.5})


@pytest.mark.parametrize("binary", [True, False])
def test_keras_weighs_the_training_loss_and_not_the_validation_loss(tmp_path, binary):
    """One step without a learning rate: the loss of `fit` is that of the labels as the scripts prepare them."""
    labels = np.array([0, 0, 0, 1])
    y = labels.reshape(-1, 1).astype("float32") if binary else utils.one_hot(labels, 2)
    x = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    keras.utils.set_random_seed(1)
    layers = keras.layers
    last = layers.Dense(*((1, "sigmoid") if binary else (2, "softmax")))
    model = keras.Sequential([layers.Input((64, 64, 3)), layers.Rescaling(1 / 255), layers.Flatten(), last])
    loss = "binary_crossentropy" if binary else "categorical_crossentropy"
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    run = open_tiny_run(tmp_path, "--epochs", 1)
    stage = utils.Stage("only", 1, x, y, lambda images, seed: keras.ops.cast(images, "float32"))
    weights = utils.class_weights(y, ("a", "b"))
    curriculum = utils.Curriculum([stage], 1, 8, 1, 4)
    history = run.fit(model, curriculum, utils.evaluation_dataset(x, y), class_weight=weights)
    single = np.asarray(keras.losses.get(loss)(y, model.predict_on_batch(x)))
    assert history["loss"][0] == pytest.approx(np.mean(single * np.array([2 / 3, 2 / 3, 2 / 3, 2])), rel=1e-4)
    assert history["val_loss"][0] == pytest.approx(np.mean(single), rel=1e-4)
    # A label that is shared out among the classes changes nothing for the others.
    soft = np.full((4, 2), 0.5, "float32")
    if not binary:
        stage = stage._replace(y=soft)
        run.history.clear()
        history = run.fit(
            model, utils.Curriculum([stage], 1, 8, 1, 4), utils.evaluation_dataset(x, y), class_weight=weights
        )
        assert np.isfinite(history["loss"][0])


def test_the_interval_is_wilsons():
    # 118 of 120, worked out from Wilson's formula (1927) with z = 1.959964: 94.13 % to 99.54 %.
    labels = np.zeros((120, 1), "float32")
    outputs = np.where(np.arange(120) < 118, 0.1, 0.9)[:, None]
    found = utils.evaluate(Outputs(outputs, "binary_crossentropy"), labels, labels, ("not smiling", "smiling"))
    assert found["interval"] == pytest.approx([0.94126, 0.99542], abs=1e-4)


def test_evaluate_prints_accuracy_interval_and_table(capsys):
    model = Outputs([[0.9, 0.1], [0.2, 0.8]], "categorical_crossentropy")
    utils.evaluate(model, np.zeros((2, 8, 8, 3)), utils.one_hot(np.array([0, 1]), 2), ("fist", "palm"))
    printed = capsys.readouterr().out
    assert "Test accuracy: 100.00% (2 of 2 right; 95 % interval 34.24% to 100.00%)" in printed
    assert [line.split() for line in printed.splitlines() if "palm" in line] == [["palm", "100.0%", "100.0%", "1"]]


def test_a_column_of_probabilities_becomes_two():
    np.testing.assert_allclose(class_probabilities(np.array([[0.3], [0.9]])), [[0.7, 0.3], [0.1, 0.9]])


def test_several_seeds_are_summed_up_as_students_t_says():
    summary = summarise({1: 0.97, 2: 0.99, 3: 0.98})
    # Worked out by hand: standard deviation 0.01, t of two degrees of freedom 4.3027.
    assert summary["mean"] == pytest.approx(0.98) and summary["standard_deviation"] == pytest.approx(0.01)
    assert summary["mean_interval"] == pytest.approx([0.98 - 4.3027 * 0.01 / 3**0.5, 1.0], abs=1e-4)
    assert summary["lowest"] == 0.97 and summary["highest"] == 0.99
    assert "mean_interval" not in summarise({1: 0.9})


def test_folds_are_summed_up_by_their_mean_and_by_all_images_together():
    confusions = {1: [[4, 1], [0, 5]], 2: [[5, 0], [0, 5]], 3: [[3, 2], [1, 3]]}
    metrics = {}
    for fold, confusion in confusions.items():
        right, images = np.trace(confusion), np.sum(confusion)
        balanced = np.mean(np.diag(confusion) / np.sum(confusion, axis=1))
        metrics[fold] = {"test_examples": int(images), "test_accuracy": right / images, "confusion_matrix": confusion}
        metrics[fold]["test_balanced_accuracy"] = balanced
    rows, summary = summarise_folds(metrics)
    assert [row[:3] for row in rows] == [(1, 10, 9), (2, 10, 10), (3, 9, 6)]
    assert [row[4] for row in rows] == pytest.approx([0.9, 1.0, (3 / 5 + 3 / 4) / 2])
    assert summary["mean"] == pytest.approx((0.9 + 1 + 6 / 9) / 3)
    assert summary["mean_balanced_accuracy"] == pytest.approx((0.9 + 1 + 0.675) / 3)
    assert (summary["right"], summary["images"]) == (25, 29)
    # 25 of 29, worked out from Wilson's formula (1927) with z = 1.959964.
    assert summary["interval"] == pytest.approx([0.69441, 0.94497], abs=1e-4)
    assert json.loads(json.dumps(summary)) == summary


def test_metrics_json_holds_what_a_reader_needs(tmp_path):
    run, model, code = tiny_run(tmp_path, "--epochs", 4, "--seed", 7)
    text = (tmp_path / "metrics.json").read_text()
    metrics = json.loads(text)
    assert code == 0 and "NaN" not in text
    expected = {
        "script": "tiny",
        "data": "real",
        "data_files": {"train_tiny.h5": "12ab", "test_tiny.h5": "34cd"},
        "seed": 7,
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.01,
        "dry_run": False,
        "deterministic": False,
        "mix_synthetic": True,
        "stages": [{"name": "first", "epochs": [1, 1]}, {"name": "second", "epochs": [2, 4]}],
        "examples_per_epoch": 27,
        "train_examples": 27,
        "synthetic_examples": 5,
        "validation_examples": 3,
        "test_examples": 9,
        "parameters": 1571,
        "temperature": run.temperature,
        "interrupted": False,
        "device": "CPU",
    }
    assert {key: metrics[key] for key in expected} == expected
    assert metrics["loss_weights"] is None and metrics["class_weights"] is True
    recalls = [entry["recall"] for entry in metrics["classes"]]
    assert metrics["test_balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert metrics["train_seconds"] > 0 and model.count_params() == 1571
    low, high = metrics["test_accuracy_interval"]
    assert 0 <= low <= metrics["test_accuracy"] <= high <= 1 and metrics["test_loss"] > 0
    assert 0 <= metrics["calibration_error_after"] <= 1 and 0 <= metrics["calibration_error_before"] <= 1
    assert [entry["name"] for entry in metrics["classes"]] == ["0", "1", "2"]
    assert [entry["examples"] for entry in metrics["classes"]] == [3, 3, 3]
    confusion = np.array(metrics["confusion_matrix"])
    assert confusion.sum() == 9 and np.trace(confusion) / 9 == metrics["test_accuracy"]
    for entry, row, column in zip(metrics["classes"], confusion, confusion.T):
        label = metrics["classes"].index(entry)
        assert entry["recall"] == pytest.approx(row[label] / 3)
        # JSON has no NaN: the precision of a class that was never predicted is null.
        assert entry["precision"] == (pytest.approx(column[label] / column.sum()) if column.sum() else None)
    assert set(metrics["versions"]) == {"python", "tensorflow", "keras", "numpy"}


def test_the_precision_of_a_class_that_is_never_predicted_is_null(tmp_path):
    run, model, _ = tiny_run(tmp_path, "--epochs", 1)
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([0 * kernel, np.array([0, 9, 0])])  # class 1, whatever the image
    data = run.data
    results = utils.evaluate(model, data.test_x, utils.one_hot(data.test_y, 3), data.class_names)
    run.finish(model, results, data.train_x)
    entries = read_json(tmp_path / "metrics.json")["classes"]
    assert entries[2] == {"name": "2", "precision": None, "recall": 0.0, "examples": 3}
    assert entries[1]["precision"] == pytest.approx(1 / 3) and entries[1]["recall"] == 1.0


# ------------------------------------------------------------------------- figures


def drawn_titles():
    """The title of every figure that is open, with the other text on it, in the order of drawing."""
    figures = [plt.figure(number) for number in plt.get_fignums()]
    return [" ".join([figure.get_suptitle(), *(text.get_text() for text in figure.texts)]) for figure in figures]


def a_curriculum(*epochs):
    x, y = np.zeros((1300, 1, 1, 3), np.uint8), np.zeros((1300, 1))
    names = ("weak augmentation", "other images added", "strong augmentation")
    stages = [utils.Stage(name, count, x, y, None) for name, count in zip(names, epochs)]
    return utils.Curriculum(stages, sum(epochs), 32, 1, 1300)


@pytest.mark.parametrize("kind", ["real", "synthetic"])
def test_every_figure_is_drawn_and_synthetic_data_are_marked(tmp_path, results, kind):
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    utils.plot_examples(x, np.array([0, 1, 2, 1, 2]), NAMES, tmp_path / "examples.png", kind)
    history = {key: [2.0, 1.0] for key in ("loss", "val_loss", "accuracy", "val_accuracy")}
    utils.plot_learning_curves(history, a_curriculum(1, 1), tmp_path / "learning_curves.png", kind)
    utils.plot_confusion_matrix(results, NAMES, tmp_path / "confusion_matrix.png", kind)
    utils.plot_mistakes(x, results, NAMES, tmp_path / "mistakes.png", kind)
    titles = drawn_titles()
    assert len(titles) == 4
    assert all(("SYNTHETIC" in title) == (kind == "synthetic") for title in titles)
    for path in tmp_path.glob("*.png"):
        assert np.ptp(matplotlib.image.imread(path)[..., :3]) > 0.5, f"{path.name} is blank"


def test_learning_curves_say_what_an_epoch_is_and_where_the_stages_begin(tmp_path):
    curriculum = a_curriculum(2, 5, 3)
    history = {key: np.linspace(2, 1, 10).tolist() for key in ("loss", "val_loss", "accuracy", "val_accuracy")}
    utils.plot_learning_curves(history, curriculum, tmp_path / "whole.png", "real")
    figure = plt.gcf()
    for ax in figure.axes:
        assert "epoch" in ax.get_xlabel() and "1,300 images" in ax.get_xlabel()
        lines = [line.get_xdata() for line in ax.lines]
        assert [list(xs) for xs in lines[:2]] == [list(range(1, 11))] * 2
        assert [xs[0] for xs in lines[2:]] == [0.5, 2.5, 7.5]  # between two epochs
    assert all(name in figure.get_supxlabel() for name, *_ in curriculum.boundaries)
    # After Ctrl-C, stages that were never reached are not drawn.
    history = {key: values[:2] for key, values in history.items()}
    utils.plot_learning_curves(history, curriculum, tmp_path / "part.png", "real")
    assert "weak augmentation" in plt.gcf().get_supxlabel() and "other" not in plt.gcf().get_supxlabel()


def test_mistakes_are_counted_and_their_absence_is_reported(tmp_path, results):
    x = np.zeros((5, 8, 8, 3), np.uint8)
    utils.plot_mistakes(x, results, NAMES, tmp_path / "some.png", "real")
    utils.plot_mistakes(x, {**results, "predictions": results["labels"]}, NAMES, tmp_path / "none.png", "real")
    some, none = drawn_titles()
    assert some.startswith("Mistakes: 2 of 5 test images")
    assert "None: all 5 test images were classified correctly." in none


def read_mistakes(folder):
    with open(folder / "mistakes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_mistakes_csv_names_the_image_both_classes_and_every_probability(tmp_path, results):
    run = open_tiny_run(tmp_path)
    run._save_mistakes(results)
    first, second = read_mistakes(tmp_path)  # the most confident first, as in the figure
    assert list(first.values()) == ["4", "2", "1", "0.100000", "0.900000", "0.000000"]
    assert list(second.values())[:3] == ["3", "2", "1"] and float(second["probability 1"]) == pytest.approx(0.7)
    assert list(first) == [
        "index in the test set",
        "true class",
        "predicted class",
        *(f"probability {n}" for n in NAMES),
    ]
    # A folder's images have names, whatever is in them.
    names = np.array([f"me/{n}, 'a'\n{n}.jpg" for n in range(5)], dtype=object)
    run.data = run.data._replace(source=run.data.source._replace(kind="folder"), test_names=names)
    run._save_mistakes(results)
    assert [row["file"] for row in read_mistakes(tmp_path)] == ["me/4, 'a'\\n4.jpg", "me/3, 'a'\\n3.jpg"]
    run._save_mistakes({**results, "predictions": results["labels"]})
    assert read_mistakes(tmp_path) == [] and "file," in (tmp_path / "mistakes.csv").read_text()


def test_a_mistakes_index_is_the_position_in_the_file(tmp_path, write_h5):
    """A dry run takes a few images of each class: the index is not that of the subset."""
    y = np.repeat(np.arange(6), 10)
    x = np.broadcast_to(np.arange(60, dtype=np.uint8).reshape(-1, 1, 1, 1), (60, 64, 64, 3))
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, x=x, y=y)
    data = utils.load_signs_dataset("real", tmp_path, dry_run=True)
    assert len(data.test_names) == 24 and data.test_x[:, 0, 0, 0].tolist() == data.test_names.tolist()


def test_a_caption_may_hold_what_matplotlib_takes_for_mathematics(tmp_path):
    image_grid(np.zeros((1, 8, 8, 3), np.uint8), ["a$\\x$.png\n3 (90.0%)"], "Title", tmp_path / "a.png", "real")
    assert (tmp_path / "a.png").stat().st_size > 1000


# --------------------------------------------------------------------- saved models


@pytest.mark.parametrize("script", ["happy_sequential", "signs_functional"])
def test_a_saved_model_takes_raw_pixels_one_or_many(tmp_path, script):
    model = __import__(script).build_model()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # as after some training
            layer.set_weights([np.random.default_rng(1).uniform(0.5, 1.5, w.shape) for w in layer.weights])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    together = loaded.predict(pixels, verbose=0)
    np.testing.assert_allclose(together, model.predict(pixels, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(loaded.predict(pixels[2:3], verbose=0)[0], together[2], rtol=1e-4, atol=1e-6)
