"""The memory's two forms against loops over the equations, and against each other."""

import dataclasses

import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

from memvid_tf.layers.conv_lstm import CELLS, FactoredCell, PaperCell, State
from memvid_tf.layers.fake_quant import Scheme

CHANNELS, GROUPS = 12, 3
SIZE = 4  # channels of a group
MAP = (4, 5)
FEATURES = {"f0": 7, "f1": 5}  # channels of the backbones
STEP = 6 / 255  # of the state's grid

# Three steps of float32 sums of about 100 products, squashed by sigmoids.
FLOAT = dict(rtol=1e-4, atol=2e-5)


def features(seed, extractor, batch=2):
    """What a backbone that ends in ReLU6 gives."""
    random = np.random.default_rng([seed, int(extractor[1])])
    x = random.normal(1.0, 1.5, [batch, *MAP, FEATURES[extractor]])
    return np.clip(x, 0, 6).astype(np.float32)


def built(cell, seed=0):
    state = cell.initial_state(1, *MAP)
    for extractor in FEATURES:
        x = cell.adapt(tf.constant(features(0, extractor, 1)), extractor)
        cell(x, state, extractor)
    reference.randomise(cell.variables, np.random.default_rng(seed))
    return cell


def separable_weights(depthwise, pointwise, group=None):
    """(depthwise kernel, bias, pointwise kernel, bias), of one group if there are several."""
    d, db = depthwise.kernel.numpy()[..., 0].astype(float), depthwise.bias.numpy()
    p, pb = pointwise.kernel.numpy().astype(float), pointwise.bias.numpy()
    if depthwise.kernel_quantizer is not None:
        d, p = reference.fake_quant_kernel(d), reference.fake_quant_kernel(p)
    if group is None:
        return d, db, p, pb
    read, made = (slice(group * n // GROUPS, (group + 1) * n // GROUPS) for n in (len(db), len(pb)))
    return d[..., read], db[read], p[..., made], pb[made]


def gates_of(cell):
    return [
        {n: separable_weights(cell.gate_depthwise, getattr(cell, f"gate_{n}"), g) for n in "ijfo"}
        for g in range(GROUPS)
    ]


def rounding(cell, layers):
    """Rounds a tensor to the range that the layer of this name has observed."""
    layers = {name: layer.output_range for name, layer in layers.items()}
    layers |= {f"gate_{n}": getattr(cell, f"gate_{n}").output_range for n in "ifo"}
    layers |= {"gates/depthwise": cell.gate_depthwise.output_range}
    ranges = {n: [float(v) for v in layer.ranges.values()] for n, layer in layers.items()}
    ranges |= {"state": (0.0, 6.0), "sigmoid": (0.0, 255 / 256)}
    return lambda name, tensor: reference.fake_quant(tensor, *ranges[name])


def paper_reference(cell, x, c, h, extractor):
    separables = cell.bottlenecks[extractor]
    weights = [separable_weights(s.depthwise, s.pointwise) for s in separables]
    if cell.scheme is None:
        return reference.paper_cell(x, c, h, weights, gates_of(cell))
    rounded = rounding(
        cell, {f"bottleneck_{g}/depthwise": s.depthwise for g, s in enumerate(separables)}
    )
    return reference.paper_cell(x, c, h, weights, gates_of(cell), rounded)


def factored_reference(cell, x, c, h, extractor):
    projection, on_h = cell.projections[extractor], cell.h_projection
    more = ()
    if cell.scheme is not None:
        layers = {
            "projection/depthwise": projection.depthwise,
            "features": projection.pointwise,
            "h_projection/depthwise": on_h.depthwise,
            "h_projection": on_h.pointwise,
        }
        more = (rounding(cell, layers),)
    return reference.factored_cell(
        x,
        c,
        h,
        [separable_weights(projection.depthwise, projection.pointwise, g) for g in range(GROUPS)],
        [separable_weights(on_h.depthwise, on_h.pointwise, g) for g in range(GROUPS)],
        gates_of(cell),
        *more,
    )


FORMS = [(PaperCell, paper_reference), (FactoredCell, factored_reference)]


@pytest.mark.parametrize("form, expected_step", FORMS, ids=["paper", "factored"])
def test_a_cell_equals_the_loops_over_several_steps_of_both_extractors(form, expected_step):
    cell = built(form(CHANNELS, GROUPS))
    state = cell.initial_state(2, *MAP)
    c = h = np.zeros([2, *MAP, CHANNELS])
    for t, extractor in enumerate(["f0", "f1", "f1", "f0", "f1"]):
        x = features(10 + t, extractor)
        output, state = cell(cell.adapt(tf.constant(x), extractor), state, extractor)
        expected, c, h = expected_step(cell, x, c, h, extractor)
        np.testing.assert_allclose(output, expected, **FLOAT)
        np.testing.assert_allclose(state.c, c, **FLOAT)
        np.testing.assert_allclose(state.h, h, **FLOAT)
    # The values that were compared are neither dead nor saturated.
    assert np.mean((c > 0.01) & (c < 5.99)) > 0.3


def test_the_output_is_all_h_then_all_b():
    cell = built(FactoredCell(CHANNELS, GROUPS))
    x = cell.adapt(tf.constant(features(20, "f0")), "f0")
    state = cell.initial_state(2, *MAP)
    output, after = cell(x, state, "f0")
    np.testing.assert_array_equal(output[..., :CHANNELS], after.h)
    b = cell.bottleneck(x, state.h, "f0")
    np.testing.assert_array_equal(output[..., CHANNELS:], b)


def test_the_factored_form_is_the_paper_form_with_shared_weights():
    """Sep_{i,g}([x, h_g]) = P_{i,g}(D_{i,g}(x)) + P_g(D_g(h_g)): the claim of the module."""
    factored = built(FactoredCell(CHANNELS, GROUPS), seed=3)
    paper = built(PaperCell(CHANNELS, GROUPS), seed=4)
    on_h = factored.h_projection
    for extractor in FEATURES:
        on_x = factored.projections[extractor]
        for g, sep in enumerate(paper.bottlenecks[extractor]):
            part = slice(g * SIZE, (g + 1) * SIZE)
            of_x = slice(g * FEATURES[extractor], (g + 1) * FEATURES[extractor])
            # Channels of [x, h_g].
            sep.depthwise.kernel.assign(
                np.concatenate(
                    [on_x.depthwise.kernel[:, :, of_x], on_h.depthwise.kernel[:, :, part]], 2
                )
            )
            sep.depthwise.bias.assign(
                np.concatenate([on_x.depthwise.bias[of_x], on_h.depthwise.bias[part]])
            )
            sep.pointwise.kernel.assign(
                np.concatenate(
                    [on_x.pointwise.kernel[..., part], on_h.pointwise.kernel[..., part]], 2
                )
            )
            sep.pointwise.bias.assign(on_x.pointwise.bias[part] + on_h.pointwise.bias[part])
    for name in ("gate_depthwise", "gate_i", "gate_j", "gate_f", "gate_o"):
        getattr(paper, name).set_weights(getattr(factored, name).get_weights())

    states = [cell.initial_state(2, *MAP) for cell in (paper, factored)]
    for t, extractor in enumerate(["f0", "f1", "f0", "f1", "f1"]):
        x = tf.constant(features(30 + t, extractor))
        outputs = []
        for k, cell in enumerate((paper, factored)):
            output, states[k] = cell(cell.adapt(x, extractor), states[k], extractor)
            outputs.append(output)
        np.testing.assert_allclose(*outputs, **FLOAT)
        for a, b in zip(*states):
            np.testing.assert_allclose(a, b, **FLOAT)
    assert np.std(states[0].c) > 0.1


@pytest.mark.parametrize("form", [PaperCell, FactoredCell])
def test_groups_do_not_see_each_other(form):
    cell = built(form(CHANNELS, GROUPS))
    x = cell.adapt(tf.constant(features(40, "f0")), "f0")
    random = np.random.default_rng(41)
    c, h = (random.uniform(0, 6, [2, *MAP, CHANNELS]).astype(np.float32) for _ in "ch")
    _, before = cell(x, State(tf.constant(c), tf.constant(h)), "f0")
    h[..., SIZE : 2 * SIZE] = random.uniform(0, 6, [2, *MAP, SIZE])
    c[..., SIZE : 2 * SIZE] = random.uniform(0, 6, [2, *MAP, SIZE])
    _, after = cell(x, State(tf.constant(c), tf.constant(h)), "f0")
    changed = np.abs(after.c - before.c).max((0, 1, 2)) > 1e-6
    np.testing.assert_array_equal(changed, np.repeat([False, True, False], SIZE))


@pytest.mark.parametrize("scheme", [None, Scheme()], ids=["float", "int8"])
@pytest.mark.parametrize("form", [PaperCell, FactoredCell])
def test_the_state_stays_in_0_6_whatever_the_weights(form, scheme):
    cell = built(form(CHANNELS, GROUPS, scheme), seed=5)
    for gate in (cell.gate_i, cell.gate_f, cell.gate_j, cell.gate_o):
        gate.bias.assign_add(tf.fill([CHANNELS], 20.0))  # all gates open: c grows at each step
    state = cell.initial_state(2, *MAP)
    for t in range(4):
        x = cell.adapt(tf.constant(features(50 + t, "f0")), "f0", training=True)
        output, state = cell(x, state, "f0", training=True)
        for part in (output, *state):
            assert 0.0 <= np.min(part) and np.max(part) <= 6.0 + 1e-6
    assert np.max(state.c) > 5.9  # saturation was reached


def test_the_order_of_the_state_is_c_h():
    assert State._fields == ("c", "h")
    cell = built(PaperCell(CHANNELS, GROUPS))
    empty = cell.initial_state(3, *MAP)
    assert isinstance(empty, State)
    for part in empty:
        np.testing.assert_array_equal(part, np.zeros([3, *MAP, CHANNELS]))
    x = cell.adapt(tf.constant(features(60, "f0", 3)), "f0")
    _, state = cell(x, empty, "f0")
    assert isinstance(state, State)
    # h' = σ(o)·c' is below c' wherever c' is not zero: the two are not swapped.
    assert np.all(state.h <= state.c) and np.sum(state.h) < 0.9 * np.sum(state.c)


def test_the_forget_gate_starts_with_a_bias_of_one_and_the_others_with_none():
    cell = FactoredCell(CHANNELS, GROUPS)
    cell(tf.zeros([1, *MAP, CHANNELS]), cell.initial_state(1, *MAP), "f0")
    biases = {n: np.unique(getattr(cell, f"gate_{n}").bias) for n in "ijfo"}
    assert biases == {"i": [0.0], "j": [0.0], "f": [1.0], "o": [0.0]}


def test_both_extractors_meet_in_one_graph_of_the_factored_memory():
    """What the memory does with features depends on them, not on who made them."""
    cell = built(FactoredCell(CHANNELS, GROUPS, Scheme()))
    random = np.random.default_rng(70)
    x = tf.constant(random.normal(0, 2, [2, *MAP, CHANNELS]).astype(np.float32))
    shape = [2, *MAP, CHANNELS]
    state = State(*(tf.constant(random.uniform(0, 6, shape), tf.float32) for _ in "ch"))
    for a, b in zip(tf.nest.flatten(cell(x, state, "f0")), tf.nest.flatten(cell(x, state, "f1"))):
        np.testing.assert_array_equal(a, b)


def all_values():
    return tfmot.AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)


@pytest.mark.parametrize("form, expected_step", FORMS, ids=["paper", "factored"])
def test_the_quantized_cell_rounds_after_every_operation(form, expected_step):
    # A moving average would need hundreds of clips to reach the extrema of all steps.
    scheme = dataclasses.replace(Scheme(), observed=all_values)
    cell = built(form(CHANNELS, GROUPS, scheme), seed=6)
    state = cell.initial_state(2, *MAP)
    for t, extractor in enumerate(["f0", "f1", "f0", "f1"]):
        x = cell.adapt(tf.constant(features(80 + t, extractor)), extractor, training=True)
        _, state = cell(x, state, extractor, training=True)

    for extractor in FEATURES:
        x = features(90, extractor)
        outputs = cell(cell.adapt(tf.constant(x), extractor), state, extractor)
        expected = expected_step(cell, x, *(part.numpy() for part in state), extractor)
        outputs = np.concatenate([part.numpy() for part in tf.nest.flatten(outputs)], -1)
        expected = np.concatenate(expected, -1)
        # h', b, c' lie on the one grid of [0, 6].
        np.testing.assert_allclose(outputs / STEP, np.round(outputs / STEP), atol=1e-3)
        # Where float32 falls on the other side of a rounding threshold, a tensor inside is one
        # of its steps off. A step of a gate, whose range is about 12, is 12 / 255 · 6 / 4 of the
        # product, that is three steps of the state; the fused sums may see two such steps.
        error = np.abs(outputs - expected) / STEP
        assert error.max() <= 6.01 and np.mean(error > 0.01) < 0.02
        assert expected.std() > 20 * STEP


def test_the_memory_does_not_observe_features_that_were_observed_before():
    """Else the range would be averaged with values that it has already clipped."""
    cell = built(FactoredCell(CHANNELS, GROUPS, Scheme()))
    x = cell.adapt(tf.constant(features(90, "f0")), "f0", training=True)
    before = [float(v) for v in cell.features_range.variables]
    cell(0.1 * x, cell.initial_state(2, *MAP), "f0", training=True)
    assert [float(v) for v in cell.features_range.variables] == before


@pytest.mark.parametrize("form", [PaperCell, FactoredCell])
def test_an_unknown_extractor_is_refused(form):
    cell = built(form(CHANNELS, GROUPS))
    x = tf.constant(features(95, "f0"))
    with pytest.raises(ValueError, match="'f2' is not one of"):
        cell.adapt(x, "f2")
    with pytest.raises(ValueError, match="'f2' is not one of"):
        cell(x, cell.initial_state(2, *MAP), "f2")


def test_channels_that_groups_do_not_divide_are_refused():
    for form in CELLS.values():
        with pytest.raises(ValueError, match="10 state channels .* 3 groups"):
            form(10, 3)
