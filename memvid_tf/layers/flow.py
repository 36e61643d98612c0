"""Flow-guided features as a memory (Zhu et al. 2018, "Towards High Performance Video Object
Detection for Mobiles"), the method that LFS table 2 compares its memory with.

f0 sees the key frames, and f1 is the encoder of the light flow network. With x the features of a
frame, k those of the last key frame as they were encoded, h the aggregated features and `Sep` a
separable 3×3 convolution with bias:

    e    = ReLU6(W·x)
    flow = Sep(ReLU6(Sep(ReLU6(Sep([e, k])))))         from each place, to where it was in h
    w    = warp(h, flow)

    f0's frame:   h' = ConvGRU(x, w)    k' = e    output h'
    f1's frame:   h' = h                k' = k    output w

`warp` is bilinear sampling. A sum over the shifts within R cells, whose weights the flow gives,
samples the same, for a flow bounded by R:

    warp(h, flow)(p) = Σ_dy Σ_dx hat(flow_y(p) - dy)·hat(flow_x(p) - dx)·h(p + (dy, dx))
    hat(u)           = max(0, 1 - |u|)

with zeros around the map. It is made of slices, products, sums and 1×1 convolutions, all of which
an accelerator has in int8; GATHER it has not. The hats too are convolutions with ReLU6, of

    s_k = clip(flow + R - k, 0, 1)    k = 0 … 2R - 1       hat(flow - d) = s_{d+R-1} - s_{d+R}

with s_{-1} = 1 and s_{2R} = 0, which also is the bound: flow beyond R is R. The float network
trains on one product of matrices instead, which has the same values and is 30 times as fast.

Differs from Zhu et al.: two frames are compared by their features, each encoded alone, and not as
images one upon the other, so that the key frame's are computed once; they come from the detector's
f0. The flow has the resolution of the features and is bounded. It is trained by the detections and,
with `flow_weight` of the task, by the tracks of objects (`detection.flow_loss`), where theirs
learns from labelled flow first. The GRU is `recurrent.ConvGRU`, whose kernels are separable.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import Conv, SeparableConv
from memvid_tf.layers.conv_lstm import check_extractor
from memvid_tf.layers.fake_quant import FLOW_RANGE, RELU6_RANGE, Scheme, quantize
from memvid_tf.layers.recurrent import ConvGRU, HiddenState

# R, 64 px of a frame at paper scale. A warp costs (2R + 1)² products with a map.
LARGEST_FLOW = round(-FLOW_RANGE[0])
# Channels of an encoding and of the flow's layers: at paper scale they cost 6 % of a frame of f1.
FLOW_CHANNELS = 64
FLOW_LAYERS = 2
# Where s_k is on its bounds it has no gradient, so flow must not begin as exactly zero, and a small
# one moves the features little.
FLOW_GAIN = 0.01


class FlowState(NamedTuple):
    """The state of `FlowGuidedCell`. Its order is the order of the exported tensors.

    Attributes:
      h: [B, H, W, C] float32 aggregated features of the last key frame, in [0, 6].
      key: [B, H, W, FLOW_CHANNELS] float32 its encoding, in [0, 6].
    """

    h: tf.Tensor
    key: tf.Tensor


class ConstantConv(tf_keras.layers.Layer):
    """1×1 convolution whose weights are constants.

    Args:
      kernel: [channels, filters].
      bias: [filters].
      kind: of `Scheme`, the range of the output; "relu6" applies ReLU6 too.
      scheme: quantization scheme, or None for the float network.
    """

    def __init__(self, kernel, bias, kind: str, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kernel = np.asarray(kernel, np.float32)[np.newaxis, np.newaxis]
        self.bias = np.asarray(bias, np.float32)
        self.activation = tf.nn.relu6 if kind == "relu6" else tf.identity
        self.kernel_range = quantize(scheme, "kernel", name="kernel_range")
        self.output_range = quantize(scheme, kind, name="output_range")

    def call(self, x):
        """x: [B, H, W, channels] float32; returns [B, H, W, filters]."""
        kernel = tf.cast(self.kernel_range(tf.constant(self.kernel)), x.dtype)
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), tf.cast(self.bias, x.dtype))
        return self.output_range(self.activation(y))


class Warp(tf_keras.layers.Layer):
    """Samples a map where the flow points to. See the module.

    Args:
      radius: R, in cells.
      scheme: quantization scheme, or None for the float network.
    """

    def __init__(self, radius: int = LARGEST_FLOW, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.radius = radius
        six, count, shifts = RELU6_RANGE[1], 2 * radius, 2 * radius + 1
        # 6·s_k of both axes: ReLU6 is their clip.
        self.steps = ConstantConv(
            np.kron(np.eye(2), np.full([1, count], six)),
            np.tile(six * (radius - np.arange(count)), 2),
            "relu6",
            scheme,
            name="steps",
        )
        hat = (np.eye(count, shifts, 1) - np.eye(count, shifts)) / six
        first = np.eye(1, shifts)[0]
        # Both give a value for each shift (dy, dx), dx being the faster.
        self.rows = ConstantConv(
            np.vstack([hat.repeat(shifts, 1), np.zeros([count, shifts**2])]),
            first.repeat(shifts),
            "share",
            scheme,
            name="rows",
        )
        self.columns = ConstantConv(
            np.vstack([np.zeros([count, shifts**2]), np.tile(hat, shifts)]),
            np.tile(first, shifts),
            "share",
            scheme,
            name="columns",
        )
        self.share_range = quantize(scheme, "share", name="share_range")
        self.state_range = quantize(scheme, "relu6", name="state_range")

    def product(self, h, flow):
        """What `call` returns of the float network, as one product of matrices."""
        height, width, channels = h.shape[1:]
        flow = tf.clip_by_value(flow, -self.radius, self.radius)

        def hats(start, flow):
            """[B, H, W, n]: the weights of the n places of an axis."""
            distance = (start + flow)[..., tf.newaxis] - tf.range(start.shape.num_elements() * 1.0)
            return tf.nn.relu(1 - tf.abs(distance))

        rows = hats(tf.range(height * 1.0)[:, tf.newaxis], flow[..., 0])
        columns = hats(tf.range(width * 1.0), flow[..., 1])
        weights = rows[..., tf.newaxis] * columns[..., tf.newaxis, :]
        places = height * width
        sampled = tf.matmul(
            tf.reshape(weights, [-1, places, places]), tf.reshape(h, [-1, places, channels])
        )
        return tf.reshape(sampled, [-1, height, width, channels])

    def call(self, h, flow):
        """Samples.

        Args:
          h: [B, H, W, C] float32 in [0, 6].
          flow: [B, H, W, 2] float32 in cells, down and to the right: where to sample, seen from
            each place. Components beyond ±R are taken as ±R.

        Returns:
          [B, H, W, C] float32 in [0, 6].
        """
        radius, shifts = self.radius, 2 * self.radius + 1
        steps = self.steps(flow)
        shares = self.share_range(self.rows(steps) * self.columns(steps))
        height, width = h.shape[1:3]
        around = [radius, radius]
        padded = tf.pad(h, [[0, 0], around, around, [0, 0]])
        total = None
        for number in range(shifts**2):
            y, x = divmod(number, shifts)
            shifted = padded[:, y : y + height, x : x + width]
            part = self.state_range(shares[..., number : number + 1] * shifted)
            total = part if total is None else self.state_range(total + part)
        return total


class FlowGuidedCell(tf_keras.layers.Layer):
    """The memory of two extractors, with the interface of `conv_lstm.GroupedCell`. See the module.

    Attributes:
      f1_only_reads: see `GroupedCell`.

    Args:
      channels: channels of h, which is the output.
      depth: channels of f0's features.
      scheme: quantization scheme, or None for the float network.
    """

    f1_only_reads = True

    def __init__(self, channels: int, depth: int, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.scheme = scheme
        self.projection = Conv(depth, activation="relu6", scheme=scheme, name="projection_f1")
        self.encoding = Conv(FLOW_CHANNELS, activation="relu6", scheme=scheme, name="encoding")
        self.flow_layers = [
            SeparableConv(FLOW_CHANNELS, activation="relu6", scheme=scheme, name=f"flow_layer_{n}")
            for n in range(FLOW_LAYERS)
        ]
        self.flow_output = SeparableConv(
            2,
            scheme=scheme,
            output=quantize(scheme, "flow", name="flow_range"),
            kernel_initializer=tf_keras.initializers.VarianceScaling(FLOW_GAIN, "fan_in"),
            name="flow_output",
        )
        self.warp = Warp(scheme=scheme, name="warp")
        self.gru = ConvGRU(channels, scheme, name="gru")

    def initial_state(self, batch: int, height: int, width: int) -> FlowState:
        """Zeros."""
        [h] = self.gru.initial_state(batch, height, width)
        return FlowState(h, tf.zeros([batch, height, width, FLOW_CHANNELS], self.compute_dtype))

    def adapt(self, features, extractor: str, training=False):
        """See `GroupedCell.adapt`; returns [B, H, W, depth] in [0, 6]."""
        if check_extractor(extractor) == "f1":
            return self.projection(features, training=training)
        return self.gru.state_range(features, training=training)

    def flow(self, encoding, key, training=False):
        """Where what is seen at a place was in the key frame.

        Args:
          encoding: [B, H, W, FLOW_CHANNELS] float32 of a frame.
          key: the same of the last key frame.
          training: whether observers are updated.

        Returns:
          [B, H, W, 2] float32 in cells, as `Warp.call` takes it.
        """
        y = tf.concat([encoding, key], -1)
        for layer in self.flow_layers:
            y = layer(y, training=training)
        return self.flow_output(y, training=training)

    def flow_of(self, features, state: FlowState):
        """The flow that a step with these arguments follows, for a loss: see `flow`, `call`."""
        x, key = (self.gru.state_range(t) for t in (features, state.key))
        return self.flow(self.encoding(x), key)

    def call(self, features, state: FlowState, extractor: str, training=False):
        """See `GroupedCell.call`; the output is [B, H, W, channels] in [0, 6].

        After a frame of f1 the state is what it was.
        """
        check_extractor(extractor)
        x, h, key = (self.gru.state_range(t, training=training) for t in (features, *state))
        encoding = self.encoding(x, training=training)
        flow = self.flow(encoding, key, training=training)
        # The sum over shifts is what simulates quantization and what is exported.
        warp = self.warp.product if training and self.scheme is None else self.warp
        warped = warp(h, flow)
        if extractor == "f1":
            return warped, state
        output, _ = self.gru(x, HiddenState(warped), training=training)
        return output, FlowState(output, encoding)


GUIDED = {"flow_guided": FlowGuidedCell}
