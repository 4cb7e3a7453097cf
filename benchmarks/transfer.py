"""What transfer learning is worth: the accuracy by the number of training images of each class.

`python -m benchmarks transfer` calls this. Each draw takes so many images of each class at random, a tenth of them for
validation, and is tested on all test images. Transfer learning is that of signs_resnet50.py with --weights lite0, but
the features are computed once for all draws, and the last layer's best weights by L-BFGS, which the script's `fit`
approaches. From scratch, signs_functional.py trains on a folder of the drawn images.
"""

import json
import os
import pathlib
import time

import numpy as np
from PIL import Image

from datasets import HAPPY, SIGNS
from datasets.hdf5 import load_h5
from datasets.loading import load_dataset
from datasets.splits import split_indices
from support.evaluation.outputs import one_hot
from support.seeds import summarize
from support.training.efficientnet_lite import build_lite0
from support.training.transfer import choose_weight_decay, fit_last_layer, frozen_features

COUNTS = 5, 10, 20, 50, None  # images of each class; None: all


def as_folder(source, place):
    """Return a folder with train/CLASS and test/CLASS; of .h5 files, the images are written into `place`."""
    for task in (HAPPY, SIGNS):
        if (source / f"train_{task.name}.h5").exists():
            for part in ("train", "test"):
                x, y, _ = load_h5(source / f"{part}_{task.name}.h5", part)
                for number, (image, label) in enumerate(zip(x, y)):
                    path = pathlib.Path(place, part, task.class_names[label], f"{number:04}.png")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).save(path)
            return pathlib.Path(place)
    return source


def draw(y, count, seed):
    """Return the indices of `count` images of each class, or of all if it is None."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == label))[:count] for label in np.unique(y)]))


class Transfer:
    """Transfer learning on draws of one folder; the features of all images are computed at the start."""

    def __init__(self, folder, size, cache_dir):
        options = {"cache_dir": cache_dir, "group_by": "none", "image_size": size}
        self.data = data = load_dataset(SIGNS, data_dir=folder, **options)
        model = build_lite0(data.train_x.shape[1:], len(data.class_names))
        started = time.perf_counter()
        features, _ = frozen_features(model, data.train_x, data.train_y, cache_dir, mirrored=True)
        self.features = features.reshape(2, len(data.train_x), -1)
        self.test, _ = frozen_features(model, data.test_x, data.test_y, cache_dir)
        self.seconds_per_image = (time.perf_counter() - started) / (2 * len(data.train_x) + len(data.test_x))

    def accuracy(self, chosen, seed):
        """Return the test accuracy after training the last layer on the chosen images, and the seconds."""
        started = time.perf_counter()
        train = chosen[split_indices(self.data.train_y[chosen], seed, 0.1)[0]]
        y = one_hot(self.data.train_y[train], len(self.data.class_names))
        x = self.features[:, train].reshape(2 * len(train), -1)
        decay = choose_weight_decay(x[: len(train)], y)
        layer = fit_last_layer(x, np.concatenate([y, y]), np.ones(len(x), np.float32), decay)
        seconds = time.perf_counter() - started
        answers = (self.test @ layer[:-1] + layer[-1]).argmax(axis=1)
        return float((answers == self.data.test_y).mean()), seconds


def from_scratch(run, data, chosen, seed, place):
    """Return the test accuracy of signs_functional.py on a folder of the chosen images, and its seconds."""
    folder = pathlib.Path(place, f"{len(chosen)}_{seed}")
    for part, x, y in (
        ("train", data.train_x.take(chosen, axis=0), data.train_y[chosen]),
        ("test", data.test_x, data.test_y),
    ):
        for path, label in zip(x.paths, y):
            link = folder / part / data.class_names[label] / pathlib.Path(path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.symlink(path, link)
    output = folder.with_name(folder.name + "_output")
    options = "--data-dir", folder, "--output-dir", output, "--seed", seed
    seconds = run("signs_functional.py", *options)[1]
    return json.loads((output / "metrics.json").read_text())["results"]["test_accuracy"], seconds


def rows_of(folder, draws, scratch_draws, size, cache_dir, place, run):
    """Yield name, accuracies and a note for each number of images of each class in a folder."""
    name = pathlib.Path(folder).name
    transfer = Transfer(as_folder(folder, pathlib.Path(place, name)), size, cache_dir)
    data = transfer.data
    per_image = f"features {1000 * transfer.seconds_per_image:.0f} ms an image"
    for count in COUNTS:
        chosen = {seed: draw(data.train_y, count, seed) for seed in range(1, max(draws, scratch_draws) + 1)}
        label = f"{count or 'all'} of each class" if count else f"all {len(data.train_y):,} images"
        measured = {"transfer": [transfer.accuracy(chosen[seed], seed) for seed in range(1, draws + 1)]}
        if scratch_draws:
            measured["from scratch"] = [
                from_scratch(run, data, chosen[seed], seed, pathlib.Path(place, name + "_draws"))
                for seed in range(1, scratch_draws + 1)
            ]
        for method, pairs in measured.items():
            accuracies, seconds = zip(*pairs)
            summary = summarize(dict(enumerate(accuracies)))
            low, high = summary.get("mean_interval", (summary["mean"],) * 2)
            note = f"mean {summary['mean']:.1%}, 95% interval {low:.1%} to {high:.1%}; {np.median(seconds):.1f} s"
            note += f" and {per_image}" if method == "transfer" else ""
            print(f"  {name}, {label}, {method}: {note}", flush=True)
            yield f"{name}, {label}, {method}", [100 * accuracy for accuracy in accuracies], note
