"""--seeds: the same script once for each of several seeds, and the spread of the results."""

import contextlib
import math
import subprocess
import sys

import numpy as np

from support.files import read_json, write_json


def run_seeds(args):
    """Run the script once for each of `--seeds` seeds, print and save mean, spread and interval.

    Each run is a process of its own, so its result is that of the single command with that seed.
    `args` is the parsed command line. Returns the exit code: 0, or that of the first run that failed.
    """
    accuracies = {}
    for seed in range(args.seed, args.seed + args.seeds):
        folder = args.output_dir / f"seed_{seed}"
        print(f"\nSeed {seed}, {len(accuracies) + 1} of {args.seeds}: {folder}", flush=True)
        # argparse takes the last of a repeated option.
        options = ["--seeds", "1", "--seed", str(seed), "--output-dir", str(folder)]
        process = subprocess.Popen([sys.executable, *sys.argv, *options])
        while process.poll() is None:
            # Ctrl-C reaches the run as well, which saves what it has learnt: wait for that.
            with contextlib.suppress(KeyboardInterrupt):
                process.wait()
        if process.returncode:
            print(f"error: the run with seed {seed} ended with code {process.returncode}", file=sys.stderr)
            return process.returncode
        accuracies[seed] = read_json(folder / "metrics.json")["test_accuracy"]
    summary = summarise(accuracies)
    print("\nTest accuracy by seed: " + ", ".join(f"{seed}: {value:.2%}" for seed, value in accuracies.items()))
    spread = ""
    if len(accuracies) > 1:
        low, high = summary["mean_interval"]
        deviation = summary["standard_deviation"]
        spread = f", standard deviation {deviation:.2%}, 95 % interval of the mean {low:.2%} to {high:.2%}"
    print(f"Mean {summary['mean']:.2%}{spread}; lowest {summary['lowest']:.2%}, highest {summary['highest']:.2%}")
    write_json(summary, args.output_dir / "seeds.json")
    return 0


def summarise(accuracies):
    """Return mean, spread and the 95 % interval of the mean (Student's t) of accuracies by seed, as a dict."""
    from scipy import stats

    values = np.array(list(accuracies.values()))
    summary = {
        "test_accuracy": {str(seed): value for seed, value in accuracies.items()},
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
