"""What a training is for: a loss, and the scores of validation. Of boxes or of masks.

Networks differ in how they come to predictions; what is made of the predictions depends on the head
alone, so the interleaved detector, single-frame networks and Patchwork share these.
"""

import dataclasses

import tensorflow as tf
from official.modeling import hyperparams

from memvid_tf.detection import loss as detection_loss
from memvid_tf.detection.matching import match
from memvid_tf.layers import replicas
from memvid_tf.models.deeplab import SegmenterConfig
from memvid_tf.rl import rewards
from memvid_tf.tasks.validation import ClipScores, MaskScores

FOREGROUND = ("foreground",)
# By whether the network segments.
METRICS = {False: ("classification_loss", "box_loss"), True: ("mask_loss",)}


@dataclasses.dataclass
class MaskLossConfig(hyperparams.Config):
    """The loss of a segmenter: cross-entropy of every pixel of the frame, as DeepLab's.

    Attributes:
      positive_weight: weight of the pixels of the foreground.
    """

    positive_weight: float = 1.0


def segments(config) -> bool:
    """Whether the network of a task predicts masks instead of boxes."""
    return isinstance(config.model, SegmenterConfig)


def checks(config) -> tuple[tuple, ...]:
    """What `clip_task.require` takes: numbers of the losses that would fail at the first step."""
    losses = config.losses
    if segments(config):
        weight = losses.positive_weight
        return (("losses.positive_weight", weight, weight > 0, "above 0"),)
    names = detection_loss.CLASSIFICATION_LOSSES
    kind = losses.classification
    return (("losses.classification", kind, kind in names, f"one of {names}"),)


def with_masks(config):
    """The task of a segmenter, whose clips bring masks and which has one class."""
    return config.replace(
        labels=FOREGROUND,
        train_data=config.train_data.replace(masks=True),
        validation_data=config.validation_data.replace(masks=True),
    )


def frames_of(x):
    """[B, T, ...] to [B·T, ...]."""
    return tf.reshape(x, [-1, *x.shape[2:]])


class BoxObjective:
    """SSD's loss and VID's mAP.

    Args:
      losses: the loss.
      anchors: [A, 4] of the network.
      labels: class names.
    """

    def __init__(self, losses: detection_loss.LossConfig, anchors, labels):
        self._losses, self._anchors, self._labels = losses, anchors, labels

    def loss(self, outputs, inputs):
        """The batch's loss, a scalar, and its parts by the names of `METRICS`.

        Args:
          outputs: `box_encodings` [B, T, A, 4] and `class_logits` [B, T, A, 1 + C].
          inputs: a batch of `clip_dataset`.
        """
        config = self._losses
        targets = match(
            self._anchors,
            frames_of(inputs["boxes"]),
            frames_of(inputs["classes"]),
            config.match_threshold,
        )
        losses = detection_loss.frame_loss(
            frames_of(outputs["box_encodings"]), frames_of(outputs["class_logits"]), targets, config
        )
        # For each positive anchor of all replicas: their mean is what one device would have.
        count = tf.distribute.get_strategy().num_replicas_in_sync
        positives = replicas.mean(tf.reduce_sum(losses.positives))
        positives = tf.maximum(positives, 1.0 / count)
        return losses.total(config.box_weight, positives), {
            "classification_loss": tf.reduce_sum(losses.classification) / positives,
            "box_loss": tf.reduce_sum(losses.box) / positives,
        }

    def quality(self, outputs, truth):
        """f of PW 3.3, [B] float32, of the predictions and the truth of frames, [B, ...] each."""
        return rewards.box_overlap(
            outputs["box_encodings"],
            outputs["class_logits"],
            truth["boxes"],
            truth["classes"],
            self._anchors,
        )

    def scores(self) -> ClipScores:
        """Empty scores of validation."""
        return ClipScores(self._labels, self._anchors)


class MaskObjective:
    """Cross-entropy of the pixels, and DAVIS's J and F.

    Args:
      losses: the loss.
      resize: [B, h, w, 1] logits to the size of the frame, `Segmenter.resize`.
    """

    def __init__(self, losses: MaskLossConfig, resize):
        self._losses, self._resize = losses, resize

    def loss(self, outputs, inputs):
        """See `BoxObjective.loss`. outputs: `mask_logits` [B, T, h, w, 1]."""
        logits = self._resize(frames_of(outputs["mask_logits"]))
        truth = tf.cast(frames_of(inputs["masks"]), tf.float32)
        loss = tf.reduce_mean(
            tf.nn.weighted_cross_entropy_with_logits(truth, logits, self._losses.positive_weight)
        )
        return loss, {"mask_loss": loss}

    def quality(self, outputs, truth):
        """See `BoxObjective.quality`."""
        return rewards.mask_overlap(self._resize(outputs["mask_logits"]), truth["masks"])

    def scores(self) -> MaskScores:
        """Empty scores of validation."""
        return MaskScores()


def make(config, network) -> BoxObjective | MaskObjective:
    """The objective of a task.

    Args:
      config: a task with `model` and `losses`, and `labels` of a detector.
      network: what has the anchors, or the segmenter's `resize`.
    """
    if segments(config):
        return MaskObjective(config.losses, network.resize)
    return BoxObjective(config.losses, network.anchors, config.labels)
