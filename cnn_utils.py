"""What the three scripts share: data in, metrics and figures out.

    data         load_happy_dataset, load_signs_dataset, mix_synthetic
    preparation  split_validation, one_hot, class_weights, print_shapes
    weights      load_initial_weights, takes_imagenet_pixels, build_lite0
    transfer     frozen_features, choose_weight_decay
    training     Run, Batches, evaluation_batches, calibrate
    evaluation   measure, class_probabilities
    figures      plot_examples, plot_augmented, plot_learning_curves, plot_confusion_matrix, plot_mistakes,
                 plot_reliability

Data flows one way: files -> arrays -> model -> metrics -> figures. The figures are drawn here; everything else is
handed on from the room it lives in.
"""

import math

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D

from datasets.loading import load_happy_dataset, load_signs_dataset, mix_synthetic, print_shapes
from datasets.splits import split_validation
from support.evaluation import figures
from support.evaluation.calibration import calibrate, plot_reliability
from support.evaluation.outputs import class_probabilities, class_weights, one_hot
from support.evaluation.results import measure
from support.training.batches import Batches, evaluation_batches, name_of
from support.training.efficientnet_lite import build_lite0
from support.training.pretrained import load_initial_weights, takes_imagenet_pixels
from support.training.run import Run
from support.training.transfer import choose_weight_decay, frozen_features

__all__ = [
    "load_happy_dataset", "load_signs_dataset", "mix_synthetic", "split_validation", "one_hot", "class_weights",
    "print_shapes", "load_initial_weights", "takes_imagenet_pixels", "build_lite0", "frozen_features",
    "choose_weight_decay", "Run", "Batches", "evaluation_batches", "calibrate", "measure", "class_probabilities",
    "plot_examples", "plot_augmented", "plot_learning_curves", "plot_confusion_matrix", "plot_mistakes",
    "plot_reliability",
]  # fmt: skip


# --------------------------------------------------------------------- figures

ROW_LINE = {"color": figures.INK, "linewidth": 0.9, "linestyle": ":"}  # marks where a row of the schedule begins
MOST_EXAMPLES = 60  # classes
LARGEST_MATRIX = 8.4  # side of the confusion matrix, in inches
MOST_NUMBERS = 40  # classes; a larger confusion matrix has colors only
MOST_ZEROS = 20  # classes; a larger confusion matrix leaves the zeros out


def plot_examples(x, y, class_names, path, kind):
    """Save one image of each class, the first in the set; of many classes, the first MOST_EXAMPLES.

    Args:
        x, y: uint8 array (m, height, width, 3) and labels (m,).
        class_names: the class names.
        path, kind: the PNG file to write, and the data's kind: "real", "synthetic" or "folder".
    """
    counts = np.bincount(y, minlength=len(class_names))
    labels = np.flatnonzero(counts)
    title = "Training set: one image of each class"
    if len(labels) > MOST_EXAMPLES:
        title = f"Training set: one image of each of the first {MOST_EXAMPLES} of {len(labels)} classes"
        labels = labels[:MOST_EXAMPLES]
    first = [np.flatnonzero(y == label)[0] for label in labels]
    lines = [f"{counts[label]:,} image{'s' if counts[label] > 1 else ''}" for label in labels]
    names = [figures.fit(class_names[label], figures.BELOW_TILE) for label in labels]
    captions = [f"{name}\n{line}" for name, line in zip(names, lines)]
    figures.image_grid(x[first], captions, title, path, kind)


@figures.styled
def plot_augmented(image, schedule, seed, path, kind):
    """Save an image beside nine random changes of it by each augmentation of the schedule.

    Args:
        image: uint8 array (height, width, 3).
        schedule: list of (epochs, images, augmentation), as for `Batches`.
        seed: int, fixes the changes.
        path, kind: see `plot_examples`.
    """
    functions = dict.fromkeys(augment for _, _, augment in schedule)
    side, gap, margin = 128 / figures.DPI, 0.06, figures.MARGIN
    block = 3 * side + 2 * gap  # nine versions, and the original in the same size
    width = margin + (1 + len(functions)) * (block + margin)
    figure = figures.new_figure(width, block + margin + 0.3, "A training image and nine augmented versions of it", kind)
    figures.place_image(figure, margin, margin, block, image)
    figures.place_text(figure, margin + block / 2, margin + block + 0.08, "original", ha="center")
    for number, augment in enumerate(functions):
        left = margin + (1 + number) * (block + margin)
        name = figures.fit(name_of(augment), block, size=10)
        figures.place_text(figure, left + block / 2, margin + block + 0.08, name, ha="center")
        changed = np.asarray(augment(np.repeat(image[None], 9, axis=0), np.array([seed, number], np.int64)))
        for position, version in enumerate(changed.clip(0, 255).astype(np.uint8)):
            up, right = 2 - position // 3, position % 3
            place = left + right * (side + gap), margin + up * (side + gap)
            figures.place_image(figure, *place, side, version)
    figures.save_figure(figure, path)


@figures.styled
def plot_learning_curves(history, run, path, kind):
    """Save loss and accuracy by epoch, for training and validation; lines mark where rows of the schedule begin.

    Args:
        history: dict of lists, as `model.fit(...).history`.
        run: the `Run`, for its `schedule` and `examples_per_epoch`.
        path, kind: see `plot_examples`.
    """
    epochs = np.arange(1, len(history["loss"]) + 1)
    rows = [(name, first) for name, first, _ in run.schedule if first <= epochs[-1]]
    rows = rows if len(rows) > 1 else []
    height = 5.0  # of the axes; the names of the rows stand above them
    figure = figures.new_figure(8, height + figures.LINE * len(rows), "Learning curves", kind)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, height / figure.get_size_inches()[1]))
    top, bottom = figure.subplots(2, 1, sharex=True)
    marker = "." if len(epochs) < 20 else None  # a line through one point would be invisible
    for ax, metric in (top, "loss"), (bottom, "accuracy"):
        # The lower line is wider, so that it is seen where both are the same.
        ax.plot(epochs, history[metric], color=figures.ACCENT, marker=marker, linewidth=3, alpha=0.6)
        ax.plot(epochs, history["val_" + metric], color=figures.SECOND, marker=marker, linewidth=1.4)
        ax.set(ylabel=metric, xlim=(0.5, epochs[-1] + 0.5), ylim=(0, None if metric == "loss" else 1.03))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid()
        for _, first in rows:
            ax.axvline(first - 0.5, **ROW_LINE)
    bottom.set(xlabel=f"epoch ({run.examples_per_epoch:,} images each)")
    top.legend(top.lines[:2], ["training (augmented)", "validation"], loc="best", framealpha=0.9)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # Each row's name has a line of its own, the first at the top, so that no name crosses the line of another row.
    edges = top.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    for number, (name, first) in enumerate(rows):
        name = figures.fit(name, edges.width)
        begin = edges.x0 + edges.width * (first - 1) / epochs[-1]
        left = min(begin + 0.05, edges.x1 - figures.text_width(name))
        lower = height + figures.LINE * (len(rows) - 1 - number)
        upper_end = lower + 0.12 if left > begin else lower - 0.02
        figure.add_artist(Line2D([begin] * 2, [edges.y1, upper_end], transform=figure.dpi_scale_trans, **ROW_LINE))
        figures.place_text(figure, left, lower, name, fontsize=figures.CAPTION)
    figures.save_figure(figure, path)


@figures.styled
def plot_confusion_matrix(results, class_names, path, kind):
    """Save the confusion matrix: which class was predicted for which.

    Args:
        results, class_names: from `measure`, and the names it was given.
        path, kind: see `plot_examples`.
    """
    confusion, classes = results.confusion, len(class_names)
    cell = min(max(0.6, 2 / classes), LARGEST_MATRIX / classes)
    side = cell * classes
    number_size = min(10.0, 8 * cell / figures.text_width(str(confusion.max()), 10))
    with_numbers = classes <= MOST_NUMBERS and number_size > 5
    step = math.ceil(0.19 / cell)  # of many classes, every second, third ... is named
    named = range(0, classes, step)
    names = [figures.fit(class_names[label], 1.8) for label in named]
    longest = max(map(figures.text_width, names))
    slanted = longest > step * cell - 0.06

    left, right = longest + 0.6, figures.MARGIN if with_numbers else 1.0
    below = 0.5 + (longest / math.sqrt(2) if slanted else 0.1)
    width = max(figures.NARROWEST, left + side + right)
    left += (width - left - side - right) / 2
    title = f"Confusion matrix: {results.accuracy:.1%} of {confusion.sum():,} test images right"
    figure = figures.new_figure(width, below + side, title, kind)
    ax = figures.place_axes(figure, left, below, side, side)

    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    # Without numbers, a single mistake is seen only if its color differs enough from white.
    norm = PowerNorm(1 if with_numbers else 0.4, vmin=0, vmax=1)
    picture = ax.imshow(fractions, cmap="Blues", norm=norm, interpolation="nearest")
    if with_numbers:
        for row, column in np.argwhere(confusion if classes > MOST_ZEROS else confusion >= 0):
            color = "white" if fractions[row, column] > 0.5 else figures.INK if confusion[row, column] else figures.GRAY
            ax.text(column, row, confusion[row, column], ha="center", va="center", color=color, fontsize=number_size)
        between = np.arange(1, classes) - 0.5
        ax.hlines(between, -0.5, classes - 0.5, color=figures.GRID, linewidth=0.6)
        ax.vlines(between, -0.5, classes - 0.5, color=figures.GRID, linewidth=0.6)
    else:
        bar = figure.colorbar(picture, cax=figures.place_axes(figure, left + side + 0.15, below, 0.15, side))
        bar.set_label("fraction of the images of the true class")
        bar.set_ticks([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    ax.set_xticks(named, names, fontsize=figures.CAPTION)
    ax.set_yticks(named, names, fontsize=figures.CAPTION)
    if slanted:
        for label in ax.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.spines[:].set_visible(True)
    ax.set(xlabel="predicted class", ylabel="true class")
    figures.save_figure(figure, path)


def plot_mistakes(x, results, class_names, path, kind, most=24):
    """Save the test images that the model got wrong, those with the highest confidence first.

    Args:
        x: uint8 array (m, height, width, 3), the test images.
        results, class_names: from `measure`, and the names it was given.
        path, kind: see `plot_examples`.
        most: int, the largest number of images to draw.
    """
    wrong = results.mistakes
    shown, captions = wrong[:most], []
    for index in shown:
        true, predicted = class_names[results.labels[index]], class_names[results.predictions[index]]
        confidence = f"{results.probabilities[index].max():.0%}"
        lines = [figures.fit(predicted, math.inf, "predicted ", f", {confidence}")]
        if figures.text_width(lines[0]) > figures.BELOW_TILE:
            lines = [figures.fit(predicted, figures.BELOW_TILE, "predicted "), f"{confidence} confident"]
        captions.append("\n".join([figures.fit(true, figures.BELOW_TILE, "is "), *lines]))
    title = f"Mistakes: {len(wrong):,} of {len(results.labels):,} test images"
    if len(wrong) > most:
        title += f", the {most} most confident"
    nothing = f"None: all {len(results.labels):,} test images were classified correctly."
    figures.image_grid(x[shown], captions, title, path, kind, empty=nothing)
