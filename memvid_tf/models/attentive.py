"""Patchwork with what picks its windows (PW figure 1a): a network, its windows, and attention.

The attention network reads the presence of something in each tile, which the predictions for the
full frame say: parts of them are as old as their last window.
"""

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.models import patchwork
from memvid_tf.models.attention import Attention, AttentionConfig
from memvid_tf.models.interleaved import QUANTIZATIONS


class AttentiveNetwork(tf_keras.Model):
    """See the module.

    Attributes:
      network: the single-frame network, built.
      patchwork: the same in windows.
      attention: the attention network, built and quantized as the network is.
    """

    def __init__(
        self,
        network: hyperparams.Config,
        windows: patchwork.WindowConfig,
        attention: AttentionConfig,
        **kwargs,
    ):
        """Raises ValueError where the configuration contradicts itself."""
        super().__init__(**kwargs)
        self.patchwork = patchwork.build(network, windows)
        self.network = self.patchwork.network
        self.attention = build_attention(self.patchwork, attention)


def build_attention(
    model: patchwork.Patchwork, config: AttentionConfig, **kwargs
) -> Attention:
    """An attention network with all its variables for a network in windows."""
    scheme = QUANTIZATIONS[model.network.config.quantization]
    attention = Attention(config, model.windows, scheme, **kwargs)
    slices = model.windows.slices
    attention(tf.zeros([1, slices, slices, 1]), tf.zeros([1, model.windows.count]))
    # Values that are too high are learned only through values of later frames, a discount at a
    # time. Near zero they are none.
    attention.values.kernel.assign(0.01 * attention.values.kernel)
    return attention
