"""Flow-guided features against a bilinear sampler and the equations of `layers/flow.py`, in loops.

That they train, are exported and run as the other memories do is tested where those are.
"""

import dataclasses
import re

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras
import tiny_run
from test_recurrent import gru_step, weights

from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.layers.flow import FLOW_CHANNELS, FlowGuidedCell, FlowState, Warp
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.manifest import BundleError
from memvid_tf.tasks.detection import sample_schedule

MAP = (4, 6)
CHANNELS, FEATURES, FEATURES_F1 = 5, 7, 3
STEP = 6 / 255  # of the grid of h
FLOW_STEP = 1 / 64
# Float32 sums of up to a hundred products; the flow's error is that of two maps' difference times 6.
FLOAT = dict(rtol=1e-4, atol=1e-4)


def at_random(seed, channels, low=0.0, high=6.0):
    random = np.random.default_rng(seed)
    return random.uniform(low, high, [2, *MAP, channels]).astype(np.float32)


def features(seed, depth=FEATURES):
    """What a backbone that ends in ReLU6 gives."""
    return np.clip(at_random(seed, depth, -2.0, 5.0), 0, 6)


def pixel(h, y, x):
    inside = 0 <= y < h.shape[0] and 0 <= x < h.shape[1]
    return h[y, x].astype(np.float64) if inside else np.zeros(h.shape[-1])


def sampled(h, flow):
    """Bilinear sampling of [B, H, W, C] at each place plus the flow; nothing lies outside."""
    out = np.zeros(h.shape)
    for b, i, j in np.ndindex(h.shape[:3]):
        y, x = i + float(flow[b, i, j, 0]), j + float(flow[b, i, j, 1])
        top, left = int(np.floor(y)), int(np.floor(x))
        below, right = y - top, x - left
        upper = (1 - right) * pixel(h[b], top, left) + right * pixel(h[b], top, left + 1)
        lower = (1 - right) * pixel(h[b], top + 1, left) + right * pixel(h[b], top + 1, left + 1)
        out[b, i, j] = (1 - below) * upper + below * lower
    return out


# Warping.


BOTH_WAYS = pytest.mark.parametrize("way", ["call", "product"])


@BOTH_WAYS
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_warping_is_bilinear_sampling(radius, way):
    h, flow = at_random(1, CHANNELS), at_random(2, 2, -radius, radius)
    # Sums of four products, and weights from differences of numbers up to 12·radius.
    found = getattr(Warp(radius), way)(tf.constant(h), tf.constant(flow))
    np.testing.assert_allclose(found, sampled(h, flow), rtol=1e-5, atol=2e-5)


def test_rows_and_columns_are_no_two_passes():
    """Each place has a flow of its own: the rows of a neighbour are not those of this place."""
    h, flow = at_random(1, CHANNELS), at_random(2, 2, -2, 2)
    zero = np.zeros_like(flow[..., :1])
    rows = sampled(h, np.concatenate([flow[..., :1], zero], -1))
    passes = sampled(rows, np.concatenate([zero, flow[..., 1:]], -1))
    assert np.abs(passes - sampled(h, flow)).max() > 0.5


@BOTH_WAYS
def test_what_lies_farther_than_the_radius_is_taken_at_it(way):
    h, flow = at_random(3, CHANNELS), at_random(4, 2, -9, 9)
    found = getattr(Warp(2), way)(tf.constant(h), tf.constant(flow))
    np.testing.assert_allclose(found, sampled(h, np.clip(flow, -2, 2)), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("scheme", [None, Scheme()], ids=["float", "int8"])
@pytest.mark.parametrize("dy, dx", [(0, 0), (1, -1), (-2, 1)])
def test_whole_steps_are_shifts(scheme, dy, dx):
    """In int8 too, to the last bit: whole cells lie on the flow's grid, and shares of 1 and 0."""
    h = np.round(at_random(5, CHANNELS) / STEP) * np.float32(STEP)
    flow = np.broadcast_to(np.float32([dy, dx]), [2, *MAP, 2])
    found = Warp(scheme=scheme)(tf.constant(h), tf.constant(flow)).numpy()
    np.testing.assert_allclose(found, sampled(h, flow), atol=1e-5)
    assert ((found == 0).all(-1).sum() > 0) == ((dy, dx) != (0, 0))


def test_the_quantized_warp_is_near_bilinear_sampling():
    h, flow = at_random(6, CHANNELS), at_random(7, 2, -2.0, 2.0)
    # What the flow's convolution hands over lies on its grid, whose last level is below 2.
    flow = np.clip(np.round(flow / FLOW_STEP) * FLOW_STEP, -2.0, 127 / 64)
    h = np.round(h / STEP) * np.float32(STEP)
    found = Warp(scheme=Scheme())(tf.constant(h), tf.constant(flow, tf.float32)).numpy()
    np.testing.assert_allclose(found / STEP, np.round(found / STEP), atol=1e-3)
    # Four shares, each the product of two numbers that are half a step of 1/255 off and rounded
    # itself, of values up to 255 steps, and four rounded products.
    error = np.abs(found - sampled(h, flow)) / STEP
    assert error.max() < 5 and error.mean() < 1


def test_both_ways_have_the_same_gradients():
    h, flow = (tf.constant(at_random(8, CHANNELS)), tf.constant(at_random(9, 2, -2.5, 2.5)))
    weights = at_random(10, CHANNELS)
    found = []
    for way in ("call", "product"):
        with tf.GradientTape() as tape:
            tape.watch([h, flow])
            total = tf.reduce_sum(weights * getattr(Warp(2), way)(h, flow))
        found.append(tape.gradient(total, [h, flow]))
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_a_gradient_points_to_the_right_flow():
    """From a flow of zero and a half towards the one that was sampled with."""
    y, x = np.meshgrid(*map(np.arange, MAP), indexing="ij")
    h = tf.constant(np.stack([y, x], -1)[np.newaxis] / 1.5, tf.float32)
    wanted = Warp()(h, tf.fill([1, *MAP, 2], 0.9))[:, 1:-2, 1:-2]
    flow = tf.Variable(tf.fill([1, *MAP, 2], 0.5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((Warp()(h, flow)[:, 1:-2, 1:-2] - wanted) ** 2)
    assert np.all(tape.gradient(loss, flow)[:, 1:-2, 1:-2] < 0)


# The cell.


def built(scheme=None, seed=0):
    cell = FlowGuidedCell(CHANNELS, FEATURES, scheme)
    cell.adapt(tf.constant(features(0, FEATURES_F1)), "f1")
    cell(tf.constant(features(0)), cell.initial_state(2, *MAP), "f0")
    reference.randomise(cell.variables, np.random.default_rng(seed))
    # Flows of a cell or two: random layers would give ten.
    kernel = cell.flow_output.pointwise.kernel
    kernel.assign(0.2 * (kernel - tf.reduce_mean(kernel, 2, keepdims=True)))
    return cell


def state_at_random(seed):
    return FlowState(at_random(seed, CHANNELS), at_random(seed + 1, FLOW_CHANNELS))


def expected_step(cell, x, state):
    """Encoding, flow and warped features, in loops over the equations."""

    def pointwise(x, layer):
        return x @ layer.kernel.numpy()[0, 0].astype(float) + layer.bias.numpy()

    def separable(y, layer):
        pair = weights(layer.depthwise, layer.pointwise)
        return reference.separable(y, pair, 1, lambda name, tensor: tensor, "flow")

    encoding = reference.relu6(pointwise(x, cell.encoding))
    y = np.concatenate([encoding, state.key], -1)
    for layer in cell.flow_layers:
        y = reference.relu6(separable(y, layer))
    flow = separable(y, cell.flow_output)
    return encoding, flow, sampled(state.h, np.clip(flow, -2, 2))


def test_a_frame_of_f0_is_the_gru_over_warped_features():
    cell, x, state = built(), features(10), state_at_random(11)
    encoding, flow, warped = expected_step(cell, x, state)
    assert np.mean(np.abs(flow) < 2) > 0.3 and np.std(flow) > 0.3  # neither bound nor nothing
    wanted, _ = gru_step(cell.gru, x, warped)
    adapted = cell.adapt(tf.constant(x), "f0")
    np.testing.assert_array_equal(adapted, x)
    output, after = cell(adapted, FlowState(*map(tf.constant, state)), "f0")
    np.testing.assert_allclose(output, wanted, **FLOAT)
    np.testing.assert_array_equal(after.h, output)
    np.testing.assert_allclose(after.key, encoding, **FLOAT)
    assert isinstance(after, FlowState)


def test_a_frame_of_f1_is_the_warped_features_and_leaves_the_state():
    cell, small, state = built(seed=1), features(20, FEATURES_F1), state_at_random(21)
    projected = small @ cell.projection.kernel.numpy()[0, 0] + cell.projection.bias.numpy()
    x = cell.adapt(tf.constant(small), "f1")
    np.testing.assert_allclose(x, np.clip(projected, 0, 6), rtol=1e-5, atol=1e-5)
    *_, warped = expected_step(cell, x.numpy(), state)
    before = FlowState(*map(tf.constant, state))
    output, after = cell(x, before, "f1")
    np.testing.assert_allclose(output, warped, **FLOAT)
    assert after is before
    with pytest.raises(ValueError, match="'f2' is not one of"):
        cell(x, before, "f2")


def test_of_a_frame_of_f1_only_the_flow_matters():
    cell, state = built(seed=2), FlowState(*map(tf.constant, state_at_random(30)))
    frames = [tf.constant(features(seed)) for seed in (31, 32)]
    one, other = (cell(x, state, "f1")[0].numpy() for x in frames)
    assert np.abs(one - other).mean() > 0.05
    for layer in (cell.flow_output.pointwise.kernel, cell.flow_output.pointwise.bias):
        layer.assign(tf.zeros_like(layer))
    for x in frames:
        np.testing.assert_allclose(cell(x, state, "f1")[0], state.h, atol=1e-5)


def test_the_first_frame_meets_an_empty_memory():
    cell = built(seed=3)
    empty = cell.initial_state(2, *MAP)
    assert [part.shape for part in empty] == [(2, *MAP, CHANNELS), (2, *MAP, FLOW_CHANNELS)]
    assert not any(np.any(part) for part in empty)
    wanted, _ = gru_step(cell.gru, x := features(40), np.zeros([2, *MAP, CHANNELS]))
    np.testing.assert_allclose(cell(tf.constant(x), empty, "f0")[0], wanted, **FLOAT)
    assert not np.any(cell(tf.constant(x), empty, "f1")[0])


@pytest.mark.parametrize("extractor", ["f0", "f1"])
def test_flow_is_learned_from_the_output(extractor):
    """From the first step on: its weights begin small, but not as zero: there hats have no slope."""
    tf_keras.utils.set_random_seed(4)
    cell = FlowGuidedCell(CHANNELS, FEATURES)
    state = FlowState(*map(tf.constant, state_at_random(50)))
    with tf.GradientTape() as tape:
        output, _ = cell(tf.constant(features(51)), state, extractor)
        loss = tf.reduce_sum(output**2)
    flow = cell.flow(cell.encoding(tf.constant(features(51))), state.key)
    assert 0 < np.abs(flow).max() < 1
    layers = [*cell.flow_layers, cell.flow_output, cell.encoding]
    learned = [v for layer in layers for v in layer.trainable_variables]
    for variable, gradient in zip(learned, tape.gradient(loss, learned)):
        assert np.any(gradient), variable.name


def test_the_quantized_cell_follows_the_float_one():
    plain, quantized = built(seed=5), built(Scheme(), seed=5)
    for own, other in zip(quantized.trainable_variables, plain.trainable_variables, strict=True):
        own.assign(other)
    for variable in quantized.non_trainable_variables:
        variable.assign(0.0)  # never observed

    def on_grid(part):
        return tf.constant(np.round(part / STEP) * np.float32(STEP))

    state = FlowState(*map(on_grid, state_at_random(60)))
    for t in range(10):
        quantized(tf.constant(features(70 + t)), state, "f0", training=True)

    def flow(cell, x):
        return cell.flow(cell.encoding(x), state.key).numpy()

    for x in (on_grid(features(62 + t)) for t in range(3)):
        found, wanted = (np.clip(flow(cell, x), -2, 127 / 64) for cell in (quantized, plain))
        # Seven layers of random weights, each off by a part of a step.
        assert np.abs(found - wanted).mean() < 8 * FLOW_STEP and np.std(wanted) > 0.5
        for extractor in ("f0", "f1"):
            output, _ = quantized(x, state, extractor)
            np.testing.assert_allclose(output / STEP, np.round(output / STEP), atol=1e-3)
        # As in the test of the warp.
        assert (np.abs(output - sampled(state.h.numpy(), found)) / STEP).max() < 5


# Training.


def test_a_clip_may_have_to_begin_with_f0():
    firsts = set()
    for number in range(20):
        f0, f1 = sample_schedule(6, 0.3, [7, number], f0_first=True)
        assert f0[0] == 0 and sorted([*f0.numpy(), *f1.numpy()]) == list(range(6))
        assert list(f0) == sorted(f0) and len(f1) > 0
        drawn, _ = sample_schedule(6, 0.3, [7, number])
        assert len(drawn) == len(f0)  # as often as without
        firsts.add(int(drawn[0]))
    assert len(firsts) > 1


# Bundles.


@pytest.mark.slow
def test_a_mode_in_which_f1_writes_is_refused(capfd):
    bundle = tiny_run.rival_bundle("int8", "flow_guided")
    capfd.readouterr()
    assert tiny_run.program("memvid_tf.evaluate", bundle=bundle, modes="2+update") == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: mode '2+update': frames of f1 only read the memory of this network; leave "
        "'+update' out"
    ]


@pytest.mark.slow
def test_a_manifest_does_not_contradict_the_call_that_only_reads():
    manifest = Bundle.load(tiny_run.rival_bundle("int8", "flow_guided")).manifest
    assert manifest.calls["f1"] == ("f1/serving_default", "memory/read")
    read = manifest.signature("memory/read")
    assert set(read.outputs) == {"box_encodings", "class_logits"}

    def with_head(**changes):
        head = dataclasses.replace(read.outputs["class_logits"], **changes)
        other = dataclasses.replace(read, outputs=read.outputs | {"class_logits": head})
        memory = manifest.graphs["memory"]
        memory = dataclasses.replace(memory, signatures=memory.signatures | {"read": other})
        return {"graphs": manifest.graphs | {"memory": memory}}

    called = manifest.calls | {"f1": ("f1/serving_default", "memory/update")}
    for changes, message in (
        ({"updates_state": {"f0": True, "f1": True}}, "updates_state.f1 is True, wanted false"),
        ({"calls": called}, "calls.f1 is ('f1/serving_default', 'memory/update'), wanted "),
        (with_head(scale=0.5), "scale of the consumer is "),
    ):
        with pytest.raises(BundleError, match=re.escape(message)):
            dataclasses.replace(manifest, **changes).validate()
