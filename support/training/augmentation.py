"""Random changes that leave the label true, for a batch of images at a time.

Each function takes images (batch, height, width, 3), 0-255, and a seed, an int64 tensor from `batches.Batches`, and
returns float32 images of the same shape, every image changed differently. The result depends only on the seed, so
several threads can augment batches and a run can still be repeated. Keras's own layers hold a generator, which ties
them to one thread, and they resample the image once for each change.
"""

import math

import numpy as np
import tensorflow as tf


def replace_background(images, seed, fraction):
    """Put a background of random color and texture behind the hand in a fraction of the images.

    The hand is recognized by its redness, the logarithm of red over blue, which does not depend on the brightness: skin
    is redder than a gray, blue or green wall. In front of a wall as red as skin, the hand gets holes or a halo.

    Args:
        images: (batch, height, width, 3), 0-255, each a hand in front of a plain wall.
        fraction: the fraction of the images to change, 0 to 1.
    """
    whole = tf.cast(images, tf.float32)
    if not fraction:
        return whole
    height, width = whole.shape[1:3]
    # The first images of the batch are changed: their order is random already.
    first, total = _position(seed, tf.shape(whole)[0])
    count = tf.cast(tf.math.ceil(fraction * tf.cast(total, tf.float32)), tf.int32)
    count = tf.clip_by_value(count - first, 0, tf.shape(whole)[0])
    batch = tf.maximum(count, 1)  # TensorFlow cannot compute a quantile of no images
    images = whole[:batch]
    uniform = _random(seed, 0)
    redness = _blur(tf.math.log((images[..., :1] + 1) / (images[..., 2:] + 1)))
    # Means of 4x4 pixels save time. The arm comes from below, so the median along the upper edges is the wall's.
    cells = tf.nn.avg_pool2d(redness, 4, 4, "VALID")[..., 0]
    upper = cells.shape[1] * 5 // 8
    wall = _quantile(tf.concat([cells[:, 0], cells[:, :upper, 0], cells[:, :upper, -1]], axis=1), 0.5)
    skin = _quantile(tf.reshape(cells, [batch, cells.shape[1] * cells.shape[2]]), 0.96)
    # From 0, up to a quarter of the way from wall to skin, to 1, from two thirds on: a soft edge of a pixel or two.
    hand = tf.clip_by_value(2.5 * (redness - wall) / (skin - wall + 1e-3) - 0.6, 0, 1)
    # Large patches of color and small ones of brightness.
    patches = upsample(uniform(0, [batch, 6, 6, 3], -1.7, 1.7), height, width)
    patches += upsample(uniform(1, [batch, 20, 20, 1], -1.7, 1.7), height, width)
    background = uniform(2, [batch, 1, 1, 3], 0, 255) + uniform(3, [batch, 1, 1, 1], 0, 40) * patches
    changed = hand * images + (1 - hand) * tf.clip_by_value(background, 0, 255)
    return tf.concat([changed[:count], whole[count:]], axis=0)


def random_affine(images, seed, *, flip=False, rotation=0.0, shift=0.0, zoom=0.0):
    """Mirror, rotate, shift and zoom in one resampling; the edge pixels are repeated beyond the edge.

    Args:
        flip: bool, mirror half of the images, left to right.
        rotation: largest angle to either side, in degrees.
        shift: largest shift in each direction, as a fraction of height and width.
        zoom: largest change of size, as a fraction.
    """
    images = tf.cast(images, tf.float32)
    height, width = images.shape[1:3]
    batch = tf.shape(images)[:1]
    uniform = _random(seed, 1)
    angle = uniform(0, batch, -math.radians(rotation), math.radians(rotation))
    size = tf.exp(uniform(1, batch, -zoom, zoom))
    mirror = tf.where(uniform(3, batch, 0, 1) < (0.5 if flip else 0.0), -1.0, 1.0)
    cos, sin = tf.cos(angle) * size, tf.sin(angle) * size
    # For each point of the result, measured from the center, the point of the image that is shown there.
    xx, xy, yx, yy = cos * mirror, -sin, sin * mirror, cos
    x0, y0 = (width - 1) / 2, (height - 1) / 2
    dx = x0 - xx * x0 - xy * y0 + width * uniform(5, batch, -shift, shift)
    dy = y0 - yx * x0 - yy * y0 + height * uniform(6, batch, -shift, shift)
    zero = tf.zeros(batch)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([xx, xy, dx, yx, yy, dy, zero, zero], axis=1),
        output_shape=[height, width],
        interpolation="BILINEAR",
        fill_mode="NEAREST",
        fill_value=0.0,
    )


def color_jitter(images, seed, *, color=0.0, gray=0.0, tone=0.0, contrast=0.0, brightness=0.0, shadow=0.0):
    """Change color and lighting as other people, lamps, cameras and rooms would.

    Args:
        color: largest change of each channel, as a fraction; saturation changes by up to twice as much.
        gray: probability that an image loses all color.
        tone: largest change of the midtones, as a fraction of their distance from black and white, at most 1.
        contrast: largest change of the contrast, as a fraction.
        brightness: largest change of the brightness, as a fraction of white.
        shadow: how strongly a smooth random pattern darkens and brightens parts of the image.
    """
    height, width, channels = images.shape[1:]
    batch = tf.shape(images)[0]
    uniform = _random(seed, 2)
    # Saturation, color, contrast and brightness are one matrix and one offset for each image.
    pixels = tf.reshape(tf.cast(images, tf.float32), [batch, height * width, channels])
    luma = np.tile(np.array([[0.299], [0.587], [0.114]], np.float32), channels)  # ITU-R BT.601
    colored = tf.cast(uniform(1, [batch, 1, 1], 0, 1) >= gray, tf.float32)
    saturation = tf.exp(uniform(0, [batch, 1, 1], -2 * color, 2 * color)) * colored
    gain = tf.exp(uniform(2, [batch, 1, channels], -color, color))
    matrix = (saturation * np.eye(channels, dtype=np.float32) + (1 - saturation) * luma) * gain
    mean = tf.reduce_mean(tf.reduce_mean(pixels, axis=1, keepdims=True) @ matrix, axis=2, keepdims=True)
    strength = tf.exp(uniform(3, [batch, 1, 1], -contrast, contrast))
    offset = mean * (1 - strength) + 255 * uniform(4, [batch, 1, 1], -brightness, brightness)
    images = tf.reshape(pixels @ (strength * matrix) + offset, [batch, height, width, channels])
    if shadow:
        # The sum of two uniform numbers, on a coarse grid; small values are more likely than large ones.
        pattern = uniform(5, [batch, 4, 4, 1], -1, 1) + uniform(6, [batch, 4, 4, 1], -1, 1)
        images *= tf.exp(uniform(7, [batch, 1, 1, 1], 0, shadow) * upsample(pattern, height, width))
    images = tf.clip_by_value(images, 0, 255)
    # A parabola through black and white is like a gamma curve, in a tenth of the time.
    bend = uniform(8 if shadow else 5, [batch, 1, 1, 1], -tone, tone)
    return images * ((1 + bend) - bend / 255 * images)


def upsample(pattern, height, width):
    """Enlarge (batch, rows, columns, channels) to (batch, height, width, channels), bilinearly.

    Two matrix products compute the same as `tf.image.resize`, several times faster for a small pattern.
    """

    def weights(size, cells):
        # The center of each pixel among the centers of the cells; a cell's weight falls to 0 at the next center.
        position = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))).astype(np.float32)

    rows, columns = weights(height, pattern.shape[1]), weights(width, pattern.shape[2])
    return tf.einsum("hi,bijc,wj->bhwc", rows, pattern, columns)


def _position(seed, count):
    """Return the position of the first of `count` images in its batch, and the size of the batch, int32.

    A seed is two numbers. If several processes share a batch, two more follow: these. Each image is then changed as it
    would be in the whole batch.
    """
    return (0, count) if seed.shape[0] == 2 else tf.unstack(tf.cast(seed[2:], tf.int32))


def _random(seed, function):
    """Return `uniform(key, shape, low, high)`, a source of random numbers.

    `function` and `key` tell the uses of a seed apart. Changing one of them changes the result of every training.
    """
    key_of_function = tf.random.fold_in(seed[:2], function)

    def uniform(key, shape, low, high):
        key = tf.random.fold_in(key_of_function, key)
        first, total = _position(seed, shape[0])
        whole = tf.random.stateless_uniform(tf.concat([[total], shape[1:]], axis=0), key, low, high)
        return whole[first : first + shape[0]]

    return uniform


def _quantile(values, fraction):
    """Return the value below which this fraction of each row of (batch, n) lies, as (batch, 1, 1, 1)."""
    largest = tf.math.top_k(values, values.shape[1] - int(fraction * values.shape[1])).values
    return largest[:, -1, None, None, None]


def _blur(images):
    """Convolve with the binomial kernel 1 4 6 4 1, close to a Gaussian with a standard deviation of one pixel."""
    row = tf.constant([1, 4, 6, 4, 1], tf.float32) / 16
    kernel = tf.tile((row[:, None] * row)[:, :, None, None], [1, 1, images.shape[3], 1])
    padded = tf.pad(images, [[0, 0], [2, 2], [2, 2], [0, 0]], "SYMMETRIC")
    return tf.nn.depthwise_conv2d(padded, kernel, [1, 1, 1, 1], "VALID")
