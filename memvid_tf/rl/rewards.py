"""How well a frame is explained: f of PW 3.3, of which the rewards of attention are made.

Both are overlaps in [0, 1], continuous where mAP is not: a window that improves a box a little
earns a little.

Differs from the paper: of several predictions that overlap an object the best is its own, and one
prediction may be that of two objects, where the paper matches greedily. A frame without objects has
the value 0 whatever is predicted, which is no reward and no loss.
"""

import tensorflow as tf
from official.vision.ops import box_ops, iou_similarity

from memvid_tf.detection.matching import CODER_WEIGHTS, anchor_corners


SCORE_THRESHOLD = 0.5  # PW 3.3


def box_overlap(box_encodings, class_logits, boxes, classes, anchors):
    """Equation 3: the mean over a frame's objects of the IoU of the best prediction.

    A prediction counts if the score of its best class is above `SCORE_THRESHOLD`; which class that
    is does not matter.

    Args:
      box_encodings: [B, A, 4] float32.
      class_logits: [B, A, 1 + C] float32.
      boxes: [B, N, 4] float32, the objects.
      classes: [B, N] int32, 0 where there is none.
      anchors: [A, 4] float32.

    Returns:
      [B] float32.
    """
    corners = anchor_corners(tf.convert_to_tensor(anchors))
    decoded = box_ops.decode_boxes(box_encodings, corners, weights=list(CODER_WEIGHTS))
    scores = tf.reduce_max(tf.nn.softmax(class_logits)[..., 1:], -1)
    overlaps = iou_similarity.iou(boxes, decoded)  # [B, N, A]
    counts = tf.where((scores > SCORE_THRESHOLD)[:, tf.newaxis], overlaps, 0.0)
    there = tf.cast(classes > 0, tf.float32)
    best = tf.reduce_sum(tf.reduce_max(counts, -1) * there, -1)
    return best / tf.maximum(tf.reduce_sum(there, -1), 1.0)


def mask_overlap(logits, masks):
    """J of a frame (PW 3.3).

    Args:
      logits: [B, H, W, 1] float32, positive in the foreground.
      masks: [B, H, W, 1] uint8 or float32, 1 in the foreground.

    Returns:
      [B] float32; 0 where no mask is.
    """
    found, true = tf.cast(logits > 0, tf.float32), tf.cast(masks, tf.float32)
    both = tf.reduce_sum(found * true, [1, 2, 3])
    either = tf.reduce_sum(tf.maximum(found, true), [1, 2, 3])
    return both / tf.maximum(either, 1.0)


def gained(after, before):
    """Equation 2: R = max(0, f(gt_t, p_t) − f(gt_t, p_{t−1}))."""
    return tf.maximum(0.0, after - before)
