"""The command line that the three scripts share: their options, and everything but training.

Nothing heavy is imported here, so --help answers at once and --predict does without TensorFlow.
"""

import argparse
import contextlib
import difflib
import importlib.util
import math
import os
import pathlib
import re
import sys
import warnings

from basics.errors import InputError, one_line_errors
from datasets import GROUP_HELP, GROUPS, IMAGE_SIZE, IMAGE_SIZE_HELP, IMAGE_SIZES, NO_CLASS_HELP
from support import startup
from support.training import distribution

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What --weights offers beside files; each script offers some of these.
WEIGHTS_HELP = {
    "synthetic": "synthetic, which ship with the project and were trained only on SYNTHETIC images",
    "random": "random, to start untrained",
    "imagenet": "imagenet, which Keras downloads once (94 MB): transfer learning",
    "lite0": "lite0, a small network that knows ImageNet, for images of your own: transfer learning",
}

# ImageNet's weights were trained on images of this size, and know larger things best.
IMAGENET_SIZE = 224

TRANSFER_SCRIPT = "signs_resnet50.py"

# Enough epochs for every row of every script's schedule, so that a dry run goes through all of them.
DRY_RUN_EPOCHS = 4

# The options that change something without a training, by name.
FOR_ALL = {"output_dir", "dry_run", "seed", "debug", "not_sure_below"}
USED_BY = {
    "--predict": FOR_ALL | {"predict", "weights", "show", "crop", "tta", "explain"},
    "--export": FOR_ALL | {"export", "weights", "data", "data_dir", "group_by", "none", "cache_dir"},
}

VERSION = "1.0"

# The oldest and the newest Python that the tests have run on, and the packages of requirements.txt as modules.
PYTHONS = (3, 11), (3, 13)
PACKAGES = "tensorflow keras numpy h5py matplotlib scipy PIL filelock jinja2 pooch requests tqdm".split()


def integer(low, high=None):
    """Return an argparse type: integers from `low` to `high`, both included."""

    def convert(text):
        if not re.fullmatch(r"\s*[+-]?\d+\s*", text) or int(text) < low or (high is not None and int(text) > high):
            limits = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be an integer {limits} (got {text!r})")
        return int(text)

    return convert


def positive_number(text):
    """argparse type: finite numbers above 0."""
    with contextlib.suppress(ValueError):
        number = float(text)
        if math.isfinite(number) and number > 0:
            return number
    raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")


def probability(text):
    """argparse type: a number from 0 to 1, or a percentage such as 80%."""
    with contextlib.suppress(ValueError):
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= number <= 1:
            return number
    forms = "a probability from 0 to 1, such as 0.8, or a percentage, such as 80%"
    raise argparse.ArgumentTypeError(f"must be {forms} (got {text!r})")


def some_path(text):
    """argparse type: any path but an empty one, as of a shell variable that is not set: it would be this folder."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty: name a file or a folder")
    return pathlib.Path(text)


def existing_folder(text):
    """argparse type: the path of a folder that exists."""
    path = some_path(text)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise argparse.ArgumentTypeError(f"must be an existing folder ({text!r} {problem})")
    return path


def crop(text):
    """argparse type: "auto", "center", "stretch", or a square as three integers: left, top and side in pixels."""
    if text in ("auto", "center", "stretch"):
        return text
    if not re.fullmatch(r"\d+,\d+,0*[1-9]\d*", text):
        forms = "auto, center, stretch, or X,Y,SIZE: the left edge, top edge and side of a square in pixels"
        raise argparse.ArgumentTypeError(f"must be {forms} (got {text!r})")
    return tuple(map(int, text.split(",")))


def fold(text):
    """argparse type: "I/K", fold I of K, counted from 1."""
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not (1 <= number <= count and 2 <= count <= 1000):
        raise argparse.ArgumentTypeError(f"must be I/K, such as 2/5 for the second of five folds (got {text!r})")
    return f"{number}/{count}"


def weights_source(names):
    """Return an argparse type: one of the names, or the path of a file that exists."""

    def convert(text):
        path = pathlib.Path(text)
        if text not in names and not path.is_file():
            problem = "is not a file" if path.exists() else "does not exist"
            if text in WEIGHTS_HELP:
                problem = f"is for {'the two small networks' if text == 'synthetic' else TRANSFER_SCRIPT}"
            raise argparse.ArgumentTypeError(f"must be {', '.join(names)} or a file ({text!r} {problem})")
        return text if text in names else path

    return convert


class ScriptParser(argparse.ArgumentParser):
    """The parser of the options that all three scripts have.

    Args:
        description: str, the script's docstring, shown by --help.
        script: str, the script's name without ".py", which names the output folder.
        epochs, batch_size, learning_rate: the script's defaults.
        synthetic_epochs: the default of --epochs for the SYNTHETIC set; None: `epochs`.
        transfer_epochs: the default of --epochs for transfer learning; None: the script leaves that to another.
        weights: tuple of str, what --weights offers beside a file; the first one is the default for photographs. On
            the SYNTHETIC set, training starts from random weights.
    """

    def __init__(
        self,
        description,
        script,
        *,
        epochs,
        batch_size,
        learning_rate,
        synthetic_epochs=None,
        transfer_epochs=None,
        weights=("random",),
    ):
        super().__init__(
            f"{script}.py",
            usage="%(prog)s [options]",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.script = script
        self.transfer_epochs = transfer_epochs
        self.defaults = {False: (epochs, weights[0]), True: (synthetic_epochs or epochs, "random")}
        default_epochs = f"{epochs}; {synthetic_epochs} for the SYNTHETIC set" if synthetic_epochs else epochs
        if transfer_epochs:
            default_epochs = f"{default_epochs}; {transfer_epochs} of the last layer for transfer learning"
        default_weights = "random" if weights[0] == "random" else f"{weights[0]}; random for the SYNTHETIC set"
        yes_or_no = argparse.BooleanOptionalAction
        # fmt: off
        add = self.add_argument_group("data").add_argument
        add("--data", choices=("auto", "real", "synthetic"), default="auto",
            help="auto: the photographs if they are there, else the SYNTHETIC set (default: auto)")
        add("--data-dir", type=existing_folder, metavar="DIR",
            help="folder with the two .h5 files (default: datasets/ beside the script), or with one subfolder of "
                 "images for each class")
        add("--group-by", choices=GROUPS, help=GROUP_HELP)
        add("--none", metavar="NAME", help=NO_CLASS_HELP)
        add("--image-size", type=int, choices=IMAGE_SIZES, metavar="N",
            help=IMAGE_SIZE_HELP.replace("64)", f"64; {IMAGENET_SIZE} for ImageNet's weights)"))
        add = self.add_argument_group("training").add_argument
        add("--weights", type=weights_source(weights), metavar=f"{{{','.join(weights)},FILE}}",
            help=f"initial weights: {'; '.join(WEIGHTS_HELP[name] for name in weights)}; or a file, .keras or "
                 f".weights.h5 (default: {default_weights})")
        add("--epochs", type=integer(1), metavar="N",
            help=f"training epochs (default: {default_epochs})")
        add("--fine-tune", type=integer(0), default=0, metavar="N",
            help="transfer learning: afterwards, train the last stage for N epochs, in small steps (default: 0)")
        add("--batch-size", type=integer(1), default=batch_size, metavar="N",
            help=f"images per training step, on all devices together (default: {batch_size})")
        add("--learning-rate", type=positive_number, default=learning_rate, metavar="RATE",
            help=f"peak learning rate; decays to 0 on a cosine schedule (default: {learning_rate})")
        add("--seed", type=integer(0, 2**32 - 1), default=1, metavar="N",
            help="fixes the split, the order, the augmentation and the initial weights (default: 1)")
        add("--mix-synthetic", action=yes_or_no, default=True,
            help="mix SYNTHETIC images into the photographs, if these are at least 600 (default: yes)")
        add("--flip", action=yes_or_no, default=True,
            help="mirror half of the training images, and half of the crops of --tta; --no-flip is for classes that a "
                 "mirror turns into others, such as letters and arrows (default: yes)")
        add("--class-weights", action=yes_or_no, default=True,
            help="let a rare class count more in the loss, if the largest class has more than 1.5 times as many "
                 "images as the smallest (default: yes)")
        add("--mixed-precision", action=yes_or_no, default=None,
            help="compute in 16 bits (bfloat16) with 32-bit weights (default: only where it is faster; "
                 f"{'on' if startup.supports_bfloat16() else 'off'} with TensorFlow on this machine)")
        add("--seeds", type=integer(1, 1000), default=1, metavar="N",
            help="train N times, with seeds from --seed on; print the mean, the spread and an interval")
        add("--folds", type=integer(1, 1000), default=1, metavar="K",
            help="K-fold cross-validation: train K times, each time testing on a different K-th of the images; print "
                 "a table, the mean and intervals. The test set is not used")
        add("--fold", type=fold, metavar="I/K", help="run only fold I of --folds K")
        add("--resume", action="store_true", help="continue an interrupted or killed run that had the same settings")
        add("--deterministic", action=yes_or_no, default=None,
            help="give bit-for-bit the same result on the same machine (default: on for a CPU; off for a GPU, where "
                 "it makes some operations slower)")
        add("--distribute", action="store_true",
            help="split each batch among all GPUs of this machine (for several machines see docs/distribution.md)")
        add("--dry-run", action="store_true",
            help=f"check that everything works: every step with a few images and {DRY_RUN_EPOCHS} epochs")
        add = self.add_argument_group("output").add_argument
        add("--output-dir", type=some_path, metavar="DIR",
            help=f"where everything is saved (default: outputs/{script}/ beside the script; of a dry run, "
                 f"outputs/dry_run/{script}/)")
        add("--cache-dir", type=some_path, metavar="DIR",
            help="cache for decoded copies of your own images (default: cache/ in the output folder)")
        add("--not-sure-below", type=probability, metavar="P",
            help="least probability of a sure answer, such as 0.8 or 80%%: below it, --predict and the live page "
                 "answer \"not sure\"; the report counts such answers (default: what the model was trained with, "
                 "or else 0.7)")
        add("--show", action="store_true", help="also open the figures at the end")
        add("--tensorboard", action="store_true", help="log curves and figures for TensorBoard")
        trained = self.add_argument_group("with a trained model, instead of training")
        add = trained.add_mutually_exclusive_group().add_argument
        add("--predict", nargs="+", type=some_path, metavar="PATH",
            help="classify these images, and all images in these folders")
        add("--export", nargs="+", choices=("onnx", "saved_model", "litert", "web"),
            help="export the model for other programs, and compare its outputs; litert also writes a model that "
                 "computes in 8-bit integers, and compares its accuracy on the run's test set; web writes a page that "
                 "runs it in a browser")
        add = trained.add_argument
        add("--crop", type=crop, default="auto", metavar="{auto,center,stretch,X,Y,SIZE}",
            help="the part of an image to use: the square that shows the hand, the face or a class of your own, if one "
                 "is found; the largest square in the middle; all of it, squeezed into a square; or a square given in "
                 "pixels (default: auto)")
        add("--tta", action="store_true", help="average the predictions for ten crops of each image")
        add("--explain", action="store_true", help="save heatmaps of what led to the prediction (Grad-CAM)")
        # fmt: on
        self.add_argument("--debug", action="store_true", help="print the traceback of an error")
        self.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._advice(unknown[0]))
        options = {action.dest: action.option_strings[0] for action in self._actions}
        given = {name: options[name] for name, value in vars(args).items() if value != self.get_default(name)}
        folder = pathlib.Path("dry_run", self.script) if args.dry_run else self.script
        args.default_output_dir = args.output_dir is None
        args.output_dir = args.output_dir or ROOT / "outputs" / folder
        args.cache_dir = args.cache_dir or args.output_dir / "cache"
        options = ("seeds", args.seeds > 1), ("folds", args.folds > 1), ("fold", args.fold)
        repeats = [f"--{name} {getattr(args, name)}" for name, given in options if given]
        trained = "--predict" if args.predict else "--export" if args.export else ""
        if repeats and trained:
            option = repeats[0].split()[0]
            raise InputError(f"{option} trains, {trained} uses a trained model", "Drop one of them")
        if args.folds > 1 and len(repeats) > 1:
            raise InputError(f"{' and '.join(repeats)} cannot be combined", "Drop one of them")
        self._check_all_used(args, given, trained)
        if args.seed + args.seeds > 2**32:
            problem = f"--seed {args.seed} --seeds {args.seeds} counts beyond 2**32 - 1"
            raise InputError(problem, "Give a smaller --seed")
        return args

    def settle_defaults(self, args, synthetic):
        """Fill in the options that were not given and depend on whether the data are SYNTHETIC."""
        epochs, weights = self.defaults[synthetic]
        args.weights = args.weights or weights
        transfer = args.weights != "random" and self.transfer_epochs
        if args.fine_tune and not transfer:
            raise InputError("--fine-tune is for transfer learning", "Add --weights lite0, or drop it")
        args.epochs = args.epochs or (DRY_RUN_EPOCHS if args.dry_run else transfer or epochs)

    def _check_all_used(self, args, given, trained):
        """Raise an InputError about an option that would be ignored.

        Args:
            args: the parsed command line.
            given: dict from the names to the options that do not have their default.
            trained: "--predict", "--export" or "".
        """
        if args.data == "synthetic" and args.data_dir:
            raise InputError("--data synthetic uses no images of --data-dir", "Drop one of them")
        if trained:
            used = USED_BY[trained]
            unused = [option for name, option in given.items() if name not in used]
            if unused:
                problem = f"{unused[0]} has no effect with {trained}, which uses a trained model"
                raise InputError(problem, "Drop it")

    def _advice(self, word):
        """Return what may be wrong with a word that the parser does not know."""
        option = word.partition("=")[0]
        if not option.startswith("-"):
            fix = f"to classify images, use --predict {word}" if pathlib.Path(word).exists() else "see --help"
            return f"unknown argument {word!r}: {fix}"
        close = difflib.get_close_matches(option, self._option_string_actions, 1)
        return f"unknown option {option}: " + (f"did you mean {close[0]}?" if close else "see --help")


def start_script(doc, script, task, *, network=None, options=(), **defaults):
    """Parse the command line of a script, and start Keras for a training.

    Whatever is no training is answered here, and ends the process: --help, --predict, --export, --seeds, --folds.

    Args:
        doc: str, the script's docstring, shown by --help.
        script: str, the path of the script.
        task: `datasets.Task`, what it trains for.
        network: str, the name of its Keras model, if it is not the script's.
        options: options of its own, a dict from their names to the arguments of `argparse`'s `add_argument`.
        defaults: see `ScriptParser`.

    Returns: `argparse.Namespace` of the options, with `script`, `task`, `network`, `own_options` (the names of the
        script's own) and `device`, the device in words.
    """
    script = pathlib.Path(script).stem
    with one_line_errors():
        parser = ScriptParser(doc, script, **defaults)
        own = [parser.add_argument(name, **keywords).dest for name, keywords in dict(options).items()]
        parser.set_defaults(script=script, task=task, network=network or script, own_options=own)
        args = parser.parse_args()
        check_environment()
        args.show = args.show or startup.in_ipython()
        startup.find_temporary_folder(args.output_dir)
        if args.weights == "lite0" and not (args.predict or args.export):
            from support.training.efficientnet_lite import require_lite0

            require_lite0()
            if not parser.transfer_epochs:
                sys.exit(hand_over(args))
        if args.seeds > 1 or args.folds > 1:
            sys.exit(run_several(args))
        if args.predict or (parser.transfer_epochs and args.weights not in (None, "random")):
            # NumPy computes matrices this small fastest in one thread; it reads this when it is imported.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if args.predict:
            from support.prediction.answers import predict

            sys.exit(predict(args))
        startup.allow_missing_locks(
            args.output_dir, args.data_dir or ROOT / "datasets", ROOT / "datasets" / "synthetic"
        )
        if args.export:
            startup.start_keras(args.seed, mixed_precision=False, train=False, backend="tensorflow")
            from support.export.formats import export  # imports TensorFlow, and Keras with it

            sys.exit(export(args))
        for name in "crop", "tta", "explain":
            if getattr(args, name) != parser.get_default(name):
                print(f"--{name} has no effect without --predict")
        from datasets.loading import check_image_size, is_synthetic_set, render_in_background

        synthetic, rendered = is_synthetic_set(task, args.data, args.data_dir)
        parser.settle_defaults(args, synthetic)
        if args.image_size is None and knows_imagenet(args.weights) and images_of_own(args):
            args.image_size = IMAGENET_SIZE
        if rendered:
            check_image_size(args.image_size, IMAGE_SIZE, "the SYNTHETIC set")
            render_in_background(task, args.dry_run)
        start_training(args)
    return args


def check_environment():
    """Raise an InputError if Python or a package of requirements.txt is not what the scripts need.

    Warnings of packages stay warnings.
    """
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        first, last = (f"{major}.{minor}" for major, minor in PYTHONS)
        raise InputError(f"Python {version[0]}.{version[1]} is not supported", f"Use Python {first} to {last}")
    found = {name: importlib.util.find_spec(name) for name in PACKAGES}
    missing = [name for name in PACKAGES if found[name] is None]
    if missing:
        fix = "Install what the scripts need with `pip install -r requirements.txt`"
        raise InputError(f"Python cannot find {', '.join(missing)}", fix)
    for name, spec in found.items():
        if spec.submodule_search_locations is None:  # every one of these packages is a folder
            raise InputError(f"Python finds {spec.origin} in place of {name}", "Rename that file, or unset PYTHONPATH")
    if any(option.startswith("e") for option in sys.warnoptions):
        warnings.simplefilter("ignore")
        print("Warnings are no errors here, whatever PYTHONWARNINGS or -W says")


def hand_over(args):
    """Let signs_resnet50.py, the lesson on transfer learning, do what these options ask for; return the exit code.

    Raises InputError: there is no folder of images, so the data are those of this script.
    """
    if not images_of_own(args):
        problem = "--weights lite0 is for classes of your own"
        raise InputError(problem, "Name a folder with one subfolder of images for each class: --data-dir FOLDER")
    from support.seeds import run_command

    print(f"Transfer learning is the lesson of {TRANSFER_SCRIPT}, which goes on from here", flush=True)
    command = [sys.executable, str(ROOT / TRANSFER_SCRIPT), *sys.argv[1:]]
    return run_command([*command, "--output-dir", str(args.output_dir)])  # argparse takes the last of a repeated option


def knows_imagenet(weights):
    """Return whether what --weights names was trained on ImageNet, or further from there."""
    if weights in ("random", "synthetic", "lite0"):
        return weights == "lite0"
    from support.training.pretrained import takes_imagenet_pixels

    return takes_imagenet_pixels(weights)


def images_of_own(args):
    """Return whether --data-dir names a folder of images, and not one with the .h5 files of the task."""
    names = [f"{part}_{args.task.name}.h5" for part in ("train", "test")]
    return args.data_dir is not None and not any((args.data_dir / name).exists() for name in names)


def run_several(args):
    """Run the script once for each of --seeds seeds or --folds folds; see `support.seeds`."""
    if distribution.several_processes():
        problem = "--seeds and --folds cannot be combined with several processes"
        raise InputError(problem, "Run each --seed or --fold separately")
    from support import seeds

    return seeds.run_folds(args) if args.folds > 1 else seeds.run_seeds(args)


def start_training(args):
    """Start Keras as the options say, and settle those that depend on the device.

    Models built from then on are distributed over several devices, if that was asked for.
    """
    args.device, args.deterministic, args.mixed_precision = startup.start_keras(
        args.seed, args.mixed_precision, args.deterministic, args.show
    )
    count = distribution.start(args.distribute, args.batch_size)
    if args.distribute or count > 1:
        print(f"Distributed over {count} device{'s' * (count > 1)}")
    args.output_dir = distribution.output_folder(args.output_dir)
