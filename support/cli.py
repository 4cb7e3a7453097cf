"""The command line that the three scripts share. Nothing heavy is imported, so --help answers at once."""

import argparse
import contextlib
import math
import os
import pathlib
import re

from support import distribution, startup
from support.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What --weights offers beside files; each script offers some of these.
WEIGHTS_HELP = {
    "synthetic": "synthetic, which come with the project and were trained on SYNTHETIC images alone",
    "random": "random, to start untrained",
    "imagenet": "imagenet, which Keras downloads once (94 MB)",
}

# Enough epochs for every stage of every script, so that a dry run goes through all of them.
DRY_RUN_EPOCHS = 4


def integer(low, high=None):
    """Return an argparse type: integers from `low` to `high`, both included."""

    def convert(text):
        if not re.fullmatch(r"\s*[+-]?\d+\s*", text) or int(text) < low or (high is not None and int(text) > high):
            limits = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected an integer {limits}. Received: {text!r}")
        return int(text)

    return convert


def positive_number(text):
    """argparse type: finite numbers above 0."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if math.isfinite(number) and number > 0:
            return number
    raise argparse.ArgumentTypeError(f"expected a number above 0. Received: {text!r}")


def existing_folder(text):
    """argparse type: the path of a folder that exists."""
    path = pathlib.Path(text)
    if not path.is_dir():
        found = "which is not a folder" if path.exists() else "which does not exist"
        raise argparse.ArgumentTypeError(f"expected a folder that exists. Received: {text!r}, {found}")
    return path


def crop(text):
    """argparse type: "auto", "center", "stretch", or a square as three integers: left, top and side in pixels."""
    if text in ("auto", "center", "stretch"):
        return text
    if not re.fullmatch(r"\d+,\d+,0*[1-9]\d*", text):
        expected = "auto, center, stretch, or X,Y,SIZE: left edge, top edge and side of a square in pixels"
        raise argparse.ArgumentTypeError(f"expected {expected}. Received: {text!r}")
    return tuple(map(int, text.split(",")))


def fold(text):
    """argparse type: "I/K", fold I of K, counted from 1."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not (1 <= number <= count and 2 <= count <= 1000):
        expected = "I/K, such as 2/5: the second of five folds"
        raise argparse.ArgumentTypeError(f"expected {expected}. Received: {text!r}")
    return f"{number}/{count}"


def weights_source(names):
    """Return an argparse type: one of the names, or the path of a file that exists."""

    def convert(text):
        path = pathlib.Path(text)
        if text not in names and not path.is_file():
            found = "which is not a file" if path.exists() else "which does not exist"
            raise argparse.ArgumentTypeError(f"expected {', '.join(names)} or a file. Received: {text!r}, {found}")
        return text if text in names else path

    return convert


class ScriptParser(argparse.ArgumentParser):
    """The parser of the options that all three scripts have; a script may add its own.

    Args:
        description: str, the script's docstring, shown by --help.
        script: str, the script's name without ".py", which names the output folder.
        epochs, batch_size, learning_rate: the script's defaults.
        weights: tuple of str, what --weights offers beside a file; the first one is the default.
    """

    def __init__(self, description, script, *, epochs, batch_size, learning_rate, weights=("random",)):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(f"{script}.py", description=description, allow_abbrev=False, formatter_class=formatter)
        self.default_weights = weights[0]
        yes_or_no = argparse.BooleanOptionalAction
        # fmt: off
        add = self.add_argument_group("data").add_argument
        add("--data", choices=("auto", "real", "synthetic"), default="auto",
            help="auto: the photographs if they are there, else the SYNTHETIC set (default: auto)")
        add("--data-dir", type=existing_folder, metavar="DIR",
            help="folder with the two .h5 files (default: datasets/ beside the script), or with one subfolder of "
                 "images for each class")
        add = self.add_argument_group("training").add_argument
        add("--weights", type=weights_source(weights), metavar=f"{{{','.join(weights)},FILE}}",
            help=f"initial weights: {'; '.join(WEIGHTS_HELP[name] for name in weights)}; or a file, .keras or "
                 f".weights.h5 (default: {weights[0]})")
        add("--pretrain", action="store_true",
            help="start from random weights, and train on many SYNTHETIC images first")
        add("--epochs", type=integer(1), default=epochs, metavar="N",
            help=f"number of epochs, not counting pre-training; an epoch is as many images as there are to train on "
                 f"(happy_sequential.py: at least 540), even in a stage that adds SYNTHETIC images (default: {epochs})")
        add("--batch-size", type=integer(1), default=batch_size, metavar="N",
            help=f"images per training step, of all devices together (default: {batch_size})")
        add("--learning-rate", type=positive_number, default=learning_rate, metavar="RATE",
            help=f"the highest learning rate, which decays to 0 along a cosine (default: {learning_rate})")
        add("--seed", type=integer(0, 2**32 - 1), default=1, metavar="N",
            help="fixes the split, the order, the augmentation and the initial weights (default: 1)")
        add("--mix-synthetic", action=yes_or_no, default=True,
            help="add SYNTHETIC images to the photographs for a part of the training or all of it (default: yes)")
        add("--rendered", dest="mix_synthetic", action=yes_or_no, help=argparse.SUPPRESS)  # its former name
        add("--class-weights", action=yes_or_no, default=True,
            help="let a rare class count for more in the loss, if the largest class has more than 1.5 times as many "
                 "images as the smallest (default: yes)")
        add("--mixed-precision", action=yes_or_no, default=None,
            help="compute in 16 bits (bfloat16) with 32-bit weights (default: where it is faster; "
                 f"{'yes' if startup.supports_bfloat16() else 'no'} with TensorFlow on this machine)")
        add("--seeds", type=integer(1, 1000), default=1, metavar="N",
            help="repeat the whole run with N seeds, starting at --seed; print mean, spread and interval")
        add("--folds", type=integer(1, 1000), default=1, metavar="K",
            help="cross-validation, for small sets: split the training set, or all images of a folder without a test "
                 "set, into K parts with equal shares of each class; K runs test on one part each and train on the "
                 "others; print a table, the mean and intervals. The test set is not used")
        add("--fold", type=fold, metavar="I/K", help="only run I of the K runs of --folds")
        add("--resume", action="store_true", help="continue an interrupted or killed run that had the same settings")
        add("--deterministic", action=yes_or_no, default=None,
            help="give the same result to the last bit on the same machine (default: yes on a CPU; no on a GPU, where "
                 "it makes some operations slower)")
        add("--distribute", action="store_true",
            help="share each batch among all GPUs of this machine (for several machines see docs/distribution.md)")
        add("--dry-run", action="store_true",
            help="go through every step with a few images and 4 epochs, to check that everything works")
        add = self.add_argument_group("output").add_argument
        add("--output-dir", type=pathlib.Path, default=ROOT / "outputs" / script, metavar="DIR",
            help=f"where everything is saved (default: outputs/{script}/ beside the script)")
        add("--cache-dir", type=pathlib.Path, metavar="DIR",
            help="where images of your own are kept decoded (default: cache/ in the output folder)")
        add("--show", action="store_true", help="also open the figures at the end")
        add("--tensorboard", action="store_true", help="log curves and figures for TensorBoard")
        trained = self.add_argument_group("with a trained model, instead of training")
        add = trained.add_mutually_exclusive_group().add_argument
        add("--predict", nargs="+", type=pathlib.Path, metavar="PATH",
            help="classify these images, and all images in these folders")
        add("--export", nargs="+", choices=("onnx", "saved_model", "litert", "web"),
            help="export the model for other programs, and compare its outputs; litert also writes a model that "
                 "computes in 8-bit integers, and compares its accuracy on the run's test set; web writes a page that "
                 "runs it in a browser")
        add = trained.add_argument
        add("--crop", type=crop, default="auto", metavar="{auto,center,stretch,X,Y,SIZE}",
            help="the part of an image to use: a square around the hand or the face, if one is found; the "
                 "largest square in the middle; all of it, squeezed into a square; or a square given in pixels "
                 "(default: auto; for classes of your own, that is the middle)")
        add("--tta", action="store_true", help="average the predictions for ten crops of each image")
        add("--explain", action="store_true", help="save heatmaps of what led to the prediction (Grad-CAM)")
        # fmt: on
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")

    def parse_args(self, args=None, namespace=None):
        args = super().parse_args(args, namespace)
        args.cache_dir = args.cache_dir or args.output_dir / "cache"
        if args.dry_run:
            args.epochs = DRY_RUN_EPOCHS
        options = ("seeds", args.seeds > 1), ("folds", args.folds > 1), ("fold", args.fold)
        repeats = [f"--{name} {getattr(args, name)}" for name, given in options if given]
        trained = "--predict" if args.predict else "--export" if args.export else ""
        if repeats and trained:
            expected = f"{repeats[0].split()[0]} is for training: leave it out to use a trained model"
            raise InputError(f"{expected}. Received: {repeats[0]} and {trained}")
        if args.folds > 1 and len(repeats) > 1:
            expected = "--folds trains once for each fold, with one seed: give no other option that repeats or splits"
            raise InputError(f"{expected}. Received: {' '.join(repeats)}")
        if args.seed + args.seeds > 2**32:
            expected = "--seeds counts up from --seed, and the last seed must be below 2**32 as well"
            raise InputError(f"{expected}. Received: --seed {args.seed} --seeds {args.seeds}")
        if args.pretrain and args.weights not in (None, "random"):
            self.error(
                f"--pretrain starts from random weights: leave --weights out. Received: --weights {args.weights}"
            )
        if args.weights is None:
            args.weights = "random" if args.pretrain else self.default_weights
        if args.predict or args.export:
            args.mixed_precision = False
        return args


def run_several(args):
    """Run the script once for each of --seeds seeds or --folds folds; see `support.seeds`."""
    if distribution.several_processes():
        expected = (
            "--seeds and --folds start runs of their own: leave them out, or train each --seed or --fold by itself"
        )
        raise InputError(f"{expected}. Received: several processes")
    from support import seeds

    return seeds.run_folds(args) if args.folds > 1 else seeds.run_seeds(args)


def predict(args, script, class_names, network=None):
    """Answer for the images of --predict; see `support.predict`."""
    # NumPy computes networks this small fastest in one thread; it reads this when it is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from support import predict

    return predict.predict(args, script, class_names, network, lambda: start_keras(args))


def start_keras(args, rewrite_graph=True):
    """Start Keras as the options say, settle those that depend on the device, and return the device in words.

    Models built from then on are distributed over several devices, if that was asked for.
    """
    train = not (args.predict or args.export)
    if args.export:  # Keras converts to ONNX and LiteRT on TensorFlow only; the model file is the same on both backends
        os.environ["KERAS_BACKEND"] = "tensorflow"
    device, args.deterministic, args.mixed_precision = startup.start_keras(
        args.seed, args.mixed_precision, args.deterministic, args.show, rewrite_graph, train
    )
    if not train:
        return device
    count = distribution.start(args.distribute, args.batch_size)
    if args.distribute or count > 1:
        print(f"Distributed over {count} device{'s' * (count > 1)}")
    args.output_dir = distribution.output_folder(args.output_dir)
    return device
