"""The style of all figures, and the one figure that several modules draw: a grid of images with captions."""

import math

import matplotlib.pyplot as plt

from support.files import atomic_write

INK, ACCENT, SECOND, GRID = "#22303c", "#1f6fb2", "#d9822b", "#d8dee4"

STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 120,
}  # fmt: skip


def new_figure(width, height, rows=1, columns=1, **options):
    """Return a figure of width x height inches and its axes, an array (rows, columns); options as in `plt.subplots`."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)


def save_figure(figure, title, path, kind):
    """Save a figure as a PNG; `kind` of the data: "real", "synthetic", which is added to the title, or "folder"."""
    if kind == "synthetic":
        title += "  |  SYNTHETIC data"
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    print(f"Saved {path}")


def show_figures():
    """Show every figure made so far and wait until the windows are closed."""
    if plt.get_backend().lower() == "agg":
        print("There is no display to show the figures on; they are saved, see above.")
    else:
        plt.show()


def image_grid(images, captions, title, path, kind, empty=""):
    """Save a figure of images with captions, six in a row.

    Args:
        images: sequence of arrays (height, width, 3), uint8.
        captions: list of str, one for each image.
        title, path, kind: as for `save_figure`.
        empty: str, written in place of the images if there are none.
    """
    columns = min(6, max(3, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    lines = 1 + max((caption.count("\n") for caption in captions), default=0)
    figure, axes = new_figure(1.75 * columns, rows * (1.6 + 0.17 * lines) + 0.5, rows, columns)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions):
        ax.imshow(image, interpolation="nearest")  # unsmoothed pixels
        ax.set_title(caption, fontsize=8, color=INK, parse_math=False)  # a file name may hold a $
    if not len(images):
        figure.text(0.5, 0.45, empty, ha="center")
    save_figure(figure, title, path, kind)
