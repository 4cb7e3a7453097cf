"""The report of a run: twins, the page, what must not get into it; in a browser, where there is one."""

import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageEnhance

import cnn_utils as utils
import report
import signs_functional
import trust
from datasets.synthetic import render_dataset

TRICKY = '<script>alert("&")</script>'


@pytest.fixture(scope="module")
def hands():
    return utils.load_h5(render_dataset("signs")[0], "train")[0][:60]


def copies(pictures, change):
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


CHANGES = {"same": lambda image: image, "jpeg": jpeg,
           "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
           "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_a_twin_of_its_original(hands, change):
    index, distance = report.find_twins(hands, copies(hands[20:40], change))
    assert index.tolist() == list(range(20, 40)) and distance.max() < report.TWIN


def test_other_pictures_are_no_twins(hands):
    _, distance = report.find_twins(hands[:30], hands[30:])
    assert distance.min() > report.TWIN


def test_twins_are_found_in_every_part_of_a_large_set():
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (600, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    index, distance = report.find_twins(squares, squares[[3, 255, 256, 599]])
    assert index.tolist() == [3, 255, 256, 599] and distance.max() < 1e-3


class Page(html.parser.HTMLParser):
    """Collects the tags, the addresses and the text of a page; complains about tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.addresses, self.alt, self.text, self.open = [], [], [], "", []
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        if tag == "img":
            self.alt.append(dict(attributes)["alt"])
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory, hands):
    """The output folder of a run on twelve test pictures, two of which have twins; the last class is tricky."""
    folder = tmp_path_factory.mktemp("run")
    utils.use_headless_figures(show=False)
    names = ("0", "1", TRICKY)
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[:3] = 1         # pictures 0 and 2 are wrong
    results = {"labels": labels, "predictions": predictions, "probabilities": utils.one_hot(predictions, 3),
               "confusion": np.eye(3, dtype=int), "accuracy": 10 / 12}
    metrics = {"script": "signs_functional", "data": "synthetic", "dry_run": False, "seed": 1, "epochs": 2,
               "batch_size": 32, "learning_rate": 0.1, "device": "CPU", "train_seconds": 3.2, "train_examples": 40,
               "validation_examples": 4, "test_examples": 12, "test_accuracy": 10 / 12, "temperature": 1.2,
               "calibration_error_before": 0.1, "calibration_error_after": 0.05,
               "test_accuracy_interval": [0.55, 0.95], "data_files": {TRICKY + ".h5": "0" * 64},
               "classes": [{"name": name, "precision": None, "recall": 0.5, "examples": 4} for name in names],
               "versions": {"keras": "3"}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.csv").write_text("epoch,loss\n0,1.5\n1,1.2\n")
    utils.plot_confusion_matrix(results, names, folder / "confusion_matrix.png", "synthetic")
    trust.plot_reliability(results, 1.2, folder / "reliability.png", "synthetic")
    test_x = np.concatenate([hands[:2], hands[40:50]])
    found = report.write_report(folder, signs_functional.build_model(3), results, hands[:40], test_x,
                                ["signs_functional.py", "--data-dir", TRICKY])
    return folder, found


def test_the_report_is_one_whole_page_that_fetches_nothing(run):
    source = (run[0] / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert all(page.alt) and "@import" not in source and "url(" not in source
    headings = [tag for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}
    assert not list(run[0].glob("*.part"))


def test_names_are_escaped(run):
    source = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in source and "&lt;script&gt;" in source
    assert Page(source).text.count(TRICKY) >= 4     # the subtitle, the table, the file, the command


def test_the_report_says_what_was_measured(run):
    text = Page((run[0] / "report.html").read_text(encoding="utf-8")).text
    for words in ("83.3%", "55.0% to 95.0%", "SYNTHETIC", "10.0% before, 5.0% after", "170,411 parameters",
                  "What it is not for", "Precision", "0" * 64, "--data-dir"):
        assert words in text, words


def test_accuracy_with_and_without_twins(run):
    # Test pictures 0 and 1 are training pictures; 0 and 2 were answered wrongly.
    assert run[1] == {"test_twins": 2, "accuracy_of_twins": 0.5, "accuracy_without_twins": 0.9}
    text = Page((run[0] / "report.html").read_text(encoding="utf-8")).text
    assert "2 of 12 test pictures have a near-duplicate" in text
    assert "50.0% (1 of 2;" in text and "90.0% (9 of 10;" in text and "83.3% (10 of 12;" in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(run, tmp_path, width):
    # In a frame, for the browser's own window has a least width; the frame's script tells the width of the content.
    source = (run[0] / "report.html").read_text(encoding="utf-8")
    source = re.sub("<meta http-equiv[^>]*>", "", source)
    (tmp_path / "page.html").write_text(source)
    (tmp_path / "frame.html").write_text(
        f'<iframe id=f src=page.html style="width:{width}px;height:800px;border:0"></iframe><script>'
        "onload = () => { const d = f.contentDocument.documentElement;"
        "document.title = `${d.clientWidth} ${d.scrollWidth}`; }</script>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'frame.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shown, wide = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert width - 20 <= shown == wide
