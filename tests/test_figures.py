"""Figures: whatever the classes are called and however many there are, every text can be read."""

from types import SimpleNamespace

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.path import Path
from matplotlib.text import Text
from PIL import Image

import cnn_utils as utils
from support.evaluation import figures
from support.prediction import answers
from support.prediction.explain import COLOR_BAR

# A font for every character is not everywhere: boxes are drawn instead.
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")

# Pixels by which the boxes of two texts may touch: they are taller than the letters in them.
TOLERANCE = 1

ODD = (
    "golden retriever",
    "東京 🙂",
    "العربية",
    "Müller $x$ and $y",
    "very_long_underscore_name_of_a_class",
    "עברית",
    "A class name of exactly forty characters",
    "W" * 255,
)


def class_names(kind, count):
    if kind == "long":
        return tuple(f"very_long_underscore_name_of_a_class_{number}" for number in range(count))
    return tuple(f"{ODD[number % len(ODD)]}{number // len(ODD) or ''}" for number in range(count))


def outline(text):
    """Return the corners of a text (4, 2) in pixels, also if it is rotated."""
    box = text.get_window_extent()
    rotation = text.get_rotation()
    text.set_rotation(0)
    upright = text.get_window_extent()
    text.set_rotation(rotation)
    half = np.array([upright.width, upright.height]) / 2 - TOLERANCE
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    return corners @ np.array([(cos, sin), (-sin, cos)]) + [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]


def overlap(one, other):
    """Return whether two convex shapes, corners (n, 2), have a point in common."""
    if (one.max(axis=0) < other.min(axis=0)).any() or (other.max(axis=0) < one.min(axis=0)).any():
        return False
    closed = (Path(np.vstack([shape, shape[:1]]), closed=True) for shape in (one, other))
    return next(closed).intersects_path(next(closed), filled=True)


def check_figure(path):
    """Check the figure that was drawn last: its size, and that each of its texts can be read. Return the texts."""
    figure = plt.gcf()
    image = matplotlib.image.imread(path)
    assert max(image.shape) <= 4000 and np.ptp(image[..., :3]) > 0.5
    visible = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # A tick outside the limits of an axis is not drawn.
    hidden = {
        tick.label1
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis.get_major_ticks()
        if not ax.axison or not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [text for text in visible if text not in hidden]
    outlines = [outline(text) for text in texts]
    width, height = figure.get_size_inches() * figure.dpi
    for text, shape in zip(texts, outlines):
        inside = (shape >= -TOLERANCE).all() and (shape <= np.array([width, height]) + TOLERANCE).all()
        assert inside, f"{text.get_text()!r} is cut off"
    pictures = [ax.get_window_extent() for ax in figure.axes if ax.images and not ax.axison]
    pictures = [np.array([(b.x0, b.y0), (b.x1, b.y0), (b.x1, b.y1), (b.x0, b.y1)]) for b in pictures]
    for number, (text, shape) in enumerate(zip(texts, outlines)):
        for other, other_shape in zip(texts[:number], outlines):
            assert not overlap(shape, other_shape), f"{text.get_text()!r} lies on {other.get_text()!r}"
        assert not any(overlap(shape, picture) for picture in pictures), f"{text.get_text()!r} lies on an image"
    found = [text.get_text() for text in texts]
    plt.close(figure)
    return found


def fake_results(classes, mistakes, images=None):
    """Return the test images and the `Results` of a network that makes this number of mistakes."""
    rng = np.random.default_rng(0)
    images = images or max(3 * classes, 150)
    labels = np.arange(images) % classes
    logits = rng.normal(0, 1, (images, classes))
    logits[np.arange(images), labels] = logits.max(axis=1) + rng.uniform(0.1, 6, images)
    wrong = rng.permutation(images)[:mistakes]
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    results = utils.measure(probabilities, np.eye(classes)[labels], [str(label) for label in range(classes)], 0.5)
    assert len(results.mistakes) == mistakes
    return rng.integers(0, 256, (images, 64, 64, 3), np.uint8), results


CASES = [(2, "long", 1), (2, "odd", 100), (6, "odd", 100), (12, "odd", 1), (12, "long", 100), (40, "long", 100)]


@pytest.fixture(scope="module", params=[*CASES, (40, "odd", 1), (131, "long", 100)], ids=str)
def case(request):
    classes, kind, mistakes = request.param
    return *fake_results(classes, mistakes), class_names(kind, classes)


def test_examples(case, tmp_path):
    x, results, names = case
    utils.plot_examples(x, results.labels, names, tmp_path / "a.png", "synthetic")
    texts = check_figure(tmp_path / "a.png")
    counted = [text for text in texts if text.endswith("images") and "\n" in text]
    assert len(counted) == min(len(names), 60)
    assert any("SYNTHETIC data" in text for text in texts)


def test_confusion_matrix(case, tmp_path):
    _, results, names = case
    utils.plot_confusion_matrix(results, names, tmp_path / "a.png", "synthetic")
    texts = check_figure(tmp_path / "a.png")
    right = f"Confusion matrix: {results.accuracy:.1%} of {len(results.labels):,} test images right"
    assert any(" ".join(text.split()).startswith(right) for text in texts)
    assert {"predicted class", "true class"} <= set(texts)
    numbers = [int(text) for text in texts if text.isdecimal()]
    assert sum(numbers) == (results.confusion.sum() if len(names) <= 40 else 0)


def test_mistakes(case, tmp_path):
    x, results, names = case
    utils.plot_mistakes(x, results, names, tmp_path / "a.png", "synthetic")
    texts = check_figure(tmp_path / "a.png")
    captions = [text for text in texts if text.startswith("is ")]
    assert len(captions) == min(24, len(results.mistakes))
    # A long name is cut, the probability never.
    for index, caption in zip(results.mistakes, captions):
        assert f"{results.probabilities[index].max():.0%}" in caption


def test_no_mistakes(tmp_path):
    x, results = fake_results(2, 0)
    utils.plot_mistakes(x, results, ("a", "b"), tmp_path / "a.png", "synthetic")
    texts = " ".join(" ".join(check_figure(tmp_path / "a.png")).split())
    assert "None: all 150 test images were classified correctly." in texts and "Mistakes: 0 of 150" in texts


@pytest.mark.parametrize("classes, images", [(2, 150), (2, 1), (6, 40), (40, 400), (6, 5000)])
def test_reliability(classes, images, tmp_path):
    _, results = fake_results(classes, min(images // 5, 100), images)
    utils.plot_reliability(results, 1.5, tmp_path / "a.png", "synthetic")
    texts = check_figure(tmp_path / "a.png")
    assert any("before calibration: calibration error" in text for text in texts)
    assert any("after calibration (temperature 1.50)" in text for text in texts)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("epochs", [1, 3, 60])
def test_learning_curves(rows, epochs, tmp_path):
    names = ("strong augmentation, 12,800 images", "weak augmentation, 540 images", "a_function_" * 12)
    first = np.rint(np.linspace(0, 0.95 * epochs, rows)).astype(int) + 1
    schedule = [(names[number % 3], start, epochs) for number, start in enumerate(first)]
    history = {key: np.linspace(2e5, 0, epochs).tolist() for key in ("loss", "val_loss")}
    history |= {key: [1.0] * epochs for key in ("accuracy", "val_accuracy")}
    run = SimpleNamespace(schedule=schedule, examples_per_epoch=12_800)
    utils.plot_learning_curves(history, run, tmp_path / "a.png", "synthetic")
    texts = check_figure(tmp_path / "a.png")
    # The names stand where the rows begin; a single row needs no name.
    named = [text for text in texts if text.startswith((names[0], names[1], "a_function"))]
    reached = np.count_nonzero(first <= epochs)
    assert len(named) == (reached if reached > 1 else 0)


def test_learning_curves_leave_out_what_was_never_reached(tmp_path):
    run = SimpleNamespace(schedule=[("first", 1, 1), ("second", 2, 3), ("third", 4, 9)], examples_per_epoch=1300)
    history = {key: [2.0, 1.0, 0.5] for key in ("loss", "val_loss", "accuracy", "val_accuracy")}
    utils.plot_learning_curves(history, run, tmp_path / "a.png", "real")
    figure = plt.gcf()
    for ax in figure.axes:
        lines = [list(line.get_xdata()) for line in ax.lines]
        assert lines[:2] == [[1, 2, 3]] * 2
        assert [line[0] for line in lines[2:]] == [0.5, 1.5]  # between two epochs
    # Training and validation are both seen where they are equal.
    assert figure.axes[0].lines[0].get_linewidth() > 2 * figure.axes[0].lines[1].get_linewidth()
    texts = check_figure(tmp_path / "a.png")
    assert {"first", "second", "epoch (1,300 images each)"} <= set(texts) and "third" not in texts


def test_augmented(tmp_path):
    def brighter(images, seed):
        return images + np.arange(9).reshape(-1, 1, 1, 1) * 10.0

    def a_function_with_a_name_that_is_far_too_long_for_what_it_does(images, seed):
        return images - np.random.default_rng(seed).uniform(0, 90, (9, 1, 1, 1))

    image = np.full((64, 64, 3), 100, np.uint8)
    for functions in [(brighter,), (brighter, a_function_with_a_name_that_is_far_too_long_for_what_it_does, brighter)]:
        schedule = [(5, None, function) for function in functions]
        utils.plot_augmented(image, schedule, 1, tmp_path / "a.png", "synthetic")
        shown = [ax.images[0].get_array() for ax in plt.gcf().axes]
        assert len(shown) == 1 + 9 * len(set(functions))
        assert [picture[0, 0, 0] for picture in shown[:10]] == [100, *range(100, 190, 10)]
        texts = check_figure(tmp_path / "a.png")
        assert texts.count("brighter") == texts.count("original") == 1
        assert len(texts) == 2 + len(set(functions))


@pytest.mark.parametrize("count", [1, 7, 24])
def test_predictions(count, tmp_path, monkeypatch):
    from datasets.images import Photo

    rng = np.random.default_rng(0)
    names = class_names("odd", 8)
    drawn = []
    for number in range(count):
        overview = rng.integers(0, 256, ((300, 400, 3), (400, 90, 3))[number % 2], np.uint8)
        photo = Photo(rng.integers(0, 256, (64, 64, 3), np.uint8), overview, 1.0, (10, 20, 80, 90), number % 3 == 0)
        reason = "confidence below 70% and unlike the training images (distance 0.49, usually up to 0.45)"
        path = tmp_path / f"{number}_{names[number % 8][:60]}.jpg"
        probabilities = np.full(8, (0.5 - 0.01 * number) / 7)
        probabilities[number % 8] = 0.5 + 0.01 * number
        drawn.append((number + 1, answers.Answer(path, photo, probabilities, reason * (number % 2))))
    heatmap = np.zeros((256, 256, 3), np.uint8)
    monkeypatch.setattr("support.prediction.explain.overlay_heatmap", lambda model, image, label: heatmap)
    metadata = SimpleNamespace(classes=names, data="synthetic")
    answers._draw(None, metadata, drawn, tmp_path, "face", explain=True)
    explained = check_figure(tmp_path / "explanations.png")
    assert {"no evidence", "the strongest in this image"} <= set(explained)
    seen = check_figure(tmp_path / "predictions.png")
    for _, answer in drawn:
        probability = f"({answer.probabilities.max():.1%})"
        matching = [text for text in [*explained, *seen] if probability in text]
        assert len(matching) == 2 and all(("not sure" in text) == bool(answer.reason) for text in matching)


@pytest.mark.parametrize("kind", ["real", "folder", "synthetic"])
def test_synthetic_data_are_marked(kind, tmp_path):
    x, results = fake_results(2, 3)
    names = ("not smiling", "smiling")
    history = {key: [2.0, 1.0] for key in ("loss", "val_loss", "accuracy", "val_accuracy")}
    run = SimpleNamespace(schedule=[("weak", 1, 2)], examples_per_epoch=9)
    utils.plot_examples(x, results.labels, names, tmp_path / "a.png", kind)
    utils.plot_augmented(x[0], [(1, None, lambda images, seed: images)], 1, tmp_path / "b.png", kind)
    utils.plot_learning_curves(history, run, tmp_path / "c.png", kind)
    utils.plot_confusion_matrix(results, names, tmp_path / "d.png", kind)
    utils.plot_mistakes(x, results, names, tmp_path / "e.png", kind)
    utils.plot_reliability(results, 1.5, tmp_path / "f.png", kind)
    titles = [plt.figure(number).get_suptitle() for number in plt.get_fignums()]
    assert [("SYNTHETIC data" in title) for title in titles] == [kind == "synthetic"] * 6


def test_the_color_bar_goes_from_dark_to_bright():
    colors = COLOR_BAR[0].astype(int).sum(axis=1)
    assert colors.argmin() < 20 and colors.argmax() == 255


# ------------------------------------------------------------------------ text


def test_a_name_is_cut_in_its_middle_and_what_stands_beside_it_is_kept():
    assert figures.fit("cat", 2, "is ", ", 71%") == "is cat, 71%"
    cut = figures.fit("very_long_underscore_name_of_a_class_17", 1.7, "predicted ", ", 71%")
    assert cut.startswith("predicted very_l") and cut.endswith("17, 71%") and "…" in cut
    assert figures.text_width(cut) <= 1.7 < figures.text_width(cut.replace("…", "…lo"))


def test_a_right_to_left_name_does_not_reorder_the_text_beside_it():
    assert figures.fit("العربية", 2, "is ", ", 71%") == "is \u2068العربية\u2069, 71%"
    # The isolates are drawn as nothing.
    assert figures.text_width("\u2068abc\u2069") == figures.text_width("abc")


def test_titles_are_wrapped_into_lines_of_about_the_same_length():
    lines = figures.balanced("Confusion matrix: 97.5% of 120 test images right", 3.6, 12, "bold")
    assert lines == ["Confusion matrix: 97.5%", "of 120 test images right"]


@pytest.fixture
def fonts(monkeypatch):
    """Let the figures begin with one font, and forget which characters it has; return the list of fonts."""
    names = ["DejaVu Sans"]
    monkeypatch.setattr(figures, "FONTS", names)
    monkeypatch.setitem(figures.STYLE, "font.family", names)
    functions = figures.has_font, figures.text_width, figures._other_fonts
    for function in functions:
        function.cache_clear()
    yield names
    for function in functions:
        function.cache_clear()


def save_font(path, name, characters):
    """Save a font in which every one of these characters is a black box."""
    builder = FontBuilder(1000)
    glyphs = [".notdef", *(f"glyph{number}" for number in range(len(characters)))]
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(dict(zip(map(ord, characters), glyphs[1:])))
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (900, 800), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(path)


def test_a_character_is_drawn_in_any_installed_font_that_has_it(fonts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "_missing_reported", False)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    save_font(tmp_path / "boxes.ttf", "Black Boxes", "東京")
    (tmp_path / "damaged.ttf").write_bytes(b"not a font")
    # Installed after Matplotlib has made its list of fonts.
    found = [str(tmp_path / name) for name in ("damaged.ttf", "boxes.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    image = np.full((1, 64, 64, 3), 255, np.uint8)
    assert figures.text_width("東京") == pytest.approx(2 * figures.CAPTION / 72, rel=0.1)
    figures.image_grid(image, ["東京"], "Title", tmp_path / "a.png", "real")
    assert fonts == ["DejaVu Sans", "Black Boxes"] and capsys.readouterr().out == ""
    (text,) = (text for text in plt.gcf().findobj(Text) if text.get_text() == "東京")
    box = text.get_window_extent()
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    inside = drawn[len(drawn) - int(box.y1) + 1 : len(drawn) - int(box.y0), int(box.x0) + 1 : int(box.x1)]
    assert (inside < 128).mean() > 0.5  # black boxes, not the outlines that stand for missing characters


def test_missing_characters_are_reported_once(fonts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "_other_fonts", lambda: [])
    monkeypatch.setattr(figures, "_missing_reported", False)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    figures.image_grid(image, ["Müller العربية $x$"], "Title", tmp_path / "a.png", "real")
    assert capsys.readouterr().out == ""
    for _ in range(2):
        figures.image_grid(image, ["東京 \u2068x\u2069"], "Title", tmp_path / "a.png", "real")
    printed = capsys.readouterr().out
    assert printed.startswith("No font for 京 東: the figures show boxes instead.") and printed.count("\n") == 1
    assert "such as Noto Sans CJK (on Ubuntu and Debian: apt install fonts-noto-cjk)" in printed
    monkeypatch.setattr(figures, "_missing_reported", False)
    figures.image_grid(image, ["🙂 한국"], "Title", tmp_path / "a.png", "real")
    assert "No font for 국 한 🙂: " in (said := capsys.readouterr().out) and "such as Noto Sans or Noto Emoji\n" in said


def test_a_figures_style_stays_its_own(tmp_path):
    before = dict(plt.rcParams)
    figures.image_grid(np.zeros((1, 64, 64, 3), np.uint8), ["a"], "Title", tmp_path / "a.png", "real")
    assert dict(plt.rcParams) == before


def test_an_image_of_64_pixels_is_drawn_in_whole_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    figures.image_grid(image, ["a"], "Title", tmp_path / "a.png", "real")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    enlarged = image[0].repeat(3, axis=0).repeat(3, axis=1)
    rows = np.lib.stride_tricks.sliding_window_view(drawn, enlarged.shape)[..., 0, :, :, :]
    assert any((window == enlarged).all() for row in rows[:80] for window in row)
