"""--predict: what a trained model says about images of your own."""

import collections
import concurrent.futures
import functools
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from datasets.folders import images_in
from datasets.images import Photo, read_photo
from support.calibration import features, logits, softmax
from support.detection import SUBJECTS, finder
from support.errors import INTERRUPTED, InputError, printable
from support.files import atomic_write, csv_table
from support.numpy_inference import Network
from support.ood import knn_distance
from support.output import prepare_output_dir
from support.trained_model import load_keras_model, load_trained_model

# Predictions with a lower probability are "not sure": more than three in ten of them would be wrong.
CONFIDENCE = 0.7

# Up to this many images are printed and drawn one by one.
FEW = 24

# Up to this many images, NumPy is done before TensorFlow would be imported; each of --tta's crops counts as one.
FEW_FOR_NUMPY = 1000

# This many images are read and classified at a time.
BATCH = 64

# Columns of the table: the edges of what the model saw, in pixels of the upright image.
BOX = "left", "top", "right", "bottom"


class Answer(NamedTuple):
    """What is known about a file."""

    path: pathlib.Path
    photo: Photo | None  # None: the file cannot be read
    probabilities: np.ndarray | None  # (k,)
    reason: str  # why the model is not sure, or what is wrong with the file; "" if it is sure


def predict(args, script, class_names, network, start_keras):
    """Do what --predict asks for, and return the exit code; see `load_trained_model`.

    For a few images, NumPy computes what it can; otherwise `start_keras()` is called, and Keras does.
    """
    if not args.show:
        os.environ["MPLBACKEND"] = "agg"  # before Matplotlib is imported: no display is needed
    images = len(list_images(args.predict)[0]) * (10 if args.tta else 1)
    if images <= FEW_FOR_NUMPY and not args.explain:
        load = functools.partial(_load_in_numpy, start_keras)
    else:
        start_keras()
        load = load_keras_model
    model, metadata = load_trained_model(args.output_dir, script, class_names, network, load)
    # For classes of your own, it is not known what to look for.
    ours = metadata["data"] != "folder" and tuple(metadata["classes"]) == tuple(class_names)
    subject = SUBJECTS[script] if ours else None
    options = {"subject": subject, "crop": args.crop, "tta": args.tta, "explain": args.explain}
    code = predict_images(model, metadata, args.predict, args.output_dir, **options)
    if args.show:
        from support.figures import show_figures

        show_figures()
    return code


def _load_in_numpy(start_keras, path):
    """Return the network in NumPy, or Keras's, which knows other networks, and the reason if a file is damaged."""
    try:
        model = Network(path)
    except Exception:  # zipfile, json, h5py and NumPy raise many types for other networks and damaged files
        start_keras()
        return load_keras_model(path)
    print(f"Device: CPU, float32 (NumPy {np.__version__})")
    return model


def ten_crop(image):
    """Return an image (size, size, 3), its four corners, enlarged from 90 %, and the mirror images of these five.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
    """
    size, side = len(image), round(0.9 * len(image))
    corners = [(left, top, left + side, top + side) for top in (0, size - side) for left in (0, size - side)]
    whole = Image.fromarray(image)
    crops = np.stack([image, *(whole.resize((size, size), Image.Resampling.BICUBIC, box) for box in corners)])
    return np.concatenate([crops, crops[:, :, ::-1]])


def predict_images(model, metadata, paths, output_dir, *, subject=None, crop="auto", tta=False, explain=False):
    """Say for each image which class it shows, or "not sure" and the reason; return the exit code.

    `predictions.csv` holds every answer. Up to FEW answers are printed and drawn; of more images, a summary is printed
    and FEW are drawn. Memory does not grow with the number of images.

    Args:
        model, metadata: from `load_trained_model`.
        paths: image files, and folders of images.
        output_dir: folder; everything is saved in its subfolder `predictions`.
        subject: "hand" or "face", what "auto" crops to; None: the middle.
        crop: see `read_photo`.
        tta: bool, average the probabilities over ten crops of each image.
        explain: bool, save the Grad-CAM heatmaps as well.

    Returns: 0; 1 if something could not be read; 130 after Ctrl-C, which keeps the answers so far.
    """
    files, faults = list_images(paths)
    for fault in faults:
        print(f"error: {printable(fault)}", file=sys.stderr)
    if not files:
        return 1
    folder, classes = prepare_output_dir(pathlib.Path(output_dir) / "predictions"), metadata["classes"]
    find = _finder(subject) if crop == "auto" else None
    subject = find and subject
    # Evenly spread, because a folder's first images are often of one kind.
    to_draw = set(np.linspace(0, len(files) - 1, min(FEW, len(files))).round())
    few = len(files) <= FEW
    drawn, counts, interrupted = [], collections.Counter(), False
    with csv_table(folder / "predictions.csv") as write_row:
        write_row(["file", "class", *(f"probability {name}" for name in classes), "sure", "reason", *BOX, "crop"])
        answers = _answers(model, metadata, files, lambda path: read_photo(path, model.input_shape[1], crop, find), tta)
        try:
            for number, answer in enumerate(tqdm(answers, total=len(files), unit="image", disable=few)):
                write_row(_table_row(answer, classes, subject))
                if answer.photo is None:
                    faults.append(answer.reason)
                    tqdm.write(f"error: {printable(answer.reason)}", file=sys.stderr)
                    continue
                counts["not sure" if answer.reason else classes[answer.probabilities.argmax()]] += 1
                if number in to_draw:
                    drawn.append((number + 1, answer))
        except KeyboardInterrupt:
            interrupted = True
    if not few:
        found = ", ".join(f"{name}: {counts[name]:,}" for name in (*classes, "not sure"))
        print(f"{counts.total():,} of {len(files):,} images answered: {found}; {len(drawn)} of them are drawn")
    if drawn:
        _save_pixels(drawn, classes, folder, subject, quiet=not few)
        _draw(model, metadata, drawn, folder, subject, explain)
    return INTERRUPTED if interrupted else 1 if faults else 0


def list_images(paths):
    """Return the image files among the paths and in their folders, and a list of what is wrong with these folders.

    Folders are searched in alphabetical order, subfolders included.
    """
    files, faults = [], []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = images_in(path, lambda error: faults.append(f"{error.filename}: a folder that cannot be listed"))
        if not found:
            kinds = collections.Counter(
                file.suffix.lower() or "no suffix" for file in path.rglob("*") if file.is_file()
            )
            others = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(3)) or "no files"
            faults.append(f"{path}: expected a folder with images (.jpg, .png, .webp, .tif, ...). Received: {others}")
        files += found
    return files, faults


def _finder(subject):
    """Return the function that finds the subject, or None; say so if a package for it is missing."""
    try:
        return subject and finder(subject)
    except InputError as error:
        print(f"The centre of each image is used. {error}")


def _answers(model, metadata, files, read, tta):
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
            readable = [photo.pixels for photo in photos if isinstance(photo, Photo)]
            results = iter(classify(model, metadata, readable, tta) if readable else ())
            for path, photo in zip(batch, photos):
                yield (
                    Answer(path, photo, *next(results)) if isinstance(photo, Photo) else Answer(path, None, None, photo)
                )


def _table_row(answer, classes, subject):
    """Return the cells of an answer in `predictions.csv`."""
    path, photo, probabilities, reason = answer
    if photo is None:
        return [path, "", *[""] * len(classes), "no", reason, *[""] * len(BOX), ""]
    values = [f"{value:.6f}" for value in probabilities]
    edges = [f"{value:g}" for value in photo.box]
    return [
        path,
        classes[probabilities.argmax()],
        *values,
        "no" if reason else "yes",
        reason,
        *edges,
        _found(photo, subject),
    ]


def _found(photo, subject):
    """Say in words whether the subject was found, "" if it was not looked for."""
    if not subject:
        return ""
    return f"{subject} found" if photo.found else f"no {subject} found: centre"


def _save_pixels(answers, classes, folder, subject, quiet):
    """Save what the model saw, and print the answers unless `quiet`."""
    for number, (path, photo, probabilities, reason) in answers:
        # Numbered, because two folders may have files of the same name; cut, because a name has at most 255 bytes.
        seen = folder / f"{number:02d}_{printable(path.stem).encode()[:100].decode(errors='ignore')}.png"
        with atomic_write(seen) as temporary:
            Image.fromarray(photo.pixels).save(temporary)
        if not quiet:
            answer = _best_guess(probabilities, classes)
            answer = f"not sure, {reason}; best guess {answer}" if reason else answer
            found = f"{found}; " if (found := _found(photo, subject)) else ""
            print(f"{printable(str(path))}: {answer}; {found}what the model saw: {seen}", flush=True)


def _best_guess(probabilities, classes):
    """Return the most probable class and its probability in words."""
    label = probabilities.argmax()
    return f"{classes[label]} ({probabilities[label]:.1%})"


def _draw(model, metadata, answers, folder, subject, explain):
    """Draw what the model saw beside the whole image, with the answers."""
    from support.figures import SECOND, image_grid  # only after the answers: Matplotlib's import takes a while

    images, captions = [], []
    for _, (path, photo, probabilities, reason) in answers:
        answer, name = _best_guess(probabilities, metadata["classes"]), printable(path.name)
        name = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
        whole = Image.fromarray(photo.overview)
        edges = [photo.scale * edge for edge in photo.box]
        width = max(1, max(whole.size) // 80)
        ImageDraw.Draw(whole).rectangle([*edges[:2], edges[2] - 1, edges[3] - 1], outline=SECOND, width=width)
        images += [whole, photo.pixels]
        captions += [f"{name}\n{_found(photo, subject)}", f"not sure:\n{answer}" if reason else answer]
    trained = ", trained on SYNTHETIC images," if metadata["data"] == "synthetic" else ""
    # The images are the user's own, so the figures are never marked as synthetic.
    image_grid(images, captions, f"What the model{trained} saw and predicted", folder / "predictions.png", "real")
    if explain:
        from support.explain import overlay_heatmap  # TensorFlow

        heatmaps = [overlay_heatmap(model, answer.photo.pixels, answer.probabilities.argmax()) for _, answer in answers]
        title = "What led to the prediction: the brighter, the more"
        image_grid(heatmaps, captions[1::2], title, folder / "explanations.png", "real")


def classify(model, metadata, images, tta=False):
    """Return for each image the probabilities (k,) and the reason to abstain, "" if there is none."""
    crops = [ten_crop(image) if tta else image[None] for image in images]
    found = features(model, np.concatenate(crops))
    rows = softmax(logits(model, found)).reshape(len(images), len(crops[0]), -1).mean(axis=1)
    reasons = [[f"confidence below {CONFIDENCE:.0%}"] if row.max() < CONFIDENCE else [] for row in rows]
    if metadata["feature_bank"] is not None:
        threshold = metadata["ood_threshold"]
        # The first crop is the image itself.
        for reason, distance in zip(reasons, knn_distance(found[:: len(crops[0])], metadata["feature_bank"])):
            if distance > threshold:
                reason.append(f"unlike the training images (distance {distance:.2f}, usually up to {threshold:.2f})")
    return [(row, " and ".join(reason)) for row, reason in zip(rows, reasons)]
