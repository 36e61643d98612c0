"""Binary segmentation: MobileNetV2 with a DeepLab-style head (Sandler et al. 2018, 6.3; PW 4.2).

The backbone keeps its resolution at its last stride (output stride 16). As in DeepLabv3 without its
atrous pyramid, the head has two branches, a 1×1 convolution and image pooling, which are
concatenated and projected; one more 1×1 convolution gives the logits, which are resized to the
frame.

The projection of a concatenation is the sum of two projections, P([x, g]) = P_x(x) + P_g(g). So all
that costs anything can be computed window by window (`body`), and only the pooled branch and the
logits read the full frame (`tail`, see `models.patchwork`).

Differs from the paper: the kernels after the removed stride are not dilated, and one logit stands
for the foreground.
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.layers.conv import Add, BatchNorm, Conv
from memvid_tf.layers.fake_quant import quantize
from memvid_tf.models.interleaved import QUANTIZATIONS, chosen
from memvid_tf.models.mobilenet_v2 import BACKBONES, MobileNetV2, scaled


@dataclasses.dataclass
class SegmenterConfig(hyperparams.Config):
    """The network. The defaults are paper scale.

    Attributes:
      image_size: height and width of the frame in pixels (PW 4: 384).
      backbone: a key of `mobilenet_v2.BACKBONES`.
      depth_multiplier: α, scales the backbone's channels.
      min_depth: least number of channels of the backbone's layers.
      head_depth: channels of each branch and of their projection (256 in DeepLabv3).
      norm_momentum: momentum of batch normalisation.
      quantization: "none" for the float network, "int8" for simulated quantization.
    """

    image_size: tuple[int, ...] = (384, 384)
    backbone: str = "mobilenet_v2"
    depth_multiplier: float = 1.0
    min_depth: int = 16
    head_depth: int = 256
    norm_momentum: float = 0.9997
    quantization: str = "none"


class Segmenter(tf_keras.Model):
    """See the module.

    Attributes:
      presence_from: the prediction that `presence` reads.
    """

    presence_from = "mask_logits"

    def __init__(self, config: SegmenterConfig, **kwargs):
        """Raises ValueError where the configuration contradicts itself."""
        super().__init__(**kwargs)
        self.config = config
        scheme = chosen("model.quantization", config.quantization, QUANTIZATIONS)
        stages = chosen("model.backbone", config.backbone, BACKBONES)
        norm = self.norm = BatchNorm(config.norm_momentum)
        self.image_range = quantize(scheme, "image", name="image_range")
        self.backbone = MobileNetV2(
            stages,
            config.depth_multiplier,
            norm,
            scheme,
            min_depth=config.min_depth,
            keep_last_stride=False,
            final_activation="relu6",
            name="backbone",
        )
        common = dict(norm=norm, scheme=scheme)
        depth = config.head_depth
        self.local = Conv(depth, activation="relu6", name="local", **common)
        self.project_local = Conv(depth, name="project_local", **common)
        # Image pooling has one position a frame: too few for statistics of its own.
        self.pooled = Conv(depth, activation="relu6", scheme=scheme, name="pooled")
        self.features_range = quantize(scheme, "relu6", name="features_range")
        self.mean_range = quantize(scheme, "observed", name="mean_range")
        self.project_pooled = Conv(depth, scheme=scheme, name="project_pooled")
        self.add = Add("relu6", scheme, name="add")
        self.logits = Conv(1, scheme=scheme, name="logits")
        self.score_range = quantize(scheme, "sigmoid", name="score_range")

    def preprocess(self, frames):
        """[B, H, W, 3] uint8 to float32 in [-1, 127/128]."""
        return scaled(frames)

    def body(self, images, training=False, surround=None):
        """What a window of the frame is enough for, given its surroundings.

        Args:
          images: [B, H, W, 3] float32, what `preprocess` returned.
          training: whether observers and batch statistics are updated.
          surround: of every convolution, see `Conv.call`; None on a full frame.

        Returns:
          {"features": [B, h, w, C], "local": [B, h, w, head_depth]} float32: what is pooled, and
          the projection of the other branch.
        """
        x = self.backbone(self.image_range(images), training=training, surround=surround)
        local = self.project_local(self.local(x, training=training), training=training)
        return {"features": x, "local": local}

    def tail(self, maps, training=False):
        """The logits of the full frame from what `body` made of it.

        Returns:
          {"mask_logits": [B, h, w, 1]} float32, positive in the foreground.
        """
        # Entering a graph of its own, a tensor carries the range that it left the body's with.
        x = self.features_range(maps["features"], training=False)
        local = self.project_local.output_range(maps["local"], training=False)
        x = self.mean_range(tf.reduce_mean(x, [1, 2], keepdims=True), training=training)
        x = self.project_pooled(self.pooled(x, training=training), training=training)
        x = self.add(local, x, training=training)
        return {"mask_logits": tf.cast(self.logits(x, training=training), tf.float32)}

    def presence(self, predictions, slices: int):
        """The mean probability of foreground in each tile of the frame.

        Args:
          predictions: of `tail`.
          slices: tiles in a row and in a column.

        Returns:
          [B, slices, slices, 1] float32 in [0, 1).
        """
        logits = self.logits.output_range(predictions[self.presence_from])
        scores = self.score_range(tf.sigmoid(logits))
        tile = [side // slices for side in scores.shape[1:3]]
        return self.score_range(tf.nn.avg_pool2d(scores, tile, tile, "VALID"))

    def segment(self, images, training=False):
        """Logits at the size of `tail`; arguments as of `body`, returns as `tail`."""
        return self.tail(self.body(images, training), training)

    def resize(self, mask_logits):
        """[B, h, w, 1] logits to the frame's size, [B, H, W, 1]: bilinear, as in DeepLab."""
        return tf.image.resize(mask_logits, self.config.image_size, "bilinear")

    def call(self, frames, training=False):
        """frames: [B, H, W, 3] uint8 of `image_size`; returns as `segment`."""
        return self.segment(self.preprocess(frames), training=training)


def build(config: SegmenterConfig) -> Segmenter:
    """The network with all its variables, so that a checkpoint can be restored into it."""
    model = Segmenter(config)
    model(tf.zeros([1, *config.image_size, 3], tf.uint8))
    return model
