"""Scoring masks on recorded clips: DAVIS's J and F of the foreground (PW 4.2).

The masks are compared at the size of the frames of the data set, unsupervised as in PW: all frames
count, and of several objects the foreground is what they cover together.
"""

import numpy as np

from memvid_tf.evaluation import davis
from memvid_tf.runtime.manifest import MaskSpec
from memvid_tf.runtime.postprocess import foreground

CONVENTION = "unsupervised"


class MaskScores:
    """What clips are added to. A clip that shows no object at all is left out: it has no J.

    Args:
      spec: how logits become masks.
    """

    def __init__(self, spec: MaskSpec = MaskSpec()):
        self._spec = spec
        self._sequences = {}
        self._clips = 0

    def add_clip(self, clip: dict[str, np.ndarray], mask_logits: np.ndarray) -> list[np.ndarray]:
        """Scores one clip.

        Args:
          clip: one clip of `clips.clip_dataset` with `masks`, without the batch axis, as arrays.
          mask_logits: [T, h, w, 1] float32.

        Returns:
          The mask of each valid frame, [H, W] bool.
        """
        frames = range(int(clip["num_frames"]))
        truth = [clip["masks"][t, :, :, 0] for t in frames]
        found = [
            foreground(mask_logits[t, :, :, 0], truth[t].shape, self._spec.threshold)
            for t in frames
        ]
        name = clip["clip_id"].decode() if "clip_id" in clip else f"clip {self._clips}"
        self._clips += 1
        if any(mask.any() for mask in truth):
            masks = [mask.astype(np.uint8) for mask in found]
            self._sequences[name] = davis.evaluate_sequence(masks, truth, CONVENTION)
        return found

    def result(self) -> davis.DavisResult:
        """The benchmark's numbers over all clips.

        Raises:
          ValueError: if no clip showed an object.
        """
        if not self._sequences:
            raise ValueError(f"none of {self._clips} clips shows an object")
        return davis.combine(self._sequences, CONVENTION)
