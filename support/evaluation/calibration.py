"""Calibration: make confidence agree with accuracy, by temperature scaling."""

import math

import numpy as np
import scipy
from matplotlib.ticker import MaxNLocator

from support.evaluation.figures import (
    ACCENT,
    CAPTION,
    GRAY,
    LINE,
    SECOND,
    new_figure,
    place_axes,
    place_text,
    save_figure,
    styled,
    wrap,
)
from support.evaluation.outputs import class_labels, features, logits
from support.evaluation.results import accuracy_interval

# Bins of equal width. Guo et al. (2017) use 15 for thousands of images; with a hundred, many would be empty.
BINS = 10


def fit_temperature(logits, labels):
    """Return the most likely temperature, the number to divide all logits by.

    It changes the confidence of the predictions, not the classes (Guo et al., "On Calibration of Modern Neural
    Networks", 2017, section 4.2). With few images, all of them right, the best fit would be certainty, so two priors
    are added: half a mistake, spread over all classes (after Platt, "Probabilistic Outputs for Support Vector
    Machines", 1999, section 2.2), and a normal distribution of log(temperature) with standard deviation 0.5.

    Args:
        logits: float array (m, k), of images that were not trained on.
        labels: int array (m,).

    Returns: float, 0.1 to 10; above 1, the network was overconfident.
    """
    m, k = logits.shape
    targets = np.full((m, k), 0.5 / k)
    targets[np.arange(m), labels] += m
    targets /= m + 0.5

    def negative_log_posterior(log_temperature):
        cross_entropy = -np.sum(targets * scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1))
        return cross_entropy + 0.5 * (log_temperature / 0.5) ** 2

    bounds = np.log(0.1), np.log(10)
    return float(np.exp(scipy.optimize.minimize_scalar(negative_log_posterior, bounds=bounds, method="bounded").x))


def calibrate(model, x, y):
    """Fit the temperature, divide the weights of the model's last layer by it, return it as a float.

    Args:
        model: Keras model whose last layer is `Dense`.
        x: uint8 array (m, height, width, 3), the validation images, or `ImageFiles`.
        y: their labels, (m, 1) or one-hot (m, k).
    """
    temperature = fit_temperature(logits(model, features(model, x)), class_labels(y))
    head = model.layers[-1]
    head.set_weights([weights / temperature for weights in head.get_weights()])
    return temperature


def undo_temperature(probabilities, temperature):
    """Return the probabilities (m, k) as they were before `calibrate`."""
    powers = np.asarray(probabilities, np.float64) ** temperature
    return powers / powers.sum(axis=1, keepdims=True)


def _binned(probabilities, labels):
    """Return for each of m predictions its confidence, whether it is right, and its bin by confidence; arrays (m,)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    return confidence, right, np.minimum((confidence * BINS).astype(int), BINS - 1)


def reliability(probabilities, labels):
    """Sort probabilities (m, k) with labels (m,) into bins by confidence, the probability of the predicted class.

    Returns three arrays (BINS,): number, mean confidence and accuracy of the predictions; NaN for empty bins.
    """
    confidence, right, bins = _binned(probabilities, labels)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return counts, np.bincount(bins, confidence, BINS) / counts, np.bincount(bins, right, BINS) / counts


def calibration_error(probabilities, labels):
    """Return the expected calibration error, 0 to 1: the mean gap between confidence and accuracy of the bins.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    confidence, right, bins = _binned(probabilities, labels)
    return float(np.abs(np.bincount(bins, confidence - right)).sum() / len(labels))


def may_be_chance(before, after, labels):
    """Return whether chance alone explains the difference between the calibration errors of two sets of probabilities.

    That is whether 0 lies in the 95% bootstrap interval of the difference (Efron, "Bootstrap Methods: Another Look at
    the Jackknife", 1979).

    Args:
        before, after: float arrays (m, k), for the same images.
        labels: int array (m,).
    """
    binned_gaps = []
    for probabilities in (before, after):
        confidence, right, bins = _binned(probabilities, labels)
        binned_gaps.append((bins, confidence - right))
    rng, differences = np.random.default_rng(0), []
    for _ in range(500):
        sample = rng.integers(len(labels), size=len(labels))
        old, new = (np.abs(np.bincount(bins[sample], gaps[sample])).sum() for bins, gaps in binned_gaps)
        differences.append(new - old)
    low, high = np.percentile(differences, (2.5, 97.5))
    return bool(low <= 0 <= high)


@styled
def plot_reliability(results, temperature, path, kind):
    """Save the reliability diagram of the test set, before and after calibration, and print both errors.

    Args:
        results: `support.evaluation.results.Results` of the calibrated model.
        temperature: float from `calibrate`.
        path, kind: the PNG file to write, and the data's kind: "real", "synthetic" or "folder".
    """
    labels, after = results.labels, results.probabilities
    before = undo_temperature(after, temperature)
    chance = may_be_chance(before, after, labels)
    note = "Lines: 95% intervals of the accuracy."
    if chance:
        note += f" With {len(labels):,} images, the difference between the two calibration errors may be chance."
    note = wrap(note, 5.2)
    below = 0.6 + LINE * len(note)
    figure = new_figure(5.6, below + 5.4, f"Reliability on {len(labels):,} test images", kind)
    top = place_axes(figure, 0.7, below + 1.3, 4.7, 3.4)
    bottom = place_axes(figure, 0.7, below, 4.7, 1.1)
    place_text(figure, 2.8, 0.1, "\n".join(note), ha="center", fontsize=CAPTION)

    top.plot([0, 1], [0, 1], color=GRAY, linewidth=1.2, linestyle="--", label="perfect calibration")
    errors = []
    for number, probabilities in enumerate((before, after)):
        counts, confidence, accuracy = reliability(probabilities, labels)
        errors.append(calibration_error(probabilities, labels))
        name = f"after calibration (temperature {temperature:.2f})" if number else "before calibration"
        color, marker, line = (ACCENT, 5, 1.2) if number else (SECOND, 9, 3)  # the second is drawn on the first
        some = counts > 0
        low, high = np.transpose([accuracy_interval(round(n * a), n) for n, a in zip(counts[some], accuracy[some])])
        top.vlines(confidence[some], low, high, color=color, linewidth=line, alpha=0.6)
        label = f"{name}: calibration error {errors[-1]:.1%}"
        top.plot(confidence[some], accuracy[some], "o", color=color, markersize=marker, label=label)
        middles = (np.arange(BINS) + (0.7 if number else 0.3)) / BINS
        bottom.bar(middles, counts, 0.36 / BINS, color=color)
    lowest = math.floor(BINS / after.shape[1]) / BINS  # no confidence is below 1 / classes
    top.set(xlim=(lowest, 1.01), ylim=(-0.03, 1.03), ylabel="accuracy")
    top.tick_params(labelbottom=False)
    top.grid()
    top.legend(loc="lower left", bbox_to_anchor=(0, 1.01), fontsize=9, borderpad=0)
    bottom.set(xlim=top.get_xlim(), xlabel="confidence: probability of the predicted class", ylabel="images")
    bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    print(
        f"\nCalibration: temperature {temperature:.2f}, fitted on the validation split; expected calibration error "
        f"on the test set {errors[0]:.1%} before, {errors[1]:.1%} after"
        + (f" (with {len(labels):,} images, the difference may be chance)" if chance else "")
    )
    save_figure(figure, path)
