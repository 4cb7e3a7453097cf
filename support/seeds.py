"""--seeds and --folds: run the script once for each seed or fold, and measure the spread of the results."""

import math
import signal
import subprocess
import sys

import numpy as np

from basics import signals
from basics.files import csv_table, read_json, write_json
from datasets import NO_CLASS
from support.evaluation.results import accuracy_interval
from support.evaluation.review import write_review
from support.training.run_folder import TEST_PREDICTIONS


def run_seeds(args):
    """Run the script once for each of `--seeds` seeds; print and save mean, spread and interval.

    `args` is the parsed command line. Returns the exit code: 0, or that of the first run that failed.
    """
    seeds = {seed: ["--seed", str(seed)] for seed in range(args.seed, args.seed + args.seeds)}
    metrics, code = _run_each(args, "seed", seeds)
    if code:
        return code
    rows = table_rows(metrics)
    summary = summarize({seed: accuracy for seed, _, _, accuracy, _ in rows})
    print("\nTest accuracy by seed: " + ", ".join(f"{seed}: {accuracy:.2%}" for seed, _, _, accuracy, _ in rows))
    _print_mean(summary, "seeds")
    _save_table(args.output_dir / "seeds.csv", "seed", rows)
    write_json(summary, args.output_dir / "seeds.json")
    print(f"Saved in {args.output_dir}: seeds.csv, seeds.json, and a folder for each run")
    return 0


def run_folds(args):
    """Run the script once for each of `--folds` folds; print and save a table, mean, spread and intervals.

    Arguments and result as for `run_seeds`.
    """
    folds = {number: ["--fold", f"{number}/{args.folds}"] for number in range(1, args.folds + 1)}
    metrics, code = _run_each(args, "fold", folds)
    if code:
        return code
    rows, summary = summarize_folds(metrics)
    print("\nfold  images  right  accuracy  balanced accuracy")
    for fold, images, right, accuracy, balanced in rows:
        print(f"{fold:>4}  {images:>6,}  {right:>5,}  {accuracy:>8.2%}  {balanced:>17.2%}")
    _print_mean(summary, "folds")
    right, images = summary["right"], summary["images"]
    low, high = summary["interval"]
    print(f"Together: {right:,} of {images:,} right, {right / images:.2%}; 95% interval {low:.2%} to {high:.2%}")
    sure = summary["sure"]
    print(f"Sure answers: {sure['answers']:,} of {images:,}, {sure['wrong']:,} of them wrong")
    _save_table(args.output_dir / "folds.csv", "fold", rows)
    write_json(summary, args.output_dir / "folds.json")
    reviewed = _review(args, metrics)
    print(f"Saved in {args.output_dir}: folds.csv, folds.json, {reviewed}and a folder for each run")
    return 0


def _review(args, metrics):
    """Write the review of a folder of your own images, and return what was saved; "" if they are no folder."""
    saved = [read_json(args.output_dir / f"fold_{number}" / TEST_PREDICTIONS) for number in metrics]
    if not all(saved):
        return ""
    paths = [path for found in saved for path in found["files"]]
    labels = np.concatenate([found["labels"] for found in saved])
    probabilities = np.concatenate([found["probabilities"] for found in saved])
    rows = write_review(
        args.output_dir,
        args.data_dir,
        paths,
        labels,
        probabilities,
        saved[0]["classes"],
        args.none or NO_CLASS,
        next(iter(metrics.values()))["settings"]["image_size"],
    )
    print(f"Review: {rows:,} things to look at in {args.data_dir}, worst first, in review.html and review.csv")
    return "review.html, review.csv, "


def _run_each(args, kind, options):
    """Run the script with each entry of `options`, {number: words}; return the metrics by number and the exit code.

    Each run is a process of its own, so its result is that of the single command with these options.
    """
    metrics = {}
    for number, words in options.items():
        folder = args.output_dir / f"{kind}_{number}"
        print(f"\n{kind.capitalize()} {number} ({len(metrics) + 1} of {len(options)}): {folder}", flush=True)
        # argparse takes the last of a repeated option.
        words = ["--seeds", "1", "--folds", "1", *words]
        words += ["--output-dir", str(folder), "--cache-dir", str(args.cache_dir)]
        code = run_command([sys.executable, *sys.argv, *words])
        if code:
            interrupted = "was interrupted, so no other is started"
            happened = interrupted if signals.is_exit_code(code) else f"failed with exit code {code}"
            print(f"error: the run with {kind} {number} {happened}", file=sys.stderr)
            return metrics, code
        metrics[number] = read_json(folder / "metrics.json")
    return metrics, 0


def run_command(command):
    """Run a command, a list of words, to its end, also after Ctrl-C or SIGTERM; return its exit code, as in a shell."""
    process = subprocess.Popen(command)
    interrupted = False
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # the run saves what it has learned: wait for that
            interrupted = True
            if not signals.came_from_keyboard():  # a terminal sends Ctrl-C to the run as well
                process.send_signal(signal.SIGTERM)
    code = process.returncode
    if interrupted and not code:  # `kill -INT` reached this process alone, or the run had just finished
        return signals.exit_code()
    return 128 - code if code < 0 else code


def table_rows(metrics):
    """Return a row for each run: number, test images, right ones, accuracy, balanced accuracy.

    `metrics` is a dict from the number of a run to the content of its `metrics.json`.
    """
    rows = []
    for number, found in metrics.items():
        results = found["results"]
        right = int(np.trace(results["confusion_matrix"]))
        accuracy, balanced = results["test_accuracy"], results["test_balanced_accuracy"]
        rows.append((number, results["test_examples"], right, accuracy, balanced))
    return rows


def summarize(accuracies):
    """Return mean, spread and the 95% interval of the mean (Student's t) of accuracies by number, as a dict.

    If all accuracies agree, there is no interval: it would be empty.
    """
    from scipy import stats

    values = np.array(list(accuracies.values()))
    summary = {
        "test_accuracy": {str(number): value for number, value in accuracies.items()},
        "mean": float(values.mean()),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }
    if values.min() < values.max():
        deviation = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
        summary["standard_deviation"] = deviation
        # Student's interval may leave 0 to 1; an accuracy cannot.
        summary["mean_interval"] = [max(0.0, summary["mean"] - half), min(1.0, summary["mean"] + half)]
    return summary


def summarize_folds(metrics):
    """Return the rows of `table_rows`, and the dict of `summarize` with the totals over all images.

    `metrics` is as for `table_rows`. The interval of the totals is Wilson's.
    """
    rows = table_rows(metrics)
    numbers, images, right, accuracies, balanced = zip(*rows)
    interval = accuracy_interval(sum(right), sum(images))
    sure = [found["results"]["certainty"]["sure"] for found in metrics.values()]
    return rows, {
        **summarize(dict(zip(numbers, accuracies))),
        "mean_balanced_accuracy": float(np.mean(balanced)),
        "images": sum(images),
        "right": sum(right),
        "interval": list(interval),
        "sure": {key: sum(found[key] for found in sure) for key in ("answers", "wrong")},
    }


def _print_mean(summary, runs):
    """Print the mean and how far apart the runs, "seeds" or "folds", are."""
    mean = f"Mean {summary['mean']:.2%}"
    if "mean_interval" not in summary:
        print(f"{mean}, standard deviation 0.00% (the {runs} agree)")
        return
    low, high = summary["mean_interval"]
    print(
        f"{mean}, standard deviation {summary['standard_deviation']:.2%}, 95% interval of the mean {low:.2%} to "
        f"{high:.2%}; lowest {summary['lowest']:.2%}, highest {summary['highest']:.2%}"
    )


def _save_table(path, kind, rows):
    """Save the rows as CSV; the first column is called "seed" or "fold"."""
    with csv_table(path) as write_row:
        write_row([kind, "images", "right", "accuracy", "balanced accuracy"])
        for row in rows:
            write_row(row)
