"""What may change in a picture while its label stays true, for a batch of pictures at a time.

    move        mirrored, turned, shifted, zoomed, stretched, slanted: one resampling for all of it
    relight     other skin and lamps, grey film, exposure, contrast, shadows across the picture
    degrade     out of focus, noisy, partly hidden

Each function takes pictures (batch, height, width, 3), 0-255, and a seed, and
returns float32 pictures of the same shape. All that is random comes from the
seed alone, a different draw for each picture: so several threads can work on
several batches and the run can still be repeated. (Keras's own layers hold a
generator, and are therefore bound to one thread; four of them to turn, shift,
zoom and mirror resample the picture four times.)
"""

import math

import tensorflow as tf


def draws(seed, part):
    """Return a function that draws random numbers: `uniform(shape, low, high)`, others at every call."""
    calls = iter(range(1000))

    def uniform(shape, low, high):
        key = tf.random.fold_in(tf.random.fold_in(seed, part), next(calls))
        return tf.random.stateless_uniform(shape, key, low, high)
    return uniform


def move(pictures, seed, *, flip=False, rotation=0.0, shift=0.0, zoom=0.0, stretch=0.0, slant=0.0):
    """Mirror, turn, shift, zoom, stretch and slant; what comes in at the edge repeats the edge.

    Args:
        pictures: (batch, height, width, 3), 0-255.
        seed: int64 tensor (2,).
        flip: mirror every second picture, left to right.
        rotation: degrees, at most, to either side.
        shift: share of height and width, at most, in either direction.
        zoom: larger or smaller by this share, at most.
        stretch: wider or narrower by this share, at most.
        slant: tangent of the largest angle by which uprights lean.

    Returns:
        float32 tensor of the shape of `pictures`.
    """
    pictures = tf.cast(pictures, tf.float32)
    height, width = pictures.shape[1:3]
    batch = tf.shape(pictures)[:1]
    uniform = draws(seed, 1)
    angle = uniform(batch, -math.radians(rotation), math.radians(rotation))
    size = tf.exp(uniform(batch, -zoom, zoom))
    aspect = tf.exp(uniform(batch, -stretch / 2, stretch / 2))
    mirror = tf.where(uniform(batch, 0, 1) < (0.5 if flip else 0.0), -1.0, 1.0)
    lean = uniform(batch, -slant, slant)
    cos, sin = tf.cos(angle), tf.sin(angle)
    # From a point of the result, measured from the middle, to the point of the picture that is seen there:
    # turned * slanted * scaled.
    xx, xy = cos * size * aspect * mirror, (lean * cos - sin) * size / aspect
    yx, yy = sin * size * aspect * mirror, (lean * sin + cos) * size / aspect
    x0, y0 = (width - 1) / 2, (height - 1) / 2
    dx = x0 - xx * x0 - xy * y0 + width * uniform(batch, -shift, shift)
    dy = y0 - yx * x0 - yy * y0 + height * uniform(batch, -shift, shift)
    zero = tf.zeros(batch)
    # Keras's layers end in this operation, too.
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pictures, transforms=tf.stack([xx, xy, dx, yx, yy, dy, zero, zero], axis=1),
        output_shape=[height, width], interpolation="BILINEAR", fill_mode="NEAREST", fill_value=0.0)


def relight(pictures, seed, *, colour=0.0, grey=0.0, gamma=0.0, contrast=0.0, brightness=0.0, shadow=0.0):
    """Change colours and light as other people, lamps, cameras and rooms would.

    Args:
        pictures: (batch, height, width, 3), 0-255.
        seed: int64 tensor (2,).
        colour: each channel stronger or weaker by this share, at most; the saturation by twice as much.
        grey: share of the pictures that lose all colour.
        gamma: midtones darker or brighter, as exponents exp(-gamma) to exp(gamma).
        contrast: more or less by this share, at most.
        brightness: added or taken, at most, as a share of white.
        shadow: how strongly a smooth random pattern darkens and brightens parts of the picture.

    Returns:
        float32 tensor of the shape of `pictures`, clipped to 0-255.
    """
    pictures = tf.cast(pictures, tf.float32) / 255
    batch = tf.shape(pictures)[0]
    one, channels = [batch, 1, 1, 1], [batch, 1, 1, 3]
    uniform = draws(seed, 2)
    luma = tf.tensordot(pictures, [0.299, 0.587, 0.114], 1)[..., tf.newaxis]      # ITU-R BT.601
    saturation = tf.exp(uniform(one, -2 * colour, 2 * colour)) * tf.cast(uniform(one, 0, 1) >= grey, tf.float32)
    pictures = (luma + saturation * (pictures - luma)) * tf.exp(uniform(channels, -colour, colour))
    if shadow:
        # Two uniform numbers make a rounder distribution than one; 4x4 of them, smoothly filled in.
        pattern = uniform([batch, 4, 4, 1], -1, 1) + uniform([batch, 4, 4, 1], -1, 1)
        pattern = tf.image.resize(pattern, pictures.shape[1:3], method="bicubic")
        pictures *= tf.exp(uniform(one, 0, shadow) * pattern)
    # Away from 0, where the slope of a power is infinite or 0.
    pictures = tf.pow(tf.maximum(pictures, 1e-4), tf.exp(uniform(one, -gamma, gamma)))
    mean = tf.reduce_mean(pictures, axis=(1, 2, 3), keepdims=True)
    pictures = mean + (pictures - mean) * tf.exp(uniform(one, -contrast, contrast))
    return tf.clip_by_value(pictures + uniform(one, -brightness, brightness), 0, 1) * 255


def degrade(pictures, seed, *, blur=0.0, noise=0.0, hole=0.0):
    """Blur some pictures, make all of them noisy, hide a part of every second one.

    Args:
        pictures: (batch, height, width, 3), 0-255.
        seed: int64 tensor (2,).
        blur: share of the pictures that are out of focus, by up to one pixel (standard deviation).
        noise: largest standard deviation of the noise, as a share of white.
        hole: largest side of the rectangle of one colour, as a share of the picture's
            (DeVries and Taylor, "Improved Regularization of CNNs with Cutout", 2017).

    Returns:
        float32 tensor of the shape of `pictures`, clipped to 0-255.
    """
    pictures = tf.cast(pictures, tf.float32)
    height, width = pictures.shape[1:3]
    batch = tf.shape(pictures)[0]
    one = [batch, 1, 1, 1]
    uniform = draws(seed, 3)
    if blur:
        # The binomial kernel 1 4 6 4 1 is a bell of standard deviation 1; mixed with the picture, a narrower one.
        row = tf.constant([1, 4, 6, 4, 1], tf.float32) / 16
        kernel = tf.tile((row[:, None] * row)[:, :, None, None], [1, 1, 3, 1])
        edges = tf.pad(pictures, [[0, 0], [2, 2], [2, 2], [0, 0]], "SYMMETRIC")
        soft = tf.nn.depthwise_conv2d(edges, kernel, [1, 1, 1, 1], "VALID")
        pictures += tf.maximum(uniform(one, 1 - 1 / blur, 1), 0) * (soft - pictures)
    if noise:
        bells = tf.random.stateless_normal(tf.shape(pictures), tf.random.fold_in(seed, 4))
        pictures += 255 * uniform(one, 0, noise) * bells
    if hole:
        row = tf.range(height, dtype=tf.float32)[None, :, None, None]
        column = tf.range(width, dtype=tf.float32)[None, None, :, None]
        inside = ((tf.abs(row - uniform(one, 0, height)) < uniform(one, 0, hole * height / 2))
                  & (tf.abs(column - uniform(one, 0, width)) < uniform(one, 0, hole * width / 2))
                  & (uniform(one, 0, 1) < 0.5))
        pictures = tf.where(inside, uniform([batch, 1, 1, 3], 0, 255), pictures)
    return tf.clip_by_value(pictures, 0, 255)
