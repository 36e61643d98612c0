"""Whole videos in evaluation: pieces joined, the state carried, what was scored counted; the least
score of a detection; chance that differs from clip to clip."""

import numpy as np
import pytest

from memvid_tf.evaluation import rollout, scoring
from memvid_tf.evaluation.vid_map import VidMap
from memvid_tf.evaluation.whole_videos import Coverage, whole_videos
from memvid_tf.runtime.manifest import BoxCoder

CODER = BoxCoder(10, 10, 5, 5)
T = 4  # frames of a stored piece, at most


def piece(clip_id, frames, room=T):
    """A stored clip with room for some frames, which show numbers; one object of two stands."""
    clip = {
        "frames": np.zeros([room, 4, 6, 3], np.uint8),
        "boxes": np.zeros([room, 2, 4], np.float32),
        "classes": np.zeros([room, 2], np.int32),
        "tracks": np.full([room, 2], -1, np.int32),
        "num_frames": np.int32(len(frames)),
        "source_size": np.array([40, 60], np.int32),
        "clip_id": clip_id.encode(),
    }
    for t, number in enumerate(frames):
        clip["frames"][t] = number
        clip["boxes"][t, 0] = [0.2, 0.2, 0.6, 0.6]
        clip["classes"][t, 0], clip["tracks"][t, 0] = 1, 7
    return clip


def batches(pieces, size):
    for i in range(0, len(pieces), size):
        some = pieces[i : i + size]
        yield {name: np.stack([clip[name] for clip in some]) for name in some[0]}


SET = [
    piece("set-a:00000", [0, 1, 2, 3]), piece("set-a:00004", [4, 5, 6, 7]),
    piece("set-a:00008", [8]), piece("set-b:00000", [20, 21]),
    piece("set-c:00003", [30, 31, 32, 33]), piece("set-c:00007", [34]),
    piece("set-c:00009", [36, 37]),
]  # fmt: skip
WHOLE = [list(range(9)), [20, 21], [30, 31, 32, 33, 34], [36, 37]]


def numbers(batch):
    return [
        clip[:count, 0, 0, 0].tolist() for clip, count in zip(batch["frames"], batch["num_frames"])
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_are_joined_where_they_follow_one_another(size):
    """Whatever the batches; a piece behind a gap is a video of its own."""
    coverage, done = Coverage(), []
    found = list(whole_videos(batches(SET, size), coverage, advance=done.append))
    assert [video for batch in found for video in numbers(batch)] == WHOLE
    assert sum(done) == len(SET)
    assert coverage == Coverage(videos=4, frames=18, all_frames=18)
    assert coverage.text() == "scored: all 18 frames of 4 videos"
    for batch in found:
        assert batch["boxes"].shape == (*batch["frames"].shape[:2], 2, 4)
        assert (batch["tracks"][:, :, 0] == 7).all() and batch["source_size"].tolist() == [[40, 60]]


def test_clips_that_are_no_pieces_stay_in_their_batches():
    clips = [piece("one", [1, 2, 3]), piece("two", [4]), piece("three", [5, 6])]
    coverage = Coverage()
    found = list(whole_videos(batches(clips, 2), coverage))
    assert [numbers(batch) for batch in found] == [[[1, 2, 3], [4]], [[5, 6]]]
    assert coverage == Coverage(videos=3, frames=6, all_frames=6)


def test_a_bound_on_frames_is_of_whole_videos_and_is_told():
    coverage = Coverage()
    found = list(whole_videos(batches(SET, 3), coverage, max_frames=5))
    assert [video for batch in found for video in numbers(batch)] == [v[:5] for v in WHOLE]
    assert all(batch["classes"].shape[1] <= 5 for batch in found)
    assert coverage == Coverage(videos=4, frames=14, all_frames=18)
    assert coverage.text() == "scored: 14 of the 18 frames of 4 videos"


class Faint:
    """The object of a frame, with a logit that the memory and the frame decide; records nothing."""

    policy = None
    f1_only_reads = False
    anchors = np.array([[0.4, 0.4, 0.4, 0.4], [0.7, 0.7, 0.3, 0.3]], np.float32)

    def extract(self, frames, extractor):
        return {"f0": 0.11, "f1": -0.07}[extractor] * frames.astype(np.float64).mean((1, 2, 3))

    def initial_state(self, batch):
        return np.zeros(batch)

    def step(self, features, state, extractor):
        seen = np.sin(features + 3 * state)
        logits = np.stack([0 * seen, seen, -seen, 0.5 * seen], -1).reshape(-1, 2, 2)
        boxes = np.zeros([len(state), 2, 4], np.float32)
        return boxes, logits.astype(np.float32), 0.4 * state + seen

    def choose(self, first, a, b):
        return np.where(first, a, b)


MODES = [rollout.parse_mode(word) for word in ("f0", "2", "async2+delay3", "random40", "1+update")]


def by_mode(found):
    return {name: result.to_json() for name, result in found.items()}


def test_the_state_is_carried_from_piece_to_piece():
    """Scores of pieces are those of the same video stored whole, in every mode."""
    stored = whole_videos(batches(SET[:3], 2), Coverage())
    found = by_mode(scoring.evaluate(Faint(), stored, MODES, ["thing"], CODER))
    whole = [piece("a", range(9), room=9)]
    wanted = by_mode(scoring.evaluate(Faint(), batches(whole, 1), MODES, ["thing"], CODER))
    apart = by_mode(scoring.evaluate(Faint(), batches(SET[:3], 1), MODES, ["thing"], CODER))
    assert found == wanted
    assert found["2"]["counts"]["clips"] == 1 and found["2"]["counts"]["frames"] == 9
    assert found["2"]["f0_share"] == 3 / 9 and apart["2"]["f0_share"] == 5 / 9
    assert found["async2+delay3"]["delay_frames"] == 3 and "delay_frames" not in found["2"]
    # Apart, each piece begins with f0 and an empty memory.
    differs = ("async2+delay3", "random40", "1+update")
    assert all(found[name]["mean_ap"] != apart[name]["mean_ap"] for name in differs)


def test_evaluation_frame_by_frame_is_the_rollout():
    """All modes together, with features that are forgotten, as each alone with all of them."""
    clips = [piece("x", [3, 60, 9, 120]), piece("y", [200, 7]), piece("z", [90, 31, 250])]
    [batch] = batches(clips, 3)
    found = scoring.evaluate(Faint(), [batch], MODES, ["thing"], CODER)
    features = rollout.extract_all(Faint(), batch["frames"])
    for mode in MODES:
        boxes, logits, _ = rollout.roll(Faint(), features, 3, mode)
        scores = VidMap(1, ["thing"])
        for i, clip in enumerate(clips):
            scoring.score_clip(scores, clip, boxes[i], logits[i], Faint.anchors, CODER)
        assert found[mode.name].mean_ap == scores.result().mean_ap
        assert found[mode.name].counts == scores.result().counts


def test_detections_are_scored_from_a_thousandth_on():
    """The field's least score: of three objects, seen at .01, .0011 and .0009, two count."""
    clip = piece("faint", [0, 1, 2])
    scores, probability = VidMap(1), np.array([0.01, 0.0011, 0.0009])
    logits = np.zeros([3, 2, 2])
    logits[:, :, 1] = -50.0
    logits[:, 0, 1] = np.log(probability / (1 - probability))
    scoring.score_clip(scores, clip, np.zeros([3, 2, 4]), logits, Faint.anchors, CODER)
    assert scores.result().counts["detections"] == 2
    assert scores.result().mean_ap == pytest.approx(2 / 3)


def test_chance_is_another_for_every_clip_and_the_same_for_every_batching():
    clips = [piece(f"clip {i}", [1, 2, 3, 4]) for i in range(40)]
    mode = rollout.parse_mode("random50")

    def f0_frames(size):
        found = scoring.evaluate(Faint(), batches(clips, size), [mode], ["thing"], CODER)
        return found["random50"].f0_frames

    assert f0_frames(1) == f0_frames(7) == f0_frames(40)
    # Eight patterns are possible after frame 0; forty clips show nearly all of them.
    assert len(set(f0_frames(1))) >= 6 and all(frames[0] == 0 for frames in f0_frames(1))
    later = [len(frames) - 1 for frames in f0_frames(1)]
    assert 0.4 < sum(later) / (3 * len(later)) < 0.6
