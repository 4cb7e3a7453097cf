"""Render the SYNTHETIC data sets now; the scripts do the same when they need them."""

import argparse
import pathlib

from datasets.synthetic import RECIPES, render_dataset
from support.errors import run_main


def save_sheet(train, path, columns=12, scale=2):
    """Save a PNG with the first `columns` images of each class of a synthetic training file, one row per class."""
    import h5py
    import numpy as np
    from PIL import Image, ImageDraw

    with h5py.File(train, "r") as file:
        x, y, classes = file["train_set_x"][()], file["train_set_y"][()], file["list_classes"][()]
    side, title = x.shape[1] * scale, 24  # pixels
    sheet = Image.new("RGB", (columns * side, title + len(classes) * side), "white")
    text = f"{train.name}, SYNTHETIC: the first images of the classes {', '.join(map(str, classes))}"
    ImageDraw.Draw(sheet).text((6, 4), text, "black", font_size=14)
    for row, label in enumerate(classes):
        for column, index in enumerate(np.flatnonzero(y == label)[:columns]):
            image = Image.fromarray(x[index]).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(image, (column * side, title + row * side))
    sheet.save(path)


def main(argv=None):
    parser = argparse.ArgumentParser("python -m datasets.synthetic", description=__doc__)
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), help="the data set (default: both)")
    parser.add_argument("--sheet", type=pathlib.Path, metavar="FOLDER", help="save a sheet of each set's images")
    args = parser.parse_args(argv)
    for name in [args.name] if args.name else RECIPES:
        train, test = render_dataset(name)
        print(f"SYNTHETIC: {train} and {test.name}")
        if args.sheet:
            args.sheet.mkdir(parents=True, exist_ok=True)
            save_sheet(train, args.sheet / f"synthetic_{name}.png")
            print(f"Saved {args.sheet / f'synthetic_{name}.png'}")


if __name__ == "__main__":
    run_main(main)
