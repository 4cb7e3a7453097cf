"""Measure how accurate and how fast the scripts are; print a table and save it as JSON.

    python -m benchmarks --data-dir FOLDER                  everything: about an hour on two cores
    python -m benchmarks --data-dir FOLDER signs resnet     only these parts

FOLDER holds train_signs.h5 and test_signs.h5. Every figure is a ratio of two
things done in the same run, one after the other, in alternating order: another
load of the machine changes both. A part that compares with PyTorch needs
`pip install torch==2.13.0`; without it, that comparison is left out and said so.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

import cnn_utils as utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ("happy_sequential", "signs_functional", "signs_resnet50")
COUNTS = (1_000, 10_000, 50_000)    # pictures in .h5 files
FILES = (2_000, 20_000)             # pictures in a folder


def side(*arguments):
    """Run one side of a comparison in a process of its own; return what it measured, a dict."""
    command = [sys.executable, "-m", "benchmarks.sides", *map(str, arguments)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {
        "TF_CPP_MIN_LOG_LEVEL": "3"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    result["whole_seconds"] = time.perf_counter() - started - result.pop("watching_seconds", 0)
    print(f"  {' '.join(map(str, arguments[:2]))}: " + ", ".join(
        f"{key} {value:.4g}" for key, value in result.items() if isinstance(value, float)), flush=True)
    return result


def command(*arguments):
    """Run a command; return its seconds and its peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))} ended with code {process.returncode}")
    seconds, peak = time.perf_counter() - started, usage.ru_maxrss / 1024
    print(f"  {pathlib.Path(arguments[0]).name}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
    return seconds, peak


def in_turn(rounds, *sides):
    """Run the sides in every round, each round in the opposite order; return a list of results per side."""
    results = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            results[index].append(side(*sides[index]))
    return results


def row(what, values, aim="", unit="x", note=""):
    """One line of the table: the median over the rounds, and from where to where they went."""
    values = [float(value) for value in values]
    return {"what": what, "median": float(np.median(values)), "low": min(values), "high": max(values),
            "rounds": len(values), "unit": unit, "aim": aim, "note": note}


def signs(arguments):
    """The whole of signs_functional.py against the course's recipe."""
    ours, theirs = [], []
    for seed in range(1, arguments.rounds + 1):
        pair = [("signs", arguments.data_dir, seed), ("course", arguments.data_dir, seed)]
        done = {one[0]: side(*one) for one in (pair if seed % 2 else pair[::-1])}
        ours.append(done["signs"])
        theirs.append(done["course"])
    reached = []
    for our, their in zip(ours, theirs):
        first = next((seconds for seconds, accuracy in zip(our["seconds_by_epoch"], our["accuracy_by_epoch"])
                      if accuracy >= their["accuracy"]), np.inf)
        reached.append(first / their["seconds_by_epoch"][-1])
    accuracy = [100 * our["accuracy"] for our in ours]
    rows = [row("signs_functional.py: test accuracy", accuracy, ">= 99", "%", f"mean {np.mean(accuracy):.2f} %")]
    rows += [row(f"the same hands, other {name}: accuracy", [100 * our["harder"][name] for our in ours], unit="%")
             for name in ours[0]["harder"]]
    return rows + [
        row("signs_functional.py / course's recipe: whole run, time",
            [our["whole_seconds"] / their["whole_seconds"] for our, their in zip(ours, theirs)], "<= 2"),
        row("the same: test accuracy, difference",
            [100 * (our["accuracy"] - their["accuracy"]) for our, their in zip(ours, theirs)], ">= 10", "points"),
        row("the same: training time until the course's final accuracy / all of its training", reached, "<= 0.25"),
    ]


def resnet(arguments):
    """ResNet50's training steps against PyTorch's, and its first step against Keras as it comes."""
    policy = "mixed_bfloat16" if utils.computes_bfloat16() else "float32"
    sides = [("resnet", policy), ("keras",)]
    torch = importlib.util.find_spec("torch")
    if torch:
        sides += [("torch", "fp32"), ("torch", "bf16")]
    else:
        print("  PyTorch is missing (pip install torch==2.13.0): that comparison is left out")
    results = in_turn(arguments.rounds, *sides)
    ours, plain = results[:2]
    rows = [
        row("ResNet50, first training step / Keras as it comes",
            [our["first_seconds"] / their["first_seconds"] for our, their in zip(ours, plain)]),
        row("ResNet50, first training step", [our["first_seconds"] for our in ours], "<= 8", "s"),
        row(f"ResNet50, training ({policy}) / Keras as it comes: pictures per second",
            [our["images_per_second"] / their["images_per_second"] for our, their in zip(ours, plain)]),
    ]
    if torch:
        best = [max(one["images_per_second"], two["images_per_second"]) for one, two in zip(*results[2:])]
        rows.append(row(f"ResNet50, training ({policy}) / PyTorch 2.13, the better of fp32 and bf16",
                        [our["images_per_second"] / their for our, their in zip(ours, best)], ">= 1"))
    return rows


def pipeline(arguments):
    """The input pipeline of signs_functional.py against what its training step takes."""
    results = [side("pipeline") for _ in range(arguments.rounds)]
    return [row("input pipeline of signs_functional.py / its training step: pictures per second",
                [result["pipeline"] / result["step"] for result in results], ">= 3")]


def trained(folder):
    """Return the folder of a model of each script, hardly trained: it answers as fast as another."""
    for script in SCRIPTS:
        command(f"{script}.py", "--data", "synthetic", "--dry-run", "--output-dir", folder / script)
    return {script: folder / script for script in SCRIPTS}


def inference(arguments):
    """Answers: pictures per second one by one and in batches, start-up to the first answer."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = trained(pathlib.Path(folder))
        picture = pathlib.Path(folder) / "picture.png"
        from PIL import Image
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture)
        for script, output in models.items():
            results = [side("inference", output / "model.keras") for _ in range(arguments.rounds)]
            rows.append(row(f"{script}: pictures per second, batches of 64 / one by one",
                            [result["batch"] / result["one"] for result in results],
                            note=f"{np.median([result['batch'] for result in results]):.0f} and "
                                 f"{np.median([result['one'] for result in results]):.0f} a second"))
            seconds = [(command("-c", "import tensorflow")[0],
                        command(f"{script}.py", "--predict", picture, "--output-dir", output)[0])
                       for _ in range(arguments.rounds)]
            rows.append(row(f"{script} --predict, from the command to the answer / importing TensorFlow",
                            [ours / bare for bare, ours in seconds],
                            note=f"{np.median([ours for _, ours in seconds]):.1f} s"))
    return rows


def memory(arguments):
    """Peak memory of each script's training, against importing TensorFlow."""
    rows = []
    bare = command("-c", "import tensorflow")[1]
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            peak = command(f"{script}.py", "--data", "synthetic", "--epochs", 1, "--output-dir", folder)[1]
            rows.append(row(f"{script}.py: peak memory / importing TensorFlow", [peak / bare], note=f"{peak:.0f} MiB"))
    return rows


def growth(arguments):
    """How time and memory of signs_functional.py grow with the number of pictures, rendered ones repeated."""
    from datasets.synthetic import render_dataset

    train, test = render_dataset("signs")
    x, y, classes = utils.load_h5(train, "train")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "test_signs.h5").write_bytes(test.read_bytes())
        for count in COUNTS:
            with h5py.File(folder / "train_signs.h5", "w") as file:
                pictures = file.create_dataset("train_set_x", (count, *x.shape[1:]), np.uint8)
                for start in range(0, count, len(x)):
                    pictures[start:start + len(x)] = x[:min(len(x), count - start)]
                file["train_set_y"], file["list_classes"] = np.resize(y, count), classes
                file.attrs["data"] = "SYNTHETIC"
            peak = command("signs_functional.py", "--data-dir", folder, "--epochs", 1, "--output-dir", folder)[1]
            seconds = json.loads((folder / "metrics.json").read_text())["train_seconds"]
            measured.append((count, seconds, peak))
            (folder / "train_signs.h5").unlink()
    (few, few_seconds, few_peak), (more, more_seconds, _), (most, most_seconds, most_peak) = measured
    # The first step's tracing is in all of them: between two counts it falls away.
    slope = (most_seconds - more_seconds) / (most - more) / ((more_seconds - few_seconds) / (more - few))
    arrays = (most - few) * int(np.prod(x.shape[1:])) / 2**20
    return [row(f"signs_functional.py, training time for each picture more: {more:,}-{most:,} / {few:,}-{more:,}",
                [slope], "1"),
            row(f"signs_functional.py, memory added from {few:,} to {most:,} pictures / size of these",
                [(most_peak - few_peak) / arrays], note=f"{few_peak:.0f} and {most_peak:.0f} MiB")]


def folder(arguments):
    """How memory and time grow with the number of pictures in a folder of one's own, which are read from disk."""
    from PIL import Image

    from datasets.synthetic import render_dataset

    x, y, _ = utils.load_h5(render_dataset("signs")[0], "train")
    measured = []
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        for number, (picture, label) in enumerate(zip(x, y)):
            (place / "originals").mkdir(exist_ok=True)
            large = Image.fromarray(picture).resize((256, 256), Image.Resampling.BICUBIC)
            large.save(place / "originals" / f"{label}_{number}.jpg", quality=90)
        originals = sorted((place / "originals").iterdir())
        for count in FILES:
            for number in range(count):
                original = originals[number % len(originals)]
                to = place / str(count) / original.name[0]
                to.mkdir(parents=True, exist_ok=True)
                os.link(original, to / f"{number:05d}.jpg")     # a name of its own, the same bytes
            measured.append(command("signs_functional.py", "--data-dir", place / str(count), "--epochs", 1,
                                    "--output-dir", place / "output"))
    (few_seconds, few_peak), (most_seconds, most_peak) = measured
    few, most = FILES
    return [row(f"signs_functional.py, a folder of {most:,} / {few:,} JPEG files: peak memory", [most_peak / few_peak],
                "1", note=f"{few_peak:.0f} and {most_peak:.0f} MiB; as arrays {most - few:,} pictures are "
                          f"{(most - few) * 12288 / 2**20:.0f} MiB"),
            row("the same: time, start-up included", [most_seconds / few_seconds], f"<= {most // few}",
                note=f"{few_seconds:.0f} and {most_seconds:.0f} s for listing and one epoch")]


PARTS = {part.__name__: part for part in (signs, resnet, pipeline, inference, memory, growth, folder)}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--data-dir", type=utils.existing_folder, required=True, metavar="FOLDER",
                        help="folder with train_signs.h5 and test_signs.h5")
    parser.add_argument("--rounds", type=utils.whole_number(1), default=5, metavar="N",
                        help="how often each comparison is made (default: 5); the seeds are 1 to N")
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "outputs" / "benchmarks.json", metavar="FILE",
                        help="where the figures are saved (default: outputs/benchmarks.json)")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts are {', '.join(PARTS)}. Received: {', '.join(sorted(unknown))}")
    arguments.data_dir = arguments.data_dir.resolve()
    rows = []
    for name in arguments.parts or PARTS:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        rows += PARTS[name](arguments)
    print("\n| figure | aim | median | from | to | rounds | |\n|---|---|---|---|---|---|---|")
    for line in rows:
        print(f"| {line['what']} | {line['aim']} | {line['median']:.3g} {line['unit']} | {line['low']:.3g} | "
              f"{line['high']:.3g} | {line['rounds']} | {line['note']} |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "bfloat16": utils.computes_bfloat16(), "python": platform.python_version()}
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"\nSaved {arguments.json}")


if __name__ == "__main__":
    utils.run(main)
