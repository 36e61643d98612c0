"""The three recurrent cells that LFS table 1 compares the memory with.

With x the features, and `Sep` a separable 3×3 convolution with bias:

  ConvLSTM (Shi et al. 2015)                    b = [x, h]
  Bottleneck ConvLSTM (Liu and Zhu 2018, 3.3)   b = ReLU6(Sep([x, h]))

      i, j, f, o = Sep(b)
      c' = ReLU6(σ(f + 1)·c + σ(i)·ReLU6(j))
      h' = σ(o)·c'

  ConvGRU (Ballas et al. 2016)

      z, r = σ(Sep([x, h]))
      n    = ReLU6(Sep([x, r·h]))
      h'   = h + z·(n - h)                      equal to (1 - z)·h + z·n

The output is h'. None of them has groups or a skip connection, so the state is as deep as the
output, where the memory of LFS needs half of that. `SharedCell` makes one the memory of the
interleaved detector.

Differs from the papers: Shi et al. and Ballas et al. have tanh and plain convolutions, Liu and Zhu
ReLU. Here all cells have the activations, the separable kernels and the forget bias of
`layers.conv_lstm`, so that what differs is how the state is connected.
"""

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import Conv, DepthwiseConv, SeparableConv
from memvid_tf.layers.conv_lstm import GatedCell, State, check_extractor
from memvid_tf.layers.fake_quant import Scheme, quantize


class HiddenState(NamedTuple):
    """The state of a convolutional GRU.

    Attributes:
      h: [B, H, W, C] float32 in [0, 6].
    """

    h: tf.Tensor


class ConvLSTM(GatedCell):
    """The gates read [x, h] themselves.

    Args:
      channels: channels of c, of h and of the output.
      scheme: quantization scheme, or None for the float network.
    """

    def __init__(self, channels: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(channels, 1, scheme, **kwargs)

    def read(self, x, h, training=False):
        """What the gates read: b of the equations. x, h: float32 in [0, 6], of one range."""
        return tf.concat([x, h], -1)

    def call(self, features, state: State, training=False):
        """One step.

        Args:
          features: [B, H, W, C] float32. The quantized cell clips them to [0, 6], the range that
            their concatenation with h needs (LFS 3.5): end the backbone in ReLU6.
          state: the state before the step.
          training: whether observers are updated.

        Returns:
          The output [B, H, W, channels] in [0, 6] and the next `State`.
        """
        x, c, h = (self.state_range(t, training=training) for t in (features, *state))
        state = self.update(self.read(x, h, training=training), c, training=training)
        return state.h, state


class BottleneckConvLSTM(ConvLSTM):
    """The gates read a bottleneck of [x, h] as deep as the state. Arguments as `ConvLSTM`."""

    def __init__(self, channels: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(channels, scheme, **kwargs)
        self.bottleneck = SeparableConv(
            channels, scheme=scheme, activation="relu6", name="bottleneck"
        )

    def read(self, x, h, training=False):
        return self.bottleneck(super().read(x, h, training=training), training=training)


class ConvGRU(tf_keras.layers.Layer):
    """See the module.

    Args:
      channels: channels of h, which is the output.
      scheme: quantization scheme, or None for the float network.
    """

    def __init__(self, channels: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.state_range = quantize(scheme, "relu6", name="state_range")
        self.sigmoid_range = quantize(scheme, "sigmoid", name="sigmoid_range")
        self.difference_range = quantize(scheme, "observed", name="difference_range")
        self.change_range = quantize(scheme, "observed", name="change_range")
        self.gate_depthwise = DepthwiseConv(3, scheme=scheme, name="gate_depthwise")
        self.gate_z = Conv(channels, scheme=scheme, name="gate_z")
        self.gate_r = Conv(channels, scheme=scheme, name="gate_r")
        self.candidate = SeparableConv(
            channels, scheme=scheme, activation="relu6", name="candidate"
        )

    def initial_state(self, batch: int, height: int, width: int) -> HiddenState:
        """Zeros: [batch, height, width, channels]."""
        return HiddenState(tf.zeros([batch, height, width, self.channels], self.compute_dtype))

    def call(self, features, state: HiddenState, training=False):
        """One step.

        Args:
          features: [B, H, W, C] float32, as of `ConvLSTM.call`.
          state: the state before the step.
          training: whether observers are updated.

        Returns:
          The output [B, H, W, channels] in [0, 6] and the next `HiddenState`.
        """

        def in_state_range(t):
            return self.state_range(t, training=training)

        x, h = in_state_range(features), in_state_range(state.h)
        d = self.gate_depthwise(tf.concat([x, h], -1), training=training)

        def sigmoid(gate):
            return self.sigmoid_range(tf.sigmoid(gate(d, training=training)), training=training)

        z, r = sigmoid(self.gate_z), sigmoid(self.gate_r)
        n = self.candidate(tf.concat([x, in_state_range(r * h)], -1), training=training)
        difference = self.difference_range(n - h, training=training)
        change = self.change_range(z * difference, training=training)
        next_h = in_state_range(h + change)
        return next_h, HiddenState(next_h)


class SharedCell(tf_keras.layers.Layer):
    """A rival as the memory of two extractors, with the interface of `conv_lstm.GroupedCell`.

    The cell reads f0's features as they are, so that a network in which f0 alone runs is the
    predecessor's (LFS table 2, SSDLite + LSTM). A 1×1 convolution with ReLU6 brings those of f1 to
    their depth, and the cell does not distinguish them.

    Attributes:
      f1_only_reads: see `GroupedCell`.

    Args:
      cell: one of `RIVALS`.
      depth: channels of f0's features.
      scheme: quantization scheme, or None for the float network.
    """

    f1_only_reads = False

    def __init__(self, cell, depth: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell
        self.projection = Conv(depth, activation="relu6", scheme=scheme, name="projection_f1")

    def initial_state(self, batch: int, height: int, width: int) -> State | HiddenState:
        """Zeros, as of the cell."""
        return self.cell.initial_state(batch, height, width)

    def adapt(self, features, extractor: str, training=False):
        """See `GroupedCell.adapt`; returns [B, H, W, depth] in [0, 6]."""
        if check_extractor(extractor) == "f1":
            return self.projection(features, training=training)
        return self.cell.state_range(features, training=training)

    def call(self, features, state: State | HiddenState, extractor: str, training=False):
        """See `GroupedCell.call`; the output is h' [B, H, W, channels] in [0, 6]."""
        check_extractor(extractor)
        return self.cell(features, state, training=training)


RIVALS = {"conv_lstm": ConvLSTM, "conv_gru": ConvGRU, "bottleneck_conv_lstm": BottleneckConvLSTM}
