"""Faster ways to compute what Keras's layers and Adam compute on TensorFlow, put in for the training.

`accelerate` changes the class of a model's layers and of its optimizer: weights, names and formulas stay, so the
training gives the same numbers up to rounding. `restore` puts Keras's own classes back, which are what is saved.
"""

import keras

from support.training import distribution

# The options of a batch normalization that the fused operation knows. Any other must be off.
KNOWN = {
    *("name", "trainable", "dtype", "axis", "momentum", "epsilon", "center", "scale", "renorm_momentum"),
    *(f"{weight}_initializer" for weight in ("beta", "gamma", "moving_mean", "moving_variance")),
}

# A deep network has more layers; the two small ones have 29 and 25, ResNet50 178.
MANY_LAYERS = 100


class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization (Ioffe and Szegedy, 2015) in one operation, where Keras composes a dozen passes.

    The statistics are float32 in mixed precision as well. Keras computes what the operation cannot do (masks, other
    axes, statistics over several devices) or does slowly.
    """

    def call(self, inputs, training=None, mask=None):
        others = [value for name, value in self.get_config().items() if name not in KNOWN]
        plain = self.scale and self.center and mask is None and not any(others)
        # On CPUs, oneDNN takes sixteen channels at a time; if some are left over, it is slower than Keras.
        images = len(inputs.shape) == 4 and self.axis in (3, -1) and inputs.shape[-1] % 16 == 0
        if not (plain and images):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        training = bool(training and self.trainable)
        # An empty mean and variance ask for those of the batch.
        mean, variance = ([], []) if training else (self.moving_mean, self.moving_variance)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            # The operation divides the squares by n - 1 (Bessel's correction), Keras by n.
            n = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            variance *= tf.maximum(n - 1, 1) / n
            for moving, batch in (self.moving_mean, mean), (self.moving_variance, variance):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs


class Conv2D(keras.layers.Conv2D):
    """Convolution as matrix products, where TensorFlow's convolutions are slower on a CPU.

    A 1x1 convolution is the product of the pixels and the kernel, two matrices. Of larger kernels on feature maps of
    at most 4x4, the kernel's gradient is the product of the patches under the kernel and the output's gradient. Keras
    computes the rest.
    """

    def convolution_op(self, inputs, kernel):
        height, width = inputs.shape[1:3]
        plain = self.data_format == "channels_last" and self.groups == 1 and self.dilation_rate == (1, 1)
        plain &= None not in (height, width)
        if plain and self.kernel_size == (1, 1):
            return _multiply(inputs, kernel, self.strides)
        if plain and height * width <= 16 and self.strides == (1, 1) and self.padding == "same":
            return _convolve(inputs, kernel)
        return super().convolution_op(inputs, kernel)


def _multiply(inputs, kernel, strides):
    """Return the 1x1 convolution."""
    import tensorflow as tf

    if strides != (1, 1):
        # The mean of each single pixel: this skips pixels as a slice does, but the gradient of a slice is slower.
        inputs = tf.nn.avg_pool2d(inputs, 1, strides, "VALID")
    outputs = tf.matmul(_rows(inputs), _rows(kernel))
    return tf.reshape(outputs, (-1, *inputs.shape[1:3], kernel.shape[-1]))


def _convolve(inputs, kernel):
    """Return the convolution with padding; the kernel's gradient is one matrix product."""
    import tensorflow as tf

    @tf.custom_gradient
    def convolve(inputs, kernel):
        def gradients(upstream):
            sizes, ones = (1, *kernel.shape[:2], 1), (1, 1, 1, 1)
            patches = tf.image.extract_patches(inputs, sizes, ones, ones, "SAME")
            for_kernel = tf.matmul(_rows(patches), _rows(upstream), transpose_a=True)
            for_inputs = tf.nn.conv2d_transpose(upstream, kernel, tf.shape(inputs), 1, "SAME")
            return for_inputs, tf.reshape(for_kernel, kernel.shape)

        return tf.nn.conv2d(inputs, kernel, 1, "SAME"), gradients

    return convolve(inputs, tf.convert_to_tensor(kernel))


def _rows(x):
    """Return a tensor (..., n) as a matrix (rows, n)."""
    return keras.ops.reshape(x, (-1, x.shape[-1]))


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, 2015, end of section 2) with one operation for each weight, where Keras composes fifteen.

    For ResNet50's 214 weights, the composed updates are most of the graph that TensorFlow traces before the first step.
    """

    def apply(self, grads, trainable_variables=None):
        import tensorflow as tf

        step = tf.cast(self.iterations + 1, tf.float32)
        self._beta_powers = tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)
        return super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        import tensorflow as tf

        index = self._get_variable_index(variable)
        beta1_power, beta2_power = self._beta_powers
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(self._momentums[index]),
            v=_handle(self._velocities[index]),
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _handle(variable):
    """Return TensorFlow's handle; Keras passes its own variables or TensorFlow's."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def accelerate(model):
    """Let a compiled model compute faster, where that pays; other backends than TensorFlow are left alone.

    A batch normalization in one operation pays if oneDNN can compute all of the model's. Matrix products and the faster
    Adam pay in a deep network, whose many small operations take longer to trace and to start than to compute.
    """
    if keras.config.backend() != "tensorflow":
        return
    import tensorflow as tf

    normalizations = [layer for layer in model.layers if type(layer) is keras.layers.BatchNormalization]
    if all(layer.moving_mean.shape[0] % 16 == 0 for layer in normalizations):
        for layer in normalizations:
            layer.__class__ = BatchNormalization
    deep = len(model.layers) > MANY_LAYERS
    # TensorFlow would rewrite the graph before its first step: that takes seconds and gains nothing.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": deep})
    if not deep:
        return
    for layer in model.layers:
        if type(layer) is keras.layers.Conv2D:
            layer.__class__ = Conv2D
    optimizer = model.optimizer
    if type(optimizer) is keras.optimizers.Adam and not (optimizer.amsgrad or distribution.rank().distributed):
        optimizer.__class__ = Adam


def restore(model):
    """Undo `accelerate`: from here on, the model is Keras's own in every part."""
    own = {BatchNormalization: keras.layers.BatchNormalization, Conv2D: keras.layers.Conv2D}
    for layer in model.layers:
        layer.__class__ = own.get(type(layer), type(layer))
    if type(model.optimizer) is Adam:
        model.optimizer.__class__ = keras.optimizers.Adam
