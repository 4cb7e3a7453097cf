"""The folder a run saves into: locked while in use, with earlier results archived instead of overwritten."""

import atexit
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import tempfile

import h5py

from support.errors import InputError
from support.files import read_json

CHECKPOINT = "checkpoint.weights.h5"

# Everything a training run writes, so that an earlier run can be archived completely.
RESULT_FILES = f"""model.keras history.csv metrics.json examples.png learning_curves.png confusion_matrix.png
    mistakes.png mistakes.csv reliability.png report.html tensorboard {CHECKPOINT}""".split()

ADVICE = "expected a folder that can be written to; choose another with --output-dir"


def prepare_output_dir(output_dir, config=None, resume=False):
    """Create the output folder, lock it until the process ends, and archive an earlier run with other settings.

    A short trial must not destroy a model that took an hour. A run with the same settings gives the same files again,
    unless the code was changed.

    Args:
        output_dir: path of the folder.
        config: dict, JSON-serialisable, what identifies the training; None: nothing is trained or archived.
        resume: bool, the run continues from the checkpoint in the folder.

    Returns: `pathlib.Path` of the folder.
    Raises InputError: the folder cannot be created, written to or locked, or its checkpoint has other settings.
    """
    output_dir = pathlib.Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
        # A prediction takes moments, so waiting makes sense; training takes too long.
        _lock(output_dir, seconds=0 if config else 20)
    except OSError as error:
        raise InputError(f"Results cannot be saved: {ADVICE}. Received: {output_dir} ({error.strerror})") from None
    if config is None:
        return output_dir
    for leftover in sorted(output_dir.glob("unfinished_*")):  # from a run that was killed while writing
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    checkpoint = output_dir / CHECKPOINT
    state = read_checkpoint(checkpoint)
    if resume and checkpoint.exists() and not state:
        expected = f"{checkpoint} must be the checkpoint of a training run; leave --resume out to start again"
        raise InputError(f"{expected}. Received: a damaged file")
    if resume and state:
        _check_same_config(state["config"], config, output_dir)
    elif resume:
        print(f"There is nothing to resume in {output_dir}: starting from the beginning")
    metrics = read_json(output_dir / "metrics.json")
    if metrics and not _same(metrics, config):
        print(f"Moved an earlier run with other settings to {archive(output_dir, 'metrics.json', RESULT_FILES)}")
    elif state and not resume:
        moved = archive(output_dir, CHECKPOINT, [CHECKPOINT])
        epochs = len(state["history"]["loss"])
        print(f"Moved the checkpoint of an unfinished run, {epochs} epochs; --resume --output-dir {moved} continues it")
    elif not resume:
        checkpoint.unlink(missing_ok=True)  # damaged
    return output_dir


def read_checkpoint(path):
    """Return the state saved beside the weights, a dict, or None if there is no readable checkpoint."""
    try:
        with h5py.File(path, "r") as file:
            state = json.loads(file["state"][()])
            return state if {"config", "history", "rng_state"} <= set(state) else None
    except Exception:  # h5py raises many types for a damaged file
        return None


def is_finished(output_dir, config):
    """Return whether the folder holds all results of an uninterrupted run with these settings."""
    metrics = read_json(output_dir / "metrics.json")
    complete = (output_dir / "model.keras").exists() and not (output_dir / CHECKPOINT).exists()
    return bool(metrics and not metrics.get("interrupted") and complete and _same(metrics, config))


def archive(output_dir, dated_by, names):
    """Move those of the named files that exist to `earlier/<date of one of them>`; return that folder."""
    date = datetime.datetime.fromtimestamp((output_dir / dated_by).stat().st_mtime).strftime("%Y-%m-%d_%H-%M-%S")
    folder, number = output_dir / "earlier" / date, 1
    try:
        while folder.exists():
            number += 1
            folder = output_dir / "earlier" / f"{date}_{number}"
        folder.mkdir(parents=True)
        for name in names:
            if (output_dir / name).exists():
                os.replace(output_dir / name, folder / name)
    except OSError as error:
        raise InputError(f"Earlier results cannot be moved: {ADVICE}. Received: {folder} ({error.strerror})") from None
    return folder


def _same(metrics, config):
    """Return whether a `metrics.json` belongs to a run with this config."""
    config = json.loads(json.dumps(config))  # as it comes back from a file, with lists for tuples
    return all(metrics.get(key) == value for key, value in config.items())


def _check_same_config(before, config, output_dir):
    """Raise an InputError that names the difference if a run is resumed with other settings."""
    now = json.loads(json.dumps(config))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    differences = [f"{key} {before.get(key)} then, {now.get(key)} now" for key in changed]
    if differences:
        expected = "give the settings it was started with, or leave --resume out to start again"
        raise InputError(f"--resume continues the run in {output_dir}: {expected}. Received: {'; '.join(differences)}")


def _lock(folder, seconds):
    """Keep other runs out of a folder until this process ends; wait up to `seconds` for one that is using it."""
    import filelock

    # One lock object per file, because a process may prepare its folder twice.
    lock = filelock.FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        expected = "wait until it ends, or choose another folder with --output-dir"
        raise InputError(f"Another run is writing into {folder}: {expected}. Received: a locked folder") from None

    def release():
        # The file goes before the lock, so that a waiting process does not lock a file that is about to go.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()

    atexit.register(release)
