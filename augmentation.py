"""What may change in a picture while its label stays true, for a batch of pictures at a time.

    rewall      another wall behind a hand
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

import numpy as np
import tensorflow as tf


def draws(seed, part):
    """Return a function that draws random numbers: `uniform(shape, low, high)`, others at every call."""
    calls = iter(range(1000))

    def uniform(shape, low, high):
        key = tf.random.fold_in(tf.random.fold_in(seed, part), next(calls))
        return tf.random.stateless_uniform(shape, key, low, high)
    return uniform


def rewall(pictures, seed, share):
    """Put another wall, of random colour and texture, behind the hand in a share of the pictures.

    What belongs to the hand is told by its redness, the logarithm of red over
    blue, which does not change with brightness: skin has more of it than a wall
    of grey or cold colour. Before a wall that is as red as skin the hand gets
    holes, or a halo; a network has to live with that in a photograph as well.

    Args:
        pictures: (batch, height, width, 3), 0-255, each a hand before a plain wall.
        seed: int64 tensor (2,).
        share: share of the pictures that get another wall, 0 to 1.

    Returns:
        float32 tensor of the shape of `pictures`.
    """
    whole = tf.cast(pictures, tf.float32)
    if not share:
        return whole
    height, width = whole.shape[1:3]
    # The first pictures of a batch, for the order is random already: only these take time. One at least:
    # TensorFlow cannot convolve none.
    batch = tf.cast(tf.math.ceil(share * tf.cast(tf.shape(whole)[0], tf.float32)), tf.int32)
    pictures = whole[:batch]
    uniform = draws(seed, 0)
    redness = soften(tf.math.log((pictures[..., :1] + 1) / (pictures[..., 2:] + 1)))
    # Of squares of 4x4 pixels, a sixteenth of the numbers. The wall's redness is the median along the upper edges,
    # for the arm comes from below; the skin's is near the top of all.
    squares = tf.nn.avg_pool2d(redness, 4, 4, "VALID")[..., 0]
    upper = squares.shape[1] * 5 // 8
    wall = quantile(tf.concat([squares[:, 0], squares[:, :upper, 0], squares[:, :upper, -1]], axis=1), 0.5)
    skin = quantile(tf.reshape(squares, [batch, squares.shape[1] * squares.shape[2]]), 0.96)
    # 0 up to a quarter of the way from wall to skin, 1 from two thirds on: the soft edge is a pixel or two wide.
    hand = tf.clip_by_value(2.5 * (redness - wall) / (skin - wall + 1e-3) - 0.6, 0, 1)
    # Large stains in colour, small ones in brightness.
    stains = (enlarge(uniform([batch, 6, 6, 3], -1.7, 1.7), height, width)
              + enlarge(uniform([batch, 20, 20, 1], -1.7, 1.7), height, width))
    other = uniform([batch, 1, 1, 3], 0, 255) + uniform([batch, 1, 1, 1], 0, 40) * stains
    return tf.concat([hand * pictures + (1 - hand) * tf.clip_by_value(other, 0, 255), whole[batch:]], axis=0)


def enlarge(pattern, height, width):
    """Bring (batch, rows, columns, channels) to (batch, height, width, channels), bilinear.

    What `tf.image.resize` does, as two products of matrices: several times faster for a small pattern.
    """
    def weights(size, cells):
        # Where the middle of each pixel lies among the middles of the cells; a cell's weight falls to 0 at the next.
        place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)
    rows, columns = weights(height, pattern.shape[1]), weights(width, pattern.shape[2])
    return tf.einsum("hi,bijc,wj->bhwc", rows, pattern, columns)


def quantile(values, share):
    """The value in each row of (batch, n) below which this share of the row lies, as (batch, 1, 1, 1)."""
    largest = tf.math.top_k(values, values.shape[1] - int(share * values.shape[1])).values
    return largest[:, -1, None, None, None]


def soften(pictures):
    """Convolve with the binomial kernel 1 4 6 4 1, a bell of one pixel's standard deviation."""
    row = tf.constant([1, 4, 6, 4, 1], tf.float32) / 16
    kernel = tf.tile((row[:, None] * row)[:, :, None, None], [1, 1, pictures.shape[3], 1])
    edges = tf.pad(pictures, [[0, 0], [2, 2], [2, 2], [0, 0]], "SYMMETRIC")
    return tf.nn.depthwise_conv2d(edges, kernel, [1, 1, 1, 1], "VALID")


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


def relight(pictures, seed, *, colour=0.0, grey=0.0, tone=0.0, contrast=0.0, brightness=0.0, shadow=0.0):
    """Change colours and light as other people, lamps, cameras and rooms would.

    Args:
        pictures: (batch, height, width, 3), 0-255.
        seed: int64 tensor (2,).
        colour: each channel stronger or weaker by this share, at most; the saturation by twice as much.
        grey: share of the pictures that lose all colour.
        tone: midtones darker or brighter by this share of their distance from black and white, at most 1.
        contrast: more or less by this share, at most.
        brightness: added or taken, at most, as a share of white.
        shadow: how strongly a smooth random pattern darkens and brightens parts of the picture.

    Returns:
        float32 tensor of the shape of `pictures`, clipped to 0-255.
    """
    height, width, channels = pictures.shape[1:]
    batch = tf.shape(pictures)[0]
    uniform = draws(seed, 2)
    # Saturation, colour, contrast and brightness are one matrix and one offset for each picture.
    pixels = tf.reshape(tf.cast(pictures, tf.float32), [batch, height * width, channels])
    luma = np.tile(np.array([[0.299], [0.587], [0.114]], np.float32), channels)     # ITU-R BT.601
    saturation = (tf.exp(uniform([batch, 1, 1], -2 * colour, 2 * colour))
                  * tf.cast(uniform([batch, 1, 1], 0, 1) >= grey, tf.float32))
    gain = tf.exp(uniform([batch, 1, channels], -colour, colour))
    matrix = (saturation * np.eye(channels, dtype=np.float32) + (1 - saturation) * luma) * gain
    mean = tf.reduce_mean(tf.reduce_mean(pixels, axis=1, keepdims=True) @ matrix, axis=2, keepdims=True)
    strength = tf.exp(uniform([batch, 1, 1], -contrast, contrast))
    offset = mean * (1 - strength) + 255 * uniform([batch, 1, 1], -brightness, brightness)
    pictures = tf.reshape(pixels @ (strength * matrix) + offset, [batch, height, width, channels])
    if shadow:
        # Two uniform numbers make a rounder distribution than one; 4x4 of them, filled in.
        pattern = uniform([batch, 4, 4, 1], -1, 1) + uniform([batch, 4, 4, 1], -1, 1)
        pictures *= tf.exp(uniform([batch, 1, 1, 1], 0, shadow) * enlarge(pattern, height, width))
    pictures = tf.clip_by_value(pictures, 0, 255)
    # A parabola through black and white: does what a gamma does, in a tenth of a power's time.
    bend = uniform([batch, 1, 1, 1], -tone, tone)
    return pictures * ((1 + bend) - bend / 255 * pictures)


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
        # Mixed with the picture, the bell makes a narrower one.
        soft = soften(pictures)
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
