"""Kill runs at random moments, resume them, and compare the weights with those of a run that nobody killed.

    python -m benchmarks.resume                             20 kills of signs_functional.py
    python -m benchmarks.resume --script happy_sequential --kills 5

Each killed process gets SIGKILL, which no program can catch, at a moment drawn
from the whole time that the undisturbed run takes, start-up included; the same
command with --resume goes on, and may be killed again. When a run gets to its
end, its weights must be those of the undisturbed run, to the last bit, and its
history.csv the same text.
"""

import argparse
import hashlib
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import zipfile

import h5py
import numpy as np

import cnn_utils as utils
from datasets.synthetic import render_dataset

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}


def small_set(name, folder, count):
    """Write the first SYNTHETIC pictures of each class as a data set of its own: an epoch then takes a moment."""
    for path, part in zip(render_dataset(name), ("train", "test")):
        x, y, classes = utils.load_h5(path, part)
        x, y = utils.first_of_each_class(x, y, count)
        with h5py.File(folder / path.name, "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"], file["list_classes"] = x, y, classes
            file.attrs["data"] = "SYNTHETIC"


def start(script, data, output, epochs):
    """Start the script as a process; return it."""
    return subprocess.Popen([sys.executable, str(ROOT / f"{script}.py"), "--data-dir", str(data), "--epochs",
                             str(epochs), "--deterministic", "--resume", "--output-dir", str(output)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def result(process, output):
    """Wait for a run's end; return a hash of its weights and its history.csv."""
    errors = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"The run in {output} ended with code {process.returncode}:\n{errors[-2000:]}")
    with zipfile.ZipFile(output / "model.keras") as archive, archive.open("model.weights.h5") as member:
        digest = hashlib.sha256()
        with h5py.File(member, "r") as file:
            # The values, not the file: HDF5 notes the time in it.
            file.visititems(lambda name, item: digest.update(name.encode() + np.ascontiguousarray(item).tobytes())
                            if isinstance(item, h5py.Dataset) else None)
    return digest.hexdigest(), (output / "history.csv").read_text()


def kill_and_resume(script, kills, epochs=8, count=20, seed=0):
    """Do what the module says.

    Returns:
        Three ints: kills, runs that were finished, and how many of these came to the undisturbed result.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        small_set(SETS[script], folder, count)
        begun = time.perf_counter()
        undisturbed = result(start(script, folder, folder / "undisturbed", epochs), folder / "undisturbed")
        whole = time.perf_counter() - begun
        killed = runs = same = 0
        while killed < kills:
            output = folder / f"run_{runs}"
            while True:
                process = start(script, folder, output, epochs)
                if killed < kills:
                    try:
                        process.wait(moments.uniform(0, whole))
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.communicate()
                        killed += 1
                        continue
                break
            runs += 1
            same += result(process, output) == undisturbed
            print(f"{script}: {killed} kills, {same} of {runs} resumed runs came to the undisturbed result", flush=True)
    return killed, runs, same


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--script", choices=SETS, default="signs_functional")
    parser.add_argument("--kills", type=utils.whole_number(1), default=20, metavar="N")
    arguments = parser.parse_args()
    _, runs, same = kill_and_resume(arguments.script, arguments.kills)
    return 0 if same == runs else 1


if __name__ == "__main__":
    utils.run(main)
