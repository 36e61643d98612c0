"""What makes a clip hard, from its ground truth, and how often f0 ran on hard and easy clips."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memvid_tf.data import records

# An object counts as occluded where another's box covers this part of its own.
COVERED = 0.1
# Frames after an entry that belong to it: π sees a frame before it decides about the next.
AFTERMATH_FRAMES = 3
# Where f0 should run more often, and where less; names of `shares`.
COMPARED = {
    "objects": ("hard", "easy"),
    "entries": ("hard", "easy"),
    "occlusion": ("hard", "easy"),
    "entry": ("at and after", "elsewhere"),
}


class Clips(NamedTuple):
    """N clips.

    Attributes:
      hardness: by criterion, [N] float64; the larger, the harder.
      entries: of each clip, [T] bool: an object that was not there has just come.
    """

    hardness: dict[str, np.ndarray]
    entries: list[np.ndarray]


def read(info: records.DatasetInfo, split: str) -> Clips:
    """Looks at the ground truth of a split."""
    rows, entries = [], []
    for clip in records.read_clips(info, split):
        came = entered(clip.tracks)
        covered = np.concatenate([np.zeros(0), *(coverage(boxes) for boxes in clip.boxes)])
        rows.append(
            {
                "objects": np.mean([len(tracks) for tracks in clip.tracks]),
                "entries": came.mean(),
                "occlusion": (covered >= COVERED).mean() if len(covered) else 0.0,
            }
        )
        entries.append(came)
    return Clips({name: np.array([row[name] for row in rows]) for name in rows[0]}, entries)


def entered(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """[T] bool of the tracks in every frame: one is there that has not been seen before.

    What is there in the first frame has not come.
    """
    seen, came = set(tracks[0].tolist()), [False]
    for here in tracks[1:]:
        came.append(not seen.issuperset(here.tolist()))
        seen |= set(here.tolist())
    return np.array(came)


def coverage(boxes: np.ndarray) -> np.ndarray:
    """[n] of [n, 4] boxes of a frame: the part of each that the box of another one covers most."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = np.maximum(high - low, 0.0).prod(-1)
    area = np.diagonal(common)
    np.fill_diagonal(common := common.copy(), 0.0)
    return common.max(1, initial=0.0) / area


def shares(clips: Clips, f0_frames: Sequence[Sequence[int]]) -> dict[str, float]:
    """Shares of f0.

    Args:
      clips: N clips.
      f0_frames: of each, the frames on which f0 ran.

    Returns:
      By criterion for the hardest third of the clips ("objects, hard") and the easiest third, and
      for the frames at and after an entry and all others. Frame 0 does not count, where f0 always
      runs.
    """
    ran = [np.isin(np.arange(len(came)), frames) for came, frames in zip(clips.entries, f0_frames)]
    mean = np.array([row[1:].mean() for row in ran])
    third = max(1, len(mean) // 3)
    found = {}
    for name, values in clips.hardness.items():
        order = np.argsort(values, kind="stable")
        found[f"{name}, hard"] = float(mean[order[-third:]].mean())
        found[f"{name}, easy"] = float(mean[order[:third]].mean())
    near = [
        np.convolve(came, np.ones(AFTERMATH_FRAMES + 1))[: len(came)] > 0 for came in clips.entries
    ]
    near, after_first = np.concatenate([x[1:] for x in near]), np.concatenate([x[1:] for x in ran])
    found["entry, at and after"] = float(after_first[near].mean()) if near.any() else 0.0
    found["entry, elsewhere"] = float(after_first[~near].mean())
    return found
