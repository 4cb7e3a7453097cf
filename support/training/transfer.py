"""Transfer learning: the features that frozen layers compute, once for each image, and a weight decay that suits them.

Yosinski et al., "How transferable are features in deep neural networks?", 2014.
"""

import contextlib
import hashlib
import re

import numpy as np
from scipy.optimize import minimize
from tqdm import tqdm

from basics.errors import InputError
from basics.files import atomic_write
from datasets.splits import stratified_folds
from support.evaluation.outputs import class_labels, sample_weights
from support.training import distribution

BATCH = 32

# Options of layers that do not change what they compute.
NO_MATTER = "^(name|trainable|dtype)$|_initializer$|_regularizer$"

# The weight decays that are compared, the largest first: each starts from the weights that the one before found.
WEIGHT_DECAYS = (1e-2, 1e-3, 1e-4, 1e-5)
FOLDS = 5
# More images than this would make the comparison slow, and would hardly change its result.
MOST_IMAGES = 1000


def frozen_features(model, x, y, cache_dir=None, mirrored=False):
    """Return what all layers but the last make of each image, and the labels.

    Args:
        model: Keras model whose last layer is `Dense`.
        x: uint8 array (m, height, width, 3), or `ImageFiles`.
        y: labels (m, ...).
        cache_dir: `pathlib.Path` of a folder that keeps the features for later runs; None: they are not kept.
        mirrored: bool; the mirror images follow, with the same labels.

    Returns: float32 (m, n) and labels (m, ...); (2m, n) and (2m, ...) with the mirror images.
    Raises InputError: the training is distributed.
    """
    if distribution.rank().distributed:
        raise InputError("Transfer learning runs on one device", "Run it in one process, without --distribute")
    turns = (1, -1) if mirrored else (1,)
    with _FeatureCache(model, cache_dir) as cache, _float32(model):
        total = len(turns) * len(x)
        bar = tqdm(total=total, desc="Computing features", unit=" images", leave=False, disable=None)  # not in a log
        with bar:
            rows = [
                cache.features(np.ascontiguousarray(x[start : start + BATCH][:, :, ::turn]), bar)
                for turn in turns
                for start in range(0, len(x), BATCH)
            ]
    return np.concatenate(rows), np.concatenate([y] * len(turns))


class _FeatureCache:
    """The features that a model has computed, by the content of the images; a file keeps them for later runs.

    The name of the file depends on the model's layers, weights and image size, so another model has another file.
    """

    def __init__(self, model, folder):
        from keras import Model

        self.body = Model(model.inputs[0], model.layers[-1].input)
        digest = hashlib.blake2b(digest_size=8)
        for layer in self.body.layers:
            config = {name: value for name, value in layer.get_config().items() if not re.search(NO_MATTER, name)}
            digest.update(f"{type(layer).__name__} {config}".encode())
            for array in layer.get_weights():
                digest.update(np.ascontiguousarray(array))
        self.path = folder and folder / f"features_{digest.hexdigest()}.npy"
        self.record = record_type(self.body.output_shape[-1])
        self.known, self.stored = {}, 0

    def __enter__(self):
        if self.path:
            self.known = read_features(self.path, self.record)
        self.stored = len(self.known)
        return self

    def __exit__(self, *error):
        """Save what was computed, also after Ctrl-C."""
        if self.path is None or len(self.known) == self.stored:
            return
        records = np.empty(len(self.known), self.record)
        for number, (key, features) in enumerate(self.known.items()):
            records[number] = np.void(key), features
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path, records.nbytes + 1_000_000, fix="Choose another --cache-dir") as temporary:
                np.save(temporary, records, allow_pickle=False)
        except (OSError, InputError) as problem:
            print(f"Features are not cached, so the next run computes them again. {problem}")

    def features(self, images, bar):
        """Return the features (b, n) of uint8 images (b, height, width, 3), b at most BATCH."""
        keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        missing = [number for number, key in enumerate(keys) if key not in self.known]
        if missing:
            # Always a whole batch, because the sums of a smaller one may be rounded differently.
            batch = images[np.resize(missing, BATCH)].astype(np.float32)
            computed = np.asarray(self.body.predict_on_batch(batch), np.float32)
            self.known.update((keys[number], features) for number, features in zip(missing, computed))
        bar.update(len(images))
        return np.stack([self.known[key] for key in keys])


def record_type(count):
    """Return the dtype of a record: `count` features of an image, and the key of its pixels."""
    return np.dtype([("key", "V16"), ("features", np.float32, (count,))])


def read_features(path, record):
    """Return the features in a cache file, a dict from key to float32 (n,); an empty one if the file is of no use."""
    try:
        # Mapped first, or a damaged file may ask for more memory than there is.
        records = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception:  # NumPy raises many types; whatever the reason, the features are computed again
        return {}
    if records.dtype != record or records.ndim != 1 or not np.isfinite(records["features"]).all():
        return {}
    return dict(zip(records["key"].tolist(), records["features"]))


@contextlib.contextmanager
def _float32(model):
    """Let a model compute in float32 in a `with` block: 16 bits would round the features."""
    policies = [layer.dtype_policy for layer in model.layers]
    try:
        for layer in model.layers:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(model.layers, policies):
            layer.dtype_policy = policy


def choose_weight_decay(features, y, groups=None, class_weight=None):
    """Return the weight decay of a `Dense` layer with softmax that cross-validation finds best, and print it.

    The loss is the mean cross-entropy plus the weight decay times the sum of the squared weights, which is what
    `keras.regularizers.L2` adds.

    Args:
        features, y: float32 (m, n) and one-hot labels (m, k).
        groups: int (m,), which images stay together in each split; None: each stands alone.
        class_weight: dict from label to weight in the loss, or None.

    Returns: float, one of `WEIGHT_DECAYS`.
    """
    weights = np.ones(len(y), np.float32) if class_weight is None else sample_weights(y, class_weight)
    folds = _folds(class_labels(y), groups)
    losses = np.zeros(len(WEIGHT_DECAYS))
    for fold in range(folds.max() + 1):
        train, test = np.flatnonzero((folds >= 0) & (folds != fold)), np.flatnonzero(folds == fold)
        # In the directions that the training features span: a kernel's other directions stay 0.
        span = _span(features[train])
        train_x, test_x = features[train] @ span, features[test] @ span
        kernel = np.zeros((span.shape[1] + 1, y.shape[1]), np.float32)
        for number, decay in enumerate(WEIGHT_DECAYS):
            kernel = fit_last_layer(train_x, y[train], weights[train], decay, kernel)
            losses[number] -= np.sum(weights[test, None] * y[test] * _log_softmax(test_x @ kernel[:-1] + kernel[-1]))
    best = WEIGHT_DECAYS[int(losses.argmin())]
    print(f"Weight decay {best:g}, the best of {len(losses)} in {folds.max() + 1}-fold cross-validation")
    return best


def _folds(labels, groups):
    """Return the fold of each image, int (m,); -1 for those that are left out, because there are many."""
    chosen = np.random.default_rng(0).permutation(len(labels))[:MOST_IMAGES]
    folds = np.full(len(labels), -1)
    fewest = np.unique(labels[chosen], return_counts=True)[1].min()
    groups = None if groups is None else groups[chosen]
    count = int(np.clip(fewest, 2, FOLDS))
    folds[chosen] = stratified_folds(labels[chosen], count, groups)
    return folds


def _span(x):
    """Return an orthonormal basis (n, r) of the directions of features (m, n), r at most m and n."""
    if x.shape[0] >= x.shape[1]:
        return np.eye(x.shape[1], dtype=np.float32)
    return np.linalg.qr(x.T)[0]


def _log_softmax(logits):
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def fit_last_layer(x, y, weights, decay, start=None):
    """Return the kernel and, in its last row, the bias (n + 1, k) that minimize the loss of `choose_weight_decay`.

    Args:
        x, y: float32 features (m, n) and one-hot labels (m, k).
        weights: float32 (m,), how much each counts in the loss.
        decay: float, the weight decay.
        start: float32 (n + 1, k), where the search begins; None: zeros.
    """
    start = np.zeros((x.shape[1] + 1, y.shape[1]), np.float32) if start is None else start

    def loss(flat):
        kernel = flat.reshape(start.shape).astype(np.float32)
        log_p = _log_softmax(x @ kernel[:-1] + kernel[-1])
        errors = weights[:, None] * (np.exp(log_p) - y) / len(y)
        gradient = np.vstack([x.T @ errors + 2 * decay * kernel[:-1], errors.sum(axis=0)])
        value = decay * np.sum(kernel[:-1] ** 2) - np.sum(weights[:, None] * y * log_p) / len(y)
        return float(value), gradient.ravel().astype(np.float64)

    options = {"maxiter": 100, "gtol": 1e-4}
    return minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(start.shape)
