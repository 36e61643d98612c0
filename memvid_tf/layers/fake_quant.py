"""Simulated quantization: which tensors get which 8-bit range (LFS 3.5; Jacob et al. 2018).

The quantizers implement the interface of `tensorflow_model_optimization` (`Quantizer`), so any
quantizer of that library, or a user's own, can take their place. A network built without a
`Scheme` is the float network: no fake-quantization node exists in its graph.

Gradients pass straight through to what lies within a range, by elementwise operations: TensorFlow's
gradient of a range also sums up what lies outside of it, and on GPUs those sums refuse
`runtime.deterministic`. Nobody needs them: ranges are fixed, observed, or the kernel's own.

Differs from the paper: the range after a sigmoid is [0, 255/256], not [0, 1]. TFLite fixes the
scale of an int8 LOGISTIC at 1/256, so [0, 1] would cost one QUANTIZE operator for each gate.
"""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

RELU6_RANGE = (0.0, 6.0)  # LFS 3.5
SIGMOID_RANGE = (0.0, 255 / 256)  # fixed by the int8 LOGISTIC kernel of TFLite
DIFFERENCE_RANGE = (-3.0, 3 * 127 / 128)  # of two states, whose own scale it has to 1/2 %
FLOW_RANGE = (-2.0, 2 * 127 / 128)  # in cells (layers.flow), of which whole ones are on the grid
SHARE_RANGE = (0.0, 1.0)
IMAGE_RANGE = (-1.0, 127 / 128)  # uint8 / 128 - 1: the int8 image is then uint8 ^ 0x80


@tf.custom_gradient
def _straight_through(x, low, high):
    """x rounded to the grid of a range, given as scalars, of which no gradient is taken."""

    def gradient(dy):
        # The ends of the grid, which contains zero, are what becomes of infinities.
        ends = tf.quantization.fake_quant_with_min_max_vars([-math.inf, math.inf], low, high)
        inside = (x >= ends[0]) & (x <= ends[1])
        return tf.where(inside, dy, 0.0), None, None

    return tf.quantization.fake_quant_with_min_max_vars(x, low, high), gradient


class FixedRange(Quantizer):
    """Per-tensor affine 8-bit quantization to a range that is known beforehand."""

    def __init__(self, low: float, high: float):
        if not low <= 0.0 < high:
            raise ValueError(f"the range [{low}, {high}] must contain zero and have a width")
        self.low, self.high = low, high

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return tf.quantization.fake_quant_with_min_max_args(inputs, self.low, self.high)

    def get_config(self):
        return {"low": self.low, "high": self.high}


class MovingAverageRange(Quantizer):
    """Per-tensor affine 8-bit quantization to an exponential moving average of the extrema.

    The first batch initialises the range: an average that starts from a constant, as tfmot's does,
    does not settle within a short fine-tuning.
    """

    def __init__(self, decay: float = 0.99):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay {decay} is not in [0, 1)")
        self.decay = decay

    def build(self, tensor_shape, name, layer):
        def add(suffix):
            # Every replica observes its own share of the batch; reading averages them.
            return layer.add_weight(
                name=f"{name}_{suffix}",
                shape=(),
                initializer="zeros",
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )

        return {"min": add("min"), "max": add("max")}

    def __call__(self, inputs, training, weights, **kwargs):
        low, high = weights["min"], weights["max"]
        if training:
            batch_low = tf.minimum(tf.reduce_min(inputs), 0.0)
            # A width above zero, so that "max is still zero" means "never observed".
            batch_high = tf.maximum(tf.reduce_max(inputs), 1e-3)
            decay = tf.where(tf.equal(high, 0.0), 0.0, self.decay)
            low.assign(decay * low + (1.0 - decay) * batch_low)
            high.assign(decay * high + (1.0 - decay) * batch_high)
        return _straight_through(inputs, tf.convert_to_tensor(low), tf.convert_to_tensor(high))

    def get_config(self):
        return {"decay": self.decay}


class PerChannelSymmetric(Quantizer):
    """Narrow-range symmetric 8-bit quantization of a kernel, one scale an output channel.

    The ranges are those of the kernel it is given: they need no memory and are exact at export.
    """

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        """inputs: a kernel whose last axis is the output channel."""
        axes = list(range(inputs.shape.rank - 1))
        # A channel that is all zero still needs a range with a width.
        limit = tf.maximum(tf.reduce_max(tf.abs(inputs), axes), 1e-6)

        def rounded(kernel):
            return tf.quantization.fake_quant_with_min_max_vars_per_channel(
                kernel, -limit, limit, narrow_range=True
            )

        # Nothing lies outside of the kernel's own range.
        return tf.grad_pass_through(rounded)(inputs)

    def get_config(self):
        return {}


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Which quantizer each kind of tensor gets. Every field makes a new quantizer.

    Attributes:
      kernel: convolution kernels, with BN folded into them.
      relu6: outputs of ReLU6, states, and every input of a concatenation.
      sigmoid: gates.
      image: the input frame.
      difference: of two states.
      flow: displacements.
      share: weights of a mean.
      observed: everything whose range is learned from data.
    """

    kernel: Callable[[], Quantizer] = PerChannelSymmetric
    relu6: Callable[[], Quantizer] = lambda: FixedRange(*RELU6_RANGE)
    sigmoid: Callable[[], Quantizer] = lambda: FixedRange(*SIGMOID_RANGE)
    image: Callable[[], Quantizer] = lambda: FixedRange(*IMAGE_RANGE)
    difference: Callable[[], Quantizer] = lambda: FixedRange(*DIFFERENCE_RANGE)
    flow: Callable[[], Quantizer] = lambda: FixedRange(*FLOW_RANGE)
    share: Callable[[], Quantizer] = lambda: FixedRange(*SHARE_RANGE)
    observed: Callable[[], Quantizer] = MovingAverageRange


class Quantize(tf_keras.layers.Layer):
    """Applies one quantizer to a tensor and owns its variables.

    One instance used at several places makes them share a range. Without a quantizer it is the
    identity.
    """

    def __init__(self, quantizer: Quantizer | None = None, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = quantizer

    def build(self, input_shape):
        self.ranges = {}
        if self.quantizer is not None:
            self.ranges = self.quantizer.build(input_shape, "range", self)
        super().build(input_shape)

    def call(self, inputs, training=False):
        """inputs: float32 of any shape; returns the same shape, rounded to the 8-bit grid."""
        if self.quantizer is None:
            return inputs
        return self.quantizer(inputs, training, self.ranges)


def quantize(scheme: Scheme | None, kind: str, **kwargs) -> Quantize:
    """A `Quantize` layer for tensors of one kind.

    Args:
      scheme: the scheme, or None for the float network.
      kind: a field of `Scheme`, for instance "relu6".
      **kwargs: of the Keras layer.
    """
    return Quantize(None if scheme is None else getattr(scheme, kind)(), **kwargs)
