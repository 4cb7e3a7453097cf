"""Kill training runs at random moments, resume them, and compare the result with that of an undisturbed run.

    python -m benchmarks.resume                                      20 kills of signs_functional.py
    python -m benchmarks.resume --script happy_sequential --kills 5

Each run gets SIGKILL, which no program can catch, at a random moment, start-up included, and is resumed until
it ends. Its weights and its history.csv must then equal those of the undisturbed run to the last bit.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py

from datasets.hdf5 import load_h5
from datasets.splits import subset_per_class
from datasets.synthetic import render_dataset
from support.cli import ROOT, integer
from support.errors import run_main

DATASETS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}


def train(script, data, output, epochs, timeout=None):
    """Train, or resume; return the weights and history.csv, or None if the run was killed."""
    command = [sys.executable, ROOT / f"{script}.py", "--data-dir", data, "--epochs", str(epochs)]
    command += ["--deterministic", "--resume", "--output-dir", output]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:  # `run` has sent SIGKILL
        return None
    if process.returncode:
        raise SystemExit(f"The run in {output} ended with code {process.returncode}:\n{process.stderr[-2000:]}")
    names = []
    with zipfile.ZipFile(output / "model.keras") as archive, archive.open("model.weights.h5") as member:
        with h5py.File(member, "r") as file:  # not compared as a whole, because HDF5 stores the time as well
            file.visit(names.append)
            weights = [(name, file[name][()].tobytes()) for name in names if isinstance(file[name], h5py.Dataset)]
    return weights, (output / "history.csv").read_text()


def kill_and_resume(script, kills, epochs=8, count=20, seed=0):
    """Kill and resume training runs on `count` SYNTHETIC images of each class.

    Returns the numbers of kills, of runs that ended, and of those whose result equals the undisturbed one's.
    """
    rng = random.Random(seed)
    killed = finished = same = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for path, part in zip(render_dataset(DATASETS[script]), ("train", "test")):
            x, y, classes = load_h5(path, part)
            with h5py.File(folder / path.name, "w") as file:
                file[f"{part}_set_x"], file[f"{part}_set_y"] = subset_per_class(x, y, count)
                file["list_classes"], file.attrs["data"] = classes, "SYNTHETIC"
        started = time.perf_counter()
        undisturbed = train(script, folder, folder / "undisturbed", epochs)
        duration = time.perf_counter() - started
        while killed < kills:
            result = None
            while result is None:
                timeout = rng.uniform(0, duration) if killed < kills else None
                result = train(script, folder, folder / f"run_{finished}", epochs, timeout)
                killed += result is None
            finished += 1
            same += result == undisturbed
            print(f"{script}: {killed} kills, {same} of {finished} resumed runs equal the undisturbed one", flush=True)
    return killed, finished, same


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.resume", description=__doc__, formatter_class=raw)
    parser.add_argument("--script", choices=DATASETS, default="signs_functional")
    parser.add_argument("--kills", type=integer(1), default=20, metavar="N")
    args = parser.parse_args()
    _, finished, same = kill_and_resume(args.script, args.kills)
    return 0 if same == finished else 1


if __name__ == "__main__":
    run_main(main)
