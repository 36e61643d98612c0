"""The attention network of Patchwork: which window to look at next (PW 3.1, figure 3).

It reads what is known of the full frame, and the actions taken before, as the history

    F_t = min(α·F_{t-1} + onehot(A_t), 1)                                        equation 1

and gives a Q-value to each window of the next frame.

Differs from the paper, whose network reads a map of features through a 1×1 convolution and fully
connected layers, of sizes that are not printed: with weights for every place it learned its clips
by heart. Here all places share their weights, and what is known is one number a tile, the presence
of something to look at, which the network's own predictions say (`presence` of the detector and of
the segmenter). The history becomes a number a tile too, how lately it was in a window; a 3×3
convolution reads both, and another one, as large as a window, says what windows are worth. F
enters with `HISTORY_ONE` for 1: all inputs of a concatenation share the range of scores.
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.layers.conv import Conv
from memvid_tf.layers.fake_quant import SIGMOID_RANGE, Scheme, quantize
from memvid_tf.windows import Windows

HISTORY_ONE = SIGMOID_RANGE[1]


@dataclasses.dataclass
class AttentionConfig(hyperparams.Config):
    """The attention network.

    Attributes:
      hidden: channels of the 3×3 convolution.
      decay: α of equation 1, in [0, 1).
    """

    hidden: int = 32
    decay: float = 0.9


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
        if config.hidden < 1:
            raise ValueError(f"attention.hidden {config.hidden} is not at least 1")
        if not 0 <= config.decay < 1:
            raise ValueError(f"attention.decay {config.decay} is not in [0, 1)")
        self.config, self.windows = config, windows
        self.score_range = quantize(scheme, "sigmoid", name="score_range")
        self.hidden = Conv(config.hidden, 3, activation="relu6", scheme=scheme, name="hidden")
        self.values = Conv(1, windows.adjacent, scheme=scheme, name="values")

    def call(self, presence, history, training=False):
        """Q-values of the windows.

        Args:
          presence: [B, M, M, 1] float32 in [0, 1], of each tile.
          history: [B, A] float32 in [0, HISTORY_ONE], what `next_history` returned.
          training: whether observers are updated.

        Returns:
          [B, A] float32.
        """
        side, adjacent = self.windows.positions, self.windows.adjacent
        batch = -1 if presence.shape[0] is None else presence.shape[0]
        lately = tf.reshape(self.score_range(history), [batch, side, side, 1])
        # A tile was seen when the latest of the windows around it was looked at.
        around = [adjacent - 1] * 2
        lately = tf.pad(lately, [[0, 0], around, around, [0, 0]])
        lately = tf.nn.max_pool2d(lately, adjacent, 1, "VALID")
        x = tf.concat([self.score_range(presence), lately], -1)
        x = self.hidden(x, training=training)
        # Inside the frame there is nothing around a window.
        x = self.values(x, training=training, surround=lambda x, _: x)
        return tf.cast(tf.reshape(x, [batch, self.windows.count]), tf.float32)
