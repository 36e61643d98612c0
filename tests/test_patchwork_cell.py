"""Both forms of the Patchwork cell against a recurrence over masked full frames in NumPy.

Weights and inputs are small integers and every layer clips to 0 … 6, so that float32 holds each sum
exactly whatever its order: equal means equal to the last bit.
"""

import numpy as np
import pytest
import reference
import tensorflow as tf

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.layers.conv import Conv, DepthwiseConv
from memvid_tf.layers.patchwork import (
    FullFrame,
    FullMemory,
    Strips,
    full_strips,
    offsets,
    paddings,
    read_strips,
    read_window,
    write_strips,
)
from memvid_tf.windows import Cell, StripLayout, Windows

WINDOWS = [(2, 1), (4, 2), (4, 1), (3, 2)]
SIZE = (48, 96)


def integers(layer, random):
    """Gives a layer integer weights that neither vanish nor saturate."""
    shape = layer.kernel.shape
    fan_in = shape[0] * shape[1] * (shape[2] if shape[3] > 1 else 1)
    sparse = random.random(shape) < 4.0 / fan_in
    layer.kernel.assign(np.where(sparse, random.integers(-2, 4, shape), 0).astype(np.float32))
    layer.bias.assign(random.integers(-1, 4, layer.bias.shape).astype(np.float32))


def maps(random, *shape):
    return random.integers(0, 7, shape).astype(np.float32)


def convolved(layer, x):
    kernel, bias = layer.kernel.numpy().astype(float), layer.bias.numpy()
    if isinstance(layer, DepthwiseConv):
        y = reference.depthwise(x, kernel[..., 0], layer.strides)
    else:
        y = reference.conv(x, kernel, layer.strides)
    return reference.relu6(y + bias)


def window_of(windows, action, x):
    """The part of [B, H, W, C] that the window at an action covers."""
    (i, j), (height, width) = windows.tile(action), x.shape[1:3]
    y0, x0 = i * height // windows.slices, j * width // windows.slices
    return x[:, y0 : y0 + windows.size(height), x0 : x0 + windows.size(width)]


@pytest.mark.parametrize("kind", [Conv, DepthwiseConv])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_valid_in_a_window_equals_same_in_the_frame(kernel_size, strides, kind):
    random = np.random.default_rng(kernel_size + strides)
    arguments = dict(strides=strides, activation="relu6")
    channels = 4
    if kind is Conv:
        layer = Conv(5, kernel_size, **arguments)
    else:
        layer = DepthwiseConv(kernel_size, **arguments)
    x = maps(random, 1, 24, 48, channels)
    layer(tf.constant(x))
    integers(layer, random)
    expected = convolved(layer, x)
    assert 0.1 < np.mean((expected > 0) & (expected < 6))
    np.testing.assert_array_equal(layer(tf.constant(x)), expected)
    for sizes in [(1, 1), *WINDOWS]:
        windows = Windows(*sizes)
        frame = FullFrame()
        frame(tf.zeros([1, 24, 48, channels]), layer)  # the frame itself has no cell
        frame(tf.constant(x), layer)
        (cell,) = frame.cells(windows)
        assert [cell.rows, cell.columns] == paddings(layer, (24, 48))
        layout = StripLayout([cell], windows)
        strips = full_strips(frame.tensors, layout)
        for action in range(windows.count):
            inside = window_of(windows, action, x)
            surround = Strips(layout, read_strips(strips, tf.constant([action]), layout))
            surround(tf.zeros([1, 1, 1, channels]), layer)
            y = layer(tf.constant(inside), surround=surround)
            np.testing.assert_array_equal(y, window_of(windows, action, expected))


class Network:
    """Kernels of 3, 5 and 7, strides of 1 and 2, and a tensor that two layers read."""

    def __init__(self, seed):
        common = dict(activation="relu6")
        self.stem = Conv(4, 3, strides=2, name="stem", **common)
        self.five = DepthwiseConv(5, name="five", **common)
        self.down = DepthwiseConv(3, strides=2, name="down", **common)
        self.mix = Conv(6, name="mix", **common)
        self.side = Conv(2, 3, name="side", **common)
        self.seven = DepthwiseConv(7, name="seven", **common)
        self.layers = [self.stem, self.five, self.down, self.mix, self.side, self.seven]
        self.body(tf.zeros([1, *SIZE, 3]))
        random = np.random.default_rng(seed)
        for layer in self.layers:
            integers(layer, random)

    def body(self, frame, surround=None):
        x = self.five(self.stem(frame, surround=surround), surround=surround)
        side = self.side(x, surround=surround)  # a larger halo than that of `down`
        x = self.mix(self.down(x, surround=surround))
        return side, self.seven(x, surround=surround)

    def masked(self, frame, memories, windows, action):
        """The same on a full frame, where only the window's features are let into the memories.

        memories: for the tensors that `five`, `down` with `side`, and `seven` read; changed.
        """

        def remember(number, x):
            inside = np.zeros(x.shape[1:3], bool)
            window_of(windows, action, inside[None, ..., None])[...] = True
            memories[number] = np.where(inside[..., None], x, memories[number])
            return memories[number]

        x = remember(0, convolved(self.stem, frame))
        x = remember(1, convolved(self.five, x))
        side = convolved(self.side, x)
        x = remember(2, convolved(self.mix, convolved(self.down, x)))
        outputs = side, convolved(self.seven, x)
        return [window_of(windows, action, y) for y in outputs]


def step(network, form, frame, action, state):
    """One step of a form: outputs of the window, and the next state."""
    cells, windows, layout = form.cells, form.windows, form.layout
    size = [windows.size(side) for side in SIZE]
    image = read_window(frame, offsets(windows, action, SIZE), size, paddings(network.stem, SIZE))
    if layout is None:
        surround = FullMemory(cells, windows, state, action)
        return network.body(image, surround), surround.memories
    surround = Strips(layout, read_strips(state, action, layout))
    outputs = network.body(image, surround)
    return outputs, write_strips(state, surround.own(), action, layout)


class Form:
    """One of the two forms and its state after a step that saw the full frame."""

    def __init__(self, network, windows, frame, strips):
        full = FullFrame()
        network.body(tf.constant(frame), full)
        self.windows, self.tensors = windows, full.tensors
        self.cells = full.cells(windows)
        self.layout = StripLayout(self.cells, windows) if strips else None
        self.state = full_strips(full.tensors, self.layout) if strips else full.tensors


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "full memory"])
@pytest.mark.parametrize("sizes", WINDOWS)
def test_random_actions_equal_the_masked_full_frame(sizes, strips):
    network, windows = Network(1), Windows(*sizes)
    random = np.random.default_rng(2)
    frame = maps(random, 2, *SIZE, 3)
    form = Form(network, windows, frame, strips)
    assert [cell.name for cell in form.cells] == ["five", "side", "seven"]
    memories = [t.numpy().astype(float) for t in form.tensors]
    state = form.state
    # Each example has its own action; the reference sees them one at a time.
    for _ in range(5):
        frame = maps(random, 2, *SIZE, 3)
        actions = random.integers(0, windows.count, 2)
        outputs, state = step(
            network, form, tf.constant(frame), tf.constant(actions, tf.int32), state
        )
        for b in range(2):
            own = [m[b : b + 1] for m in memories]
            expected = network.masked(frame[b : b + 1], own, windows, actions[b])
            memories = [np.concatenate([m[:b], o, m[b + 1 :]]) for m, o in zip(memories, own)]
            for y, z in zip(outputs, expected):
                np.testing.assert_array_equal(y[b : b + 1], z)
    if not strips:
        for memory, expected in zip(state, memories):
            np.testing.assert_array_equal(memory, expected)


def test_a_graph_computes_the_same_and_carries_gradients_through_the_strips():
    network, windows = Network(3), Windows(2, 1)
    random = np.random.default_rng(4)
    frames = tf.constant(maps(random, 2, 1, *SIZE, 3))
    form = Form(network, windows, frames[0], True)
    action = tf.constant([3])

    @tf.function
    def run(frame, state):
        with tf.GradientTape() as tape:
            tape.watch(state)
            outputs, after = step(network, form, frame, action, state)
            loss = tf.add_n([tf.reduce_sum(y) for y in outputs])
        return outputs, after, tape.gradient(loss, state)

    outputs, after, gradient = run(frames[1], form.state)
    expected = step(network, form, frames[1], action, form.state)
    for y, z in zip([*outputs, after], [*expected[0], expected[1]]):
        np.testing.assert_array_equal(y, z)
    # What older windows left behind moves what a newer one finds, where it reads.
    read = set(form.layout.read[3]) - {form.layout.memory}
    moved = np.flatnonzero(np.abs(gradient[0]).sum(-1))
    assert len(moved) > 20 and set(moved) <= read


@pytest.mark.parametrize("sizes", [*WINDOWS, (3, 3)])
def test_gradients_of_the_strips_are_those_of_gathers(sizes):
    random = np.random.default_rng(7)
    cells = (Cell("a", (12, 24), 4, (1, 1), (0, 1)), Cell("b", (12, 12), 6, (2, 1), (1, 2)))
    layout = StripLayout(cells, Windows(*sizes))
    action = tf.constant(random.integers(0, layout.windows.count, 3), tf.int32)
    strips = tf.constant(maps(random, 3, layout.memory, layout.chunk))
    own = tf.constant(maps(random, 3, layout.own, layout.chunk))

    def gathered(strips, own):
        padded = tf.pad(strips, [(0, 0), (0, 1), (0, 0)])
        halo = tf.gather(padded, tf.gather(layout.read, action), axis=1, batch_dims=1)
        both = tf.concat([own, strips], 1)
        return halo, tf.gather(both, tf.gather(layout.write, action), axis=1, batch_dims=1)

    def ours(strips, own):
        return read_strips(strips, action, layout), write_strips(strips, own, action, layout)

    found, weights = [], [None, None]
    for way in (ours, gathered):
        with tf.GradientTape() as tape:
            tape.watch([strips, own])
            results = way(strips, own)
            if weights[0] is None:
                weights = [tf.constant(maps(random, *x.shape)) for x in results]
            total = tf.add_n([tf.reduce_sum(x * w) for x, w in zip(results, weights)])
        gradients = tape.gradient(total, [strips, own])
        found.append([*results, *(tf.convert_to_tensor(g) for g in gradients)])
    for x, y in zip(*found):
        np.testing.assert_array_equal(x, y)


def test_misalignment_names_the_layer():
    network = Network(5)
    full = FullFrame()
    network.body(tf.constant(maps(np.random.default_rng(6), 1, 24, 40, 3)), full)
    with pytest.raises(ValueError, match="down: a window's offset, 3 of 12, .* stride 2"):
        full.cells(Windows(4, 2))
    with pytest.raises(ValueError, match="seven: a side of 6 cannot be cut into 4 equal slices"):
        full.cells(Windows(4, 4))
