"""Metrics and files: what is printed and written is what was measured."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import open_tiny_run, tiny_dataset, tiny_results, tiny_run, unchanged

import cnn_utils as utils
from basics.files import read_json
from datasets import SIGNS
from support.evaluation.outputs import class_probabilities
from support.evaluation.results import certainty, coverage, doubts
from support.prediction.answers import classify
from support.prediction.trained_model import load_trained_model
from support.seeds import summarize, summarize_folds
from support.training.run import save_mistakes

NAMES = ("0", "1", "2")


@pytest.fixture
def results():
    """Five images, three right; class 2 is never predicted."""
    outputs = [[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.9, 0.0]]
    return tiny_results(outputs, np.eye(3)[[0, 1, 0, 2, 2]], loss=0.25)


# ------------------------------------------------------------------------- metrics


def test_measure_gives_the_numbers_of_a_hand_count(results):
    assert results.accuracy == 3 / 5 and results.loss == 0.25
    assert results.labels.tolist() == [0, 1, 0, 2, 2] and results.predictions.tolist() == [0, 1, 0, 1, 1]
    assert results.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [0, 2, 0]]
    np.testing.assert_allclose(results.precision, [1, 1 / 3, np.nan])
    np.testing.assert_allclose(results.recall, [1, 1, 0])
    assert results.mistakes.tolist() == [4, 3]  # the most confident first


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_are_there(results, capsys):
    assert results.balanced_accuracy == pytest.approx((1 + 1 + 0) / 3)
    y = np.eye(3)[[0, 0, 1]]  # none of class 2
    found = tiny_results([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]], y)
    assert found.balanced_accuracy == pytest.approx((0.5 + 1) / 2) and np.isnan(found.recall[2])
    assert "Balanced accuracy: 75.00%" in capsys.readouterr().out


def test_a_sigmoids_output_is_the_probability_of_class_1():
    outputs, y = np.array([[0.2], [0.7], [0.6]]), np.array([[0.0], [1.0], [0.0]])
    found = utils.measure(outputs, y, ("not smiling", "smiling"), 0.5)
    assert found.predictions.tolist() == [0, 1, 1] and found.labels.tolist() == [0, 1, 0]
    assert found.confusion.tolist() == [[1, 1], [0, 1]]
    np.testing.assert_allclose(found.probabilities, [[0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])


# --------------------------------------------------------------------- certainty


def test_an_answer_is_sure_if_it_is_probable_and_the_image_familiar():
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.65, 0.35], [0.5, 0.5]])
    distances = np.array([0.2, 0.31, 0.1, 0.4])
    assert doubts(probabilities, distances, 0.7, 0.3) == [
        "",
        "unlike the training images",
        "confidence below 70%",
        "confidence below 70%, unlike the training images",
    ]
    assert doubts(probabilities, None, 0.655, None) == ["", "", *["confidence below 65.5%"] * 2]
    assert doubts(probabilities, None, 0.0, None) == [""] * 4
    found = certainty(probabilities, np.array([0, 0, 0, 1]), distances, 0.7, 0.3)
    assert found["not_sure_below"] == 0.7 and found["ood_threshold"] == 0.3
    assert found["sure"] == {"answers": 1, "wrong": 0}
    assert found["below"] == {"answers": 2, "wrong": 1}
    assert found["unlike"] == {"answers": 1, "wrong": 1}
    assert found["coverage"] == coverage(probabilities, np.array([0, 0, 0, 1])) and json.dumps(found)


def test_coverage_counts_the_most_certain_answers():
    confidence = np.random.default_rng(0).permutation(np.linspace(0.51, 0.99, 50))
    labels = (confidence < 0.6).astype(int)  # wrong if less certain than that
    rows = coverage(np.column_stack([confidence, 1 - confidence]), labels)
    assert [row["percent"] for row in rows] == [100, 90, 80, 60]
    assert [row["answers"] for row in rows] == [50, 45, 40, 30]
    assert [row["wrong"] for row in rows] == [10, 5, 0, 0]
    assert [row["least_probability"] for row in rows] == pytest.approx(sorted(confidence)[0:1] + [
        sorted(confidence)[place] for place in (5, 10, 20)])  # fmt: skip


def test_answers_that_are_equally_certain_are_counted_together():
    probabilities = np.array([[0.9, 0.1]] * 3 + [[1.0, 0.0]] * 7)
    rows = coverage(probabilities, np.array([1] * 3 + [0] * 6 + [1]))
    # Which of the seven most certain ones come first is only the order of the files.
    assert [(row["answers"], row["wrong"]) for row in rows] == [(10, 4), (10, 4), (10, 4), (7, 1)]
    # Even of a single answer, some are the most certain.
    assert [row["answers"] for row in coverage(probabilities[:1], np.array([0]))] == [1] * 4


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
    weights = utils.class_weights(y, ("a", "b"))
    single = np.asarray(keras.losses.get(loss)(y, model.predict_on_batch(x)))

    def history(y):
        run = open_tiny_run(tmp_path, "--epochs", 1)
        batches = utils.Batches([(1, (x, y), unchanged)], 1, 4, 1, 4)
        with run.training(model, batches):
            model.fit(
                batches.dataset(),
                validation_data=utils.evaluation_batches(x, y),
                steps_per_epoch=1,
                class_weight=weights,
                callbacks=run.callbacks,
                shuffle=False,
                verbose=0,
            )
        return run.history

    found = history(y)
    assert found["loss"][0] == pytest.approx(np.mean(single * np.array([2 / 3, 2 / 3, 2 / 3, 2])), rel=1e-4)
    assert found["val_loss"][0] == pytest.approx(np.mean(single), rel=1e-4)
    if not binary:  # a label that is spread over the classes changes nothing for the others
        assert np.isfinite(history(np.full((4, 2), 0.5, "float32"))["loss"][0])


def test_the_interval_is_wilsons():
    # 118 of 120, worked out from Wilson's formula (1927) with z = 1.959964: 94.13% to 99.54%.
    outputs = np.where(np.arange(120) < 118, 0.1, 0.9)[:, None]
    found = utils.measure(outputs, np.zeros((120, 1)), ("not smiling", "smiling"), 0.5)
    assert found.interval == pytest.approx([0.94126, 0.99542], abs=1e-4)


def test_measure_prints_accuracy_interval_and_table(capsys):
    utils.measure(np.array([[0.9, 0.1], [0.2, 0.8]]), np.eye(2), ("fist", "palm"), 0.125)
    printed = capsys.readouterr().out
    assert "Test loss:     0.1250" in printed
    assert "Test accuracy: 100.00% (2 of 2 right; 95% interval 34.24% to 100.00%)" in printed
    assert [line.split() for line in printed.splitlines() if "palm" in line] == [["palm", "100.0%", "100.0%", "1"]]


def test_a_column_of_probabilities_becomes_two():
    np.testing.assert_allclose(class_probabilities(np.array([[0.3], [0.9]])), [[0.7, 0.3], [0.1, 0.9]])


def test_several_seeds_are_summed_up_as_students_t_says():
    summary = summarize({1: 0.97, 2: 0.99, 3: 0.98})
    # Worked out by hand: standard deviation 0.01, t of two degrees of freedom 4.3027.
    assert summary["mean"] == pytest.approx(0.98) and summary["standard_deviation"] == pytest.approx(0.01)
    assert summary["mean_interval"] == pytest.approx([0.98 - 4.3027 * 0.01 / 3**0.5, 1.0], abs=1e-4)
    assert summary["lowest"] == 0.97 and summary["highest"] == 0.99
    assert "mean_interval" not in summarize({1: 0.9})


def test_folds_are_summed_up_by_their_mean_and_by_all_images_together():
    confusions = {1: [[4, 1], [0, 5]], 2: [[5, 0], [0, 5]], 3: [[3, 2], [1, 3]]}
    metrics = {}
    for fold, confusion in confusions.items():
        right, images = np.trace(confusion), np.sum(confusion)
        balanced = np.mean(np.diag(confusion) / np.sum(confusion, axis=1))
        found = {"test_examples": int(images), "test_accuracy": right / images, "confusion_matrix": confusion}
        sure = {"sure": {"answers": int(images) - 1, "wrong": 1}}
        metrics[fold] = {"results": {**found, "test_balanced_accuracy": balanced, "certainty": sure}}
    rows, summary = summarize_folds(metrics)
    assert [row[:3] for row in rows] == [(1, 10, 9), (2, 10, 10), (3, 9, 6)]
    assert [row[4] for row in rows] == pytest.approx([0.9, 1.0, (3 / 5 + 3 / 4) / 2])
    assert summary["mean"] == pytest.approx((0.9 + 1 + 6 / 9) / 3)
    assert summary["mean_balanced_accuracy"] == pytest.approx((0.9 + 1 + 0.675) / 3)
    assert (summary["right"], summary["images"]) == (25, 29)
    assert summary["sure"] == {"answers": 26, "wrong": 3}
    # 25 of 29, worked out from Wilson's formula (1927) with z = 1.959964.
    assert summary["interval"] == pytest.approx([0.69441, 0.94497], abs=1e-4)
    assert json.loads(json.dumps(summary)) == summary


def test_metrics_json_holds_what_a_reader_needs(tmp_path):
    run, model, code = tiny_run(tmp_path, "--epochs", 4, "--seed", 7)
    text = (tmp_path / "metrics.json").read_text()
    metrics = json.loads(text)
    assert code == 0 and "NaN" not in text and list(metrics) == ["settings", "training", "results"]
    settings, training, results = metrics.values()
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
        "class_weights": True,
    }
    assert {key: settings[key] for key in expected} == expected
    expected = {
        "schedule": [{"name": "unchanged", "epochs": [1, 4]}],
        "examples_per_epoch": 27,
        "train_examples": 27,
        "synthetic_examples": 5,
        "validation_examples": 3,
        "class_weights": None,
        "parameters": model.count_params(),
        "interrupted": False,
        "device": "CPU",
    }
    assert {key: training[key] for key in expected} == expected
    assert training["seconds"] > 0 and 0.1 <= training["temperature"] <= 10
    assert set(training["versions"]) == {"python", "tensorflow", "keras", "numpy"}
    assert results["test_examples"] == 9 and results["test_loss"] > 0
    recalls = [entry["recall"] for entry in results["classes"]]
    assert results["test_balanced_accuracy"] == pytest.approx(np.mean(recalls))
    low, high = results["test_accuracy_interval"]
    assert 0 <= low <= results["test_accuracy"] <= high <= 1
    assert 0 <= results["calibration_error_after"] <= 1 and 0 <= results["calibration_error_before"] <= 1
    assert [entry["name"] for entry in results["classes"]] == ["0", "1", "2"]
    assert [entry["examples"] for entry in results["classes"]] == [3, 3, 3]
    confusion = np.array(results["confusion_matrix"])
    assert confusion.sum() == 9 and np.trace(confusion) / 9 == results["test_accuracy"]
    for label, (entry, row, column) in enumerate(zip(results["classes"], confusion, confusion.T)):
        assert entry["recall"] == pytest.approx(row[label] / 3)
        # JSON has no NaN: the precision of a class that was never predicted is null.
        assert entry["precision"] == (pytest.approx(column[label] / column.sum()) if column.sum() else None)


def test_the_precision_of_a_class_that_is_never_predicted_is_null(tmp_path):
    run, model, _ = tiny_run(tmp_path, "--epochs", 1)
    outputs = np.tile([0.1, 0.8, 0.1], (9, 1))  # class 1, whatever the image
    results = tiny_results(outputs, utils.one_hot(run.data.test_y, 3))
    run.save_results(model, results, run.data.train_x, temperature=1.0)
    entries = read_json(tmp_path / "metrics.json")["results"]["classes"]
    assert entries[2] == {"name": "2", "precision": None, "recall": 0.0, "examples": 3}
    assert entries[1]["precision"] == pytest.approx(1 / 3) and entries[1]["recall"] == 1.0


def test_the_report_and_predict_agree_on_what_is_sure(tmp_path, capsys):
    run, _, _ = tiny_run(tmp_path, "--epochs", 2, "--not-sure-below", "0.38")
    model, metadata = load_trained_model(tmp_path, "tiny", SIGNS)
    answers = classify(model, metadata, run.data.test_x[:, None])
    sure = [answer for answer in answers if not answer.reason]
    found = read_json(tmp_path / "metrics.json")["results"]["certainty"]
    assert found["not_sure_below"] == metadata.not_sure_below == 0.38
    assert found["ood_threshold"] == metadata.ood_threshold
    assert found["sure"]["answers"] == len(sure)
    assert found["below"]["answers"] == sum("confidence" in answer.reason for answer in answers)
    assert sum(found[name]["answers"] for name in ("sure", "below", "unlike")) == 9
    right = [answer.probabilities.argmax() == label for answer, label in zip(answers, run.data.test_y)]
    wrong = sum(not answer.reason and not right for answer, right in zip(answers, right))
    assert found["sure"]["wrong"] == wrong
    line = f"Sure answers: {len(sure)} of 9, {wrong} of them wrong (probability of at least 38%, and like the training"
    assert line in capsys.readouterr().out


# ------------------------------------------------------------------------ mistakes


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_mistakes_csv_names_the_image_both_classes_and_every_probability(tmp_path, results):
    data, path = tiny_dataset(), tmp_path / "mistakes.csv"
    save_mistakes(data, results, path)
    first, second = read_table(path)  # the most confident first, as in the figure
    assert list(first.values()) == ["4", "2", "1", "0.100000", "0.900000", "0.000000"]
    assert list(second.values())[:3] == ["3", "2", "1"] and float(second["probability 1"]) == pytest.approx(0.7)
    probabilities = [f"probability {name}" for name in NAMES]
    assert list(first) == ["index in the test set", "true class", "predicted class", *probabilities]
    save_mistakes(data, results, path, fold="1/2")
    assert "index in the training set" in read_table(path)[0]
    # A folder's images have names, whatever is in them.
    names = np.array([f"me/{n}, 'a'\n{n}.jpg" for n in range(5)], dtype=object)
    folder = data._replace(source=data.source._replace(kind="folder"), test_names=names)
    save_mistakes(folder, results, path)
    assert [row["file"] for row in read_table(path)] == ["me/4, 'a'\\n4.jpg", "me/3, 'a'\\n3.jpg"]
    save_mistakes(folder, results._replace(predictions=results.labels), path)
    assert read_table(path) == [] and "file," in path.read_text()


def test_a_mistakes_index_is_the_position_in_the_file(tmp_path, write_h5):
    """A dry run takes a few images of each class: the index is not that of the subset."""
    y = np.repeat(np.arange(6), 10)
    x = np.broadcast_to(np.arange(60, dtype=np.uint8).reshape(-1, 1, 1, 1), (60, 64, 64, 3))
    for part in ("train", "test"):
        write_h5(tmp_path / f"{part}_signs.h5", part, x=x, y=y)
    data = utils.load_signs_dataset("real", tmp_path, dry_run=True)
    assert len(data.test_names) == 24 and data.test_x[:, 0, 0, 0].tolist() == data.test_names.tolist()


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
