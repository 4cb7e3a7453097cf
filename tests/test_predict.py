"""Images of your own, alone and in folders: ten crops, "not sure" instead of a guess, and the table of answers."""

import collections
import csv
import errno
import os
import pathlib
import re
import types
import weakref

import keras
import numpy as np
import pytest
from PIL import Image

import signs_functional
from basics.errors import InputError
from datasets import HAPPY, SIGNS
from datasets.images import read_image
from support.evaluation.ood import feature_bank
from support.evaluation.results import NOT_SURE_BELOW
from support.prediction import answers as prediction
from support.prediction.answers import list_images, predict_images, ten_crop
from support.prediction.trained_model import Metadata
from support.training.run import save_model


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
        metadata = Metadata(tuple("abcdef"), SIGNS, "real", ood_threshold=threshold, feature_bank=bank)
        assert predict_images(model, metadata, [tmp_path / "one.png"], [], tmp_path / "out", **options) == 0
        return capsys.readouterr().out

    return model, printed


def test_low_confidence_and_unfamiliar_images_are_not_sure(predict):
    _, printed = predict
    line = r"^one\.png  not sure  [a-f]\? \d\d\.\d%  confidence below 70%"
    assert re.search(line + "$", printed(2.0), re.MULTILINE)
    assert re.search(line + ", unlike the training images$", printed(-1.0), re.MULTILINE)


def test_a_confident_prediction_is_stated_and_explained(predict, tmp_path):
    model, printed = predict
    head = model.layers[-1]
    kernel, _ = head.get_weights()
    head.set_weights([kernel, np.array([0, 0, 50, 0, 0, 0])])
    said = printed(2.0, tta=True, explain=True)
    assert "\none.png  c  100.0%\n" in said
    folder = tmp_path / "out" / "predictions"
    # The folder is named once, at the end.
    assert said.count("Saved") == 1 and said.splitlines()[-1].startswith(f"Saved in {folder}: predictions.csv")
    names = {path.name for path in folder.iterdir()}
    assert names == {"01_one.png", "predictions.png", "explanations.png", "predictions.csv"}
    # The folder holds the files of the last call alone.
    assert "one.png  not sure  c? 100.0%  unlike the training images\n" in printed(-1.0)
    assert {path.name for path in folder.iterdir()} == {"01_one.png", "predictions.png", "predictions.csv"}
    (row,) = read_table(tmp_path / "out")
    assert float(row["distance"]) > float(row["distance limit"]) == -1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions"]


@pytest.mark.parametrize("below, reason", [
    (0.0, ""),
    (0.5, ""),
    (0.64, "confidence below 64%"),
    (0.975, "confidence below 97.5%"),
    (1.0, "confidence below 100%"),
])  # fmt: skip
def test_the_threshold_in_the_metadata_decides_what_is_sure(predict, below, reason):
    model, _ = predict
    kernel, _ = model.layers[-1].get_weights()
    bias = np.log([0.6, 0.08, 0.08, 0.08, 0.08, 0.08])
    model.layers[-1].set_weights([0 * kernel, bias])
    images = np.zeros((1, 64, 64, 3), np.uint8)
    (found,) = prediction.classify(model, METADATA._replace(not_sure_below=below), images[:, None])
    assert found.probabilities[0] == pytest.approx(0.6) and found.reason == reason


# ------------------------------------------------------------------- folders and the table

METADATA = Metadata(("a", "b", "c", "=d", "e,e", "f"), SIGNS, "real")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    return signs_functional.build_model()


def save_images(folder, count):
    """Save images of different colors, every third in a subfolder; return their paths in the order of their names."""
    (folder / "sub").mkdir(parents=True)
    paths = [folder / ("sub" if number % 3 == 0 else "") / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (80 + number % 5, 70), (number % 256, 9, number // 256)).save(path)
    return paths


def test_a_recursive_pattern_finds_each_image_once(tmp_path, monkeypatch):
    for name in ("a.png", "sub/b.png", "sub/deep/c.png", "sub/deep/d.txt"):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    for pattern in ("all/**", "all/**/*", "**"):
        files, faults = list_images([pathlib.Path(pattern)])
        assert sorted(map(str, files)) == ["all/a.png", "all/sub/b.png", "all/sub/deep/c.png"] and not faults
    assert list(map(str, list_images([pathlib.Path("all/**/*.png")])[0]))[-1] == "all/sub/deep/c.png"


def read_table(folder):
    with open(folder / "predictions" / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answer(model, paths, folder, **options):
    """Do what --predict does with the paths and a loaded model."""
    return predict_images(model, METADATA, *list_images(paths), folder, **options)


def test_a_folder_is_answered_in_a_table_a_summary_and_a_sample_of_images(model, tmp_path, capsys):
    paths = save_images(tmp_path / "in", 70)
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "sub" / "text.jpg").write_text("not an image")
    (tmp_path / "in" / "notes.txt").write_text("left out")
    assert answer(model, [tmp_path / "in"], tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "70 of 72 images classified" in said.out and "0012.png" not in said.out
    faults = [line for line in said.err.splitlines() if "error: " in line]
    assert len(faults) == 2 and "empty.jpg" in faults[0] and "text.jpg" in faults[1]
    rows = {row["file"]: row for row in read_table(tmp_path / "out")}
    assert set(rows) == {str(path) for path in paths} | {
        str(tmp_path / "in" / name) for name in ("empty.jpg", "sub/text.jpg")
    }
    for path in paths:
        row = rows[str(path)]
        values = [float(row[f"probability {name}"]) for name in METADATA.classes]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["class"].lstrip("'") == METADATA.classes[np.argmax(values)]
        assert (row["sure"] == "yes") == (row["reason"] == "") == (max(values) >= NOT_SURE_BELOW)
        # The answer is that for the image alone, cropped to its center.
        assert [float(row[edge]) for edge in prediction.BOX[1::2]] == [0, 70]
        assert float(row["right"]) - float(row["left"]) == 70
    alone = model.predict_on_batch(np.stack([read_image(path, 64) for path in paths]).astype(np.float32))
    table = [[float(rows[str(path)][f"probability {name}"]) for name in METADATA.classes] for path in paths]
    np.testing.assert_allclose(table, alone, atol=1e-4)
    assert rows[str(tmp_path / "in" / "empty.jpg")]["sure"] == "no"
    assert "is an empty file" in rows[str(tmp_path / "in" / "empty.jpg")]["reason"]
    drawn = list((tmp_path / "out" / "predictions").glob("*.png"))
    assert 22 <= len(drawn) <= 1 + prediction.FEW
    # The printed counts are those of the table, a line for each class.
    shown = {row["file"]: row["class"].lstrip("'") if row["sure"] == "yes" else "not sure" for row in rows.values()}
    counts = collections.Counter(shown[str(path)] for path in paths)
    for name in (*METADATA.classes, "not sure"):
        assert re.search(rf"^  {re.escape(name)} +{counts[name]}$", said.out, re.MULTILINE)


def test_folders_without_images_are_named_with_what_is_in_them_and_the_rest_is_answered(model, tmp_path, capsys):
    for name in ("texts", "empty"):
        (tmp_path / name).mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text("not an image")
    assert answer(model, [tmp_path / "texts"], tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("texts has no images (.jpg, .png, .webp, .tif, ...), but 3 .txt\n")
    assert not (tmp_path / "out").exists()
    Image.new("RGB", (70, 70)).save(tmp_path / "good.png")
    assert answer(model, [tmp_path / "empty", tmp_path / "good.png"], tmp_path / "out") == 1
    assert "empty has no images" in (said := capsys.readouterr().err) and "but no files at all" in said
    assert [os.path.basename(row["file"]) for row in read_table(tmp_path / "out")] == ["good.png"]


def test_a_pattern_stands_for_its_files(tmp_path, monkeypatch):
    for name in ("b.png", "a.png", "c.txt", "[1].png", "1.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "d.png").write_text("")
    monkeypatch.chdir(tmp_path)

    def listed(*names):
        files, faults = list_images(map(pathlib.Path, names))
        return [*map(str, files), *faults]

    assert listed("?.png") == ["1.png", "a.png", "b.png"] and listed("*.jpg") == ["*.jpg matches no file"]
    assert listed("[1].png") == ["[1].png"]  # a name, not a pattern
    assert listed("*b.png", "c.txt") == ["b.png", "sub.png/d.png", "c.txt"]


def folder_content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_earlier_answers_stay_if_no_image_can_be_read(model, tmp_path, capsys):
    Image.new("RGB", (70, 70)).save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("not an image")
    assert answer(model, [tmp_path / "good.png"], tmp_path / "out") == 0
    before = folder_content(tmp_path / "out")
    capsys.readouterr()
    assert answer(model, [tmp_path / "nowhere.jpg", tmp_path / "text.jpg"], tmp_path / "out") == 1
    said = capsys.readouterr()
    assert said.out == "" and [line[:7] for line in said.err.splitlines()] == ["error: ", "error: "]
    assert folder_content(tmp_path / "out") == before and len(before) == 3


def test_earlier_answers_stay_if_the_new_ones_cannot_be_saved(model, tmp_path, monkeypatch):
    Image.new("RGB", (70, 70)).save(tmp_path / "good.png")
    assert answer(model, [tmp_path / "good.png"], tmp_path / "out") == 0
    before = folder_content(tmp_path / "out")

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prediction, "_save_pixels", full_disk)
    with pytest.raises(InputError, match="predictions cannot be saved"):
        answer(model, [tmp_path / "good.png"], tmp_path / "out")
    assert folder_content(tmp_path / "out") == before


def test_a_part_smaller_than_a_pixel_of_the_overview_is_drawn(model, tmp_path):
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    assert answer(model, [tmp_path / "large.png"], tmp_path / "out", crop=(3990, 50, 8)) == 0
    Image.new("RGB", (2000, 3)).save(tmp_path / "long.png")
    assert answer(model, [tmp_path / "long.png", tmp_path / "large.png"], tmp_path / "out") == 0
    assert [row["file"] for row in read_table(tmp_path / "out")] == [
        str(tmp_path / f"{n}.png") for n in ("long", "large")
    ]


def test_files_of_the_same_name_are_told_apart(model, tmp_path, capsys):
    paths = [tmp_path / folder / "me.png" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        Image.new("RGB", (70, 70)).save(path)
    assert answer(model, paths, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert all(f"\n{path}  " in said for path in paths)


def test_names_of_wide_characters_are_aligned(model, tmp_path, capsys):
    names = ["東京.png", "abc.png", "e\u0301.png"]
    for name in names:
        Image.new("RGB", (70, 70)).save(tmp_path / name)
    assert answer(model, [tmp_path / name for name in names], tmp_path / "out") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ".png  " in line]
    # Two columns for each of the two characters, and none for the accent.
    assert [line.split(".png")[1].index("not sure") for line in lines] == [2, 3, 5]


def test_ctrl_c_keeps_what_was_answered(model, tmp_path, monkeypatch, capsys):
    paths = save_images(tmp_path / "in", 150)
    read = prediction.read_photo

    def interrupted(path, **options):
        if path.name == "0149.png":
            raise KeyboardInterrupt
        return read(path, **options)

    monkeypatch.setattr(prediction, "read_photo", interrupted)
    assert answer(model, paths, tmp_path / "out") == 130
    assert len(read_table(tmp_path / "out")) == 128 and "128 of 150 images classified" in capsys.readouterr().out


def test_ctrl_c_while_drawing_keeps_the_table(model, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "_draw", interrupted)
    assert answer(model, save_images(tmp_path / "in", 3), tmp_path / "out") == 130
    assert len(read_table(tmp_path / "out")) == 3


def test_ctrl_c_before_the_first_answer_leaves_earlier_ones(model, tmp_path, monkeypatch):
    paths = save_images(tmp_path / "in", 2)
    assert answer(model, paths, tmp_path / "out") == 0
    before = folder_content(tmp_path / "out")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "read_photo", interrupted)
    assert answer(model, paths, tmp_path / "out") == 130
    assert folder_content(tmp_path / "out") == before


def test_few_images_are_in_memory_at_a_time(model, tmp_path, monkeypatch):
    save_images(tmp_path / "in", 500)
    read, alive, most = prediction.read_photo, weakref.WeakSet(), []

    class Overview(np.ndarray):
        """Arrays cannot be members of a set, these can."""

        __hash__ = object.__hash__

        def __eq__(self, other):
            return self is other

    def counted(path, **options):
        photo = read(path, **options)
        alive.add(overview := photo.overview.view(Overview))
        most.append(len(alive))
        return photo._replace(overview=overview)

    monkeypatch.setattr(prediction, "read_photo", counted)
    assert answer(model, [tmp_path / "in"], tmp_path / "out") == 0
    assert len(most) == 500 and max(most) <= 2 * prediction.BATCH + prediction.FEW + 8


def test_the_box_in_the_table_is_a_crop_that_can_be_repeated(model, tmp_path, capsys):
    image = np.full((300, 400, 3), (190, 195, 200), np.uint8)
    image[100:300, 150:230] = (205, 140, 105)
    Image.fromarray(image).save(tmp_path / "hand.png")
    assert answer(model, [tmp_path / "hand.png"], tmp_path / "out", subject="hand") == 0
    assert "; hand found\n" in capsys.readouterr().out
    (row,) = read_table(tmp_path / "out")
    left, top, right, bottom = (int(row[edge]) for edge in prediction.BOX)
    assert row["crop"] == "hand found" and right - left == bottom - top < 300
    seen = np.asarray(Image.open(tmp_path / "out" / "predictions" / "01_hand.png"))
    np.testing.assert_array_equal(seen, read_image(tmp_path / "hand.png", 64, (left, top, right - left)))
    Image.new("RGB", (90, 70)).save(tmp_path / "hand.png")
    assert answer(model, [tmp_path / "hand.png"], tmp_path / "out", subject="hand") == 0
    assert "; no hand found: center\n" in capsys.readouterr().out


@pytest.fixture
def sure_model(model):
    """A network whose answer is always c."""
    sure = keras.models.clone_model(model)
    kernel, _ = sure.layers[-1].get_weights()
    sure.layers[-1].set_weights([0 * kernel, np.array([0, 0, 50, 0, 0, 0])])
    return sure


def test_without_a_face_there_is_no_sure_answer(sure_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prediction, "face_finder", lambda: lambda image: None)
    Image.new("RGB", (90, 70)).save(tmp_path / "wall.png")
    # An image no larger than the network's input is a crop already.
    Image.new("RGB", (64, 64)).save(tmp_path / "crop.png")
    paths = [tmp_path / "wall.png", tmp_path / "crop.png"]
    assert answer(sure_model, paths, tmp_path / "out", subject="face") == 0
    said = capsys.readouterr().out
    assert "\nwall.png  not sure  c? 100.0%  no face found\n" in said
    assert "\ncrop.png  c         100.0%     no face found: center\n" in said
    assert "No face was found in 1 of the images. If a face fills the image, use --crop center" in said
    assert [(row["sure"], row["reason"]) for row in read_table(tmp_path / "out")] == [
        ("no", "no face found"),
        ("yes", ""),
    ]
    # A hand that fills the image is not found, but it need not be.
    assert answer(sure_model, paths, tmp_path / "out", subject="hand") == 0
    assert "\nwall.png  c  100.0%  no hand found: center\n" in capsys.readouterr().out
    # Where nothing is looked for, nothing can be missing.
    assert answer(sure_model, paths, tmp_path / "out", subject="face", crop="center") == 0
    assert "\nwall.png  c  100.0%\n" in capsys.readouterr().out


def test_without_the_package_that_finds_faces_the_center_is_used(sure_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Image.new("RGB", (90, 70)).save(tmp_path / "me.png")
    assert answer(sure_model, [tmp_path / "me.png"] * 3, tmp_path / "out", subject="face") == 0
    said = capsys.readouterr().out
    assert said.count("Finding faces needs cv2: pip install") == 1
    assert "Until then, the center of each image is used" in said and "not sure" not in said
    row, *_ = read_table(tmp_path / "out")
    assert (row["left"], row["right"], row["crop"], row["sure"]) == ("10", "80", "", "yes")


# ------------------------------------------------------------------- the command


@pytest.fixture
def args(tmp_path):
    """The parsed command line of --predict."""
    return types.SimpleNamespace(
        script="signs_functional",
        task=SIGNS,
        network="signs_functional",
        output_dir=tmp_path,
        predict=[pathlib.Path("a.png")],
        crop="auto",
        tta=False,
        explain=False,
        show=False,
        seed=1,
        weights=None,
        not_sure_below=None,
    )


@pytest.mark.parametrize(
    "count, size, tta, explain, in_numpy",
    [
        (30, 64, False, False, True),
        (31, 64, False, False, False),
        (13, 96, False, False, True),
        (14, 96, False, False, False),
        (3, 64, True, False, True),
        (4, 64, True, False, False),
        (1, 64, False, True, False),
    ],
)
def test_tensorflow_starts_only_for_many_images_and_for_heatmaps(
    args, monkeypatch, count, size, tta, explain, in_numpy
):
    started = []
    monkeypatch.setattr(prediction, "FEW_FOR_NUMPY", 30)
    network = types.SimpleNamespace(input_shape=(None, size, size, 3))
    monkeypatch.setattr(prediction, "Network", lambda path: network)
    monkeypatch.setattr(prediction, "start_keras", lambda *_, **__: started.append(1))
    monkeypatch.setattr(prediction, "load_keras_model", lambda path: "in Keras")

    class Loaded(Exception):
        """Ends the prediction where the model is loaded."""

    def load_trained_model(*arguments, **_):
        raise Loaded(arguments[-1]("model.keras"))

    monkeypatch.setattr(prediction, "load_trained_model", load_trained_model)
    args.predict *= count
    args.tta, args.explain = tta, explain
    with pytest.raises(Loaded) as loaded:
        prediction.predict(args)
    assert loaded.value.args[0] == (network if in_numpy else "in Keras")
    assert started == [1] * (not in_numpy)


@pytest.mark.parametrize(
    "data, classes, task, subject",
    [
        ("real", SIGNS.class_names, SIGNS, "hand"),
        ("synthetic", HAPPY.class_names, HAPPY, "face"),
        ("folder", SIGNS.class_names, SIGNS, None),
        ("real", ("cat", "dog"), SIGNS, None),
    ],
)
def test_hands_are_looked_for_only_if_the_classes_are_those_of_the_script(
    args, monkeypatch, data, classes, task, subject
):
    asked = []
    metadata = Metadata(classes, task, data)
    monkeypatch.setattr(prediction, "load_trained_model", lambda *_, **__: (None, metadata))
    monkeypatch.setattr(prediction, "predict_images", lambda *_, **options: asked.append(options) or 0)
    args.task = task
    assert prediction.predict(args) == 0
    assert asked[0]["subject"] == subject and asked[0]["crop"] == "auto"


def test_a_pattern_stands_for_the_files_that_match(tmp_path, monkeypatch):
    paths = save_images(tmp_path, 5)
    Image.new("RGB", (9, 9)).save(tmp_path / "[1].png")
    (tmp_path / "notes.txt").touch()
    in_root = sorted(path for path in paths if path.parent == tmp_path)
    for pattern, found in (
        (tmp_path / "0*.png", in_root),
        (tmp_path / "000[12].png", paths[1:3]),
        (tmp_path / "000?.png", in_root),
        (tmp_path / "**" / "0*.png", sorted(paths)),
        (tmp_path / "[1].png", [tmp_path / "[1].png"]),  # the file of that name, not 1.png
        (tmp_path / "su*", [paths[0], paths[3]]),
    ):
        assert list_images([pattern]) == (found, []), pattern
    files, faults = list_images([tmp_path / "*.jpg", tmp_path / "missing.png", paths[1]])
    assert files == [tmp_path / "missing.png", paths[1]] and faults == [f"{tmp_path / '*.jpg'} matches no file"]
    monkeypatch.chdir(tmp_path)
    assert list_images([pathlib.Path("*1.png")])[0] == [pathlib.Path("0001.png")]


def test_files_of_a_folder_that_are_no_images_do_not_fail_the_call(model, tmp_path, capsys):
    save_images(tmp_path / "in", 2)
    for name in ("a.pdf", "b.h5", "c.mpg", "d.eps", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(b"%PDF-1.7")
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "e.jpg_", "JPEG")
    (tmp_path / "in" / "@eaDir").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "@eaDir" / "thumb.png")
    assert answer(model, [tmp_path / "in"], tmp_path / "out") == 0
    assert len(read_table(tmp_path / "out")) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("left out: 1 file that holds an image has no suffix of an image: ") and "e.jpg_" in first
    assert second == "left out: 1 image in @eaDir, a folder of thumbnails, copies or deleted files"


def test_a_folder_is_listed_once(args, model, tmp_path, monkeypatch):
    save_images(tmp_path / "in", 2)
    listed = []
    images_in = prediction.images_in
    monkeypatch.setattr(prediction, "images_in", lambda *given: listed.append(given[0]) or images_in(*given))
    model.save(tmp_path / "model.keras")
    args.predict = [tmp_path / "in"]
    assert prediction.predict(args) == 0
    assert listed == [tmp_path / "in"] and len(read_table(tmp_path)) == 2


@pytest.mark.parametrize("saved, given, used", [(0.8, None, 0.8), (0.8, 0.2, 0.2), (0.8, 0.0, 0.0)])
def test_the_threshold_is_that_of_the_option_or_of_the_model(args, model, tmp_path, saved, given, used, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    details = {"classes": SIGNS.class_names, "data": "real", "seed": 1, "dry_run": False, "not_sure_below": saved}
    save_model(model, tmp_path / "model.keras", 1.0, images, images, **details)
    asked = []
    monkeypatch.setattr(prediction, "predict_images", lambda model, metadata, *_, **__: asked.append(metadata) or 0)
    args.not_sure_below = given
    assert prediction.predict(args) == 0
    assert [metadata.not_sure_below for metadata in asked] == [used]
