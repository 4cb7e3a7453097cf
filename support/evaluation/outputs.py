"""What a network's outputs mean: features, logits, probabilities, labels.

Here a model has two parts: the last `Dense` layer computes the logits, all layers before it the features of an image.
"""

import numpy as np

# Pixels at a time, as in 64 images of 64x64.
BATCH_PIXELS = 64 * 64 * 64


def features(model, x):
    """Return the input of the model's last layer, (m, n) float32, for images (m, height, width, 3), 0-255."""
    if hasattr(model, "features"):  # a network in NumPy
        return model.features(x)
    from keras import Model

    body = Model(model.inputs[0], model.layers[-1].input)
    # Called directly: for so few images, the graph that `predict` traces first would take longer.
    size = max(1, BATCH_PIXELS // model.input_shape[1] ** 2)
    starts = range(0, len(x), size)
    batches = [body(np.asarray(x[start : start + size], np.float32), training=False) for start in starts]
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


def one_hot(y, classes):
    """Turn labels (m,) into rows (m, classes) float32: 1 in the label's column, 0 elsewhere.

    A label beyond the classes stands for none of them: equal shares, so that a network learns to be unsure
    (Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", 2019, section 3).
    """
    rows = np.vstack([np.eye(classes), np.full(classes, 1 / classes)]).astype(np.float32)
    return rows[np.minimum(y, classes)]


def shows_none(y):
    """Return which of the labels, (m, 1) or one-hot (m, k), stand for none of the classes, bool (m,); see `one_hot`."""
    return class_probabilities(y).max(axis=1) < 1


def sample_weights(y, class_weight):
    """Return the weight in the loss of each label, (m, 1) or one-hot (m, k), float32 (m,).

    `class_weight` is a dict from label to weight; what shows none of the classes weighs 1, the mean of all others.
    """
    weights = np.array([class_weight[label] for label in range(len(class_weight))], np.float32)
    return np.where(shows_none(y), np.float32(1), weights[class_labels(y)])


def class_weights(y, class_names, wanted=True):
    """Weight the classes in the loss so that each counts the same, if their sizes differ a lot, and print the weights.

    The weight of a class is m / (k * its images), as in scikit-learn's "balanced".

    Args:
        y: training labels as the loss wants them: (m, 1) or one-hot (m, k).
        class_names: the k class names.
        wanted: bool, False gives no weights.

    Returns: dict from label to weight, for Keras's `fit`; None unless the largest class has more than 1.5 times the
        images of the smallest. Images that show none of the classes are not counted.
    """
    y = y[~shows_none(y)]
    counts = np.bincount(class_labels(y), minlength=len(class_names))
    there = counts > 0
    fewest, most = counts[there].min(), counts.max()
    if not wanted or most <= 1.5 * fewest:
        return None
    weights = np.where(there, len(y) / (there.sum() * np.maximum(counts, 1)), 1.0)
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(class_names, weights))
    print(f"\nThe classes have {fewest:,} to {most:,} images; a rare one counts more in the loss. Weights: {listed}")
    return dict(enumerate(weights.tolist()))
