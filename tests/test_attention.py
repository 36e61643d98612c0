"""The attention network against NumPy, and what it reads."""

import itertools

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny_patchwork

import memvid_tf  # noqa: F401  (before TensorFlow)
from export import convert, gate
from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.models.attention import HISTORY_ONE, Attention, AttentionConfig, next_history
from memvid_tf.windows import Windows

WINDOWS = (Windows(4, 2), Windows(4, 1), Windows(5, 3))


def inputs(seed, windows, batch=2):
    random = np.random.default_rng(seed)
    presence = random.uniform(0, 1, [batch, windows.slices, windows.slices, 1])
    history = random.uniform(0, HISTORY_ONE, [batch, windows.count])
    return tf.constant(presence, tf.float32), tf.constant(history, tf.float32)


def built(seed, windows, scheme=None):
    layer = Attention(AttentionConfig(hidden=7), windows, scheme)
    layer(*inputs(seed, windows), training=True)
    reference.randomise(
        [v for v in layer.variables if not v.name.split(":")[0].endswith(("_min", "_max"))],
        np.random.default_rng(seed),
    )
    return layer


def loop_values(layer, presence, history, windows):
    """Q-values of one clip, tile by tile."""
    slices, adjacent = windows.slices, windows.adjacent
    inside = [
        (row, column)
        for row, column in itertools.product(range(-1, slices + 1), repeat=2)
        if 0 <= row < slices and 0 <= column < slices
    ]
    tiles = {
        action: list(
            itertools.product(*(range(start, start + adjacent) for start in windows.tile(action)))
        )
        for action in range(windows.count)
    }
    lately = {
        tile: max(history[action] for action, of in tiles.items() if tile in of) for tile in inside
    }
    kernel, bias = (x.numpy().astype(float) for x in (layer.hidden.kernel, layer.hidden.bias))
    hidden = {}
    for row, column in inside:
        total = bias.copy()
        for i, j in itertools.product(range(3), repeat=2):
            near = (row + i - 1, column + j - 1)
            if near in lately:
                total += presence[near][0] * kernel[i, j, 0] + lately[near] * kernel[i, j, 1]
        hidden[row, column] = reference.relu6(total)
    values = layer.values.kernel.numpy()[..., 0].astype(float).reshape(adjacent**2, -1)
    return [
        sum(hidden[tile] @ value for tile, value in zip(tiles[action], values))
        + layer.values.bias.numpy()[0]
        for action in range(windows.count)
    ]


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_q_values_equal_the_loops(windows):
    layer = built(0, windows)
    presence, history = (t.numpy().astype(float) for t in inputs(1, windows))
    expected = [loop_values(layer, *clip, windows) for clip in zip(presence, history)]
    # Sums of tens of products of order one in float32.
    np.testing.assert_allclose(layer(*inputs(1, windows)), expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.05


def test_presence_of_a_detector_is_the_best_score_of_each_tile():
    network = tiny_patchwork.network("detector", 3)
    random = np.random.default_rng(4)
    logits = random.normal(0, 3, [2, len(network.anchors), 1 + tiny_patchwork.CLASSES])
    found = network.presence({"class_logits": tf.constant(logits, tf.float32)}, 4).numpy()
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.zeros([2, 4, 4])
    cut = 3 * 8 * 16 + 6 * 4 * 8  # anchors of the maps that tiles cut; others have 2×4 places
    for (row, column), score in zip(network.anchors[:cut, :2], scores[:, :cut, 1:].max(-1).T):
        expected[:, int(row * 4), int(column * 4)] = np.maximum(
            expected[:, int(row * 4), int(column * 4)], score
        )
    assert found.shape == (2, 4, 4, 1)
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4)


def test_presence_of_a_segmenter_is_the_foreground_in_each_tile():
    network = tiny_patchwork.network("segmenter", 3)
    logits = np.random.default_rng(5).normal(0, 2, [2, 8, 4, 1])
    found = network.presence({"mask_logits": tf.constant(logits, tf.float32)}, 2).numpy()
    shares = 1 / (1 + np.exp(-logits))
    expected = [[[shares[b, 4 * i : 4 * i + 4, 2 * j : 2 * j + 2].mean() for j in (0, 1)]
                 for i in (0, 1)] for b in (0, 1)]  # fmt: skip
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-4)


def test_the_history_is_that_of_equation_1():
    actions = [[3, 0], [3, 8], [1, 8], [3, 8]]
    history = tf.zeros([2, 9])
    expected = np.zeros([2, 9])
    for action in actions:
        history = next_history(history, tf.constant(action), 0.6)
        for b, a in enumerate(action):
            for k in range(9):
                expected[b, k] = min(0.6 * expected[b, k] + (k == a), 1.0)
        np.testing.assert_allclose(history / HISTORY_ONE, expected, rtol=1e-6)
    assert expected[0, 3] == 1.0 and 0.5 < expected[0, 1] < 1.0


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_the_int8_graph_passes_the_gate_and_equals_the_layer(windows):
    layer = built(2, windows, Scheme())
    for _ in range(2):  # the weights have changed since the ranges were observed
        layer(*inputs(3, windows), training=True)
    slices = windows.slices

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, slices, slices, 1], tf.float32, "presence"),
            tf.TensorSpec([1, windows.count], tf.float32, "history"),
        ]
    )
    def decide(presence, history):
        return {"q_values": layer(presence, history)}

    content = convert.convert(layer, {"serving_default": decide}, precision="int8")
    assert gate.check_graph("attention", content, precision="int8") == []


@pytest.mark.parametrize(
    "fields, message",
    [(dict(hidden=-1), "hidden -1"), (dict(decay=1.0), "1.0 is")],
)
def test_numbers_of_which_no_network_can_be_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Attention(AttentionConfig(**fields), WINDOWS[0])
