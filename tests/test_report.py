"""The report of a run: near-duplicates, the page, what must not get into it; in a browser if there is one."""

import contextlib
import html.parser
import io
import pathlib
import re
import shlex
import struct
import types

import numpy as np
import pytest
from browser import Browser, in_browser
from conftest import REAL, SHARED
from PIL import Image, ImageEnhance

import cnn_utils as utils
import happy_sequential
import signs_functional
from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.loading import Dataset, Source
from datasets.synthetic import render_dataset, render_images
from support.evaluation import report as report_module
from support.evaluation.calibration import plot_reliability
from support.evaluation.near_duplicates import NEAR_DUPLICATE, find_near_duplicates
from support.evaluation.report import write_report
from support.evaluation.results import Results, accuracy_interval, certainty

TRICKY = "<script>alert(\"&')</script>"
FIGURES = ("learning_curves.png", "confusion_matrix.png", "mistakes.png", "reliability.png")


@pytest.fixture(scope="module")
def hands():
    return load_h5(render_dataset("signs")[0], "train")[0][:60]


def copies(images, change):
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def shifted(image, right, down):
    """Shift an image by whole pixels; the edge pixels are repeated."""
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="edge")
    return Image.fromarray(padded[4 - down : 68 - down, 4 - right : 68 - right])


CHANGES = {
    "same": lambda image: image,
    "jpeg": jpeg,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "shifted by one pixel": lambda image: shifted(image, 1, 0),
    "shifted by two pixels": lambda image: shifted(image, -2, 2),
    "all at once": lambda image: jpeg(ImageEnhance.Brightness(shifted(image, -1, 1)).enhance(0.8)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_a_near_duplicate_of_its_original(hands, change):
    index, distance = find_near_duplicates(hands, copies(hands[20:40], change))
    assert index.tolist() == list(range(20, 40)) and distance.max() < NEAR_DUPLICATE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["signs_wide", "happy_wide"])
def test_different_hands_and_faces_are_not_near_duplicates(name):
    (train_x, _), (test_x, _) = render_images(name, 200, seed=101), render_images(name, 60, seed=102)
    _, distance = find_near_duplicates(train_x, test_x)
    assert distance.min() > NEAR_DUPLICATE


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
def test_photographs_of_the_same_hand_have_near_duplicates_and_photographs_of_different_people_have_none():
    counts = {}
    for name, folder in REAL.items():
        (train_x, train_y, _), (test_x, test_y, _) = (
            load_h5(folder / f"{part}_{name}.h5", part) for part in ("train", "test")
        )
        index, distance = find_near_duplicates(train_x, test_x)
        duplicate = distance < NEAR_DUPLICATE
        counts[name] = duplicate.sum()
        assert np.array_equal(train_y[index[duplicate]], test_y[duplicate])  # the same pose is the same digit
    assert counts["signs"] > 20 and counts["happy"] == 0


def test_a_blank_image_is_similar_to_another_one_and_not_to_a_hand(hands):
    train_x = np.stack([hands[0], np.full_like(hands[0], 200)])
    index, distance = find_near_duplicates(train_x, np.zeros_like(hands[:1]))
    assert index.tolist() == [1] and distance.max() < 1e-3
    assert find_near_duplicates(hands[:1], np.zeros_like(hands[:1]))[1].min() > 1


class OnDisk:
    """Images on disk: a length, and an array for an array of indices, which must be short."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        assert isinstance(indices, np.ndarray) and len(indices) <= 256
        return self.images[indices]


def test_images_on_disk_are_read_a_few_at_a_time():
    images = np.random.default_rng(1).integers(0, 256, (300, 64, 64, 3), np.uint8)
    found = find_near_duplicates(OnDisk(images), OnDisk(images[5:290]))
    for values, expected in zip(found, find_near_duplicates(images, images[5:290])):
        np.testing.assert_allclose(values, expected, atol=1e-3)


def test_near_duplicates_are_found_in_every_part_of_a_large_set():
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (600, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    index, distance = find_near_duplicates(squares, squares[[3, 255, 256, 599]])
    assert index.tolist() == [3, 255, 256, 599] and distance.max() < 1e-3


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, its text and its table rows; fails on tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.rows, self.open = [], "", [], []
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self):
        """Return the text with single spaces, as a browser shows it."""
        return " ".join(self.text.split())


def dataset(train_x, test_x, class_names, kind, files, task=SIGNS):
    """Return a `Dataset` whose labels play no part in the report."""
    source = Source(kind, pathlib.Path("train.h5"), pathlib.Path("test.h5"))
    labels = np.zeros(len(train_x), int), np.zeros(len(test_x), int)
    return Dataset(task, train_x, labels[0], test_x, labels[1], tuple(class_names), source, files)


def results_of(labels, predictions, classes):
    """Return the `Results` of predictions that are all certain."""
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    correct, half = int(np.trace(confusion)), np.full(classes, 0.5)
    interval = accuracy_interval(correct, len(labels))
    probabilities = utils.one_hot(predictions, classes)
    return Results(0.7, correct / len(labels), interval, 0.8, probabilities, labels, predictions, confusion, half, half)


def metrics_of(data, results, near_duplicates, **changes):
    """Return what a run would save as `metrics.json`; `changes` replace values, wherever these are."""
    metrics = {
        "settings": {
            "script": "signs_functional",
            "data": data.kind,
            "data_files": data.hashes,
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 0.1,
            "seed": 1,
            "mix_synthetic": False,
            "dry_run": False,
        },
        "training": {
            "schedule": [{"name": "weak augmentation", "epochs": [1, 1]}, {"name": "strong", "epochs": [2, 60]}],
            "examples_per_epoch": 40,
            "train_examples": 40,
            "synthetic_examples": 0,
            "validation_examples": 4,
            "class_weights": None,
            "parameters": 388_523,
            "temperature": 1.2,
            "interrupted": False,
            "seconds": 332.2,
            "device": "CPU",
            "versions": {"keras": "3"},
        },
        "results": {
            "test_examples": len(results.labels),
            "test_accuracy": results.accuracy,
            "test_accuracy_interval": results.interval,
            "test_balanced_accuracy": results.balanced_accuracy,
            "calibration_error_before": 0.1,
            "calibration_error_after": 0.05,
            "classes": [{"name": name, "precision": None, "recall": 0.5, "examples": 4} for name in data.class_names],
            "near_duplicates": near_duplicates.summary(results.labels == results.predictions),
            "certainty": certainty(results.probabilities, results.labels, None, 0.7, None),
        },
    }
    for part in metrics.values():
        part.update({key: value for key, value in changes.items() if key in part})
    return metrics


HISTORY = {"loss": [1.5, 1.2], "val_loss": [1.6, 1.4], "accuracy": [0.4, 0.5], "val_accuracy": [0.3, 0.4]}


@pytest.fixture(scope="module")
def run(tmp_path_factory, hands):
    """The output folder of a run with twelve test images, two of them near-duplicates; the first class is tricky."""
    folder = tmp_path_factory.mktemp("run")
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[:3] = 1  # test images 0 and 2 are wrong
    results = results_of(labels, predictions, 3)
    test_x = np.concatenate([hands[:2], hands[40:50]])
    files = {TRICKY + 200 * "long" + ".h5": "0" * 64}
    data = dataset(hands[:40], test_x, (TRICKY, "0", "1"), "synthetic", files)
    near_duplicates = find_near_duplicates(data.train_x, test_x)
    schedule = [("weak augmentation", 1, 1), ("strong", 2, 60)]
    utils.plot_learning_curves(
        HISTORY,
        types.SimpleNamespace(schedule=schedule, examples_per_epoch=40),
        folder / "learning_curves.png",
        "synthetic",
    )
    utils.plot_confusion_matrix(results, data.class_names, folder / "confusion_matrix.png", "synthetic")
    utils.plot_mistakes(test_x, results, data.class_names, folder / "mistakes.png", "synthetic")
    plot_reliability(results, 1.2, folder / "reliability.png", "synthetic")
    metrics = metrics_of(data, results, near_duplicates)
    command = ["signs_functional.py", "--data-dir", TRICKY]
    model = signs_functional.build_model(3)
    write_report(folder, metrics, HISTORY, model, results, data.train_x, data, near_duplicates, command)
    return folder


@pytest.fixture
def source(run):
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(source):
    return Page(source)


@pytest.fixture
def page_of(hands, tmp_path):
    """Return a function that writes the report of a run without mistakes and returns its page."""

    def write(model=None, class_names=("0", "1", "2"), data="synthetic", data_files=None, task=SIGNS, **changes):
        labels = np.arange(3) % len(class_names)
        results = results_of(labels, labels, len(class_names))
        files = data_files or {"train_signs.h5": "1" * 64}
        data = dataset(hands[:10], hands[10:13], class_names, data, files, task)
        near_duplicates = find_near_duplicates(data.train_x, data.test_x)
        metrics = metrics_of(data, results, near_duplicates, **changes)
        model = model or signs_functional.build_model(len(class_names))
        write_report(tmp_path, metrics, HISTORY, model, results, data.train_x, data, near_duplicates)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def test_the_report_is_one_complete_page_that_loads_nothing(run, source, page):
    assert source.startswith("<!doctype html>")
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "@import" not in source and "url(" not in source
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert {path.name for path in run.iterdir()} == {"report.html", *FIGURES}


def test_the_report_can_be_used_with_a_screen_reader_and_without_a_mouse(page):
    assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == len(page.all("main")) == 1
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert all(entry["aria-labelledby"] in names for entry in page.all("section"))
    assert [link["href"][1:] for link in page.all("a")] == [entry["id"] for entry in page.all("section")]
    assert len(page.all("img")) == len(FIGURES) + 1 and all(len(image["alt"]) > 30 for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) and all("scope" in head for head in page.all("th"))
    regions = [box for box in page.all("div") if box.get("class") == "scroll"]
    assert len(regions) == len(page.all("table")) + len(page.all("img"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in regions)


def test_figures_are_described_in_words(page):
    curves, confusion, mistakes, reliability, pairs = (image["alt"] for image in page.all("img"))
    expected = "After the last epoch: training loss 1.200, validation loss 1.400, training accuracy 0.500, validation"
    assert expected in curves and curves.endswith("accuracy 0.400.")
    assert "2 of 12 test images are off the diagonal" in confusion and "2 of 12 were" in mistakes
    assert "after calibration is 5.0%" in reliability
    assert pairs.startswith("2 pairs of images") and pairs.endswith("from 0.00 to 0.00.")


def luminance(color):
    """Return the relative luminance of "#rrggbb" as WCAG 2.2 defines it."""
    shares = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(source, scheme):
    roots = re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", roots[["light", "dark"].index(scheme)]))
    for front, ground in [
        ("ink", "paper"),
        ("ink", "card"),
        ("quiet", "paper"),
        ("quiet", "card"),
        ("accent", "paper"),
        ("warn", "warn-paper"),
    ]:
        low, high = sorted(luminance(colors[name]) for name in (front, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, ground)


def test_names_are_escaped(source, page):
    assert "<script>" not in source and "&lt;script&gt;" in source and 'alert("' not in source
    assert page.text.count(TRICKY) >= 3  # the classes at the top, the table, the file
    command = shlex.split(page.text[page.text.index("python signs") :].split("\n")[0])
    assert command == ["python", "signs_functional.py", "--data-dir", TRICKY]


def test_names_are_escaped_in_attributes(page):
    assert f"{TRICKY} predicted as 0, 1 image." in page.all("img")[1]["alt"]


def test_what_is_missing_is_left_out(page_of):
    page = page_of(interrupted=True, dry_run=True)
    assert [row[:3] for row in page.rows if row[0] == "3 without"] == [["3 without", "3", "100.0%"]]
    assert not page.all("img") and len(page.all("pre")) == 2  # the commands to go on with
    assert "None of the 3 test images has a near-duplicate" in page.words()
    assert ["0 with a near-duplicate", "–", "–", "–"] in page.rows
    assert "Dry run." in page.text and "Interrupted." in page.text


def test_warnings_appear_only_when_they_apply(page, page_of):
    assert "SYNTHETIC data." in page.text and "Dry run." not in page.text and "Interrupted." not in page.text
    assert "SYNTHETIC" not in page_of(data="real").text


@pytest.mark.parametrize(
    "task, data, names, present, absent",
    [
        (HAPPY, "real", HAPPY.class_names, "A smile is not a feeling", "Sign language"),
        (SIGNS, "real", SIGNS.class_names, "Sign language", "smile"),
        (SIGNS, "synthetic", SIGNS.class_names, "Photographs.", "those in the folder"),
        (SIGNS, "folder", ("cup", "plate"), "those in the folder", "Sign language"),
    ],
)
def test_the_report_says_what_the_model_is_not_for(page_of, task, data, names, present, absent):
    page = page_of(task=task, data=data, class_names=names)
    sentences = page.words().split("What it is not for")[-1]
    assert present in sentences and absent not in sentences and "3 test images are too few" in sentences
    assert "dry run" not in sentences
    dry_page = page_of(task=task, data=data, class_names=names, dry_run=True)
    assert dry_page.words().split("What it is not for")[-1].startswith(" Anything at all: this was a dry run")


@pytest.mark.parametrize("data, files, sentence", [
    ("real", {"train_signs.h5": "47480709d99f2ea6ae428ecc491fc6f65ff1d05336736dd859d5565e0ad3cf74"},
     "The original photographs of the course: 40 for training, 4 for validation, 3 for testing."),
    ("real", {"train_signs.h5": "1" * 64}, "but not the original files: 40 for training"),
    ("synthetic", {"train_signs.h5": "1" * 64}, "SYNTHETIC images, rendered by datasets.synthetic: 40 for training"),
    ("folder", {"photographs": "1" * 64}, "Your own images, from a folder: 40 for training"),
])  # fmt: skip
def test_the_report_says_where_the_images_come_from(page_of, data, files, sentence):
    page = page_of(data=data, data_files=files)
    assert sentence in page.words() and list(*files.items()) in page.rows


def test_synthetic_images_beside_photographs_are_named(page_of):
    page = page_of(data="real", mix_synthetic=True, synthetic_examples=1080)
    assert "40 for training, 1,080 SYNTHETIC images mixed in, 4 for validation" in page.words()
    assert ["mix synthetic", "yes"] in page.rows


def test_the_settings_include_the_schedule_of_the_training(page):
    assert ["schedule", "weak augmentation: epoch 1; strong: epochs 2–60"] in page.rows
    for row in (["batch size", "32"], ["dry run", "no"], ["device", "CPU"], ["keras", "3"]):
        assert row in page.rows


def test_more_than_thirty_layers_are_folded(page, page_of):
    from resnet_utils import ResNet50

    model = ResNet50(classes=6)
    folded = page_of(model)
    assert [tag for tag, _ in folded.tags].count("details") == 1 and not page.all("details")
    assert f"{len(model.layers)} layers, 23,600,006 parameters" in folded.text
    names = [row[0] for row in folded.rows]
    assert all(layer.name in names for layer in model.layers)


def test_the_report_says_what_was_measured(page):
    text = page.words()
    for words in (
        "83.3% of the 12 test images",
        "55.2% to 95.3%",
        "SYNTHETIC",
        "10.0% before and 5.0% after",
        "388,523 parameters",
        "What it is not for",
        "Precision",
        "0" * 64,
        "--data-dir",
    ):
        assert words in text, words


def test_accuracy_with_and_without_near_duplicates(page):
    # Test images 0 and 1 are also training images; the model got 0 and 2 wrong.
    assert "2 of 12 test images have a near-duplicate" in page.words()
    rows = [row[:3] for row in page.rows if row[0] in ("12 in total", "2 with a near-duplicate", "10 without")]
    assert rows == [
        ["12 in total", "10", "83.3%"],
        ["2 with a near-duplicate", "1", "50.0%"],
        ["10 without", "9", "90.0%"],
    ]


def test_the_report_counts_the_sure_answers_and_those_that_are_wrong(page, page_of):
    # All probabilities are 1, so all answers are equally certain.
    assert "12 of the 12 test answers are sure, and 2 of these are wrong." in page.words()
    assert ["100%", "100.00%", "12", "2", "83.3%"] in [row[:5] for row in page.rows]
    # Probabilities of 0.95, 0.91, 0.87, ..., 0.51; three are wrong, one is unfamiliar.
    confidence = np.linspace(0.95, 0.51, 12).round(2)
    probabilities = np.column_stack([confidence, 1 - confidence, np.zeros(12)])
    labels = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 2])
    distances = np.array([0.1, 0.9, *[0.1] * 10])
    page = page_of(certainty=certainty(probabilities, labels, distances, 0.675, 0.3), test_examples=12)
    assert "6 of the 12 test answers are sure, and 2 of these are wrong." in page.words()
    assert "if its probability is at least 67.5% and the image is like the training images; otherwise" in page.words()
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["sure"][:3] == ["6", "2", "66.7%"]
    assert rows["below 67.5%"][:3] == ["5", "1", "80.0%"]
    assert rows["unlike"][:3] == ["1", "0", "100.0%"]
    assert rows["80%"][:4] == ["63.00%", "9", "2", "77.8%"]
    page = page_of(certainty=certainty(probabilities, labels, distances, 1.0, 0.3), test_examples=12)
    assert "None of the 12 test answers is sure." in page.words()
    assert ["sure", "0", "0", "–", "–"] in page.rows


def test_the_way_on_is_named_with_commands_that_can_be_copied(page, page_of, run):
    assert page.words().rstrip().endswith(f"--output-dir {run}")
    commands = [shlex.split(line) for line in page.text.split("Try it")[-1].splitlines() if line.startswith("python")]
    place = ["--output-dir", str(run)]
    assert commands == [
        ["python", "signs_functional.py", "--predict", "photo.jpg", *place],
        ["python", "signs_functional.py", "--export", "web", *place],
    ]
    # The live page is for small networks.
    assert "--export onnx" in page_of(parameters=23_600_006).words()


def test_a_folder_that_the_command_line_finds_by_itself_is_not_named():
    root = pathlib.Path(report_module.__file__).parents[2]
    for _, words in report_module._next_commands(root / "outputs" / "signs_functional", "signs_functional", 1):
        assert "--output-dir" not in words


def test_the_plateau_of_label_smoothing_is_explained(run, hands, tmp_path):
    import keras

    (tmp_path / "learning_curves.png").write_bytes((run / "learning_curves.png").read_bytes())
    model = happy_sequential.build_model()
    words = []
    for smoothing in (0.1, 0):
        loss = keras.losses.BinaryCrossentropy(label_smoothing=smoothing)
        model.compile("sgd", loss)
        # Even the best answer to the smoothed label, 0.95, has this loss.
        least = float(loss(np.array([[1.0]]), np.array([[0.95]])))
        results = results_of(np.arange(3) % 2, np.arange(3) % 2, 2)
        data = dataset(hands[:10], hands[10:13], HAPPY.class_names, "real", {}, HAPPY)
        near_duplicates = find_near_duplicates(data.train_x, data.test_x)
        metrics = metrics_of(data, results, near_duplicates)
        write_report(tmp_path, metrics, HISTORY, model, results, data.train_x, data, near_duplicates)
        words.append(Page((tmp_path / "report.html").read_text(encoding="utf-8")).words())
        if smoothing:
            assert f"a probability of 95.0% instead of 100%, so the loss cannot fall below {least:.2f}." in words[0]
    assert "label smoothing" not in words[1]


def test_few_test_images_may_differ_in_calibration_by_chance(page, page_of):
    sentence = "test images, a small difference between the two may be chance"
    assert f"With only 12 {sentence}" in page.words()
    assert sentence not in page_of(test_examples=5000).words()


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height) + bytes(20)


@pytest.mark.parametrize("png, found", [
    (png_header(30_000, 30_000), "open confusion_matrix.png in the same folder"),  # more pixels than Pillow reads
    (png_header(1000, 1000) + bytes(9_000_000), "open confusion_matrix.png in the same folder"),
    (b"", None),
    (b"not a PNG", None),
], ids=["megapixels", "megabytes", "empty", "damaged"])  # fmt: skip
def test_the_report_does_not_fail_because_of_a_figure(page_of, tmp_path, png, found):
    (tmp_path / "confusion_matrix.png").write_bytes(png)
    page = page_of()
    assert not page.all("img") and page.rows
    assert found in page.words() if found else "confusion_matrix.png" not in page.words()


def test_a_hundred_and_fifty_classes_have_a_report(hands, tmp_path):
    names = [f"class {number}" for number in range(150)]
    labels = np.arange(150)
    results = results_of(labels, (labels + 1) % 150, 150)
    data = dataset(hands[:10], hands[10:13], names, "folder", {"folder": "1" * 64})
    utils.plot_confusion_matrix(results, names, tmp_path / "confusion_matrix.png", "folder")
    near_duplicates = find_near_duplicates(data.train_x, hands[np.arange(150) % 60])
    data = data._replace(test_x=hands[np.arange(150) % 60])
    metrics = metrics_of(data, results, near_duplicates)
    model = signs_functional.build_model(150)
    write_report(tmp_path, metrics, HISTORY, model, results, data.train_x, data, near_duplicates)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len([row for row in page.rows if row[0] in names]) == 150
    assert "Which classes were confused" in page.words()


def test_near_duplicates_are_a_result(hands):
    # Two of four test images are copies; the model got one of these two wrong, and all others right.
    near_duplicates = find_near_duplicates(hands[:10], hands[[0, 1, 20, 30]])
    correct = np.array([True, False, True, True])
    assert near_duplicates.found.tolist() == [True, True, False, False]
    expected = {"count": 2, "accuracy_with": 0.5, "accuracy_without": 1.0}
    assert near_duplicates.summary(correct) == expected
    none = find_near_duplicates(hands[:10], hands[20:22]).summary(correct[2:])
    assert none == {"count": 0, "accuracy_with": None, "accuracy_without": 1.0}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with contextlib.closing(Browser(tmp_path_factory.mktemp("profile"))) as browser:
        yield browser


@in_browser
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_page_is_not_wider_than_its_window(run, browser, width):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=True)
    browser.open((run / "report.html").as_uri())
    assert browser.run("document.documentElement.scrollWidth") <= width
    # Captions of 8 points stay readable: grids of images are not scaled down.
    grid = "document.querySelector('.grid')"
    shown, drawn = browser.run(f"[{grid}.clientWidth, Number({grid}.getAttribute('width'))]")
    assert shown == drawn
    browser.send("Emulation.clearDeviceMetricsOverride")


@in_browser
def test_nothing_is_cut_off_on_paper(run, browser):
    browser.send("Emulation.setEmulatedMedia", media="print")
    # The width of an A4 page without its margins.
    browser.send("Emulation.setDeviceMetricsOverride", width=673, height=1000, deviceScaleFactor=1, mobile=False)
    browser.open((run / "report.html").as_uri())
    widths = "Array.from(document.querySelectorAll('.scroll'), (box) => box.scrollWidth)"
    assert max(browser.run(widths)) <= 673 and browser.run("document.documentElement.scrollWidth") <= 673
    browser.send("Emulation.setEmulatedMedia", media="")
    browser.send("Emulation.clearDeviceMetricsOverride")
