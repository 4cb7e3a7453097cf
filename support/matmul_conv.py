"""Convolution as matrix products, where TensorFlow's convolutions are slower on a CPU."""

import keras


class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, for images with the channels last, on TensorFlow.

    A 1x1 convolution is the product of the pixels and the kernel, two matrices. Of larger kernels on feature maps of
    at most 4x4, the kernel's gradient is the product of the patches under the kernel and the output's gradient. Keras
    does the rest, and serves other backends. Saved models have Keras's own layer in its place.
    """

    __module__ = "keras.layers"

    def convolution_op(self, inputs, kernel):
        height, width = inputs.shape[1:3]
        plain = self.data_format == "channels_last" and self.groups == 1 and self.dilation_rate == (1, 1)
        plain &= None not in (height, width) and keras.config.backend() == "tensorflow"
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
