"""MobileNetV2-SSDLite on single frames, the baseline of LFS table 2 (Sandler et al. 2018, 6.2).

It is the network of the table's rows, which follow the TensorFlow object detection API (derived in
shared design; `python -m benchmarks.costs` reproduces the counts): the first map is the expansion
inside the last strided block, the second a 1×1 convolution to 1280·α channels after the last
bottleneck, and four extra maps follow. Every map has predictors of its own. The largest map has
three anchors a cell, the others six.

It is also the detector of PW 4.1, which runs on windows of the frame: `body` is what can be
computed window by window, up to the 1×1 convolution of the first extra map, and `tail` what reads
the full frame (`models.patchwork`).

Differs from the paper: frames are scaled to [-1, 127/128], as in `models.interleaved`.
"""

import dataclasses

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.detection.anchors import AnchorSpec, make_anchors
from memvid_tf.layers.conv import BatchNorm, Conv
from memvid_tf.layers.fake_quant import quantize
from memvid_tf.models.interleaved import QUANTIZATIONS, AnchorConfig, chosen
from memvid_tf.models.mobilenet_v2 import BACKBONES, MobileNetV2, scale_channels, scaled
from memvid_tf.models.ssdlite import (
    ExtraMap,
    Predictor,
    background_prior,
    by_anchor,
    map_sizes,
)


@dataclasses.dataclass
class SingleFrameConfig(hyperparams.Config):
    """The network. The defaults are the row α = 1 of LFS table 2.

    Attributes:
      num_classes: object classes, without the background (30 in ImageNet VID).
      image_size: height and width of the frame in pixels.
      backbone: a key of `mobilenet_v2.BACKBONES`.
      depth_multiplier: α, scales all channels.
      min_depth: least number of channels of the backbone's layers and of the extra maps.
      last_channels: channels at α = 1 of the convolution after the last bottleneck.
      extra_depths: channels at α = 1 of the extra maps, largest first; at least one.
      anchors: the default boxes, those of the object detection API.
      norm_momentum: momentum of batch normalisation.
      quantization: "none" for the float network, "int8" for simulated quantization.
    """

    num_classes: int = 30
    image_size: tuple[int, ...] = (320, 320)
    backbone: str = "mobilenet_v2"
    depth_multiplier: float = 1.0
    min_depth: int = 16
    last_channels: int = 1280
    extra_depths: tuple[int, ...] = (512, 256, 256, 128)
    anchors: AnchorConfig = dataclasses.field(
        default_factory=lambda: AnchorConfig(
            aspect_ratios=(1.0, 2.0, 0.5, 3.0, 1.0 / 3.0), reduce_lowest=True
        )
    )
    norm_momentum: float = 0.9997
    quantization: str = "none"


class TappedMobileNetV2(MobileNetV2):
    """MobileNetV2 that also returns the expansion inside its last strided block."""

    def call(self, x, training=False, surround=None):
        """x: [B, H, W, 3] float32 in [-1, 1); surround: as of `MobileNetV2`.

        Returns:
          The expansion [B, 2·H / stride, 2·W / stride, C·expansion] and the last bottleneck
          [B, H / stride, W / stride, C'].
        """
        tapped = [block for block in self.blocks if block.strides > 1][-1]
        x = self.stem(x, training=training, surround=surround)
        for block in self.blocks:
            if block is not tapped:
                x = block(x, training=training, surround=surround)
                continue
            if not block.built:
                block.build(x.shape)  # Keras builds on `call`, which the tap goes around
            inside = block.expanded(x, training=training)
            x = block.finish(x, inside, training, surround)
        return inside, x


class SingleFrameDetector(tf_keras.Model):
    """See the module.

    Attributes:
      anchors: [A, 4] float32 `ycenter, xcenter, height, width`.
      presence_from: the prediction that `presence` reads.
    """

    presence_from = "class_logits"

    def __init__(self, config: SingleFrameConfig, **kwargs):
        """Raises ValueError where the configuration contradicts itself."""
        super().__init__(**kwargs)
        self.config = config
        scheme = chosen("model.quantization", config.quantization, QUANTIZATIONS)
        stages = chosen("model.backbone", config.backbone, BACKBONES)
        if not config.extra_depths:
            raise ValueError("model.extra_depths is empty; name the depth of at least one map")
        alpha, min_depth = config.depth_multiplier, config.min_depth
        norm = self.norm = BatchNorm(config.norm_momentum)
        self.image_range = quantize(scheme, "image", name="image_range")
        self.backbone = TappedMobileNetV2(
            stages, alpha, norm, scheme, min_depth=min_depth, name="backbone"
        )
        self.last = Conv(
            scale_channels(config.last_channels, alpha, min_depth),
            activation="relu6",
            norm=norm,
            scheme=scheme,
            name="last",
        )
        # The API truncates the depths of extra maps where it rounds those of the backbone.
        self.extras = [
            ExtraMap(max(int(depth * alpha), min_depth), norm, scheme, name=f"extra_{k}")
            for k, depth in enumerate(config.extra_depths, 2)
        ]
        spec = AnchorSpec(**config.anchors.as_dict())
        maps = 2 + len(config.extra_depths)
        first = (-(-side // (self.backbone.stride // 2)) for side in config.image_size)
        sizes = map_sizes(*first, maps)
        self.anchors = make_anchors(sizes, spec)
        # One range each, so that concatenating the maps needs no rescaling.
        self.box_range = quantize(scheme, "observed", name="box_range")
        self.class_range = quantize(scheme, "observed", name="class_range")
        self.score_range = quantize(scheme, "sigmoid", name="score_range")
        counts = [len(shapes) for shapes in spec.shapes(maps)]
        # Height, width and anchors a position of every map.
        self.grids = [(*size, count) for size, count in zip(sizes, counts)]
        self.box_predictors = [
            Predictor(n, 4, scheme, self.box_range, norm=norm, name=f"boxes_{k}")
            for k, n in enumerate(counts)
        ]
        self.class_predictors = [
            Predictor(
                n,
                1 + config.num_classes,
                scheme,
                self.class_range,
                bias=background_prior(config.num_classes),
                norm=norm,
                name=f"classes_{k}",
            )
            for k, n in enumerate(counts)
        ]

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
          Maps, [B, h, w, C] float32 each: `boxes_k` and `classes_k`, the predictions of the two
          largest maps, and `features`, what the first extra map is made of.
        """
        inside, x = self.backbone(self.image_range(images), training=training, surround=surround)
        last = self.last(x, training=training)
        outputs = {}
        for k, x in enumerate((inside, last)):
            arguments = dict(training=training, surround=surround)
            outputs[f"boxes_{k}"] = self.box_predictors[k](x, **arguments)
            outputs[f"classes_{k}"] = self.class_predictors[k](x, **arguments)
        return {**outputs, "features": self.extras[0].reduce(last, training=training)}

    def tail(self, maps, training=False):
        """The predictions of the full frame from what `body` made of it; returns as `detect`."""
        # Entering a graph of its own, a tensor carries the range that it left the body's with.
        x = self.extras[0].reduce.output_range(maps["features"], training=False)
        x = self.extras[0].halve(x, training)
        extras = [x]
        for extra in self.extras[1:]:
            extras.append(extra(extras[-1], training=training))

        def concatenated(kind, predictors, outputs, output_range):
            large = [output_range(maps[f"{kind}_{k}"], training=False) for k in (0, 1)]
            small = [p(x, training=training) for p, x in zip(predictors[2:], extras)]
            small = tf.concat([by_anchor(p, outputs) for p in small], 1)
            every = tf.concat([*(by_anchor(p, outputs) for p in large), small], 1)
            return tf.cast(every, tf.float32)

        logits = 1 + self.config.num_classes
        return {
            "box_encodings": concatenated("boxes", self.box_predictors, 4, self.box_range),
            "class_logits": concatenated(
                "classes", self.class_predictors, logits, self.class_range
            ),
        }

    def presence(self, predictions, slices: int):
        """The largest score of a class in each tile of the frame.

        Args:
          predictions: of `tail`.
          slices: tiles in a row and in a column.

        Returns:
          [B, slices, slices, 1] float32 in [0, 1), of the maps that tiles cut into equal parts.
        """
        logits = self.class_range(predictions[self.presence_from])
        scores = self.score_range(tf.nn.softmax(logits))
        best = tf.reduce_max(scores[..., 1:], -1)
        tiles, start = [], 0
        for height, width, anchors in self.grids:
            end = start + height * width * anchors
            if height % slices == 0 and width % slices == 0:
                grid = tf.reshape(best[:, start:end], [-1, height, width, anchors])
                tile = [height // slices, width // slices]
                tiles.append(tf.nn.max_pool2d(grid, tile, tile, "VALID"))
            start = end
        return tf.reduce_max(tf.concat(tiles, -1), -1, keepdims=True)

    def detect(self, images, training=False):
        """Predictions.

        Args:
          images: [B, H, W, 3] float32, what `preprocess` returned.
          training: whether observers and batch statistics are updated.

        Returns:
          {"box_encodings": [B, A, 4], "class_logits": [B, A, 1 + num_classes]} float32, column 0
          of the logits is the background.
        """
        return self.tail(self.body(images, training), training)

    def call(self, frames, training=False):
        """frames: [B, H, W, 3] uint8 of `image_size`; returns as `detect`."""
        return self.detect(self.preprocess(frames), training=training)


def build(config: SingleFrameConfig) -> SingleFrameDetector:
    """The network with all its variables, so that a checkpoint can be restored into it."""
    model = SingleFrameDetector(config)
    model(tf.zeros([1, *config.image_size, 3], tf.uint8))
    return model
