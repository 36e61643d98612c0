"""The tables of attention's game against the true recurrence, and its rewards against loops."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_patchwork

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.models.attention import HISTORY_ONE, AttentionConfig
from memvid_tf.models.attention import next_history as graph_history
from memvid_tf.rl import attention, game, rewards
from memvid_tf.runtime.attention import next_history
from memvid_tf.windows import Windows

CLIPS, FRAMES = 2, 5
CONFIG = AttentionConfig(decay=0.6)


def intersection(a, b):
    height, width = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    return max(height, 0) * max(width, 0)


def loop_overlap(encodings, logits, boxes, classes, anchors):
    found = []
    for (ty, tx, th, tw), row, (y, x, h, w) in zip(encodings, logits, anchors):
        scores = np.exp(row - row.max())
        if (scores / scores.sum())[1:].max() <= 0.5:
            continue
        y, x, h, w = y + ty / 10 * h, x + tx / 10 * w, h * np.exp(th / 5), w * np.exp(tw / 5)
        found.append((y - h / 2, x - w / 2, y + h / 2, x + w / 2))
    best = []
    for box in boxes[classes > 0]:
        area = (box[2] - box[0]) * (box[3] - box[1])
        overlaps = [0.0]
        for other in found:
            both = intersection(box, other)
            overlaps.append(both / (area + (other[2] - other[0]) * (other[3] - other[1]) - both))
        best.append(max(overlaps))
    return np.mean(best) if best else 0.0


def test_box_overlap_equals_the_loops():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, [7, 2, 2]), 1).reshape(7, 4)
    anchors = np.stack(
        [
            (corners[:, 0] + corners[:, 2]) / 2,
            (corners[:, 1] + corners[:, 3]) / 2,
            corners[:, 2] - corners[:, 0],
            corners[:, 3] - corners[:, 1],
        ],
        1,
    ).astype(np.float32)
    boxes = np.sort(rng.uniform(0, 1, [3, 4, 2, 2]), 2).reshape(3, 4, 4).astype(np.float32)
    classes = np.array([[1, 2, 0, 1], [2, 0, 0, 0], [0, 0, 0, 0]], np.int32)
    encodings = rng.normal(0, 1, [3, 7, 4]).astype(np.float32)
    logits = rng.normal(0, 3, [3, 7, 3]).astype(np.float32)
    found = rewards.box_overlap(encodings, logits, boxes, classes, anchors)
    expected = [loop_overlap(*x, anchors) for x in zip(encodings, logits, boxes, classes)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert expected[0] > 0 and expected[2] == 0


def test_mask_overlap_is_the_iou():
    logits = np.full([2, 4, 5, 1], -1, np.float32)
    logits[0, :2, :4] = 2.0
    masks = np.zeros([2, 4, 5, 1], np.uint8)
    masks[0, 1:3, 2:] = 1
    # 8 found, 6 true, 2 both.
    np.testing.assert_allclose(rewards.mask_overlap(logits, masks), [2 / 12, 0])


def test_only_what_is_gained_is_rewarded():
    found = rewards.gained(tf.constant([0.5, 0.2, 0.3]), tf.constant([0.1, 0.4, 0.3]))
    np.testing.assert_allclose(found, [0.4, 0, 0])


def test_both_histories_are_equation_1():
    rng = np.random.default_rng(1)
    ours, theirs = np.zeros([3, 9], np.float32), tf.zeros([3, 9])
    for _ in range(6):
        actions = rng.integers(0, 9, 3)
        ours, theirs = next_history(ours, actions, 0.7), graph_history(theirs, actions, 0.7)
        np.testing.assert_allclose(ours, theirs / HISTORY_ONE, rtol=1e-6)
    assert ours.max() == 1


def brightness(predictions, truth):
    """Stands for f: something of the predictions that moves with every part of them."""
    total = sum(tf.reduce_mean(tf.abs(x), [*range(1, x.shape.rank)]) for x in predictions.values())
    return total * tf.cast(truth["boxes"][:, 0, 0], tf.float32)


def without_context(network):
    """Makes every kernel look at its middle alone: no window then needs its surroundings."""
    for variable in network.variables:
        if variable.name.endswith("kernel:0") and variable.shape[0] == 3:
            kernel = variable.numpy()
            # The tap that SAME padding at stride 2 puts on the first of two positions.
            middle = np.zeros_like(kernel)
            middle[1, 1] = kernel[1, 1] * 3
            variable.assign(middle)


def setup(kind, windows, *, blind):
    model = tiny_patchwork.patchwork(kind, 5, *windows)
    if blind:
        without_context(model.network)
    rng = np.random.default_rng(2)
    images = tf.stack([tiny_patchwork.images(kind, t, CLIPS) for t in range(FRAMES)], 1)
    frames = np.rint((images.numpy() + 1) * 128).astype(np.uint8)
    clips = {
        "frames": frames,
        "boxes": rng.uniform(0.5, 1, [CLIPS, FRAMES, 1, 4]).astype(np.float32),
        "classes": np.ones([CLIPS, FRAMES, 1], np.int32),
    }
    environment = attention.AttentionEnvironment(model, brightness, CONFIG, 0.9)
    environment.load(clips)
    return model, clips, environment


def true_maps(model, clips, actions):
    """What the recurrence remembers after every frame."""
    images = model.network.preprocess(clips["frames"])
    _, state = model.start(images[:, 0])
    states = [state.maps]
    for t, action in enumerate(actions, 1):
        _, state = model.step(images[:, t], tf.constant(action), state)
        states.append(state.maps)
    return states


ACTIONS = {(4, 2): [[0, 8], [4, 7], [4, 0], [1, 3]], (2, 1): [[0, 3], [2, 3], [1, 0], [1, 2]]}


@pytest.mark.parametrize("kind, windows", [("detector", (4, 2)), ("segmenter", (2, 1))])
def test_tables_are_the_recurrence_where_nothing_is_read_around_a_window(kind, windows):
    model, clips, environment = setup(kind, windows, blind=True)
    actions = np.array(ACTIONS[windows], np.int32)
    states = true_maps(model, clips, actions)
    step = environment.reset()
    for t in range(FRAMES):
        if t:
            step = environment.step(actions[t - 1])
        composed = environment.composed()
        for name, expected in states[t].items():
            # Sums of another order, see test_patchwork.
            np.testing.assert_allclose(composed[name], expected, rtol=1e-4, atol=1e-4)
        truth = {"boxes": clips["boxes"][:, t]}
        quality = brightness(model.network.tail(states[t]), truth)
        np.testing.assert_allclose(step.quality, quality, rtol=1e-4)
        predictions = model.network.tail(states[t])
        presence = np.stack([s.presence for s in step.observations])
        expected = model.network.presence(predictions, windows[0])
        np.testing.assert_allclose(presence, expected, rtol=1e-4, atol=1e-5)
        if t:
            # What was there before, on this frame's truth.
            before = brightness(model.network.tail(states[t - 1]), truth)
            expected = np.maximum(0, quality - before)
            np.testing.assert_allclose(step.reward, expected, rtol=1e-3, atol=1e-4)
    assert step.is_last
    with pytest.raises(ValueError, match="the clips have ended"):
        environment.step(actions[0])


def test_tables_are_near_the_recurrence():
    """Context of another age is far nearer to the true one than none: even where every frame shows
    something else, the maps differ by a tenth to a third of what a window without context misses
    (measured)."""
    windows = (4, 2)
    model, clips, environment = setup("detector", windows, blind=False)
    actions = np.array(ACTIONS[windows], np.int32)
    true = true_maps(model, clips, actions)[-1]
    model.context = "none"
    blind = true_maps(model, clips, actions)[-1]
    environment.reset()
    for action in actions:
        environment.step(action)
    for name, found in environment.composed().items():
        error, missed = (np.abs(x - true[name]).mean() for x in (found, blind[name]))
        assert 0 < error < 0.45 * missed, name


def test_every_action_is_handed_out_with_what_it_leads_to():
    model, _, environment = setup("segmenter", (2, 1), blind=True)
    picks = iter(np.array(ACTIONS[(2, 1)], np.int32))
    played = list(game.run_loop(environment, lambda _: next(picks), both_actions=True))
    assert len(played) == FRAMES - 1
    first = played[0]
    assert [t.a_tm1 for t in first.transitions] == [0, 1, 2, 3] * CLIPS
    earned = [t.r_t for t in first.transitions]
    np.testing.assert_allclose(earned, first.step.rewards.reshape(-1), rtol=1e-6)
    assert len({tuple(t.s_t.presence.reshape(-1)) for t in first.transitions}) == 4 * CLIPS
    for t in first.transitions:
        assert t.s_tm1.history.max() == 0 and t.s_t.history.argmax() == t.a_tm1
    # What was done is where the next frame starts.
    done = first.transitions[int(first.step.actions[0])].s_t
    np.testing.assert_array_equal(played[1].transitions[0].s_tm1.presence, done.presence)
    assert model.windows.count == 4


def test_tiles_of_windows():
    inside = attention.covered(Windows(4, 2))
    assert inside.shape == (9, 16) and inside.sum(1).tolist() == [4] * 9
    assert np.flatnonzero(inside[5]).tolist() == [6, 7, 10, 11]
