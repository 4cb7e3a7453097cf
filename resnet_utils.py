"""The residual network of signs_resnet50.py, block by block.

The architecture is ResNet-50 of He, Zhang, Ren and Sun, "Deep Residual
Learning for Image Recognition" (2015), section 3.3 and table 1, with the
stride of a stage on the first 1x1 convolution of its first block, and without
padding before the stem's pooling, as the course describes it.

    input -> stem -> stage 2 -> stage 3 -> stage 4 -> stage 5 -> average pool -> softmax

Every layer with weights, but for the last, has its name from `keras.applications.ResNet50`
(`conv3_block1_0_conv` is the shortcut of the first block of stage 3), so that
weights can be carried over by name. `fuse_updates` shortens what Adam has to do
for 214 weights in every step.
"""

from keras import Model, layers, optimizers

# Batch normalisation adds this to the variance before it divides. The value is
# the one that the published ImageNet weights were trained with: with another
# one the same weights would give other activations.
EPSILON = 1.001e-5

# Share of the old value in the running mean and variance, per step. Keras's 0.99 remembers some 100
# steps, three epochs of a thousand pictures: while the weights still move fast, the averages that
# validation and prediction use would belong to a network that is no more.
MOMENTUM = 0.9


def convolution_bn(x, filters, kernel_size, name, strides=1, padding="valid", gamma="ones"):
    """Convolution, then batch normalisation over the channels (axis 3).

    The kernels start from He-normal random numbers (He et al., "Delving Deep
    into Rectifiers", 2015, section 2.2), which keep the size of the signal
    through many ReLU layers. The initializer is given by name, not as one
    seeded object for all layers: layers of one shape would start equal.
    """
    x = layers.Conv2D(filters, kernel_size, strides=strides, padding=padding,
                      kernel_initializer="he_normal", name=name + "_conv")(x)
    return layers.BatchNormalization(axis=3, epsilon=EPSILON, momentum=MOMENTUM, gamma_initializer=gamma,
                                     name=name + "_bn")(x)


def main_path(x, filters, kernel_size, strides, name):
    """Conv-BN-ReLU, Conv-BN-ReLU, Conv-BN: what both kinds of block compute.

    1x1 kernels reduce the channels, kernel_size x kernel_size works on the few
    that are left, 1x1 restores them: the "bottleneck" of the paper. The last
    batch normalisation starts with scale 0, so that every block starts as its
    shortcut and a deep network trains like a shallow one at first (Goyal et
    al., "Accurate, Large Minibatch SGD", 2017, section 5.1).
    """
    reduced, middle, restored = filters
    x = convolution_bn(x, reduced, 1, name + "_1", strides=strides)
    x = layers.ReLU(name=name + "_1_relu")(x)
    x = convolution_bn(x, middle, kernel_size, name + "_2", padding="same")
    x = layers.ReLU(name=name + "_2_relu")(x)
    return convolution_bn(x, restored, 1, name + "_3", gamma="zeros")


def identity_block(x, filters, kernel_size=3, name="identity"):
    """Residual block whose shortcut is its input, unchanged.

    Args:
        x: tensor (batch, height, width, channels); channels must equal
            `filters[2]`, or the two paths could not be added.
        filters: three ints, the channels of the three convolutions.
        kernel_size: int, side of the middle convolution's window, in pixels.
        name: str, put before the names of the block's layers.

    Returns:
        Tensor of the shape of `x`.

    Raises:
        ValueError: the channels of `x` are not `filters[2]`.
    """
    if x.shape[-1] != filters[2]:
        raise ValueError(
            f"An identity block adds its input to its output, so both need the same channels: "
            f"give it an input with {filters[2]} channels, or use convolutional_block, whose "
            f"shortcut changes them. Received: an input with {x.shape[-1]} channels.")
    shortcut = x
    x = main_path(x, filters, kernel_size, 1, name)
    x = layers.Add(name=name + "_add")([shortcut, x])
    return layers.ReLU(name=name + "_out")(x)


def convolutional_block(x, filters, kernel_size=3, strides=2, name="convolutional"):
    """Residual block with Conv-BN on the shortcut: it changes size and channels.

    Args:
        x: tensor (batch, height, width, channels).
        filters: three ints, the channels of the three convolutions.
        kernel_size: int, side of the middle convolution's window, in pixels.
        strides: int, step of the first convolution and of the shortcut's, in
            pixels: 2 halves height and width.
        name: str, put before the names of the block's layers.

    Returns:
        Tensor (batch, ceil(height / strides), ceil(width / strides), filters[2]).
    """
    shortcut = convolution_bn(x, filters[2], 1, name + "_0", strides=strides)
    x = main_path(x, filters, kernel_size, strides, name)
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
        input_shape: (height, width, channels) of the pictures, in pixels; at
            least 37 high and wide, so that something is left to pool.
        classes: int, number of classes.
        identity_blocks: four ints, how many identity blocks follow the
            convolutional block in stages 2, 3, 4 and 5. (2, 3, 5, 2) makes the
            50 layers with weights of the paper; (2, 3, 5, 3) makes 53.

    Returns:
        `keras.Model` from (batch, height, width, channels), values 0-255, to
        (batch, classes), probabilities.

    Raises:
        ValueError: `identity_blocks` is not four whole numbers >= 0.
    """
    if len(identity_blocks) != 4 or any(n != int(n) or n < 0 for n in identity_blocks):
        raise ValueError("identity_blocks must be four whole numbers >= 0, one for each of the stages "
                         f"2, 3, 4 and 5, as in (2, 3, 5, 2). Received: {identity_blocks}")
    stage2, stage3, stage4, stage5 = identity_blocks
    inputs = layers.Input(input_shape, name="pixels")
    # Normalisation is the first layer: a photo cannot be prepared differently from the training set.
    x = layers.Rescaling(1 / 127.5, offset=-1, name="normalise")(inputs)

    # Stage 1, the stem: 64 pixels become 32, then 15 (the course does not pad before this pooling), 64 channels.
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = convolution_bn(x, 64, 7, "conv1", strides=2)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)

    # Stages 2 to 5: each (but the first, which the stem has shrunk already) halves the size.
    x = stage(x, (64, 64, 256), stage2, strides=1, name="conv2")
    x = stage(x, (128, 128, 512), stage3, strides=2, name="conv3")
    x = stage(x, (256, 256, 1024), stage4, strides=2, name="conv4")
    x = stage(x, (512, 512, 2048), stage5, strides=2, name="conv5")

    x = layers.AveragePooling2D(2, name="avg_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    # float32 in mixed precision, too: in 16 bits the probabilities would be rounded to two or three digits.
    outputs = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return Model(inputs, outputs, name="ResNet50")


def fuse_updates(optimizer):
    """Let one operation of TensorFlow update a weight, where Keras's Adam composes some fifteen.

    The formula is the same (Kingma and Ba, "Adam", 2015, end of section 2). Of 214
    weights the composed updates are most of the graph that the first step has to
    trace, and each of them goes through the memory of 24 million numbers once more.
    The optimizer stays a `keras.optimizers.Adam`, and is saved and loaded as one.

    Args:
        optimizer: `keras.optimizers.Adam` without `amsgrad`, on the TensorFlow backend.

    Returns:
        The same optimizer.

    Raises:
        ValueError: it is another optimizer.
    """
    import tensorflow as tf

    if type(optimizer) is not optimizers.Adam or optimizer.amsgrad:
        raise ValueError("fuse_updates knows Adam's formula and no other: expected keras.optimizers.Adam without "
                         f"amsgrad. Received: {type(optimizer).__name__}, amsgrad="
                         f"{getattr(optimizer, 'amsgrad', None)}")

    shared = [None, None]       # the learning rate of a step, and what all its updates have in common

    def update_step(gradient, variable, learning_rate):
        if shared[0] is not learning_rate:
            step = tf.cast(optimizer.iterations + 1, tf.float32)
            shared[:] = learning_rate, (tf.pow(optimizer.beta_1, step), tf.pow(optimizer.beta_2, step))
        index = optimizer._get_variable_index(variable)
        beta1_power, beta2_power = shared[1]
        tf.raw_ops.ResourceApplyAdam(
            var=handle(variable), m=handle(optimizer._momentums[index]), v=handle(optimizer._velocities[index]),
            beta1_power=beta1_power, beta2_power=beta2_power, lr=learning_rate, beta1=optimizer.beta_1,
            beta2=optimizer.beta_2, epsilon=optimizer.epsilon, grad=gradient)

    def handle(variable):
        # Keras's variables wrap TensorFlow's; the optimizer passes on the one or the other.
        return (variable if isinstance(variable, tf.Variable) else variable.value).handle

    optimizer.update_step = update_step
    return optimizer
