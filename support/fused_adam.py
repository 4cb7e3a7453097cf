"""Adam with one TensorFlow operation for each weight, where Keras composes about fifteen."""

import keras

from support import distribution


class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` (Kingma and Ba, 2015, end of section 2), without `amsgrad`, on TensorFlow.

    For ResNet50's 214 weights, the composed updates are most of the graph that TensorFlow
    traces before the first step. Models are saved with Keras's own Adam in its place, which also serves other backends
    and several devices.
    """

    __module__ = "keras.optimizers"

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.fused = keras.config.backend() == "tensorflow" and not distribution.place().distributed

    def apply(self, grads, trainable_variables=None):
        if not self.fused:
            return super().apply(grads, trainable_variables)
        import tensorflow as tf

        step = tf.cast(self.iterations + 1, tf.float32)
        self._beta_powers = tf.pow(self.beta_1, step), tf.pow(self.beta_2, step)
        return super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        if not self.fused:
            return super().update_step(gradient, variable, learning_rate)
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
