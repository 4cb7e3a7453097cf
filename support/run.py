"""A training run: its settings, its folder, its checkpoint, and the files it leaves behind."""

import csv
import importlib
import json
import platform
import shutil
import sys
import time
import warnings
import zipfile

import keras
import numpy as np
from PIL import Image

from support import distribution
from support.calibration import calibrate, plot_reliability, wrong_predictions
from support.checkpoint import Checkpoint, generators
from support.errors import INTERRUPTED, InputError, require
from support.figures import show_figures
from support.files import atomic_write, csv_table, read_json, sha256, write_json
from support.ood import feature_bank, ood_threshold
from support.output import CHECKPOINT, RESULT_FILES, archive, is_finished, prepare_output_dir, read_checkpoint
from support.pretrained import weights_file
from support.report import write_report

# The options that identify a run: others change neither the weights nor the metrics.
SETTINGS = """weights pretrain epochs batch_size learning_rate seed fold mix_synthetic class_weights mixed_precision
    deterministic distribute dry_run identity_blocks""".split()


class Run:
    """A training run. It owns the output folder: lock, checkpoint, archive of earlier results, saved files.

    Args:
        script: str, the script's name without ".py".
        args: the parsed command line.
        data: `cnn_utils.Dataset`.
        device: str, the device in words.

    Attributes:
        folder: `pathlib.Path`, where the results go.
        boundaries: list of the trained stages: name, first and last epoch, counted from 1.
        examples_per_epoch: int, the number of images in an epoch after any pre-training, whose epochs may have more.
        interrupted: bool, whether Ctrl-C ended the training.
        finished: bool, whether --resume found nothing left to do.

    Raises InputError: the folder cannot be used, or --resume does not fit what is in it.
    """

    def __init__(self, script, args, data, device):
        self.args, self.data, self.device = args, data, device
        self.history, self.interrupted, self.train_seconds, self.temperature = {}, False, 0.0, 1.0
        self.boundaries, self.examples_per_epoch, self.epochs, self.class_weight = [], 0, 0, None
        if data.kind == "folder" and args.output_dir.resolve().is_relative_to(data.source.train.resolve()):
            expected = f"--output-dir must lie outside {data.source.train}, or its figures would become a class"
            raise InputError(f"{expected}; choose another folder. Received: {args.output_dir}")
        settings = {key: getattr(args, key) for key in SETTINGS if hasattr(args, key)}
        if args.weights not in ("random", "imagenet"):
            path = weights_file(args.weights, script)
            name = args.weights if args.weights == "synthetic" else path.name
            settings.update(weights=name, weights_sha256=sha256(path))
        backend = keras.config.backend()
        self.config = {"script": script, "data": data.kind, "data_files": data.hashes, "backend": backend, **settings}
        self.folder = args.output_dir
        self.finished = distribution.share(args.resume and is_finished(self.folder, self.config))
        if self.finished:
            print(f"The run in {self.folder} is finished: there is nothing to resume")
            return
        distribution.check_same(self.config)
        if args.resume:
            distribution.share_file(self.folder / CHECKPOINT)
        prepare_output_dir(self.folder, self.config, args.resume)
        self.checkpoint = read_checkpoint(self.folder / CHECKPOINT) if args.resume else None
        if self.checkpoint:
            self.history = self.checkpoint["history"]

    @property
    def epochs_done(self):
        return len(self.history.get("loss", []))

    def fit(self, model, curriculum, validation_data, class_weight=None):
        """Train as `model.fit` does, with a checkpoint after every epoch; Ctrl-C ends the training, not the run.

        A second call continues after the epochs of the first, with another optimizer or other layers frozen.

        Args:
            model: compiled Keras model.
            curriculum: `cnn_utils.Curriculum`.
            validation_data: `tf.data.Dataset` of (images, labels).
            class_weight: as Keras's `fit` takes it, from `cnn_utils.class_weights`; not for the validation loss.

        Returns: dict of lists, the history from the first epoch on.
        Raises InputError: TensorBoard is missing, or a checkpoint cannot be read or written.
        Raises KeyboardInterrupt: before the first epoch was finished.
        """
        if self.interrupted:
            return self.history
        distribution.synchronize(model)
        self.class_weight = class_weight
        start, end = self.epochs, self.epochs + curriculum.epochs
        self.epochs, self.examples_per_epoch = end, curriculum.examples_per_epoch
        self.boundaries += [(name, start + first, start + last) for name, first, last in curriculum.boundaries]
        build_variables(model, curriculum.stages[0].y[:1])  # first, or Keras would not restore the optimizer's state
        if self.checkpoint:
            self._restore(model)
        if self.epochs_done >= end:  # killed after the training; Keras's own last step of `fit` may be missing
            model.optimizer.finalize_variable_values(model.trainable_variables)
            return self.history
        self.checkpoint = None
        print(f"\n{curriculum}")
        if self.epochs_done > start:
            print(f"Resuming after epoch {self.epochs_done} of {end}")
        started = time.perf_counter()
        try:
            dataset, steps = curriculum.dataset(self.epochs_done - start), curriculum.steps_per_epoch
            options = {"shuffle": False, "class_weight": class_weight, "callbacks": self._callbacks()}
            options |= {"initial_epoch": self.epochs_done, "epochs": end, "steps_per_epoch": steps}
            model.fit(dataset, validation_data=validation_data, **options)
        except InputError:
            print()  # after the progress bar
            raise
        except KeyboardInterrupt:
            if not self.history or distribution.place().processes > 1:
                raise
            self._interrupt(model)
        self.train_seconds += time.perf_counter() - started
        return self.history

    def _restore(self, model):
        """Load the weights, the optimizer's state and the generators' from the checkpoint."""
        path = self.folder / CHECKPOINT
        try:
            with warnings.catch_warnings():
                # After the end of a phase, the checkpoint's optimizer is another one: only the weights fit.
                warnings.simplefilter("ignore")
                model.load_weights(path)
            for variable, state in zip(generators(model), self.checkpoint["rng_state"]):
                variable.assign(state)
        except Exception as error:  # h5py and Keras raise many types for a damaged file
            reason = (str(error).splitlines() or [""])[0][:200]
            expected = f"{path} must be the checkpoint of this network; leave --resume out to start again"
            raise InputError(f"{expected}. Received: {reason}") from None

    def _callbacks(self):
        """Return the callbacks of `fit`: the checkpoint, and TensorBoard's log if it is wanted."""
        callbacks = [Checkpoint(self.folder / CHECKPOINT, self.config, self.history)]
        if self.args.tensorboard:
            require("tensorboard", "--tensorboard", "tensorboard>=2.20,<2.22")
            if not self.history:  # an earlier run's log would appear as a second curve
                shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            callbacks.append(keras.callbacks.TensorBoard(self.folder / "tensorboard", write_graph=False))
        return callbacks

    def _interrupt(self, model):
        """Do what Keras does at the end of `fit`, and keep an earlier, finished run of the same settings."""
        self.interrupted = True
        model.optimizer.finalize_variable_values(model.trainable_variables)
        print(f"\nInterrupted after {self.epochs_done} epochs: saving what was learnt; --resume continues from here")
        metrics = read_json(self.folder / "metrics.json")
        if metrics and not metrics.get("interrupted"):
            earlier = archive(self.folder, "metrics.json", [name for name in RESULT_FILES if name != CHECKPOINT])
            if (earlier / "examples.png").exists():
                shutil.copy2(earlier / "examples.png", self.folder)
            print(f"Moved the earlier, finished run to {earlier}")

    def save_model(self, model, train_x, validation_x, validation_y):
        """Calibrate the trained model on the validation split and save it with what it needs to say "not sure".

        Class names, OOD threshold and feature bank are added to the `.keras` file, a zip archive: Keras ignores them.
        A distributed run continues on one device; the other processes end here.

        Args:
            model: the trained Keras model; its last layer is divided by the temperature.
            train_x, validation_x: uint8 arrays (m, height, width, 3), or `ImageFiles`.
            validation_y: labels as the loss wants them.

        Returns: the model as it was saved.
        """
        model = distribution.leave(model)
        # Gradients are noisy anyway, but a prediction in 16 bits would differ between one image and a batch.
        for layer in model.layers:
            layer.dtype_policy = "float32"
        model.make_predict_function(force=True)
        print(f"Trained for {self.train_seconds:.0f} s")
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            expected = "expected finite weights; try a lower --learning-rate"
            raise InputError(f"The training diverged: {expected}. Received: NaN or infinity in the weights")
        self.temperature = calibrate(model, validation_x, validation_y)
        bank = feature_bank(model, train_x, self.args.seed)
        notes = {"classes": self.data.class_names, "data": self.data.kind, "dry_run": self.args.dry_run}
        notes |= {"temperature": self.temperature, "usual": ood_threshold(model, validation_x, bank)}
        with atomic_write(self.folder / "model.keras") as temporary:
            model.save(temporary)
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.writestr("notes.json", json.dumps(notes, indent=2))
                with archive.open("familiar.npy", "w") as file:
                    np.save(file, bank, allow_pickle=False)
        print(f"Saved {self.folder / 'model.keras'}")
        with atomic_write(self.folder / "history.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", *sorted(self.history)])
            rows = zip(*(self.history[metric] for metric in sorted(self.history)))
            writer.writerows([epoch, *row] for epoch, row in enumerate(rows, 1))
        print(f"Saved {self.folder / 'history.csv'}")
        return model

    def finish(self, model, results, train_x, synthetic=0):
        """Save metrics, reliability diagram and report; return the exit code: 130 if Ctrl-C ended the training.

        Args:
            model, results: the trained Keras model, and the dict from `cnn_utils.evaluate`.
            train_x: what it was trained with, without the validation split.
            synthetic: int, the number of SYNTHETIC images beside photographs.
        """
        data, folder = self.data, self.folder
        reliability = plot_reliability(results, self.temperature, folder / "reliability.png", data.kind)
        per_class = zip(data.class_names, results["precision"], results["recall"], results["confusion"].sum(axis=1))
        packages = sorted({"tensorflow", "keras", "numpy", keras.config.backend()})
        versions = {name: importlib.import_module(name).__version__ for name in packages}
        place = data.source.train if data.kind == "folder" else data.source.train.parent
        metrics = {
            **self.config,
            "data_dir": str(place.resolve()),  # for --export, which measures on the test set again
            "stages": [{"name": name, "epochs": [first, last]} for name, first, last in self.boundaries],
            "examples_per_epoch": self.examples_per_epoch,
            "train_examples": len(train_x),
            "synthetic_examples": synthetic,
            "validation_examples": len(data.train_x) - len(train_x),
            "test_examples": len(data.test_x),
            "parameters": model.count_params(),
            "test_loss": results["loss"],
            "test_accuracy": results["accuracy"],
            "test_accuracy_interval": results["interval"],
            "test_balanced_accuracy": results["balanced_accuracy"],
            "loss_weights": self.class_weight and {data.class_names[y]: w for y, w in self.class_weight.items()},
            **reliability,
            "classes": [
                {"name": name, "precision": _json_number(p), "recall": _json_number(r), "examples": int(count)}
                for name, p, r, count in per_class
            ],
            "confusion_matrix": results["confusion"].tolist(),
            "interrupted": self.interrupted,
            "train_seconds": round(self.train_seconds, 2),
            "device": self.device,
            "versions": {"python": platform.python_version(), **versions},
        }
        write_json(metrics, folder / "metrics.json")
        self._save_mistakes(results)
        write_report(folder, model, results, train_x, data.test_x, sys.argv)
        if self.args.tensorboard:
            self._log_figures()
        if not self.interrupted:
            (folder / CHECKPOINT).unlink(missing_ok=True)
        if self.args.show:
            show_figures()
        return INTERRUPTED if self.interrupted else 0

    def _save_mistakes(self, results):
        """Save a table of the test images that were classified wrongly, in the order of the figure."""
        data, (labels, predictions) = self.data, (results["labels"], results["predictions"])
        names = np.arange(len(labels)) if data.test_names is None else data.test_names
        with csv_table(self.folder / "mistakes.csv") as write_row:
            which = "file" if data.kind == "folder" else "index in the test set"
            write_row([which, "true class", "predicted class", *(f"probability {n}" for n in data.class_names)])
            for index in wrong_predictions(results):
                classes = data.class_names[labels[index]], data.class_names[predictions[index]]
                probabilities = (f"{value:.6f}" for value in results["probabilities"][index])
                write_row([str(names[index]), *classes, *probabilities])

    def _log_figures(self):
        """Add saved figures to TensorBoard's log, and say how to look at it."""
        import tensorflow as tf

        folder = self.folder / "tensorboard"
        with tf.summary.create_file_writer(str(folder / "figures")).as_default():
            for name in ("examples", "confusion_matrix"):
                with Image.open(self.folder / f"{name}.png") as figure:
                    tf.summary.image(name, np.asarray(figure.convert("RGB"))[None], step=0)
        print(f"Saved {folder}; look at it with `tensorboard --logdir {folder}`")


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
