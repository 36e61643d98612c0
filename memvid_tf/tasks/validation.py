"""What validation during training makes of whole clips: mAP, or J and F, and some pictures."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from memvid_tf.detection.matching import CODER_WEIGHTS
from memvid_tf.evaluation import mask_scoring, scoring
from memvid_tf.evaluation.vid_map import VidMap
from memvid_tf.runtime import annotate
from memvid_tf.runtime.manifest import BoxCoder

PICTURES = 4


class ClipScores:
    """Scores of validation clips.

    Args:
      labels: class names.
      anchors: [A, 4] of the detector.
    """

    def __init__(self, labels: Sequence[str], anchors: np.ndarray):
        self._labels, self._anchors = labels, anchors
        self._vid_map = VidMap(len(labels), labels)
        self._pictures = []

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Scores a batch of `clips.clip_dataset` to which `box_encodings` [B, T, A, 4] and
        `class_logits` [B, T, A, 1 + C] were added."""
        for i in range(len(batch["frames"])):
            clip = {key: value[i] for key, value in batch.items()}
            if clip["num_frames"] == 0:  # only there to fill the batch of a replica
                continue
            found = scoring.score_clip(
                self._vid_map,
                clip,
                clip["box_encodings"],
                clip["class_logits"],
                self._anchors,
                BoxCoder(*CODER_WEIGHTS),
            )
            if len(self._pictures) < PICTURES:
                frame = clip["frames"][len(found) - 1]
                self._pictures.append(annotate.draw_detections(frame, found[-1], self._labels))

    def summaries(self, step) -> dict[str, float]:
        """Writes the pictures to the default summary writer; returns mAP and its motion split."""
        pictures = np.stack(self._pictures)
        tf.summary.image("detections", pictures, step=step, max_outputs=len(pictures))
        result = self._vid_map.result()
        return {
            "mAP": result.mean_ap,
            **{f"mAP_{motion}": value for motion, value in result.motion.items()},
        }


class MaskScores:
    """Scores of validation clips of a segmenter."""

    def __init__(self):
        self._scores, self._pictures = mask_scoring.MaskScores(), []

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Scores a batch of `clips.clip_dataset` with masks, to which `mask_logits`
        [B, T, h, w, 1] were added."""
        for i in range(len(batch["frames"])):
            clip = {key: value[i] for key, value in batch.items()}
            found = self._scores.add_clip(clip, clip["mask_logits"])
            if len(self._pictures) < PICTURES:
                frame = clip["frames"][len(found) - 1]
                self._pictures.append(annotate.draw_mask(frame, found[-1]))

    def summaries(self, step) -> dict[str, float]:
        """Writes the pictures to the default summary writer; returns J and F."""
        pictures = np.stack(self._pictures)
        tf.summary.image("masks", pictures, step=step, max_outputs=len(pictures))
        result = self._scores.result()
        return {"J": result.j.mean, "F": result.f.mean}


def per_replica(step_logs: dict) -> list[dict[str, np.ndarray]]:
    """The outputs of a validation step, one batch of arrays for each replica."""
    return [
        dict(zip(step_logs, (value.numpy() for value in replica)))
        for replica in zip(*step_logs.values())
    ]
