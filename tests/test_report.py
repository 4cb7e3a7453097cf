"""The report of a run: twins, the page, what must not get into it; in a browser, where there is one."""

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
import report
import signs_functional
import trust
from datasets.synthetic import render_dataset

TRICKY = '<script>alert("&\')</script>'


@pytest.fixture(scope="module")
def hands():
    return utils.load_h5(render_dataset("signs")[0], "train")[0][:60]


def copies(pictures, change):
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def moved(image, right, down):
    """Move a picture by whole pixels; at the edges it goes on as it ends."""
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)), mode="edge")
    return Image.fromarray(padded[4 - down:68 - down, 4 - right:68 - right])


CHANGES = {"same": lambda image: image, "jpeg": jpeg,
           "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
           "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
           "shifted by a pixel": lambda image: moved(image, 1, 0),
           "shifted by two pixels": lambda image: moved(image, -2, 2),
           "all at once": lambda image: jpeg(ImageEnhance.Brightness(moved(image, -1, 1)).enhance(0.8))}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_a_twin_of_its_original(hands, change):
    index, distance = report.find_twins(hands, copies(hands[20:40], change))
    assert index.tolist() == list(range(20, 40)) and distance.max() < report.TWIN


@pytest.mark.parametrize("name", ["signs", "happy"])
def test_other_hands_and_faces_are_no_twins(name):
    (train_x, _, _), (test_x, _, _) = (utils.load_h5(path, part) for path, part in
                                       zip(render_dataset(name), ("train", "test")))
    _, distance = report.find_twins(train_x[:300], test_x[:60])
    assert distance.min() > report.TWIN


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs photographs")
def test_of_hands_photographed_a_moment_later_there_are_many_twins_of_faces_of_different_people_none():
    counts = {}
    for name, folder in REAL.items():
        (train_x, train_y, _), (test_x, test_y, _) = (
            utils.load_h5(folder / f"{part}_{name}.h5", part) for part in ("train", "test"))
        index, distance = report.find_twins(train_x, test_x)
        twins = distance < report.TWIN
        counts[name] = twins.sum()
        assert np.array_equal(train_y[index[twins]], test_y[twins])     # the same pose is the same digit
    assert counts["signs"] > 20 and counts["happy"] == 0


def test_a_blank_picture_is_like_another_and_unlike_a_hand(hands):
    index, distance = report.find_twins(np.stack([hands[0], np.full_like(hands[0], 200)]), np.zeros_like(hands[:1]))
    assert index.tolist() == [1] and distance.max() < 1e-3
    assert report.find_twins(hands[:1], np.zeros_like(hands[:1]))[1].min() > 1


class OnDisk:
    """Stands in for pictures on disk: known length, and an array for an array of numbers, of a few at a time."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, numbers):
        assert isinstance(numbers, np.ndarray) and len(numbers) <= 256
        return self.pictures[numbers]


def test_pictures_on_disk_are_read_a_few_at_a_time():
    pictures = np.random.default_rng(1).integers(0, 256, (300, 64, 64, 3), np.uint8)
    for found, expected in zip(report.find_twins(OnDisk(pictures), OnDisk(pictures[5:290])),
                               report.find_twins(pictures, pictures[5:290])):
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_twins_are_found_in_every_part_of_a_large_set():
    rng = np.random.default_rng(0)
    squares = rng.integers(0, 256, (600, 8, 8, 3), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    index, distance = report.find_twins(squares, squares[[3, 255, 256, 599]])
    assert index.tolist() == [3, 255, 256, 599] and distance.max() < 1e-3


class Page(html.parser.HTMLParser):
    """Collects the tags, their attributes and the text of a page; complains about tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory, hands):
    """The output folder of a run on twelve test pictures, two of which have twins; the last class is tricky."""
    folder = tmp_path_factory.mktemp("run")
    utils.use_headless_figures(show=False)
    names = ("0", "1", TRICKY)
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[:3] = 1         # pictures 0 and 2 are wrong
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 1, 3]])
    results = {"labels": labels, "predictions": predictions, "probabilities": utils.one_hot(predictions, 3),
               "confusion": confusion, "accuracy": 10 / 12}
    metrics = {"script": "signs_functional", "data": "synthetic", "dry_run": False, "seed": 1, "epochs": 2,
               "batch_size": 32, "learning_rate": 0.1, "device": "CPU", "train_seconds": 3.2, "train_examples": 40,
               "validation_examples": 4, "test_examples": 12, "test_accuracy": 10 / 12, "temperature": 1.2,
               "parameters": 170_411, "confusion_matrix": confusion.tolist(),
               "calibration_error_before": 0.1, "calibration_error_after": 0.05,
               "test_accuracy_interval": [0.55, 0.95], "data_files": {TRICKY + 200 * "long" + ".h5": "0" * 64},
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


@pytest.fixture
def page(run):
    return Page((run[0] / "report.html").read_text(encoding="utf-8"))


def test_the_report_is_one_whole_page_that_fetches_nothing(run, page):
    source = (run[0] / "report.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "@import" not in source and "url(" not in source
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert sorted(path.name for path in run[0].iterdir()) == [
        "confusion_matrix.png", "history.csv", "metrics.json", "reliability.png", "report.html"]


def test_the_report_can_be_read_without_eyes_and_without_a_mouse(page):
    assert page.all("html") == [{"lang": "en"}] and len(page.all("title")) == len(page.all("main")) == 1
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1" and set(headings[1:]) == {"h2"}
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in page.all("a")} == {entry["id"] for entry in page.all("section")}
    assert len(page.all("img")) == 3 and all(len(image["alt"]) > 30 for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) and all("scope" in head for head in page.all("th"))
    assert all(box.get("tabindex") == "0" for box in page.all("div") if box.get("class") == "scroll")


def luminance(colour):
    """Return the relative luminance of "#rrggbb" as WCAG 2.2 defines it."""
    shares = np.array([int(colour[place:place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    roots = re.findall(r":root \{(.*?)\}", report.STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", roots[["light", "dark"].index(scheme)]))
    for front, ground in [("ink", "paper"), ("ink", "card"), ("quiet", "paper"), ("quiet", "card"),
                          ("accent", "paper"), ("warn", "warn-paper")]:
        low, high = sorted(luminance(colours[name]) for name in (front, ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, ground)


def test_names_are_escaped(run, page):
    source = (run[0] / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in source and "&lt;script&gt;" in source and 'alert("' not in source
    assert page.text.count(TRICKY) >= 3     # the classes above, the table, the file
    command = shlex.split(page.text[page.text.index("python signs"):].split("\n")[0])
    assert command == ["python", "signs_functional.py", "--data-dir", TRICKY]


def test_names_are_escaped_in_attributes(run):
    png = (run[0] / "confusion_matrix.png").read_bytes()
    picture = Page(report.figure(png, TRICKY, TRICKY))
    assert picture.all("img")[0]["alt"] == picture.all("div")[0]["aria-label"] == TRICKY


def test_what_is_not_there_is_left_out(run, hands, tmp_path):
    metrics = json.loads((run[0] / "metrics.json").read_text())
    for key in ("temperature", "calibration_error_before", "calibration_error_after"):
        del metrics[key]
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "interrupted": True, "dry_run": True}))
    labels = np.arange(3)
    found = report.write_report(tmp_path, signs_functional.build_model(3), {"labels": labels, "predictions": labels},
                                hands[:10], hands[10:13])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert found == {"test_twins": 0, "accuracy_of_twins": None, "accuracy_without_twins": 1}
    assert not page.all("img") and not page.all("pre") and "Calibration" not in page.text
    assert "None of the 3 test pictures has a twin" in page.text
    assert "Dry run." in page.text and "Interrupted." in page.text


def test_a_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(utils.InputError, match="train first. Received: .*none that can be read"):
        report.write_report(tmp_path, None, {}, None, None)


@pytest.mark.parametrize("script, data, names, said, unsaid", [
    ("happy_sequential", "real", ("not smiling", "smiling"), "A smile is not a feeling", "Sign language"),
    ("signs_resnet50", "real", tuple("012345"), "Sign language", "smile"),
    ("signs_functional", "synthetic", tuple("012345"), "Photographs.", "those of the folder"),
    ("signs_functional", "folder", ("cup", "plate"), "those of the folder", "Sign language"),
])
def test_the_report_says_what_the_model_is_not_for(script, data, names, said, unsaid):
    metrics = {"script": script, "data": data, "classes": [{"name": name, "examples": 30} for name in names]}
    sentences = " ".join(report.limits(metrics))
    assert said in sentences and unsaid not in sentences and f"{30 * len(names)} test pictures" in sentences
    assert "dry run" not in sentences and "dry run" in report.limits({**metrics, "dry_run": True})[0]


def test_fifty_layers_are_folded_away():
    from resnet_utils import ResNet50

    model = ResNet50(classes=6)
    page = Page(report.about_architecture(model))
    assert page.tags[0][0] == "details" and page.text.startswith(f"{len(model.layers)} layers, 23,600,006 parameters")
    assert len(page.all("tr")) == len(model.layers) + 1


def test_the_report_says_what_was_measured(run):
    text = Page((run[0] / "report.html").read_text(encoding="utf-8")).text
    for words in ("83.3%", "55.0% to 95.0%", "SYNTHETIC", "10.0% before and 5.0% after", "170,411 parameters",
                  "What it is not for", "Precision", "0" * 64, "--data-dir"):
        assert words in text, words


def test_accuracy_with_and_without_twins(run, page):
    # Test pictures 0 and 1 are training pictures; 0 and 2 were answered wrongly.
    assert run[1] == {"test_twins": 2, "accuracy_of_twins": 0.5, "accuracy_without_twins": 0.9}
    text = page.text
    assert "2 of 12 test pictures have a twin" in text
    table = text[text.index("12 in all"):].split("\n")
    assert [line.split("%")[0] for line in table[:3]] == ["12 in all1083.3", "2 with a twin150.0", "10 without990.0"]


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
