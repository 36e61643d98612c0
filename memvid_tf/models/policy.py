"""The adaptive interleaving policy π and the detector it steers (LFS 3.4, figure 4).

π reads S = (c_t, h_t, c_t − c_{t−1}, h_t − h_{t−1}, η_t) and gives a Q-value to each extractor for
the next frame: a grouped convolution with the four maps as groups, a depthwise-separable one, a
maximum over all positions, and a fully connected layer that also reads η.

The grouped convolution is four convolutions whose outputs are concatenated, which is the same sum
and leaves no 1280-channel tensor in the exported graph. The defaults are the reading of the paper
that meets its cost of 89.6 K parameters and 1.76 M multiply-adds (derived in shared design): 1×1
kernels at stride 2 with 47 channels a group, then a separable convolution of stride 2 to 144.

Differs from the paper: η enters with `ETA_ONE` for its ones, not 1. All inputs of a concatenation
share the range [0, 6] (LFS 3.5), in which int8 holds 6 exactly and 1 not; the fully connected layer
has weights to undo it. What π sees of a frame of f1 is a choice (`PolicyConfig.observes`).
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.layers.conv import Conv, DepthwiseConv
from memvid_tf.layers.conv_lstm import EXTRACTORS, State
from memvid_tf.layers.fake_quant import RELU6_RANGE, Scheme, quantize
from memvid_tf.models.interleaved import (
    QUANTIZATIONS,
    InterleavedConfig,
    InterleavedDetector,
    build,
    chosen,
)

ETA_ONE = RELU6_RANGE[1]
OBSERVES = ("memory", "candidate")
# From one frame to the next a state changes by a twentieth of itself. At first, a change counts as
# much as what is there: else it is what is there that is learned, by heart.
CHANGE_GAIN = 10.0


@dataclasses.dataclass
class PolicyConfig(hyperparams.Config):
    """The policy network. The defaults are paper scale.

    Attributes:
      branch_channels: output channels of each of the four groups.
      branch_kernel, branch_strides: of the grouped convolution. 1 and 2, which give the paper's
        cost, read every fourth cell of the maps; small maps cannot spare the others.
      channels, strides: of the depthwise-separable 3×3 convolution.
      history: length of η (20 in LFS 3.4).
      observes: what c_t and h_t are after a frame of f1. "memory": the memory, which f1 leaves
        alone, so that its change is zero. "candidate": what f1 would have written, had it been
        allowed to, which the memory's own step computes. It shows the frame at hand, and from one
        frame of f1 to the next its change shows what happened there.
    """

    branch_channels: int = 47
    branch_kernel: int = 1
    branch_strides: int = 2
    channels: int = 144
    strides: int = 2
    history: int = 20
    observes: str = "candidate"


class Policy(tf_keras.layers.Layer):
    """π. See the module.

    Args:
      config: the network.
      scheme: quantization scheme, or None for the float network.

    Raises:
      ValueError: a number of which no network can be made.
    """

    def __init__(self, config: PolicyConfig, scheme: Scheme | None = None, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        for field, value in config.as_dict().items():
            if field != "observes" and value < 1:
                raise ValueError(f"policy.{field} {value} is not at least 1")
        chosen("policy.observes", config.observes, dict.fromkeys(OBSERVES))
        self.state_range = quantize(scheme, "relu6", name="state_range")
        self.difference_range = quantize(scheme, "difference", name="difference_range")
        self.branches = [
            Conv(
                config.branch_channels,
                config.branch_kernel,
                strides=config.branch_strides,
                activation="relu6",
                scheme=scheme,
                kernel_initializer=tf_keras.initializers.VarianceScaling(2.0 * gain**2, "fan_in"),
                name=f"branch_{name}",
            )
            for name, gain in (
                ("c", 1.0),
                ("h", 1.0),
                ("c_change", CHANGE_GAIN),
                ("h_change", CHANGE_GAIN),
            )
        ]
        self.depthwise = DepthwiseConv(3, strides=config.strides, scheme=scheme, name="depthwise")
        self.pointwise = Conv(config.channels, activation="relu6", scheme=scheme, name="pointwise")
        # A fully connected layer, as the 1×1 convolution of a 1×1 map.
        self.values = Conv(len(EXTRACTORS), scheme=scheme, name="values")

    def call(self, after: State, before: State, eta, training=False):
        """Q-values of the extractors.

        Args:
          after: [B, H, W, C] float32 in [0, 6] each, c_t and h_t.
          before: the same, c_{t-1} and h_{t-1}: what was observed a frame earlier.
          eta: [B, history] float32, `ETA_ONE` where f1 ran k steps ago (k = 1 first), else 0.
          training: whether observers are updated.

        Returns:
          [B, 2] float32, in the order of `conv_lstm.EXTRACTORS`.
        """

        def in_state_range(x):
            return self.state_range(x, training=training)

        after, before = State(*map(in_state_range, after)), State(*map(in_state_range, before))
        changes = [self.difference_range(a - b, training=training) for a, b in zip(after, before)]
        maps = (*after, *changes)
        x = tf.concat([branch(m, training=training) for branch, m in zip(self.branches, maps)], -1)
        x = self.pointwise(self.depthwise(x, training=training), training=training)
        size = x.shape[1:3].as_list()
        if size != [1, 1]:  # XNNPACK refuses a maximum over one position
            x = tf.nn.max_pool2d(x, size, size, "VALID")
        eta = tf.reshape(eta, [-1 if eta.shape[0] is None else eta.shape[0], 1, 1, eta.shape[1]])
        x = self.values(tf.concat([x, in_state_range(eta)], -1), training=training)
        return tf.reshape(x, [-1 if x.shape[0] is None else x.shape[0], len(EXTRACTORS)])


class AdaptiveDetector(tf_keras.Model):
    """A trained detector and the policy that picks its extractors.

    Attributes:
      detector: the interleaved detector, built.
      policy: π, built.
    """

    def __init__(self, config: InterleavedConfig, policy: PolicyConfig, **kwargs):
        super().__init__(**kwargs)
        self.detector = build(config)
        self.policy = build_policy(self.detector, policy)


def build_policy(detector: InterleavedDetector, config: PolicyConfig, **kwargs) -> Policy:
    """A policy of a detector with all its variables, quantized as the detector is.

    Raises:
      ValueError: a memory without c.
    """
    policy = Policy(config, QUANTIZATIONS[detector.config.quantization], **kwargs)
    state = detector.initial_state(1)
    if not isinstance(state, State):
        raise ValueError(f"model.cell {detector.config.cell!r} has no c, which the policy reads")
    policy(state, state, tf.zeros([1, config.history]))
    # Values that are too high are learned only through values of later frames, a discount at a
    # time. Near zero they are none.
    policy.values.kernel.assign(0.01 * policy.values.kernel)
    return policy
