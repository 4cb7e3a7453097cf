"""The report of a run: near-duplicates, the page, what must not get into it; in a browser if there is one."""

import html.parser
import io
import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from conftest import REAL, SHARED
from PIL import Image, ImageEnhance

import cnn_utils as utils
import signs_functional
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support.calibration import plot_reliability
from support.errors import InputError
from support.near_duplicates import NEAR_DUPLICATE, find_near_duplicates
from support.report import write_report

TRICKY = "<script>alert(\"&')</script>"
FIGURES = ("learning_curves.png", "confusion_matrix.png", "reliability.png")


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


@pytest.mark.parametrize("name", ["signs", "happy"])
def test_different_hands_and_faces_are_not_near_duplicates(name):
    train_x, test_x = (load_h5(path, part)[0] for path, part in zip(render_dataset(name), ("train", "test")))
    _, distance = find_near_duplicates(train_x[:300], test_x[:60])
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


@pytest.fixture(scope="module")
def run(tmp_path_factory, hands):
    """The output folder of a run with twelve test images, two of them near-duplicates; the first class is tricky."""
    folder = tmp_path_factory.mktemp("run")
    names = (TRICKY, "0", "1")
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[:3] = 1  # test images 0 and 2 are wrong
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 1, 3]])
    results = {
        "labels": labels,
        "predictions": predictions,
        "probabilities": utils.one_hot(predictions, 3),
        "confusion": confusion,
        "accuracy": 10 / 12,
    }
    metrics = {
        "script": "signs_functional",
        "data": "synthetic",
        "data_files": {TRICKY + 200 * "long" + ".h5": "0" * 64},
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.1,
        "seed": 1,
        "mix_synthetic": False,
        "dry_run": False,
        "stages": [{"name": "weak augmentation", "epochs": [1, 1]}, {"name": "strong", "epochs": [2, 60]}],
        "train_examples": 40,
        "synthetic_examples": 0,
        "validation_examples": 4,
        "test_examples": 12,
        "parameters": 388_523,
        "test_accuracy": 10 / 12,
        "test_accuracy_interval": [0.55, 0.95],
        "temperature": 1.2,
        "calibration_error_before": 0.1,
        "calibration_error_after": 0.05,
        "classes": [{"name": name, "precision": None, "recall": 0.5, "examples": 4} for name in names],
        "confusion_matrix": confusion.tolist(),
        "train_seconds": 3.2,
        "device": "CPU",
        "versions": {"keras": "3"},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.csv").write_text(
        "epoch,accuracy,loss,val_accuracy,val_loss\n1,0.4,1.5,0.3,1.6\n2,0.5,1.2,0.4,1.4\n"
    )
    history = {"loss": [1.5, 1.2], "val_loss": [1.6, 1.4], "accuracy": [0.4, 0.5], "val_accuracy": [0.3, 0.4]}
    stages = [utils.Stage(name, 1, hands[:4], labels[:4], None) for name in ("weak augmentation", "strong")]
    curriculum = utils.Curriculum(stages, 2, 2, 0, 4)
    utils.plot_learning_curves(history, curriculum, folder / "learning_curves.png", "synthetic")
    utils.plot_confusion_matrix(results, names, folder / "confusion_matrix.png", "synthetic")
    plot_reliability(results, 1.2, folder / "reliability.png", "synthetic")
    test_x = np.concatenate([hands[:2], hands[40:50]])
    command = ["signs_functional.py", "--data-dir", TRICKY]
    write_report(folder, signs_functional.build_model(3), results, hands[:40], test_x, command)
    return folder


@pytest.fixture
def source(run):
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def page(source):
    return Page(source)


@pytest.fixture
def page_of(run, hands, tmp_path):
    """Return a function that changes the metrics of `run`, writes a report without figures and returns its page."""

    def write(model=None, without=(), **changes):
        metrics = {**json.loads((run / "metrics.json").read_text()), **changes}
        (tmp_path / "metrics.json").write_text(json.dumps({k: v for k, v in metrics.items() if k not in without}))
        labels = np.arange(3)
        model = model or signs_functional.build_model(3)
        write_report(tmp_path, model, {"labels": labels, "predictions": labels}, hands[:10], hands[10:13])
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
    expected = {"history.csv", "metrics.json", "report.html", *FIGURES}
    assert {path.name for path in run.iterdir()} == expected


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
    curves, confusion, reliability, pairs = (image["alt"] for image in page.all("img"))
    expected = "After epoch 2: training loss 1.200, validation loss 1.400, training accuracy 0.500, validation"
    assert expected in curves and curves.endswith("accuracy 0.400.")
    assert "2 of 12 test images are off the diagonal" in confusion
    assert "after calibration is 5.0%" in reliability
    assert pairs.startswith("2 pairs of images") and pairs.endswith("from 0.00 to 0.00.")


def luminance(colour):
    """Return the relative luminance of "#rrggbb" as WCAG 2.2 defines it."""
    shares = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(source, scheme):
    roots = re.findall(r":root \{(.*?)\}", source, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", roots[["light", "dark"].index(scheme)]))
    for front, ground in [
        ("ink", "paper"),
        ("ink", "card"),
        ("quiet", "paper"),
        ("quiet", "card"),
        ("accent", "paper"),
        ("warn", "warn-paper"),
    ]:
        low, high = sorted(luminance(colours[name]) for name in (front, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, ground)


def test_names_are_escaped(source, page):
    assert "<script>" not in source and "&lt;script&gt;" in source and 'alert("' not in source
    assert page.text.count(TRICKY) >= 3  # the classes at the top, the table, the file
    command = shlex.split(page.text[page.text.index("python signs") :].split("\n")[0])
    assert command == ["python", "signs_functional.py", "--data-dir", TRICKY]


def test_names_are_escaped_in_attributes(page):
    assert f"{TRICKY} predicted as 0, 1 image." in page.all("img")[1]["alt"]


def test_what_is_missing_is_left_out(page_of):
    without = "temperature", "calibration_error_before", "calibration_error_after"
    page = page_of(without=without, interrupted=True, dry_run=True)
    assert [row[:3] for row in page.rows if row[0] == "3 without"] == [["3 without", "3", "100.0%"]]
    assert not page.all("img") and not page.all("pre") and "Calibration" not in page.text
    assert "None of the 3 test images has a near-duplicate" in page.words()
    assert ["0 with a near-duplicate", "–", "–", "–"] in page.rows
    assert "Dry run." in page.text and "Interrupted." in page.text


def test_warnings_appear_only_when_they_apply(page, page_of):
    assert "SYNTHETIC data." in page.text and "Dry run." not in page.text and "Interrupted." not in page.text
    assert not page_of(data="real").text.count("SYNTHETIC")


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(InputError, match="train first. Received: .*without one that can be read"):
        write_report(tmp_path, None, {}, None, None)


@pytest.mark.parametrize(
    "script, data, names, present, absent",
    [
        ("happy_sequential", "real", ("not smiling", "smiling"), "A smile is not a feeling", "Sign language"),
        ("signs_resnet50", "real", tuple("012345"), "Sign language", "smile"),
        ("signs_functional", "synthetic", tuple("012345"), "Photographs.", "those in the folder"),
        ("signs_functional", "folder", ("cup", "plate"), "those in the folder", "Sign language"),
    ],
)
def test_the_report_says_what_the_model_is_not_for(page_of, script, data, names, present, absent):
    classes = [{"name": name, "precision": 1, "recall": 1, "examples": 30} for name in names]
    page = page_of(script=script, data=data, classes=classes)
    sentences = page.words().split("What it is not for")[-1]
    assert present in sentences and absent not in sentences and "3 test images are too few" in sentences
    assert "dry run" not in sentences
    dry_page = page_of(script=script, data=data, classes=classes, dry_run=True)
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


def test_the_settings_include_the_stages_of_the_training(page):
    assert ["stages", "weak augmentation: epoch 1; strong: epochs 2–60"] in page.rows
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
        "55.0% to 95.0%",
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


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_not_wider_than_its_window(source, tmp_path, width):
    # In a frame, because the browser's own window has a minimum width; the frame's script reports the content's width.
    (tmp_path / "page.html").write_text(re.sub("<meta http-equiv[^>]*>", "", source))
    (tmp_path / "frame.html").write_text(
        f'<iframe id=f src=page.html style="width:{width}px;height:800px;border:0"></iframe><script>'
        "onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = `${d.clientWidth} ${d.scrollWidth}`; }</script>"
    )
    options = "--headless --no-sandbox --disable-gpu --disable-quic --allow-file-access-from-files".split()
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    command = ["chromium", *options, f"file://{tmp_path / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shown, wide = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert width - 20 <= shown == wide
