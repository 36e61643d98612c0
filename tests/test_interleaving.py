"""The environment: rewards, what f1 leaves alone, and η."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tiny_run

from memvid_tf.detection.loss import LossConfig, frame_loss
from memvid_tf.detection.matching import match
from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.models import interleaved
from memvid_tf.models.policy import PolicyConfig
from memvid_tf.rl.game import run_loop
from memvid_tf.rl.interleaving import InterleavingEnvironment, joined, rewards

CLIPS, FRAMES, GAMMA = 3, 7, 0.4
LOSSES = LossConfig(classification="focal", box_weight=0.5, match_threshold=0.4)
# Rows are clips, columns frames 1 to 6; 0 is f0.
ACTIONS = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1]], np.int32)


def test_rewards_by_hand():
    losses = np.array([[1.0, 3.0], [3.0, 1.0], [2.0, 2.0]])
    # f0 better by 2, worse by 2, equal; γ is for f1 alone.
    np.testing.assert_allclose(rewards(losses, 0.25), [[0, -1.75], [-2, 0.25], [0, 0.25]])
    np.testing.assert_allclose(rewards(losses, 0.0), [[0, -2], [-2, 0], [0, 0]])
    assert (rewards(losses, 0.0) <= 0).all()


@functools.cache
def detector():
    tiny_run.add_backbone()
    tf_keras.utils.set_random_seed(1)
    config = interleaved.InterleavedConfig()
    config.override(tiny_run.FLOAT["task"]["model"])
    return interleaved.build(config)


def clips():
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 0.5, (CLIPS, FRAMES, 2, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, low.shape)], -1)
    classes = rng.integers(0, 5, (CLIPS, FRAMES, 2))  # 0 is padding; some frames have nothing
    return {
        "frames": tiny_run.frames(FRAMES, CLIPS),
        "boxes": boxes.astype(np.float32),
        "classes": classes.astype(np.int32),
    }


@functools.cache
def environment(observes, gamma):
    policy = PolicyConfig(history=4, observes=observes)
    return InterleavingEnvironment(detector(), LOSSES, policy, gamma, 0.9)


@functools.cache
def play(observes, gamma):
    frames = iter(ACTIONS.T)
    game = environment(observes, gamma)
    game.load(game.watch(clips()))
    return list(run_loop(game, lambda _: next(frames)))


@functools.cache
def reference(clip):
    """One clip of one network, frame by frame, as Algorithm 1 says it.

    Returns:
      For every frame: losses of both extractors, and (c, h) after what either writes, and before.
    """
    data, model = {k: v[clip] for k, v in clips().items()}, detector()
    state, frames = model.initial_state(1), []
    for t, action in enumerate([0, *ACTIONS[clip]]):
        losses, written = [], []
        for extractor in ("f0", "f1"):
            image = model.preprocess(tf.constant(data["frames"][t][None]), extractor)
            output, after = model.step(model.extract(image, extractor), state, extractor)
            found = model.detect(output)
            targets = match(model.anchors, data["boxes"][t][None], data["classes"][t][None], 0.4)
            loss = frame_loss(found["box_encodings"], found["class_logits"], targets, LOSSES)
            per_anchor = loss.classification + 0.5 * loss.box
            losses.append(float(per_anchor[0] / max(float(loss.positives[0]), 1.0)))
            written.append(after)
        frames.append((np.array(losses), written, state))
        state = written[0] if action == 0 else state
    return frames


def levels(maps):
    return [np.rint(np.asarray(m[0]) * 255 / 6).astype(int) for m in maps]


@pytest.mark.parametrize("observes", ["memory", "candidate"])
def test_a_batch_of_clips_equals_each_of_them_by_the_definition(observes):
    played = play(observes, GAMMA)
    assert len(played) == FRAMES - 1
    for clip in range(CLIPS):
        (_, (shown, _), _), *expected = reference(clip)
        for frame, (losses, written, before) in enumerate(expected):
            action, transition = ACTIONS[clip, frame], played[frame].transitions[clip]
            # Batches of convolutions are summed in another order.
            np.testing.assert_allclose(played[frame].step.losses[clip], losses, rtol=1e-4)
            reward = losses.min() - losses[action] + (GAMMA if action == 1 else 0)
            np.testing.assert_allclose(transition.r_t, reward, atol=1e-4)
            assert transition.a_tm1 == action and transition.discount_t == 0.9
            earlier, shown = shown, written[action]
            if action == 1 and observes == "memory":
                assert earlier is before
                shown = before
            found = transition.s_t
            for name, wanted in zip(
                ("c", "h", "c_before", "h_before"), levels(shown) + levels(earlier)
            ):
                assert np.abs(getattr(found, name).astype(int) - wanted).max() <= 1, name


def test_footage_watched_once_plays_as_the_detector_runs(monkeypatch):
    """Clips put together from two batches, in another order, against the rollout of evaluation."""
    game, frames = environment("candidate", GAMMA), tiny_run.frames(FRAMES, CLIPS)
    parts = [{name: x[rows] for name, x in clips().items()} for rows in ([0, 1], [2])]
    footage = joined([game.watch(part) for part in parts])
    order = np.array([2, 0])
    game.load(footage.of(order))
    actions = iter(ACTIONS[order].T)
    played = list(run_loop(game, lambda _: next(actions)))

    network = CheckpointNetwork(detector())
    f0 = np.concatenate([np.ones((2, 1), bool), ACTIONS[order] == 0], 1)
    monkeypatch.setattr(rollout, "picker", lambda *_: Recorded(f0))
    features = rollout.extract_all(network, frames[order])
    rolled = rollout.roll(network, features, len(order), rollout.Mode(9))
    for row, clip in enumerate(order):
        data = {k: v[clip] for k, v in clips().items()}
        targets = match(detector().anchors, data["boxes"], data["classes"], 0.4)
        loss = frame_loss(rolled.box_encodings[row], rolled.class_logits[row], targets, LOSSES)
        wanted = loss.per_frame(0.5)[1:]
        found = [one.step.losses[row, one.step.actions[row]] for one in played]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


class Recorded:
    """Picks what it was told, as a `rollout` schedule."""

    wants_candidate = False

    def __init__(self, f0):
        self._f0 = f0

    def picks(self, t):
        return self._f0[:, t]

    def observe(self, f0_ran, after, before):
        """Nothing to learn."""


def test_f1_leaves_the_memory_alone_and_shares_it():
    for frame in play("memory", GAMMA):
        for action, s in zip(frame.step.actions, frame.step.observations):
            same = s.c is s.c_before and s.h is s.h_before
            assert same == (action == 1)
            if action == 0:
                assert not np.array_equal(s.c, s.c_before)


def test_a_candidate_is_seen_but_not_kept():
    played = play("candidate", GAMMA)
    changed = 0
    for one, next_one in zip(played, played[1:]):
        for clip, action in enumerate(one.step.actions):
            s, s_next = one.step.observations[clip], next_one.step.observations[clip]
            assert s_next.c_before is s.c and s_next.h_before is s.h
            changed += action == 1 and not np.array_equal(s.c, s.c_before)
    assert changed > 3
    # The losses of a frame depend on the memory, which is f0's whatever was shown.
    for one, other in zip(played, play("memory", GAMMA)):
        np.testing.assert_array_equal(one.step.losses, other.step.losses)


def test_eta_says_where_f1_ran_k_steps_ago():
    played = play("memory", GAMMA)
    first = [t.s_tm1.eta.tolist() for t in played[0].transitions]
    assert first == [[0, 0, 0, 0]] * CLIPS  # f0 ran on frame 0, nothing before it
    for number, frame in enumerate(played, start=1):
        for clip, s in enumerate(frame.step.observations):
            ran = [0, *ACTIONS[clip]]
            wanted = [ran[number - k + 1] if number - k + 1 >= 0 else 0 for k in range(1, 5)]
            assert s.eta.tolist() == wanted, (number, clip)


def test_one_transition_ends_where_the_next_begins():
    played = play("memory", GAMMA)
    for one, next_one in zip(played, played[1:]):
        for a, b in zip(one.transitions, next_one.transitions):
            assert a.s_t is b.s_tm1
    assert [p.step.is_last for p in played] == [False] * (FRAMES - 2) + [True]


def test_gamma_is_paid_for_f1_alone():
    for slow, fast in zip(play("memory", GAMMA), play("memory", GAMMA + 2.0)):
        np.testing.assert_allclose(
            fast.step.reward - slow.step.reward, 2.0 * slow.step.actions, atol=1e-5
        )


def test_both_actions_add_the_road_not_taken():
    frames = iter(ACTIONS.T)
    game = environment("candidate", GAMMA)
    game.load(game.watch(clips()))
    both = list(run_loop(game, lambda _: next(frames), both_actions=True))
    for one, two in zip(play("candidate", GAMMA), both):
        assert [t.a_tm1 for t in two.transitions] == [0, 1] * CLIPS
        for clip, action in enumerate(one.step.actions):
            picked = two.transitions[2 * clip + action]
            assert picked.r_t == one.transitions[clip].r_t
            for wanted, found in zip(one.transitions[clip].s_t, picked.s_t):
                np.testing.assert_array_equal(wanted, found)
            other = two.transitions[2 * clip + 1 - action]
            losses = two.step.losses[clip]
            paid = losses.min() - losses[1 - action] + (GAMMA if action == 0 else 0)
            np.testing.assert_allclose(other.r_t, paid, atol=1e-5)
            assert other.s_t.eta[0] == 1 - action


def test_an_ended_clip_has_no_next_frame():
    game = environment("memory", GAMMA)
    game.load(game.watch(clips()))
    step = game.reset()
    assert step.actions.tolist() == [0] * CLIPS and not step.is_last
    for _ in range(FRAMES - 1):
        step = game.step(np.array([1, 1, 0]))
    assert step.is_last
    with pytest.raises(ValueError, match="ended"):
        game.step(np.array([1, 1, 0]))
    again = game.reset()
    assert again.observations[0].eta.tolist() == [0, 0, 0, 0] and not again.is_last
