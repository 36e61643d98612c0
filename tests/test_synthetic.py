"""The synthetic videos: seeded, true to their ground truth, textured at full resolution only."""

import dataclasses

import cv2
import numpy as np
import pytest

from memvid_tf.data import records, sharding, synthetic
from memvid_tf.data.synthetic import SyntheticConfig
from memvid_tf.evaluation import vid_map

TINY = synthetic.PRESETS["tiny"]


def half(frame):
    """What f1 sees: the 2x2 box mean of [H, W, 3], not rounded."""
    height, width, channels = frame.shape
    return frame.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))


def retextured(config, index, texture):
    """Frame 0 of a clip whose objects all carry one texture; everything else is equal."""
    frames, owners, tracks = synthetic.render_clip(config, "train", index)
    tracks = [
        dataclasses.replace(track, class_id=2 * texture + 1 + (track.class_id - 1) % 2)
        for track in tracks
    ]
    owner = np.zeros_like(owners[0])
    image = synthetic._draw(frames[0].astype(np.float32), tracks, 0, owner)
    np.testing.assert_array_equal(owner, owners[0])
    return np.rint(image).astype(np.uint8), owner, tracks


def test_a_clip_is_a_function_of_seed_split_and_index():
    clip = synthetic.make_clip(TINY, "train", 3)
    synthetic.make_clip(TINY, "train", 2)
    assert synthetic.make_clip(TINY, "train", 3).images == clip.images
    others = [
        synthetic.make_clip(TINY, "train", 4),
        synthetic.make_clip(TINY, "test", 3),
        synthetic.make_clip(dataclasses.replace(TINY, seed=1), "train", 3),
    ]
    for other in others:
        assert other.images[0] != clip.images[0]


@pytest.mark.slow
def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path):
    infos = [
        sharding.write_dataset(tmp_path / str(workers), synthetic.plan(TINY), workers)[0]
        for workers in (0, 1, 2)
    ]
    hashes = [
        [shard.sha256 for split in info.splits.values() for shard in split.shards] for info in infos
    ]
    assert hashes[0] == hashes[1] == hashes[2]


@pytest.mark.parametrize("index", range(6))
def test_textures_vanish_at_half_resolution_and_nowhere_else(index):
    config = SyntheticConfig(noise=0.0)
    plain, owner, _ = retextured(config, index, 0)
    interior = cv2.erode((owner > 0).astype(np.uint8), np.ones((5, 5))) > 0
    # Neighbours of one object only: where two meet, each keeps a plain border.
    alone = cv2.erode(owner, np.ones((5, 5))) == cv2.dilate(owner, np.ones((5, 5)))
    for texture in range(1, len(synthetic.TEXTURES)):
        image, _, _ = retextured(config, index, texture)
        # Exactly: even at borders and where objects overlap, f1 sees the same frame.
        np.testing.assert_array_equal(half(image), half(plain))
        change = np.abs(image.astype(int) - plain)[interior & alone]
        # The lines are half the base colour up or down, and a base colour is at least 70.
        assert change.min() >= 35


def test_textures_survive_storage():
    """A stored and decoded object correlates with its own texture and with no other."""
    config = SyntheticConfig()
    y, x = np.mgrid[: config.image_size, : config.image_size]
    waves = {name: synthetic._texture(name, y, x) * 1.0 for name in synthetic.TEXTURES[1:]}
    seen = set()
    for index in range(12):
        clip = synthetic.make_clip(config, "test", index)
        image = cv2.imdecode(np.frombuffer(clip.images[5], np.uint8), cv2.IMREAD_COLOR)
        grey = image.astype(float).mean(axis=2)
        if not clip.masks[5]:
            continue
        mask = cv2.imdecode(np.frombuffer(clip.masks[5], np.uint8), cv2.IMREAD_GRAYSCALE)
        for number, class_id in enumerate(clip.classes[5]):
            inside = cv2.erode((mask == number + 1).astype(np.uint8), np.ones((3, 3))) > 0
            if inside.sum() < 60:
                continue
            level = grey[inside] - grey[inside].mean()
            amplitude = {name: abs((level * wave[inside]).mean()) for name, wave in waves.items()}
            own = synthetic.TEXTURES[(class_id - 1) // 2]
            # Lines of half a base colour of 70..160 have an amplitude of at least 35 where they
            # are drawn; a mean over few pixels leaves other waves below 15.
            for name, value in amplitude.items():
                assert value > 25 if name == own else value < 15, (index, number, own, amplitude)
            seen.add(own)
    assert seen == set(synthetic.TEXTURES)


def test_truth_is_what_shows():
    config = SyntheticConfig(min_objects=4, test_clip_frames=30)
    hidden = 0
    for index in range(8):
        _, owners, tracks = synthetic.render_clip(config, "test", index)
        clip = synthetic.make_clip(config, "test", index)
        for t, owner in enumerate(owners):
            expected = {}
            for i, track in enumerate(tracks):
                ys, xs = np.nonzero(owner == i + 1)
                side = int(track.side[t])
                area = side**2
                if (track.class_id - 1) % 2:
                    area = sum(
                        (r + 0.5 - side / 2) ** 2 + (c + 0.5 - side / 2) ** 2 < (side / 2) ** 2
                        for r in range(side)
                        for c in range(side)
                    )
                if len(ys) < 0.25 * area:
                    hidden += 1
                    continue
                expected[i] = np.array([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]) / 96
            assert clip.tracks[t].tolist() == sorted(expected)
            # Stored as float32.
            np.testing.assert_allclose(
                clip.boxes[t], np.array(list(expected.values())).reshape(-1, 4), rtol=1e-6
            )
            assert clip.classes[t].tolist() == [tracks[i].class_id for i in expected]
            if expected:
                mask = cv2.imdecode(np.frombuffer(clip.masks[t], np.uint8), cv2.IMREAD_GRAYSCALE)
                for number, i in enumerate(expected):
                    np.testing.assert_array_equal(mask == number + 1, owner == i + 1)
            else:
                assert clip.masks[t] == b""
    assert hidden > 0


def test_motion_looks_like_real_video():
    # 38.7 / 35.5 / 25.9 % on ImageNet VID. The tracks of 100 clips scatter by some 3 % around the
    # configuration's own split, so 6 % tells it from a wrong speed, not from luck.
    config = SyntheticConfig()
    speeds, tracks, crossing = [], 0, 0
    for index in range(config.test_clips):
        _, owners, clip_tracks = synthetic.render_clip(config, "test", index)
        truths = [synthetic.frame_truth(owner, clip_tracks, t) for t, owner in enumerate(owners)]
        speeds.append(
            vid_map.motion_speed(
                np.concatenate(
                    vid_map.motion_iou(
                        [boxes for boxes, _, _ in truths], [ids for _, ids, _ in truths]
                    )
                )
            )
        )
        for track in clip_tracks:
            ends = track.corner[[0, -1]] + track.side[[0, -1], None] / 2
            crossing += bool(((ends < 0) | (ends > config.image_size)).any())
            tracks += 1
    speeds = np.concatenate(speeds)
    split = [(speeds == s).sum() / (speeds >= 0).sum() for s in range(3)]
    np.testing.assert_allclose(split, [0.387, 0.355, 0.259], atol=0.06)
    # A binomial of 250 tracks around .15 has a standard deviation of .023.
    assert abs(crossing / tracks - config.crossing) < 0.07


def test_the_stored_statistics_agree_with_the_clips(tmp_path):
    info, _ = sharding.write_dataset(tmp_path / "set", synthetic.plan(TINY), workers=0)
    for name, split in info.splits.items():
        clips = [synthetic.make_clip(TINY, name, i) for i in range(split.clips)]
        objects = sum(len(classes) for clip in clips for classes in clip.classes)
        assert split.statistics["objects"] == objects
        assert split.statistics["objects_per_frame"] == pytest.approx(
            objects / split.frames, abs=1e-4
        )
        assert sum(split.statistics["frames_by_object_count"]) == split.frames
        assert sum(split.statistics["motion_split"].values()) == pytest.approx(1, abs=2e-4)
        stored = list(records.read_clips(info, name))
        assert [clip.images for clip in stored] == [clip.images for clip in clips]


def test_everything_scales_with_the_frame():
    small, large = SyntheticConfig(), dataclasses.replace(SyntheticConfig(), image_size=320)
    for index in range(3):
        _, _, a = synthetic.render_clip(small, "test", index)
        frames, _, b = synthetic.render_clip(large, "test", index)
        assert frames.shape == (40, 320, 320, 3)
        # The same draws: the same objects at 320 / 96 of the size, rounded to pixels.
        assert [track.class_id for track in a] == [track.class_id for track in b]
        for one, other in zip(a, b):
            np.testing.assert_allclose(other.side / one.side, 320 / 96, rtol=0.05)


def test_presets_and_labels():
    assert synthetic.PRESETS["demo"].labels[:3] == [
        "plain_square",
        "plain_disk",
        "horizontal_square",
    ]
    assert len(SyntheticConfig(num_classes=4).labels) == 4
    clip = synthetic.make_clip(dataclasses.replace(TINY, num_classes=2), "train", 0)
    assert max(max(classes, default=1) for classes in clip.classes) <= 2


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("image_size", 97, "an even number"),
        ("num_classes", 3, "2, 4, 6 or 8"),
        ("seed", -1, "0..2"),
        ("train_clips", 0, "at least 1"),
        ("min_side", 0.01, "8 px"),
        ("max_objects", 0, "1..20"),
        ("noise", 9.0, "saturate"),
    ],
)
def test_wrong_settings_are_named(field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} {value} .*{allowed}"):
        SyntheticConfig(**{field: value})


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'val' is not one of train, test"):
        synthetic.render_clip(TINY, "val", 0)
