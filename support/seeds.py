"""--seeds and --folds: run the script once for each seed or fold, and measure the spread of the results."""

import contextlib
import math
import subprocess
import sys

import numpy as np

from support.files import csv_table, read_json, write_json


def run_seeds(args):
    """Run the script once for each of `--seeds` seeds, print and save mean, spread and interval.

    `args` is the parsed command line. Returns the exit code: 0, or that of the first run that failed.
    """
    seeds = {seed: ["--seed", str(seed)] for seed in range(args.seed, args.seed + args.seeds)}
    metrics, code = _run_each(args, "seed", seeds)
    if code:
        return code
    accuracies = {seed: found["test_accuracy"] for seed, found in metrics.items()}
    summary = summarise(accuracies)
    print("\nTest accuracy by seed: " + ", ".join(f"{seed}: {value:.2%}" for seed, value in accuracies.items()))
    _print_mean(summary)
    write_json(summary, args.output_dir / "seeds.json")
    return 0


def run_folds(args):
    """Run the script once for each of `--folds` folds, print and save a table, mean, spread and intervals.

    Arguments and result as for `run_seeds`.
    """
    folds = {number: ["--fold", f"{number}/{args.folds}"] for number in range(1, args.folds + 1)}
    metrics, code = _run_each(args, "fold", folds)
    if code:
        return code
    rows, summary = summarise_folds(metrics)
    print("\nfold  images  right  accuracy  balanced accuracy")
    for fold, images, right, accuracy, balanced in rows:
        print(f"{fold:>4}  {images:>6,}  {right:>5,}  {accuracy:>8.2%}  {balanced:>17.2%}")
    _print_mean(summary)
    (low, high), right, images = summary["interval"], summary["right"], summary["images"]
    print(f"Together: {right:,} of {images:,} right, {right / images:.2%}; 95 % interval {low:.2%} to {high:.2%}")
    with csv_table(args.output_dir / "folds.csv") as write_row:
        for row in [("fold", "images", "right", "accuracy", "balanced accuracy"), *rows]:
            write_row(row)
    write_json(summary, args.output_dir / "folds.json")
    return 0


def _run_each(args, kind, options):
    """Run the script with each entry of `options`, {number: words}; return the metrics by number and the exit code.

    Each run is a process of its own, so its result is that of the single command with these options.
    """
    metrics = {}
    for number, words in options.items():
        folder = args.output_dir / f"{kind}_{number}"
        print(f"\n{kind.capitalize()} {number}, {len(metrics) + 1} of {len(options)}: {folder}", flush=True)
        # argparse takes the last of a repeated option.
        words = ["--seeds", "1", "--folds", "1", *words]
        words += ["--output-dir", str(folder), "--cache-dir", str(args.cache_dir)]
        process = subprocess.Popen([sys.executable, *sys.argv, *words])
        while process.poll() is None:
            # Ctrl-C reaches the run as well, which saves what it has learnt: wait for that.
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
        if process.returncode:
            print(f"error: the run with {kind} {number} ended with code {process.returncode}", file=sys.stderr)
            return metrics, process.returncode
        metrics[number] = read_json(folder / "metrics.json")
    return metrics, 0


def summarise(accuracies):
    """Return mean, spread and the 95 % interval of the mean (Student's t) of accuracies by number, as a dict."""
    from scipy import stats

    values = np.array(list(accuracies.values()))
    summary = {
        "test_accuracy": {str(number): value for number, value in accuracies.items()},
        "mean": float(values.mean()),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }
    if len(values) > 1:
        deviation = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
        summary["standard_deviation"] = deviation
        # Student's interval may leave 0 to 1; an accuracy cannot.
        summary["mean_interval"] = [max(0.0, summary["mean"] - half), min(1.0, summary["mean"] + half)]
    return summary


def summarise_folds(metrics):
    """Return a table row for each fold, and the dict of `summarise` with the totals over all images.

    metrics: {fold: dict of its `metrics.json`}. The interval of the totals is Wilson's.
    """
    from scipy.stats import binomtest

    keys = "test_examples", "test_accuracy", "test_balanced_accuracy"
    images, accuracies, balanced = zip(*([found[key] for key in keys] for found in metrics.values()))
    right = [int(np.trace(found["confusion_matrix"])) for found in metrics.values()]
    interval = binomtest(sum(right), sum(images)).proportion_ci(0.95, method="wilson")
    summary = summarise(dict(zip(metrics, accuracies)))
    summary["mean_balanced_accuracy"] = float(np.mean(balanced))
    summary |= {"images": sum(images), "right": sum(right), "interval": [float(limit) for limit in interval]}
    return list(zip(metrics, images, right, accuracies, balanced)), summary


def _print_mean(summary):
    """Print the mean and, for several runs, how far apart they are."""
    spread = ""
    if "mean_interval" in summary:
        low, high = summary["mean_interval"]
        deviation = summary["standard_deviation"]
        spread = f", standard deviation {deviation:.2%}, 95 % interval of the mean {low:.2%} to {high:.2%}"
    print(f"Mean {summary['mean']:.2%}{spread}; lowest {summary['lowest']:.2%}, highest {summary['highest']:.2%}")
