"""Patchwork networks: the same weights, the same outputs where they have to be the same."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_patchwork

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.layers.patchwork import paddings
from memvid_tf.models import patchwork
from memvid_tf.models.patchwork import Patchwork, WindowConfig
from memvid_tf.windows import Windows

KINDS = tiny_patchwork.KINDS
# Of sums of float32 that another shape of the same convolution adds up in another order, through
# twenty layers.
FLOAT = dict(rtol=1e-4, atol=1e-4)


def plain(network, images):
    return network.tail(network.body(images))


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_window_is_the_plain_network_bit_for_bit(kind, quantization):
    model = tiny_patchwork.patchwork(kind, 0, 1, 1, quantization=quantization)
    first, second = (tiny_patchwork.images(kind, seed, 2) for seed in (1, 2))
    predictions, state = model.start(first)
    for name, expected in plain(model.network, first).items():
        np.testing.assert_array_equal(predictions[name], expected)
    predictions, state = model.step(second, tf.zeros([2], tf.int32), state)
    for name, expected in plain(model.network, second).items():
        np.testing.assert_array_equal(predictions[name], expected)
        assert np.std(expected) > 0.01
    assert state.strips.shape[1] == 0


class Masked:
    """`surround` of the oracle: full frames, in which only the window's features are remembered."""

    def __init__(self, windows, memories):
        self.windows, self.memories, self.read, self.row, self.column = windows, memories, [], 0, 0

    def mask(self, size):
        spans = []
        for side, tile in zip(size, (self.row, self.column)):
            place = np.arange(side) * self.windows.slices // side
            spans.append((place >= tile) & (place < tile + self.windows.adjacent))
        return (spans[0][:, None] & spans[1])[..., None]

    def look(self, row, column):
        self.read, self.row, self.column = [], row, column

    def __call__(self, x, layer):
        known = [number for number, t in enumerate(self.read) if t is x]
        if not known:
            self.read.append(x)
        number = known[0] if known else len(self.read) - 1
        if number == 0:
            remembered = x  # the frame is at hand around the window too
        else:
            while len(self.memories) < number:
                self.memories.append(tf.zeros_like(x))
            if not known:
                mask = self.mask(x.shape[1:3])
                self.memories[number - 1] = tf.where(mask, x, self.memories[number - 1])
            remembered = self.memories[number - 1]
        return tf.pad(remembered, [(0, 0), *paddings(layer, x.shape[1:3]), (0, 0)])


@pytest.mark.parametrize(
    "kind, sizes",
    [("detector", (4, 2)), ("detector", (4, 1)), ("segmenter", (2, 1)), ("segmenter", (4, 2))],
)
def test_random_actions_equal_the_masked_full_frame(kind, sizes):
    model = tiny_patchwork.patchwork(kind, 3, *sizes)
    windows, network = model.windows, model.network
    random = np.random.default_rng(4)
    oracle = Masked(Windows(1, 1), [])
    image = tiny_patchwork.images(kind, 5, 1)
    maps = network.body(image, surround=oracle)
    oracle.windows = windows
    _, state = model.start(image)
    for t in range(4):
        image = tiny_patchwork.images(kind, 6 + t, 1)
        action = int(random.integers(windows.count))
        predictions, state = model.step(image, tf.constant([action]), state)
        oracle.look(*windows.tile(action))
        fresh = network.body(image, surround=oracle)
        maps = {
            name: tf.where(oracle.mask(x.shape[1:3]), x, maps[name]) for name, x in fresh.items()
        }
        for name, expected in network.tail(maps).items():
            np.testing.assert_allclose(predictions[name], expected, **FLOAT)
    # What is in the memories matters: without them the window's outputs are others.
    empty = tf.zeros([1, model.layout.halo, model.layout.chunk])
    outputs, _ = model.body(model.crop(image, tf.constant([action])), empty)
    name = next(iter(outputs))
    row, column = windows.tile(action)
    height, width = outputs[name].shape[1:3]
    y, x = (t * side // sizes[1] for t, side in zip((row, column), (height, width)))
    there = state.maps[name][:, y : y + height, x : x + width]
    assert np.max(np.abs(outputs[name] - there)) > 0.01


@pytest.mark.parametrize("kind, quantization", [("detector", "none"), ("segmenter", "int8")])
def test_a_static_video_becomes_the_plain_network(kind, quantization):
    """A scan makes one more cell right everywhere, so that all are after as many scans as cells,
    and what follows the last of them after one more."""
    model = tiny_patchwork.patchwork(kind, 10, 2, 1, quantization=quantization)
    before, image = (tiny_patchwork.images(kind, seed, 1) for seed in (11, 12))
    expected = plain(model.network, image)
    step = tf.function(model.step)
    _, state = model.start(before)
    errors = []
    for _ in range(len(model.layout.cells) + 1):
        for action in range(model.windows.count):
            predictions, state = step(image, tf.constant([action]), state)
        errors.append(
            max(float(np.max(np.abs(predictions[name] - y))) for name, y in expected.items())
        )
    assert errors[0] > 0.01
    for name, y in expected.items():
        if quantization == "int8":  # rounded to one grid, so sums in another order are the same
            np.testing.assert_array_equal(predictions[name], y)
        np.testing.assert_allclose(predictions[name], y, **FLOAT)
    # Nothing moves any more.
    again, state = step(image, tf.constant([0]), state)
    for name, y in predictions.items():
        np.testing.assert_array_equal(again[name], y)


def test_the_weights_are_those_of_the_plain_network_and_can_be_trained_through_time():
    model = tiny_patchwork.patchwork("segmenter", 20, 2, 1)
    assert {v.ref() for v in model.variables} == {v.ref() for v in model.network.variables}
    frames = [tiny_patchwork.images("segmenter", seed, 2) for seed in (21, 22, 23)]

    @tf.function
    def gradients(first, second, third):
        with tf.GradientTape() as tape:
            tape.watch(second)
            _, state = model.start(first)
            _, state = model.step(second, tf.constant([0, 1]), state, training=True)
            predictions, _ = model.step(third, tf.constant([1, 2]), state, training=True)
            loss = tf.reduce_sum(tf.square(predictions["mask_logits"]))
        weights = model.network.trainable_variables
        return tape.gradient(loss, [*weights, second])

    *weights, second = gradients(*frames)
    for variable, gradient in zip(model.network.trainable_variables, weights):
        assert gradient is not None and np.all(np.isfinite(gradient)), variable.name
    # The third frame has its window elsewhere: all it knows of the second one went through the
    # memories. Each example looked at its own window, 33 rows of 17 columns.
    moved = np.abs(second).sum(-1) > 0
    assert moved[0, :32, :16].mean() > 0.5 and moved[1, :32, 16:].mean() > 0.5
    moved[0, :33, :17] = moved[1, :33, 16:] = False
    assert not moved.any()


def test_the_cells_of_the_detector():
    model = tiny_patchwork.patchwork("detector", 30, 2, 1)
    cells = model.layout.cells
    # Eight blocks and the last map; the predictors share the cell of the tapped expansion.
    assert len(cells) == 9
    tapped = [c for c in cells if c.size == (8, 16) and c.rows == (1, 1)][-1]
    assert [c.rows for c in cells if c.size == (32, 64)] == [(1, 1), (0, 1)]
    assert tapped.columns == (1, 1)
    assert model.window_size == (33, 65) and model.frame_halo == [(0, 1), (0, 1)]


def test_windows_that_do_not_fit_are_refused():
    network = tiny_patchwork.network("detector", 40)
    with pytest.raises(ValueError, match="depthwise: a window's offset, 1 of 8, .* stride 2"):
        Patchwork(network, Windows(8, 1))
    with pytest.raises(ValueError, match="the frame: a side of 64 cannot be cut into 3"):
        Patchwork(network, Windows(3, 1))
    with pytest.raises(ValueError, match="WindowConfig is not one of"):
        patchwork.build(WindowConfig(), WindowConfig())
    with pytest.raises(ValueError, match="windows of 3 of 2 slices"):
        patchwork.build(tiny_patchwork.config("segmenter"), WindowConfig(slices=2, adjacent=3))
