"""--predict: what a trained model says about images of your own."""

import pathlib
import sys

import numpy as np
from PIL import Image

from datasets.images import read_image
from support.calibration import features, logits, softmax
from support.errors import InputError, printable
from support.explain import overlay_heatmap
from support.export import export_model
from support.figures import image_grid, show_figures
from support.files import atomic_write
from support.ood import knn_distance
from support.output import prepare_output_dir
from support.trained_model import load_trained_model

# Predictions with a lower probability are "not sure": more than three in ten of them would be wrong.
CONFIDENCE = 0.7


def predict_or_export(args, script, class_names, network=None):
    """Do what --predict or --export asks for, and return the exit code; see `load_trained_model`."""
    model, metadata = load_trained_model(args.output_dir, script, class_names, network)
    if args.export:
        export_model(model, args.export, args.output_dir)
        return 0
    options = {"crop": args.crop, "tta": args.tta, "explain": args.explain}
    code = predict_images(model, metadata, args.predict, args.output_dir, **options)
    if args.show:
        show_figures()
    return code


def ten_crop(image):
    """Return an image (size, size, 3), its four corners, enlarged from 90 %, and the mirror images of these five.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 4.1.
    """
    size, side = len(image), round(0.9 * len(image))
    corners = [(left, top, left + side, top + side) for top in (0, size - side) for left in (0, size - side)]
    whole = Image.fromarray(image)
    crops = np.stack([image, *(whole.resize((size, size), Image.Resampling.BICUBIC, box) for box in corners)])
    return np.concatenate([crops, crops[:, :, ::-1]])


def predict_images(model, metadata, paths, output_dir, *, crop="center", tta=False, explain=False):
    """Print the class of each image, or "not sure" and the reason; return 1 if a file could not be read, else 0.

    Args:
        model, metadata: from `load_trained_model`.
        paths: the image files.
        output_dir: folder; what the model saw is saved in its subfolder `predictions`.
        crop: see `read_image`.
        tta: bool, average the probabilities over ten crops of each image.
        explain: bool, save the Grad-CAM heatmaps as well.
    """
    images, readable, captions, heatmaps = [], [], [], []
    for path in paths:
        try:
            images.append(read_image(path, model.input_shape[1], crop))
            readable.append(path)
        except InputError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
    if not images:
        return 1
    folder = prepare_output_dir(pathlib.Path(output_dir) / "predictions")
    results = _classify(model, metadata, images, tta)
    for number, (path, image, (probabilities, reason)) in enumerate(zip(readable, images, results), 1):
        label = probabilities.argmax()
        answer = f"{metadata['classes'][label]} ({probabilities[label]:.1%})"
        # Numbered, because two folders may hold the same name; cut, because a name has at most 255 bytes.
        seen = folder / f"{number:02d}_{printable(path.stem).encode()[:100].decode(errors='ignore')}.png"
        with atomic_write(seen) as temporary:
            Image.fromarray(image).save(temporary)
        name = printable(path.name)
        name = name if len(name) <= 24 else f"{name[:11]}...{name[-10:]}"
        captions.append(f"{name}\n{'not sure: ' if reason else ''}{answer}")
        answer = f"not sure, {reason}; best guess {answer}" if reason else answer
        print(f"{printable(str(path))}: {answer}; what the model saw: {seen}")
        if explain:
            heatmaps.append(overlay_heatmap(model, image, label))
    trained = ", trained on SYNTHETIC images," if metadata["data"] == "synthetic" else ""
    # The images are the user's own, so the figures are never marked as synthetic.
    image_grid(images, captions, f"What the model{trained} saw and predicted", folder / "predictions.png", "real")
    if explain:
        title = "What led to the prediction: the brighter, the more"
        image_grid(heatmaps, captions, title, folder / "explanations.png", "real")
    return 1 if len(readable) < len(paths) else 0


def _classify(model, metadata, images, tta):
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
