"""From raw heads to detections, in NumPy: the oracle of `post.tflite` and the evaluator's tool.

Scores are the softmax of the class logits, column 0 being the background. Boxes follow the SSD code
(scales 10, 10, 5, 5). Suppression is greedy and per class, as in the TFLite_Detection_PostProcess
operator with `use_regular_nms`: a score counts if it is at least the threshold, a box falls if its
IoU with a better box of its class is above the threshold, and the best `max_detections` of all
classes remain. Equal scores are ordered by class, then by anchor. Boxes are not clipped to the
image.
"""

from typing import NamedTuple

import cv2
import numpy as np

from memvid_tf.runtime.manifest import BoxCoder

# Rows of the pairwise IoU computed at a time; tuned on 200 to 600 anchors with a threshold of .02.
_CHUNK = 64


class Detections(NamedTuple):
    """Detections of one frame, best first.

    Attributes:
      boxes: [n, 4] float32 (ymin, xmin, ymax, xmax), normalised to the image.
      scores: [n] float32 in [0, 1].
      classes: [n] int32, from 0: indices into the labels (the background is not counted).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def detections(
    box_encodings: np.ndarray,
    class_logits: np.ndarray,
    anchors: np.ndarray,
    coder: BoxCoder,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> Detections:
    """Detections of one frame.

    Args:
      box_encodings: [A, 4] or [1, A, 4] real (dequantized) codes y, x, height, width.
      class_logits: [A, C + 1] or [1, A, C + 1] real logits, column 0 for the background.
      anchors: [A, 4] ycenter, xcenter, height, width, normalised.
      coder: scales of the codes.
      score_threshold: smallest score kept, in [0, 1].
      iou_threshold: largest IoU that two kept boxes of one class may have, in [0, 1].
      max_detections: most detections returned.

    Returns:
      The detections, best first.

    Raises:
      ValueError: shapes that do not fit, a threshold outside [0, 1] or a logit that is not finite.
    """
    codes = np.asarray(box_encodings, np.float32).reshape(-1, 4)
    logits = np.asarray(class_logits, np.float32)
    logits = logits.reshape(-1, logits.shape[-1])
    if not len(codes) == len(logits) == len(anchors) or logits.shape[1] < 2:
        raise ValueError(
            f"box_encodings {np.shape(box_encodings)}, class_logits {np.shape(class_logits)} and "
            f"anchors {np.shape(anchors)} do not describe the same anchors"
        )
    if not (0 <= score_threshold <= 1 and 0 <= iou_threshold <= 1):
        raise ValueError(
            f"score_threshold {score_threshold} and iou_threshold {iou_threshold} must be in [0, 1]"
        )
    anchor_indices, classes, scores = _candidates(logits, score_threshold)
    order = np.argsort(-scores, kind="stable")
    anchor_indices, classes, scores = anchor_indices[order], classes[order], scores[order]
    boxes = decode(codes[anchor_indices], np.asarray(anchors, np.float32)[anchor_indices], coder)
    keep = _suppress(boxes, classes, iou_threshold, max_detections)
    return Detections(boxes[keep], scores[keep], classes[keep].astype(np.int32))


def decode(codes: np.ndarray, anchors: np.ndarray, coder: BoxCoder) -> np.ndarray:
    """Boxes [n, 4] float32 (ymin, xmin, ymax, xmax) of codes [n, 4] at anchors [n, 4]."""
    sizes = anchors[:, 2:]
    centers = codes[:, :2] / np.array([coder.y, coder.x], np.float32) * sizes + anchors[:, :2]
    halves = np.exp(codes[:, 2:] / np.array([coder.height, coder.width], np.float32)) * sizes / 2
    return np.concatenate([centers - halves, centers + halves], axis=1)


def _candidates(logits: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchor, class and score of every softmax score >= threshold, by class, then by anchor."""
    best = logits[:, 1:].max(axis=1)
    margins = best - logits[:, 0]
    if not np.isfinite(margins).all():
        raise ValueError("class_logits hold NaN or infinite values")
    rows = np.arange(len(logits))
    if 0 < threshold < 1:
        # A score is at most 1 / (1 + exp(background - logit)), so most anchors need no softmax.
        # The margin covers float32 rounding; the exact comparison follows below.
        rows = np.flatnonzero(margins >= np.log(threshold / (1 - threshold)) - 1e-3)
    kept = logits[rows]
    exponentials = np.exp(kept - np.maximum(best, logits[:, 0])[rows, None])
    scores = (exponentials[:, 1:] / exponentials.sum(axis=1, keepdims=True)).T
    classes, positions = np.nonzero(scores >= np.float32(threshold))
    return rows[positions], classes, scores[classes, positions]


def _suppress(
    boxes: np.ndarray, classes: np.ndarray, iou_threshold: float, max_detections: int
) -> list[int]:
    """Indices kept by greedy suppression inside each class; boxes come best first."""
    keep: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for start in range(0, len(boxes), _CHUNK):
        # One chunk against the boxes kept so far and against itself: no IoU is computed for the
        # long tail behind the last detection.
        rows = np.arange(start, min(start + _CHUNK, len(boxes)))
        columns = np.concatenate([np.array(keep, np.intp), rows])
        clash = _overlap(boxes, areas, rows, columns, iou_threshold)
        clash &= classes[rows, None] == classes[columns]
        dead = clash[:, : len(keep)].any(axis=1)
        among = clash[:, len(keep) :]
        for position in range(len(rows)):
            if dead[position]:
                continue
            keep.append(start + position)
            if len(keep) == max_detections:
                return keep
            dead |= among[position]
    return keep


def _overlap(
    boxes: np.ndarray, areas: np.ndarray, rows: np.ndarray, columns: np.ndarray, threshold: float
) -> np.ndarray:
    """[rows, columns] bool: IoU above the threshold; a box without area overlaps nothing."""
    left, right = boxes[rows].T[:, :, None], boxes[columns].T[:, None, :]
    heights = np.minimum(left[2], right[2]) - np.maximum(left[0], right[0])
    widths = np.minimum(left[3], right[3]) - np.maximum(left[1], right[1])
    intersection = np.maximum(heights, 0) * np.maximum(widths, 0)
    union = areas[rows, None] + areas[columns] - intersection
    valid = (areas[rows, None] > 0) & (areas[columns] > 0)
    return valid & (intersection > np.float32(threshold) * union)


def foreground(logits: np.ndarray, size: tuple[int, int], threshold: float = 0.0) -> np.ndarray:
    """The mask of a frame, [H, W] bool of `size`, of logits [h, w]: bilinear with half-pixel
    centres, then what lies above the threshold."""
    logits = np.ascontiguousarray(logits, np.float32)
    return cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR) > threshold
