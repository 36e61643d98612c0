"""The memory: a grouped bottleneck convolutional LSTM (LFS 3.2, figure 3).

For group g of G, with x from extractor i and `Sep` a separable 3×3 convolution with bias:

    b_g        = ReLU6(Sep_{i,g}([x, h_g]))
    i, j, f, o = Sep_g(b_g)
    c'_g       = ReLU6(σ(f + 1)·c_g + σ(i)·ReLU6(j))
    h'_g       = σ(o)·c'_g
    M_g        = [h'_g, b_g]

Two forms of the bottleneck share everything else. `PaperCell` is the equation. `FactoredCell` uses
that Sep_{i,g}([x, h_g]) = P_{i,g}(D_{i,g}(x)) + P_g(D_g(h_g)): the x term leaves the cell and becomes
the last layer of its extractor, so one memory graph serves both extractors.

Differs from the paper: M holds all h'_g, then all b_g (the next layer is a convolution, to which
the order of channels is nothing). The `1` of σ(f + 1) is the initial value of f's bias.
`FactoredCell` shares the weights on h between the extractors.
"""

from typing import NamedTuple

import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import Add, Conv, DepthwiseConv, SeparableConv
from memvid_tf.layers.fake_quant import Scheme, quantize

EXTRACTORS = ("f0", "f1")


class State(NamedTuple):
    """The state of a convolutional LSTM. Its order is the order of the exported tensors.

    Attributes:
      c: [B, H, W, C] float32 cell in [0, 6].
      h: [B, H, W, C] float32 hidden state in [0, 6].
    """

    c: tf.Tensor
    h: tf.Tensor


def check_extractor(extractor: str) -> str:
    """Returns the name, or raises ValueError naming the allowed ones."""
    if extractor not in EXTRACTORS:
        raise ValueError(f"extractor {extractor!r} is not one of {EXTRACTORS}")
    return extractor


class GatedCell(tf_keras.layers.Layer):
    """What convolutional LSTMs share: the gates and the state update.

    The gates' `Sep_g` over all groups is one depthwise convolution over all channels and one
    grouped pointwise convolution for each gate, which is the paper's equation exactly.

    Args:
      channels: channels of c and of h, over all groups (320 in LFS 3.2).
      groups: number of groups G (4 in LFS 3.2).
      scheme: quantization scheme, or None for the float network.
    """

    def __init__(self, channels: int, groups: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        if channels % groups:
            raise ValueError(f"{channels} state channels cannot be divided into {groups} groups")
        self.channels, self.groups, self.scheme = channels, groups, scheme
        self.state_range = quantize(scheme, "relu6", name="state_range")
        self.sigmoid_range = quantize(scheme, "sigmoid", name="sigmoid_range")
        self.gate_depthwise = DepthwiseConv(3, scheme=scheme, name="gate_depthwise")

        def gate(name, **kwargs):
            return Conv(channels, groups=groups, scheme=scheme, name=name, **kwargs)

        self.gate_i, self.gate_o = gate("gate_i"), gate("gate_o")
        self.gate_f = gate("gate_f", bias_initializer="ones")
        self.gate_j = gate("gate_j", activation="relu6")

    def initial_state(self, batch: int, height: int, width: int) -> State:
        """Zeros: [batch, height, width, channels] twice."""
        zeros = tf.zeros([batch, height, width, self.channels], self.compute_dtype)
        return State(zeros, zeros)

    def update(self, b, c, training=False) -> State:
        """The gates and the next state.

        Args:
          b: [B, H, W, C] float32, what the gates read.
          c: [B, H, W, channels] float32, the cell before the step.
          training: whether observers are updated.
        """
        d = self.gate_depthwise(b, training=training)

        def sigmoid(gate):
            return self.sigmoid_range(tf.sigmoid(gate(d, training=training)), training=training)

        def in_state_range(x):
            return self.state_range(x, training=training)

        kept = in_state_range(sigmoid(self.gate_f) * c)
        added = in_state_range(sigmoid(self.gate_i) * self.gate_j(d, training=training))
        next_c = in_state_range(tf.nn.relu6(kept + added))
        next_h = in_state_range(sigmoid(self.gate_o) * next_c)
        return State(next_c, next_h)


class GroupedCell(GatedCell):
    """What both forms share: the step, with its skip connection. Arguments as `GatedCell`.

    Attributes:
      f1_only_reads: whether a frame of f1 takes another computation than one of f0, which cannot
        write the state.
    """

    f1_only_reads = False

    def adapt(self, features, extractor: str, training=False):
        """The part of the bottleneck that belongs to an extractor.

        Args:
          features: [B, H, W, C_i] float32, output of the backbone of extractor i.
          extractor: "f0" or "f1".
          training: whether observers and batch statistics are updated.

        Returns:
          [B, H, W, C] float32: the tensor between the extractor's graph and the memory's.
        """
        raise NotImplementedError

    def bottleneck(self, features, h, extractor: str, training=False):
        """b of the equations: [B, H, W, channels] in [0, 6]."""
        raise NotImplementedError

    def call(self, features, state: State, extractor: str, training=False):
        """One step.

        Args:
          features: [B, H, W, C] float32, what `adapt` returned.
          state: the state before the step.
          extractor: which extractor made the features, "f0" or "f1".
          training: whether observers are updated.

        Returns:
          The output M [B, H, W, 2·channels] in [0, 6] and the next `State`. Whether the next state
          is kept is the caller's choice: LFS 3.2 keeps it only when f0 ran.
        """
        check_extractor(extractor)
        c = self.state_range(state.c, training=training)
        h = self.state_range(state.h, training=training)
        b = self.bottleneck(features, h, extractor, training=training)
        state = self.update(b, c, training=training)
        return tf.concat([state.h, b], -1), state


class PaperCell(GroupedCell):
    """The bottleneck as the paper writes it: one Sep_{i,g}([x, h_g]) an extractor and a group."""

    def __init__(self, channels: int, groups: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(channels, groups, scheme, **kwargs)
        self.bottlenecks = {
            extractor: [
                SeparableConv(
                    channels // groups,
                    scheme=scheme,
                    activation="relu6",
                    name=f"bottleneck_{extractor}_{g}",
                )
                for g in range(groups)
            ]
            for extractor in EXTRACTORS
        }

    def adapt(self, features, extractor, training=False):
        check_extractor(extractor)
        # The backbone ends in ReLU6, so x and h_g share the range [0, 6] that their concatenation
        # needs (LFS 3.5).
        return self.state_range(features, training=training)

    def bottleneck(self, features, h, extractor, training=False):
        parts = tf.split(h, self.groups, -1)
        return tf.concat(
            [
                sep(tf.concat([features, part], -1), training=training)
                for sep, part in zip(self.bottlenecks[extractor], parts)
            ],
            -1,
        )


class FactoredCell(GroupedCell):
    """The bottleneck as a sum of an extractor's projection and a projection of h, both grouped."""

    def __init__(self, channels: int, groups: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(channels, groups, scheme, **kwargs)
        # Both extractors feed the same input of the memory graph, so they share one range.
        self.features_range = quantize(scheme, "observed", name="features_range")

        def projection(name, gain, **kwargs):
            # The sum of the projections ends in ReLU6.
            initializer = tf_keras.initializers.VarianceScaling(gain, "fan_in")
            return SeparableConv(
                channels,
                groups=groups,
                scheme=scheme,
                kernel_initializer=initializer,
                name=name,
                **kwargs,
            )

        self.projections = {
            extractor: projection(f"projection_{extractor}", 2.0, output=self.features_range)
            for extractor in EXTRACTORS
        }
        # In the paper's form a kernel reads h_g beside the many channels of x. As if it read all of
        # h, the recurrent term begins as small beside that of x.
        self.h_projection = projection("h_projection", 2.0 / groups)
        self.add = Add("relu6", scheme, name="add")

    def adapt(self, features, extractor, training=False):
        # x is not divided: every group has kernels of its own over all of its channels.
        repeated = tf.concat([features] * self.groups, -1)
        return self.projections[check_extractor(extractor)](repeated, training=training)

    def bottleneck(self, features, h, extractor, training=False):
        # Entering the memory graph, the tensor carries the range it left the extractor's with. By
        # default Keras would hand down the caller's `training`, and observe it a second time.
        x = self.features_range(features, training=False)
        return self.add(x, self.h_projection(h, training=training), training=training)


CELLS = {"paper": PaperCell, "factored": FactoredCell}
