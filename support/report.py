"""The report of a run: report.html, one page with everything that was measured and the figures inside it.

The page has no script, and its Content-Security-Policy forbids loading anything. Words and markup are in the
Jinja2 template beside this file, which escapes whatever comes from the name of a file or a class.
"""

import base64
import csv
import datetime
import io
import pathlib
import shlex

import jinja2
import numpy as np
from PIL import Image

from datasets.download import read_sources
from support.errors import InputError
from support.files import atomic_write, read_json
from support.near_duplicates import MAX_SHIFT, NEAR_DUPLICATE, find_near_duplicates

FIGURES = ("learning_curves", "confusion_matrix", "mistakes", "reliability", "examples")

# The keys of metrics.json that stand elsewhere on the page or are left out; the others are listed as settings.
NOT_SETTINGS = {
    "script", "data", "data_files", "data_dir", "stages", "parameters", "classes", "confusion_matrix", "test_loss",
    "test_accuracy", "test_accuracy_interval", "test_balanced_accuracy", "temperature", "calibration_error_before",
    "calibration_error_after", "interrupted", "train_seconds", "train_examples", "synthetic_examples",
    "validation_examples", "test_examples", "versions",
}  # fmt: skip


def write_report(output_dir, model, results, train_x, test_x, command=()):
    """Write `report.html` from what a run has saved and measured.

    Args:
        output_dir: folder of `metrics.json`, `history.csv`, the figures (a missing one is left out) and the report.
        model: the trained Keras model.
        results: dict from `cnn_utils.evaluate`, of which `labels` and `predictions` (t,) are used.
        train_x, test_x: uint8 (m, 64, 64, 3) and (t, 64, 64, 3), arrays or `ImageFiles`.
        command: sequence of str, the command line.

    Raises InputError: there is no `metrics.json`, or the report cannot be written.
    """
    output_dir = pathlib.Path(output_dir)
    metrics = read_json(output_dir / "metrics.json")
    if metrics is None:
        expected = "A report needs the metrics.json of a run: train first"
        raise InputError(f"{expected}. Received: {output_dir}, without one that can be read")
    classes, correct = metrics["classes"], results["labels"] == results["predictions"]
    index, distance = find_near_duplicates(train_x, test_x)
    duplicate = distance < NEAR_DUPLICATE
    groups = {"in total": slice(None), "with a near-duplicate": duplicate, "without": ~duplicate}
    originals = {source["sha256"] for source in read_sources().values()}
    figures = {name: output_dir / f"{name}.png" for name in FIGURES}
    page = _render(
        metrics=metrics,
        finished=datetime.datetime.fromtimestamp((output_dir / "metrics.json").stat().st_mtime),
        test_count=len(correct),
        class_names=[entry["name"] for entry in classes],
        class_rows=[[entry[key] for key in ("name", "precision", "recall", "examples")] for entry in classes],
        topic=_topic(metrics),
        last_epoch=_last_epoch(output_dir / "history.csv"),
        confusion=_most_confused(metrics),
        mistakes=int(np.count_nonzero(~correct)),
        figures={name: _embedded(path.read_bytes(), 0.8) if path.exists() else None for name, path in figures.items()},
        original=originals.issuperset(metrics["data_files"].values()),
        near_duplicates={
            "count": int(np.count_nonzero(duplicate)),
            "threshold": NEAR_DUPLICATE,
            "max_shift": MAX_SHIFT,
            "least_distance": distance.min(),
            "accuracy": [_accuracy_row(name, correct[chosen]) for name, chosen in groups.items()],
            **_pair_sheet(train_x, test_x, index, distance),
        },
        command=[shlex.quote(str(word)) for word in ("python", *command)] if command else [],
        settings=_settings(metrics),
        layers=[
            (layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])), layer.count_params())
            for layer in model.layers
        ],
    )
    with atomic_write(output_dir / "report.html") as temporary:
        # A file name may hold bytes that are not text.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    print(f"Saved {output_dir / 'report.html'}")


def _render(**values):
    """Return the page as str."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent="{:.1%}".format, thousands="{:,}".format)
    return environment.get_template("report.html").render(**values).lstrip()


def _last_epoch(path):
    """Return the last row of `history.csv` as a dict of str, empty without a file."""
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
    return rows[-1] if rows else {}


def _embedded(png, scale):
    """Return a PNG in base64 and its size in CSS pixels, `scale` for each of its own."""
    with Image.open(io.BytesIO(png)) as image:
        width, height = (round(scale * side) for side in image.size)
    return {"base64": base64.b64encode(png).decode("ascii"), "width": width, "height": height}


def _pair_sheet(train_x, test_x, index, distance, most=8):
    """Return the near-duplicates as a sheet, test images above training images, and the distances of the pairs.

    There are at most `most` pairs, from the most similar on the left to the least similar on the right.
    """
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] < NEAR_DUPLICATE]
    if not len(order):
        return {"sheet": None, "distances": []}
    chosen = order[np.linspace(0, len(order) - 1, min(most, len(order))).astype(int)]
    gap = 4
    pairs = np.concatenate([test_x[chosen], train_x[index[chosen]]], axis=1)  # (pairs, 2 * height, width, 3)
    pairs = np.pad(pairs, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    sheet = np.hstack(list(pairs))[:, :-gap]
    file = io.BytesIO()
    Image.fromarray(sheet.repeat(2, axis=0).repeat(2, axis=1)).save(file, "PNG")
    return {"sheet": _embedded(file.getvalue(), 0.75), "distances": distance[chosen].tolist()}


def _accuracy_row(name, correct):
    """Return a table row with count, accuracy and 95% Wilson interval of a bool array (n,)."""
    from scipy.stats import binomtest

    if not len(correct):
        return f"0 {name}", None, None, None
    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(0.95, method="wilson")
    limits = f"{100 * interval.low:.1f}–{interval.high:.1%}"
    return f"{len(correct):,} {name}", f"{correct.sum():,}", f"{correct.mean():.1%}", limits


def _most_confused(metrics):
    """Return the number of mistakes in the confusion matrix, and which one is the most frequent."""
    wrong = np.array(metrics["confusion_matrix"])
    np.fill_diagonal(wrong, 0)
    true, predicted = (metrics["classes"][i]["name"] for i in np.unravel_index(wrong.argmax(), wrong.shape))
    return {"total": int(wrong.sum()), "most": int(wrong.max()), "true": true, "predicted": predicted}


def _topic(metrics):
    """Return what the model is about, for the warnings: "smiles", "signs" or "other"."""
    names = {entry["name"] for entry in metrics["classes"]}
    if names & {"smiling", "not smiling"}:
        return "smiles"
    return "signs" if metrics["script"].startswith("signs") and names <= set("012345") else "other"


def _settings(metrics):
    """Return the settings, the device and the versions as pairs of name and readable value."""
    pairs = [(key.replace("_", " "), _readable(value)) for key, value in metrics.items() if key not in NOT_SETTINGS]
    stages = [(stage["name"], *stage["epochs"]) for stage in metrics.get("stages", [])]
    if stages:
        spans = [f"epochs {first}–{last}" if first < last else f"epoch {first}" for _, first, last in stages]
        pairs.append(("stages", "; ".join(f"{name}: {span}" for (name, *_), span in zip(stages, spans))))
    return pairs + list(metrics["versions"].items())


def _readable(value):
    """Return a setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.2f}" for name, number in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else value
