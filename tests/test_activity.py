"""Eventful clips: when something happens in them, and that nothing changes without."""

import dataclasses
import hashlib

import numpy as np
import pytest

from memvid_tf.data import activity, motion, records, sharding, synthetic
from memvid_tf.data.activity import Activity, EventConfig
from memvid_tf.evaluation import vid_map

EVENTFUL = synthetic.PRESETS["eventful"]
SMALL = dataclasses.replace(
    EVENTFUL, train_clips=3, test_clips=2, train_clip_frames=30, test_clip_frames=40
)


def test_clips_without_events_are_what_they_were():
    # Of the version before there were events: whoever has the set need not make it again.
    digest = hashlib.sha256()
    config = synthetic.PRESETS["tiny"]
    for index in range(8):
        _, owners, tracks = synthetic.render_clip(config, "train", index)
        digest.update(owners.tobytes())
        for track in tracks:
            digest.update(np.concatenate([track.corner.ravel(), track.side, track.color]).tobytes())
    assert digest.hexdigest()[:16] == "935c25e556b7f16b"
    assert "events" not in synthetic.plan(config).config


def test_scenes_divide_the_clip_and_hold_its_bursts():
    config, bursts, cuts = EventConfig(), 0, 0
    for seed in range(200):
        found = activity.scenes(config, 60, np.random.default_rng(seed))
        assert sum(len(scene.pace) for scene in found) == 60
        cuts += len(found) - 1
        for scene in found:
            assert len(scene.pace) == len(scene.pan) >= activity.MIN_SCENE_FRAMES
            assert set(scene.pace) <= {config.calm_pace, config.burst_pace}
            assert (scene.pan[scene.pace == config.calm_pace] == 0).all()
            for begin, end in scene.bursts:
                assert activity.MIN_BURST_FRAMES <= end - begin <= config.max_burst_frames
                assert begin >= 1 and end <= len(scene.pace)
                assert (scene.pace[begin:end] == config.burst_pace).all()
            bursts += len(scene.bursts)
    # 200 clips hold some 500 events; a quarter are cuts, of which those near another are left out.
    assert 350 < cuts + bursts < 650 and 0.14 < cuts / (cuts + bursts) < 0.25


def test_clips_differ_in_how_much_happens():
    def counts(sigma):
        config = EventConfig(liveliness_sigma=sigma, cut_share=0.0)
        return np.array(
            [
                len(activity.scenes(config, 60, np.random.default_rng(seed))[0].bursts)
                for seed in range(300)
            ]
        )

    assert counts(1.0).std() > 1.3 * counts(0.0).std()
    assert (counts(1.0) == 0).mean() > 0.1


def test_time_backwards():
    rng = np.random.default_rng(0)
    scene = Activity(rng.uniform(0.1, 3, 12), rng.normal(size=(12, 2)), [(2, 5), (9, 12)])
    back = scene.reversed()
    # Where things are on every frame: the sum of the ways to it.
    place, place_back = (np.cumsum(s.pace[1:]) for s in (scene, back))
    np.testing.assert_allclose(place[-1] - place[::-1][1:], place_back[:-1])
    for begin, end in back.bursts:
        np.testing.assert_array_equal(
            back.pace[begin:end], scene.pace[12 - end + 1 : 12 - begin + 1][::-1]
        )
    assert back.bursts == [(1, 4), (8, 11)]
    np.testing.assert_array_equal(back.pan[1:], -scene.pan[:0:-1])
    assert activity.even(5).reversed().bursts is None


def test_objects_enter_in_a_burst_and_are_in_when_it_ends():
    pace = np.full(40, 0.3)
    pace[20:26] = 3.0
    scene = Activity(pace, np.zeros((40, 2)), [(20, 26)])
    for seed in range(20):
        path = motion.enter(
            96, 20.0, 0.5, np.zeros(40), np.zeros((40, 2)), scene, np.random.default_rng(seed)
        )
        outside = ((path < -10) | (path > 106)).any(1)
        # It touches the border where the burst begins, a rounding error inside or outside.
        assert outside[:19].all() and not outside[20:].any()
        inside = ((path >= 0) & (path <= 96)).all(1)
        assert not inside[:20].any() and inside[26:].all()


def test_a_cut_replaces_everything():
    config = dataclasses.replace(
        SMALL, events=EventConfig(quiet_frames=12.0, cut_share=1.0, liveliness_sigma=0.0)
    )
    frames, owners, tracks = synthetic.render_clip(config, "test", 0)
    assert frames.shape == (40, 96, 96, 3) and owners.max() <= len(tracks)
    truths = [synthetic.frame_truth(owner, tracks, t) for t, owner in enumerate(owners)]
    ids = [set(here.tolist()) for _, here, _ in truths]
    cuts = [t for t in range(1, 40) if ids[t] and ids[t - 1] and not ids[t] & ids[t - 1]]
    assert cuts
    change = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert min(change[t - 1] for t in cuts) > 2 * np.median(change)


@pytest.mark.slow
def test_motion_is_still_that_of_real_video():
    # As the test of clips without events; half as many clips of twice the frames.
    speeds = []
    for index in range(50):
        _, owners, tracks = synthetic.render_clip(EVENTFUL, "test", index)
        truths = [synthetic.frame_truth(owner, tracks, t) for t, owner in enumerate(owners)]
        motions = vid_map.motion_iou([b for b, _, _ in truths], [ids for _, ids, _ in truths])
        speeds.append(vid_map.motion_speed(np.concatenate(motions)))
    speeds = np.concatenate(speeds)
    split = [(speeds == s).sum() / (speeds >= 0).sum() for s in range(3)]
    np.testing.assert_allclose(split, [0.387, 0.355, 0.259], atol=0.07)


def test_the_set_says_how_eventful_it_is(tmp_path):
    plan = synthetic.plan(SMALL)
    info, found = sharding.write_dataset(tmp_path / "set", plan, workers=0)
    assert not found and info.config["events"]["burst_pace"] == EventConfig().burst_pace
    assert sharding.write_dataset(tmp_path / "set", plan, workers=0)[1]
    calmer = dataclasses.replace(SMALL, events=EventConfig(calm_pace=0.2))
    with pytest.raises(records.DatasetError, match="events.calm_pace is 0.35"):
        sharding.write_dataset(tmp_path / "set", synthetic.plan(calmer), workers=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("quiet_frames", 0.5), ("calm_pace", 0.0), ("burst_pace", 0.5), ("min_burst_frames", 2),
     ("max_burst_frames", 1), ("cut_share", 1.5), ("pan_speed", 0.2)],
)  # fmt: skip
def test_wrong_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"events.{field} {value} is not allowed"):
        EventConfig(**{field: value})


def test_too_many_objects_for_the_mask():
    with pytest.raises(ValueError, match="max_objects 20 is not allowed"):
        dataclasses.replace(EVENTFUL, max_objects=20)
