"""Convolutions with batch normalisation that folds, and their fake-quantization.

In the float network a layer is convolution → BN → ReLU6. With a quantization scheme BN is folded
into the kernel before the kernel is quantized, so that training sees exactly the kernel that is
exported (Jacob et al. 2018, figure C8): batch statistics come from the unquantized convolution, and
from the batches of all replicas together.

Under a mixed precision policy of Keras, convolutions and activations are bfloat16; batch statistics
and all that BN learns stay float32.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras

from memvid_tf.layers import replicas
from memvid_tf.layers.fake_quant import Scheme, quantize


_grouped_operator = contextvars.ContextVar("grouped_operator", default=False)


@contextlib.contextmanager
def grouped_operator() -> Iterator[None]:
    """What is traced in the block computes a grouped convolution as one operator.

    LiteRT runs it so. TensorFlow's own CPU kernels have neither its gradient nor its fused form,
    and so nothing that TensorFlow is to run may hold it.
    """
    token = _grouped_operator.set(True)
    try:
        yield
    finally:
        _grouped_operator.reset(token)


class BatchNorm(tf.Module):
    """What all batch normalisations of a network share.

    Attributes:
      momentum: share of the old value in the moving statistics, in [0, 1).
      epsilon: added to variances.
      frozen: scalar bool variable. While it is true, training uses the moving statistics and
        leaves them alone; see `freeze_from`.
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-3):
        super().__init__(name="batch_norm")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"batch norm momentum {momentum} is not in [0, 1)")
        self.momentum, self.epsilon = momentum, epsilon
        self.frozen = tf.Variable(False, trainable=False, name="frozen")
        self._known: bool | None = None

    def freeze_from(self, first: int, step) -> None:
        """Sets `frozen` for a training step that is run or traced next.

        Args:
          first: step from which it is true; -1 for never.
          step: scalar int32 tensor, the number of steps before this one.
        """
        # What is the same at every step needs no branch in the graph of each layer.
        self._known = None if first > 0 else first == 0
        self.frozen.assign((first >= 0) & (step >= first))

    def statistics(self, moving: Callable, batch: Callable):
        """What the first function returns where training is frozen, otherwise the second."""
        if self._known is None:
            return tf.cond(self.frozen, moving, batch)
        return moving() if self._known else batch()


class Conv(tf_keras.layers.Layer):
    """Convolution, SAME padding, with optional BN and ReLU6, output fake-quantized.

    Where only a window of the frame is at hand, the caller passes `surround`, which puts around x
    what SAME padding would have read there (`layers.patchwork`); the weights are the same.

    Args:
      filters: output channels.
      kernel_size: side of the kernel.
      strides: step in both directions.
      groups: channel groups of a grouped convolution.
      activation: "relu6" or None.
      norm: the network's `BatchNorm`, or None for a bias instead.
      scheme: quantization scheme, or None for the float network.
      output: a `Quantize` layer to share with other tensors; by default one of its own, for ReLU6
        outputs with the fixed range and for linear ones with an observed one.
      kernel_initializer: of the kernel; by default one that keeps the variance of its input.
      bias_initializer: of the bias.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 1,
        *,
        strides: int = 1,
        groups: int = 1,
        activation: str | None = None,
        norm: BatchNorm | None = None,
        scheme: Scheme | None = None,
        output: tf_keras.layers.Layer | None = None,
        kernel_initializer=None,
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if activation not in (None, "relu6"):
            raise ValueError(f"activation {activation!r} is not one of None, 'relu6'")
        self.filters, self.kernel_size, self.strides = filters, kernel_size, strides
        self.groups, self.activation = groups, activation
        self.norm = norm
        self.kernel_initializer = kernel_initializer or self._default_initializer()
        self.bias_initializer = bias_initializer
        self.kernel_quantizer = scheme.kernel() if scheme else None
        self.output_range = output or quantize(
            scheme, "relu6" if activation else "observed", name="output_range"
        )

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        if channels % self.groups or self.filters % self.groups:
            raise ValueError(
                f"{self.name}: {channels} input and {self.filters} output channels cannot be "
                f"divided into {self.groups} groups"
            )
        return (self.kernel_size, self.kernel_size, channels // self.groups, self.filters)

    def build(self, input_shape):
        shape = self._kernel_shape(int(input_shape[-1]))
        self.kernel = self.add_weight("kernel", shape, initializer=self.kernel_initializer)
        size = (self.filters,)

        def add_float32(name, initializer):
            return self.add_weight(name, size, initializer=initializer, experimental_autocast=False)

        self.bias = add_float32("bias", self.bias_initializer)
        if self.norm is not None:
            self.scale = add_float32("scale", "ones")
            moving = dict(
                shape=size,
                trainable=False,
                experimental_autocast=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
            self.mean = self.add_weight("mean", initializer="zeros", **moving)
            self.variance = self.add_weight("variance", initializer="ones", **moving)
        if self.kernel_quantizer is not None:
            self.kernel_ranges = self.kernel_quantizer.build(
                self._quantized_shape(shape), "kernel", self
            )
        super().build(input_shape)

    def _gain(self):
        # A linear output has nothing that halves its variance. To count as if it had saturates the
        # gates of a memory, where no BN makes up for it, and slows its training.
        return 2.0 if self.activation or self.norm else 1.0

    def _default_initializer(self):
        return tf_keras.initializers.VarianceScaling(self._gain(), "fan_in")

    def _convolve(self, x, kernel, padding):
        if self.groups == 1 or _grouped_operator.get():
            return tf.nn.conv2d(x, kernel, self.strides, padding)
        parts = zip(tf.split(x, self.groups, -1), tf.split(kernel, self.groups, -1))
        return tf.concat([tf.nn.conv2d(*part, self.strides, padding) for part in parts], -1)

    def _quantized_shape(self, shape):
        """Shape in which the quantizer sees the kernel, with the output channels last."""
        return shape

    def _quantize_kernel(self, kernel, training):
        return self.kernel_quantizer(kernel, training, self.kernel_ranges)

    def _scale_kernel(self, kernel, scale):
        return kernel * scale

    def _update_moving(self, mean, variance):
        rest = 1.0 - self.norm.momentum
        self.mean.assign_sub(rest * (self.mean - mean))
        self.variance.assign_sub(rest * (self.variance - variance))

    def _normalised(self, x, padding, training):
        """The float network: BN after the convolution."""
        y = self._convolve(x, self.kernel, padding)
        epsilon = self.norm.epsilon
        # Replicas cannot meet within a condition.
        shared = replicas.moments(y) if training and replicas.several() else None

        def moving():
            return tf.nn.batch_normalization(
                y, self.mean, self.variance, self.bias, self.scale, epsilon
            )

        def batch():
            if shared:
                mean, variance = shared
                out = tf.nn.batch_normalization(y, mean, variance, self.bias, self.scale, epsilon)
            else:
                out, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                    y, self.scale, self.bias, epsilon=epsilon, is_training=True
                )
            self._update_moving(mean, variance)
            return out

        return self.norm.statistics(moving, batch) if training else moving()

    def _folded(self, x, padding, training):
        """The quantized network: BN inside the kernel and the bias."""
        kernel, bias = self.kernel, self.bias
        if self.norm is not None:
            shared = None
            if training and replicas.several():
                shared = replicas.moments(self._convolve(x, self.kernel, padding))

            def moving():
                return tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.variance)

            def batch():
                if shared:
                    mean, variance = shared
                else:
                    y = self._convolve(x, self.kernel, padding)
                    mean, variance = tf.nn.moments(y, [0, 1, 2])
                self._update_moving(mean, variance)
                return mean, variance

            mean, variance = self.norm.statistics(moving, batch) if training else moving()
            scale = self.scale * tf.math.rsqrt(variance + self.norm.epsilon)
            kernel = self._scale_kernel(kernel, scale)
            bias = bias - mean * scale
        return self._convolve(x, self._quantize_kernel(kernel, training), padding) + bias

    def call(self, x, training=False, surround=None):
        """Runs the layer.

        Args:
          x: [B, H, W, C] float32.
          training: whether observers and batch statistics are updated.
          surround: None for SAME padding, or a function of x and this layer that returns x with
            its halo, for which the padding is VALID. Pointwise layers need none.

        Returns:
          [B, ceil(H / strides), ceil(W / strides), filters] float32.
        """
        padding = "SAME"
        if surround is not None and self.kernel_size > 1:
            x, padding = surround(x, self), "VALID"
        if self.kernel_quantizer is not None:
            y = self._folded(x, padding, training)
        elif self.norm is not None:
            y = self._normalised(x, padding, training)
        else:
            y = self._convolve(x, self.kernel, padding)
            y = tf.nn.bias_add(y, tf.cast(self.bias, y.dtype))
        if self.activation:
            y = tf.nn.relu6(y)
        return self.output_range(y, training=training)


class DepthwiseConv(Conv):
    """Depthwise convolution: one kernel a channel. Arguments as `Conv`, without `filters`."""

    def __init__(self, kernel_size: int = 3, **kwargs):
        super().__init__(filters=0, kernel_size=kernel_size, **kwargs)

    def _kernel_shape(self, channels):
        self.filters = channels
        return (self.kernel_size, self.kernel_size, channels, 1)

    def _default_initializer(self):
        # Keras counts the channels of a depthwise kernel into its fan-in; only the window feeds it.
        return tf_keras.initializers.RandomNormal(0.0, self._gain() ** 0.5 / self.kernel_size)

    def _convolve(self, x, kernel, padding):
        return tf.nn.depthwise_conv2d(x, kernel, [1, self.strides, self.strides, 1], padding)

    def _quantized_shape(self, shape):
        return (shape[0], shape[1], 1, shape[2])  # of rank 4, as quantizers of tfmot demand

    def _quantize_kernel(self, kernel, training):
        seen = tf.reshape(kernel, self._quantized_shape(kernel.shape))
        return tf.reshape(super()._quantize_kernel(seen, training), kernel.shape)

    def _scale_kernel(self, kernel, scale):
        return kernel * scale[:, tf.newaxis]


class SeparableConv(tf_keras.layers.Layer):
    """Linear depthwise convolution, then a pointwise one with bias: `Sep` of the paper's cells.

    Args:
      filters: output channels.
      kernel_size: side of the depthwise kernel.
      groups: channel groups of the pointwise convolution.
      scheme: quantization scheme, or None.
      **kwargs: of the pointwise `Conv` (activation, output, initializers) and of the layer.
    """

    def __init__(self, filters, kernel_size=3, *, groups=1, scheme=None, name=None, **kwargs):
        super().__init__(name=name)
        self.depthwise = DepthwiseConv(kernel_size, scheme=scheme, name="depthwise")
        self.pointwise = Conv(filters, groups=groups, scheme=scheme, name="pointwise", **kwargs)

    def call(self, x, training=False):
        """x: [B, H, W, C] float32; returns [B, H, W, filters]."""
        return self.pointwise(self.depthwise(x, training=training), training=training)


class Add(tf_keras.layers.Layer):
    """Sum of two tensors of one shape, with an optional ReLU6 fused, output fake-quantized."""

    def __init__(self, activation: str | None = None, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        if activation not in (None, "relu6"):
            raise ValueError(f"activation {activation!r} is not one of None, 'relu6'")
        self.activation = activation
        self.output_range = quantize(
            scheme, "relu6" if activation else "observed", name="output_range"
        )

    def call(self, a, b, training=False):
        """a, b: float32 of one shape; returns that shape."""
        y = a + b
        return self.output_range(tf.nn.relu6(y) if self.activation else y, training=training)
