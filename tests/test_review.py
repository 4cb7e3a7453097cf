"""The review of a folder: planted wrong labels, near-duplicates and bad photographs are found, nothing else is."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from conftest import run_script
from PIL import Image, ImageEnhance, ImageFilter

from datasets.groups import nearest_pairs
from support.evaluation import review
from support.evaluation.review import label_errors, measure_quality, write_review


def picture(seed, size=120):
    """Return an image of sharp, bright squares that resembles no other seed's."""
    colors = np.random.default_rng(seed).integers(40, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(colors).resize((size, size), Image.Resampling.NEAREST)


def make_folder(folder, counts):
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index).save(folder / name / f"{index}.png")
    return folder


def files_and_labels(folder, names):
    paths = [str(path) for name in names for path in sorted((folder / name).iterdir())]
    return paths, np.array([names.index(os.path.basename(os.path.dirname(path))) for path in paths])


def answers(labels, classes, given=0.9):
    """Return probabilities that agree with the labels; equal ones for those beyond the classes."""
    probabilities = np.full((len(labels), classes), (1 - given) / (classes - 1))
    for row, label in zip(probabilities, labels):
        row[:] = 1 / classes if label == classes else row
        row[label : label + 1] = given
    return probabilities


def read_rows(out):
    with open(out / "review.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------ labels


def test_planted_wrong_labels_are_found_the_likeliest_first():
    true = np.arange(60) % 3
    labels = true.copy()
    labels[[7, 20, 33]] = (true[[7, 20, 33]] + 1) % 3
    probabilities = answers(true, 3)
    probabilities[20] = answers(true[20:21], 3, 0.99)[0]
    found, other = label_errors(labels, probabilities)
    assert found.tolist() == [20, 7, 33] and other.tolist() == true[found].tolist()


def test_a_doubtful_answer_is_no_wrong_label():
    labels = np.arange(20) % 2
    probabilities = answers(labels, 2)
    probabilities[3] = 0.6, 0.4  # wrong, but far below the 90% of the others
    assert len(label_errors(labels, probabilities)[0]) == 0


def test_a_class_that_the_network_is_always_less_sure_of_has_a_lower_bar():
    labels = np.repeat([0, 1], 10)
    probabilities = np.vstack([np.tile([0.95, 0.05], (10, 1)), np.tile([0.35, 0.65], (10, 1))])
    probabilities[0] = 0.34, 0.66
    assert label_errors(labels, probabilities)[0].tolist() == [0]


def test_an_image_of_no_class_needs_a_sure_answer():
    labels = np.array([0, 1, 0, 1, 2, 2])
    probabilities = np.array([[0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.4, 0.6], [0.65, 0.35], [0.2, 0.8]])
    found, other = label_errors(labels, probabilities)
    assert found.tolist() == [5] and other.tolist() == [1]


# ------------------------------------------------------------------------ duplicates


def test_each_near_duplicate_is_paired_with_the_nearest_of_another_class_first():
    first, second = picture(1, 64), picture(2, 64)
    brighter = ImageEnhance.Brightness(first).enhance(0.8)
    x = np.array([np.asarray(image) for image in (first, second, brighter, first, picture(3, 64), second)])
    pairs = {(one, other) for one, other, _ in nearest_pairs(x, np.array([0, 0, 0, 1, 0, 0]))}
    assert pairs == {(3, 0), (3, 2), (5, 1)}
    distances = [distance for _, _, distance in nearest_pairs(x, np.zeros(6, int))]
    assert max(distances) < 0.25


# ------------------------------------------------------------------------ photographs


def test_sharpness_falls_with_blur_and_does_not_depend_on_brightness(tmp_path):
    image, found = picture(5, 400), []
    for number, radius in enumerate((0, 2, 4, 8)):
        image.filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / f"{number}.png")
        found.append(measure_quality(tmp_path / f"{number}.png").sharpness)
    assert found == sorted(found, reverse=True) and found[3] < 0.1 * found[0]
    ImageEnhance.Brightness(image).enhance(0.5).save(tmp_path / "half.png")
    assert measure_quality(tmp_path / "half.png").sharpness == pytest.approx(found[0], rel=0.05)


@pytest.fixture
def dirty(tmp_path):
    """A folder with a fault of each kind, and one name that is markup."""
    folder = make_folder(tmp_path / "mine", {"cat": 12, "dog": 12, "none": 4})
    shutil.move(folder / "cat" / "3.png", folder / "dog" / '<img src=x onerror=alert(1)> & "3".png')
    shutil.copy(folder / "cat" / "4.png", folder / "dog" / "copy.png")
    picture(5).save(folder / "cat" / "again.jpg", quality=70)
    ImageEnhance.Brightness(picture(50)).enhance(0.1).save(folder / "cat" / "dark.png")
    picture(51, 400).filter(ImageFilter.GaussianBlur(20)).save(folder / "dog" / "blurred.png")
    picture(52).resize((30, 45)).save(folder / "dog" / "tiny.png")
    Image.new("RGB", (90, 90), "gray").save(folder / "dog" / "plain.png")
    return folder


def review_of(dirty, out, **changes):
    """Write the review of the folder, for a network that is right; return the rows of the table and the page."""
    out.mkdir(exist_ok=True)
    paths, labels = files_and_labels(dirty, ["cat", "dog", "none"])
    true = labels.copy()
    true[[number for number, path in enumerate(paths) if "onerror" in path]] = 0
    values = {"paths": paths, "labels": labels, "probabilities": answers(true, 2, 0.95), **changes}
    count = write_review(out, dirty, **values, class_names=("cat", "dog"))
    rows = read_rows(out)
    assert len(rows) == count
    return rows, (out / "review.html").read_text()


def test_each_planted_fault_has_a_row_and_nothing_is_moved(dirty, tmp_path):
    before = {path: path.read_bytes() for path in dirty.rglob("*") if path.is_file()}
    rows, page = review_of(dirty, tmp_path / "out")
    found = {(os.path.basename(row["file"]), row["problem"], row["suggestion"].split(" ")[0]) for row in rows}
    assert found == {
        ('<img src=x onerror=alert(1)> & "3".png', "probably another class", "move"),
        ("copy.png", "near-duplicate in another class", "decide"),
        ("again.jpg", "near-duplicate", "delete"),
        ("dark.png", "dark", "look"),
        ("blurred.png", "blurred", "look"),
        ("tiny.png", "tiny: 30 pixels", "look"),
        ("plain.png", "plain: a single color", "look"),
    }
    wrong, copy, again, *_ = rows
    assert (wrong["class"], wrong["answer"], wrong["move to"]) == ("dog", "cat", "cat/")
    assert float(wrong["probability of the answer"]) == 0.95 and float(wrong["probability of the class"]) == 0.05
    assert copy["other file"] == str(dirty / "cat" / "4.png") and again["other file"] == str(dirty / "cat" / "5.png")
    assert {path: path.read_bytes() for path in dirty.rglob("*") if path.is_file()} == before
    assert "Nothing was moved or deleted" in page


def test_the_page_runs_nothing_and_needs_nothing_else(dirty, tmp_path):
    _, page = review_of(dirty, tmp_path / "out")
    assert "<img src=x" not in page and "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in re.findall(r'src="([^"]*)', page))
    assert "default-src 'none'" in page and page.count("<img ") == 9  # two for each of the two pairs


def test_a_bad_photograph_is_not_moved_on_the_networks_word(dirty, tmp_path):
    paths, labels = files_and_labels(dirty, ["cat", "dog", "none"])
    true = labels.copy()
    dark = paths.index(str(dirty / "cat" / "dark.png"))
    true[dark] = 1
    rows, _ = review_of(dirty, tmp_path / "out", probabilities=answers(true, 2, 0.95))
    (row,) = (row for row in rows if row["file"] == paths[dark] and row["answer"])
    assert row["suggestion"].startswith("look at it: move to dog/")


def test_only_the_worst_are_on_the_page_but_all_in_the_table(dirty, tmp_path, monkeypatch):
    monkeypatch.setattr(review, "MOST_SHOWN", 2)
    rows, page = review_of(dirty, tmp_path / "out")
    assert sum(row["problem"] in ("dark", "blurred") for row in rows) == 2
    assert "The 2 worst of 4;" in page and page.count('<th scope="row">') == 1 + 2 + 2


def test_a_file_that_has_vanished_is_no_failure(dirty, tmp_path):
    paths, labels = files_and_labels(dirty, ["cat", "dog", "none"])
    os.remove(dirty / "dog" / "tiny.png")
    rows, _ = review_of(dirty, tmp_path / "out", paths=paths, labels=labels, probabilities=answers(labels, 2))
    assert not any("tiny" in row["file"] for row in rows) and any("plain" in row["file"] for row in rows)


def test_a_clean_folder_has_nothing_to_look_at(tmp_path):
    folder = make_folder(tmp_path / "train" / "mine", {"cat": 5, "dog": 5})
    paths, labels = files_and_labels(folder, ["cat", "dog"])
    assert write_review(tmp_path, folder, paths, labels, answers(labels, 2), ("cat", "dog")) == 0
    assert read_rows(tmp_path) == [] and (tmp_path / "review.html").read_text().count("<p>None.</p>") == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("train/cat/a.png", "train/dog/"),
        ("fold2/CAT/a.png", "fold2/dog/"),
        ("cat/train/a.png", "dog/train/"),
        ("cat/a.png", "dog/"),
        ("cat/cat/a.png", "dog/dog/"),
        ("train/cat/Cat/a.png", "train/dog/dog/"),
    ],
)
def test_where_to_move_a_file_keeps_the_part_of_the_set(tmp_path, before, after):
    path = tmp_path / "mine" / before
    path.parent.mkdir(parents=True)
    picture(1).save(path)
    picture(2).save(path.with_name("b.png"))
    paths, probabilities = [str(path), str(path.with_name("b.png"))], np.array([[0.05, 0.95], [0.95, 0.05]])
    write_review(tmp_path, tmp_path / "mine", paths, np.array([0, 0]), probabilities, ("cat", "dog"))
    assert [row["move to"] for row in read_rows(tmp_path)] == [after]


def test_a_class_with_the_name_of_a_part_keeps_the_part(tmp_path):
    assert review._destination("/set/train/train/a.png", "/set", "train", "bus") == "train/bus/"
    assert review._destination("/set/test/train/a.png", "/set", "train", "bus") == "test/bus/"
    assert review._destination("/set/train/a.png", "/set", "train", "bus") == "bus/"


# ------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_folds_of_a_folder_are_followed_by_its_review(tmp_path):
    folder = make_folder(tmp_path / "mine", {"cat": 8, "dog": 8, "none": 6})
    odd = os.path.join(os.fsencode(folder / "dog"), b"\xff.png")
    picture(300).save(tmp_path / "odd.png")
    shutil.move(tmp_path / "odd.png", odd)
    shutil.copy(folder / "cat" / "1.png", folder / "dog" / "copy.png")
    arguments = "--epochs", 1, "--data-dir", folder, "--output-dir", tmp_path / "out", "--folds", 2
    process = run_script("signs_functional", *arguments)
    assert process.returncode == 0, process.stderr
    assert f"in {folder}, worst first, in review.html and review.csv" in process.stdout
    saved = [json.loads((tmp_path / "out" / f"fold_{n}" / "test_predictions.json").read_text()) for n in (1, 2)]
    files = [name for found in saved for name in found["files"]]
    assert sorted(files) == sorted(str(path) for path in folder.rglob("*.png"))
    assert sum(found["labels"].count(2) for found in saved) == 6
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for found in saved for row in found["probabilities"])
    assert "near-duplicate in another class" in [row["problem"] for row in read_rows(tmp_path / "out")]
    assert "copy.png</code><br><code>cat/1.png" in (tmp_path / "out" / "review.html").read_text()
