"""The attention network of Patchwork: which window to look at next (PW 3.1, figure 3).

It reads a memory with a view of the full frame, and the actions taken before, as the history

    F_t = min(α·F_{t-1} + onehot(A_t), 1)                                        equation 1

and gives a Q-value to each window of the next frame: a 1×1 convolution, flattened, a fully
connected layer, concatenated with F_t, and another one.

PW prints no sizes. The defaults cost 1.5 MFLOPs on the detector's 12×12×256 features; PW table 1
has 1 or 2 between the rows with and without it.

Differs from the paper: F enters with `HISTORY_ONE` for 1. All inputs of a concatenation share the
range [0, 6], and the fully connected layer has weights to undo it.
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.layers.conv import Conv
from memvid_tf.layers.fake_quant import RELU6_RANGE, Scheme, quantize
from memvid_tf.windows import Windows

HISTORY_ONE = RELU6_RANGE[1]


@dataclasses.dataclass
class AttentionConfig(hyperparams.Config):
    """The attention network.

    Attributes:
      channels: of the 1×1 convolution.
      hidden: of the fully connected layer after it.
      decay: α of equation 1, in [0, 1).
    """

    channels: int = 16
    hidden: int = 64
    decay: float = 0.6


def next_history(history, action, decay: float):
    """Equation 1, in units of `HISTORY_ONE`.

    Args:
      history: [B, A] float32 in [0, HISTORY_ONE], zeros before the first action.
      action: [B] int32, the windows that were looked at.
      decay: α.

    Returns:
      [B, A] float32 in [0, HISTORY_ONE].
    """
    taken = tf.one_hot(action, history.shape[-1], on_value=HISTORY_ONE)
    return tf.minimum(decay * history + taken, HISTORY_ONE)


class Attention(tf_keras.layers.Layer):
    """See the module.

    Args:
      config: the network.
      windows: the attention windows, which are the actions.
      scheme: quantization scheme, or None for the float network.

    Raises:
      ValueError: a number of which no network can be made.
    """

    def __init__(
        self, config: AttentionConfig, windows: Windows, scheme: Scheme | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        for field in ("channels", "hidden"):
            if getattr(config, field) < 1:
                raise ValueError(f"attention.{field} {getattr(config, field)} is not at least 1")
        if not 0 <= config.decay < 1:
            raise ValueError(f"attention.decay {config.decay} is not in [0, 1)")
        self.config, self.windows = config, windows
        self.state_range = quantize(scheme, "relu6", name="state_range")
        common = dict(activation="relu6", scheme=scheme)
        self.reduce = Conv(config.channels, name="reduce", **common)
        # Fully connected layers, as 1×1 convolutions of a 1×1 map.
        self.hidden = Conv(config.hidden, name="hidden", **common)
        self.values = Conv(windows.count, scheme=scheme, name="values")

    def call(self, features, history, training=False):
        """Q-values of the windows.

        Args:
          features: [B, H, W, C] float32 in [0, 6], a map of the full frame.
          history: [B, A] float32 in [0, HISTORY_ONE], what `next_history` returned.
          training: whether observers are updated.

        Returns:
          [B, A] float32.
        """
        x = self.reduce(self.state_range(features, training=training), training=training)
        batch = -1 if x.shape[0] is None else x.shape[0]
        x = tf.reshape(x, [batch, 1, 1, x.shape[1:].num_elements()])
        x = self.hidden(x, training=training)
        history = tf.reshape(history, [batch, 1, 1, history.shape[-1]])
        x = tf.concat([x, self.state_range(history, training=training)], -1)
        x = self.values(x, training=training)
        return tf.cast(tf.reshape(x, [batch, self.windows.count]), tf.float32)
