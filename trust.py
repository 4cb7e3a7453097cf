"""How far an answer can be trusted: calibration, likeness to the training pictures, what the network looked at.

    calibrate          temperature scaling of the last layer, fitted on the validation split
    calibration_error  how far the stated probabilities are from the shares of right answers
    plot_reliability   the same as a figure, before and after
    familiar_features  what `unlikeness` compares with
    unlikeness         how far pictures are from all training pictures, as the network sees them
    views              test-time augmentation: a picture mirrored and a little moved
    grad_cam           which parts of a picture speak for the answer

All of them look at a network as two parts: everything up to the last `Dense`
layer, which gives the features of a picture, and that layer, which turns them
into probabilities.
"""

import numpy as np

import cnn_utils as utils

# Bins of equal width over the probabilities, as in Guo et al. (2017), who have 15 of them for thousands of
# pictures: with a hundred, more bins would be empty than not.
BINS = 10

# The tenth nearest training picture, not the nearest: photographs of one hand taken a moment apart are
# each other's nearest, which says nothing about the hands of others.
NEIGHBOUR = 10

# So many training pictures are kept for comparison: of 2,048 numbers each, 8 MB.
FAMILIAR = 2000


def features(model, x):
    """Return what the last layer of the model gets for pictures (m, height, width, 3), 0-255: (m, n) float32."""
    from keras import Model

    body = Model(model.inputs[0], model.layers[-1].input)
    # Called as it is: `predict` would trace a graph first, which takes longer than these few pictures.
    batches = [body(np.asarray(x[start:start + 64], np.float32), training=False) for start in range(0, len(x), 64)]
    return np.concatenate([np.asarray(batch, np.float32) for batch in batches])


def logits(model, seen):
    """Return the last layer's sums (m, k) for features (m, n); of a single sigmoid, two: 0 and its sum."""
    kernel, bias = (np.asarray(weights, np.float32) for weights in model.layers[-1].get_weights())
    sums = seen @ kernel + bias
    return np.hstack([np.zeros_like(sums), sums]) if sums.shape[1] == 1 else sums


def softmax(sums):
    """Turn logits (m, k) into probabilities (m, k)."""
    from scipy.special import softmax

    return softmax(sums.astype(np.float64), axis=1)


# ----------------------------------------------------------------- calibration

def fit_temperature(sums, labels):
    """Return the temperature that makes the probabilities of these answers most likely.

    Dividing all logits by one number changes how sure the answers are, not what
    they are (Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
    Networks", 2017, section 4.2). A hundred pictures, nearly all of them answered
    rightly, say little, and where all are right the most likely probability
    would be 1. So half a wrong answer more than there was is assumed, spread over
    all classes (after Platt, "Probabilistic Outputs for Support Vector Machines",
    1999, section 2.2), and a temperature is held the less likely, the farther it
    is from 1: a normal distribution of its logarithm, of standard deviation 0.5.

    Args:
        sums: float array (m, k), the logits of pictures that were not trained on.
        labels: int array (m,).

    Returns:
        float, 0.1 to 10; above 1: the network was surer than it should have been.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    m, k = sums.shape
    right = (m + 0.5 / k) / (m + 0.5)
    targets = np.full((m, k), (1 - right) / (k - 1))
    targets[np.arange(m), labels] = right

    def unlikely(log_temperature):
        cross_entropy = -np.sum(targets * log_softmax(sums / np.exp(log_temperature), axis=1))
        return cross_entropy + 0.5 * (log_temperature / 0.5) ** 2

    return float(np.exp(minimize_scalar(unlikely, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def calibrate(model, x, y):
    """Fit the temperature and divide the weights of the model's last layer by it.

    So the temperature is a part of the model: saved, exported and loaded with it.

    Args:
        model: Keras model whose last layer is `Dense`; it is changed.
        x: uint8 array (m, height, width, 3), the validation pictures.
        y: their labels, (m, 1) or one-hot (m, k).

    Returns:
        float, the temperature.
    """
    temperature = fit_temperature(logits(model, features(model, x)), utils.labels_of(y))
    head = model.layers[-1]
    head.set_weights([weights / temperature for weights in head.get_weights()])
    return temperature


def undo_temperature(probabilities, temperature):
    """Return the probabilities (m, k) as they were before `calibrate`."""
    powers = np.asarray(probabilities, np.float64) ** temperature
    return powers / powers.sum(axis=1, keepdims=True)


def reliability(probabilities, labels):
    """Share the answers out among bins of equal width by the probability of the class that was answered.

    Args:
        probabilities: float array (m, k).
        labels: int array (m,).

    Returns:
        Three arrays (BINS,): how many answers each bin has, their mean
        probability, and the share of them that is right; NaN in empty bins.
    """
    said = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    which = np.minimum((said * BINS).astype(int), BINS - 1)
    counts = np.bincount(which, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return (counts, np.bincount(which, said, BINS) / counts, np.bincount(which, right, BINS) / counts)


def calibration_error(probabilities, labels):
    """Return the expected calibration error: the mean distance of stated probability and share of right answers.

    Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.

    Args:
        probabilities: float array (m, k).
        labels: int array (m,).

    Returns:
        float, 0 to 1.
    """
    counts, said, right = reliability(probabilities, labels)
    some = counts > 0
    return float(np.sum(counts[some] * np.abs(said - right)[some]) / len(labels))


def plot_reliability(results, temperature, path, kind):
    """Save the reliability diagram of the test set, before and after calibration, and print both errors.

    Args:
        results: dict from `cnn_utils.evaluate`, of the calibrated model.
        temperature: float from `calibrate`.
        path: file to write, a PNG.
        kind: "real", "synthetic" or "folder".

    Returns:
        dict with `temperature` and the expected calibration errors, `calibration_error_before` and `_after`.
    """
    labels = results["labels"]
    before, after = undo_temperature(results["probabilities"], temperature), results["probabilities"]
    errors = [calibration_error(before, labels), calibration_error(after, labels)]
    figure, axes = utils.new_figure(4.8, 5.4, 2, 1, height_ratios=(3, 1))
    top, bottom = axes[:, 0]
    top.plot([0, 1], [0, 1], color=utils.GRID, linewidth=1.5, label="as it should be")
    for name, probabilities, error, colour in (("before", before, errors[0], utils.SECOND),
                                               ("after", after, errors[1], utils.ACCENT)):
        counts, said, right = reliability(probabilities, labels)
        # The area of a point tells how many answers it stands for.
        top.plot(said[counts > 0], right[counts > 0], color=colour, linewidth=1,
                 label=f"{name}: expected error {error:.1%}")
        top.scatter(said, right, s=6 + 200 * counts / len(labels), color=colour, alpha=0.7, linewidths=0)
        bottom.stairs(counts, np.linspace(0, 1, BINS + 1), color=colour, linewidth=1.5)
    top.set(xlim=(0, 1.03), ylim=(-0.03, 1.06), ylabel="share of right answers")
    top.legend(frameon=False, loc="best")
    bottom.set(xlim=(0, 1.03), xlabel="probability of the answer", ylabel="pictures")
    top.grid(color=utils.GRID, linewidth=0.6)
    print(f"\nCalibration: temperature {temperature:.2f}, fitted on the validation split; expected calibration error "
          f"on the test set {errors[0]:.1%} before, {errors[1]:.1%} after")
    utils.save_figure(figure, "Reliability on the test set", path, kind)
    return {"temperature": temperature, "calibration_error_before": errors[0], "calibration_error_after": errors[1]}


# ---------------------------------------------------------------- familiarity

def directions(seen):
    """Scale features (m, n) to length 1: their angle tells more of a picture's kind than their size."""
    return seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-6)


def familiar_features(model, x, seed):
    """Return the directions of the features of the training pictures, of `FAMILIAR` of them at the most.

    Args:
        model: Keras model.
        x: uint8 array (m, height, width, 3), or pictures on disk.
        seed: int, says which pictures are taken if there are more.

    Returns:
        float16 array (m or FAMILIAR, n).
    """
    chosen = np.random.default_rng(seed).permutation(len(x))[:FAMILIAR]
    return directions(features(model, x.take(np.sort(chosen), axis=0))).astype(np.float16)


def unlikeness(seen, familiar):
    """Return how far pictures are from what was trained on: 1 - cosine of the angle to the tenth nearest.

    Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022.

    Args:
        seen: float array (m, n) from `features`.
        familiar: array (t, n) from `familiar_features`.

    Returns:
        float array (m,), 0 to 2.
    """
    cosines = directions(seen) @ familiar.astype(np.float32).T
    nearest = min(NEIGHBOUR, cosines.shape[1])
    return 1 - np.partition(cosines, -nearest, axis=1)[:, -nearest]


def usual_unlikeness(model, x, familiar):
    """Return the `unlikeness` that only one in a hundred of the validation pictures exceeds, a float."""
    return float(np.quantile(unlikeness(features(model, x), familiar), 0.99))


# ------------------------------------------------------------------ prediction

def views(picture):
    """Return ten views of a picture (size, size, 3): four corners and the middle, each mirrored, too.

    After Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep
    Convolutional Neural Networks", 2012, section 4.1. The parts are nine tenths
    of the picture's side, scaled to its size.
    """
    from PIL import Image

    size = len(picture)
    part, rest = round(0.9 * size), size - round(0.9 * size)
    whole = Image.fromarray(picture)
    boxes = [(left, top, left + part, top + part) for top in (0, rest) for left in (0, rest)]
    parts = [np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box)) for box in boxes]
    pictures = np.stack([picture, *parts])
    return np.concatenate([pictures, pictures[:, :, ::-1]])


def last_maps(model):
    """Return the number of the last layer whose output is maps, (batch, height, width, channels), of several places.

    Raises:
        ValueError: there is none.
    """
    for number, layer in reversed(list(enumerate(model.layers))):
        shape = layer.output.shape
        if len(shape) == 4 and shape[1] * shape[2] > 1:
            return number
    raise ValueError("Grad-CAM needs a layer with an output of four dimensions and more than one place. "
                     f"Received: {model.name}, which has none")


def grad_cam(model, picture, label):
    """Return what speaks for a class, and where.

    The last maps of the network, weighted with the gradient of the class's logit
    and added up, without what speaks against it (Selvaraju et al., "Grad-CAM:
    Visual Explanations from Deep Networks via Gradient-based Localization",
    2017, section 3).

    Args:
        model: Keras model.
        picture: uint8 array (size, size, 3).
        label: int, the class.

    Returns:
        float array (height, width) of the last maps, 0 to 1; all 0 if nothing speaks for the class.
    """
    import tensorflow as tf
    from keras import Model

    number = last_maps(model)
    head = model.layers[-1]
    maps = Model(model.inputs[0], model.layers[number].output)(tf.cast(picture[None], tf.float32), training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        seen = maps
        for layer in model.layers[number + 1:-1]:       # behind the last maps, every network here is a chain
            seen = layer(seen)
        sums = seen @ head.kernel + head.bias
        # A single sigmoid's sum speaks for class 1; its negative speaks for class 0.
        score = sums[0, label] if sums.shape[1] > 1 else (2 * label - 1) * sums[0, 0]
    gradients = tape.gradient(score, maps)
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * maps, axis=3))[0].numpy()
    return heat / heat.max() if heat.max() > 0 else heat
