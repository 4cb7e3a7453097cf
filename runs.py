"""A run and the folder it saves into: nothing lost, nothing half written, and on again after it was killed.

    files       unfinished, write_json, read_json, sha256
    a folder    prepare_output_dir, is_finished, move_aside, finish
    a training  run_settings, fit, save_history, save_model, log_figures
    several     run_seeds, summarise

A run leaves in its folder, while it trains, one file only: the backup, from
which `--resume` goes on. What is to last appears at the end, each file whole.
"""

import atexit
import contextlib
import csv
import datetime
import errno
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile

import numpy as np

# All that is needed to go on with a run that was killed.
BACKUP = "backup.weights.h5"

# Everything a training run writes, listed so that an earlier run can be moved aside whole.
OUTPUTS = ("model.keras", "history.csv", "metrics.json", "examples.png", "learning_curves.png",
           "confusion_matrix.png", "mistakes.png", "reliability.png", "report.html", "tensorboard", BACKUP)

# Exit code of a run that Ctrl-C ended: 128 and the number of the signal, as shells have it.
INTERRUPTED = 130


class InputError(Exception):
    """Something the user gave cannot be used: the message says what, why and what to do."""


def require(module, purpose, package):
    """Raise an InputError that names the pip command if an optional package is missing."""
    if importlib.util.find_spec(module) is None:
        raise InputError(f'{purpose} needs the package {module}: pip install "{package}". '
                         f"Received: an environment without it")


# ----------------------------------------------------------------------- files

@contextlib.contextmanager
def unfinished(path, room=0):
    """Give a path to write to; what was written gets its name when it is complete, and not before.

    A full disk or an interruption then leaves the file of before as it was.

    Args:
        path: the file, or folder, that is to appear.
        room: bytes that it will need at least; without them, nothing is begun.

    Raises:
        InputError: it cannot be written.
    """
    path = pathlib.Path(path)
    # The ending stays last, for many writers look at it; the number tells two runs apart.
    aside = path.with_name(f"unfinished_{os.getpid()}_{path.name}")
    try:
        if room > shutil.disk_usage(path.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield aside
        if path.is_dir() and aside.is_dir():
            shutil.rmtree(path)
        os.replace(aside, path)     # a file never takes the place of a folder
    except OSError as error:
        raise InputError(f"{path} cannot be saved: expected a folder that can be written to, and room in it; choose "
                         f"another with --output-dir. Received: {error.strerror or error}") from None
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):      # a folder that has become read-only keeps what is in it
                aside.unlink(missing_ok=True)


def write_json(value, path):
    """Save a dict as JSON, readable."""
    with unfinished(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    print(f"Saved {path}")


def read_json(path):
    """Return the JSON object in the file, or None if there is none that can be read."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path):
    """Return the SHA-256 of a file, or of the names and sizes of a folder's pictures, as 64 hexadecimal digits."""
    path = pathlib.Path(path)
    if path.is_dir():
        from datasets.folders import pictures_in, sub_folders

        lines = [f"{file.relative_to(path).as_posix()} {file.stat().st_size}\n" for name in sub_folders(path)
                 for file in pictures_in(path / name) if file.is_file()]
        return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------- a folder

def run_settings(script, files, arguments):
    """Return what tells one training run from another, as a JSON-serialisable dict.

    Raises:
        InputError: the results would lie among the pictures of one's own, and be taken for a class the next time.
    """
    if files.kind == "folder" and arguments.output_dir.resolve().is_relative_to(files.train.resolve()):
        raise InputError(f"--output-dir must lie outside of {files.train}, for figures in it would be taken for "
                         f"pictures of a class. Received: {arguments.output_dir}")
    options = {key: value for key, value in vars(arguments).items()
               if key not in {"data", "data_dir", "output_dir", "show", "tensorboard", "seeds",
                              "predict", "export", "crop", "tta", "explain", "debug",
                              "resume"}}
    return {"script": script, "data": files.kind,
            "data_files": {path.name: sha256(path) for path in dict.fromkeys((files.train, files.test))}, **options}


def prepare_output_dir(output_dir, settings=None, resume=False):
    """Make the output folder, lock it until the process ends, move an earlier run with other settings aside.

    A short trial must not destroy a model that took an hour. A run with the
    same settings is written over: it would give the same files.

    Args:
        output_dir: path of the folder.
        settings: dict, JSON-serialisable, what tells this training from another;
            None: nothing is trained and nothing moved.
        resume: bool, the run is to go on from the backup in the folder.

    Returns:
        `pathlib.Path` of the folder, which exists and can be written to.

    Raises:
        InputError: the folder cannot be made or written to, another run is
            writing into it, or its backup is of a run with other settings.
    """
    output_dir = pathlib.Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
        # Answers take a moment, and are waited for; a training takes too long for that.
        lock(output_dir, seconds=0 if settings else 20)
    except OSError as error:
        raise InputError(f"Results cannot be saved: expected a folder that can be written to; choose another "
                         f"with --output-dir. Received: {output_dir} ({error.strerror})") from None
    if not settings:
        return output_dir
    for leftover in sorted(output_dir.glob("unfinished_*")):
        # Of a run that was killed while it wrote: nobody else has the lock.
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    settings = json.loads(json.dumps(settings))     # as they come back from a file: tuples are lists
    metrics, state = read_json(output_dir / "metrics.json"), read_backup(output_dir / BACKUP)
    if resume and not state and (output_dir / BACKUP).exists():
        raise InputError(f"{output_dir / BACKUP} must be the backup of a training; leave --resume out to begin anew. "
                         f"Received: a damaged file")
    if resume and state:
        check_same_settings(state["settings"], settings, output_dir)
    elif resume:
        print(f"There is nothing to go on with in {output_dir}: starting from the beginning")
    if metrics and any(metrics.get(key) != value for key, value in settings.items()):
        aside = move_aside(output_dir, "metrics.json", OUTPUTS)
        print(f"Moved an earlier run with other settings to {aside}")
    elif state and not resume:
        aside = move_aside(output_dir, BACKUP, [BACKUP])
        print(f"Moved the backup of a run that was not finished, {len(state['history']['loss'])} epochs; to go on with "
              f"it: --resume --output-dir {aside}")
    elif not resume:
        (output_dir / BACKUP).unlink(missing_ok=True)       # damaged
    return output_dir


def lock(folder, seconds):
    """Keep other runs out of a folder until this process ends, however it ends; wait so long for another one's end."""
    import filelock

    # One object for each file: a process may prepare its folder twice.
    held = filelock.FileLock(folder / ".lock", is_singleton=True)
    try:
        held.acquire(timeout=seconds)
    except filelock.Timeout:
        raise InputError(f"Another run is writing into {folder}: wait for its end, or choose another folder with "
                         f"--output-dir. Received: a folder that is locked") from None

    def give_back():
        # Gone before it is open: whoever waits with this file in hand sees that it has no name any more.
        with contextlib.suppress(OSError):
            os.unlink(held.lock_file)
        held.release()

    atexit.register(give_back)


def check_same_settings(before, now, output_dir):
    """Raise an InputError that names the difference if a run is to be resumed with other settings."""
    differences = [f"{key} {before.get(key)} then, {now.get(key)} now" for key in sorted({*before, *now})
                   if before.get(key) != now.get(key)]
    if differences:
        raise InputError(f"--resume goes on with the run in {output_dir}: give the settings that it was started with, "
                         f"or leave --resume out to begin anew. Received: {'; '.join(differences)}")


def move_aside(output_dir, dated_by, names):
    """Move those of the named results that exist to `earlier/<date of one of them>`; return that folder."""
    date = datetime.datetime.fromtimestamp((output_dir / dated_by).stat().st_mtime).strftime("%Y-%m-%d_%H-%M-%S")
    aside, number = output_dir / "earlier" / date, 1
    try:
        while aside.exists():
            number += 1
            aside = output_dir / "earlier" / f"{date}_{number}"
        aside.mkdir(parents=True)
        for name in names:
            if (output_dir / name).exists():
                os.replace(output_dir / name, aside / name)
    except OSError as error:
        raise InputError(f"The earlier results cannot be moved aside: expected a folder that can be written to; choose "
                         f"another with --output-dir. Received: {aside} ({error.strerror})") from None
    return aside


def is_finished(output_dir, settings):
    """Say whether the folder holds all results of an uninterrupted run with these settings."""
    metrics = read_json(pathlib.Path(output_dir) / "metrics.json")
    return bool(metrics and not metrics.get("interrupted") and (pathlib.Path(output_dir) / "model.keras").exists()
                and not (pathlib.Path(output_dir) / BACKUP).exists()
                and all(metrics.get(key) == value for key, value in json.loads(json.dumps(settings)).items()))


def finish(output_dir, interrupted):
    """Take the backup away when everything is saved, unless the training is to go on later; return the exit code."""
    if interrupted:
        return INTERRUPTED
    (pathlib.Path(output_dir) / BACKUP).unlink(missing_ok=True)
    return 0


# ------------------------------------------------------------------ a training

def fit(model, batches, *, output_dir, settings, epochs, steps_per_epoch, validation_data, begin=0, resume=False,
        tensorboard=False):
    """Train as `model.fit` does, with a backup after every epoch.

    It holds all weights, the optimizer's and the random generators' included,
    and the history, so that a run that was killed can go on. Ctrl-C ends the
    training, not the run.

    Args:
        model: compiled Keras model.
        batches: `tf.data.Dataset` of all batches of the epochs from `begin` on.
        output_dir: folder.
        settings: dict from `run_settings`, kept with the backup.
        epochs: int, the last epoch's number, counted from 1.
        steps_per_epoch, validation_data: see `model.fit`.
        begin: int, epochs that an earlier call has trained.
        resume: bool, go on from the backup, if there is one.
        tensorboard: bool, log for TensorBoard, too.

    Returns:
        dict of lists, the history from the first epoch on, and bool, whether
        the training was interrupted.

    Raises:
        KeyboardInterrupt: before the first epoch was finished.
        InputError: TensorBoard is missing, or a backup cannot be written.
    """
    import keras

    backup = output_dir / BACKUP
    state = read_backup(backup) if resume or begin else None
    history = state["history"] if state else {}
    done = len(history.get("loss", []))
    if state and resume:
        try:
            with warnings.catch_warnings():
                # After the end of an earlier part, the backup's optimizer is another one: only the weights are taken.
                warnings.simplefilter("ignore")
                model.load_weights(backup)
            for generator, value in zip(generators(model), state["generators"]):
                generator.assign(value)
        except Exception as error:      # of a damaged file, h5py and Keras raise many kinds
            raise InputError(f"{backup} must be the backup of this network; leave --resume out to begin anew. "
                             f"Received: {(str(error).splitlines() or [''])[0][:200]}") from None
        if done >= epochs:
            # The run was killed after this part of the training; what Keras does at the end of `fit` may be missing.
            model.optimizer.finalize_variable_values(model.trainable_variables)
            return history, False
        print(f"Going on after epoch {done} of {epochs}")
    callbacks = [back_up(backup, settings, history)]
    if tensorboard:
        require("tensorboard", "--tensorboard", "tensorboard>=2.20,<2.22")
        if not done:
            # An earlier run's log would be drawn as a second curve over this one's.
            shutil.rmtree(output_dir / "tensorboard", ignore_errors=True)
        callbacks.append(keras.callbacks.TensorBoard(output_dir / "tensorboard", write_graph=False))
    try:
        # What the epochs of before have seen is passed over: the order and the augmentation go on as they would have.
        model.fit(batches.skip((done - begin) * steps_per_epoch) if done > begin else batches, shuffle=False,
                  epochs=epochs, initial_epoch=done, steps_per_epoch=steps_per_epoch,
                  validation_data=validation_data, callbacks=callbacks)
    except InputError:
        print()     # behind the progress bar
        raise
    except KeyboardInterrupt:
        if not history:
            raise
        # What Keras does at the end of `fit`: running averages of the weights, if there are any, take their place.
        model.optimizer.finalize_variable_values(model.trainable_variables)
        print(f"\nInterrupted after {len(history['loss'])} epochs: what was learnt until now is being saved; --resume "
              "goes on from there")
        if is_finished_before(output_dir):
            # With the same settings, or it would have been moved already. Half a training must not replace a whole.
            aside = move_aside(output_dir, "metrics.json", [name for name in OUTPUTS if name != BACKUP])
            shutil.copy2(aside / "examples.png", output_dir)
            print(f"Moved the earlier, finished run to {aside}")
        return history, True
    return history, False


def is_finished_before(output_dir):
    """Say whether the results in the folder are those of a run that was not interrupted."""
    metrics = read_json(output_dir / "metrics.json")
    return bool(metrics) and not metrics.get("interrupted") and (output_dir / "examples.png").exists()


def back_up(path, settings, history):
    """Return a Keras callback that adds each epoch to the history and saves all that is needed to go on after it."""
    import h5py
    import keras

    class BackUp(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for metric, value in logs.items():
                history.setdefault(metric, []).append(float(value))
            # HDF5 that runs out of room in the middle of a file complains in many lines: looked for beforehand.
            numbers = sum(variable.numpy().nbytes for variable in
                          [*self.model.variables, *self.model.optimizer.variables])
            with unfinished(path, room=numbers + 1_000_000) as aside:
                self.model.save_weights(aside)
                with h5py.File(aside, "a") as file:
                    file["state"] = json.dumps({
                        "settings": settings, "history": history,
                        "generators": [generator.numpy().tolist() for generator in generators(self.model)]})
    return BackUp()


def generators(model):
    """Return the states of the random generators, those of the dropouts: Keras saves them with no weights."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def read_backup(path):
    """Return what `back_up` saved beside the weights, a dict, or None if there is no backup that can be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            state = json.loads(file["state"][()])
            return state if {"settings", "history", "generators"} <= set(state) else None
    except Exception:       # a damaged file: h5py raises many kinds
        return None


def save_history(history, path):
    """Save the history as a table: a row for each epoch, counted from 1, a column for each metric."""
    with unfinished(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        metrics = sorted(history)
        writer.writerow(["epoch", *metrics])
        writer.writerows(zip(range(1, len(history["loss"]) + 1), *(history[metric] for metric in metrics)))
    print(f"Saved {path}")


def save_model(model, path, notes, familiar):
    """Save the model with what it needs to answer for pictures of one's own.

    A `.keras` file is a zip archive; Keras reads its own members and leaves
    others alone. So the class names cannot be parted from the model.

    Args:
        model: Keras model.
        path: file to write, `model.keras`.
        notes: dict, JSON-serialisable: `classes`, the names; `data`, "real",
            "synthetic" or "folder"; `dry_run`; `temperature`; `usual`, how unlike
            the training pictures nearly all pictures of the same kind are.
        familiar: float16 array (t, n) from `trust.familiar_features`.
    """
    with unfinished(path) as aside:
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.writestr("notes.json", json.dumps(notes, indent=2))
            with archive.open("familiar.npy", "w") as file:
                np.save(file, familiar, allow_pickle=False)
    print(f"Saved {path}")


def log_figures(output_dir, names=("examples.png", "confusion_matrix.png")):
    """Put saved figures into the log for TensorBoard, and say how to look at it."""
    import tensorflow as tf
    from PIL import Image

    folder = output_dir / "tensorboard"
    with tf.summary.create_file_writer(str(folder / "figures")).as_default():
        for name in names:
            with Image.open(output_dir / name) as figure:
                tf.summary.image(name.removesuffix(".png"), np.asarray(figure.convert("RGB"))[None], step=0)
    print(f"Saved {folder}; look at it with `tensorboard --logdir {folder}`")


# --------------------------------------------------------------------- several

def run_seeds(arguments):
    """Run the script once for each of `--seeds` seeds, print and save mean, spread and interval.

    Each run is a process of its own, so that its result is that of the single
    command with that seed.

    Args:
        arguments: the parsed command line.

    Returns:
        int, exit code: 0, or that of the first run that failed.
    """
    if arguments.predict or arguments.export:
        raise InputError("--seeds repeats a training: leave it out to ask or to export one trained model. Received: "
                         f"--seeds {arguments.seeds} and {'--predict' if arguments.predict else '--export'}")
    if arguments.seed + arguments.seeds > 2**32:
        raise InputError(f"--seeds counts up from --seed: the last must be below 2**32 as well. Received: "
                         f"--seed {arguments.seed} --seeds {arguments.seeds}")
    accuracies = {}
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        folder = arguments.output_dir / f"seed_{seed}"
        print(f"\nSeed {seed}, {len(accuracies) + 1} of {arguments.seeds}: {folder}", flush=True)
        # Of an option that is given twice, the last counts.
        process = subprocess.Popen([sys.executable, *sys.argv, "--seeds", "1", "--seed", str(seed),
                                    "--output-dir", str(folder)])
        while process.returncode is None:
            # Ctrl-C reaches the run, too, which saves what it has learnt: that is waited for.
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
        code = process.returncode
        if code:
            print(f"error: the run with seed {seed} ended with code {code}", file=sys.stderr)
            return code
        accuracies[seed] = read_json(folder / "metrics.json")["test_accuracy"]
    summary = summarise(accuracies)
    spread = "" if len(accuracies) == 1 else (
        f", standard deviation {summary['standard_deviation']:.2%}, 95 % interval of the mean "
        f"{summary['mean_interval'][0]:.2%} to {summary['mean_interval'][1]:.2%}")
    print("\nTest accuracy by seed: " + ", ".join(f"{seed}: {value:.2%}" for seed, value in accuracies.items()))
    print(f"Mean {summary['mean']:.2%}{spread}; lowest {summary['lowest']:.2%}, highest {summary['highest']:.2%}")
    write_json(summary, arguments.output_dir / "seeds.json")
    return 0


def summarise(accuracies):
    """Return mean, spread and the 95 % interval of the mean (Student's t) of accuracies by seed, as a dict."""
    from scipy import stats

    values = np.array(list(accuracies.values()))
    summary = {"test_accuracy": {str(seed): value for seed, value in accuracies.items()}, "mean": float(values.mean()),
               "lowest": float(values.min()), "highest": float(values.max())}
    if len(values) > 1:
        deviation = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
        summary["standard_deviation"] = deviation
        # No accuracy is below 0 or above 1, whatever Student says.
        summary["mean_interval"] = [max(0.0, summary["mean"] - half), min(1.0, summary["mean"] + half)]
    return summary
