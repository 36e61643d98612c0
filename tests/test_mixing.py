"""Videos mixed with stills, SSD's augmentation of windows, and clips that cannot be decoded."""

import shutil

import numpy as np
import painted
import pytest
import tensorflow as tf
from painted import (
    TRAIN_CLIPS,
    batches,
    boxes_by_pixels,
    evaluating,
    examples,
    same_stream,
    training,
    two_pipelines,
)

from memvid_tf.data import clips, reading, records

STILLS = 7
# Clips of which one frame is no picture.
DAMAGED = (2, 5)


def still(split, index):
    """A picture of the painted set, as a clip of one frame."""
    whole = painted.make_clip(split, index)
    clip = records.ClipRecord(f"still-{index}", *painted.SIZE)
    clip.add_frame(whole.images[4], whole.boxes[4], whole.classes[4], whole.tracks[4])
    return clip


def damaged(split, index):
    clip = painted.make_clip(split, index)
    if index in DAMAGED:
        # Every window of four of twelve frames meets a damaged one.
        for t in range(0, len(clip.images), 3):
            data = clip.images[t]
            clip.images[t] = data[: len(data) // 2]
    return clip


@pytest.fixture(name="folders", scope="module")
def fixture_folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("mixed")
    return {
        "videos": painted.write_set(top / "videos"),
        "stills": painted.write_set(top / "stills", still, (STILLS, 1), (2, 1)),
        "damaged": painted.write_set(top / "damaged", damaged),
        "others": painted.write_set(
            top / "others", still, (2, 1), (2, 1), labels=["red", "green", "cyan"]
        ),
    }


def mixed(folders, **changes):
    return training(
        folders["videos"],
        **{
            "still_paths": (str(folders["stills"]),),
            "still_share": 0.25,
            "still_min_scale": 0.6,
            **changes,
        },
    )


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def assert_boxes_are_near_the_pixels(example):
    """Returns the number of boxes looked at; smaller ones are mostly blur."""
    looked = 0
    for frame, boxes, classes in zip(example["frames"], example["boxes"], example["classes"]):
        found = boxes_by_pixels(frame)
        for box, class_id in zip(
            boxes[classes > 0] * np.tile(painted.SIZE, 2), classes[classes > 0]
        ):
            if min(box[2:] - box[:2]) >= 6:
                assert overlap(box, np.array(found[class_id], float)) > 0.6
                looked += 1
    return looked


def test_the_share_of_stills_is_exact_and_epochs_are_whole(folders):
    found = [int(e["clip_index"]) for e in examples(mixed(folders), 4 * TRAIN_CLIPS * 2)]
    stills = [i - TRAIN_CLIPS for i in found if i >= TRAIN_CLIPS]
    videos = [i for i in found if i < TRAIN_CLIPS]
    assert len(stills) == len(found) // 4
    # Every fourth is a still.
    assert [i >= TRAIN_CLIPS for i in found[:8]] == [False, False, False, True] * 2
    for sequence, count in ((stills, STILLS), (videos, TRAIN_CLIPS)):
        epochs = [sequence[i : i + count] for i in range(0, len(sequence) - count + 1, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 1


@pytest.mark.parametrize(
    "change", [{}, {"still_motion": "between_boxes"}], ids=["drift", "between_boxes"]
)
def test_stills_become_moving_windows(folders, change):
    looked, moving = 0, 0
    for example in examples(mixed(folders, still_share=0.9, flip=True, **change), 40):
        if example["clip_index"] < TRAIN_CLIPS:
            continue
        assert example["frames"].shape == (4, *painted.SIZE, 3) and example["num_frames"] == 4
        looked += assert_boxes_are_near_the_pixels(example)
        moving += (example["frames"][0] != example["frames"][-1]).mean() > 0.001
        # The ground is the grey of the one picture, and nothing lies outside of it.
        assert all(np.median(frame) == 24 for frame in example["frames"])
    assert looked > 100 and moving > 25


def test_a_mixed_stream_resumes_and_divides(folders):
    config = mixed(folders, global_batch_size=4, ssd_crop=True, max_expand=2.0, photometric=True)
    whole = batches(config, 6)
    same_stream(batches(config, 3, start_step=3), whole[3:])
    same_stream(two_pipelines(config, 2, start_step=4), whole[4:])


def test_ssd_augmentation_is_one_for_a_window(folders):
    looked, sizes = 0, []
    for example in examples(training(folders["videos"], ssd_crop=True, max_expand=2.0), 60):
        looked += assert_boxes_are_near_the_pixels(example)
        for n in range(3):
            there = example["classes"][:, n] > 0
            inside = ((example["boxes"][:, n] > 0) & (example["boxes"][:, n] < 1)).all(axis=-1)
            boxes = example["boxes"][there & inside, n]
            # The painted objects keep their size, so under one view they do too.
            np.testing.assert_allclose(
                boxes[:, 2:] - boxes[:, :2],
                np.broadcast_to(boxes[:1, 2:] - boxes[:1, :2], (len(boxes), 2)),
                atol=1e-5,
            )
            sizes += (boxes[:1, 2] - boxes[:1, 0]).tolist()
    # Ten of 32 rows as painted; zoomed in and out.
    assert looked > 80 and min(sizes) < 0.25 and max(sizes) > 0.4


def test_stills_alone_are_a_training_set(folders):
    found = examples(training(folders["stills"]), STILLS)
    assert sorted(int(e["clip_index"]) for e in found) == list(range(STILLS))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"still_share": 0.0}, "still_share 0.0 is not allowed: above 0 with still_paths"),
        ({"still_paths": ()}, "still_share 0.25 is not allowed: .*0 without"),
        ({"still_paths": ("videos",)}, "holds clips of up to 12 frames, wanted are still images"),
        (
            {"still_paths": ("others",)},
            "others has the classes red, green, cyan, .* has red, green, b",
        ),
        ({"still_min_scale": 2.0}, "still_min_scale 2.0"),
        ({"still_motion": "jump"}, "still_motion 'jump' is not allowed: one of drift, between_boxes"),
        ({"max_expand": 2.0}, "max_expand 2.0 is not allowed: 1 without ssd_crop"),
        (
            {"ssd_crop": True, "random_crop": True},
            "ssd_crop True is not allowed: false with random",
        ),
        ({"max_unreadable": 1.0}, "max_unreadable 1.0"),
    ],
)
def test_wrong_settings_are_named(folders, change, message):
    if "still_paths" in change:
        change = {"still_paths": tuple(str(folders[name]) for name in change["still_paths"])}
    with pytest.raises(ValueError, match=message):
        clips.clip_dataset(mixed(folders, **change))


def test_damaged_clips_are_skipped_counted_and_named(folders):
    warnings = []
    config = training(folders["damaged"], max_unreadable=0.2, global_batch_size=1)
    found = [
        int(batch["clip_index"][0])
        for batch in batches(config, 3 * (TRAIN_CLIPS - len(DAMAGED)), warn=warnings.append)
    ]
    # Three epochs of the others, each a permutation.
    good = sorted(set(range(TRAIN_CLIPS)) - set(DAMAGED))
    for i in range(3):
        assert sorted(found[len(good) * i : len(good) * (i + 1)]) == good
    # Each is told of once. Eleven clips in three shards: 0 to 2, 3 to 6, 7 to 10.
    assert {w.partition(" of ")[0] for w in warnings} == {"record 2"} and len(warnings) == 2
    assert all("cannot be decoded and is skipped" in w for w in warnings)
    assert [w.partition("skipped: ")[2] for w in warnings] == ["1 of at most 2", "2 of at most 2"]


def test_a_record_with_a_wrong_checksum_is_a_damaged_clip(folders, tmp_path):
    """A byte of a box changes nothing that could not be decoded."""
    shutil.copytree(folders["videos"], tmp_path / "set")
    shard = sorted((tmp_path / "set").glob("train-*"))[1]
    clip = painted.make_clip("train", 4)
    box, data = clip.boxes[0].tobytes()[:8], bytearray(shard.read_bytes())
    assert data.count(box) >= 1
    data[data.index(box) + 3] ^= 1
    shard.write_bytes(data)
    warnings = []
    config = training(tmp_path / "set", max_unreadable=0.1, global_batch_size=1)
    found = [
        int(batch["clip_index"][0])
        for batch in batches(config, TRAIN_CLIPS - 1, warn=warnings.append)
    ]
    assert len(set(found)) == TRAIN_CLIPS - 1
    (lost,) = set(range(TRAIN_CLIPS)) - set(found)
    # Eleven clips in three shards: 0 to 2, 3 to 6, 7 to 10.
    assert 3 <= lost <= 6 and warnings[0].startswith(f"record {lost - 3} of {shard} cannot be")


def test_more_damage_than_allowed_stops_with_the_list(folders):
    config = training(folders["damaged"], max_unreadable=0.1)
    with pytest.raises(records.DatasetError) as error, reading.dataset_errors():
        batches(config, 9, warn=lambda text: None)
    message = str(error.value)
    assert message.startswith("2 clips cannot be decoded, allowed are 1: record ")
    assert message.count(".tfrecord") == 2 and "memvid_tf.data check" in message


def test_other_errors_of_a_graph_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), reading.dataset_errors():
        tf.io.decode_jpeg(b"no picture")


def test_evaluation_skips_nothing(folders):
    # Five clips in shards of two and three: clip 2 is the first of the second.
    with (
        pytest.raises(
            records.DatasetError,
            match="1 clips cannot be decoded, allowed are 0: record 0 of .*test-00001",
        ),
        reading.dataset_errors(),
    ):
        batches(evaluating(folders["damaged"], max_unreadable=0.9), -1)
