"""--predict: what a trained model says about images of your own."""

import collections
import concurrent.futures
import contextlib
import functools
import glob
import os
import pathlib
import shlex
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from basics import signals
from basics.errors import InputError, printable
from basics.files import CHOOSE, atomic_write, csv_table
from basics.text import display_width, pad
from datasets import IMAGE_SIZE
from datasets.images import Photo, read_photo
from datasets.listing import count_suffixes, images_in
from support.evaluation.ood import knn_distance
from support.evaluation.outputs import features, logits, softmax
from support.evaluation.results import doubts
from support.prediction.detection import alone, face_finder, find_hand
from support.prediction.numpy_inference import Network
from support.prediction.search import searcher
from support.prediction.trained_model import load_keras_model, load_trained_model
from support.startup import start_keras, start_matplotlib

# Up to this many images are printed and drawn one by one.
FEW = 24

# For up to this many images of 64x64 pixels, NumPy answers before TensorFlow could even be imported; each crop of --tta
# counts as one.
FEW_FOR_NUMPY = 1000

# This many images are read and classified at a time.
BATCH = 64

# Why there is no sure answer if a face was looked for.
NO_FACE = "no face found"

# Columns of the table: the edges of what the network saw, in pixels of the upright image.
BOX = "left", "top", "right", "bottom"


class Prediction(NamedTuple):
    """What a network says about an image."""

    probabilities: np.ndarray  # (k,)
    reason: str  # why it is not sure; "" if it is
    distance: float | None  # to the training images; None: the model has no feature bank


class Answer(NamedTuple):
    """What is known about a file."""

    path: pathlib.Path
    photo: Photo | None  # None: the file cannot be read
    probabilities: np.ndarray | None  # (k,)
    reason: str  # why the network is not sure, or what is wrong with the file; "" if it is sure
    distance: float | None = None


class _NothingRead(Exception):
    """Leaves the earlier answers where they are."""


def predict(args):
    """Do what --predict asks for, and return the exit code; `args` is the parsed command line.

    For a few images, NumPy computes what it can; otherwise Keras does.
    """

    def load_in_keras(path):
        start_keras(args.seed, mixed_precision=False, show=args.show, train=False)
        return load_keras_model(path)

    files, faults = list_images(args.predict)
    crops = len(files) * (10 if args.tta else 1)
    in_numpy = crops <= FEW_FOR_NUMPY and not args.explain
    load = functools.partial(_load_in_numpy, load_in_keras, crops=crops) if in_numpy else load_in_keras
    model, metadata = load_trained_model(
        args.output_dir,
        args.script,
        args.task,
        args.network,
        load,
        weights=args.weights,
        not_sure_below=args.not_sure_below,
    )
    # For classes of your own, only the network knows what to look for.
    subject = args.task.subject if metadata.shows_task and metadata.data != "folder" else None
    own_model, fix = args.output_dir / "model.keras", CHOOSE
    if not args.weights and own_model.exists():  # in another folder, another model would answer
        fix += f", and add --weights {shlex.quote(str(own_model))}"
    code = predict_images(
        model,
        metadata,
        files,
        faults,
        args.output_dir,
        subject=subject,
        crop=args.crop,
        tta=args.tta,
        explain=args.explain,
        show=args.show,
        fix=fix,
    )
    if args.show:
        from support.evaluation.figures import show_figures

        show_figures()
    return code


def _load_in_numpy(load_in_keras, path, crops=1):
    """Return the network in NumPy; Keras loads what NumPy does not know, and finds the reason if a file is damaged.

    Of larger images, NumPy answers fewer: `crops` is their number.
    """
    try:
        model = Network(path)
    except Exception:  # zipfile, json, h5py and NumPy raise many types for other networks and damaged files
        return load_in_keras(path)
    if crops * model.input_shape[1] ** 2 > FEW_FOR_NUMPY * IMAGE_SIZE**2:
        return load_in_keras(path)
    print(f"Device: CPU, float32 (NumPy {np.__version__})")
    return model


def ten_crop(image, flip=True):
    """Return an image (size, size, 3), its four corners, enlarged from 90%, and the mirror images of these five.

    The mirror images are left out if `flip` is False, because they would show something else.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
    """
    size = len(image)
    side = round(0.9 * size)
    corners = [(left, top, left + side, top + side) for top in (0, size - side) for left in (0, size - side)]
    whole = Image.fromarray(image)
    crops = np.stack([image, *(whole.resize((size, size), Image.Resampling.BICUBIC, box) for box in corners)])
    return np.concatenate([crops, crops[:, :, ::-1]]) if flip else crops


def predict_images(
    model,
    metadata,
    files,
    faults,
    output_dir,
    *,
    subject=None,
    crop="auto",
    tta=False,
    explain=False,
    show=False,
    fix=CHOOSE,
):
    """Answer for each image which class it shows, or "not sure" and the reason; return the exit code.

    The folder `predictions` gets a table of all answers, `predictions.csv`. Up to FEW answers are printed and drawn; of
    more images, the number of answers for each class is printed, and FEW are drawn. Memory does not grow with the
    number of images. What an earlier call has saved there stays until the new folder is complete, and if none of the
    images can be read.

    Args:
        model, metadata: from `load_trained_model`.
        files, faults: from `list_images`.
        output_dir: folder that gets the subfolder `predictions`.
        subject: "hand" or "face", what "auto" crops to; None: what is like the training images.
        crop: see `read_photo`.
        tta: bool, average the probabilities over ten crops of each image.
        explain: bool, save the Grad-CAM heatmaps as well.
        show: bool, the figures will be opened in windows.
        fix: str, what the user can do if nothing can be saved in the folder.

    Returns: 0; 1 if something could not be read; 130 after Ctrl-C, 143 after SIGTERM, which keep the answers so far.
    """
    faults = list(faults)
    for fault in faults:
        _print_fault(fault)
    if not files:
        return 1
    find = _finder(subject, model, metadata) if crop == "auto" else None
    subject = find and subject
    read = functools.partial(read_photo, size=model.input_shape[1], crop=crop, find=find)
    few = len(files) <= FEW
    # Evenly spread, because a folder's first images are often of one kind.
    to_draw = set(np.linspace(0, len(files) - 1, min(FEW, len(files))).round())
    drawn = []
    counts = collections.Counter()
    without_face = 0
    interrupted = False
    folder = pathlib.Path(output_dir) / "predictions"
    with contextlib.suppress(_NothingRead), atomic_write(folder, fix=fix) as temporary:
        temporary.mkdir(parents=True)
        with csv_table(temporary / "predictions.csv") as write_row:
            write_row(_table_header(metadata.classes))
            answers = _answers(model, metadata, files, read, subject, tta)
            try:
                for number, answer in enumerate(tqdm(answers, total=len(files), unit="image", disable=few)):
                    write_row(_table_row(answer, metadata, subject))
                    if answer.photo is None:
                        faults.append(answer.reason)
                        _print_fault(answer.reason)
                        continue
                    counts["" if answer.reason else answer.probabilities.argmax()] += 1
                    without_face += NO_FACE in answer.reason
                    if number in to_draw:
                        drawn.append((number + 1, answer))
            except KeyboardInterrupt:
                interrupted = True
        if not counts:
            raise _NothingRead
        if few:
            _print_answers([answer for _, answer in drawn], metadata.classes, subject)
        else:
            _print_counts(counts, metadata.classes, len(files))
        if without_face:
            print(
                f"\nNo face was found in {without_face:,} of the images. If a face fills the image, use --crop center"
            )
        try:
            if drawn:
                _save_pixels(drawn, temporary)
                start_matplotlib(show)
                _draw(model, metadata, drawn, temporary, subject, explain)
        except KeyboardInterrupt:
            interrupted = True
    if counts:
        figures = "predictions.png, explanations.png" if explain else "predictions.png"
        some = "" if few else f" of {len(drawn)} images"
        print(f"\nSaved in {folder}: predictions.csv, {figures} and the crops that the network saw{some}")
    if interrupted:
        return signals.exit_code()
    return 1 if faults else 0


def list_images(paths):
    """Return the image files among the paths and in their folders, and a list of what is wrong with the others.

    Folders are searched in alphabetical order, subfolders included. A path that does not exist may be a pattern such as
    *.jpg: the shells of Windows do not replace it by the files.
    """
    files, faults = [], []

    def on_error(error):
        faults.append(f"{error.filename} is a folder that cannot be listed")

    for pattern in paths:
        for path in _matches(pattern, faults):
            if not path.is_dir():
                files.append(path)
                continue
            found = images_in(path, on_error, _print_left_out)
            if not found:
                others = count_suffixes(file for file in path.rglob("*") if file.is_file()) or "no files at all"
                faults.append(f"{path} has no images (.jpg, .png, .webp, .tif, ...), but {others}")
            files += found
    return files, faults


def _matches(path, faults):
    """Return a path in a list, or the paths that match it if it is a pattern."""
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    found = sorted(pathlib.Path(match) for match in glob.glob(str(path), recursive=True))
    if not found:
        faults.append(f"{path} matches no file")
    # What ** matches inside a folder that it matches as well is found in there.
    matched = set(found)
    return [match for match in found if not matched.intersection(match.parents)]


def _print_left_out(reason):
    print(f"left out: {printable(reason)}", file=sys.stderr)


def _finder(subject, model, metadata):
    """Return the function that finds what to crop to, see `read_photo`, or None: the center."""
    find = find_hand if subject == "hand" else None
    if subject == "face":
        try:
            find = face_finder()
        except InputError as error:
            print(f"{error}. Until then, the center of each image is used")
            return None
    elif metadata.feature_bank is not None:
        return searcher(model, metadata.feature_bank, metadata.ood_threshold, find)
    return find and alone(find)


def _print_fault(fault):
    tqdm.write(f"error: {printable(fault)}", file=sys.stderr)  # above a progress bar


def _answers(model, metadata, files, read, subject, tta):
    """Yield an `Answer` for each file; BATCH images are read in threads, as Pillow decodes without Python's lock."""

    def photo_or_fault(path):
        try:
            return read(path)
        except InputError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            photos = list(pool.map(photo_or_fault, batch))
            readable = [photo.views for photo in photos if isinstance(photo, Photo)]
            predictions = iter(classify(model, metadata, readable, tta) if readable else ())
            for path, photo in zip(batch, photos):
                if not isinstance(photo, Photo):
                    yield Answer(path, None, None, photo)
                    continue
                probabilities, reason, distance = next(predictions)
                if subject == "face" and _nothing_found(photo):
                    reason = f"{NO_FACE}, {reason}" if reason else NO_FACE
                yield Answer(path, photo, probabilities, reason, distance)


def _nothing_found(photo):
    """Return whether the subject was looked for in vain.

    An image no larger than what the network takes counts as cropped to it already.
    """
    left, _, right, _ = photo.box
    return not photo.found and right - left > len(photo.pixels)


def _table_header(classes):
    """Return the names of the columns of `predictions.csv`."""
    probabilities = [f"probability {name}" for name in classes]
    return ["file", "class", *probabilities, "sure", "reason", "distance", "distance limit", *BOX, "crop"]


def _table_row(answer, metadata, subject):
    """Return the cells of an answer in `predictions.csv`."""
    path, photo, probabilities, reason, distance = answer
    if photo is None:
        return [path, "", *[""] * len(metadata.classes), "no", reason, "", "", *[""] * len(BOX), ""]
    distances = ["", ""] if distance is None else [f"{distance:.6f}", f"{metadata.ood_threshold:.6f}"]
    return [
        path,
        metadata.classes[probabilities.argmax()],
        *(f"{value:.6f}" for value in probabilities),
        "no" if reason else "yes",
        reason,
        *distances,
        *(f"{edge:g}" for edge in photo.box),
        _found(photo, subject),
    ]


def _found(photo, subject):
    """Return in words whether the subject was found, or for others whether the image was cropped; "" if not."""
    if subject:
        return f"{subject} found" if photo.found else f"no {subject} found: center"
    left, _, right, _ = photo.box
    return "cropped" if photo.found and right - left + 1 < min(photo.overview.shape[:2]) / photo.scale else ""


def _print_answers(answers, classes, subject):
    """Print a line for each image: its name, the class, the probability, and how the answer came about."""
    names = [answer.path.name for answer in answers]
    if len(set(names)) < len({answer.path for answer in answers}):
        names = [str(answer.path) for answer in answers]
    rows = []
    for name, answer in zip(names, answers):
        label = answer.probabilities.argmax()
        predicted, probability = classes[label], f"{answer.probabilities[label]:.1%}"
        if answer.reason:
            predicted, probability = "not sure", f"{predicted}? {probability}"
        details = [answer.reason] if answer.reason else []
        if (found := _found(answer.photo, subject)) and NO_FACE not in answer.reason:
            details.append(found)
        rows.append([printable(name), predicted, probability, "; ".join(details)])
    widths = [max(map(display_width, column)) for column in zip(*rows)]
    print()
    for row in rows:
        print("  ".join(map(pad, row, widths)).rstrip(), flush=True)


def _print_counts(counts, classes, total):
    """Print how many images were answered with each class; `counts` is by label, "" stands for "not sure"."""
    labels = [*range(len(classes)), ""]
    names = [*classes, "not sure"]
    width = max(map(display_width, ["class", *names]))
    print(f"\n{counts.total():,} of {total:,} images classified")
    print(f"  {pad('class', width)}  images")
    for name, label in zip(names, labels):
        print(f"  {pad(name, width)}  {counts[label]:>6,}")


def _save_pixels(answers, folder):
    """Save what the network saw of each image."""
    for number, answer in answers:
        # Numbered, because two folders may have files of the same name; cut, because a name has at most 255 bytes.
        stem = printable(answer.path.stem).encode()[:100].decode(errors="ignore")
        with atomic_write(folder / f"{number:02d}_{stem}.png") as temporary:
            Image.fromarray(answer.photo.pixels).save(temporary)


def _best_guess(probabilities, classes):
    """Return the most probable class and its probability in words."""
    label = probabilities.argmax()
    return f"{classes[label]} ({probabilities[label]:.1%})"


def _draw(model, metadata, answers, folder, subject, explain):
    """Draw what the model saw beside the whole image, with the answers."""
    from support.evaluation import figures  # only after the answers: Matplotlib's import takes a while

    width = figures.BELOW_TILE
    images, names, texts = [], [], []
    for _, (path, photo, probabilities, reason, _) in answers:
        whole = Image.fromarray(photo.overview)
        edges = [photo.scale * edge for edge in photo.box]
        line = max(1, max(whole.size) // 80)
        # In a large photo, a small square is less than a pixel of the overview.
        corner = max(edges[0], edges[2] - 1), max(edges[1], edges[3] - 1)
        ImageDraw.Draw(whole).rectangle([*edges[:2], *corner], outline=figures.SECOND, width=line)
        images += [whole, photo.pixels]
        names.append(figures.fit(printable(path.name), width))
        label = probabilities.argmax()
        name, probability = metadata.classes[label], f" ({probabilities[label]:.1%})"
        if reason:
            why = figures.wrap(reason, width)
            texts.append("\n".join(["not sure", figures.fit(name, width, "best guess ", probability), *why]))
        else:
            texts.append(figures.fit(name, width, after=probability))
    trained = ", trained on SYNTHETIC images," if metadata.data == "synthetic" else ""
    title = f"What the model{trained} saw and predicted"
    found = [f"{name}\n{_found(answer.photo, subject)}".strip() for name, (_, answer) in zip(names, answers)]
    captions = [caption for pair in zip(found, texts) for caption in pair]
    # The images are the user's own, so the figures are never marked as synthetic.
    figures.image_grid(images, captions, title, folder / "predictions.png", "real", group=2)
    if explain:
        from support.prediction.explain import COLOR_BAR, overlay_heatmap  # TensorFlow

        heatmaps = [overlay_heatmap(model, answer.photo.pixels, answer.probabilities.argmax()) for _, answer in answers]
        captions = [f"{name}\n{text}" for name, text in zip(names, texts)]
        title = "Which parts of each image led to the prediction"
        figures.image_grid(heatmaps, captions, title, folder / "explanations.png", "real", color_bar=COLOR_BAR)


def classify(model, metadata, images, tta=False):
    """Return a `Prediction` for each of the images, each given as its views: uint8 arrays (v, size, size, 3).

    The probabilities are the mean over the views; the distance is that of the first.
    """
    crops = [np.concatenate([ten_crop(view, metadata.flip) for view in views]) if tta else views for views in images]
    found = features(model, np.concatenate(crops))
    starts = np.cumsum([0, *map(len, crops)])[:-1]
    rows = np.add.reduceat(softmax(logits(model, found)), starts) / np.array([[len(views)] for views in crops])
    distances = None
    if metadata.feature_bank is not None:
        # The first crop is the first view itself.
        distances = knn_distance(found[starts], metadata.feature_bank)
    reasons = doubts(rows, distances, metadata.not_sure_below, metadata.ood_threshold)
    return list(map(Prediction, rows, reasons, [None] * len(images) if distances is None else distances))
