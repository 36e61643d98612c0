"""Contact sheets: what a data set really holds, to look at before training on it.

A row is a clip, its frames spread over time; boxes carry class label and track id, masks tint
their objects. Colours follow the track, so an identity that jumps is seen at once.
"""

import cv2
import numpy as np

from memvid_tf.data import pictures, records

# Small frames are enlarged by whole factors, which keeps one-pixel textures what they are.
MIN_FRAME_SIDE = 220
MAX_ZOOM = 14
TINT = 0.35
_GAP = 4


def contact_sheet(
    info: records.DatasetInfo,
    split: str,
    clips: list[int],
    frames_per_clip: int = 6,
) -> np.ndarray:
    """Draws clips of a split.

    Args:
      info: of the data set.
      split: name of the split.
      clips: positions in the split, one row each.
      frames_per_clip: columns, at most; a shorter clip leaves the rest of its row black.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      DatasetError: when there is no such split or clip, or a frame cannot be decoded.
    """
    if frames_per_clip < 1:
        raise records.DatasetError(f"frames_per_clip {frames_per_clip} is not at least 1")
    picked = records.pick_clips(info, split, clips)
    columns = min(frames_per_clip, max(len(clip.images) for clip in picked))
    rows = [_row(clip, info.labels, columns) for clip in picked]
    return np.concatenate(rows, axis=0)


def draw_frame(clip: records.ClipRecord, frame: int, labels: tuple[str, ...]) -> np.ndarray:
    """One frame of a clip with its ground truth, enlarged when small: [H, W, 3] uint8 RGB."""
    where = f"clip {clip.clip_id} frame {frame}"
    image = pictures.decode_rgb(clip.images[frame], where)
    if image.shape[:2] != (clip.height, clip.width):
        raise records.DatasetError(
            f"{where} is {image.shape[1]} x {image.shape[0]}, its clip {clip.width} x {clip.height}"
        )
    zoom = min(max(1, -(-MIN_FRAME_SIDE // min(image.shape[:2]))), MAX_ZOOM)
    image = np.repeat(np.repeat(image, zoom, axis=0), zoom, axis=1).astype(np.float32)
    colors = [_color(int(track)) for track in clip.tracks[frame]]
    if clip.masks[frame]:
        mask = pictures.decode_indices(clip.masks[frame], f"{where} mask")
        if mask.shape != (clip.height, clip.width):
            raise records.DatasetError(f"{where}: its mask has another size")
        mask = np.repeat(np.repeat(mask, zoom, axis=0), zoom, axis=1)
        for number, color in enumerate(colors):
            inside = mask == number + 1
            image[inside] = (1 - TINT) * image[inside] + TINT * color
    image = np.ascontiguousarray(np.rint(image).astype(np.uint8))
    height, width = image.shape[:2]
    scale = np.array([height, width, height, width])
    for box, class_id, track, color in zip(
        clip.boxes[frame], clip.classes[frame], clip.tracks[frame], colors
    ):
        top, left, bottom, right = (int(v) for v in np.rint(box * scale))
        pen = tuple(int(c) for c in color)
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), pen, 1)
        _write_label(image, f"{track} {labels[class_id - 1]}", left, top, bottom, pen)
    return image


def _write_label(image, text, left, top, bottom, pen):
    """Text on a dark ground above the box, or inside its lower edge where there is no room."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)
    x = max(0, min(left, image.shape[1] - width))
    y = top - below if top > height + below else bottom - below
    cv2.rectangle(image, (x, y - height), (x + width, y + below - 1), (0, 0, 0), -1)
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, pen, 1, cv2.LINE_AA)


def _row(clip, labels, columns):
    picked = np.unique(np.linspace(0, len(clip.images) - 1, columns).round().astype(int))
    frames = [draw_frame(clip, frame, labels) for frame in picked]
    height, width = frames[0].shape[:2]
    row = np.zeros((height + _GAP, columns * (width + _GAP), 3), np.uint8)
    for column, frame in enumerate(frames):
        row[:height, column * (width + _GAP) :][:, :width] = frame
    return row


def _color(track):
    """A bright colour for a track; neighbouring ids lie far apart on the colour wheel."""
    hue = np.uint8([[[track * 67 % 180, 160, 255]]])
    return cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
