"""The report of a run: what was measured, on one page that needs nothing else.

    find_twins     for each test picture the training picture that looks most like it
    write_report   report.html from the files of a run's output folder

The figures are embedded, the page has no script, and nothing is fetched from
anywhere; the page itself forbids it (Content-Security-Policy). Whatever comes
from the name of a file or of a class is escaped.
"""

import base64
import csv
import datetime
import html
import io
import pathlib
import shlex

import numpy as np

# How far one picture may be shifted against the other, in pixels, and the side of the cells that are averaged:
# pictures of 64x64 leave thumbnails of 15x15. Without the shift, a copy moved by two pixels would be as far from its
# original (0.4 to 0.8) as pictures of two different people are.
SHIFT, CELL = 2, 4

# Pictures nearer than this are twins. Looked at, and measured, on photographs and on rendered pictures:
# copies as JPEG of quality 30, darker by 30 %, shifted by up to 2 pixels, or compressed, shifted and brightened at once
# stay below 0.22; of 120 photographs of hands, those below 0.25 show the same hand in the same pose a moment before or
# after, above it poses begin to differ; different people are no nearer than 0.45 in 750 photographs, different hands
# and faces no nearer than 0.29 in 1,950 rendered pictures.
TWIN = 0.25

# Pictures read at a time: those on disk never lie in memory all at once.
CHUNK = 256

# A space at which no line ends.
NARROW = "\N{NARROW NO-BREAK SPACE}"

# The figures of a run that come with a section of their own, and what the section says of them.
FIGURES = {
    "learning_curves.png": ("Learning curves", "Loss and accuracy by epoch. The training pictures are augmented, which "
                                               "makes them harder than those of the validation split."),
    "confusion_matrix.png": ("Confusion matrix", "Which class was taken for which: rows are the true classes, columns "
                                                 "the predicted ones."),
    "mistakes.png": ("Mistakes", "Test pictures that were answered wrongly, the surest mistakes first."),
    "reliability.png": ("Calibration", "How often the answers were right that were given with a certain probability. "
                                       f"On the diagonal, 80{NARROW}% means 80{NARROW}%."),
}


# ------------------------------------------------------------------------ twins

def greys(x, start):
    """Read the pictures from number `start` on, `CHUNK` of them at the most, as grey: (n, height, width) float32."""
    pictures = np.asarray(x[np.arange(start, min(start + CHUNK, len(x)))], np.float32)
    return pictures @ np.array([0.299, 0.587, 0.114], np.float32)       # luma, ITU-R BT.601


def thumbnails(grey, down=0, right=0):
    """Make pictures small, and compare them regardless of brightness and contrast.

    Args:
        grey: float32 array (n, height, width).
        down, right: int from -SHIFT to SHIFT, where the window is cut out, in pixels from the centre.

    Returns:
        float32 array (n, cells + 1), rows of length 1.
    """
    top, left = SHIFT + down, SHIFT + right
    window = grey[:, top:top + grey.shape[1] - 2 * SHIFT, left:left + grey.shape[2] - 2 * SHIFT]
    n, height, width = window.shape
    rows = window.reshape(n, height // CELL, CELL, width // CELL, CELL).mean(axis=(2, 4)).reshape(n, -1)
    rows -= rows.mean(axis=1, keepdims=True)
    # One constant column, as large as a contrast of one grey level: two blank pictures are alike, too.
    rows = np.hstack([rows, np.full((n, 1), np.sqrt(rows.shape[1]), np.float32)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def find_twins(train_x, test_x):
    """Find for each test picture the training picture that looks most like it.

    Pictures are compared as small grey thumbnails of mean 0 and equal length,
    cell by cell, at the shift of a few pixels that suits them best (Torralba,
    Fergus and Freeman, "80 Million Tiny Images", 2008, section 3). Why it
    matters: Barz and Denzler, "Do We Train on Test Data?", 2020.

    Args:
        train_x, test_x: uint8 (m, 64, 64, 3) RGB, m at least 1: arrays, or anything of
            known length that gives such an array for an array of numbers, as
            pictures on disk do. Read in chunks; a comparison with 20,000
            training pictures needs no more memory than one with 2,000.

    Returns:
        index (t,) int64, for each test picture its nearest training picture, and
        distance (t,) float32, from 0, the same but for brightness and contrast,
        over 1.4, nothing in common, to 2, the negative.
    """
    shifts = [(down, right) for down in range(-SHIFT, SHIFT + 1) for right in range(-SHIFT, SHIFT + 1)]
    # All shifts of a chunk lie in one matrix: few large products use a processor better than many small ones.
    tests = [np.concatenate([thumbnails(grey, *shift) for shift in shifts])
             for grey in (greys(test_x, start) for start in range(0, len(test_x), CHUNK))]
    index = np.zeros(len(test_x), np.int64)
    best = np.full(len(test_x), -np.inf, np.float32)
    for start in range(0, len(train_x), CHUNK):
        train = thumbnails(greys(train_x, start)).T
        for number, windows in enumerate(tests):
            likeness = (windows @ train).reshape(len(shifts), -1, train.shape[1]).max(axis=0)
            part = slice(number * CHUNK, number * CHUNK + len(likeness))
            nearest = likeness.argmax(axis=1)
            value = likeness[np.arange(len(likeness)), nearest]
            index[part] = np.where(value > best[part], start + nearest, index[part])
            best[part] = np.maximum(best[part], value)
    return index, np.sqrt(np.maximum(2 - 2 * best, 0))


def twin_sheet(train_x, test_x, index, distance, most=8):
    """Draw pairs of twins, from the most alike on the left to the least: the test picture above its twin.

    Returns:
        bytes, a PNG, and a list of float, the pairs' distances; None and [] if there are no twins.
    """
    from PIL import Image

    order = np.argsort(distance, kind="stable")
    order = order[distance[order] < TWIN]
    if not len(order):
        return None, []
    shown = order[np.linspace(0, len(order) - 1, min(most, len(order))).astype(int)]
    gap = 4
    pairs = np.concatenate([test_x[shown], train_x[index[shown]]], axis=1)      # (pairs, 2 * height, width, 3)
    pairs = np.pad(pairs, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    sheet = np.hstack(list(pairs))[:, :-gap]
    file = io.BytesIO()
    Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue(), distance[shown].tolist()


def accuracy_with_interval(right):
    """Return count, accuracy and 95 % Wilson interval of a bool array (n,) as three texts; of none, dashes."""
    from scipy.stats import binomtest

    if not len(right):
        return "-", "-", "-"
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(0.95, method="wilson")
    return f"{right.sum():,}", f"{right.mean():.1%}", f"{interval.low:.1%} to {interval.high:.1%}"


# ------------------------------------------------------------------------- HTML

# The colours are those of the figures, darker or lighter where text needs the contrast.
STYLE = """
:root { color-scheme: light dark; --ink: #22303c; --quiet: #55636f; --grid: #d8dee4; --paper: #fbfcfd; --card: #ffffff;
        --accent: #1f6fb2; --bar: #9cc3e4; --warn: #7a4206; --warn-paper: #fdf0e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e9ee; --quiet: #a6b3bf; --grid: #36424d; --paper: #14191e; --card: #1b2229; --accent: #7db9ec;
          --bar: #2f648f; --warn: #f3c791; --warn-paper: #33281b; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.6 system-ui, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1, h2 { line-height: 1.2; letter-spacing: -.012em; text-wrap: balance; }
h1 { font-size: 2rem; margin: .2rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; }
section { margin-top: 2.5rem; padding-top: 2rem; border-top: 1px solid var(--grid); }
p, ul { max-width: 42rem; margin: .6rem 0; }
ul { padding-left: 1.2rem; } li { margin: .4rem 0; }
a { color: var(--accent); text-underline-offset: .18em; }
.quiet, figcaption, caption { color: var(--quiet); font-size: .9rem; line-height: 1.5; }
.kicker { color: var(--quiet); font-size: .9rem; margin: 0; }
.warn { background: var(--warn-paper); color: var(--warn); border-left: 4px solid currentColor;
        border-radius: 0 .5rem .5rem 0; padding: .65rem 1rem; margin: 1rem 0; }
.result { font-size: 1.35rem; line-height: 1.4; margin: 1.6rem 0 1.4rem; max-width: 38rem; }
.result strong { color: var(--accent); font-size: 3.4rem; line-height: 1.05; letter-spacing: -.03em; display: block; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1px; margin: 0 0 1.4rem;
         background: var(--grid); border: 1px solid var(--grid); border-radius: .6rem; overflow: hidden; }
.facts div { background: var(--card); padding: .7rem 1rem; display: flex; flex-direction: column; }
.facts dt { color: var(--quiet); font-size: .82rem; line-height: 1.4; margin-bottom: auto; }
.facts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
nav { font-size: .9rem; line-height: 2; }
nav a { display: inline-block; margin-right: 1rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; line-height: 1.45; }
caption { text-align: left; padding-bottom: .4rem; max-width: 42rem; }
th, td { text-align: left; font-weight: 400; padding: .42rem 2.2rem .42rem 0; border-bottom: 1px solid var(--grid);
         vertical-align: top; }
th:last-child, td:last-child { padding-right: .2rem; }
thead th { font-size: .82rem; color: var(--quiet); border-bottom-color: var(--quiet); vertical-align: bottom; }
tbody th { font-weight: 600; max-width: 20rem; overflow-wrap: break-word; }
.number { text-align: right; white-space: nowrap; }
.share { background: linear-gradient(var(--bar), var(--bar)) 0 50% no-repeat; min-width: 12.5rem;
         background-size: calc(var(--share) * 6rem) .5rem; }
code { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--grid); border-radius: .6rem; padding: .8rem 1rem;
      white-space: pre-wrap; }
pre span { display: inline-block; max-width: 100%; }
figure { margin: 1rem 0; }
figure .scroll { background: #fff; border: 1px solid var(--grid); border-radius: .6rem; padding: .75rem; margin: 0;
                 width: fit-content; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; max-width: 42rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 40rem) {
  main { padding: 1.8rem 1rem 3rem; }
  h1 { font-size: 1.6rem; } .result { font-size: 1.15rem; } .result strong { font-size: 2.8rem; }
  th, td { padding-right: 1rem; }
  .share { min-width: 5rem; background-position: 0 100%; background-size: calc(var(--share) * (100% - 1rem)) 3px; }
  /* Their writing would be too small to read: they are looked at in parts. */
  figure img.broad { max-width: none; width: 38rem; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root { color-scheme: light; --ink: #000; --quiet: #444; --grid: #bbb; --paper: #fff; --card: #fff; --accent: #1f6fb2;
          --warn: #7a4206; --warn-paper: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2 { break-after: avoid; } figure, tr, .facts { break-inside: avoid; }
  figure img.broad { width: auto; max-width: 100%; } }
"""


def text(value):
    """Escape whatever it is for HTML, inside quotes as well."""
    return html.escape(str(value))


def table(caption, head, rows, *, numbers=(), shares=(), codes=()):
    """Return an HTML table whose first column heads its rows; everything is escaped.

    Args:
        caption: str.
        head: the columns' names.
        rows: sequences of values, one for each column.
        numbers, shares, codes: the columns that are set flush right; that hold 0-1 or None, set as a
            percentage with a bar; that are set in a typewriter's letters.
    """
    def cell(column, value):
        if column in shares:
            if value is None:
                return '<td class="number">-</td>'
            return f'<td class="number share" style="--share:{value:.3f}">{value:.1%}</td>'
        value = f"<code>{text(value)}</code>" if column in codes else text(value)
        name = ' class="number"' if column in numbers else ""
        return f"<td{name}>{value}</td>" if column else f'<th scope="row"{name}>{value}</th>'

    heads = "".join(f'<th scope="col"{" class=number" if column in {*numbers, *shares} else ""}>{text(name)}</th>'
                    for column, name in enumerate(head))
    body = "\n".join("<tr>" + "".join(cell(*pair) for pair in enumerate(row)) + "</tr>" for row in rows)
    # A region that can be focused: whoever has no mouse scrolls it with the arrow keys.
    return (f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0">\n<table>'
            f"<caption>{text(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
            "</div>")


def figure(data, alt, caption, scale=0.8):
    """Return an HTML figure with a PNG, given as bytes, inside the page; `scale`: CSS pixels for one of its own."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = (round(scale * side) for side in image.size)
    broad = ' class="broad"' if width > 700 else ""
    code = base64.b64encode(data).decode("ascii")
    return (f'<figure><div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0"><img{broad} '
            f'width="{width}" height="{height}" alt="{text(alt)}" src="data:image/png;base64,{code}"></div>\n'
            f"<figcaption>{text(caption)}</figcaption></figure>")


def section(title, *parts):
    """Return an HTML section with a heading that can be linked to."""
    name = title.lower().replace(" ", "-")
    return (f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{text(title)}</h2>\n'
            + "\n".join(part for part in parts if part) + "\n</section>")


# --------------------------------------------------------------------- sections

def warnings(metrics):
    """Return the paragraphs that must be read before any figure."""
    said = []
    if metrics["data"] == "synthetic":
        said.append("<strong>SYNTHETIC data.</strong> The network was trained and tested on rendered pictures, not on "
                    "photographs.")
    if metrics.get("dry_run"):
        said.append("<strong>Dry run.</strong> A few pictures and hardly any training: no figure here means anything.")
    if metrics.get("interrupted"):
        said.append("<strong>Interrupted.</strong> The training was ended before its last epoch.")
    return "\n".join(f'<p class="warn">{sentence}</p>' for sentence in said)


def facts(metrics, twins):
    """Return the few figures that a reader looks for first, as an HTML list."""
    pairs = [("Test pictures", f"{len(twins):,}"), ("Training pictures", f"{metrics['train_examples']:,}"),
             ("Classes", len(metrics["classes"])), ("Parameters", f"{metrics['parameters']:,}"),
             ("Test pictures with a twin", f"{np.count_nonzero(twins):,}"),
             ("Time of training", f"{metrics['train_seconds']:,.0f} s")]
    return ('<dl class="facts">'
            + "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs) + "</dl>")


def read_history(path):
    """Return the rows of `history.csv` as dicts of str; an empty list if there is no such file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def described(file, metrics, history, right):
    """Return in words what a figure shows, for those who cannot see it."""
    if file == "learning_curves.png" and history:
        last = history[-1]
        values = [f"{name} {float(last[key]):.3f}" for key, name in
                  (("loss", "training loss"), ("val_loss", "validation loss"), ("accuracy", "training accuracy"),
                   ("val_accuracy", "validation accuracy")) if last.get(key)]
        return f"Two line charts by epoch. After epoch {len(history)}: {', '.join(values)}."
    if file == "confusion_matrix.png":
        wrong = np.array(metrics["confusion_matrix"])
        np.fill_diagonal(wrong, 0)
        if not wrong.any():
            return "A grid of counts by true and predicted class: all lie on the diagonal."
        true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        names = [entry["name"] for entry in metrics["classes"]]
        return (f"A grid of counts by true and predicted class: {wrong.sum()} lie off the diagonal; most often, "
                f"{wrong.max()} times, {names[true]} was taken for {names[predicted]}.")
    if file == "mistakes.png":
        return f"A sheet of test pictures with the right and the given answer: {np.count_nonzero(~right)} were wrong."
    if file == "reliability.png" and "calibration_error_after" in metrics:
        return ("Share of right answers against their probability, before and after calibration, beside the diagonal; "
                f"the expected error is {metrics['calibration_error_after']:.1%} after it.")
    return FIGURES[file][0] if file in FIGURES else pathlib.Path(file).stem.replace("_", " ")


def about_calibration(metrics):
    """Return a paragraph on the temperature and both calibration errors; nothing if they were not measured."""
    keys = "calibration_error_before", "calibration_error_after", "temperature"
    if any(metrics.get(key) is None for key in keys):
        return ""
    before, after, temperature = (metrics[key] for key in keys)
    return ("<p>The expected calibration error, by how much stated probabilities and the share of right answers differ "
            f"on the test set, is {before:.1%} before and {after:.1%} after dividing the network's last sums by the "
            f"temperature {temperature:.2f}, which was fitted on the validation split.</p>")


def about_twins(right, train_x, test_x, index, distance):
    """Return the paragraphs, the table and the sheet on near-duplicates between training and test set."""
    twins = distance < TWIN
    count = np.count_nonzero(twins)
    if count:
        found = (f"{count:,} of {len(twins):,} test pictures {'have' if count > 1 else 'has'} a twin among the "
                 "training pictures, one that looks nearly the same. Who has seen the one knows the other: the "
                 "accuracy without them says more about new pictures.")
    else:
        found = (f"None of the {len(twins):,} test pictures has a twin among the training pictures, one that looks "
                 f"nearly the same. The most alike pair has a distance of {distance.min():.2f}.")
    sheet, distances = twin_sheet(train_x, test_x, index, distance)
    pairs = f"{len(distances)} pairs" if len(distances) > 1 else "One pair"
    return (f"<p>{found}</p>",
            f'<p class="quiet">Compared are grey thumbnails, free of brightness and contrast, shifted by up to {SHIFT} '
            f"pixels. Twins have a distance below {TWIN}; 0 is the same picture, 1.4 nothing in common.</p>",
            table("Accuracy with and without twins", ("test pictures", "right", "accuracy", f"95{NARROW}% interval"),
                  [(f"{len(right[part]):,} {name}", *accuracy_with_interval(right[part])) for name, part in
                   (("in all", slice(None)), ("with a twin", twins), ("without", ~twins))], numbers=(1, 2, 3)),
            figure(sheet, f"{pairs} of pictures that look nearly the same, distances {distances[0]:.2f} to "
                          f"{distances[-1]:.2f}.",
                   f"Above test pictures, below their twins among the training pictures, distance {distances[0]:.2f} "
                   f"(left) to {distances[-1]:.2f} (right).", scale=0.75) if sheet else "")


def about_data(metrics):
    """Return where the pictures came from: a paragraph and a table of the files."""
    from datasets.download import read_sources

    known = {source["sha256"] for source in read_sources().values()}
    original = known.issuperset(metrics["data_files"].values())
    kinds = {"real": "Photographs: the course's original files" if original else
             "Photographs, in two files of the course's form, which are not its original ones",
             "synthetic": "SYNTHETIC pictures, rendered by datasets/synthetic.py",
             "folder": "Pictures of one's own, from a folder"}
    counts = [f"{metrics['train_examples']:,} to train on"]
    counts += [f"{metrics[key]:,} {words}" for key, words in
               (("rendered_examples", "SYNTHETIC ones beside them"), ("validation_examples", "to validate"),
                ("test_examples", "to test")) if metrics.get(key)]
    caption = ("The folder, and the SHA-256 of the names and sizes of its files" if metrics["data"] == "folder" else
               "The files and their SHA-256")
    return (f"<p>{text(kinds.get(metrics['data'], metrics['data']))}: {text(', '.join(counts))}.</p>",
            table(caption, ("name", "SHA-256"), metrics["data_files"].items(), codes=(1,)))


def about_command(metrics, command):
    """Return the command line, the settings and the versions."""
    known = {"script", "data", "data_files", "parameters", "test_loss", "test_accuracy", "test_accuracy_interval",
             "temperature", "calibration_error_before", "calibration_error_after", "classes", "confusion_matrix",
             "interrupted", "train_seconds", "versions"}
    settings = [(key.replace("_", " "), said(value)) for key, value in metrics.items()
                if key not in known and not key.endswith("_examples")]
    # A line may end between two words of the command, not within --dry-run.
    words = " ".join(f"<span>{text(shlex.quote(str(word)))}</span>" for word in ("python", *command))
    return (f"<pre><code>{words}</code></pre>" if command else "",
            table("Settings, device and versions", ("name", "value"), settings + list(metrics["versions"].items())))


def said(value):
    """Return a setting as a reader would say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def about_architecture(model):
    """Return a table of the layers, folded away if it is long."""
    rows = [(layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])),
             f"{layer.count_params():,}") for layer in model.layers]
    title = f"{len(rows)} layers, {model.count_params():,} parameters"
    layers = table(title, ("name", "type", "output", "parameters"), rows, numbers=(3,))
    return f"<details><summary>{title}</summary>\n{layers}</details>" if len(rows) > 30 else layers


def limits(metrics):
    """Return what the model is not for, as a list of sentences."""
    count = sum(entry["examples"] for entry in metrics["classes"])
    names = {entry["name"] for entry in metrics["classes"]}
    sentences = []
    if metrics.get("dry_run"):
        sentences.append("Anything at all: this was a dry run, the network has learnt next to nothing.")
    sentences.append({
        "synthetic": "Photographs. It has only seen rendered pictures; what it says of a photograph is a guess.",
        "folder": "Pictures unlike those of the folder. What it does with another camera, light, background or person "
                  "was not measured here.",
    }.get(metrics["data"], "Pictures unlike those it was trained on. What it does with another camera, light, "
                           "background or person was not measured here."))
    if names & {"smiling", "not smiling"}:
        sentences.append("Judging people. A smile is not a feeling: the answer says nothing about what somebody feels, "
                         "means or is, and is no ground for any decision about them, nor for watching them.")
    elif metrics["script"].startswith("signs") and names <= set("012345"):
        sentences.append("Sign language. It tells six shapes of one hand apart; of words, grammar and the numbers of a "
                         "real sign language it knows nothing.")
    elif metrics["data"] == "folder":
        sentences.append("Decisions about people, or anything that somebody's health or safety hangs on: nobody has "
                         "examined it for that.")
    sentences.append("Pictures of something else. It always answers with one of its classes; --predict says “not sure” "
                     "where it notices, and it does not always notice.")
    sentences.append(f"Differences finer than the interval above: {count:,} test pictures cannot show them.")
    return sentences


# ----------------------------------------------------------------------- report

def write_report(output_dir, model, results, train_x, test_x, command=()):
    """Write `report.html` from what a run has saved and measured.

    Args:
        output_dir: folder with `metrics.json`, `history.csv` and the figures; a figure
            that is not there is left out. The report goes there, too.
        model: the trained Keras model.
        results: dict from `cnn_utils.evaluate`; of it, `labels` and `predictions` (t,).
        train_x, test_x: uint8 (m, 64, 64, 3) and (t, 64, 64, 3), arrays or pictures on disk; see `find_twins`.
        command: sequence of str, the command line.

    Returns:
        dict with `test_twins`, how many test pictures have a twin in the training
        set, and `accuracy_of_twins` and `accuracy_without_twins`, None where there is none.

    Raises:
        InputError: there is no `metrics.json`, or the report cannot be written.
    """
    import cnn_utils as utils
    import runs

    output_dir = pathlib.Path(output_dir)
    metrics = runs.read_json(output_dir / "metrics.json")
    if metrics is None:
        raise utils.InputError(f"A report is made from metrics.json, which a run saves: train first. "
                               f"Received: {output_dir}, where there is none that can be read")
    history = read_history(output_dir / "history.csv")
    finished = datetime.datetime.fromtimestamp((output_dir / "metrics.json").stat().st_mtime)
    right = results["labels"] == results["predictions"]
    index, distance = find_twins(train_x, test_x)
    twins = distance < TWIN

    def drawn(file, caption):
        if not (output_dir / file).exists():
            return ""
        return figure((output_dir / file).read_bytes(), described(file, metrics, history, right), caption)

    classes = table("Precision: of the pictures answered so, how many were so. Recall: of those that were so, how many "
                    "were answered so.", ("class", "precision", "recall", "test pictures"),
                    [(entry["name"], entry["precision"], entry["recall"], f"{entry['examples']:,}")
                     for entry in metrics["classes"]], shares=(1, 2), numbers=(3,))
    sections = [("Classes", [classes])]
    # Some of what a run may write is new to this page: it is shown all the same.
    others = [file for file in runs.OUTPUTS if file.endswith(".png") and file not in {*FIGURES, "examples.png"}]
    for file in (*FIGURES, *others):
        title, caption = FIGURES.get(file, (pathlib.Path(file).stem.replace("_", " ").capitalize(), ""))
        words = about_calibration(metrics) if file == "reliability.png" else ""
        shown = drawn(file, caption)
        if words or shown:
            sections.append((title, [words, shown]))
    sections += [
        ("Twins between training and test set", about_twins(right, train_x, test_x, index, distance)),
        ("Data and provenance", [*about_data(metrics),
                                 drawn("examples.png", "The training set: one picture of each class.")]),
        ("Command and versions", about_command(metrics, command)),
        ("Architecture", [about_architecture(model)]),
        ("What it is not for", ["<ul>" + "".join(f"<li>{text(line)}</li>" for line in limits(metrics)) + "</ul>"]),
    ]
    links = "\n".join(f'<a href="#{title.lower().replace(" ", "-")}">{title}</a>' for title, _ in sections)
    low, high = metrics["test_accuracy_interval"]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{text(metrics["script"])}: {metrics["test_accuracy"]:.1%} of {len(right):,} test pictures</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kicker">Report of a training run, \
<time datetime="{finished:%Y-%m-%dT%H:%M}">{finished:%Y-%m-%d %H:%M}</time></p>
<h1>{text(metrics["script"])}</h1>
<p class="quiet">Tells apart: {text(", ".join(entry["name"] for entry in metrics["classes"]))}</p>
{warnings(metrics)}
<p class="result"><strong>{metrics["test_accuracy"]:.1%}</strong> of the {len(right):,} test pictures were answered \
rightly; the 95{NARROW}% interval is {low:.1%} to {high:.1%}.</p>
{facts(metrics, twins)}
<nav aria-label="Sections">
{links}
</nav>
</header>
{chr(10).join(section(title, *parts) for title, parts in sections)}
</main>
</body>
</html>
"""
    with runs.unfinished(output_dir / "report.html") as aside:
        # A file's name may hold bytes that are no text.
        aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    print(f"Saved {output_dir / 'report.html'}")
    return {"test_twins": int(np.count_nonzero(twins)),
            "accuracy_of_twins": float(right[twins].mean()) if twins.any() else None,
            "accuracy_without_twins": float(right[~twins].mean()) if not twins.all() else None}
