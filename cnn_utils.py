"""What the three scripts share: data in, metrics and figures out.

    data         load_happy_dataset, load_signs_dataset, add_synthetic
    preparation  split_validation, one_hot, class_weights, print_shapes (the split is in datasets/splits.py)
    batches      Stage, Curriculum, evaluation_dataset (in support/curriculum.py)
    a run        Run (in support/run.py), export (in support/export.py)
    evaluation   evaluate
    figures      plot_examples, plot_learning_curves, plot_confusion_matrix, plot_mistakes

Data flows one way: files -> arrays -> model -> metrics -> figures.
"""

import math
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from datasets import HAPPY_CLASSES, SIGNS_CLASSES
from datasets.folders import has_classes, images_in, load_folder, names_sha256, subfolders
from datasets.hdf5 import is_synthetic, load_h5, schema_error
from datasets.splits import split_fold, split_validation, subset_per_class
from datasets.synthetic import render_dataset
from support.calibration import class_labels, class_probabilities, wrong_predictions
from support.curriculum import Curriculum, Stage, evaluation_dataset
from support.errors import InputError
from support.figures import ACCENT, GRID, INK, SECOND, image_grid, new_figure, save_figure
from support.files import sha256
from support.pretrained import load_pretrained
from support.run import Run

DATASETS = pathlib.Path(__file__).resolve().parent / "datasets"

# SYNTHETIC sets that also have images of none of the classes, so that a network learns when to be unsure.
WITH_OTHERS = {"signs": "signs_and_others"}


# ------------------------------------------------------------------------ data


class Source(NamedTuple):
    """Where a data set comes from: two .h5 files, or twice the folder with images of your own."""

    kind: str  # "real", "synthetic" or "folder"
    train: pathlib.Path
    test: pathlib.Path
    note: str = ""

    def __str__(self):
        if self.kind == "synthetic":
            return f"Data: SYNTHETIC images, not photographs, from {self.train.parent}{self.note}"
        if self.kind == "folder":
            return f"Data: your own images, from {self.train}"
        return f"Data: real, {self.train} and {self.test.name}"


class Dataset(NamedTuple):
    """A data set: images (m, 64, 64, 3) uint8 RGB 0-255, arrays or `ImageFiles`; labels (m,) int64."""

    train_x: Any
    train_y: np.ndarray
    test_x: Any
    test_y: np.ndarray
    class_names: tuple
    source: Source
    hashes: dict  # file name -> SHA-256; of a folder, that of its images' names and sizes
    test_names: Any = None  # (t,), the files of the test images, or their positions in the .h5 file, counted from 0

    @property
    def kind(self):
        return self.source.kind


def load_happy_dataset(data="auto", data_dir=None, dry_run=False, fold=None, cache_dir=None):
    """Load Happy House: is the person smiling?

    Args:
        data: "real": the photographs must be there; "synthetic": SYNTHETIC images, rendered if necessary;
            "auto": real if both files are there, synthetic if neither is.
        data_dir: folder with two .h5 files, or with subfolders of your own images; None: `datasets/` next to this file.
        dry_run: bool, only a few images of each class.
        fold: "I/K": test on fold I of K of the training set and train on the others; the test set is not used.
        cache_dir: folder for the decoded images of a folder of your own; None: they are not kept.

    Returns: `Dataset`; label 0 = not smiling, 1 = smiling.
    Raises InputError: a file is missing or not what it should be.
    """
    return _load("happy", HAPPY_CLASSES, data, data_dir, dry_run, fold, cache_dir)


def load_signs_dataset(data="auto", data_dir=None, dry_run=False, fold=None, cache_dir=None):
    """Load SIGNS: which digit, 0 to 5, does the hand show? Arguments, result and errors: see `load_happy_dataset`."""
    return _load("signs", SIGNS_CLASSES, data, data_dir, dry_run, fold, cache_dir)


def add_synthetic(name, x, y, dry_run=False, copies=1):
    """Append the SYNTHETIC training images of "happy" or "signs" to the images of a set, and say so.

    Args:
        name: "happy" or "signs".
        x, y: uint8 array (m, 64, 64, 3) and labels (m,).
        dry_run: bool, only a few SYNTHETIC images.
        copies: int, how many times each of the set's own images is used, so that they are the majority.

    Returns: images and labels; the label k, beyond the k classes, stands for a SYNTHETIC image of none of them.
    """
    (path,) = render_dataset(WITH_OTHERS.get(name, name), parts=("train",))
    synthetic_x, synthetic_y, _ = load_h5(path, "train")
    if dry_run:
        synthetic_x, synthetic_y = subset_per_class(synthetic_x, synthetic_y, 8)
    print(f"\nAdded {len(synthetic_x):,} SYNTHETIC images to the {len(x):,} of the set (--no-mix-synthetic adds none)")
    return np.concatenate([x] * copies + [synthetic_x]), np.concatenate([y] * copies + [synthetic_y])


def load_pretraining(name, class_names, dry_run=False):
    """Return the SYNTHETIC images for pre-training on "happy" or "signs".

    Returns: x (m, 64, 64, 3) uint8; y float32, (m, 1) for two classes, otherwise one-hot (m, k), with equal shares for
        images of no class.
    Raises InputError: the SYNTHETIC images do not show these classes.
    """
    known = {"happy": HAPPY_CLASSES, "signs": SIGNS_CLASSES}[name]
    if class_names != known:
        expected = f"--pretrain needs the classes of the SYNTHETIC images, {', '.join(known)}; leave it out"
        raise InputError(f"{expected}. Received: {', '.join(class_names)}")
    part = "train" if dry_run else "pretrain"
    (path,) = render_dataset(WITH_OTHERS.get(name, name), parts=(part,))
    x, y, _ = load_h5(path, part)
    x, y = subset_per_class(x, y, 8) if dry_run else (x, y)
    y = one_hot(y, len(known))
    return x, y[:, 1:] if len(known) == 2 else y


def find_data(name, data="auto", data_dir=None):
    """Return the `Source` of "happy" or "signs", with SYNTHETIC files rendered where they are wanted.

    For `data`, `data_dir` and the errors see `load_happy_dataset`.
    """
    folder = DATASETS if data_dir is None else pathlib.Path(data_dir)
    names = f"train_{name}.h5", f"test_{name}.h5"
    if data == "synthetic":
        return Source("synthetic", *render_dataset(name))
    paths = [folder / file for file in names]
    missing = [path.name for path in paths if not os.path.lexists(path)]
    if not missing:
        kind = "synthetic" if any(map(is_synthetic, paths)) else "real"
        if data == "real" and kind == "synthetic":
            expected = "--data real needs photographs: name the folder that holds them with --data-dir"
            raise InputError(f"{expected}. Received: {folder}, whose files are SYNTHETIC")
        return Source(kind, *paths)
    if data_dir is not None and len(missing) == 2:
        if has_classes(folder):
            return Source("folder", folder, folder)
        filled = [place for place in (folder, *(folder / sub for sub in subfolders(folder))) if images_in(place)]
        if filled and data != "real":
            expected = f"{names[0]} and {names[1]}, or one subfolder of images for each class, at least two"
            advice = "The subfolders may also be in `train`; for SYNTHETIC images give --data synthetic"
            found = ", ".join(map(str, filled[:3]))
            raise InputError(f"{folder} must hold {expected}. {advice}. Received: images in {found} only")
    if data == "real" or len(missing) == 1:
        expected = f"{' and '.join(missing)} missing: a data set is a training file and a test file in one folder"
        advice = f"Get them with `python -m datasets.download {name}`, or use --data synthetic"
        raise InputError(f"{expected}. {advice}. Received: {folder}")
    return Source("synthetic", *render_dataset(name), f", because neither {names[0]} nor {names[1]} is in {folder}")


def _load(name, class_names, data, data_dir, dry_run, fold, cache_dir):
    """Find a data set, say where it comes from, read it once and check that train and test fit together."""
    source = find_data(name, data, data_dir)
    print(source)
    if source.kind == "folder":
        train_x, train_y, test_x, test_y, class_names = load_folder(source.train, fold, cache_dir)
        hashes = {source.train.name: names_sha256(source.train, train_x, test_x)}
    else:
        train_x, train_y, classes = load_h5(source.train, "train")
        test_x, test_y, test_classes = load_h5(source.test, "test")
        _check_classes(source, classes, test_classes, train_y, test_y, len(class_names))
        if isinstance(classes, tuple):
            class_names = classes
        hashes = {path.name: sha256(path) for path in (source.train, source.test)}
    test_names = getattr(test_x, "paths", np.arange(len(test_x)))
    if fold and source.kind != "folder":
        train_x, train_y, test_x, test_y, test_names = split_fold(train_x, train_y, fold, unused=source.test)
    if dry_run:
        train_x, train_y = subset_per_class(train_x, train_y, 8)
        test_names, _ = subset_per_class(test_names, test_y, 4)
        test_x, test_y = subset_per_class(test_x, test_y, 4)
    print_shapes("As loaded", train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    return Dataset(train_x, train_y, test_x, test_y, class_names, source, hashes, test_names)


def _check_classes(source, classes, test_classes, train_y, test_y, count):
    """Raise an InputError unless both files list the same classes and each can be learnt."""
    if list(classes) != list(test_classes):
        found = f"{list(map(str, classes))} and {list(map(str, test_classes))}"
        raise schema_error(f"{source.train} and {source.test} must list the same classes", found)
    if not isinstance(classes, tuple) and len(classes) != count:
        raise schema_error(f"{source.train} must list {count} classes", classes.tolist())
    counts = np.bincount(train_y, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        expected = f"{source.train} must hold images of at least two classes: one leaves nothing to distinguish"
        raise schema_error(expected, f"{len(train_y)} of class {train_y[0]} only")
    if 1 in counts:
        expected = f"{source.train} must hold at least two images of each class it has, because one goes to validation"
        raise schema_error(expected, f"one of class {np.flatnonzero(counts == 1).tolist()}")
    unknown = np.setdiff1d(test_y, train_y)
    if len(unknown):
        expected = f"{source.test} must hold no class that {source.train} has no image of"
        raise schema_error(expected, f"class {unknown.tolist()}")


# ----------------------------------------------------------------- preparation


def one_hot(y, classes):
    """Turn labels (m,) into rows (m, classes) float32: 1 in the label's column, 0 elsewhere.

    A label beyond the classes stands for none of them: equal shares, so that a network learns to be unsure
    (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", 2019, section 3).
    """
    rows = np.vstack([np.eye(classes), np.full(classes, 1 / classes)]).astype(np.float32)
    return rows[np.minimum(y, classes)]


def class_weights(y, class_names):
    """Weight the classes in the loss so that each counts the same, if their sizes differ a lot, and say so.

    The weight of a class is m / (k * its images), as in scikit-learn's "balanced".

    Args:
        y: training labels as the loss wants them: (m, 1) or one-hot (m, k).
        class_names: the k class names.

    Returns: dict from label to weight, for Keras's `fit`; None unless the largest class has more than 1.5 times the
        images of the smallest.
    """
    counts = np.bincount(class_labels(y), minlength=len(class_names))
    there = counts > 0
    fewest, most = counts[there].min(), counts.max()
    if most <= 1.5 * fewest:
        return None
    weights = np.where(there, len(y) / (there.sum() * np.maximum(counts, 1)), 1.0)
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(class_names, weights))
    print(f"\nThe classes have {fewest:,} to {most:,} images; a rare one counts more in the loss. Weights: {listed}")
    return dict(enumerate(weights.tolist()))


def print_shapes(title, **arrays):
    """Print name, shape, type and range of each array; images on disk are not read for that."""
    print(f"\n{title}")
    for name, array in arrays.items():
        values = f"{array.min():g} to {array.max():g}" if isinstance(array, np.ndarray) else "on disk"
        print(f"  {name:<15} {str(array.shape):<20} {array.dtype!s:<8} {values}")


# ----------------------------------------------------------- the trained model


def export(args, script, class_names, network=None):
    """Do what --export asks for, and return the exit code; see `support.export`."""
    from support import export

    load_data = load_happy_dataset if class_names == HAPPY_CLASSES else load_signs_dataset
    return export.export(args, script, class_names, load_data, network)


# ------------------------------------------------------------------ evaluation


def evaluate(model, x, y, class_names):
    """Measure the model on images it has never seen, and print the result.

    Args:
        model: compiled Keras model.
        x: uint8 array (m, height, width, 3), or `ImageFiles`.
        y: labels as the model's loss wants them: (m, 1) or one-hot (m, k).
        class_names: the k class names.

    Returns:
        dict with `loss`, `accuracy`, `interval` (95 % Wilson score interval, [low, high]), `balanced_accuracy` (mean
        recall of the classes in `y`), `probabilities` (m, k), `labels` (m,), `predictions` (m,), `confusion` (k, k)
        int, rows = true class, and `precision` and `recall` (k,), NaN for a class never predicted or never there.
    """
    import keras
    from scipy.stats import binomtest

    outputs = np.concatenate([model.predict_on_batch(x[start : start + 64]) for start in range(0, len(x), 64)])
    loss = float(np.mean(keras.ops.convert_to_numpy(keras.losses.get(model.loss)(y, outputs))))
    probabilities = class_probabilities(outputs)
    labels, predictions = class_labels(y), probabilities.argmax(axis=1)
    confusion = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(confusion, (labels, predictions), 1)
    correct, count = int(np.trace(confusion)), len(labels)
    # Wilson's interval stays inside 0-1 and holds for accuracies near 1 (Brown, Cai and DasGupta, 2001).
    low, high = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    with np.errstate(invalid="ignore"):
        precision = np.diag(confusion) / confusion.sum(axis=0)
        recall = np.diag(confusion) / confusion.sum(axis=1)
    balanced_accuracy = float(np.nanmean(recall))

    print(f"\nTest loss:     {loss:.4f}")
    print(f"Test accuracy: {correct / count:.2%} ({correct} of {count} right; 95 % interval {low:.2%} to {high:.2%})")
    print(f"Balanced accuracy: {balanced_accuracy:.2%}, the mean of the recall of each class\n")
    width = max(5, *map(len, class_names))
    print(f"  {'class':<{width}}  precision  recall  images")
    for name, p, r, images in zip(class_names, precision, recall, confusion.sum(axis=1)):
        p, r = ("-" if math.isnan(value) else f"{value:.1%}" for value in (p, r))
        print(f"  {name:<{width}}  {p:>9}  {r:>6}  {images:>6}")
    scores = {"loss": loss, "accuracy": correct / count, "interval": [low, high]}
    scores["balanced_accuracy"] = balanced_accuracy
    arrays = {"probabilities": probabilities, "labels": labels, "predictions": predictions, "confusion": confusion}
    return {**scores, **arrays, "precision": precision, "recall": recall}


# --------------------------------------------------------------------- figures


def plot_examples(x, y, class_names, path, kind):
    """Save one image of each class, the first in the set.

    Args:
        x, y: uint8 array (m, height, width, 3) and labels (m,).
        class_names: the class names.
        path, kind: the PNG file to write, and the data's kind: "real", "synthetic" or "folder".
    """
    first = [np.flatnonzero(y == label)[0] for label in range(len(class_names)) if label in y]
    captions = [f"{class_names[y[index]]} ({np.count_nonzero(y == y[index])} images)" for index in first]
    image_grid(x[first], captions, "Training set: one image of each class", path, kind)


def plot_learning_curves(history, curriculum, path, kind):
    """Save loss and accuracy by epoch, for training and validation, with the stages marked.

    Args:
        history: dict of lists, as `model.fit(...).history`.
        curriculum: the `Run` or a `Curriculum`, for its `boundaries` and `examples_per_epoch`.
        path, kind: see `plot_examples`.
    """
    figure, axes = new_figure(9, 4.2, 1, 2)
    epochs = np.arange(1, len(history["loss"]) + 1)
    stages = [stage for stage in curriculum.boundaries if stage[1] <= epochs[-1]]
    marker = "." if len(epochs) < 20 else None  # a line through one point would be invisible
    for ax, metric in zip(axes[0], ("loss", "accuracy")):
        ax.plot(epochs, history[metric], color=ACCENT, marker=marker, label="training (augmented)")
        ax.plot(epochs, history["val_" + metric], color=SECOND, marker=marker, label="validation")
        more = ", more in pre-training" if any(name.startswith("SYNTHETIC images only") for name, *_ in stages) else ""
        ax.set(xlabel=f"epoch ({curriculum.examples_per_epoch:,} images each{more})", ylabel=metric)
        ax.set(xlim=(0.5, epochs[-1] + 0.5), ylim=(0, None if metric == "loss" else 1.02))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(color=GRID, linewidth=0.6)
        for number, (_, first, _) in enumerate(stages, 1):
            ax.axvline(first - 0.5, color=INK, linewidth=0.8, linestyle=":")
            ax.text(first - 0.5, 1.01, f" {number}", transform=ax.get_xaxis_transform(), fontsize=8, color=INK)
        ax.legend(frameon=False)
    names = "     ".join(f"{number} {name}" for number, (name, *_) in enumerate(stages, 1))
    figure.supxlabel(f"Stages: {names}", fontsize=8, color=INK)
    save_figure(figure, "Learning curves", path, kind)


def plot_confusion_matrix(results, class_names, path, kind):
    """Save the confusion matrix: which class was predicted for which.

    Args:
        results, class_names: dict from `evaluate`, and the names it was given.
        path, kind: see `plot_examples`.
    """
    confusion = results["confusion"]
    size = max(4.2, 0.75 * len(class_names) + 1.6)
    figure, axes = new_figure(size, size)
    ax = axes[0][0]
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        color = "white" if shares[row, column] > 0.5 else INK
        ax.text(column, row, confusion[row, column], ha="center", va="center", color=color)
    ax.set(xticks=range(len(class_names)), yticks=range(len(class_names)))
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.set_xticklabels(class_names, parse_math=False)  # a folder's name may hold a $
    ax.set_yticklabels(class_names, parse_math=False)
    save_figure(figure, f"Test set: {results['accuracy']:.1%} right", path, kind)


def plot_mistakes(x, results, class_names, path, kind, most=24):
    """Save the test images that the model got wrong, those with the highest confidence first.

    Args:
        x: uint8 array (m, height, width, 3), the test images.
        results, class_names: dict from `evaluate`, and the names it was given.
        path, kind: see `plot_examples`.
        most: int, the largest number of images to draw.
    """
    labels, predictions = results["labels"], results["predictions"]
    wrong = wrong_predictions(results)
    shown, confidence = wrong[:most], results["probabilities"].max(axis=1)
    captions = [
        f"is {class_names[labels[index]]}\npredicted {class_names[predictions[index]]}, {confidence[index]:.0%}"
        for index in shown
    ]
    title = f"Mistakes: {len(wrong)} of {len(labels)} test images"
    if len(wrong) > most:
        title += f", the {most} most confident"
    nothing = f"None: all {len(labels)} test images were classified correctly."
    image_grid(x[shown], captions, title, path, kind, empty=nothing)
