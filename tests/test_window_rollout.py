"""Modes of Patchwork's evaluation: what is run, what is shown, and what it costs."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_patchwork

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.errors import UserError
from memvid_tf.evaluation import mask_scoring, window_rollout
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows, PlainNetwork
from memvid_tf.evaluation.ensemble import Ensemble
from memvid_tf.evaluation.window_rollout import Costs, WindowMode, parse_mode, roll
from memvid_tf.runtime.attention import next_history
from memvid_tf.windows import Windows


class Counting:
    """Predicts the number of the frame and remembers what it was asked for."""

    windows, decay, anchors, costs = Windows(4, 2), 0.5, None, Costs(100, 30, 2)

    def __init__(self):
        self.tape = []

    def _predicted(self, frames):
        return {"mask_logits": frames[:, :1, :1, :1].astype(np.float32)}

    def first(self, frames):
        self.tape.append("first")
        return self._predicted(frames), 0

    def step(self, frames, actions, state, context):
        self.tape.append((actions.tolist(), context))
        return self._predicted(frames), state + 1

    def q_values(self, state, history):
        """Wants the window that was looked at longest ago; the last of equals, to be asymmetric."""
        return -history + np.arange(9) * 1e-6


def numbered(length, batch=2):
    frames = np.zeros([batch, length, 4, 6, 3], np.uint8)
    frames[:] = np.arange(length)[None, :, None, None, None]
    return frames


def shown(word, length=7):
    network = Counting()
    rolled = roll(network, numbered(length), parse_mode(word))
    return network, rolled, rolled.predictions["mask_logits"][0, :, 0, 0, 0].tolist()


def test_scanning_takes_turns_after_a_full_frame():
    network, rolled, frames = shown("scanning", 12)
    assert network.tape[0] == "first" and frames == list(range(12))
    assert rolled.actions[0].tolist() == [-1, *range(9), 0, 1]
    assert network.tape[1:] == [([a, a], True) for a in rolled.actions[0, 1:].tolist()]
    assert shown("full")[0].tape == ["first"] * 7
    assert not any(context for _, context in shown("scanning+nocell")[0].tape[1:])


def test_attention_is_asked_with_its_own_history():
    _, rolled, _ = shown("dqn", 12)
    history, expected = np.zeros([1, 9], np.float32), []
    for _ in range(11):
        expected.append(int(Counting().q_values(0, history).argmax()))
        history = next_history(history, np.array([expected[-1]]), 0.5)
    assert rolled.actions[0].tolist() == [-1, *expected]
    assert sorted(expected[:9]) == list(range(9))


def test_random_clips_differ():
    _, rolled, _ = shown("random", 40)
    assert np.any(rolled.actions[0] != rolled.actions[1])
    assert set(rolled.actions[0, 1:]) == set(range(9))


def test_random_windows_are_of_the_clip_and_not_of_the_batch():
    def actions(batch, first):
        mode = parse_mode("random")
        return roll(Counting(), numbered(30, batch), mode, first_clip=first).actions.tolist()

    assert actions(4, 0) == actions(2, 0) + actions(2, 2)
    assert len({tuple(clip) for clip in actions(4, 0)}) == 4


def test_keyframes_are_shown_until_the_next_and_late():
    assert shown("full+interval3")[2] == [0, 0, 0, 3, 3, 3, 6]
    late = shown("full+interval3+delay2")[2]
    assert late[:2] == [-50, -50] and late[2:] == [0, 0, 0, 3, 3]
    assert shown("scanning+interval2")[1].actions[0].tolist() == [-1, -1, 0, -1, 1, -1, 2]


def test_latency_is_that_of_the_paper():
    costs = Counting.costs
    assert parse_mode("full").latency(costs) == (100, 100)
    assert parse_mode("full+flip").latency(costs) == (200, 200)
    assert parse_mode("full+interval4").latency(costs) == (100, 25)
    assert parse_mode("full+interval4+delay3").latency(costs) == (25, 25)
    assert parse_mode("full+interval4+delay1").latency(costs) == (50, 25)
    assert parse_mode("full+delay3").latency(costs) == (100, 100)
    assert parse_mode("scanning").latency(costs) == (30, 30)
    assert parse_mode("dqn+flip").latency(costs) == (64, 64)
    assert parse_mode("full").latency(Costs(window=3)) == (None, None)


@pytest.mark.parametrize("word", ["full", "dqn+nocell+flip", "random+interval4+delay3"])
def test_names_are_what_is_read(word):
    assert parse_mode(word).name == word


@pytest.mark.parametrize(
    "word, message",
    [
        ("f0", "'f0' is not one of full, scanning, random, dqn"),
        ("full+fast", "'fast' is not one of nocell, flip"),
        ("full+nocell", "no context to leave out"),
        ("dqn+flip+flip", "comes twice"),
        ("full+interval0", "'interval0' is not one"),
    ],
)
def test_other_words_are_refused(word, message):
    with pytest.raises(UserError, match=message):
        parse_mode(word)


def test_modes_that_a_network_cannot_run():
    plain = Counting()
    plain.windows = None
    with pytest.raises(UserError, match="has no windows, only 'full'"):
        roll(plain, numbered(3), WindowMode("scanning"))
    dumb = Counting()
    dumb.decay = None
    with pytest.raises(UserError, match="needs an attention network"):
        roll(dumb, numbered(3), WindowMode("dqn"))


def video(kind, batch=1):
    frames = tf.stack([tiny_patchwork.images(kind, t, batch) for t in range(3)], 1)
    return np.rint((frames.numpy() + 1) * 128).astype(np.uint8)


def test_mirrored_windows_and_anchors_of_a_network():
    actions = np.array([0, 1, 2, 3, 5])
    assert window_rollout.mirrored_actions(actions, Windows(4, 2)).tolist() == [2, 1, 0, 5, 3]
    anchors = tiny_patchwork.network("detector", 0).anchors
    order = window_rollout.mirrored_anchors(anchors)
    np.testing.assert_allclose(anchors[order][:, 1], 1 - anchors[:, 1], atol=1e-6)
    np.testing.assert_allclose(anchors[order][:, [0, 2, 3]], anchors[:, [0, 2, 3]], atol=1e-6)


def test_mirror_images_of_anchors():
    anchors = np.array(
        [[0.5, 0.2, 0.1, 0.3], [0.5, 0.8, 0.1, 0.3], [0.5, 0.5, 0.2, 0.1], [0.1, 0.5, 0.2, 0.1]],
        np.float32,
    )
    assert window_rollout.mirrored_anchors(anchors).tolist() == [1, 0, 2, 3]
    boxes = {
        "box_encodings": np.arange(16, dtype=np.float32).reshape(1, 4, 4),
        "class_logits": np.arange(8, dtype=np.float32).reshape(1, 4, 2),
    }
    found = window_rollout.unmirrored(boxes, anchors)
    assert found["box_encodings"][0, 0].tolist() == [4, -5, 6, 7]
    assert found["class_logits"][0, :, 0].tolist() == [2, 0, 4, 6]
    with pytest.raises(ValueError, match="no mirror image"):
        window_rollout.mirrored_anchors(anchors[1:])


def test_flip_averages_with_the_mirrored_frame():
    class Left(Counting):
        def _predicted(self, frames):
            return {"mask_logits": frames[..., :1].astype(np.float32)}

    frames = np.random.default_rng(0).integers(0, 256, [2, 3, 4, 6, 3], np.uint8)
    plain, flipped = (roll(Left(), frames, parse_mode(w)) for w in ("scanning", "scanning+flip"))
    # What is predicted of a pixel does not depend on where it is.
    np.testing.assert_allclose(flipped.predictions["mask_logits"], plain.predictions["mask_logits"])
    network = Left()
    roll(network, frames, parse_mode("scanning+flip"))
    assert [actions[0] for actions, _ in network.tape[2:]] == [0, 2, 1, 1]


def test_an_ensemble_averages_and_costs_the_sum():
    frames = video("segmenter")
    models = [tiny_patchwork.patchwork("segmenter", seed, 2, 1) for seed in (1, 2)]
    networks = [CheckpointWindows(model) for model in models]
    both = Ensemble(networks)
    single = [roll(n, frames, parse_mode("scanning")).predictions for n in networks]
    found = roll(both, frames, parse_mode("scanning")).predictions
    expected = (single[0]["mask_logits"] + single[1]["mask_logits"]) / 2
    np.testing.assert_allclose(found["mask_logits"], expected, rtol=1e-5, atol=1e-6)
    assert both.costs.window == 2 * networks[0].costs.window
    other = CheckpointWindows(tiny_patchwork.patchwork("segmenter", 1, 4, 2))
    with pytest.raises(UserError, match="wanted the same"):
        Ensemble([networks[0], other])


def test_the_plain_network_is_the_full_mode():
    model = tiny_patchwork.patchwork("segmenter", 3, 2, 1)
    plain, windowed = PlainNetwork(model.network), CheckpointWindows(model)
    frames = video("segmenter", 2)
    a, b = (roll(n, frames, parse_mode("full")).predictions for n in (plain, windowed))
    # Sums of another order: SAME padding in one graph, zeros around the map in the other.
    np.testing.assert_allclose(a["mask_logits"], b["mask_logits"], rtol=1e-4, atol=1e-4)
    assert plain.costs.full == windowed.costs.full > windowed.costs.window > 0


def test_masks_are_scored_at_the_size_of_the_frames():
    truth = np.zeros([3, 8, 8, 1], np.uint8)
    truth[:2, :, :4] = 1
    logits = np.full([3, 2, 2, 1], -1.0, np.float32)
    logits[:2, :, 0] = 1.0
    clip = {"masks": truth, "num_frames": np.int32(2)}
    scores = mask_scoring.MaskScores()
    found = scores.add_clip(clip, logits)
    assert len(found) == 2 and found[0].shape == (8, 8)
    scores.add_clip({**clip, "masks": np.zeros_like(truth)}, logits)  # shows nothing
    assert scores.result().j.mean == 1.0 and len(scores.result().sequences) == 1
    with pytest.raises(ValueError, match="none of 0 clips"):
        mask_scoring.MaskScores().result()
