"""Batch normalisation in one TensorFlow operation, where Keras composes a dozen passes over the images."""

import keras


class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` (Ioffe and Szegedy, 2015), for images with the channels last, on TensorFlow.

    The statistics are float32 in mixed precision as well. Keras does what the operation cannot do (masks, other axes,
    statistics over several devices) or does slowly, and serves other backends. Saved models have Keras's own layer in
    its place.
    """

    __module__ = "keras.layers"

    def call(self, inputs, training=None, mask=None):
        plain = self.scale and self.center and not (self.renorm or self.synchronized or mask is not None)
        # On CPUs, oneDNN takes sixteen channels at a time; if some are left over, it is slower than Keras.
        images = len(inputs.shape) == 4 and self.axis in (3, -1) and inputs.shape[-1] % 16 == 0
        if not (plain and images and keras.config.backend() == "tensorflow"):
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        training = bool(training and self.trainable)
        # An empty mean and variance ask for those of the batch.
        mean, variance = ([], []) if training else (self.moving_mean, self.moving_variance)
        options = {"epsilon": self.epsilon, "is_training": training}
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=self.gamma, offset=self.beta, mean=mean, variance=variance, **options
        )
        if training:
            # The operation divides the squares by n - 1 (Bessel's correction), Keras by n.
            n = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            variance *= tf.maximum(n - 1, 1) / n
            for moving, batch in (self.moving_mean, mean), (self.moving_variance, variance):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs
