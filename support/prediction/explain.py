"""Grad-CAM: which parts of an image support a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017, section 3;
each gradient stays at its position, as in HiResCAM (Draelos and Carin, "Use HiResCAM instead of Grad-CAM for Faithful
Explanations of Convolutional Neural Networks", 2020, section 3), because a later convolution may ask for different
things in different places.
"""

import keras
import matplotlib
import numpy as np
from keras import Model, Sequential, ops
from keras.layers import ReLU
from PIL import Image


def last_conv_layer(model):
    """Return the index of the last layer whose output (batch, height, width, channels) shows where something is.

    That is a ReLU with 4x4 positions or more, as its outputs are evidence, never negative; or, if no such layer has a
    plain chain of layers behind it, the last one with more than one position.
    Raises ValueError: no layer has.
    """
    coarse = None
    for index, layer in reversed(list(enumerate(model.layers))):
        shape = layer.output.shape
        if len(shape) == 4 and shape[1] * shape[2] > 1:
            if min(shape[1:3]) >= 4 and isinstance(layer, ReLU):
                return index
            coarse = index if coarse is None else coarse
        if coarse is not None and isinstance(layer.input, list):
            return coarse  # two paths meet here
    if coarse is None:
        problem = "Grad-CAM needs a layer with a four-dimensional output of more than one position"
        raise ValueError(f"{problem}; {model.name} has none")
    return coarse


def grad_cam(model, image, label):
    """Return a heatmap of the evidence for a class.

    It adds up the last feature maps, weighted by the gradient of the class's logit, and keeps what is positive.

    Args:
        model: Keras model that has no path around its last feature maps.
        image: uint8 array (size, size, 3).
        label: int, the class.

    Returns: float array (height, width) of the feature maps, 0 to 1; all 0 if there is no evidence.
    """
    index, head = last_conv_layer(model), model.layers[-1]
    maps = Model(model.inputs[0], model.layers[index].output)(ops.cast(image[None], "float32"), training=False)
    if isinstance(model, Sequential):  # a chain, whose layers keep no graph from one to the next
        rest = Sequential(model.layers[index + 1 : -1])
    else:  # paths may meet behind the maps
        rest = Model(model.layers[index].output, head.input)

    def score(x):
        logits = ops.matmul(rest(x), head.kernel) + head.bias
        # The logit of a single sigmoid is evidence for class 1, its negative for class 0.
        return logits[0, label] if logits.shape[1] > 1 else (2 * label - 1) * logits[0, 0]

    evidence = ops.sum(_gradient(score, maps) * maps, axis=3)[0]
    heatmap = np.maximum(ops.convert_to_numpy(evidence), 0)
    return heatmap / heatmap.max() if heatmap.max() > 0 else heatmap


def _gradient(function, x):
    """Return the gradient of a scalar function at x; Keras leaves this to its backend."""
    if keras.config.backend() == "jax":
        import jax

        return jax.grad(function)(x)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.gradient(y, x)


def overlay_heatmap(model, image, label):
    """Return the image (size, size, 3) in gray under its Grad-CAM heatmap, uint8 (4 size, 4 size, 3)."""
    size = (4 * len(image), 4 * len(image))
    heatmap = Image.fromarray(grad_cam(model, image, label).astype(np.float32))
    heatmap = np.clip(np.asarray(heatmap.resize(size, Image.Resampling.BICUBIC)), 0, 1)
    gray = Image.fromarray(image).convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return _tinted(np.asarray(gray), heatmap)


def _tinted(gray, heatmap):
    """Blend gray pixels (..., 3), 0-255, with the colors of a heatmap (...), 0 to 1; return uint8 (..., 3)."""
    colors = matplotlib.colormaps["inferno"](heatmap)[..., :3] * 255
    return (0.55 * gray + 0.45 * colors).astype(np.uint8)


# For a figure of overlays: the colors on medium gray, and what the first and the last mean.
COLOR_BAR = _tinted(np.full((256, 3), 128), np.linspace(0, 1, 256)), "no evidence", "the strongest in this image"
