"""Scoring a detector on recorded clips: VID mAP in every inference mode, from one pass."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.coco import CocoAp, CocoResult
from memvid_tf.evaluation.vid_map import VidMap, VidMapResult
from memvid_tf.runtime import postprocess
from memvid_tf.runtime.manifest import BoxCoder, PostSpec

# The field's least score while scoring (FGFA's and its followers' tests of ImageNet VID): low enough
# that the precision-recall curve is whole. A viewer's threshold, the bundle's own, is higher.
SCORING = PostSpec(score_threshold=1e-3, iou_threshold=0.5, max_detections=100)


@dataclasses.dataclass(frozen=True)
class ModeResult(VidMapResult):
    """A `VidMapResult` and what it took.

    Attributes:
      f0_share: part of the frames on which f0 ran, in [0, 1].
      f0_frames: those frames of every clip, in the order of the data; None where the schedule is
        the same for all clips.
      delay_frames: asynchronously, after how many frames f0's result was taken to be there.
      coco: COCO's numbers, where they were asked for.
    """

    f0_share: float
    f0_frames: tuple[tuple[int, ...], ...] | None = None
    delay_frames: int | None = None
    coco: CocoResult | None = None

    def to_json(self) -> dict:
        """See `VidMapResult.to_json`."""
        own = {"f0_share": self.f0_share}
        if self.f0_frames is not None:
            own["f0_frames"] = [" ".join(map(str, frames)) for frames in self.f0_frames]
        if self.delay_frames is not None:
            own["delay_frames"] = self.delay_frames
        if self.coco is not None:
            own["coco"] = self.coco.to_json()
        return {**super().to_json(), **own}


class Scores:
    """What clips are added to: VID's metric and, if wanted, COCO's.

    Args:
      labels: class names.
      matching, motion_rule: of `VidMap`.
      coco: whether COCO's numbers are wanted.
    """

    def __init__(
        self,
        labels: Sequence[str],
        matching: str = "plain",
        motion_rule: str = "fgfa",
        coco: bool = False,
    ):
        self.vid_map = VidMap(len(labels), labels, matching, motion_rule)
        self.coco = CocoAp(labels) if coco else None

    def add_clip(self, *arguments, **more) -> None:
        """See `VidMap.add_clip`."""
        self.vid_map.add_clip(*arguments, **more)
        if self.coco:
            self.coco.add_clip(*arguments, **more)


def video_of(clip: dict[str, np.ndarray]) -> str:
    """The video of a clip: what its id says before the first frame; '' where ids are not read."""
    return clip["clip_id"].decode().partition(":")[0] if "clip_id" in clip else ""


def frame_truth(clip: dict[str, np.ndarray], t: int):
    """Boxes [n, 4], classes [n] and tracks [n] of the objects of frame t, without padding."""
    there = clip["classes"][t] > 0
    return clip["boxes"][t][there], clip["classes"][t][there], clip["tracks"][t][there]


def detect(
    box_encodings: np.ndarray, class_logits: np.ndarray, anchors: np.ndarray, coder: BoxCoder
) -> postprocess.Detections:
    """Detections of one frame for scoring: [A, 4] and [A, 1 + C] float32 heads."""
    return postprocess.detections(
        box_encodings,
        class_logits,
        anchors,
        coder,
        SCORING.score_threshold,
        SCORING.iou_threshold,
        SCORING.max_detections,
    )


def score_clip(
    scores: VidMap | Scores,
    clip: dict[str, np.ndarray],
    box_encodings: np.ndarray,
    class_logits: np.ndarray,
    anchors: np.ndarray,
    coder: BoxCoder,
) -> list[postprocess.Detections]:
    """Adds one clip to a score.

    Args:
      scores: what it is added to.
      clip: one clip of `clips.clip_dataset`, without the batch axis, as arrays.
      box_encodings: [T, A, 4] float32.
      class_logits: [T, A, 1 + C] float32.
      anchors: [A, 4].
      coder: scales of the box code.

    Returns:
      The detections of each valid frame.
    """
    frames = range(int(clip["num_frames"]))
    found = [detect(box_encodings[t], class_logits[t], anchors, coder) for t in frames]
    add_detections(scores, clip, found)
    return found


def add_detections(
    scores: VidMap | Scores,
    clip: dict[str, np.ndarray],
    found: Sequence[postprocess.Detections],
) -> None:
    """Adds the detections of one clip, of each valid frame, to a score; see `score_clip`."""
    scores.add_clip(
        [(d.boxes, d.scores, d.classes + 1) for d in found],
        [frame_truth(clip, t) for t in range(len(found))],
        image_size=tuple(clip["source_size"].tolist()),
        video=video_of(clip),
    )


def evaluate(
    network: rollout.Network,
    batches: Iterable[dict[str, np.ndarray]],
    modes: Sequence[rollout.Mode],
    labels: Sequence[str],
    coder: BoxCoder,
    *,
    matching: str = "plain",
    motion_rule: str = "fgfa",
    coco: bool = False,
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, ModeResult]:
    """Scores a detector.

    Args:
      network: the detector; `network.anchors` are its anchors.
      batches: of `clips.clip_dataset` without training, as arrays.
      modes: the inference modes to score.
      labels: class names.
      coder: scales of the box code.
      matching, motion_rule: of `VidMap`.
      coco: whether COCO's numbers are wanted too.
      advance: called with the number of clips done since the last call.

    Returns:
      The result by the name of the mode.
    """
    scores = {mode.name: Scores(labels, matching, motion_rule, coco) for mode in modes}
    picked = {mode.name: [] for mode in modes}
    done = 0
    for batch in batches:
        clips = len(batch["frames"])
        found = _detected(network, batch, modes, coder, first_clip=done)
        for mode in modes:
            for i, of_clip in enumerate(found[mode.name]):
                clip = {name: value[i] for name, value in batch.items()}
                detections, f0 = zip(*of_clip)
                add_detections(scores[mode.name], clip, detections)
                picked[mode.name].append(np.array(f0))
        done += clips
        advance(clips)
    return {mode.name: _result(scores[mode.name], picked[mode.name], mode) for mode in modes}


def _detected(network, batch, modes, coder, first_clip):
    """By mode and clip, of each valid frame its detections and whether f0 ran.

    All modes go through the frames together: of a long video neither features nor heads are kept.
    """
    clips, length = batch["frames"].shape[:2]
    keep = max((mode.delay_frames for mode in modes if mode.asynchronous), default=0)
    features = {
        extractor: rollout.Recent(network, batch["frames"], extractor, keep)
        for extractor in ("f0", "f1")
    }
    runs = {
        mode.name: rollout.frame_by_frame(network, features, clips, mode, first_clip)
        for mode in modes
    }
    found = {name: [[] for _ in range(clips)] for name in runs}
    for t in range(length):
        for name, run in runs.items():
            boxes, logits, f0 = next(run)
            for i in np.flatnonzero(batch["num_frames"] > t):
                detections = detect(boxes[i], logits[i], network.anchors, coder)
                found[name][i].append((detections, f0[i]))
    return found


def _result(scores: Scores, picked: list[np.ndarray], mode: rollout.Mode) -> ModeResult:
    """The result of a mode, with where f0 ran: [frames] bool of every clip."""
    share = float(np.concatenate(picked).mean())
    frames = tuple(tuple(np.flatnonzero(f0).tolist()) for f0 in picked)
    return ModeResult(
        **vars(scores.vid_map.result()),
        f0_share=share,
        f0_frames=None if mode.is_fixed else frames,
        delay_frames=mode.delay_frames if mode.asynchronous else None,
        coco=scores.coco.result() if scores.coco else None,
    )
