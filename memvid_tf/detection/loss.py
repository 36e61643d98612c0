"""The multibox loss of SSD (Liu et al. 2016, section 2.2), with focal loss as an option."""

import dataclasses
from typing import NamedTuple

import tensorflow as tf
from official.modeling import hyperparams

from memvid_tf.detection.matching import Targets

CLASSIFICATION_LOSSES = ("focal", "hard_negative")


@dataclasses.dataclass
class LossConfig(hyperparams.Config):
    """The loss.

    Attributes:
      match_threshold: least IoU between an anchor and its object.
      classification: "hard_negative": cross-entropy over the positives and the hardest negatives;
        "focal": focal cross-entropy over all anchors (Lin et al. 2017).
      negatives_per_positive: for "hard_negative".
      min_negatives: least number of negatives of a frame, for "hard_negative".
      focal_gamma: for "focal".
      positive_weight: weight of positive anchors in the classification loss.
      box_weight: weight of the box loss.
    """

    match_threshold: float = 0.5
    classification: str = "hard_negative"
    negatives_per_positive: float = 3.0
    min_negatives: int = 3
    focal_gamma: float = 2.0
    positive_weight: float = 1.0
    box_weight: float = 1.0


class FrameLoss(NamedTuple):
    """Loss of every frame, not yet divided by the number of positives.

    Attributes:
      classification, box: [B] float32 sums over the anchors of a frame.
      positives: [B] float32 number of positive anchors.
    """

    classification: tf.Tensor
    box: tf.Tensor
    positives: tf.Tensor

    def total(self, box_weight: float, count=None):
        """Scalar: the batch's loss for each of `count` positive anchors, by default its own."""
        if count is None:
            count = tf.maximum(tf.reduce_sum(self.positives), 1.0)
        return tf.reduce_sum(self.classification + box_weight * self.box) / count

    def per_frame(self, box_weight: float):
        """[B]: each frame's loss for each of its own positive anchors."""
        return (self.classification + box_weight * self.box) / tf.maximum(self.positives, 1.0)


def _hardest(cross_entropy, is_negative, count):
    """[B, A] bool: the `count` [B] negatives of each frame with the largest loss."""
    losses = tf.where(is_negative, cross_entropy, -1.0)
    rank = tf.argsort(tf.argsort(losses, direction="DESCENDING", stable=True))
    return is_negative & (rank < count[:, tf.newaxis])


def frame_loss(box_encodings, class_logits, targets: Targets, config: LossConfig) -> FrameLoss:
    """Compares predictions with targets.

    Args:
      box_encodings: [B, A, 4] float32.
      class_logits: [B, A, 1 + C] float32.
      targets: what `matching.match` returned.
      config: the loss.

    Raises:
      ValueError: if `config.classification` is unknown.
    """
    is_positive = targets.classes > 0
    positive = tf.cast(is_positive, tf.float32)
    positives = tf.reduce_sum(positive, 1)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(targets.classes, class_logits)

    if config.classification == "hard_negative":
        count = tf.maximum(
            tf.cast(config.negatives_per_positive * positives, tf.int32), config.min_negatives
        )
        hard = _hardest(cross_entropy, ~is_positive, count)
        weight = tf.cast(hard, tf.float32) + config.positive_weight * positive
    elif config.classification == "focal":
        # Where the class is certain the base is zero, and its power has no slope below γ = 1.
        weight = tf.maximum(1.0 - tf.exp(-cross_entropy), 1e-6) ** config.focal_gamma
        weight *= tf.where(is_positive, config.positive_weight, 1.0)
    else:
        raise ValueError(
            f"losses.classification {config.classification!r} is not one of "
            f"{', '.join(map(repr, CLASSIFICATION_LOSSES))}"
        )

    error = tf.abs(box_encodings - targets.box_encodings)
    smooth_l1 = tf.where(error < 1.0, 0.5 * error**2, error - 0.5)
    return FrameLoss(
        classification=tf.reduce_sum(weight * cross_entropy, 1),
        box=tf.reduce_sum(positive * tf.reduce_sum(smooth_l1, -1), 1),
        positives=positives,
    )
