"""The clip reader, on painted clips: see `painted`."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from painted import (
    SIZE,
    TEST_CLIPS,
    TRAIN_CLIPS,
    assert_boxes_match_pixels,
    batches,
    boxes_by_pixels,
    evaluating,
    examples,
    frame_numbers,
    length,
    objects,
    paint,
    same_stream,
    training,
    two_pipelines,
    write_set,
)

from memvid_tf.data import augmentation, clips
from memvid_tf.data.clips import ClipConfig


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("painted") / "set")


def test_evaluation_gives_every_clip_as_stored(folder):
    found = batches(evaluating(folder, global_batch_size=2), -1)
    assert [len(batch["frames"]) for batch in found] == [2, 2, 1]
    joined = {k: np.concatenate([batch[k] for batch in found]) for k in found[0]}
    assert joined["clip_index"].tolist() == list(range(TEST_CLIPS))
    assert joined["num_frames"].tolist() == [length("test", i) for i in range(TEST_CLIPS)]
    assert joined["frames"].shape == (TEST_CLIPS, 8, *SIZE, 3)
    assert {k: v.dtype.name for k, v in joined.items()} == {
        "frames": "uint8",
        "boxes": "float32",
        "classes": "int32",
        "tracks": "int32",
        "num_frames": "int32",
        "source_size": "int32",
        "clip_index": "int32",
    }
    # Stored as they were, except for test clip 3.
    assert joined["source_size"].tolist() == [
        [480, 640] if i == 3 else list(SIZE) for i in range(TEST_CLIPS)
    ]
    named = batches(evaluating(folder), 1, names=True)[0]["clip_id"]
    assert named.tolist() == [f"test-{i}".encode() for i in range(3)]
    for index in range(TEST_CLIPS):
        for t in range(8):
            frame, boxes, classes, tracks = (
                joined[k][index, t] for k in ("frames", "boxes", "classes", "tracks")
            )
            expected = objects("test", index, t) if t < length("test", index) else []
            if t < length("test", index):
                np.testing.assert_array_equal(frame, paint("test", index, t))
            else:
                assert (frame == 0).all()
            rows = np.zeros((3, 4))
            for n, (class_id, track, *box) in enumerate(expected):
                rows[n] = np.array(box) / [*SIZE, *SIZE]
                assert (classes[n], tracks[n]) == (class_id, track)
            np.testing.assert_allclose(boxes, rows, rtol=1e-6)
            assert (classes[len(expected) :] == 0).all() and (tracks[len(expected) :] == -1).all()


def test_evaluation_can_cut_clips_and_drop_the_last_batch(folder):
    found = batches(
        evaluating(folder, unroll_frames=3, global_batch_size=2, drop_remainder=True), -1
    )
    assert [batch["frames"].shape[:2] for batch in found] == [(2, 3), (2, 3)]
    assert (found[0]["num_frames"] == 3).all()


def test_windows_have_one_stride_and_every_start(folder):
    seen = set()
    for example in examples(training(folder, max_stride=3), 120):
        numbers = frame_numbers(example)
        stride = numbers[1] - numbers[0]
        assert numbers == [numbers[0] + stride * i for i in range(4)]
        seen.add((numbers[0], stride))
        for t, frame in zip(numbers, example["frames"]):
            np.testing.assert_array_equal(frame, paint("train", int(example["clip_index"]), t))
        assert_boxes_match_pixels(example)
    # Windows of 4 in 12 frames: starts 0..8 at stride 1, 0..5 at 2, 0..2 at 3.
    allowed = {(s, stride) for stride in (1, 2, 3) for s in range(12 - 3 * stride)}
    assert seen <= allowed
    # 120 draws; the rarest window has probability 1/27.
    assert {stride for _, stride in seen} == {1, 2, 3} and {(0, 1), (0, 3)} <= seen


def test_the_longest_window_has_one_stride_whatever_is_allowed(folder):
    for example in examples(training(folder, unroll_frames=12, max_stride=5), 4):
        assert frame_numbers(example) == list(range(12))


def test_time_reversal(folder):
    directions = [
        np.sign(np.diff(frame_numbers(example))[0])
        for example in examples(training(folder, time_reversal=True), 60)
    ]
    # 60 fair coins: below 15 of a side has probability 1e-4, and the seed is fixed.
    assert 15 < sum(d > 0 for d in directions) < 45


def test_flips_move_boxes_with_the_pixels_and_whole_windows(folder):
    flipped = 0
    for example in examples(training(folder, flip=True), 60):
        assert_boxes_match_pixels(example)
        index = int(example["clip_index"])
        same = []
        for t, frame in zip(frame_numbers(example), example["frames"]):
            original = paint("train", index, t)
            same.append((frame == original).all())
            np.testing.assert_array_equal(frame, original if same[-1] else original[:, ::-1])
        assert len(set(same)) == 1
        flipped += not same[0]
    assert 15 < flipped < 45


def test_shifts_are_even_and_the_same_in_all_frames(folder):
    seen = set()
    for example in examples(training(folder, max_shift=0.25), 60):
        index, numbers = int(example["clip_index"]), frame_numbers_of_shifted(example)
        height, width = SIZE
        matches = []
        for dy in range(-8, 9):
            for dx in range(-12, 13):
                expected = np.full((4, *SIZE, 3), 128, np.uint8)
                for out, t in zip(expected, numbers):
                    source = paint("train", index, t)[
                        max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)
                    ]
                    out[max(-dy, 0) :][: source.shape[0], max(-dx, 0) :][:, : source.shape[1]] = (
                        source
                    )
                if (expected == example["frames"]).all():
                    matches.append((dy, dx))
        (offset,) = matches
        assert offset[0] % 2 == 0 and offset[1] % 2 == 0
        seen.add(offset)
        # A block that lost its centre is painted but not in the truth.
        assert_boxes_match_pixels(example, complete=False)
    assert len(seen) > 20
    assert {np.sign(dy) for dy, _ in seen} == {np.sign(dx) for _, dx in seen} == {-1, 0, 1}


def frame_numbers_of_shifted(example):
    """Like `frame_numbers`, where grey padding may be the most frequent value."""
    numbers = []
    for frame in example["frames"]:
        counts = np.bincount(frame[(frame == frame[..., :1]).all(axis=-1)][:, 0], minlength=256)
        counts[128] = 0
        numbers.append(int(counts.argmax()) - 20)
    return numbers


def test_an_object_goes_when_its_centre_leaves():
    window = {
        "frames": tf.zeros((1, 10, 20, 3), tf.uint8),
        "boxes": tf.constant([[[0.2, 0.0, 0.6, 0.2], [0.2, 0.5, 0.6, 0.9], [0.0, 0.0, 0.0, 0.0]]]),
        "classes": tf.constant([[2, 3, 0]]),
        "tracks": tf.constant([[5, 6, -1]]),
    }
    # Two pixels right of 20: the first box was 0..4, centre exactly on the new border; it stays.
    moved = augmentation.shifted(window, tf.constant([0, 2]))
    np.testing.assert_allclose(
        moved["boxes"][0], [[0.2, 0, 0.6, 0.1], [0.2, 0.4, 0.6, 0.8], [0, 0, 0, 0]], atol=1e-6
    )
    assert moved["classes"].numpy().tolist() == [[2, 3, 0]]
    moved = augmentation.shifted(window, tf.constant([-6, 4]))
    # Down by 6 of 10: boxes 8..12, of which 8..10 show; their centre, 10, is on the border.
    # Four to the right: the first one's centre, at -2, is out.
    np.testing.assert_allclose(
        moved["boxes"][0], [[0, 0, 0, 0], [0.8, 0.3, 1, 0.7], [0, 0, 0, 0]], atol=1e-6
    )
    assert moved["classes"].numpy().tolist() == [[0, 3, 0]]
    assert moved["tracks"].numpy().tolist() == [[-1, 6, -1]]


def test_crops_keep_boxes_on_the_pixels(folder):
    sides = []
    config = training(folder, random_crop=True, crop_min_scale=0.6)
    for example in examples(config, 60):
        # A crop to .6 and back scales pixel borders by 1.7 and blurs them by about one pixel.
        assert_boxes_match_pixels_roughly(example)
        there = example["classes"] > 0
        extents = (example["boxes"][..., 2:] - example["boxes"][..., :2])[there]
        sides.append(extents[:, 0].max(initial=0) * SIZE[0])
    assert max(sides) > 13  # Blocks are at most 10 px high; a zoom shows.


def assert_boxes_match_pixels_roughly(example):
    height, width = SIZE
    for frame, boxes, classes in zip(example["frames"], example["boxes"], example["classes"]):
        painted = boxes_by_pixels(frame)
        for box, class_id in zip(boxes[classes > 0], classes[classes > 0]):
            np.testing.assert_allclose(
                box * [height, width, height, width], painted[class_id], atol=1.7
            )


def test_a_crop_without_zoom_is_the_frame():
    rng = np.random.default_rng(0)
    window = {
        "frames": tf.constant(rng.integers(0, 256, (2, 10, 14, 3)), tf.uint8),
        "boxes": tf.constant([[[0.1, 0.2, 0.5, 0.6]]] * 2),
        "classes": tf.ones((2, 1), tf.int32),
        "tracks": tf.zeros((2, 1), tf.int32),
    }
    same = augmentation.cropped(window, tf.constant(1.0), tf.constant([0.99, 0.3]))
    np.testing.assert_array_equal(same["frames"], window["frames"])
    np.testing.assert_allclose(same["boxes"], window["boxes"], atol=1e-6)


def recolored_reference(frames, saturation, contrast, brightness):
    """Step by step: towards grey, away from the mean grey, and up."""
    values = frames.astype(np.float64)
    weights = np.array([0.299, 0.587, 0.114])
    mean_grey = (values.mean(axis=(0, 1, 2)) * weights).sum()
    grey = (values * weights).sum(axis=-1, keepdims=True)
    values = grey + saturation * (values - grey)
    values = mean_grey + contrast * (values - mean_grey)
    return np.clip(values + brightness, 0, 255)


def test_colours_change_alike_in_all_frames():
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (3, 7, 5, 3), np.uint8)
    for draws in rng.random((20, 3)).astype(np.float32):
        # Saturation .5..1.5, contrast .8..1.2, brightness -32..32.
        expected = recolored_reference(
            frames, 0.5 + draws[0], 0.8 + 0.4 * draws[1], -32 + 64 * draws[2]
        )
        changed = augmentation.recolored(tf.constant(frames), tf.constant(draws)).numpy()
        # Rounded to a grey level; .01 for float32 sums on values up to 255.
        np.testing.assert_allclose(changed, expected, atol=0.51)


def test_photometric_change_is_applied_once_a_window(folder):
    grounds = set()
    for example in examples(training(folder, photometric=True), 30):
        values = [np.median(frame.reshape(-1, 3), axis=0) for frame in example["frames"]]
        # The ground rises by one grey level a frame, times a contrast of .8 to 1.2, rounded.
        assert all(-1e-6 <= d <= 2 for d in np.diff(values, axis=0).ravel())
        grounds.add(float(values[0][0]))
    assert len(grounds) > 15


FULL = {
    "flip": True,
    "photometric": True,
    "max_stride": 2,
    "max_shift": 0.1,
    "random_crop": True,
    "crop_min_scale": 0.7,
    "time_reversal": True,
}


def test_a_resumed_stream_equals_the_uninterrupted_one(folder):
    config = training(folder, **FULL)
    # 11 clips in batches of 3: step 9 lies in the third epoch, across an epoch's border.
    whole = batches(config, 14)
    for start in (1, 4, 9):
        same_stream(batches(config, 14 - start, start_step=start), whole[start:])


def test_the_stream_is_a_function_of_its_own_seed(folder):
    config = training(folder, **FULL)
    first = batches(config, 3)
    tf.random.set_seed(99)
    same_stream(batches(config, 3), first)
    other = batches(training(folder, **{**FULL, "seed": 5}), 3)
    assert not all((a["frames"] == b["frames"]).all() for a, b in zip(first, other))


def test_every_epoch_shows_every_clip_once_in_its_own_order(folder):
    found = [int(example["clip_index"]) for example in examples(training(folder), 44)]
    epochs = [found[i : i + TRAIN_CLIPS] for i in range(0, 44, TRAIN_CLIPS)]
    assert all(sorted(epoch) == list(range(TRAIN_CLIPS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_augmentation_differs_between_epochs(folder):
    found = examples(training(folder), 55)
    windows = {}
    for example in found:
        windows.setdefault(int(example["clip_index"]), set()).add(frame_numbers(example)[0])
    # Five draws of nine starts: the same one each time has probability 9^-4 a clip.
    assert all(len(starts) > 1 for starts in windows.values())


def test_two_pipelines_together_give_what_one_gives(folder):
    config = training(folder, **FULL, global_batch_size=4)
    whole = batches(config, 5, start_step=2)
    same_stream(two_pipelines(config, 5, start_step=2), whole)
    contexts = [tf.distribute.InputContext(2, i, 2) for i in range(2)]
    found = [
        b["clip_index"].tolist()
        for c in contexts
        for b in batches(evaluating(folder, global_batch_size=4), -1, input_context=c)
    ]
    assert sorted(sum(found, [])) == list(range(TEST_CLIPS))


def test_the_last_step_of_several_replicas_is_filled_with_clips_without_frames(folder):
    context = tf.distribute.InputContext(1, 0, 2)
    found = batches(evaluating(folder, global_batch_size=4), -1, input_context=context)
    # Five clips, two for each of two replicas a step: two steps of two batches.
    assert [len(batch["frames"]) for batch in found] == [2, 2, 2, 2]
    joined = {k: np.concatenate([batch[k] for batch in found]) for k in found[0]}
    assert joined["clip_index"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    lengths = [length("test", i) for i in range(TEST_CLIPS)]
    assert joined["num_frames"].tolist() == lengths + [0, 0, 0]


def test_stored_frames_of_another_size_are_resized(folder):
    whole = batches(evaluating(folder, global_batch_size=1), 1)[0]
    small = batches(evaluating(folder, global_batch_size=1, image_size=(16, 24)), 1)[0]
    assert small["frames"].shape == (1, 8, 16, 24, 3)
    np.testing.assert_array_equal(small["boxes"], whole["boxes"])
    # Away from edges the flat blocks and ground keep their colours.
    np.testing.assert_array_equal(small["frames"][0, 0, 3, 3], paint("test", 0, 0)[7, 7])
    np.testing.assert_array_equal(small["frames"][0, 0, 14, 2], paint("test", 0, 0)[29, 5])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input_path": "nowhere"}, "nowhere does not exist; make a data set with: python -m"),
        ({"split": "val"}, "no split 'val'; it has test, train"),
        ({"unroll_frames": 13}, "unroll_frames 13 is not allowed: at most 12, the shortest clip"),
        ({"unroll_frames": 0}, "unroll_frames 0"),
        ({"max_objects": 1}, "max_objects 1 is not allowed: at least 2"),
        ({"max_stride": 0}, "max_stride 0"),
        ({"crop_min_scale": 1.5}, "crop_min_scale 1.5"),
        ({"seed": None}, "seed None"),
        ({"tfds_name": "coco"}, "tfds_name 'coco' is not allowed: empty"),
    ],
)
def test_wrong_settings_are_named(folder, change, message):
    with pytest.raises(ValueError, match=message):
        clips.clip_dataset(training(folder).replace(**change))


def test_a_split_without_objects_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    path = tmp_path / "set/dataset.json"
    told = json.loads(path.read_text())
    told["splits"]["test"]["statistics"]["objects"] = 0
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="split 'test' is not allowed: .*set has no object in it"):
        clips.clip_dataset(evaluating(path.parent))


def test_a_start_step_in_evaluation_is_refused(folder):
    with pytest.raises(ValueError, match="start_step 3 is not allowed"):
        clips.clip_dataset(evaluating(folder), start_step=3)


def test_damaged_record_headers_are_found(folder, tmp_path):
    copy = tmp_path / "set"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    shard = copy / "train-00001-of-00003.tfrecord"
    data = bytearray(shard.read_bytes())
    data[0] ^= 0x10
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="train-00001-of-00003.tfrecord is damaged at record"):
        clips.clip_dataset(training(copy))


def test_the_configuration_goes_through_yaml(folder, tmp_path):
    from official.modeling import hyperparams

    config = training(folder, max_shift=0.1)
    path = tmp_path / "params.yaml"
    hyperparams.save_params_dict_to_yaml(config, str(path))
    again = hyperparams.override_params_dict(ClipConfig(), str(path), is_strict=True)
    assert again.as_dict().keys() == config.as_dict().keys()
    same_stream(batches(again, 1), batches(config, 1))
    with pytest.raises(KeyError, match="max_strides"):
        ClipConfig().override({"max_strides": 3})
