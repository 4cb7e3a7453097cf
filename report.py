"""The report of a run: everything that was measured, on one page that needs nothing else.

    find_twins     for each test picture the most similar training picture
    write_report   report.html from the files of a run's output folder

The pictures are embedded, there is no script in it, and nothing is fetched from
anywhere. Whatever comes from a file's or a class's name is escaped.
"""

import base64
import csv
import html
import io
import pathlib

import numpy as np

# Side of the thumbnails that are compared, in pixels: large enough to tell fingers, too small for noise.
THUMBNAIL = 16

# Nearer than this, two pictures are twins. Seen on photographs of hands: below it all pairs show the same hand in the
# same pose, above it more and more do not. Copies that were brightened and shifted by a pixel stay below 0.3 of hands,
# 0.4 of faces; of 750 portraits of different people no two are nearer than 0.46.
TWIN = 0.3

FIGURES = (
    ("learning_curves.png", "Learning curves", "Loss and accuracy of every epoch: augmented training pictures, "
                                               "validation split."),
    ("confusion_matrix.png", "Confusion matrix", "Which class was taken for which: rows are true, columns predicted."),
    ("mistakes.png", "Mistakes", "The test pictures that were answered wrongly, the surest mistakes first."),
    ("reliability.png", "Calibration", "How often the answers of a stated probability are right."),
)


# ------------------------------------------------------------------------ twins

def thumbnails(x):
    """Return small grey pictures (m, 256) float32 of mean 0 and length 1: neither brightness nor contrast counts."""
    pictures = np.asarray(x, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)      # luma, ITU-R BT.601
    m, height, width = pictures.shape
    cells = pictures.reshape(m, THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    rows = cells.mean(axis=(2, 4)).reshape(m, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)


def find_twins(train_x, test_x):
    """Find for each test picture the training picture that looks most like it.

    Normalised thumbnails, compared pixel by pixel, after Torralba, Fergus and
    Freeman, "80 Million Tiny Images", 2008, section 3.

    Args:
        train_x, test_x: uint8 arrays (m, 64, 64, 3), or pictures on disk, which
            are read 256 at a time.

    Returns:
        index (t,) int, the nearest training picture, and distance (t,) float,
        0 for the same picture, about 1.4 for two that have nothing in common.
    """
    tests = np.concatenate([thumbnails(test_x[start:start + 256]) for start in range(0, len(test_x), 256)])
    index, best = np.zeros(len(tests), int), np.full(len(tests), -np.inf, np.float32)
    for start in range(0, len(train_x), 256):
        likeness = tests @ thumbnails(train_x[start:start + 256]).T
        here = likeness.argmax(axis=1)
        value = likeness[np.arange(len(tests)), here]
        index = np.where(value > best, start + here, index)
        best = np.maximum(best, value)
    return index, np.sqrt(np.maximum(2 - 2 * best, 0))


def accuracy_with_interval(right):
    """Return "93.3 % (112 of 120; 87.4-96.6 %)" for a mask of right answers; a dash for none."""
    from scipy.stats import binomtest

    if not len(right):
        return "-"
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return (f"{right.mean():.1%} ({right.sum()} of {len(right)}; 95 % interval {interval.low:.1%} to "
            f"{interval.high:.1%})")


# ------------------------------------------------------------------------- page

STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --quiet: #53626f; --line: #d8dee4; --paper: #fbfcfd; --card: #fff;
        --accent: #1f6fb2; --warn: #8a4b08; --warn-paper: #fdf1e2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --quiet: #a5b2be; --line: #37434e; --paper: #14191e; --card: #1c232a; --accent: #79b8ee;
          --warn: #f2c48d; --warn-paper: #33271a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: .5rem 0; }
.quiet, figcaption, caption { color: var(--quiet); font-size: .92rem; }
.result { font-size: 1.3rem; line-height: 1.4; margin: 1.2rem 0; max-width: 44rem; }
.result strong { color: var(--accent); font-size: 2.6rem; line-height: 1; display: block; margin-bottom: .2rem; }
.warn { background: var(--warn-paper); color: var(--warn); padding: .7rem 1rem; border-radius: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; max-width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0; }
th, td { text-align: left; padding: .4rem 2rem .4rem 0; overflow-wrap: anywhere;
         border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
th { font-weight: 600; }
td code, p code { font-size: .88em; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
      padding: .8rem 1rem; margin: .6rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
             border-radius: .6rem; padding: .6rem; }
figcaption { margin-top: .4rem; max-width: 44rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) { main { padding-top: 1.5rem; } h1 { font-size: 1.5rem; } td, th { padding-right: .7rem; } }
@media print { main { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""


def text(value):
    """Escape whatever it is for HTML."""
    return html.escape(str(value))


def table(caption, head, rows, numbers=()):
    """Return an HTML table; `numbers`: the columns that are set flush right."""
    def cells(values, tag, scope=""):
        return "".join(f'<{tag}{scope}{" class=number" if column in numbers else ""}>{value}</{tag}>'
                       for column, value in enumerate(values))
    body = "".join(f"<tr>{cells([text(value) for value in row], 'td')}</tr>\n" for row in rows)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}'
            f'</caption>\n<thead><tr>{cells([text(value) for value in head], "th", " scope=col")}</tr></thead>\n'
            f"<tbody>{body}</tbody></table></div>")


def picture(data, alt, caption=""):
    """Return an HTML figure with a PNG, given as bytes, inside the page."""
    code = base64.b64encode(data).decode("ascii")
    return (f'<figure><img alt="{text(alt)}" src="data:image/png;base64,{code}">'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def layer_rows(model):
    """Return name, kind, output shape and parameters of each layer."""
    return [(layer.name, type(layer).__name__, " x ".join(str(size) for size in layer.output.shape[1:]),
             f"{layer.count_params():,}") for layer in model.layers]


def twin_sheet(train_x, test_x, index, distance, most=10):
    """Return the nearest pairs as a PNG: test pictures above, training pictures below; None if there are none."""
    from PIL import Image

    nearest = [number for number in np.argsort(distance, kind="stable")[:most] if distance[number] < TWIN]
    if not nearest:
        return None
    pairs = [np.vstack([test_x[number], np.full((4, 64, 3), 255, np.uint8), train_x[int(index[number])]])
             for number in map(int, nearest)]
    gap = np.full((pairs[0].shape[0], 4, 3), 255, np.uint8)
    sheet = np.hstack([part for pair in pairs for part in (pair, gap)][:-1])
    image = Image.fromarray(sheet)
    file = io.BytesIO()
    image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def limits(metrics):
    """Return what the model is not for, as a list of sentences."""
    count = sum(entry["examples"] for entry in metrics["classes"])
    said = {
        "synthetic": "It has seen rendered pictures only. What it says of a photograph is a guess.",
        "real": "It knows pictures like those it was trained on. Other people, other cameras and other backgrounds "
                "lower its accuracy, by how much was not measured in this run.",
        "folder": "It knows pictures like those of the folder. How right it is elsewhere was not measured.",
    }[metrics["data"]]
    limits = [said, f"The accuracy above rests on {count} test pictures: the interval says what so many can tell."]
    names = {entry["name"] for entry in metrics["classes"]}
    if "smiling" in names:
        limits.append("A smile is not a feeling: it must not be used to judge how somebody feels, to watch people, or "
                      "to decide anything about them.")
    elif names <= set("012345"):
        limits.append("It tells six hand shapes apart. That is no sign language, whose numbers, words and grammar it "
                      "does not know, and nothing that anybody's safety may depend on.")
    limits.append("It always answers one of its classes, also for a picture of something else. --predict says \"not "
                  "sure\" where it notices; it does not always notice.")
    if metrics.get("dry_run"):
        limits.insert(0, "This was a dry run: the network has learnt next to nothing.")
    return limits


def write_report(output_dir, model, results, train_x, test_x, command):
    """Write `report.html` from what a run has saved and measured.

    Args:
        output_dir: folder with `metrics.json` and the figures; the report goes there, too.
        model: the trained Keras model.
        results: dict from `cnn_utils.evaluate`.
        train_x, test_x: uint8 arrays (m, 64, 64, 3), or pictures on disk.
        command: list of str, the command line.

    Returns:
        dict with `test_twins`, how many test pictures have a twin in the training
        set, and the accuracy with and without them.
    """
    import shlex

    import cnn_utils as utils

    output_dir = pathlib.Path(output_dir)
    metrics = utils.read_json(output_dir / "metrics.json")
    right = results["labels"] == results["predictions"]
    index, distance = find_twins(train_x, test_x)
    twins = distance < TWIN
    low, high = metrics["test_accuracy_interval"]
    name = metrics["script"]
    with open(output_dir / "history.csv", encoding="utf-8") as file:
        epochs = sum(1 for _ in csv.DictReader(file))

    parts = [f"<h1>{text(name)}.py</h1>",
             f'<p class="quiet">{text(", ".join(entry["name"] for entry in metrics["classes"]))}; seed '
             f'{text(metrics["seed"])}, {epochs} epochs, {metrics["train_seconds"]:,.0f} s of training</p>']
    if metrics["data"] == "synthetic":
        parts.append('<p class="warn"><strong>SYNTHETIC data.</strong> Trained and tested on rendered pictures, not on '
                     "photographs.</p>")
    if metrics.get("dry_run"):
        parts.append('<p class="warn"><strong>Dry run.</strong> A few pictures, one epoch: the figures mean nothing.'
                     "</p>")
    parts.append(f'<p class="result"><strong>{metrics["test_accuracy"]:.1%}</strong> of {len(right)} test pictures '
                 f"were answered rightly; the 95 % interval is {low:.1%} to {high:.1%}.</p>")

    parts.append("<h2>Results by class</h2>")
    parts.append(table("Precision: of those answered so, how many were right. Recall: of those that were so, how many "
                       "were found.", ("class", "precision", "recall", "test pictures"),
                       [(entry["name"], *("-" if entry[key] is None else f"{entry[key]:.1%}"
                                          for key in ("precision", "recall")), entry["examples"])
                        for entry in metrics["classes"]], numbers=(1, 2, 3)))
    for file, title, caption in FIGURES:
        if (output_dir / file).exists():
            parts.append(f"<h2>{title}</h2>")
            if file == "reliability.png":
                before, after = metrics["calibration_error_before"], metrics["calibration_error_after"]
                parts.append(f"<p>Expected calibration error on the test set: {before:.1%} before, {after:.1%} after "
                             "dividing the last layer's weights by the temperature "
                             f"{metrics['temperature']:.2f}, which was fitted on the validation split.</p>")
            parts.append(picture((output_dir / file).read_bytes(), title, caption))

    parts.append("<h2>Twins between training and test set</h2>")
    parts.append(f"<p>{twins.sum()} of {len(twins)} test pictures have a near-duplicate in the training set (distance "
                 f"of normalised {THUMBNAIL} x {THUMBNAIL} thumbnails below {TWIN}). Such pictures are easy: whoever "
                 "has seen the one knows the other.</p>")
    parts.append(table("Accuracy with and without twins", ("test pictures", "accuracy"),
                       [("all", accuracy_with_interval(right)), ("with a twin", accuracy_with_interval(right[twins])),
                        ("without", accuracy_with_interval(right[~twins]))]))
    sheet = twin_sheet(train_x, test_x, index, distance)
    if sheet:
        parts.append(picture(sheet, "Pairs of similar pictures",
                             "The nearest pairs: test picture above, training picture below."))

    parts.append("<h2>Data and provenance</h2>")
    kinds = {"real": "Photographs in files of the course's form", "synthetic": "SYNTHETIC, rendered pictures",
             "folder": "Your own pictures"}
    counts = "".join(f"; {metrics[key]:,} {words}" for key, words in
                     (("rendered_examples", "SYNTHETIC beside them"), ("validation_examples", "to validate"),
                      ("test_examples", "to test")) if metrics.get(key))
    parts.append(f"<p>{kinds[metrics['data']]}: {metrics['train_examples']:,} pictures to train{counts}.</p>")
    parts.append(table("Files and their SHA-256 (of a folder: of its files' names and sizes)", ("file", "SHA-256"),
                       list(metrics["data_files"].items())))
    if (output_dir / "examples.png").exists():
        parts.append(picture((output_dir / "examples.png").read_bytes(), "One picture of each class",
                             "The training set: the first picture of each class."))

    parts.append("<h2>Command and versions</h2>")
    parts.append(f"<pre><code>{text(shlex.join(command))}</code></pre>")
    settings = {key: metrics[key] for key in ("epochs", "batch_size", "learning_rate", "seed", "weights", "device")
                if key in metrics}
    parts.append(table("Settings and versions", ("name", "value"), [*settings.items(), *metrics["versions"].items()]))

    parts.append("<h2>Architecture</h2>")
    layers = table(f"{len(model.layers)} layers, {model.count_params():,} parameters",
                   ("layer", "kind", "output", "parameters"), layer_rows(model), numbers=(3,))
    if len(model.layers) > 30:
        layers = f"<details><summary>{len(model.layers)} layers</summary>{layers}</details>"
    parts.append(layers)

    parts.append("<h2>What it is not for</h2>")
    parts.append("<ul>" + "".join(f"<li>{text(sentence)}</li>" for sentence in limits(metrics)) + "</ul>")

    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            'style-src \'unsafe-inline\'">\n'
            f"<title>{text(name)}: {metrics['test_accuracy']:.1%}</title>\n<style>{STYLE}</style></head>\n"
            "<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n")
    with utils.unfinished(output_dir / "report.html") as aside:
        aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    print(f"Saved {output_dir / 'report.html'}")
    return {"test_twins": int(twins.sum()), "accuracy_of_twins": float(right[twins].mean()) if twins.any() else None,
            "accuracy_without_twins": float(right[~twins].mean()) if not twins.all() else None}
