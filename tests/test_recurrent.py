"""The three rivals of the memory against loops over the equations of `layers/recurrent.py`."""

import dataclasses

import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

from memvid_tf.layers.conv_lstm import State
from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.layers.recurrent import (
    RIVALS,
    BottleneckConvLSTM,
    ConvGRU,
    ConvLSTM,
    HiddenState,
    SharedCell,
)

CHANNELS, FEATURES = 6, 5
MAP = (4, 5)
STEP = 6 / 255  # of the state's grid

# A few steps of float32 sums of about 100 products, squashed by sigmoids.
FLOAT = dict(rtol=1e-4, atol=2e-5)


def features(seed, batch=2):
    """What a backbone that ends in ReLU6 gives."""
    x = np.random.default_rng(seed).normal(1.0, 1.5, [batch, *MAP, FEATURES])
    return np.clip(x, 0, 6).astype(np.float32)


def built(cell, seed=0):
    cell(tf.constant(features(0, 1)), cell.initial_state(1, *MAP))
    reference.randomise(cell.variables, np.random.default_rng(seed))
    return cell


def weights(depthwise, pointwise):
    """(depthwise kernel, bias, pointwise kernel, bias) as the network uses them."""
    d, p = depthwise.kernel.numpy()[..., 0].astype(float), pointwise.kernel.numpy().astype(float)
    if depthwise.kernel_quantizer is not None:
        d, p = reference.fake_quant_kernel(d), reference.fake_quant_kernel(p)
    return d, depthwise.bias.numpy(), p, pointwise.bias.numpy()


def rounding(cell):
    """Rounds a tensor to the range of this name; the float cell rounds nothing."""
    if cell.state_range.quantizer is None:
        return lambda name, tensor: tensor
    gates = ("gate_i", "gate_f", "gate_o", "gate_z", "gate_r")
    layers = {name: getattr(cell, name).output_range for name in gates if hasattr(cell, name)}
    layers["gates/depthwise"] = cell.gate_depthwise.output_range
    for name in ("bottleneck", "candidate"):
        if hasattr(cell, name):
            layers[f"{name}/depthwise"] = getattr(cell, name).depthwise.output_range
    for name in ("difference", "change"):
        if hasattr(cell, f"{name}_range"):
            layers[name] = getattr(cell, f"{name}_range")
    ranges = {n: [float(v) for v in layer.ranges.values()] for n, layer in layers.items()}
    ranges |= {"state": (0.0, 6.0), "sigmoid": (0.0, 255 / 256)}
    return lambda name, tensor: reference.fake_quant(tensor, *ranges[name])


def gate(cell, name, tensor, rounded):
    """A gate before its sigmoid or ReLU6."""
    separable = weights(cell.gate_depthwise, getattr(cell, f"gate_{name}"))
    return reference.separable(tensor, separable, 1, rounded, "gates")


def lstm_step(cell, x, c, h):
    """Output, c', h' of `ConvLSTM` and `BottleneckConvLSTM`."""
    rounded = rounding(cell)
    x, c, h = (rounded("state", tensor) for tensor in (x, c, h))
    b = np.concatenate([x, h], -1)
    if hasattr(cell, "bottleneck"):
        separable = weights(cell.bottleneck.depthwise, cell.bottleneck.pointwise)
        b = reference.separable(b, separable, 1, rounded, "bottleneck")
        b = rounded("state", reference.relu6(b))
    i, f, o = (
        rounded("sigmoid", reference.sigmoid(rounded(f"gate_{n}", gate(cell, n, b, rounded))))
        for n in "ifo"
    )
    j = rounded("state", reference.relu6(gate(cell, "j", b, rounded)))
    c = rounded("state", reference.relu6(rounded("state", f * c) + rounded("state", i * j)))
    h = rounded("state", o * c)
    return h, c, h


def gru_step(cell, x, h):
    """Output, h' of `ConvGRU`."""
    rounded = rounding(cell)
    x, h = rounded("state", x), rounded("state", h)
    both = np.concatenate([x, h], -1)
    z, r = (
        rounded("sigmoid", reference.sigmoid(rounded(f"gate_{n}", gate(cell, n, both, rounded))))
        for n in "zr"
    )
    separable = weights(cell.candidate.depthwise, cell.candidate.pointwise)
    n = np.concatenate([x, rounded("state", r * h)], -1)
    n = rounded(
        "state", reference.relu6(reference.separable(n, separable, 1, rounded, "candidate"))
    )
    h = rounded("state", h + rounded("change", z * rounded("difference", n - h)))
    return h, h


CELLS = [(ConvLSTM, lstm_step), (BottleneckConvLSTM, lstm_step), (ConvGRU, gru_step)]
NAMES = ["conv_lstm", "bottleneck_conv_lstm", "conv_gru"]


@pytest.mark.parametrize("make, expected_step", CELLS, ids=NAMES)
def test_a_cell_equals_the_loops_over_several_steps(make, expected_step):
    cell = built(make(CHANNELS))
    state = cell.initial_state(2, *MAP)
    expected_state = [np.zeros([2, *MAP, CHANNELS]) for _ in state]
    for t in range(4):
        x = features(10 + t)
        output, state = cell(tf.constant(x), state)
        expected, *expected_state = expected_step(cell, x, *expected_state)
        np.testing.assert_allclose(output, expected, **FLOAT)
        for part, expected_part in zip(state, expected_state):
            np.testing.assert_allclose(part, expected_part, **FLOAT)
    # The values that were compared are neither dead nor saturated.
    assert np.mean((expected > 0.01) & (expected < 5.99)) > 0.3


def all_values():
    return tfmot.AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)


@pytest.mark.parametrize("make, expected_step", CELLS, ids=NAMES)
def test_a_quantized_cell_rounds_after_every_operation(make, expected_step):
    # A moving average would need hundreds of clips to reach the extrema of all steps.
    cell = built(make(CHANNELS, dataclasses.replace(Scheme(), observed=all_values)), seed=1)
    state = cell.initial_state(2, *MAP)
    for t in range(4):
        _, state = cell(tf.constant(features(20 + t)), state, training=True)
    x = features(30)
    outputs = np.stack(tf.nest.flatten(cell(tf.constant(x), state)))
    expected = np.stack(expected_step(cell, x, *(part.numpy() for part in state)))
    # All of them lie on the one grid of [0, 6].
    np.testing.assert_allclose(outputs / STEP, np.round(outputs / STEP), atol=1e-3)
    # Where float32 falls on the other side of a rounding threshold, a tensor inside is one of its
    # steps off. A step of a gate, whose range is about 12, is 12 / 255 · 6 / 4 of the product,
    # that is three steps of the state; two such steps may meet.
    error = np.abs(outputs - expected) / STEP
    assert error.max() <= 6.01 and np.mean(error > 0.01) < 0.02
    assert expected.std() > 20 * STEP


@pytest.mark.parametrize("scheme", [None, Scheme()], ids=["float", "int8"])
@pytest.mark.parametrize("make", RIVALS.values(), ids=RIVALS)
def test_the_state_stays_in_0_6_whatever_the_weights(make, scheme):
    cell = built(make(CHANNELS, scheme), seed=2)
    for layer in (getattr(cell, name, None) for name in ("gate_i", "gate_f", "gate_j", "gate_o")):
        if layer is not None:
            layer.bias.assign_add(tf.fill([CHANNELS], 20.0))  # all gates open: c grows
    if make is ConvGRU:
        for layer in (cell.gate_z, cell.candidate.pointwise):
            layer.bias.assign_add(tf.fill([CHANNELS], 20.0))
    state = cell.initial_state(2, *MAP)
    for t in range(4):
        output, state = cell(tf.constant(features(40 + t)), state, training=True)
        for part in (output, *state):
            assert -1e-6 <= np.min(part) and np.max(part) <= 6.0 + 1e-6
    assert np.max(state.h) > 5.9  # saturation was reached


def test_the_update_gate_chooses_between_the_old_state_and_the_candidate():
    cell = built(ConvGRU(CHANNELS), seed=3)
    random = np.random.default_rng(50)
    h = tf.constant(random.uniform(0, 6, [2, *MAP, CHANNELS]), tf.float32)
    x = tf.constant(features(51))
    cell.gate_z.bias.assign(tf.fill([CHANNELS], -40.0))
    kept, _ = cell(x, HiddenState(h))
    np.testing.assert_allclose(kept, h, atol=1e-6)

    cell.gate_z.bias.assign(tf.fill([CHANNELS], 40.0))
    cell.gate_r.bias.assign(tf.fill([CHANNELS], -40.0))
    # Closed reset gate: the candidate does not see the old state, and replaces it.
    fresh, _ = cell(x, HiddenState(h))
    other, _ = cell(x, HiddenState(6.0 - h))
    np.testing.assert_allclose(fresh, other, atol=1e-4)
    assert np.std(fresh) > 0.1


def test_states_are_typed_and_start_empty():
    for make, kind in ((ConvLSTM, State), (BottleneckConvLSTM, State), (ConvGRU, HiddenState)):
        cell = built(make(CHANNELS))
        empty = cell.initial_state(3, *MAP)
        assert isinstance(empty, kind)
        for part in empty:
            np.testing.assert_array_equal(part, np.zeros([3, *MAP, CHANNELS]))
        output, state = cell(tf.constant(features(60, 3)), empty)
        assert isinstance(state, kind)
        np.testing.assert_array_equal(output, state.h)


def test_a_shared_cell_reads_f0_as_it_is_and_f1_at_the_same_depth():
    cell = ConvLSTM(CHANNELS)
    shared = SharedCell(cell, FEATURES)
    small = features(70)[..., :3] - 2.0
    x = {e: shared.adapt(tf.constant(f), e) for e, f in (("f0", features(71)), ("f1", small))}
    np.testing.assert_array_equal(x["f0"], features(71))
    projected = small @ shared.projection.kernel.numpy()[0, 0]
    np.testing.assert_allclose(x["f1"], np.clip(projected, 0, 6), rtol=1e-5, atol=1e-5)
    assert x["f1"].shape == x["f0"].shape and np.std(x["f1"]) > 0.1
    state = shared.initial_state(2, *MAP)
    for extractor in ("f0", "f1"):
        output, state = shared(x[extractor], before := state, extractor)
        for found, wanted in zip((output, *state), tf.nest.flatten(cell(x[extractor], before))):
            np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="'f2' is not one of"):
        shared.adapt(x["f0"], "f2")
    with pytest.raises(ValueError, match="'f2' is not one of"):
        shared(x["f0"], state, "f2")


def test_the_bottleneck_keeps_the_gates_from_the_features():
    """Of the three only its gates read as many channels as the state has."""
    cells = {name: built(make(CHANNELS)) for name, make in RIVALS.items()}
    depth = {name: cell.gate_depthwise.kernel.shape[2] for name, cell in cells.items()}
    both = CHANNELS + FEATURES
    assert depth == {"conv_lstm": both, "conv_gru": both, "bottleneck_conv_lstm": CHANNELS}
