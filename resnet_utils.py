"""The residual network of signs_resnet50.py, block by block.

The architecture is ResNet-50 of He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015),
section 3.3 and table 1. As in the course that the SIGNS photographs come from, the stride of a stage is on the first
1x1 convolution of its first block, and the stem's pooling has no padding.

    input -> stem -> stage 2 -> stage 3 -> stage 4 -> stage 5 -> average pooling -> softmax

Every layer with weights has its name from `keras.applications.ResNet50` (`conv3_block1_0_conv` is
the shortcut of the first block of stage 3), so weights can be loaded by name. For ImageNet's weights,
`imagenet=True` also prepares the pixels and pads the pooling as they expect: then every number is the same as there.
"""

from keras import Model, layers

# Added to the variance in batch normalization. The published ImageNet weights were trained with this value.
EPSILON = 1.001e-5

# The mean color of ImageNet, red, green and blue. Its weights were trained on pixels minus this color.
IMAGENET_MEAN = (123.68, 116.779, 103.939)

# Keras's 0.99 averages over some 100 steps, three epochs of a thousand images. While the weights change fast,
# validation would use the statistics of an earlier network.
MOMENTUM = 0.9


def conv_bn(x, filters, kernel_size, name, strides=1, padding="valid", gamma="ones"):
    """Convolution, then batch normalization over the channels.

    The kernels start from He-normal random numbers (He et al., "Delving Deep into Rectifiers", 2015,
    section 2.2), which preserve the scale of the signal through many ReLU layers. The initializer is given by name,
    because one seeded object for all layers would give layers of the same shape the same weights.
    """
    x = layers.Conv2D(
        filters, kernel_size, strides=strides, padding=padding, kernel_initializer="he_normal", name=name + "_conv"
    )(x)
    return layers.BatchNormalization(
        axis=3, epsilon=EPSILON, momentum=MOMENTUM, gamma_initializer=gamma, name=name + "_bn"
    )(x)


def bottleneck(x, filters, kernel_size, strides, name):
    """Conv-BN-ReLU, Conv-BN-ReLU, Conv-BN: what both kinds of block compute beside their shortcut.

    1x1 kernels reduce the channels, kernel_size x kernel_size works on the few that are left, 1x1 restores them. The
    last batch normalization starts with scale 0, so every block starts as its shortcut, and at first the deep network
    trains like a shallow one (Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
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
        raise ValueError(
            f"The input of this identity block must have {filters[2]} channels, because it is added to the output "
            f"(got {x.shape[-1]}). To change the number of channels, use convolutional_block"
        )
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


def residual_stages(pixels, identity_blocks=(2, 3, 5, 2), imagenet=False):
    """All of ResNet-50 but its head: normalization, the stem, and the four stages of residual blocks.

    Args:
        pixels: tensor (batch, height, width, channels), values 0-255; height and width must be at least 5.
        identity_blocks: four ints, how many identity blocks follow the convolutional block in stages 2, 3, 4 and 5.
            (2, 3, 5, 2) makes the 50 layers with weights of the paper; (2, 3, 5, 3) makes 53.
        imagenet: bool; compute what `keras.applications.ResNet50` does with the same weights.

    Returns: tensor (batch, rows, columns, 2048), 2x2 for images of 64x64 pixels, 7x7 for 224x224.
    Raises ValueError: `identity_blocks` is not four integers >= 0.
    """
    if len(identity_blocks) != 4 or any(n != int(n) or n < 0 for n in identity_blocks):
        problem = "identity_blocks must be four integers >= 0, one for each of the stages 2, 3, 4 and 5"
        raise ValueError(f"{problem} (got {identity_blocks})")
    stage2, stage3, stage4, stage5 = identity_blocks
    # Normalization is a layer, so every photo is prepared as the training set was.
    if imagenet:
        # The zeros that pad the image then stand for the mean color.
        x = layers.Rescaling(1.0, offset=[-mean for mean in IMAGENET_MEAN], name="subtract_mean")(pixels)
    else:
        x = layers.Rescaling(1 / 127.5, offset=-1, name="normalize")(pixels)

    # Stage 1, the stem: 64 pixels become 32, then 15, with 64 channels.
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = conv_bn(x, 64, 7, "conv1", strides=2)
    x = layers.ReLU(name="conv1_relu")(x)
    if imagenet:
        x = layers.ZeroPadding2D(1, name="pool1_pad")(x)  # 64 pixels become 32, then 16
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)

    # Stages 2 to 5: each halves the size, except stage 2, because the stem has already reduced it.
    x = stage(x, (64, 64, 256), stage2, strides=1, name="conv2")
    x = stage(x, (128, 128, 512), stage3, strides=2, name="conv3")
    x = stage(x, (256, 256, 1024), stage4, strides=2, name="conv4")
    return stage(x, (512, 512, 2048), stage5, strides=2, name="conv5")


def ResNet50(input_shape=(64, 64, 3), classes=6, identity_blocks=(2, 3, 5, 2), imagenet=False):
    """ResNet-50, from raw pixels to class probabilities, as signs_resnet50.py builds it.

    Args:
        input_shape: (height, width, channels) of the images, in pixels.
        classes: int, number of classes.
        identity_blocks, imagenet: see `residual_stages`.

    Returns: `keras.Model` from (batch, height, width, channels), values 0-255, to probabilities (batch, classes).
    """
    inputs = layers.Input(input_shape, name="pixels")
    x = residual_stages(inputs, identity_blocks, imagenet)
    x = layers.AveragePooling2D(x.shape[1:3], name="avg_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return Model(inputs, outputs, name="ResNet50")
