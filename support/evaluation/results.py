"""What is measured on the test set."""

import math
from typing import NamedTuple

import numpy as np

from basics.text import display_width, pad
from support.evaluation.outputs import class_labels, class_probabilities

# Answers with a lower probability are "not sure", if --not-sure-below does not say otherwise.
NOT_SURE_BELOW = 0.7

# How many percent of the answers, the most certain ones, are compared with the labels.
COVERAGES = 100, 90, 80, 60


class Results(NamedTuple):
    """How a model did on t test images of k classes."""

    loss: float
    accuracy: float
    interval: tuple  # the 95% Wilson score interval of the accuracy: low, high
    balanced_accuracy: float  # the mean recall of the classes that have test images
    probabilities: np.ndarray  # (t, k)
    labels: np.ndarray  # (t,) int, the true classes
    predictions: np.ndarray  # (t,) int
    confusion: np.ndarray  # (k, k) int, rows are the true classes
    precision: np.ndarray  # (k,), NaN for a class that was never predicted
    recall: np.ndarray  # (k,), NaN for a class without test images

    @property
    def mistakes(self):
        """The indices (n,) of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.labels != self.predictions)
        return wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")]


def accuracy_interval(correct, count):
    """Return the 95% Wilson score interval of an accuracy, (low, high)."""
    from scipy.stats import binomtest

    # It stays inside 0-1 and holds for accuracies near 1 (Brown, Cai and DasGupta, 2001).
    interval = binomtest(int(correct), int(count)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def percentage(fraction):
    """Return 0.7 as "70%" and 0.975 as "97.5%"."""
    return f"{100 * fraction:g}%"


def doubts(probabilities, distances, not_sure_below, ood_threshold):
    """Return why the answers for m images are not sure, a list of str, "" for a sure answer.

    --predict and the report share this rule.

    Args:
        probabilities: float array (m, k).
        distances: float array (m,), from `support.evaluation.ood.knn_distance`; None if they are not known.
        not_sure_below: float, 0 to 1, the least probability of a sure answer.
        ood_threshold: float, the greatest distance of a sure answer.
    """
    reasons = [
        [f"confidence below {percentage(not_sure_below)}"] if p < not_sure_below else []
        for p in probabilities.max(axis=1)
    ]
    if distances is not None:
        for texts, distance in zip(reasons, distances):
            texts += ["unlike the training images"] if distance > ood_threshold else []
    return [", ".join(texts) for texts in reasons]


def coverage(probabilities, labels):
    """Return how many of the most certain answers are wrong, a list of a dict for each of COVERAGES.

    An answer is as certain as its probability is high. Answers as certain as the last that counts count too.

    Args:
        probabilities: float array (m, k).
        labels: int array (m,).
    """
    confidence, wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    rows = []
    for percent in COVERAGES:
        least = np.sort(confidence)[-max(1, len(labels) * percent // 100)]
        chosen = confidence >= least
        rows.append({"percent": percent, "least_probability": float(least), **_count(chosen, wrong)})
    return rows


def certainty(probabilities, labels, distances, not_sure_below, ood_threshold):
    """Return how many answers are sure by the rule of `doubts`, how many others not, and how many of each are wrong.

    Arguments as for `doubts` and `coverage`. Returns: dict for JSON. "sure", "below" (the least probability) and
    "unlike" (the training images, but probable) add up to all answers.
    """
    wrong = probabilities.argmax(axis=1) != labels
    sure = np.array([not reason for reason in doubts(probabilities, distances, not_sure_below, ood_threshold)])
    below = probabilities.max(axis=1) < not_sure_below
    return {
        "not_sure_below": not_sure_below,
        "ood_threshold": ood_threshold,
        "sure": _count(sure, wrong),
        "below": _count(below, wrong),
        "unlike": _count(~sure & ~below, wrong),
        "coverage": coverage(probabilities, labels),
    }


def _count(chosen, wrong):
    """Return the number of chosen answers and how many are wrong, of bool arrays (m,)."""
    return {"answers": int(chosen.sum()), "wrong": int((chosen & wrong).sum())}


def measure(outputs, y, class_names, loss):
    """Compare a model's outputs for the test set with the labels, and print the result.

    Args:
        outputs: from `model.predict`, (t, 1) of a sigmoid or (t, k).
        y: labels as the model's loss wants them: (t, 1) or one-hot (t, k).
        class_names: the k class names.
        loss: float, from `model.evaluate`.

    Returns: `Results`.
    """
    probabilities = class_probabilities(outputs)
    labels, predictions = class_labels(y), probabilities.argmax(axis=1)
    confusion = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(confusion, (labels, predictions), 1)
    correct, count = int(np.trace(confusion)), len(labels)
    interval = low, high = accuracy_interval(correct, count)
    with np.errstate(invalid="ignore"):
        precision = np.diag(confusion) / confusion.sum(axis=0)
        recall = np.diag(confusion) / confusion.sum(axis=1)
    balanced = float(np.nanmean(recall))

    print(f"\nTest loss:     {loss:.4f}")
    print(f"Test accuracy: {correct / count:.2%} ({correct} of {count} right; 95% interval {low:.2%} to {high:.2%})")
    print(f"Balanced accuracy: {balanced:.2%}, the mean of the recall of each class\n")
    width = max(map(display_width, ["class", *class_names]))
    print(f"  {pad('class', width)}  precision  recall  images")
    for name, p, r, images in zip(class_names, precision, recall, confusion.sum(axis=1)):
        p, r = ("-" if math.isnan(value) else f"{value:.1%}" for value in (p, r))
        print(f"  {pad(name, width)}  {p:>9}  {r:>6}  {images:>6}")
    return Results(
        loss=float(loss),
        accuracy=correct / count,
        interval=interval,
        balanced_accuracy=balanced,
        probabilities=probabilities,
        labels=labels,
        predictions=predictions,
        confusion=confusion,
        precision=precision,
        recall=recall,
    )
