"""Images of your own, alone and in folders: ten crops, "not sure" instead of a guess, and the table of answers."""

import csv
import os
import pathlib
import types
import weakref

import keras
import numpy as np
import pytest
from PIL import Image

import signs_functional
from datasets.images import read_image
from support import predict as prediction
from support.ood import feature_bank
from support.predict import predict_images, ten_crop


def test_ten_crops_are_the_image_its_corners_and_their_mirror_images():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:4, :4] = 255  # the upper left corner, within the six rows and columns that other crops lack
    crops = ten_crop(image)
    assert crops.shape == (10, 64, 64, 3) and crops.dtype == np.uint8
    np.testing.assert_array_equal(crops[0], image)
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    assert [bool(crop.any()) for crop in crops[:5]] == [True, True, False, False, False]


@pytest.fixture
def predict(tmp_path, capsys):
    """Return a network, and a function that returns what is printed about `one.png` with an OOD threshold."""
    keras.utils.set_random_seed(1)
    model = signs_functional.build_model()
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    Image.fromarray(images[0]).save(tmp_path / "one.png")

    def printed(threshold, **options):
        bank = feature_bank(model, images, seed=1)
        metadata = {"classes": tuple("abcdef"), "data": "real", "ood_threshold": threshold, "feature_bank": bank}
        assert predict_images(model, metadata, [tmp_path / "one.png"], tmp_path / "out", **options) == 0
        return capsys.readouterr().out

    return model, printed


def test_low_confidence_and_unfamiliar_images_are_not_sure(predict):
    _, printed = predict
    assert "one.png: not sure, confidence below 70%; best guess " in printed(2.0)
    assert "one.png: not sure, confidence below 70% and unlike the training images (distance " in printed(-1.0)


def test_a_confident_prediction_is_stated_and_explained(predict, tmp_path):
    model, printed = predict
    head = model.layers[-1]
    kernel, _ = head.get_weights()
    head.set_weights([kernel, np.array([0, 0, 50, 0, 0, 0])])
    assert "one.png: c (100.0%); what the model saw: " in printed(2.0, tta=True, explain=True)
    assert "one.png: not sure, unlike the training images (distance " in printed(-1.0)
    names = {path.name for path in (tmp_path / "out" / "predictions").glob("*.png")}
    assert names == {"01_one.png", "predictions.png", "explanations.png"}


# ------------------------------------------------------------------- folders and the table

METADATA = {"classes": ("a", "b", "c", "=d", "e,e", "f"), "data": "real", "ood_threshold": None, "feature_bank": None}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return signs_functional.build_model()


def save_images(folder, count):
    """Save images of different colours, every third in a subfolder; return their paths in the order of their names."""
    (folder / "sub").mkdir(parents=True)
    paths = [folder / ("sub" if number % 3 == 0 else "") / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (80 + number % 5, 70), (number % 256, 9, number // 256)).save(path)
    return paths


def read_table(folder):
    with open(folder / "predictions" / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_answered_in_a_table_a_summary_and_a_sample_of_images(model, tmp_path, capsys):
    paths = save_images(tmp_path / "in", 70)
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "sub" / "text.jpg").write_text("not an image")
    (tmp_path / "in" / "notes.txt").write_text("left out")
    assert predict_images(model, METADATA, [tmp_path / "in"], tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "70 of 72 images answered: a: " in said.out and "0012.png: " not in said.out
    assert "empty.jpg: expected an image" in said.err and "text.jpg: expected an image" in said.err
    rows = {row["file"]: row for row in read_table(tmp_path / "out")}
    assert set(rows) == {str(path) for path in paths} | {
        str(tmp_path / "in" / name) for name in ("empty.jpg", "sub/text.jpg")
    }
    for path in paths:
        row = rows[str(path)]
        values = [float(row[f"probability {name}"]) for name in METADATA["classes"]]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["class"].lstrip("'") == METADATA["classes"][np.argmax(values)]
        assert (row["sure"] == "yes") == (row["reason"] == "") == (max(values) >= prediction.CONFIDENCE)
        # The answer is that for the image alone, cropped to its centre.
        assert [float(row[edge]) for edge in prediction.BOX[1::2]] == [0, 70]
        assert float(row["right"]) - float(row["left"]) == 70
    alone = model.predict_on_batch(np.stack([read_image(path, 64) for path in paths]).astype(np.float32))
    table = [[float(rows[str(path)][f"probability {name}"]) for name in METADATA["classes"]] for path in paths]
    np.testing.assert_allclose(table, alone, atol=1e-4)
    assert rows[str(tmp_path / "in" / "empty.jpg")]["sure"] == "no"
    assert "an empty file" in rows[str(tmp_path / "in" / "empty.jpg")]["reason"]
    drawn = list((tmp_path / "out" / "predictions").glob("*.png"))
    assert 22 <= len(drawn) <= 1 + prediction.FEW


def test_folders_without_images_are_named_with_what_is_in_them_and_the_rest_is_answered(model, tmp_path, capsys):
    for name in ("texts", "empty"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text("not an image")
    assert predict_images(model, METADATA, [tmp_path / "texts"], tmp_path / "out") == 1
    assert "texts: expected a folder with images (.jpg" in (said := capsys.readouterr().err) and "3 .txt" in said
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (70, 70)).save(tmp_path / "good.png")
    assert predict_images(model, METADATA, [tmp_path / "empty", tmp_path / "good.png"], tmp_path / "out") == 1
    assert "Received: no files" in capsys.readouterr().err
    assert [os.path.basename(row["file"]) for row in read_table(tmp_path / "out")] == ["good.png"]


def test_ctrl_c_keeps_what_was_answered(model, tmp_path, monkeypatch, capsys):
    paths = save_images(tmp_path / "in", 150)
    read = prediction.read_photo

    def interrupted(path, *arguments):
        if path.name == "0149.png":
            raise KeyboardInterrupt
        return read(path, *arguments)

    monkeypatch.setattr(prediction, "read_photo", interrupted)
    assert predict_images(model, METADATA, paths, tmp_path / "out") == 130
    assert len(read_table(tmp_path / "out")) == 128 and "128 of 150 images answered" in capsys.readouterr().out


def test_few_images_are_in_memory_at_a_time(model, tmp_path, monkeypatch):
    save_images(tmp_path / "in", 500)
    read, alive, most = prediction.read_photo, weakref.WeakSet(), []

    class Overview(np.ndarray):
        """Arrays cannot be members of a set, these can."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def counted(*arguments):
        photo = read(*arguments)
        alive.add(overview := photo.overview.view(Overview))
        most.append(len(alive))
        return photo._replace(overview=overview)

    monkeypatch.setattr(prediction, "read_photo", counted)
    assert predict_images(model, METADATA, [tmp_path / "in"], tmp_path / "out") == 0
    assert len(most) == 500 and max(most) <= 2 * prediction.BATCH + prediction.FEW + 8


def test_the_box_in_the_table_is_a_crop_that_can_be_repeated(model, tmp_path, capsys):
    image = np.full((300, 400, 3), (190, 195, 200), np.uint8)
    image[100:300, 150:230] = (205, 140, 105)
    Image.fromarray(image).save(tmp_path / "hand.png")
    assert predict_images(model, METADATA, [tmp_path / "hand.png"], tmp_path / "out", subject="hand") == 0
    assert "; hand found; what the model saw: " in capsys.readouterr().out
    (row,) = read_table(tmp_path / "out")
    left, top, right, bottom = (int(row[edge]) for edge in prediction.BOX)
    assert row["crop"] == "hand found" and right - left == bottom - top < 300
    seen = np.asarray(Image.open(tmp_path / "out" / "predictions" / "01_hand.png"))
    np.testing.assert_array_equal(seen, read_image(tmp_path / "hand.png", 64, (left, top, right - left)))
    Image.new("RGB", (90, 70)).save(tmp_path / "hand.png")
    assert predict_images(model, METADATA, [tmp_path / "hand.png"], tmp_path / "out", subject="hand") == 0
    assert "; no hand found: centre; what the model saw: " in capsys.readouterr().out


def test_without_the_package_that_finds_faces_the_centre_is_used_with_a_word(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Image.new("RGB", (90, 70)).save(tmp_path / "me.png")
    assert predict_images(model, METADATA, [tmp_path / "me.png"], tmp_path / "out", subject="face") == 0
    said = capsys.readouterr().out
    assert "The centre of each image is used. Finding faces needs" in said and "pip install" in said
    (row,) = read_table(tmp_path / "out")
    assert (row["left"], row["right"], row["crop"]) == ("10", "80", "")


@pytest.mark.parametrize(
    "count, tta, explain, in_numpy",
    [(30, False, False, True), (31, False, False, False), (3, True, False, True), (4, True, False, False)]
    + [(1, False, True, False)],
)
def test_tensorflow_starts_only_for_many_images_and_for_heatmaps(monkeypatch, count, tta, explain, in_numpy):
    class Loaded(Exception):
        """Ends the prediction where the model is loaded."""

    def load_trained_model(*arguments):
        raise Loaded(arguments[-1] is not prediction.load_keras_model)

    monkeypatch.setattr(prediction, "load_trained_model", load_trained_model)
    monkeypatch.setattr(prediction, "FEW_FOR_NUMPY", 30)
    args = types.SimpleNamespace(output_dir=".", predict=[pathlib.Path("a.png")] * count, show=False)
    args.tta, args.explain, started = tta, explain, []
    with pytest.raises(Loaded) as loaded:
        prediction.predict(args, "signs_functional", ("0", "1"), None, lambda: started.append(1))
    assert loaded.value.args[0] == in_numpy and started == [1] * (not in_numpy)


@pytest.mark.parametrize(
    "metadata, subject",
    [
        ({"data": "real", "classes": ["0", "1"]}, "hand"),
        ({"data": "folder", "classes": ["0", "1"]}, None),
        ({"data": "real", "classes": ["cat", "dog"]}, None),
    ],
)
def test_hands_are_looked_for_only_if_the_classes_are_those_of_the_script(monkeypatch, metadata, subject):
    asked = []
    monkeypatch.setattr(prediction, "load_trained_model", lambda *arguments: (None, metadata))
    monkeypatch.setattr(prediction, "predict_images", lambda *arguments, **options: asked.append(options) or 0)
    args = types.SimpleNamespace(output_dir=".", predict=[pathlib.Path("a.png")], crop="auto", tta=False, explain=False)
    args.show = False
    assert prediction.predict(args, "signs_functional", ("0", "1"), None, lambda: None) == 0
    assert asked[0]["subject"] == subject and asked[0]["crop"] == "auto"
