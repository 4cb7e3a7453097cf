"""The report of a run: report.html, one page with everything that was measured and the figures inside it.

The page has no script, and its Content-Security-Policy forbids loading anything. Words and markup are in the
Jinja2 template beside this file, which escapes whatever comes from the name of a file or a class.
"""

import base64
import datetime
import io
import math
import pathlib
import shlex
import struct

import jinja2
import numpy as np
from PIL import Image

from basics.files import atomic_write
from datasets import IMAGE_SIZE
from datasets.download import read_sources
from datasets.groups import MAX_SHIFT, NEAR_DUPLICATE
from support.evaluation.results import accuracy_interval, percentage

FIGURES = ("learning_curves", "augmented", "confusion_matrix", "mistakes", "reliability", "examples")

# A larger figure is named, not embedded: the page would open slowly, and browsers refuse images of many megapixels.
MAX_FIGURE_BYTES, MAX_FIGURE_SIDE = 8_000_000, 16_000

# The live page of --export web has room for about this many.
LIVE_PAGE_PARAMETERS = 700_000


def write_report(output_dir, metrics, history, model, results, train_x, data, near_duplicates, command=()):
    """Write `report.html` from what a run has measured and the figures it has saved.

    Args:
        output_dir: folder of the figures (a missing one is left out) and the report.
        metrics: dict, as in `metrics.json`.
        history: dict of lists, the metrics of every epoch.
        model: the trained Keras model.
        results: `support.evaluation.results.Results`.
        train_x: uint8 (m, size, size, 3), what the model was trained with, an array or `ImageFiles`.
        data: `datasets.loading.Dataset`.
        near_duplicates: `support.evaluation.near_duplicates.NearDuplicates` of the test set.
        command: sequence of str, the command line.

    Raises InputError: the report cannot be written.
    """
    output_dir = pathlib.Path(output_dir)
    settings, training, measured = metrics["settings"], metrics["training"], metrics["results"]
    correct = results.labels == results.predictions
    found = near_duplicates.found
    groups = {"in total": slice(None), "with a near-duplicate": found, "without": ~found}
    originals = {source["sha256"] for source in read_sources().values()}
    smoothing, least_loss = _label_smoothing(model, len(data.class_names))
    page = _render(
        settings=settings,
        training=training,
        results=measured,
        finished=datetime.datetime.now(),
        class_names=list(data.class_names),
        class_rows=[[row[key] for key in ("name", "precision", "recall", "examples")] for row in measured["classes"]],
        topic=data.task.topic if data.shows_task else "other",
        last_epoch={name: values[-1] for name, values in history.items()},
        confusion=_most_confused(results.confusion, data.class_names),
        mistakes=len(results.mistakes),
        figures={name: _figure(output_dir / f"{name}.png") for name in FIGURES},
        smoothing=smoothing,
        least_loss=least_loss,
        certainty=_certainty(measured["certainty"]),
        original=originals.issuperset(settings["data_files"].values()),
        near_duplicates={
            "count": measured["near_duplicates"]["count"],
            "threshold": NEAR_DUPLICATE,
            "max_shift": MAX_SHIFT,
            "least_distance": near_duplicates.distance.min(),
            "accuracy": [_accuracy_row(name, correct[chosen]) for name, chosen in groups.items()],
            **_pair_sheet(train_x, data.test_x, near_duplicates),
        },
        command=_words("python", *command) if command else [],
        commands=_next_commands(output_dir, settings["script"], training["parameters"]),
        setting_rows=_setting_rows(settings, training),
        layers=[
            (layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])), layer.count_params())
            for layer in model.layers
        ],
    )
    with atomic_write(output_dir / "report.html") as temporary:
        # A file name may hold bytes that are not text.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")


def _render(**values):
    """Return the report as str."""
    return render_page("report.html", **values)


def render_page(template, **values):
    """Return a page as str, made from a template beside this file, which escapes whatever comes from a name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent="{:.1%}".format, thousands="{:,}".format, duration=_duration)
    return environment.get_template(template).render(**values).lstrip()


def _figure(path):
    """Return a saved figure as `_embedded` does; only its file name if it is too large; None if there is none.

    A report without a figure is better than none, so whatever is in the file, nothing is raised.
    """
    try:
        png = path.read_bytes()
        figure = _embedded(png, 0.8)
    except (OSError, struct.error):
        return None
    if len(png) > MAX_FIGURE_BYTES or max(figure["width"], figure["height"]) > MAX_FIGURE_SIDE:
        return {"file": path.name}
    return figure


def _embedded(png, scale):
    """Return a PNG in base64 and its size in CSS pixels, `scale` for each of its own."""
    width, height = (round(scale * side) for side in struct.unpack(">II", png[16:24]))  # the header of every PNG
    return {"base64": base64.b64encode(png).decode("ascii"), "width": width, "height": height}


def _pair_sheet(train_x, test_x, near_duplicates, most=8):
    """Return the near-duplicates as a sheet, test images above training images, and the distances of the pairs.

    There are at most `most` pairs, from the most similar on the left to the least similar on the right.
    """
    index, distance = near_duplicates
    order = np.argsort(distance, kind="stable")
    order = order[near_duplicates.found[order]]
    if not len(order):
        return {"sheet": None, "distances": []}
    chosen = order[np.linspace(0, len(order) - 1, min(most, len(order))).astype(int)]
    gap = 4
    pairs = np.concatenate([test_x[chosen], train_x[index[chosen]]], axis=1)  # (pairs, 2 * height, width, 3)
    pairs = np.pad(pairs, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    sheet = np.hstack(list(pairs))[:, :-gap]
    file = io.BytesIO()
    enlarged = max(1, 2 * IMAGE_SIZE // train_x.shape[1])
    Image.fromarray(sheet.repeat(enlarged, axis=0).repeat(enlarged, axis=1)).save(file, "PNG")
    scale = 0.75 * 2 * IMAGE_SIZE / (enlarged * train_x.shape[1])  # the page shows all sizes equally large
    return {"sheet": _embedded(file.getvalue(), scale), "distances": distance[chosen].tolist()}


def _certainty(found):
    """Return the numbers of `support.evaluation.results.certainty` as the page shows them."""

    def row(name, counts, *between):
        answers, wrong = counts["answers"], counts["wrong"]
        return [name, *between, answers, wrong, *_accuracy(answers - wrong, answers)]

    least = percentage(found["not_sure_below"])
    return {
        "least": least,
        "unlike": found["ood_threshold"] is not None,
        "sure": found["sure"],
        "rows": [row("sure", found["sure"]), row(f"below {least}", found["below"]), row("unlike", found["unlike"])],
        # Rounded down, or --not-sure-below with this number would leave out the last of these answers.
        "coverage": [
            row(f"{entry['percent']}%", entry, f"{math.floor(1e4 * entry['least_probability']) / 100:.2f}%")
            for entry in found["coverage"]
        ],
    }


def _accuracy_row(name, correct):
    """Return a table row with count, accuracy and 95% Wilson interval of a bool array (n,)."""
    right = f"{correct.sum():,}" if len(correct) else None
    return f"{len(correct):,} {name}", right, *_accuracy(correct.sum(), len(correct))


def _accuracy(right, count):
    """Return an accuracy and its 95% Wilson interval as text; None and None if nothing was counted."""
    if not count:
        return None, None
    low, high = accuracy_interval(right, count)
    return f"{right / count:.1%}", f"{100 * low:.1f}–{high:.1%}"


def _most_confused(confusion, class_names):
    """Return the number of mistakes in a confusion matrix, and which one is the most frequent."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = (class_names[i] for i in np.unravel_index(wrong.argmax(), wrong.shape))
    return {"total": int(wrong.sum()), "most": int(wrong.max()), "true": true, "predicted": predicted}


def _label_smoothing(model, classes):
    """Return the label smoothing of the loss that a model was trained with, and the lowest value of that loss.

    The loss is lowest where the probabilities equal the smoothed labels: the entropy of these.
    """
    smoothing = getattr(getattr(model, "loss", None), "label_smoothing", 0)
    if not smoothing:
        return 0, 0.0
    labels = np.full(classes, smoothing / classes)
    labels[0] += 1 - smoothing
    return smoothing, float(-np.sum(labels * np.log(labels)))


def _words(*command):
    """Return the words of a command as a shell reads them."""
    return [shlex.quote(str(word)) for word in command]


def _next_commands(output_dir, script, parameters):
    """Return what to do with the trained model: pairs of a sentence and the words of a command."""
    default = pathlib.Path(__file__).resolve().parents[2] / "outputs" / script
    place = [] if output_dir.resolve() == default else ["--output-dir", output_dir]
    export, sentence = "web", "Save live.html, a page that classifies what a camera sees, in any browser:"
    if parameters > LIVE_PAGE_PARAMETERS:
        export, sentence = "onnx", "Save model.onnx, for use in other programs:"
    python = "python", f"{script}.py"
    return [
        ("Classify a photo of your own, or a folder of them:", _words(*python, "--predict", "photo.jpg", *place)),
        (sentence, _words(*python, "--export", export, *place)),
    ]


def _duration(seconds):
    """Return a duration in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _setting_rows(settings, training):
    """Return the settings, the schedule, the device and the versions as pairs of name and readable value."""
    elsewhere = ("script", "data", "data_files")
    pairs = [(key.replace("_", " "), _readable(value)) for key, value in settings.items() if key not in elsewhere]
    pairs.append(("examples per epoch", _readable(training["examples_per_epoch"])))
    if training["class_weights"]:
        pairs.append(("weight of each class", _readable(training["class_weights"])))
    rows = [(row["name"], *row["epochs"]) for row in training["schedule"]]
    if rows:
        spans = [f"epochs {first}–{last}" if first < last else f"epoch {first}" for _, first, last in rows]
        pairs.append(("schedule", "; ".join(f"{name}: {span}" for (name, *_), span in zip(rows, spans))))
    return [*pairs, ("device", training["device"]), *training["versions"].items()]


def _readable(value):
    """Return a setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.2f}" for name, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else value
