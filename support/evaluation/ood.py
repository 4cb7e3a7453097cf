"""Out-of-distribution detection: is an image unlike everything the network was trained on?

Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022.
"""

import numpy as np

from support.evaluation.outputs import features

# The tenth neighbor, because the first may be a photograph of the same hand, taken a moment before.
K = 10

# The number of training images that are kept: with 768 features each they take 0.9 MB.
BANK_SIZE = 600

# The features of this many images are in memory at a time.
BATCH = 512


def l2_normalize(features):
    """Scale features (m, n) to length 1: their direction says more about an image than their size."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)


def feature_bank(model, x, seed):
    """Return the normalized features of the training images, or of a sample of them.

    Args:
        model: Keras model whose last layer is `Dense`.
        x: uint8 array (m, height, width, 3), or `ImageFiles`.
        seed: int, fixes the sample.

    Returns: float16 array (min(m, BANK_SIZE), n).
    """
    chosen = np.random.default_rng(seed).permutation(len(x))[:BANK_SIZE]
    return l2_normalize(features(model, x.take(np.sort(chosen), axis=0))).astype(np.float16)


def knn_distance(features, bank):
    """Return the cosine distance, 0 to 2, of features (m, n) to the K-th nearest in the bank (t, n), as (m,)."""
    similarity = l2_normalize(features) @ bank.astype(np.float32).T
    k = min(K, similarity.shape[1])
    return 1 - np.partition(similarity, -k, axis=1)[:, -k]


def distances_to_training(model, x, bank):
    """Return `knn_distance` (m,) of images x (m, height, width, 3), an array or `ImageFiles`."""
    starts = range(0, len(x), BATCH)
    return np.concatenate([knn_distance(features(model, x[start : start + BATCH]), bank) for start in starts])


def ood_threshold(model, x, bank):
    """Return the k-NN distance, a float, that one in a hundred of the validation images x exceeds."""
    return float(np.quantile(distances_to_training(model, x, bank), 0.99))
