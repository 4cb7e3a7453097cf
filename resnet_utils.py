"""The residual network of signs_resnet50.py, block by block.

The architecture is ResNet-50 of He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015),
section 3.3 and table 1. As the course describes it, the stride of a stage is on the first 1x1 convolution of its
first block, and the stem's pooling has no padding.

    input -> stem -> stage 2 -> stage 3 -> stage 4 -> stage 5 -> average pooling -> softmax

Every layer with weights has its name from `keras.applications.ResNet50` (`conv3_block1_0_conv` is
the shortcut of the first block of stage 3), so weights can be loaded by name.
"""

from keras import Model, layers

from support.fused_batch_norm import BatchNormalization  # Keras's formula, in one operation
from support.matmul_conv import Conv2D  # Keras's formula, with matrix products where they are faster

# Added to the variance in batch normalisation. The published ImageNet weights were trained with this value.
EPSILON = 1.001e-5

# Keras's 0.99 averages over some 100 steps, three epochs of a thousand images; while the weights still change fast,
# validation would use statistics of a network that is gone.
MOMENTUM = 0.9


def conv_bn(x, filters, kernel_size, name, strides=1, padding="valid", gamma="ones"):
    """Convolution, then batch normalisation over the channels.

    The kernels start from He-normal random numbers (He et al., "Delving Deep into Rectifiers", 2015,
    section 2.2), which preserve the scale of the signal through many ReLU layers. The initializer is
    given by name: one seeded object for all layers would give layers of one shape equal weights.
    """
    x = Conv2D(
        filters, kernel_size, strides=strides, padding=padding, kernel_initializer="he_normal", name=name + "_conv"
    )(x)
    return BatchNormalization(axis=3, epsilon=EPSILON, momentum=MOMENTUM, gamma_initializer=gamma, name=name + "_bn")(x)


def bottleneck(x, filters, kernel_size, strides, name):
    """Conv-BN-ReLU, Conv-BN-ReLU, Conv-BN: what both kinds of block compute beside their shortcut.

    1x1 kernels reduce the channels, kernel_size x kernel_size works on the few that are left, 1x1 restores them. The
    last batch normalisation starts with scale 0, so every block starts as its shortcut, and the deep network trains
    like a shallow one at first (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
    """
    reduced, middle, restored = filters
    x = conv_bn(x, reduced, 1, name + "_1", strides=strides)
    x = layers.ReLU(name=name + "_1_relu")(x)
    x = conv_bn(x, middle, kernel_size, name + "_2", padding="same")
    x = layers.ReLU(name=name + "_2_relu")(x)
    return conv_bn(x, restored, 1, name + "_3", gamma="zeros")


def identity_block(x, filters, kernel_size=3, name="identity"):
    """Residual block whose shortcut is its input, unchanged.

    Args:
        x: tensor (batch, height, width, channels); channels must equal `filters[2]`, or the paths cannot be added.
        filters: three ints, the channels of the three convolutions.
        kernel_size: int, side of the middle convolution's window, in pixels.
        name: str, prefix of the names of the block's layers.

    Returns: Tensor of the shape of `x`.
    Raises ValueError: the channels of `x` are not `filters[2]`.
    """
    if x.shape[-1] != filters[2]:
        expected = "An identity block adds its input to its output, so both must have the same number of channels"
        advice = f"give it {filters[2]}, or use convolutional_block, whose shortcut changes their number"
        raise ValueError(f"{expected}: {advice}. Received: an input with {x.shape[-1]} channels")
    shortcut = x
    x = bottleneck(x, filters, kernel_size, 1, name)
    x = layers.Add(name=name + "_add")([shortcut, x])
    return layers.ReLU(name=name + "_out")(x)


def convolutional_block(x, filters, kernel_size=3, strides=2, name="convolutional"):
    """Residual block with Conv-BN on the shortcut: it changes size and channels.

    Args:
        x: tensor (batch, height, width, channels).
        filters: three ints, the channels of the three convolutions.
        kernel_size: int, side of the middle convolution's window, in pixels.
        strides: int, stride of the first convolution and of the shortcut, in pixels: 2 halves height and width.
        name: str, prefix of the names of the block's layers.

    Returns: Tensor (batch, ceil(height / strides), ceil(width / strides), filters[2]).
    """
    shortcut = conv_bn(x, filters[2], 1, name + "_0", strides=strides)
    x = bottleneck(x, filters, kernel_size, strides, name)
    x = layers.Add(name=name + "_add")([shortcut, x])
    return layers.ReLU(name=name + "_out")(x)


def stage(x, filters, identity_blocks, strides, name):
    """One convolutional block, then `identity_blocks` identity blocks."""
    x = convolutional_block(x, filters, strides=strides, name=f"{name}_block1")
    for number in range(2, identity_blocks + 2):
        x = identity_block(x, filters, name=f"{name}_block{number}")
    return x


def ResNet50(input_shape=(64, 64, 3), classes=6, identity_blocks=(2, 3, 5, 2)):
    """ResNet-50, from raw pixels to class probabilities.

    Args:
        input_shape: (height, width, channels) of the images, in pixels; height and width must be at least 37.
        classes: int, number of classes.
        identity_blocks: four ints, how many identity blocks follow the convolutional block in stages 2, 3, 4 and 5.
            (2, 3, 5, 2) makes the 50 layers with weights of the paper; (2, 3, 5, 3) makes 53.

    Returns: `keras.Model` from (batch, height, width, channels), values 0-255, to probabilities (batch, classes).
    Raises ValueError: `identity_blocks` is not four integers >= 0.
    """
    if len(identity_blocks) != 4 or any(n != int(n) or n < 0 for n in identity_blocks):
        expected = "identity_blocks must be four integers >= 0, one for each of the stages 2, 3, 4 and 5: (2, 3, 5, 2)"
        raise ValueError(f"{expected}. Received: {identity_blocks}")
    stage2, stage3, stage4, stage5 = identity_blocks
    inputs = layers.Input(input_shape, name="pixels")
    # Normalisation is the first layer, so a photo cannot be prepared differently from the training set.
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(inputs)

    # Stage 1, the stem: 64 pixels become 32, then 15, with 64 channels.
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = conv_bn(x, 64, 7, "conv1", strides=2)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)

    # Stages 2 to 5: each halves the size, except stage 2, because the stem has already shrunk the image.
    x = stage(x, (64, 64, 256), stage2, strides=1, name="conv2")
    x = stage(x, (128, 128, 512), stage3, strides=2, name="conv3")
    x = stage(x, (256, 256, 1024), stage4, strides=2, name="conv4")
    x = stage(x, (512, 512, 2048), stage5, strides=2, name="conv5")

    x = layers.AveragePooling2D(2, name="avg_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    # float32 in mixed precision as well: 16 bits would round the probabilities to two or three digits.
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return Model(inputs, outputs, name="ResNet50")
