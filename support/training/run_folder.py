"""The folder a run saves into: locked while in use, with earlier results archived instead of overwritten."""

import atexit
import contextlib
import datetime
import json
import os
import pathlib
import shlex
import shutil
import tempfile

import h5py

from basics.errors import InputError
from basics.files import CHOOSE, NO_LOCKS, read_json

CHECKPOINT = "checkpoint.weights.h5"

# What a run answers to its fold of a folder of images.
TEST_PREDICTIONS = "test_predictions.json"

# What --export writes, by format; with "litert", "int8" as well.
EXPORTS = {
    "onnx": "model.onnx",
    "saved_model": "saved_model",
    "litert": "model.tflite",
    "int8": "model_int8.tflite",
    "web": "live.html",
}

# Everything a training run writes, and what is exported from its model, so that an earlier run can be archived
# completely.
RESULT_FILES = f"""model.keras history.csv metrics.json examples.png augmented.png learning_curves.png
    confusion_matrix.png mistakes.png mistakes.csv reliability.png report.html tensorboard {CHECKPOINT}
    {TEST_PREDICTIONS} {" ".join(EXPORTS.values())}""".split()


def claim(folder, seconds=20):
    """Create an output folder and lock it until this process ends; wait up to `seconds` for a run that is using it.

    Returns: `pathlib.Path` of the folder.
    Raises InputError: the folder cannot be created, written to or locked.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _lock(folder, seconds)
    except OSError as error:
        raise InputError(f"Nothing can be saved in {folder}: {error.strerror}", CHOOSE) from None
    return folder


def resumable(folder, settings):
    """Return the state of the checkpoint that --resume continues from, or None if there is none; nothing is changed.

    Raises InputError: the checkpoint is damaged, or its run had other settings.
    """
    checkpoint = folder / CHECKPOINT
    state = read_checkpoint(checkpoint)
    if checkpoint.exists() and not state:
        raise InputError(f"{checkpoint} is damaged", "Drop --resume to start again")
    if not state:
        print(f"There is nothing to resume in {folder}: starting from the beginning")
        return None
    before, now = state["config"], json.loads(json.dumps(settings))  # as it comes back from a file, lists for tuples
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        differences = "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in changed)
        fix = "Give the settings it was started with, or drop --resume to start again"
        raise InputError(f"The run in {folder} had other settings: {differences}", fix)
    return state


def check_dry_run(folder):
    """Raise an InputError if a folder holds more than a dry run, which a dry run would move out of its place."""
    metrics, state = read_json(folder / "metrics.json"), read_checkpoint(folder / CHECKPOINT)
    settings = [metrics.get("settings", {})] if metrics else [{}] if _has_lone_model(folder) else []
    if not all(found.get("dry_run") for found in [*settings, *([state["config"]] if state else [])]):
        raise InputError(f"{folder} holds a run that is no dry run", f"{CHOOSE}, or drop --dry-run")


def make_room(folder, settings, resumed=False):
    """Archive what an earlier run with other settings has left in a claimed folder, before a run writes its own files.

    A short trial must not destroy a model that took an hour. A run with the same settings gives the same files again,
    unless the code was changed, or the earlier one was interrupted: then what was exported from its model is archived.

    Args:
        folder: `pathlib.Path`.
        settings: dict, JSON-serializable, what identifies the run.
        resumed: bool, the run continues from the checkpoint in the folder.

    Returns: str, what was moved where; "" if nothing was.
    """
    for leftover in sorted(folder.glob("unfinished_*")):  # from a run that was killed while writing
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    checkpoint = folder / CHECKPOINT
    if read_json(folder / "metrics.json") and not _same_settings(folder, settings):
        names = [name for name in RESULT_FILES if not (resumed and name == CHECKPOINT)]
        return f"Moved an earlier run with other settings to {archive(folder, 'metrics.json', names)}"
    if _has_lone_model(folder):
        return f"Moved a model of which no settings are known to {archive(folder, 'model.keras', RESULT_FILES)}"
    lines = []
    exports = [name for name in EXPORTS.values() if (folder / name).exists()]
    if exports and was_interrupted(folder):  # the model will have learned more than they have
        lines.append(f"Moved what was exported from the unfinished model to {archive(folder, exports[0], exports)}")
    state = read_checkpoint(checkpoint)
    if state and not resumed:
        moved, epochs = archive(folder, CHECKPOINT, [CHECKPOINT]), len(state["history"]["loss"])
        continued = f"--resume --output-dir {shlex.quote(str(moved))} continues it"
        lines.append(f"Moved the checkpoint of an unfinished run, {epochs} epochs; {continued}")
    elif not resumed:
        checkpoint.unlink(missing_ok=True)  # damaged
    return "\n".join(lines)


def read_checkpoint(path):
    """Return the state saved beside the weights, a dict, or None if there is no readable checkpoint."""
    try:
        with h5py.File(path, "r") as file:
            state = json.loads(file["state"][()])
            return state if {"config", "history", "rng_state"} <= set(state) else None
    except Exception:  # h5py raises many types for a damaged file
        return None


def is_finished(folder, settings):
    """Return whether the folder holds all results of an uninterrupted run with these settings."""
    complete = (folder / "model.keras").exists() and not (folder / CHECKPOINT).exists()
    return complete and not was_interrupted(folder) and _same_settings(folder, settings)


def was_interrupted(folder):
    """Return whether Ctrl-C ended the run that saved the folder's metrics.json; False without one."""
    return bool((read_json(folder / "metrics.json") or {}).get("training", {}).get("interrupted"))


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
        raise InputError(f"Earlier results cannot be moved to {folder}: {error.strerror}", CHOOSE) from None
    return folder


def _has_lone_model(folder):
    """Return whether a folder holds a model without readable metrics, and no run left it there that was killed."""
    lone = (folder / "model.keras").exists() and read_json(folder / "metrics.json") is None
    return lone and not (folder / CHECKPOINT).exists()


def _same_settings(folder, settings):
    """Return whether a folder's `metrics.json` belongs to a run with these settings."""
    metrics = read_json(folder / "metrics.json") or {}
    return metrics.get("settings") == json.loads(json.dumps(settings))  # as it comes back from a file


def _lock(folder, seconds):
    """Keep other runs out of a folder until this process ends; wait up to `seconds` for one that is using it."""
    import filelock

    # One lock object per file, because a process may claim its folder twice.
    lock = filelock.FileLock(folder / ".lock", is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        fix = "Wait for it to finish, or choose another folder with --output-dir"
        raise InputError(f"{folder} is in use by another run", fix) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        return  # the start has said that this disk cannot lock files

    def release():
        # The file goes before the lock, so that a waiting process does not lock a file that is about to go.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()

    atexit.register(release)
