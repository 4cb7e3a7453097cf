"""A training run: its settings, its folder, its checkpoint, and the files it leaves behind."""

import contextlib
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
import zipfile

import keras
import numpy as np
from PIL import Image

from basics import errors, signals
from basics.errors import InputError, NothingToDo, first_line, require
from basics.files import atomic_write, csv_table, sha256, write_json
from datasets import NEAR_DUPLICATES
from support.evaluation.calibration import calibration_error, undo_temperature
from support.evaluation.figures import show_figures
from support.evaluation.near_duplicates import find_near_duplicates
from support.evaluation.ood import distances_to_training, feature_bank, knn_distance, ood_threshold
from support.evaluation.outputs import features, logits, softmax
from support.evaluation.report import write_report
from support.evaluation.results import NOT_SURE_BELOW, certainty, doubts, percentage
from support.training import distribution, efficientnet_lite
from support.training.checkpoint import Checkpoint, Interrupted, SignalCheck, TimeLeft, generators
from support.training.fast_layers import accelerate, restore
from support.training.pretrained import weights_file
from support.training.run_folder import (
    CHECKPOINT,
    RESULT_FILES,
    TEST_PREDICTIONS,
    archive,
    check_dry_run,
    claim,
    is_finished,
    make_room,
    resumable,
    was_interrupted,
)

# The options that identify a run: others change neither the weights nor the predictions, although --not-sure-below
# changes how many of these count as sure. A script's own options are added.
SETTINGS = """weights epochs fine_tune batch_size learning_rate seed fold group_by flip mix_synthetic class_weights
    mixed_precision deterministic distribute dry_run""".split()

# With fewer images of one's own, a network that has seen millions of others knows more (docs/transfer.md).
FEW_IMAGES = 2000


class Run:
    """A training run, which owns the output folder.

    Making it only reads: the folder is created, locked and written to when the training begins, so that an option that
    is refused before leaves an earlier model where it is.

    Args:
        args: the parsed command line, from `support.cli.start_script`.
        data: `datasets.loading.Dataset`.

    Attributes:
        folder: `pathlib.Path`, where the results go.
        history: dict of lists, the metrics of every epoch so far.
        schedule: list of the trained rows of the schedule: name, first and last epoch, counted from 1.
        callbacks, verbose: what `model.fit` needs inside `training`; a log file gets lines instead of progress bars.
        examples_per_epoch: int, the number of images in an epoch.
        interrupted: bool, whether Ctrl-C or SIGTERM ended the training.

    Raises InputError: the folder cannot be used, or --resume does not fit what is in it.
    Raises NothingToDo: --resume finds a finished run.
    """

    def __init__(self, args, data):
        self.args, self.data, self.folder = args, data, args.output_dir
        if data.kind == "folder" and self.folder.resolve().is_relative_to(data.source.train.resolve()):
            problem = f"The results in {self.folder} would become a class of {data.source.train}"
            raise InputError(problem, "Choose a folder outside it with --output-dir")
        self.settings = _settings(args, data)
        self.history, self.schedule, self.callbacks, self.examples_per_epoch = {}, [], [], 0
        self.verbose = 1 if sys.stdout.isatty() else 2
        self.interrupted, self.train_seconds, self.moved = False, 0.0, None
        self._checkpoint = None  # the state to restore before the first step
        self._bank = self._ood_threshold = None  # what tells unfamiliar images
        self._not_sure_below = NOT_SURE_BELOW if args.not_sure_below is None else args.not_sure_below
        self._none = None
        distribution.check_same(self.settings)
        if distribution.broadcast(args.resume and is_finished(self.folder, self.settings)):
            raise NothingToDo(f"The run in {self.folder} is finished: there is nothing to resume")
        if args.resume:
            distribution.broadcast_file(self.folder / CHECKPOINT)
            self._checkpoint = resumable(self.folder, self.settings)
        if self._checkpoint:
            self.history = self._checkpoint["history"]
            self.train_seconds = self._checkpoint.get("seconds", 0.0)
        errors.resumable = self._checkpoint is not None
        few = data.kind == "folder" and len(data.train_x) < FEW_IMAGES
        if few and args.weights in ("random", "synthetic"):
            print(f"With fewer than {FEW_IMAGES:,} images, try transfer learning, which takes seconds: --weights lite0")

    @property
    def epochs_done(self):
        return len(self.history.get("loss", []))

    @contextlib.contextmanager
    def training(self, model, batches):
        """Make a `fit` in the `with` block safe and fast; the model must be compiled.

        A checkpoint is saved after every epoch, --resume continues from it, and Ctrl-C or SIGTERM ends the training,
        but not the run. Keras's layers are exchanged for faster ones until `finish_training` puts them back. A second
        block continues after the epochs of the first, with another optimizer, other layers frozen, or another model.

        Args:
            model: compiled Keras model.
            batches: `support.training.batches.Batches`.

        Raises InputError: the folder cannot be used, a dry run would move a model out of it, or a checkpoint cannot be
            read or written.
        Raises KeyboardInterrupt: before the first epoch was finished.
        """
        if self.args.dry_run:
            check_dry_run(self.folder)
        claim(self.folder, seconds=0)
        distribution.synchronize(model)
        accelerate(model)
        build_variables(model, batches.example)  # first, or Keras would not restore the optimizer's state
        if self._checkpoint and batches.first_epoch < self.epochs_done <= batches.last_epoch:
            self._restore(model)
        self.examples_per_epoch = batches.examples_per_epoch
        self.schedule += [] if self.interrupted else batches.rows
        started = time.perf_counter() - self.train_seconds
        checkpoint = Checkpoint(self.folder / CHECKPOINT, self.settings, self.history, self._make_room, started)
        callbacks = [SignalCheck(), checkpoint, TimeLeft(), *self._tensorboard()]
        self.callbacks = [Interrupted()] if self.interrupted else callbacks
        print(f"\n{batches}")
        if batches.first_epoch < self.epochs_done <= batches.last_epoch:
            print(f"Resuming after epoch {self.epochs_done} of {batches.last_epoch}")
        try:
            try:
                yield
            finally:
                signals.release()
        except InputError:
            print()  # after the progress bar
            raise
        except KeyboardInterrupt:
            if not self.history or distribution.rank().processes > 1:
                raise
            if not self.interrupted:
                self._interrupt(model)
        self.train_seconds = time.perf_counter() - started

    def _make_room(self):
        """Archive an earlier run, once."""
        if self.moved is None and distribution.rank().process == 0:
            self.moved = make_room(self.folder, self.settings, resumed=self.epochs_done > 0)

    def _restore(self, model):
        """Load the weights, the optimizer's state and the generators' from the checkpoint."""
        path = self.folder / CHECKPOINT
        try:
            model.load_weights(path)
            for variable, state in zip(generators(model), self._checkpoint["rng_state"]):
                variable.assign(state)
        except Exception as error:  # h5py and Keras raise many types for a damaged file
            fix = "Drop --resume to start again"
            raise InputError(f"{path} is not a checkpoint of this network: {first_line(error)}", fix) from None

    def _tensorboard(self):
        """Return the callbacks that log for TensorBoard, if that is wanted."""
        if not self.args.tensorboard:
            return []
        require("tensorboard", "--tensorboard", "tensorboard>=2.20,<2.22")
        return [keras.callbacks.LambdaCallback(on_epoch_end=self._log_epoch)]

    def _log_epoch(self, epoch, logs):
        """Add the metrics of an epoch to TensorBoard's log."""
        import tensorflow as tf

        folder = self.folder / "tensorboard"
        if epoch == 0:  # an earlier run's log would appear as a second curve
            shutil.rmtree(folder, ignore_errors=True)
        for part, prefix in ("train", ""), ("validation", "val_"):
            with tf.summary.create_file_writer(str(folder / part)).as_default():
                for metric in "loss", "accuracy":
                    tf.summary.scalar(f"epoch_{metric}", logs[prefix + metric], step=epoch)

    def _interrupt(self, model):
        """Do what Keras does at the end of `fit`, and keep an earlier, finished run of the same settings."""
        self.interrupted = True
        model.optimizer.finalize_variable_values(model.trainable_variables)
        print(f"\nInterrupted after epoch {self.epochs_done}: saving what was learned; --resume continues from here")
        if (self.folder / "metrics.json").exists() and not was_interrupted(self.folder):
            own = CHECKPOINT, "tensorboard"  # those of this run, which --resume continues
            earlier = archive(self.folder, "metrics.json", [name for name in RESULT_FILES if name not in own])
            print(f"Moved the earlier, finished run to {earlier}")

    def finish_training(self, model):
        """Return the model after the training: plain Keras, in float32, on one device.

        The other processes of a distributed run end here.

        Raises InputError: the training diverged.
        """
        restore(model)
        model = distribution.teardown(model)
        plain_float32(model)
        if self.moved:
            print(self.moved)
        print(f"Trained for {self.train_seconds:.0f} s")
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise InputError("Training diverged: some weights are NaN or infinite", "Try a lower --learning-rate")
        return model

    def save_model(self, model, temperature, train_x, validation_x):
        """Save the calibrated model, as `save_model` does, and the history of its training."""
        none = 0 if self.data.none_x is None else len(self.data.none_x)
        self._bank, self._ood_threshold = save_model(
            model,
            self.folder / "model.keras",
            temperature,
            train_x.take(np.arange(len(train_x) - none), axis=0) if none else train_x,  # they come last
            validation_x,
            classes=self.data.class_names,
            data=self.data.kind,
            seed=self.args.seed,
            dry_run=self.args.dry_run,
            not_sure_below=self._not_sure_below,
            flip=self.args.flip,
        )
        if self.data.test_none_x is not None:
            self._none = answers_to(model, self.data.test_none_x, self._bank, self._ood_threshold, self._not_sure_below)
        metrics = sorted(self.history)
        with csv_table(self.folder / "history.csv") as write_row:
            write_row(["epoch", *metrics])
            for epoch, row in enumerate(zip(*(self.history[metric] for metric in metrics)), 1):
                write_row([epoch, *row])

    def save_results(self, model, results, train_x, *, temperature, class_weight=None, synthetic=0):
        """Save metrics, the table of mistakes and the report; print how many answers are sure.

        Args:
            model: the trained Keras model.
            results: `support.evaluation.results.Results`.
            train_x: what it was trained with, without the validation split.
            temperature: float from `calibrate`.
            class_weight: dict from label to weight, or None.
            synthetic: int, the number of SYNTHETIC images mixed into the photographs.
        """
        data, folder = self.data, self.folder
        per_class = zip(data.class_names, results.precision, results.recall, results.confusion.sum(axis=1))
        packages = sorted({"tensorflow", "keras", "numpy", keras.config.backend()})
        place = data.source.train if data.kind == "folder" else data.source.train.parent
        before = undo_temperature(results.probabilities, temperature)
        near_duplicates = find_near_duplicates(train_x, data.test_x)
        distances = None if self._bank is None else distances_to_training(model, data.test_x, self._bank)
        sureness = certainty(
            results.probabilities, results.labels, distances, self._not_sure_below, self._ood_threshold
        )
        none_examples = 0 if data.none_x is None else len(data.none_x)
        metrics = {
            "settings": self.settings,
            "training": {
                "data_dir": str(place.resolve()),  # for --export, which measures on the test set again
                "schedule": [{"name": name, "epochs": [first, last]} for name, first, last in self.schedule],
                "examples_per_epoch": self.examples_per_epoch,
                "train_examples": len(train_x),
                "synthetic_examples": synthetic,
                "none_examples": none_examples,  # of the training examples; they show none of the classes
                "validation_examples": len(data.train_x) + none_examples - len(train_x)
                if data.validation_x is None
                else len(data.validation_x),
                "class_weights": class_weight and {data.class_names[y]: w for y, w in class_weight.items()},
                "parameters": model.count_params(),
                "temperature": temperature,
                "interrupted": self.interrupted,
                "seconds": round(self.train_seconds, 2),
                "device": self.args.device,
                "versions": {
                    "python": platform.python_version(),
                    **{name: importlib.import_module(name).__version__ for name in packages},
                },
            },
            "results": {
                "test_examples": len(data.test_x),
                "test_loss": results.loss,
                "test_accuracy": results.accuracy,
                "test_accuracy_interval": results.interval,
                "test_balanced_accuracy": results.balanced_accuracy,
                "calibration_error_before": calibration_error(before, results.labels),
                "calibration_error_after": calibration_error(results.probabilities, results.labels),
                "classes": [
                    {"name": name, "precision": _json_number(p), "recall": _json_number(r), "examples": int(count)}
                    for name, p, r, count in per_class
                ],
                "confusion_matrix": results.confusion.tolist(),
                "near_duplicates": near_duplicates.summary(results.labels == results.predictions),
                "certainty": sureness,
            },
        }
        sure = sureness["sure"]
        rule = f"probability of at least {percentage(self._not_sure_below)}"
        rule += "" if distances is None else ", and like the training images"
        print(f"\nSure answers: {sure['answers']:,} of {len(data.test_x):,}, {sure['wrong']:,} of them wrong ({rule})")
        if data.test_none_x is not None:
            count, not_sure = len(data.test_none_x), int(np.count_nonzero(self._none[1]))
            metrics["results"]["none"] = {"examples": count, "not_sure": not_sure}
            print(f'\nOf {count:,} test images that show none of the classes, {not_sure:,} get "not sure"')
        write_json(metrics, folder / "metrics.json")
        save_mistakes(data, results, folder / "mistakes.csv", self.args.fold)
        if data.kind == "folder" and self.args.fold:
            none = () if self._none is None else self._none[0]
            save_predictions(data, results, none, folder / TEST_PREDICTIONS)
        write_report(folder, metrics, self.history, model, results, train_x, data, near_duplicates, sys.argv)
        if self.args.tensorboard:
            self._log_figures()
        if not self.interrupted:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            errors.resumable = False

    def say_what_next(self):
        """Print what to look at now; return the exit code, not 0 if Ctrl-C or SIGTERM ended the training."""
        folder, script = self.folder, self.args.script
        place = "" if self.args.default_output_dir else f" --output-dir {shlex.quote(str(folder))}"
        print(f"\nSaved in {folder}. Look at these next:")
        print("  report.html           the whole run on one page; open it in a browser")
        print("  learning_curves.png   how the network learned, epoch by epoch")
        if (folder / "mistakes.png").exists():
            print("  mistakes.png          the test images that it got wrong")
        if not self.args.dry_run:
            print(f"Try a photo of your own: python {script}.py --predict photo.jpg{place}")
            if self.data.kind == "synthetic":
                print(
                    "Train on photographs instead of SYNTHETIC images: python -m datasets.download, then run this again"
                )
        if self.args.show:
            show_figures()
        return signals.exit_code() if self.interrupted else 0

    def _log_figures(self):
        """Add saved figures to TensorBoard's log, and print how to look at it."""
        import tensorflow as tf

        folder = self.folder / "tensorboard"
        with tf.summary.create_file_writer(str(folder / "figures")).as_default():
            for name in ("examples", "confusion_matrix"):
                with Image.open(self.folder / f"{name}.png") as figure:
                    tf.summary.image(name, np.asarray(figure.convert("RGB"))[None], step=0)
        print(f"Look at the log with `tensorboard --logdir {folder}`")


def _settings(args, data):
    """Return what identifies a run, JSON-serializable."""
    settings = {key: getattr(args, key) for key in (*SETTINGS, *args.own_options)}
    if data.kind == "folder" and not args.group_by:
        settings["group_by"] = NEAR_DUPLICATES
    if args.none:
        settings["none"] = args.none
    if args.weights == "lite0":
        settings["weights_sha256"] = efficientnet_lite.SHA256
    elif args.weights not in ("random", "imagenet"):
        path = weights_file(args.weights, args.script)
        name = args.weights if args.weights == "synthetic" else path.name
        settings.update(weights=name, weights_sha256=sha256(path))
    backend = keras.config.backend()
    return {
        "script": args.script,
        "data": data.kind,
        "data_files": data.hashes,
        "image_size": data.image_size,
        "backend": backend,
        **settings,
    }


def plain_float32(model):
    """Let a trained model compute in float32.

    Gradients are noisy anyway, but a prediction in 16 bits would differ between one image and a batch.
    """
    for layer in model.layers:
        layer.dtype_policy = "float32"
    model.make_predict_function(force=True)
    model.make_test_function(force=True)


def save_model(
    model,
    path,
    temperature,
    train_x,
    validation_x,
    *,
    classes,
    data,
    seed,
    dry_run,
    not_sure_below=NOT_SURE_BELOW,
    flip=True,
):
    """Save a calibrated model with what it needs to be "not sure".

    Class names, both thresholds and the feature bank are added to the `.keras` file, a zip archive: Keras ignores them.

    Args:
        model: the calibrated Keras model.
        path: the `.keras` file to write.
        temperature: float from `calibrate`.
        train_x, validation_x: uint8 arrays (m, height, width, 3), or `ImageFiles`.
        classes: tuple of str, the class names.
        data: str, the kind of the data: "real", "synthetic" or "folder".
        seed: int, fixes which training images are kept as features.
        dry_run: bool, whether the model has learned next to nothing.
        not_sure_below: float, 0 to 1, the least probability of a sure answer.
        flip: bool, whether a mirrored image shows the same.

    Returns: the feature bank, float16 (t, n), and the OOD threshold, a float.
    """
    bank = feature_bank(model, train_x, seed)
    threshold = ood_threshold(model, validation_x, bank)
    metadata = {
        "classes": classes,
        "data": data,
        "dry_run": dry_run,
        "temperature": temperature,
        "ood_threshold": threshold,
        "not_sure_below": not_sure_below,
    }
    if not flip:
        metadata["flip"] = False
    with atomic_write(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as file:
            file.writestr("run_metadata.json", json.dumps(metadata, indent=2))
            with file.open("feature_bank.npy", "w") as stream:
                np.save(stream, bank, allow_pickle=False)
    return bank, threshold


def answers_to(model, x, bank, threshold, not_sure_below):
    """Return the probabilities (m, k) for images, and for which the answer is "not sure", bool (m,).

    Args:
        model: the calibrated Keras model.
        x: uint8 array (m, height, width, 3), or `ImageFiles`.
        bank, threshold: from `save_model`.
        not_sure_below: float, 0 to 1, the least probability of a sure answer.
    """
    found = features(model, x)
    probabilities = softmax(logits(model, found))
    reasons = doubts(probabilities, knn_distance(found, bank), not_sure_below, threshold)
    return probabilities, np.array([bool(reason) for reason in reasons])


def save_mistakes(data, results, path, fold=None):
    """Save a table of the test images that were classified wrongly, in the order of the figure.

    `fold` is that of --fold, whose test images are those of the training file; None: there is a test file.
    """
    names = np.arange(len(results.labels)) if data.test_names is None else data.test_names
    with csv_table(path) as write_row:
        which = "file" if data.kind == "folder" else f"index in the {'training' if fold else 'test'} set"
        write_row([which, "true class", "predicted class", *(f"probability {n}" for n in data.class_names)])
        for index in results.mistakes:
            classes = data.class_names[results.labels[index]], data.class_names[results.predictions[index]]
            probabilities = (f"{value:.6f}" for value in results.probabilities[index])
            write_row([str(names[index]), *classes, *probabilities])


def save_predictions(data, results, none, path):
    """Save what a run answers to the images of its fold, for the review of all of them.

    Args:
        data: `datasets.loading.Dataset` of a folder.
        results: `support.evaluation.results.Results`.
        none: the probabilities of its `test_none_x`, (n, k) or empty.
        path: the JSON file to write.
    """
    others = [] if data.test_none_x is None else data.test_none_x.paths
    predictions = {
        "classes": list(data.class_names),
        "files": [os.path.abspath(name) for name in (*data.test_names, *others)],
        "labels": [*results.labels.tolist(), *[len(data.class_names)] * len(others)],
        "probabilities": [[round(float(value), 6) for value in row] for row in (*results.probabilities, *none)],
    }
    write_json(predictions, path)


def build_variables(model, y):
    """Create the variables of optimizer and metrics before the first step.

    Keras would create them inside that step, and TensorFlow would trace it twice: for ResNet50 half of the wait.
    """
    model.optimizer.build(model.trainable_variables)
    model.compute_metrics(None, y, y)
    model.reset_metrics()


def _json_number(value):
    """Return None for NaN, which JSON lacks."""
    return None if np.isnan(value) else float(value)
