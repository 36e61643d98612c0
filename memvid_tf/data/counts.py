"""What `dataset.json` says about a split, counted from its clips."""

import collections

import numpy as np

from memvid_tf.data.records import ClipRecord
from memvid_tf.evaluation import vid_map

# What only the maker of a set knows: it is not in the clips.
OF_SOURCE = ("left_out", "unknown_classes")

def count_clip(clip: ClipRecord, num_classes: int) -> dict:
    """Counts of one clip, of which `merge_counts` makes a shard's and a split's."""
    per_frame = [len(classes) for classes in clip.classes]
    speeds = vid_map.motion_speed(np.concatenate(vid_map.motion_iou(clip.boxes, clip.tracks)))
    return {
        "frames": len(clip.images),
        "min_clip_frames": len(clip.images),
        "max_clip_frames": len(clip.images),
        "tracks": len(np.unique(np.concatenate(clip.tracks))),
        "left_out": clip.left_out,
        "unknown_classes": dict(clip.unknown),
        "max_objects": max(per_frame),
        "frames_with_objects": np.bincount(per_frame).tolist(),
        "class_objects": np.bincount(np.concatenate(clip.classes), minlength=num_classes + 1)[
            1:
        ].tolist(),
        "speed_objects": [int((speeds == s).sum()) for s in range(len(vid_map.SPEEDS))],
    }


def merge_counts(counts: list[dict]) -> dict:
    """Adds up the counts of clips or shards; at least one."""

    def total(name):
        longest = max(len(c[name]) for c in counts)
        rows = [np.pad(c[name], (0, longest - len(c[name]))) for c in counts]
        return np.sum(rows, axis=0).tolist()

    return {
        "frames": sum(c["frames"] for c in counts),
        "min_clip_frames": min(c["min_clip_frames"] for c in counts),
        "max_clip_frames": max(c["max_clip_frames"] for c in counts),
        "tracks": sum(c["tracks"] for c in counts),
        "left_out": sum(c["left_out"] for c in counts),
        "unknown_classes": dict(
            sum((collections.Counter(c["unknown_classes"]) for c in counts), collections.Counter())
        ),
        "max_objects": max(c["max_objects"] for c in counts),
        "frames_with_objects": total("frames_with_objects"),
        "class_objects": total("class_objects"),
        "speed_objects": total("speed_objects"),
    }


def statistics(counts: dict, labels: list[str]) -> dict:
    """What `dataset.json` says about a split, from its merged counts.

    The motion split is over objects whose motion IoU is known, see `vid_map`.
    """
    objects = sum(counts["class_objects"])
    known = max(1, sum(counts["speed_objects"]))
    return {
        "objects": objects,
        "objects_per_frame": round(objects / counts["frames"], 4),
        "frames_by_object_count": counts["frames_with_objects"],
        "max_objects": counts["max_objects"],
        "min_clip_frames": counts["min_clip_frames"],
        "tracks": counts["tracks"],
        "left_out": counts["left_out"],
        "unknown_classes": dict(sorted(counts["unknown_classes"].items())),
        "objects_by_class": dict(zip(labels, counts["class_objects"])),
        "motion_split": {
            speed: round(number / known, 4)
            for speed, number in zip(vid_map.SPEEDS, counts["speed_objects"])
        },
    }
