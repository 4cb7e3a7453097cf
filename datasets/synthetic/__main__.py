"""Render the SYNTHETIC data sets now; the scripts do the same when they need them."""

import argparse
import pathlib

from basics.errors import run_main
from datasets import HAPPY, SIGNS
from datasets.synthetic import RECIPES, render_dataset


def save_sheet(source, path, columns=12, scale=2):
    """Save a PNG with the first `columns` images of each class of a synthetic .h5 file, one row per class."""
    import h5py
    import numpy as np
    from PIL import Image, ImageDraw

    part, _, name = source.stem.partition("_")
    with h5py.File(source, "r") as file:
        x, y, classes = (file[key][()] for key in (f"{part}_set_x", f"{part}_set_y", "list_classes"))
    side, title = x.shape[1] * scale, 24  # pixels
    sheet = Image.new("RGB", (columns * side, title + len(classes) * side), "white")
    names = {task.name: task.class_names for task in (HAPPY, SIGNS)}.get(name, classes)
    text = f"{source.name}, SYNTHETIC; one row for each class: {', '.join(map(str, names))}"
    ImageDraw.Draw(sheet).text((6, 4), text, "black", font_size=14)
    for row, label in enumerate(classes):
        for column, index in enumerate(np.flatnonzero(y == label)[:columns]):
            image = Image.fromarray(x[index]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * side, title + row * side))
    sheet.save(path)


def main(argv=None):
    parser = argparse.ArgumentParser("python -m datasets.synthetic", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), help="the data set (default: happy and signs)")
    parser.add_argument("--sheet", type=pathlib.Path, metavar="FOLDER", help="save a sheet of each set's images")
    args = parser.parse_args(argv)
    for name in [args.name] if args.name else ("happy", "signs"):
        paths = render_dataset(name, parts=[part for part in RECIPES[name][3] if part in ("train", "test")])
        print(f"SYNTHETIC: {' and '.join(map(str, paths))}")
        if args.sheet:
            args.sheet.mkdir(parents=True, exist_ok=True)
            save_sheet(paths[0], args.sheet / f"synthetic_{name}.png")
            print(f"Saved {args.sheet / f'synthetic_{name}.png'}")


if __name__ == "__main__":
    run_main(main)
