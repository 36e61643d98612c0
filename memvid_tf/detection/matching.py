"""Which default box is responsible for which object (SSD, Liu et al. 2016, section 2.2)."""

from typing import NamedTuple

import tensorflow as tf
from official.vision.ops import box_ops, iou_similarity

# Box coder of SSD (derived in shared design): encodings of y, x, height, width are scaled by these.
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Targets(NamedTuple):
    """What the network should predict.

    Attributes:
      classes: [B, A] int32, 0 is the background.
      box_encodings: [B, A, 4] float32; meaningless where the class is 0.
    """

    classes: tf.Tensor
    box_encodings: tf.Tensor


def anchor_corners(anchors):
    """[A, 4] `ycenter, xcenter, height, width` to [A, 4] `ymin, xmin, ymax, xmax`."""
    center, half = anchors[:, :2], anchors[:, 2:] / 2
    return tf.concat([center - half, center + half], -1)


def match(anchors, boxes, classes, threshold: float) -> Targets:
    """Assigns objects to anchors.

    An anchor takes the object it overlaps most if their IoU reaches the threshold. Every object
    also gets the anchor it overlaps most, whatever their IoU, even if another object wanted it; of
    several objects with one best anchor the first gets it.

    Args:
      anchors: [A, 4] float32 `ycenter, xcenter, height, width`.
      boxes: [B, N, 4] float32 `ymin, xmin, ymax, xmax`.
      classes: [B, N] int32, 0 where there is no object.
      threshold: least IoU of a match.
    """
    corners = anchor_corners(tf.convert_to_tensor(anchors))
    similarity = iou_similarity.iou(boxes, corners)  # [B, N, A]
    present = classes > 0
    similarity = tf.where(present[..., tf.newaxis], similarity, -1.0)
    best_object = tf.argmax(similarity, 1, output_type=tf.int32)  # [B, A]
    matched = tf.reduce_max(similarity, 1) >= threshold

    best_anchor = tf.argmax(similarity, 2, output_type=tf.int32)  # [B, N]
    forced = tf.one_hot(best_anchor, corners.shape[0]) * tf.cast(present, tf.float32)[..., None]
    is_forced = tf.reduce_max(forced, 1) > 0
    best_object = tf.where(is_forced, tf.argmax(forced, 1, output_type=tf.int32), best_object)

    responsible = matched | is_forced
    target_classes = tf.where(responsible, tf.gather(classes, best_object, batch_dims=1), 0)
    target_boxes = tf.gather(boxes, best_object, batch_dims=1)
    encodings = box_ops.encode_boxes(target_boxes, corners, weights=list(CODER_WEIGHTS))
    # Padding has no size; its encoding would be the logarithm of nearly zero.
    encodings = tf.where(responsible[..., tf.newaxis], encodings, 0.0)
    return Targets(target_classes, encodings)
