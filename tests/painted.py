"""Painted clips, whose pixels say which clip, frame and object they show, and their reader.

The ground of a frame is grey `20 + frame`; an object is a block of a colour of its class, moving
by one pixel a frame. So the window, the boxes and every augmentation can be read off the pixels.
"""

import cv2
import numpy as np
import tensorflow as tf

from memvid_tf.data import clips, records, sharding
from memvid_tf.data.clips import ClipConfig

SIZE = (32, 48)
# RGB by class; each has one channel above 150, which the ground never has.
COLORS = {1: (200, 10, 10), 2: (10, 200, 10), 3: (10, 10, 200)}
TRAIN_CLIPS, TEST_CLIPS = 11, 5


def length(split, index):
    """Test clips differ in length; all training clips have 12 frames."""
    return 12 if split == "train" else 6 + index % 3


def objects(split, index, t):
    """[(class, track, y0, x0, y1, x1)] of a frame.

    Object 2 is missing in every fourth frame, test clip 1 ends without objects, test clip 2 has
    none at all.
    """
    if split == "test" and (index == 2 or (index == 1 and t > 3)):
        return []
    found = [(1 + index % 3, 7, 4, 2 + t, 10, 12 + t)]
    if t % 4 != 3:
        found.append((1 + (index + 1) % 3, 9, 16 + t // 2, 22, 26 + t // 2, 30))
    return found


def paint(split, index, t):
    image = np.full((*SIZE, 3), 20 + t, np.uint8)
    for class_id, _, y0, x0, y1, x1 in objects(split, index, t):
        image[y0:y1, x0:x1] = COLORS[class_id]
    return image


def make_clip(split, index):
    clip = records.ClipRecord(f"{split}-{index}", *SIZE)
    if (split, index) == ("test", 3):
        clip.source_height, clip.source_width = 480, 640
    for t in range(length(split, index)):
        found = objects(split, index, t)
        scale = np.array([SIZE[0], SIZE[1]] * 2)
        clip.add_frame(
            image=cv2.imencode(".png", paint(split, index, t)[..., ::-1])[1].tobytes(),
            boxes=np.array([o[2:] for o in found]).reshape(-1, 4) / scale,
            classes=np.array([o[0] for o in found]),
            tracks=np.array([o[1] for o in found]),
        )
    return clip


def write_set(
    folder, make_clip=make_clip, train=(TRAIN_CLIPS, 12), test=(TEST_CLIPS, 8), **changes
):
    """Writes the painted set; `train` and `test` are numbers of clips and their frames."""
    splits = {"train": sharding.SplitPlan(*train), "test": sharding.SplitPlan(*test)}
    plan = sharding.DatasetPlan(
        **{
            "name": "painted",
            "labels": ["red", "green", "blue"],
            "image_size": SIZE,
            "config": {},
            "seed": 0,
            "splits": splits,
            "make_clip": make_clip,
            "shard_clips": 4,
            **changes,
        }
    )
    sharding.write_dataset(folder, plan, workers=0)
    return folder


def training(folder, **changes):
    settings = {
        "unroll_frames": 4,
        "global_batch_size": 3,
        "flip": False,
        "photometric": False,
        "max_objects": 3,
        "image_size": SIZE,
        "seed": 4,
    }
    return ClipConfig(input_path=str(folder), **{**settings, **changes})


def evaluating(folder, **changes):
    return training(
        folder, **{"split": "test", "is_training": False, "unroll_frames": 0, **changes}
    )


def batches(config, count, **arguments):
    dataset = clips.clip_dataset(config, **arguments).take(count)
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset]


def examples(config, count):
    """The first `count` examples of a training stream, each without its batch dimension."""
    size = config.global_batch_size
    return [
        {k: v[i] for k, v in batch.items()}
        for batch in batches(config, -(-count // size))
        for i in range(size)
    ][:count]


def frame_numbers(example):
    """Which frames of the clip a window holds, by the ground's grey."""
    return [int(np.bincount(frame[..., 0].ravel()).argmax()) - 20 for frame in example["frames"]]


def boxes_by_pixels(frame):
    """class -> tight box in pixels of what is painted in its colour."""
    found = {}
    for class_id in COLORS:
        inside = frame[..., class_id - 1].astype(int) - frame.min(axis=-1) > 80
        if inside.any():
            ys, xs = np.nonzero(inside)
            found[class_id] = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
    return found


def assert_boxes_match_pixels(example, atol_px=1e-3, complete=True):
    """Every ground-truth box is where its colour is; `complete`: and nothing else is painted."""
    height, width = example["frames"].shape[1:3]
    for frame, boxes, classes, tracks in zip(
        example["frames"], example["boxes"], example["classes"], example["tracks"]
    ):
        painted = boxes_by_pixels(frame)
        there = classes > 0
        if complete:
            assert sorted(classes[there]) == sorted(painted)
        for box, class_id in zip(boxes[there], classes[there]):
            np.testing.assert_allclose(
                box * [height, width, height, width], painted[class_id], atol=atol_px
            )
        assert (boxes[~there] == 0).all() and (tracks[~there] == -1).all()
        assert (tracks[there] >= 0).all()


def two_pipelines(config, count, start_step):
    """Batches of two input pipelines, joined."""
    parts = [
        batches(
            config,
            count,
            start_step=start_step,
            input_context=tf.distribute.InputContext(
                num_input_pipelines=2, input_pipeline_id=i, num_replicas_in_sync=2
            ),
        )
        for i in range(2)
    ]
    return [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts)]


def same_stream(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
