"""Quantizers against a NumPy fake-quant, and how schemes hand them out."""

import dataclasses

import numpy as np
import pytest
import reference
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

from memvid_tf.layers import fake_quant
from memvid_tf.layers.conv import Conv, DepthwiseConv
from memvid_tf.layers.fake_quant import (
    FixedRange,
    MovingAverageRange,
    PerChannelSymmetric,
    Quantize,
    Scheme,
    quantize,
)

# Library and reference round to the same grid point. TensorFlow computes it in float32, from a
# scale with a relative error of 1e-7: 255 steps away from zero that is 3e-5 of a step, and a step
# is at most 0.06 here.
GRID_ATOL = 2e-6


def values(seed, shape=(7, 5, 3), low=-9.0, high=11.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


@pytest.mark.parametrize(
    "low, high", [(0.0, 6.0), (0.0, 255 / 256), (-1.0, 127 / 128), (-0.37, 5.03), (-3.3, 0.2)]
)
def test_fixed_range_rounds_to_the_nudged_grid(low, high):
    x = values(1, low=1.3 * low - 0.2, high=1.3 * high)
    y = Quantize(FixedRange(low, high))(tf.constant(x)).numpy()
    np.testing.assert_allclose(y, reference.fake_quant(x, low, high), atol=GRID_ATOL)
    assert len(np.unique(y)) > 50  # the comparison is not of a clipped constant
    assert Quantize(FixedRange(low, high))(tf.zeros([1])).numpy() == 0.0


def test_image_range_changes_no_pixel():
    pixels = np.arange(256, dtype=np.float32) / 128 - 1
    y = Quantize(FixedRange(*fake_quant.IMAGE_RANGE))(tf.constant(pixels)).numpy()
    np.testing.assert_array_equal(y, pixels)
    # The int8 of the grid is then uint8 ^ 0x80.
    as_int8 = np.round(y * 128).astype(np.int8)
    np.testing.assert_array_equal(as_int8.view(np.uint8), np.arange(256, dtype=np.uint8) ^ 0x80)


def test_sigmoid_range_has_the_scale_of_the_int8_logistic():
    y = Quantize(FixedRange(*fake_quant.SIGMOID_RANGE))(tf.constant([0.5, 1.0, 3.1 / 256]))
    np.testing.assert_array_equal(y.numpy() * 256, [128, 255, 3])


@pytest.mark.parametrize("low, high", [(1.0, 2.0), (-2.0, -1.0), (0.0, 0.0), (3.0, -3.0)])
def test_fixed_range_refuses_a_range_without_zero_or_width(low, high):
    with pytest.raises(ValueError, match=r"must contain zero and have a width"):
        FixedRange(low, high)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_moving_average_refuses_a_decay_outside_of_0_1(decay):
    with pytest.raises(ValueError, match=str(decay)):
        MovingAverageRange(decay)


def observed(layer):
    return float(layer.ranges["min"]), float(layer.ranges["max"])


def test_moving_average_starts_with_the_first_batch_and_then_decays():
    layer = Quantize(MovingAverageRange(decay=0.8))
    batches = [values(10, low=-2, high=7), values(11, low=-5, high=3), values(12, low=-1, high=9)]
    low, high = batches[0].min(), batches[0].max()
    for t, x in enumerate(batches):
        if t:
            low, high = 0.8 * low + 0.2 * x.min(), 0.8 * high + 0.2 * x.max()
        y = layer(tf.constant(x), training=True).numpy()
        np.testing.assert_allclose(observed(layer), [low, high], rtol=1e-6)
        # The batch that moves the range is already rounded to the range that it moved.
        np.testing.assert_allclose(y, reference.fake_quant(x, low, high), atol=GRID_ATOL)

    x = values(13, low=-30, high=40)
    y = layer(tf.constant(x), training=False).numpy()
    np.testing.assert_allclose(observed(layer), [low, high], rtol=1e-6)
    np.testing.assert_allclose(y, reference.fake_quant(x, low, high), atol=GRID_ATOL)


def test_moving_average_counts_the_first_batch_once_in_a_graph():
    layer = Quantize(MovingAverageRange(decay=0.5))
    step = tf.function(lambda x: layer(x, training=True))
    x, y = values(14, low=-2, high=6), values(15, low=-8, high=2)
    step(tf.constant(x))
    np.testing.assert_allclose(observed(layer), [x.min(), x.max()], rtol=1e-6)
    step(tf.constant(y))
    expected = [(x.min() + y.min()) / 2, (x.max() + y.max()) / 2]
    np.testing.assert_allclose(observed(layer), expected, rtol=1e-6)


@pytest.mark.parametrize("low, high", [(2.0, 5.0), (-5.0, -2.0)])
def test_moving_average_of_one_sided_values_reaches_to_zero(low, high):
    layer = Quantize(MovingAverageRange())
    x = values(16, low=low, high=high)
    y = layer(tf.constant(x), training=True).numpy()
    assert observed(layer)[0] == min(x.min(), 0.0)
    assert observed(layer)[1] == max(x.max(), np.float32(1e-3))
    np.testing.assert_allclose(y, x, atol=0.51 * 5.001 / 255)  # half a step


def test_moving_average_of_zeros_is_observed():
    layer = Quantize(MovingAverageRange(decay=0.9))
    layer(tf.zeros([4]), training=True)
    layer(tf.constant([0.0, 4.0]), training=True)
    # Had the zeros not counted as the first batch, the range would be 4 now.
    np.testing.assert_allclose(observed(layer)[1], 0.9 * 1e-3 + 0.1 * 4.0, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 5), (1, 1, 8, 3)])
def test_per_channel_symmetric(shape):
    kernel = values(20, shape, -1, 1) * np.linspace(0.01, 3.0, shape[-1], dtype=np.float32)
    y = Quantize(PerChannelSymmetric())(tf.constant(kernel)).numpy()
    np.testing.assert_allclose(y, reference.fake_quant_kernel(kernel), atol=GRID_ATOL)
    for c in range(shape[-1]):
        # Symmetric: the steps are the largest magnitude over 127, and that magnitude stays.
        step = np.abs(kernel[..., c]).max() / 127
        np.testing.assert_allclose(y[..., c] / step, np.round(y[..., c] / step), atol=1e-3)
        np.testing.assert_allclose(np.abs(y[..., c]).max(), np.abs(kernel[..., c]).max(), rtol=1e-5)


def test_per_channel_symmetric_of_a_dead_channel_is_zero_and_spoils_no_other():
    kernel = values(21, (3, 3, 2, 4), -1, 1)
    kernel[..., 2] = 0.0
    y = Quantize(PerChannelSymmetric())(tf.constant(kernel)).numpy()
    assert np.all(y[..., 2] == 0.0)
    others = [0, 1, 3]
    expected = reference.fake_quant_kernel(kernel[..., others])
    np.testing.assert_allclose(y[..., others], expected, atol=GRID_ATOL)


def test_gradients_pass_straight_through_inside_the_range():
    x = tf.constant([-0.4, 0.3, 5.9, 6.4, 2.2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(FixedRange(0.0, 6.0)(x, True, {}) * [1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(tape.gradient(y, x).numpy(), [0, 2, 3, 0, 5])


def test_gradients_pass_straight_through_a_kernel_even_at_its_limit():
    kernel = tf.constant(values(22, (3, 3, 4, 6), -1, 1))
    weight = tf.constant(values(23, (3, 3, 4, 6), -1, 1))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.reduce_sum(PerChannelSymmetric()(kernel, True, {}) * weight)
    # The largest weight of a channel lies at the end of the range. Were its gradient lost, it
    # could never shrink.
    np.testing.assert_array_equal(tape.gradient(y, kernel), weight)


RANGES = np.random.default_rng(24).uniform([-5.0, 0.01], [0.0, 8.0], (6, 2)).astype(np.float32)


@pytest.mark.parametrize("low, high", [*RANGES, (0.0, 3.7), (-2.9, 0.001)])
def test_an_observed_range_rounds_and_passes_gradients_on_as_tensorflow_does(low, high):
    x, dy = (tf.constant(values(seed, (2000,))) for seed in (25, 26))
    # The first batch is the range; the second, wider by far, does not move it.
    layer = Quantize(MovingAverageRange(0.0))
    layer(tf.constant([low, high]), training=True)
    layer.quantizer.decay = 1.0
    step = tf.function(lambda x: layer(x, training=True))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        found = step(x)
        expected = tf.quantization.fake_quant_with_min_max_vars(x, *observed(layer))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(layer(x, training=False), expected)
    gradient = tape.gradient(found, x, dy)
    np.testing.assert_array_equal(gradient, tape.gradient(expected, x, dy))
    # The same without TensorFlow's kernel; where a value is as near to the end of the grid as
    # float32 can tell, either is right.
    lowest, highest = reference.fake_quant(np.float32([-1e6, 1e6]), *observed(layer))
    away = np.minimum(np.abs(x - lowest), np.abs(x - highest)) > GRID_ATOL
    wanted = np.where((x >= lowest) & (x <= highest), dy, 0.0)
    np.testing.assert_array_equal(gradient.numpy()[away], wanted[away])
    assert 20 < np.count_nonzero(gradient) < 1980


@pytest.mark.parametrize("quantizer", [MovingAverageRange(), PerChannelSymmetric()])
def test_training_needs_no_gradient_that_refuses_determinism_on_a_gpu(quantizer):
    layer = Quantize(quantizer)
    layer.build([2, 3])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            # In a loop and a condition, as in a memory and beside frozen batch norm.
            y = tf.while_loop(lambda t, y: t < 3, lambda t, y: (t + 1, layer(y, True)), (0, x))[1]
            y = tf.cond(y[0, 0] > 0, lambda: layer(y, training=True), lambda: y)
            y = layer(y, training=False)
        return tape.gradient(y, x)

    graph = step.get_concrete_function(tf.TensorSpec([2, 3])).graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    ops = {node.op for node in nodes if node.op.startswith("FakeQuant")}
    assert ops and not {op for op in ops if op.endswith("Gradient")}, ops
    np.testing.assert_array_equal(step(tf.ones([2, 3])), np.ones([2, 3]))


@pytest.mark.parametrize(
    "quantizer", [FixedRange(-1.5, 2.5), MovingAverageRange(0.7), PerChannelSymmetric()]
)
def test_quantizers_have_the_interface_of_tfmot(quantizer):
    assert isinstance(quantizer, tfmot.Quantizer)
    again = type(quantizer).from_config(quantizer.get_config())
    x = tf.constant(values(30, (2, 3, 4)))
    a = Quantize(quantizer)(x, training=True)
    b = Quantize(again)(x, training=True)
    np.testing.assert_array_equal(a, b)


def foreign_scheme():
    return dataclasses.replace(
        Scheme(),
        kernel=lambda: tfmot.LastValueQuantizer(
            num_bits=8, per_axis=True, symmetric=True, narrow_range=True
        ),
        observed=lambda: tfmot.MovingAverageQuantizer(
            num_bits=8, per_axis=False, symmetric=False, narrow_range=False
        ),
    )


def test_a_quantizer_of_tfmot_can_be_used_in_a_scheme():
    random = np.random.default_rng(31)
    layer = Conv(5, 3, scheme=foreign_scheme())
    x = values(32, (2, 6, 5, 4), -1, 1)
    layer(tf.constant(x), training=True)
    layer.kernel.assign(random.normal(0, 0.3, layer.kernel.shape))
    layer.bias.assign(random.normal(0, 0.3, [5]))
    y = layer(tf.constant(x), training=True).numpy()

    ranges = layer.output_range.ranges
    low, high = float(ranges["min_var"]), float(ranges["max_var"])
    # tfmot's average starts at ±6 and moves by a thousandth.
    assert -6.0 < low < -5.9 and 5.9 < high < 6.0
    expected = reference.conv(x, reference.fake_quant_kernel(layer.kernel.numpy()))
    expected = reference.fake_quant(expected + layer.bias.numpy(), low, high)
    # A sum that float32 puts on the other side of a rounding threshold is one step away.
    step = (high - low) / 255
    np.testing.assert_allclose(y, expected, atol=1.01 * step)
    assert np.mean(np.abs(y - expected) > GRID_ATOL * 5) < 0.005


def test_a_per_axis_quantizer_of_tfmot_can_quantize_a_depthwise_kernel():
    layer = DepthwiseConv(3, scheme=foreign_scheme())
    x = values(33, (2, 6, 5, 4), -1, 1)
    layer(tf.constant(x), training=True)
    assert layer.kernel_ranges["max_var"].shape == [4]
    kernel = layer.kernel.numpy()[..., 0]
    y = layer(tf.constant(x), training=True).numpy()
    ranges = layer.output_range.ranges
    expected = reference.depthwise(x, reference.fake_quant_kernel(kernel))
    expected = reference.fake_quant(expected, float(ranges["min_var"]), float(ranges["max_var"]))
    np.testing.assert_allclose(y, expected, atol=1.01 * 12 / 255)


def test_a_scheme_makes_a_new_quantizer_each_time():
    scheme = Scheme()
    a, b = quantize(scheme, "observed"), quantize(scheme, "observed")
    a(tf.constant([-1.0, 3.0]), training=True)
    b(tf.constant([-2.0, 1.0]), training=True)
    np.testing.assert_allclose(observed(a), [-1, 3], rtol=1e-6)
    np.testing.assert_allclose(observed(b), [-2, 1], rtol=1e-6)


@pytest.mark.parametrize(
    "kind, low, high",
    [("relu6", 0.0, 6.0), ("sigmoid", 0.0, 255 / 256), ("image", -1.0, 127 / 128)],
)
def test_the_kinds_of_the_default_scheme(kind, low, high):
    x = values(34, low=-2, high=8)
    y = quantize(Scheme(), kind)(tf.constant(x), training=True)
    np.testing.assert_allclose(y, reference.fake_quant(x, low, high), atol=GRID_ATOL)


def test_without_a_quantizer_a_tensor_passes_unchanged():
    x = values(35)
    layer = quantize(None, "relu6")
    np.testing.assert_array_equal(layer(tf.constant(x), training=True), x)
    assert not layer.variables


def test_a_shared_layer_gives_two_tensors_one_range():
    layer = Quantize(MovingAverageRange(decay=0.75))
    layer(tf.constant([-1.0, 2.0]), training=True)
    y = layer(tf.constant([-3.0, 0.7]), training=False)
    assert observed(layer) == (-1.0, 2.0)
    np.testing.assert_allclose(y, reference.fake_quant([-3.0, 0.7], -1, 2), atol=GRID_ATOL)
