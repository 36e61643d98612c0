"""SSDLite on the memory's output: extra maps and one shared predictor (LFS 3.1).

Every map has the same depth at the predictor, and one convolutional box predictor serves all maps.
The predictor has no BN: the statistics of the maps differ, and shared moving averages would fit
none of them.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import BatchNorm, Conv, DepthwiseConv
from memvid_tf.layers.fake_quant import Scheme, quantize


def map_sizes(height: int, width: int, maps: int) -> list[tuple[int, int]]:
    """Sizes of the feature maps: each extra map halves the one before, rounding up.

    Raises:
      ValueError: if there are more maps than halvings.
    """
    sizes = [(height, width)]
    while len(sizes) < maps:
        if sizes[-1] == (1, 1):
            raise ValueError(f"{maps} feature maps do not fit a {height}×{width} map")
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    return sizes


class ExtraMap(tf_keras.layers.Layer):
    """1×1 to half the depth, then a separable 3×3 of stride 2 to the full depth."""

    def __init__(self, depth: int, norm: BatchNorm, scheme: Scheme | None, **kwargs):
        super().__init__(**kwargs)
        common = dict(activation="relu6", norm=norm, scheme=scheme)
        self.reduce = Conv(depth // 2, name="reduce", **common)
        self.depthwise = DepthwiseConv(3, strides=2, name="depthwise", **common)
        self.expand = Conv(depth, name="expand", **common)

    def halve(self, reduced, training=False):
        """The map from what `reduce` returned, [B, H, W, depth // 2]."""
        return self.expand(self.depthwise(reduced, training=training), training=training)

    def call(self, x, training=False):
        """x: [B, H, W, C] float32; returns [B, ceil(H/2), ceil(W/2), depth]."""
        return self.halve(self.reduce(x, training=training), training)


class Predictor(tf_keras.layers.Layer):
    """Separable 3×3 convolution to `outputs` numbers an anchor, quantized by `output`.

    Box encodings and class logits each have their own predictor, and so never share a range. A
    predictor that serves one map alone may have BN (`norm`) after its depthwise convolution.
    """

    def __init__(
        self,
        anchors: int,
        outputs: int,
        scheme: Scheme | None,
        output,
        bias="zeros",
        norm: BatchNorm | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depthwise = DepthwiseConv(
            3, activation="relu6", norm=norm, scheme=scheme, name="depthwise"
        )
        self.pointwise = Conv(
            anchors * outputs,
            scheme=scheme,
            output=output,
            bias_initializer=bias,
            name="pointwise",
        )

    def call(self, x, training=False, surround=None):
        """x: [B, H, W, C] float32; returns [B, H, W, anchors·outputs].
        surround: of the depthwise convolution, see `Conv.call`."""
        y = self.depthwise(x, training=training, surround=surround)
        return self.pointwise(y, training=training)


def by_anchor(predictions, outputs: int):
    """[B, H, W, anchors·outputs] to [B, H·W·anchors, outputs], the order of `make_anchors`."""
    batch = -1 if predictions.shape[0] is None else predictions.shape[0]
    anchors = predictions.shape[1:].num_elements() // outputs
    return tf.reshape(predictions, [batch, anchors, outputs])


def background_prior(num_classes: int, object_probability: float = 0.01):
    """Initial biases of class logits: nearly everything is background (Lin et al. 2017, 3.3).

    Without it the first steps are spent on telling hundreds of anchors that they hold nothing.
    """
    bias = np.zeros(1 + num_classes, np.float32)
    bias[0] = np.log(num_classes * (1 - object_probability) / object_probability)

    def initializer(shape, dtype=None, **_):
        return tf.constant(np.tile(bias, shape[0] // len(bias)), dtype or tf.float32)

    return initializer


class SSDLite(tf_keras.layers.Layer):
    """Feature maps and predictions.

    Args:
      anchors: anchors of a cell, for each feature map; the first map is the memory's output. Maps
        with equally many anchors share their predictors.
      num_classes: object classes, without the background.
      depth: channels of every map at the predictor (256 in LFS 3.1).
      norm: the network's `BatchNorm`.
      scheme: quantization scheme, or None.
    """

    def __init__(
        self,
        anchors: Sequence[int],
        num_classes: int,
        depth: int,
        norm: BatchNorm,
        scheme: Scheme | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.project = Conv(depth, activation="relu6", norm=norm, scheme=scheme, name="project")
        self.extras = [
            ExtraMap(depth, norm, scheme, name=f"extra_{k}") for k in range(1, len(anchors))
        ]
        self.anchors = tuple(anchors)
        # One range each, so that concatenating the maps needs no rescaling (LFS 3.5).
        box_range = quantize(scheme, "observed", name="box_range")
        class_range = quantize(scheme, "observed", name="class_range")
        self.num_logits = 1 + num_classes
        # Keras tracks dictionaries by string keys.
        self.box_predictors = {
            str(n): Predictor(n, 4, scheme, box_range, name=f"boxes_{n}") for n in set(anchors)
        }
        self.class_predictors = {
            str(n): Predictor(
                n,
                self.num_logits,
                scheme,
                class_range,
                bias=background_prior(num_classes),
                name=f"classes_{n}",
            )
            for n in set(anchors)
        }

    def feature_maps(self, x, training=False):
        """The maps that are predicted from, largest first: a list of [B, h, w, depth] float32."""
        maps = [self.project(x, training=training)]
        for extra in self.extras:
            maps.append(extra(maps[-1], training=training))
        return maps

    def predict(self, maps, training=False):
        """Predictions from what `feature_maps` returned; see `call`."""

        def concatenated(predictors, outputs):
            predicted = [
                predictors[str(n)](m, training=training) for n, m in zip(self.anchors, maps)
            ]
            return tf.cast(tf.concat([by_anchor(p, outputs) for p in predicted], 1), tf.float32)

        return {
            "box_encodings": concatenated(self.box_predictors, 4),
            "class_logits": concatenated(self.class_predictors, self.num_logits),
        }

    def call(self, x, training=False):
        """x: [B, H, W, C] float32, the memory's output.

        Returns:
          {"box_encodings": [B, A, 4], "class_logits": [B, A, 1 + num_classes]} float32, column 0
          of the logits is the background.
        """
        return self.predict(self.feature_maps(x, training=training), training=training)
