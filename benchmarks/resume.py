"""End training runs at random moments, resume them, and compare the result with that of an undisturbed run.

    python -m benchmarks.resume                                              10 times by each signal, each script
    python -m benchmarks.resume --script happy_sequential --signal TERM --kills 3

Each run gets a signal at a random moment, perhaps while it starts: INT is Ctrl-C, TERM comes from `docker stop` and
from batch systems at their time limit, and KILL cannot be caught. It is resumed until it ends. Its weights and its
history.csv must then equal those of the undisturbed run, bit for bit. A run that catches the signal must print no
traceback; if it had finished an epoch, it must save what it has learned.
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import NamedTuple

import h5py

from basics.errors import run_main
from datasets.hdf5 import load_h5
from datasets.splits import subset_per_class
from datasets.synthetic import render_dataset
from support.cli import ROOT, integer
from support.training.run_folder import was_interrupted

DATASETS = {"happy_sequential": "happy", "signs_functional": "signs", "signs_resnet50": "signs"}
SIGNALS = {"INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL}

# Seconds after which Python has imported enough for Ctrl-C to be one line.
STARTED = 0.5


class Counts(NamedTuple):
    """What became of the runs that got a signal."""

    kills: int = 0  # signals that ended a run
    clean: int = 0  # of these, without a traceback and with the exit code of the signal
    learned: int = 0  # those that came while the network had learned for at least an epoch
    saved: int = 0  # of these, with the model and its test
    resumed: int = 0  # runs that were resumed until they ended
    same: int = 0  # of these, with the result of the undisturbed run


def start(script, data, output, epochs):
    """Start or resume a training, and return its process; what it prints goes to a file beside its folder."""
    command = [sys.executable, ROOT / f"{script}.py", "--data-dir", data, "--epochs", str(epochs)]
    command += ["--deterministic", "--resume", "--output-dir", output]
    with open(log_of(output), "w") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def log_of(output):
    return output.with_suffix(".log")


def read_result(output):
    """Return the weights of a finished run by name, and its history.csv."""
    weights = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            weights[name] = item[()].tobytes()

    # Weight by weight, because the file also holds the time.
    with zipfile.ZipFile(output / "model.keras") as archive, archive.open("model.weights.h5") as member:
        with h5py.File(member, "r") as file:
            file.visititems(collect)
    return weights, (output / "history.csv").read_text()


def send(process, number, output):
    """Send a signal to a run, wait for its end, and return the `Counts` of that; all are 0 if it had just finished."""
    process.send_signal(number)
    code = process.wait()
    if code == 0:
        return Counts()
    printed = log_of(output).read_text(errors="replace")
    clean = code in (128 + number, -number) and "Traceback" not in printed
    learned = "\nInterrupted after epoch" in printed
    saved = learned and (output / "model.keras").exists() and was_interrupted(output)
    if not clean or saved != learned:
        print(f"Exit code {code}:\n{printed[-2000:]}", file=sys.stderr)
    return Counts(1, clean, learned, saved)


def write_small_data(script, folder, count):
    """Write the files of the script's SYNTHETIC data set with `count` images of each class."""
    for path, part in zip(render_dataset(DATASETS[script]), ("train", "test")):
        x, y, classes = load_h5(path, part)
        with h5py.File(folder / path.name, "w") as file:
            file[f"{part}_set_x"], file[f"{part}_set_y"] = subset_per_class(x, y, count)
            file["list_classes"] = classes
            file.attrs["data"] = "SYNTHETIC"


def kill_and_resume(script, kills, epochs=8, count=20, seed=0, signals=("KILL",)):
    """End training runs of a script on `count` SYNTHETIC images of each class, and resume them.

    Returns: dict from the name of each signal to the `Counts` of `kills` signals or more.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that starts a command with &
        signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = random.Random(seed)
    totals = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_small_data(script, folder, count)
        duration = time.perf_counter()
        if code := start(script, folder, folder / "undisturbed", epochs).wait():
            printed = log_of(folder / "undisturbed").read_text()
            raise SystemExit(f"The undisturbed run ended with code {code}:\n{printed[-2000:]}")
        duration = time.perf_counter() - duration
        undisturbed = read_result(folder / "undisturbed")
        for name in signals:
            total = Counts()
            while total.kills < kills:
                output = folder / f"{name}_{total.resumed}"
                code = None
                while code != 0:
                    started = time.perf_counter()
                    process = start(script, folder, output, epochs)
                    try:
                        code = process.wait(rng.uniform(STARTED, duration) if total.kills < kills else None)
                    except subprocess.TimeoutExpired:
                        found = send(process, SIGNALS[name], output)
                        total = Counts(*map(sum, zip(total, found)))
                        code = process.returncode
                    finally:
                        process.kill()  # if this program is ended
                    if code == 2:
                        raise SystemExit(f"A run cannot be resumed:\n{log_of(output).read_text()[-2000:]}")
                duration = time.perf_counter() - started if total.kills == 0 else duration  # another load by now
                same = read_result(output) == undisturbed
                total = total._replace(resumed=total.resumed + 1, same=total.same + same)
                print(f"{script}, {name}: {describe(total)}", flush=True)
            totals[name] = total
    return totals


def describe(counts):
    """Return the counts in words."""
    return (
        f"{counts.clean} of {counts.kills} ended cleanly, {counts.saved} of {counts.learned} saved what was learned, "
        f"{counts.same} of {counts.resumed} resumed runs equal the undisturbed one"
    )


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.resume", description=__doc__, formatter_class=raw)
    parser.add_argument("--script", nargs="+", choices=DATASETS, default=[*DATASETS], metavar="SCRIPT")
    parser.add_argument("--signal", nargs="+", choices=SIGNALS, default=[*SIGNALS], metavar="SIGNAL")
    parser.add_argument("--kills", type=integer(1), default=10, metavar="N", help="for each signal (default: 10)")
    parser.add_argument("--epochs", type=integer(1), default=8, metavar="N", help="of each run (default: 8)")
    args = parser.parse_args()
    right = True
    rows = [
        "| script | signal | ended cleanly | saved what was learned | equal the undisturbed run |",
        "|---|---|---|---|---|",
    ]
    for script in args.script:
        for name, total in kill_and_resume(script, args.kills, args.epochs, signals=args.signal).items():
            kills, clean, learned, saved, resumed, same = total
            right = right and (clean, saved, same) == (kills, learned, resumed)
            cells = f"{clean} of {kills}", f"{saved} of {learned}" if learned else "", f"{same} of {resumed}"
            rows.append(f"| `{script}.py` | {name} | {' | '.join(cells)} |")
    print("\n".join(["", *rows]))
    return 0 if right else 1


if __name__ == "__main__":
    run_main(main)
