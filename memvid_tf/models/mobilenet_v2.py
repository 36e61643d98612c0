"""MobileNetV2 (Sandler et al. 2018) as LFS 3.1 uses it: tapped at the last 320·α bottleneck.

Differs from the library implementations in what the small extractor needs: the last strided block
can keep its resolution, and the minimum depth is a parameter.
"""

import dataclasses

import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import Add, BatchNorm, Conv, DepthwiseConv
from memvid_tf.layers.fake_quant import Scheme


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of inverted residual blocks, a row of table 2 of Sandler et al.

    Attributes:
      expansion: channels inside a block over channels that enter it.
      channels: output channels at depth multiplier 1.
      blocks: number of blocks.
      strides: of the first block; the others have stride 1.
    """

    expansion: int
    channels: int
    blocks: int
    strides: int


MOBILENET_V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)

# The tiny twin: four strides instead of five, for frames of 96 pixels.
TINY = (
    Stage(1, 16, 1, 1),
    Stage(4, 24, 2, 2),
    Stage(4, 32, 2, 2),
    Stage(4, 64, 2, 2),
    Stage(4, 96, 1, 1),
)

BACKBONES = {"mobilenet_v2": MOBILENET_V2, "tiny": TINY}
STEM_CHANNELS = 32


def scaled(pixels):
    """[B, H, W, 3] of 0..255 to float32 in [-1, 127/128], which int8 holds exactly."""
    return tf.cast(pixels, tf.float32) / 128.0 - 1.0


def scale_channels(channels: int, depth_multiplier: float, min_depth: int = 16) -> int:
    """Channels at a depth multiplier: a multiple of 8, never 10 % below the product.

    The minimum of 16 is what reproduces the SSDLite rows of LFS table 2 (derived in shared design).
    """
    product = channels * depth_multiplier
    rounded = max(min_depth, int(product + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * product else rounded


class InvertedResidual(tf_keras.layers.Layer):
    """Expansion 1×1, depthwise 3×3, linear projection 1×1; residual where shapes agree.

    Args:
      filters: output channels.
      expansion: channels inside over channels in; 1 leaves the first convolution out.
      strides: of the depthwise convolution.
      activation: of the projection; None in every block but, possibly, the last of a backbone.
      norm: the network's `BatchNorm`.
      scheme: quantization scheme, or None.
    """

    def __init__(self, filters, expansion, strides, activation, norm, scheme, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.expansion, self.strides = filters, expansion, strides
        self.norm, self.scheme = norm, scheme
        common = dict(norm=norm, scheme=scheme)
        self.depthwise = DepthwiseConv(
            3, strides=strides, activation="relu6", name="depthwise", **common
        )
        self.project = Conv(filters, activation=activation, name="project", **common)

    def build(self, input_shape):
        channels = int(input_shape[-1])
        self.expand = self.add = None
        if self.expansion > 1:
            self.expand = Conv(
                channels * self.expansion,
                activation="relu6",
                norm=self.norm,
                scheme=self.scheme,
                name="expand",
            )
        if self.strides == 1 and channels == self.filters:
            self.add = Add(scheme=self.scheme, name="add")
        super().build(input_shape)

    def expanded(self, x, training=False):
        """The inside of the block before its depthwise convolution: [B, H, W, C·expansion]."""
        return self.expand(x, training=training) if self.expand else x

    def finish(self, x, inside, training=False, surround=None):
        """The rest of the block. x: its input; inside: what `expanded` returned."""
        y = self.depthwise(inside, training=training, surround=surround)
        y = self.project(y, training=training)
        return self.add(x, y, training=training) if self.add else y

    def call(self, x, training=False, surround=None):
        """x: [B, H, W, C] float32; returns [B, ceil(H / strides), ceil(W / strides), filters].
        surround: of the depthwise convolution, see `Conv.call`."""
        return self.finish(x, self.expanded(x, training=training), training, surround)


class MobileNetV2(tf_keras.layers.Layer):
    """Stem and stages, up to the last bottleneck.

    Args:
      stages: rows of the network.
      depth_multiplier: α, scales all channels.
      norm: the network's `BatchNorm`.
      scheme: quantization scheme, or None.
      min_depth: least number of channels of a layer.
      keep_last_stride: whether the last strided block strides; f1 removes it (LFS 3.1), so that
        a frame of half the size gives a map of the same size.
      final_activation: of the last bottleneck.

    Attributes:
      stride: side of the frame over side of the output.
      depth: channels of the output.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        depth_multiplier: float,
        norm: BatchNorm,
        scheme: Scheme | None = None,
        *,
        min_depth: int = 16,
        keep_last_stride: bool = True,
        final_activation: str | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        strided = [i for i, stage in enumerate(stages) if stage.strides > 1]
        self.stride = 2 ** (1 + len(strided) - (not keep_last_stride))

        def channels(base):
            return scale_channels(base, depth_multiplier, min_depth)

        self.depth = channels(stages[-1].channels)
        self.stem = Conv(
            channels(STEM_CHANNELS),
            3,
            strides=2,
            activation="relu6",
            norm=norm,
            scheme=scheme,
            name="stem",
        )
        self.blocks = []
        for i, stage in enumerate(stages):
            removed = i == strided[-1] and not keep_last_stride
            for j in range(stage.blocks):
                last = i == len(stages) - 1 and j == stage.blocks - 1
                self.blocks.append(
                    InvertedResidual(
                        channels(stage.channels),
                        stage.expansion,
                        1 if j or removed else stage.strides,
                        final_activation if last else None,
                        norm,
                        scheme,
                        name=f"stage_{i}_block_{j}",
                    )
                )

    def call(self, x, training=False, surround=None):
        """x: [B, H, W, 3] float32 in [-1, 1); returns [B, H / stride, W / stride, C].
        surround: of every convolution, see `Conv.call`."""
        x = self.stem(x, training=training, surround=surround)
        for block in self.blocks:
            x = block(x, training=training, surround=surround)
        return x
