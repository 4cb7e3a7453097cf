"""Calibration: make confidence agree with accuracy, by temperature scaling.

Here a model has two parts: the last `Dense` layer computes the logits, all layers before it the features of an image.
"""

import numpy as np
import scipy

from support.numpy_inference import Network

# Bins of equal width. Guo et al. (2017) use 15 for thousands of images; with a hundred, many would be empty.
BINS = 10


def features(model, x):
    """Return the input of the model's last layer, (m, n) float32, for images (m, height, width, 3), 0-255."""
    if isinstance(model, Network):
        return model.features(x)
    from keras import Model

    body = Model(model.inputs[0], model.layers[-1].input)
    # Called directly: for so few images, the graph that `predict` traces first would take longer.
    batches = [body(np.asarray(x[start : start + 64], np.float32), training=False) for start in range(0, len(x), 64)]
    return np.concatenate([np.asarray(batch, np.float32) for batch in batches])


def logits(model, features):
    """Return the logits (m, k) of features (m, n); a single sigmoid gets two columns, 0 and its own logit."""
    head = model.layers[-1]
    kernel, bias = (np.asarray(weights, np.float32) for weights in (head.kernel, head.bias))
    values = features @ kernel + bias
    return np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values


def softmax(logits):
    """Turn logits (m, k) into probabilities (m, k), float64."""
    logits = logits.astype(np.float64)
    # Not scipy.special's, whose import would delay the answers of --predict.
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def class_probabilities(outputs):
    """Turn a model's outputs, (m, 1) of a sigmoid or (m, k), into one column per class; each row sums to 1."""
    return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


def class_labels(y):
    """Return labels (m,) from what a loss wants: a column (m, 1) or one-hot rows (m, k)."""
    return y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0].astype(int)


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


def reliability(probabilities, labels):
    """Sort probabilities (m, k) with labels (m,) into bins by confidence, the probability of the predicted class.

    Returns three arrays (BINS,): number, mean confidence and accuracy of the predictions; NaN for empty bins.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return counts, np.bincount(bins, confidence, BINS) / counts, np.bincount(bins, right, BINS) / counts


def wrong_predictions(results):
    """Return the indices (n,) of the mistakes in a dict from `cnn_utils.evaluate`, the most confident first."""
    wrong = np.flatnonzero(results["labels"] != results["predictions"])
    return wrong[np.argsort(-results["probabilities"][wrong].max(axis=1), kind="stable")]


def calibration_error(probabilities, labels):
    """Return the expected calibration error, 0 to 1: the mean gap between confidence and accuracy of the bins.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    counts, confidence, accuracy = reliability(probabilities, labels)
    return float(np.nansum(counts * np.abs(confidence - accuracy)) / len(labels))


def plot_reliability(results, temperature, path, kind):
    """Save the reliability diagram of the test set, before and after calibration, and print both errors.

    Args:
        results: dict from `cnn_utils.evaluate`, of the calibrated model.
        temperature: float from `calibrate`.
        path, kind: as for `figures.save_figure`.

    Returns: dict with `temperature` and the expected calibration errors, `calibration_error_before` and `_after`.
    """
    from support.figures import ACCENT, GRID, SECOND, new_figure, save_figure

    labels, after, errors = results["labels"], results["probabilities"], []
    before = undo_temperature(after, temperature)
    figure, ((top,), (bottom,)) = new_figure(4.8, 5.4, 2, 1, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color=GRID, linewidth=1.5, label="perfect calibration")
    for name, probabilities, color in ("before", before, SECOND), ("after", after, ACCENT):
        counts, confidence, accuracy = reliability(probabilities, labels)
        errors.append(calibration_error(probabilities, labels))
        some, label = counts > 0, f"{name}: calibration error {errors[-1]:.1%}"
        top.plot(confidence[some], accuracy[some], color=color, linewidth=1, label=label)
        # The area of a point shows how many predictions it stands for.
        top.scatter(confidence, accuracy, s=6 + 200 * counts / len(labels), color=color, alpha=0.7, linewidths=0)
        bottom.stairs(counts, np.linspace(0, 1, BINS + 1), color=color, linewidth=1.5)
    top.set(xlim=(0, 1.03), ylim=(-0.03, 1.06), ylabel="accuracy")
    top.legend(frameon=False, loc="best")
    top.grid(color=GRID, linewidth=0.6)
    bottom.set(xlim=(0, 1.03), xlabel="confidence", ylabel="images")
    print(
        f"\nCalibration: temperature {temperature:.2f}, fitted on the validation split; expected calibration error "
        f"on the test set {errors[0]:.1%} before, {errors[1]:.1%} after"
    )
    save_figure(figure, "Reliability on the test set", path, kind)
    return {"temperature": temperature, "calibration_error_before": errors[0], "calibration_error_after": errors[1]}
