"""Draws what a runner found: boxes, and how it was found.

The border and the badge carry the colour of whatever produced the detections (f0, f1, or f1 with f0
in a thread beside it), so that watching a video shows the schedule at work. Of Patchwork the window
is drawn, and how old every other part of the frame is.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.runners import FrameResult
from memvid_tf.runtime.windowed import WindowResult

# RGB. The first three stand for the extractors, the others for classes, taken in turn.
_BADGES = {"f0": (230, 110, 20), "f1": (40, 120, 220), "async": (30, 150, 80)}
_CLASSES = (
    (255, 196, 0), (0, 200, 255), (255, 80, 120), (120, 230, 80), (200, 120, 255), (255, 140, 60),
    (80, 160, 255), (240, 240, 120), (0, 220, 170), (255, 150, 210),
)  # fmt: skip
_WINDOW, _MASK = (230, 40, 40), (60, 200, 60)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Letters below about nine pixels cannot be read, so smaller frames are enlarged first.
_MIN_SIDE_PX = 320


def annotate(
    frame: np.ndarray, result: FrameResult, labels: Sequence[str], mode: str = "sync"
) -> np.ndarray:
    """A new image with boxes, scores and the state of the memory.

    Args:
      frame: [H, W, 3] uint8 RGB. Below 320 pixels on its shorter side it is enlarged by a whole
        factor.
      result: what a runner yielded for it.
      labels: class names.
      mode: "sync" or "async".

    Returns:
      [H', W', 3] uint8 RGB.
    """
    image = _enlarged(frame)
    height, width = image.shape[:2]
    badge = "async" if mode == "async" else result.extractor
    border = max(3, min(height, width) // 100)
    cv2.rectangle(image, (0, 0), (width - 1, height - 1), _BADGES[badge], 2 * border - 1)
    _draw(image, result.detections, labels)
    age = result.memory_age_frames
    memory = "memory empty" if age is None else f"memory {age} frame{'s' * (age != 1)} old"
    extractor = f"{result.extractor} (async)" if mode == "async" else result.extractor
    text = f"{extractor} | {memory} | frame {result.index}"
    _text(image, text, (0, height), _BADGES[badge], (255, 255, 255))
    return image


def annotate_windows(frame: np.ndarray, result: WindowResult, labels: Sequence[str]) -> np.ndarray:
    """A new image with boxes or mask, the window, and the age of every tile.

    Args:
      frame: [H, W, 3] uint8 RGB, enlarged as by `annotate`.
      result: what `windowed.WindowRunner` yielded for it.
      labels: class names.

    Returns:
      [H', W', 3] uint8 RGB.
    """
    image = _enlarged(frame)
    height, width = image.shape[:2]
    if result.mask is not None:
        _tint(image, result.mask)
    if result.detections is not None:
        _draw(image, result.detections, labels)
    slices = len(result.ages_frames)
    for row, column in np.ndindex(slices, slices):
        if age := int(result.ages_frames[row, column]):
            corner = column * width // slices + 4, row * height // slices + 16 * _thickness(image)
            cv2.putText(
                image, str(age), corner, _FONT, 0.4 * _thickness(image), _WINDOW, 1, cv2.LINE_AA
            )
    ymin, xmin, ymax, xmax = np.array(result.window) * (height, width, height, width)
    corner, opposite = (round(xmin), round(ymin)), (round(xmax) - 1, round(ymax) - 1)
    cv2.rectangle(image, corner, opposite, _WINDOW, 2 * _thickness(image))
    where = "full frame" if result.action is None else f"window {result.action}"
    text = f"{where} | oldest {int(result.ages_frames.max())} | frame {result.index}"
    _text(image, text, (0, height), _WINDOW, (255, 255, 255))
    return image


def draw_detections(frame: np.ndarray, detections: Detections, labels: Sequence[str]) -> np.ndarray:
    """A new image, enlarged as by `annotate`, with boxes and scores alone.

    Args:
      frame: [H, W, 3] uint8 RGB.
      detections: of that frame.
      labels: class names.

    Returns:
      [H', W', 3] uint8 RGB.
    """
    image = _enlarged(frame)
    _draw(image, detections, labels)
    return image


def draw_truth(
    frame: np.ndarray, boxes: np.ndarray, classes: np.ndarray, labels: Sequence[str]
) -> np.ndarray:
    """A new image, enlarged as by `annotate`, with the boxes and names of what is really there.

    Args:
      frame: [H, W, 3] uint8 RGB.
      boxes: [n, 4] (ymin, xmin, ymax, xmax), normalised, what is in front first.
      classes: [n], from 0: indices into the labels.
      labels: class names.

    Returns:
      [H', W', 3] uint8 RGB.
    """
    image = _enlarged(frame)
    _draw_boxes(image, boxes, classes, [labels[int(index)] for index in classes])
    return image


def draw_mask(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A new image, enlarged as by `annotate`, with the foreground tinted.

    Args:
      frame: [H, W, 3] uint8 RGB.
      mask: [H, W] bool.

    Returns:
      [H', W', 3] uint8 RGB.
    """
    image = _enlarged(frame)
    _tint(image, mask)
    return image


def _tint(image: np.ndarray, mask: np.ndarray) -> None:
    mask = cv2.resize(mask.astype(np.uint8), image.shape[1::-1]) > 0
    image[mask] = image[mask] // 2 + np.array(_MASK, np.uint8) // 2


def _enlarged(frame: np.ndarray) -> np.ndarray:
    factor = max(1, -(-_MIN_SIDE_PX // min(frame.shape[:2])))
    return np.ascontiguousarray(frame.repeat(factor, axis=0).repeat(factor, axis=1))


def _draw(image: np.ndarray, detections: Detections, labels: Sequence[str]) -> None:
    boxes, scores, classes = detections
    texts = [f"{labels[int(index)]} {score:.2f}" for score, index in zip(scores, classes)]
    _draw_boxes(image, boxes, classes, texts)


def _draw_boxes(
    image: np.ndarray, boxes: np.ndarray, classes: np.ndarray, texts: Sequence[str]
) -> None:
    height, width = image.shape[:2]
    thickness = 2 * _thickness(image)
    plates = []
    # The first, which is the best, is drawn last, on top; names come after all boxes, so none is
    # crossed out.
    for box, index, text in reversed(list(zip(boxes, classes, texts))):
        color = _CLASSES[int(index) % len(_CLASSES)]
        ymin, xmin, ymax, xmax = np.clip(box, 0, 1) * (height, width, height, width)
        corner, opposite = (round(xmin), round(ymin)), (round(xmax), round(ymax))
        cv2.rectangle(image, corner, opposite, (0, 0, 0), thickness + 2)
        cv2.rectangle(image, corner, opposite, color, thickness)
        plates.append((text, corner, color))
    for text, corner, color in plates:
        _text(image, text, corner, color, (0, 0, 0))


def _thickness(image: np.ndarray) -> int:
    return max(1, round(min(image.shape[:2]) / 500))


def _text(
    image: np.ndarray,
    text: str,
    corner: tuple[int, int],
    plate: tuple[int, int, int],
    ink: tuple[int, int, int],
) -> None:
    """Text on a filled plate whose lower left corner is `corner`, moved inside the image."""
    # Tuned by eye at 320, 540 and 1080 pixels: letters of 10, 12 and 24 pixels.
    scale, thickness = max(0.4, min(image.shape[:2]) / 1100), _thickness(image)
    (width, height), below = cv2.getTextSize(text, _FONT, scale, thickness)
    pad = max(2, height // 4)
    width, height = width + 2 * pad, height + below + 2 * pad
    left = max(0, min(corner[0], image.shape[1] - width))
    bottom = min(image.shape[0], max(corner[1], height))
    cv2.rectangle(image, (left, bottom - height), (left + width, bottom), plate, cv2.FILLED)
    origin = (left + pad, bottom - below - pad)
    cv2.putText(image, text, origin, _FONT, scale, ink, thickness, cv2.LINE_AA)
