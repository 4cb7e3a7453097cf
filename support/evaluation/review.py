"""The review of a folder of images: what is probably in the wrong class, there twice, or a bad photograph.

It is one page, review.html, and the same as a table, review.csv. Nothing is moved or deleted.
"""

import base64
import io
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from basics.errors import InputError, printable
from basics.files import atomic_write, csv_table
from datasets import IMAGE_SIZE, NO_CLASS
from datasets.groups import MOST_COMPARED, NEAR_DUPLICATE, nearest_pairs
from datasets.images import read_photo
from datasets.parts import role_of
from support.evaluation.report import render_page
from support.evaluation.results import NOT_SURE_BELOW

# Of a dark image, only one pixel in twenty is brighter than this, 0-255.
DARK = 64

# Sharpness is measured on images of at most this many pixels a side: the network does not see finer details.
DETAIL = 200

# The sharpness of a blurred image is below this fraction of the median.
BLURRED = 0.1

# A network this sure of another class is probably right, if the photograph is not bad.
SURE = 0.9

# More rows of a kind than this are in the table only.
MOST_SHOWN = 100

THUMBNAIL = 112  # side in pixels


class Quality(NamedTuple):
    """How good a photograph is."""

    pixels: np.ndarray  # uint8 (64, 64, 3), the part that the network sees
    side: int  # the shorter side of the file's image, in pixels
    brightness: float  # 0-255, which one in twenty pixels exceeds
    sharpness: float  # variance of the Laplacian for each unit of the variance of the pixels; NaN for a plain image


class Finding(NamedTuple):
    """Something to look at: a row of the table and of the page."""

    path: str
    problem: str
    given: str  # the folder of its class
    answer: str = ""  # the network's, and its probability
    probability: Any = ""
    given_probability: Any = ""
    other: str = ""  # the other one of two near-duplicates
    suggestion: str = ""
    move_to: str = ""


def label_errors(labels, probabilities):
    """Return the indices of images that are probably in the wrong class, the likeliest first, and the class of each.

    An image probably shows another class if the network is sure of it, or gives that class at least the probability
    that it gives, on average, to the images in it (Northcutt, Jiang and Chuang, "Confident Learning", 2021, section
    3.1). If the given label is "none of these", it must be sure.

    Args:
        labels: int (m,), the given classes from 0 to k; k stands for none of them.
        probabilities: float (m, k), from networks that were not trained on these images.
    """
    classes = probabilities.shape[1]
    means = [probabilities[labels == label, label].mean() if (labels == label).any() else 1 for label in range(classes)]
    least = np.where((labels == classes)[:, np.newaxis], NOT_SURE_BELOW, np.minimum(means, NOT_SURE_BELOW))
    confident = np.where(probabilities >= least, probabilities, 0)
    answers = confident.argmax(axis=1)
    found = np.flatnonzero((confident.max(axis=1) > 0) & (answers != labels))
    order = np.argsort(given_probability(labels, probabilities)[found], kind="stable")
    return found[order], answers[found[order]]


def given_probability(labels, probabilities):
    """Return the probability (m,) of the given class; for images of no class, what the likeliest class leaves."""
    given = 1 - probabilities.max(axis=1)
    shown = np.flatnonzero(labels < probabilities.shape[1])
    given[shown] = probabilities[shown, labels[shown]]
    return given


def measure_quality(path):
    """Return the `Quality` of an image file.

    Raises InputError: it cannot be read.
    """
    from scipy.ndimage import laplace

    photo = read_photo(path, IMAGE_SIZE, "center")
    small = Image.fromarray(photo.overview).convert("L")
    small.thumbnail((DETAIL, DETAIL))
    gray = np.asarray(small, np.float32)
    contrast = float(gray.var())
    sharpness = float(laplace(gray).var()) / contrast if contrast > 1 else np.nan
    left, _, right, _ = photo.box
    return Quality(photo.pixels, round(right - left), float(np.percentile(gray, 95)), sharpness)


def review(folder, paths, labels, probabilities, class_names, none=NO_CLASS, image_size=IMAGE_SIZE):
    """Look for faults in a folder of images.

    Args:
        folder: of the images.
        paths: list of str (m,), the files.
        labels, probabilities: see `label_errors`.
        class_names: the k names of the classes.
        none: str, the name of what shows no class.
        image_size: int, the side of what the networks take, in pixels: a smaller image was enlarged.

    Returns: dict from "labels", "duplicates" and "photographs" to lists of `Finding`, the worst first.
    """
    names = (*class_names, none)
    qualities, readable = [], []
    for number, path in enumerate(tqdm(paths, "Looking at the images", unit="", leave=False, disable=None)):
        try:
            qualities.append(measure_quality(path))
        except InputError:  # it has vanished since the training
            continue
        readable.append(number)
    readable = np.array(readable, int)
    readable_paths = [paths[number] for number in readable]
    bad = _bad_photographs(qualities, readable_paths, labels[readable], names, image_size)
    faulty = {finding.path for finding in bad}
    wrong, answers = label_errors(labels, probabilities)
    given = given_probability(labels, probabilities)
    found = {"labels": [], "duplicates": [], "photographs": bad}
    for index, answer in zip(wrong, answers):
        place = _destination(paths[index], folder, names[labels[index]], names[answer])
        sure = probabilities[index, answer] >= SURE and paths[index] not in faulty
        words = f"move to {place}" if sure else f"look at it: move to {place}, or leave it"
        found["labels"].append(
            Finding(
                paths[index],
                "probably another class",
                names[labels[index]],
                names[answer],
                float(probabilities[index, answer]),
                float(given[index]),
                suggestion=words,
                move_to=place,
            )
        )
    if 1 < len(readable) <= MOST_COMPARED:
        pixels = np.array([quality.pixels for quality in qualities])
        found["duplicates"] = _duplicates(pixels, readable_paths, labels[readable], names)
    return found


def _destination(path, folder, given, answer):
    """Return the folder to move a file to, relative to that of the images: its own, with another class in its path."""
    parts = pathlib.Path(os.path.relpath(path, folder)).parts[:-1]
    # In the parts of a set, the name of a class may differ in case.
    same = [printable(part).casefold() == given.casefold() for part in parts]
    if not any(same):
        return f"{answer}/"
    # The folder of a class may lie in one of the same name; but one called train lies in the training part.
    if sum(same) > 1 and same[0] and role_of(parts[0]):
        same[0] = False
    return "/".join(answer if other else part for part, other in zip(parts, same)) + "/"


def _duplicates(pixels, paths, labels, names):
    """Return a `Finding` for each pair of near-duplicates: first those in two classes, then the most similar."""
    pairs = nearest_pairs(pixels, labels)
    pairs.sort(key=lambda pair: (labels[pair[0]] == labels[pair[1]], pair[2]))
    found = []
    for one, other, _ in pairs:
        same = labels[one] == labels[other]
        problem = "near-duplicate" if same else "near-duplicate in another class"
        words = "delete one of them, unless they differ in what matters" if same else "decide on one class, delete one"
        found.append(Finding(paths[one], problem, names[labels[one]], other=paths[other], suggestion=words))
    return found


def _bad_photographs(qualities, paths, labels, names, image_size):
    """Return a `Finding` for each tiny, dark or blurred image, the worst first."""
    sharpness = np.array([quality.sharpness for quality in qualities])
    plain = np.isnan(sharpness)
    median = np.median(sharpness[~plain]) if not plain.all() else 0
    found = []
    for quality, path, label in zip(qualities, paths, labels):
        # Each fault, and how far the image is from being good, 0-1.
        faults = []
        if quality.side < image_size:
            faults.append((quality.side / image_size, f"tiny: {quality.side} pixels"))
        if quality.brightness < DARK:
            faults.append((quality.brightness / DARK, "dark"))
        if np.isnan(quality.sharpness):
            faults.append((0, "plain: a single color"))
        elif quality.sharpness < BLURRED * median:
            faults.append((quality.sharpness / (BLURRED * median), "blurred"))
        if faults:
            worst = min(value for value, _ in faults)
            problem = ", ".join(words for _, words in faults)
            words = "look at it: delete it, unless your own photos will look like it"
            found.append((len(faults), worst, Finding(path, problem, names[label], suggestion=words)))
    found.sort(key=lambda row: (-row[0], row[1]))
    return [finding for _, _, finding in found]


def write_review(output_dir, folder, paths, labels, probabilities, class_names, none=NO_CLASS, image_size=IMAGE_SIZE):
    """Write review.html and review.csv, from what networks say about images they were not trained on.

    Args:
        output_dir: folder for both.
        folder, paths, labels, probabilities, class_names, none, image_size: see `review`.

    Returns: the number of rows.
    Raises InputError: they cannot be written.
    """
    output_dir, folder = pathlib.Path(output_dir), pathlib.Path(folder)
    found = review(folder, paths, labels, probabilities, class_names, none, image_size)
    right = np.count_nonzero(probabilities.argmax(axis=1) == labels)
    shown = np.count_nonzero(labels < len(class_names))
    with csv_table(output_dir / "review.csv") as write_row:
        columns = "file,problem,class,answer,probability of the answer,probability of the class,other file"
        write_row([*columns.split(","), "suggestion", "move to"])
        for finding in (row for rows in found.values() for row in rows):
            numbers = [value if value == "" else f"{value:.4f}" for value in finding[4:6]]
            write_row([finding.path, *finding[1:4], *numbers, *finding[6:]])
    page = render_page(
        "review.html",
        folder=printable(str(folder)),
        images=len(paths),
        right=right,
        shown=shown,
        class_names=list(class_names),
        most_shown=MOST_SHOWN,
        too_many=len(paths) > MOST_COMPARED,
        most_compared=MOST_COMPARED,
        near_duplicate=NEAR_DUPLICATE,
        tiny=image_size,
        confidence=NOT_SURE_BELOW,
        counts={kind: len(rows) for kind, rows in found.items()},
        found={kind: [_shown(row, folder) for row in rows[:MOST_SHOWN]] for kind, rows in found.items()},
    )
    with atomic_write(output_dir / "review.html") as temporary:
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return sum(map(len, found.values()))


def _shown(finding, folder):
    """Return a row of the page: a dict of the finding, with names relative to the folder, and the thumbnails."""
    row = finding._asdict()
    row["files"] = []
    for path in filter(None, (finding.path, finding.other)):
        row["files"].append((printable(os.path.relpath(path, folder)), _thumbnail(path)))
    return row


def _thumbnail(path):
    """Return a small JPEG of a whole image in base64, its width and height; None if it cannot be read."""
    try:
        image = Image.fromarray(read_photo(path, IMAGE_SIZE, "center").overview)
    except InputError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return {"base64": base64.b64encode(file.getvalue()).decode("ascii"), "width": image.width, "height": image.height}
