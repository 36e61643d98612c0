"""ImageNet VID's mean average precision, its two matching rules and its motion split.

All-point average precision at IoU .5, averaged over the classes which have ground truth. Two
matching rules, and every result names the one it used:

- `plain`: a detection is right when its IoU with an object of its class is at least .5;
- `size_dependent`: the ILSVRC development kit's rule, `min(.5, wh / ((w + 10) (h + 10)))` for an
  object of w x h pixels, with extents counted as `max - min + 1` in the threshold and the IoU.

Motion split (Zhu et al., Flow-Guided Feature Aggregation, section 5): an object's motion IoU is
the mean IoU with the same track's boxes up to ten frames before and after; slow from .9, medium
.7-.9, fast to .7. For a split, objects of other speeds are ignored: missing one costs nothing, and
a detection of one is neither right nor wrong. What a detection of nothing costs a split is the
question that `motion_split` has two answers to; every result names the one it used.

Within a frame, detections choose in order of falling score the best-overlapping object that is
still free; a second detection of an object is wrong. Equal scores keep the order of arrival.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memvid_tf.evaluation import motion_split
from memvid_tf.evaluation.motion_split import (  # noqa: F401  (the split is named from here)
    MOTION_RULES,
    SPEEDS,
    UNKNOWN_SPEED,
    motion_speed,
)

MATCHING = ("plain", "size_dependent")
IOU_THRESHOLD = 0.5
MOTION_WINDOW_FRAMES = 10

FrameDetections = tuple[np.ndarray, np.ndarray, np.ndarray]
FrameTruth = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """One video alone: its frames, objects and detections, and its mean AP, by its own objects."""

    video: str
    frames: int
    objects: int
    detections: int
    mean_ap: float


@dataclasses.dataclass(frozen=True)
class VidMapResult:
    """What `VidMap.result` returns; an accuracy is nan where there is no ground truth for it.

    Attributes:
      matching: 'plain' or 'size_dependent'.
      motion_rule: 'fgfa' or 'strict', see `motion_split`.
      mean_ap: mean over the classes with ground truth, in [0, 1].
      per_class_ap: label -> average precision.
      motion: 'slow', 'medium', 'fast' -> mean average precision on the objects of that speed.
      counts: numbers of clips, frames, detections, objects, and objects of each speed;
        'unknown_speed' are seen in no other frame within the window ('fgfa' has them among 'fast').
      videos: every video alone, in the order of its first clip; not part of the JSON.
    """

    matching: str
    motion_rule: str
    mean_ap: float
    per_class_ap: dict[str, float]
    motion: dict[str, float]
    counts: dict[str, int]
    videos: tuple[VideoResult, ...]

    def to_json(self) -> dict:
        """Returns plain values for `json.dump`; nan becomes None, which JSON can hold."""

        def number(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "matching": self.matching,
            "motion_rule": self.motion_rule,
            "mean_ap": number(self.mean_ap),
            "per_class_ap": {label: number(ap) for label, ap in self.per_class_ap.items()},
            "motion": {speed: number(ap) for speed, ap in self.motion.items()},
            "counts": dict(self.counts),
        }


def intersection_over_union(a: np.ndarray, b: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """IoU of broadcast boxes.

    Args:
      a: [..., 4] boxes `[ymin, xmin, ymax, xmax]` in any unit.
      b: [..., 4] boxes in the same unit, broadcast against `a`.
      extra: added to every extent; 1 for inclusive pixel coordinates.

    Returns:
      [...] float64 in [0, 1]; 0 where the union is empty.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    intersection = np.prod(np.maximum(overlap, 0.0), axis=-1)
    union = (
        np.prod(a[..., 2:] - a[..., :2] + extra, axis=-1)
        + np.prod(b[..., 2:] - b[..., :2] + extra, axis=-1)
        - intersection
    )
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def motion_iou(
    boxes: Sequence[np.ndarray],
    tracks: Sequence[np.ndarray],
    window: int = MOTION_WINDOW_FRAMES,
) -> list[np.ndarray]:
    """Mean IoU of every object with its own track in the neighbouring frames.

    Args:
      boxes: for every frame, [n, 4].
      tracks: for every frame, [n] track ids; a negative id means "no track".
      window: how many frames before and after are looked at; the frame itself is left out.

    Returns:
      For every frame, [n] float64; nan for an object that no neighbouring frame shows.

    Raises:
      ValueError: when a frame holds a track twice.
    """
    frames = len(boxes)
    ids = np.unique(np.concatenate([np.asarray(t, np.int64).ravel() for t in tracks] or [[]]))
    ids = ids[ids >= 0]
    dense = np.zeros((len(ids), frames, 4))
    present = np.zeros((len(ids), frames), bool)
    rows = []
    for frame, (frame_boxes, frame_tracks) in enumerate(zip(boxes, tracks, strict=True)):
        frame_tracks = np.asarray(frame_tracks, np.int64).ravel()
        tracked = frame_tracks >= 0
        row = np.searchsorted(ids, frame_tracks[tracked])
        if len(np.unique(row)) != len(row):
            raise ValueError(f"frame {frame} holds a track twice: {frame_tracks.tolist()}")
        dense[row, frame] = np.asarray(frame_boxes, np.float64).reshape(-1, 4)[tracked]
        present[row, frame] = True
        rows.append((tracked, row))
    total = np.zeros((len(ids), frames))
    count = np.zeros((len(ids), frames))
    for offset in range(1, min(window, frames - 1) + 1):
        both = present[:, offset:] & present[:, :-offset]
        overlap = intersection_over_union(dense[:, offset:], dense[:, :-offset]) * both
        for part in (np.s_[:, offset:], np.s_[:, :-offset]):
            total[part] += overlap
            count[part] += both
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    result = []
    for frame, (tracked, row) in enumerate(rows):
        values = np.full(len(tracked), np.nan)
        values[tracked] = mean[row, frame]
        result.append(values)
    return result


def average_precision(
    scores: np.ndarray, correct: np.ndarray, positives: int, wrong: np.ndarray | None = None
) -> float:
    """All-point average precision.

    Args:
      scores: [n] confidences, in any order.
      correct: [n] bool, whether a detection was right.
      positives: number of objects to be found.
      wrong: [n] in [0, 1], how much a detection counts as a false one; by default 1 where it was
        not right.

    Returns:
      The area under the precision envelope over recall, in [0, 1]; nan without positives.
    """
    if positives == 0:
        return math.nan
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    correct = np.asarray(correct, bool)[order]
    wrong = ~correct if wrong is None else np.asarray(wrong, np.float64)[order]
    hits = np.cumsum(correct)
    # Nothing before the first that is right or wrong has a precision.
    precision = hits / np.maximum(hits + np.cumsum(wrong), np.finfo(np.float64).tiny)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by 1/positives at each right detection and stays between them.
    return float(envelope[correct].sum() / positives)


class VidMap:
    """Collects clips and computes ImageNet VID's metric.

    Args:
      num_classes: number of object classes C; class ids are 1..C.
      labels: C names for the result, or None for '1'..'C'.
      matching: 'plain' or 'size_dependent', see the module's docstring.
      motion_rule: 'fgfa' or 'strict', see `motion_split`.

    Raises:
      ValueError: on an unknown rule or a wrong number of labels.
    """

    def __init__(
        self,
        num_classes: int,
        labels: Sequence[str] | None = None,
        matching: str = "plain",
        motion_rule: str = "fgfa",
    ):
        if motion_rule not in MOTION_RULES:
            raise ValueError(f"motion_rule {motion_rule!r} is not one of {', '.join(MOTION_RULES)}")
        if matching not in MATCHING:
            raise ValueError(f"matching {matching!r} is not one of {', '.join(MATCHING)}")
        if num_classes < 1:
            raise ValueError(f"num_classes {num_classes} is not at least 1")
        self.num_classes = num_classes
        self.labels = list(labels or [str(c) for c in range(1, num_classes + 1)])
        if len(self.labels) != num_classes or len(set(self.labels)) != num_classes:
            raise ValueError(f"labels must be {num_classes} different names, got {self.labels}")
        self.matching, self.motion_rule = matching, motion_rule
        self._clips = 0
        self._frames = 0
        self._scores = [np.zeros(0)]
        self._classes = [np.zeros(0, np.int64)]
        # Row 0: every object counts. Rows 1..3: only the objects of one speed count.
        self._right = [np.zeros((4, 0), bool)]
        self._wrong = [np.zeros((4, 0))]
        self._positives = np.zeros((4, num_classes + 1), np.int64)
        # Of every clip: video, frames, objects of each class, and its part of the lists above.
        self._videos = []
        self._unknown_speed = 0

    def add_clip(
        self,
        detections: Sequence[FrameDetections],
        truth: Sequence[FrameTruth],
        image_size: tuple[int, int] | None = None,
        video: str = "",
    ) -> None:
        """Adds one clip.

        Args:
          detections: for every frame `(boxes [n, 4], scores [n], classes [n])`.
          truth: for every frame `(boxes [m, 4], classes [m], tracks [m])`.
            Boxes are `[ymin, xmin, ymax, xmax]` in [0, 1], classes 1..C; a negative track is none.
          image_size: (height, width) in pixels of the original frames; only the size-dependent
            rule needs it.
          video: that the clip is a part of; each clip is its own without.

        Raises:
          ValueError: on different numbers of frames, mismatched lengths, classes outside 1..C,
            scores that are not finite, or a missing image_size.
        """
        if len(detections) != len(truth):
            raise ValueError(
                f"a clip has {len(detections)} frames of detections and {len(truth)} of truth"
            )
        if self.matching == "size_dependent" and image_size is None:
            raise ValueError("size_dependent matching needs image_size=(height, width)")
        found = [
            _checked_frame("detections", frame, self.num_classes, (boxes, classes, scores))
            for frame, (boxes, scores, classes) in enumerate(detections)
        ]
        real = [
            _checked_frame("truth", frame, self.num_classes, arrays)
            for frame, arrays in enumerate(truth)
        ]
        # Falling score inside a frame; a stable sort keeps equal scores in order of arrival.
        found = [
            tuple(array[np.argsort(-arrays[2], kind="stable")] for array in arrays)
            for arrays in found
        ]
        self._clips += 1
        objects = np.bincount(
            np.concatenate([np.zeros(0, np.int64), *(c for _, c, _ in real)]),
            minlength=self.num_classes + 1,
        )
        self._videos.append(
            (video or f"clip {self._clips - 1}", len(truth), objects, len(self._scores))
        )
        self._frames += len(truth)
        if not truth:
            return
        boxes, classes, scores, there = _padded(found)
        real_boxes, real_classes, real_tracks, real_there = _padded(real)
        tracks = [frame_tracks for _, _, frame_tracks in real]
        motion = np.full(real_there.shape, np.nan)
        motion[real_there] = np.concatenate(motion_iou([b for b, _, _ in real], tracks))
        of_speed = motion_split.in_range(motion, self.motion_rule)
        counted = np.concatenate([real_there[None], real_there & of_speed])
        for row, mask in enumerate(counted):
            self._positives[row] += np.bincount(real_classes[mask], minlength=self.num_classes + 1)
        self._unknown_speed += int((real_there & np.isnan(motion)).sum())
        matches, overlap = self._candidates(boxes, classes, real_boxes, real_classes, image_size)
        matches &= there[:, :, None] & real_there[:, None, :]
        judge = motion_split.JUDGES[self.motion_rule]
        right, wrong = judge(matches, overlap, counted, real_there)
        self._scores.append(scores[there])
        self._classes.append(classes[there])
        self._right.append(right[:, there])
        self._wrong.append(wrong[:, there])

    def _candidates(self, boxes, classes, real_boxes, real_classes, image_size):
        """Which detections may match which objects: ([F, D, N] bool, [F, D, N] IoU)."""
        a, b = boxes[:, :, None], real_boxes[:, None]
        if self.matching == "plain":
            overlap = intersection_over_union(a, b)
            threshold = np.full(real_boxes.shape[:2], IOU_THRESHOLD)
        else:
            scale = np.tile(np.asarray(image_size, np.float64), 2)
            overlap = intersection_over_union(a * scale, b * scale, extra=1.0)
            extent = (real_boxes[..., 2:] - real_boxes[..., :2]) * scale[:2] + 1.0
            threshold = np.minimum(
                IOU_THRESHOLD, extent.prod(axis=-1) / (extent + 10.0).prod(axis=-1)
            )
        same = classes[:, :, None] == real_classes[:, None]
        return same & (overlap >= threshold[:, None]), overlap

    def result(self) -> VidMapResult:
        """Returns the metric over all clips added so far."""
        scores = np.concatenate(self._scores)
        classes = np.concatenate(self._classes)
        right = np.concatenate(self._right, axis=1)
        wrong = np.concatenate(self._wrong, axis=1)
        objects = self._positives.sum(axis=1)
        for row, share in zip(wrong, objects / max(objects[0], 1)):
            row[np.isnan(row)] = share
        precision = np.full((4, self.num_classes), np.nan)
        for class_id in range(1, self.num_classes + 1):
            of_class = classes == class_id
            for row in range(4):
                precision[row, class_id - 1] = average_precision(
                    scores[of_class],
                    right[row, of_class],
                    int(self._positives[row, class_id]),
                    wrong[row, of_class],
                )
        means = [
            float(np.mean(row[~np.isnan(row)])) if not np.isnan(row).all() else math.nan
            for row in precision
        ]
        counts = {
            "clips": self._clips,
            "frames": self._frames,
            "detections": len(scores),
            "objects": int(objects[0]),
        }
        counts.update({speed: int(objects[1 + s]) for s, speed in enumerate(SPEEDS)})
        counts["unknown_speed"] = self._unknown_speed
        return VidMapResult(
            matching=self.matching,
            motion_rule=self.motion_rule,
            mean_ap=means[0],
            per_class_ap={label: float(ap) for label, ap in zip(self.labels, precision[0])},
            motion=dict(zip(SPEEDS, means[1:])),
            counts=counts,
            videos=tuple(self._video_results()),
        )

    def _video_results(self):
        parts = {}
        for video, frames, objects, place in self._videos:
            parts.setdefault(video, []).append((frames, objects, place))
        for video, clips in parts.items():
            # A clip without frames added nothing to the lists.
            places = [place for frames, _, place in clips if frames]
            scores, classes, right = (
                np.concatenate([empty, *(column[place] for place in places)], axis=-1)
                for column, empty in (
                    (self._scores, np.zeros(0)),
                    (self._classes, np.zeros(0, np.int64)),
                    (self._right, np.zeros((4, 0), bool)),
                )
            )
            objects = sum(of_clip for _, of_clip, _ in clips)
            precision = [
                average_precision(scores[classes == c], right[0, classes == c], int(objects[c]))
                for c in np.flatnonzero(objects)
            ]
            yield VideoResult(
                video,
                sum(frames for frames, *_ in clips),
                int(objects.sum()),
                len(scores),
                float(np.mean(precision)) if precision else math.nan,
            )


def _checked_frame(what, frame, num_classes, arrays):
    """`(boxes, classes, scores or tracks)` of one frame as NumPy arrays of agreeing lengths."""
    boxes, classes, third = (np.asarray(array) for array in arrays)
    boxes = boxes.astype(np.float64).reshape(-1, 4)
    classes = classes.astype(np.int64).ravel()
    third = third.astype(np.float64 if what == "detections" else np.int64).ravel()
    if not len(boxes) == len(classes) == len(third):
        raise ValueError(
            f"{what} of frame {frame}: {len(boxes)} boxes, {len(classes)} classes and "
            f"{len(third)} {'scores' if what == 'detections' else 'tracks'}"
        )
    if len(classes) and not (classes.min() >= 1 and classes.max() <= num_classes):
        raise ValueError(
            f"{what} of frame {frame}: classes {sorted(set(classes.tolist()))} "
            f"are not all in 1..{num_classes}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(third).all()):
        raise ValueError(f"{what} of frame {frame}: a value is not finite")
    return boxes, classes, third


def _padded(frames):
    """Lists of per-frame arrays as [F, N, ...] arrays and a [F, N] mask of the real entries."""
    longest = max(len(classes) for _, classes, _ in frames)
    there = np.arange(longest) < np.array([len(classes) for _, classes, _ in frames])[:, None]
    result = []
    for position in range(3):
        joined = np.concatenate([arrays[position] for arrays in frames])
        padded = np.zeros(there.shape + joined.shape[1:], joined.dtype)
        padded[there] = joined
        result.append(padded)
    return *result, there
