"""Convolution layers against NumPy: batch normalisation, its folding, quantization, groups."""

import subprocess
import sys

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras

from memvid_tf.layers.conv import Add, BatchNorm, Conv, DepthwiseConv, SeparableConv
from memvid_tf.layers.fake_quant import FixedRange, Scheme, quantize

# float32 sums of at most 100 products of order one.
FLOAT = dict(rtol=1e-4, atol=2e-5)
EPSILON = 0.02  # large, so that leaving it out would be seen
MOMENTUM = 0.7


def batch(seed, shape=(3, 7, 6, 4)):
    random = np.random.default_rng(seed)
    x = random.normal(0.3, 1.0, shape) * np.linspace(0.5, 1.5, shape[-1])
    return x.astype(np.float32)


def built(layer, x, seed=0, training=False):
    """Builds a layer and gives its variables random values."""
    layer(tf.constant(x), training=training)
    reference.randomise(layer.variables, np.random.default_rng(seed))
    return layer


def arrays(layer):
    names = ("kernel", "bias", "scale", "mean", "variance")
    found = {n: getattr(layer, n).numpy().astype(float) for n in names if hasattr(layer, n)}
    if isinstance(layer, DepthwiseConv):
        found["kernel"] = found["kernel"][..., 0]
    return found


def convolve(layer, x, kernel):
    if isinstance(layer, DepthwiseConv):
        return reference.depthwise(x, kernel, layer.strides)
    return reference.conv(x, kernel, layer.strides, layer.groups)


def make(kind, **kwargs):
    """The layers under test; all take [·, 7, 6, 4]."""
    if kind == "depthwise":
        return DepthwiseConv(3, **kwargs)
    if kind == "depthwise stride 2":
        return DepthwiseConv(3, strides=2, **kwargs)
    if kind == "stride 2":
        return Conv(5, 3, strides=2, **kwargs)
    if kind == "grouped":
        return Conv(6, 3, groups=2, **kwargs)
    return Conv(5, 1, **kwargs)


KINDS = ["pointwise", "stride 2", "grouped", "depthwise", "depthwise stride 2"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_norm_a_layer_is_convolution_and_bias(kind):
    x = batch(1)
    layer = built(make(kind), x)
    w = arrays(layer)
    expected = convolve(layer, x, w["kernel"]) + w["bias"]
    np.testing.assert_allclose(layer(tf.constant(x)), expected, **FLOAT)
    assert expected.min() < 0.0  # a ReLU6 would have been seen


@pytest.mark.parametrize("kind", KINDS)
def test_inference_is_convolution_then_moving_norm_then_relu6(kind):
    x = batch(2)
    layer = built(make(kind, activation="relu6", norm=BatchNorm(MOMENTUM, EPSILON)), x)
    w = arrays(layer)
    y = convolve(layer, x, w["kernel"])
    y = reference.batch_norm(y, w["mean"], w["variance"], w["scale"], w["bias"], EPSILON)
    assert (y < 0).any() and (y > 0).any()
    np.testing.assert_allclose(layer(tf.constant(x)), reference.relu6(y), **FLOAT)
    for name, value in arrays(layer).items():
        np.testing.assert_array_equal(value, w[name])


@pytest.mark.parametrize("kind", KINDS)
def test_training_normalises_with_the_batch_and_moves_the_statistics(kind):
    x = batch(3)
    layer = built(make(kind, activation="relu6", norm=BatchNorm(MOMENTUM, EPSILON)), x)
    w = arrays(layer)
    y = convolve(layer, x, w["kernel"])
    mean, variance = reference.moments(y)
    expected = reference.batch_norm(y, mean, variance, w["scale"], w["bias"], EPSILON)
    out = layer(tf.constant(x), training=True)
    np.testing.assert_allclose(out, reference.relu6(expected), **FLOAT)

    # TensorFlow's fused kernel hands the unbiased variance to the moving average.
    count = y[..., 0].size
    unbiased = variance * count / (count - 1)
    after = arrays(layer)
    moved = MOMENTUM * w["mean"] + (1 - MOMENTUM) * mean
    np.testing.assert_allclose(after["mean"], moved, **FLOAT)
    moved = MOMENTUM * w["variance"] + (1 - MOMENTUM) * unbiased
    np.testing.assert_allclose(after["variance"], moved, **FLOAT)


def folded(layer, x, w, mean, variance):
    """The quantized layer: fold, quantize the kernel, convolve, ReLU6, round the output."""
    kernel, bias = reference.fold(w["kernel"], mean, variance, w["scale"], w["bias"], EPSILON)
    y = convolve(layer, x, reference.fake_quant_kernel(kernel)) + bias
    return reference.fake_quant(reference.relu6(y), 0.0, 6.0)


def assert_same_grid_point(out, expected, step):
    """Equal, except where float32 falls on the other side of a rounding threshold: one step."""
    np.testing.assert_allclose(out, expected, atol=1.01 * step)
    assert np.mean(np.abs(out - expected) > 0.01 * step) < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_inference_folds_the_moving_norm(kind):
    x = batch(4)
    norm = BatchNorm(MOMENTUM, EPSILON)
    layer = built(make(kind, activation="relu6", norm=norm, scheme=Scheme()), x)
    w = arrays(layer)
    expected = folded(layer, x, w, w["mean"], w["variance"])
    assert_same_grid_point(layer(tf.constant(x)).numpy(), expected, 6 / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_folded_before_it_is_quantized(kind):
    # The quantizer of the default scheme gives every output channel its own scale, so for it the
    # order makes no difference; one grid for all channels shows it.
    x = batch(4)
    norm = BatchNorm(MOMENTUM, EPSILON)
    scheme = Scheme(kernel=lambda: FixedRange(-1.5, 1.0))
    layer = built(make(kind, norm=norm, scheme=scheme), x)
    w = arrays(layer)
    low, high = (float(v) for v in layer.output_range.ranges.values())

    def on_grid(kernel):
        return reference.fake_quant(kernel, -1.5, 1.0)

    statistics = w["mean"], w["variance"], w["scale"], w["bias"], EPSILON
    kernel, bias = reference.fold(w["kernel"], *statistics)
    expected = reference.fake_quant(convolve(layer, x, on_grid(kernel)) + bias, low, high)
    assert_same_grid_point(layer(tf.constant(x)).numpy(), expected, (high - low) / 255)

    kernel, bias = reference.fold(on_grid(w["kernel"]), *statistics)
    wrong = reference.fake_quant(convolve(layer, x, kernel) + bias, low, high)
    assert np.mean(np.abs(wrong - expected) > 0.9 * (high - low) / 255) > 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_training_folds_the_statistics_of_the_unquantized_convolution(kind):
    x = batch(5)
    norm = BatchNorm(MOMENTUM, EPSILON)
    layer = built(make(kind, activation="relu6", norm=norm, scheme=Scheme()), x)
    w = arrays(layer)
    mean, variance = reference.moments(convolve(layer, x, w["kernel"]))
    out = layer(tf.constant(x), training=True).numpy()
    assert_same_grid_point(out, folded(layer, x, w, mean, variance), 6 / 255)
    after = arrays(layer)
    np.testing.assert_allclose(after["mean"], MOMENTUM * w["mean"] + (1 - MOMENTUM) * mean, **FLOAT)
    np.testing.assert_allclose(
        after["variance"], MOMENTUM * w["variance"] + (1 - MOMENTUM) * variance, **FLOAT
    )


@pytest.mark.parametrize("scheme", [None, Scheme()], ids=["float", "int8"])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_a_frozen_norm_trains_with_the_moving_statistics_and_leaves_them_alone(scheme, in_graph):
    x = batch(6)
    norm = BatchNorm(MOMENTUM, EPSILON)
    layer = built(make("grouped", activation="relu6", norm=norm, scheme=scheme), x)
    w = arrays(layer)
    train = lambda x: layer(x, training=True)  # noqa: E731
    train = tf.function(train) if in_graph else train

    norm.frozen.assign(True)
    out = train(tf.constant(x))
    np.testing.assert_allclose(out, layer(tf.constant(x)), **FLOAT)
    for name, value in arrays(layer).items():
        np.testing.assert_array_equal(value, w[name])

    norm.frozen.assign(False)  # the same traced function thaws
    assert not np.allclose(train(tf.constant(x)), out, atol=0.1)
    assert not np.allclose(layer.mean, w["mean"])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_quantized_layer_has_the_gradients_of_the_float_one(frozen):
    """Up to the straight-through estimate: folding must not detach scale, bias or statistics."""
    x = batch(7)
    gradients = []
    for quantized in (False, True):
        norm = BatchNorm(MOMENTUM, EPSILON)
        norm.frozen.assign(frozen)
        # Identity quantizers: what is left of the quantized path is the folding alone.
        scheme = Scheme(kernel=Identity, observed=Identity) if quantized else None
        layer = built(make("grouped", norm=norm, scheme=scheme), x)
        weight = batch(8, (3, 7, 6, 6))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant(x), training=True) * weight)
        gradients.append(tape.gradient(loss, [layer.kernel, layer.scale, layer.bias]))
    for a, b in zip(*gradients):
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


class Identity:
    """The smallest thing that has the interface of a quantizer."""

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights):
        return inputs


@pytest.mark.parametrize("kind", ["stride 2", "grouped", "depthwise"])
def test_a_float_checkpoint_restores_into_the_quantized_layer(kind, tmp_path):
    x = batch(9)
    norms = [BatchNorm(MOMENTUM, EPSILON) for _ in range(2)]
    plain = built(make(kind, activation="relu6", norm=norms[0]), x, seed=1)
    quantized = built(make(kind, activation="relu6", norm=norms[1], scheme=Scheme()), x, seed=2)
    path = tf.train.Checkpoint(model=plain).write(str(tmp_path / "ckpt"))
    tf.train.Checkpoint(model=quantized).read(path).assert_consumed()
    for name, value in arrays(plain).items():
        np.testing.assert_array_equal(arrays(quantized)[name], value)

    out, expected = quantized(tf.constant(x)).numpy(), plain(tf.constant(x)).numpy()
    # Weights are off by up to half a step of |w|max / 127, inputs are not rounded: at an output
    # that adds up to sum|x|·|w|max / 254, plus half a step of [0, 6]. (The bound holds for every
    # single output; on average errors cancel.)
    w = arrays(plain)
    statistics = (w[n] for n in ("mean", "variance", "scale", "bias"))
    kernel, _ = reference.fold(w["kernel"], *statistics, EPSILON)
    ones = np.ones_like(kernel) * np.abs(kernel).max((0, 1) if kernel.ndim == 3 else (0, 1, 2))
    bound = convolve(quantized, np.abs(x), ones) / 254 + 3 / 255
    assert np.all(np.abs(out - expected) <= 1.001 * bound)
    assert np.mean(np.abs(out - expected)) < 0.02
    assert np.abs(expected).mean() > 0.2


def operations(layer, x):
    """Names of the kinds of all operations in a layer's training and inference graphs."""
    kinds = set()
    for training in (False, True):
        graph = tf.function(lambda x: layer(x, training=training)).get_concrete_function(x).graph
        kinds |= {node.op for node in graph.as_graph_def().node}
        for function in graph.as_graph_def().library.function:
            kinds |= {node.op for node in function.node_def}
    return kinds


def test_without_a_scheme_no_fake_quantization_is_in_the_graph():
    x = tf.constant(batch(10))

    def network(scheme):
        norm = BatchNorm(MOMENTUM, EPSILON)
        return tf_keras.Sequential(
            [
                Conv(4, 3, activation="relu6", norm=norm, scheme=scheme),
                DepthwiseConv(3, norm=norm, scheme=scheme),
                SeparableConv(6, groups=2, scheme=scheme, activation="relu6"),
                quantize(scheme, "sigmoid"),
            ]
        )

    assert not [kind for kind in operations(network(None), x) if "FakeQuant" in kind]
    assert [kind for kind in operations(network(Scheme()), x) if "FakeQuant" in kind]


def test_a_linear_output_observes_its_range_and_relu6_has_the_fixed_one():
    x = batch(11)
    layer = Conv(5, 3, scheme=Scheme())
    layer(tf.constant(x), training=True)
    layer.kernel.assign(np.random.default_rng(0).normal(0, 1, layer.kernel.shape))
    for variable in layer.output_range.variables:
        variable.assign(0.0)
    out = layer(tf.constant(x), training=True).numpy()
    expected = reference.conv(x, reference.fake_quant_kernel(layer.kernel.numpy()))
    low, high = (float(v) for v in layer.output_range.ranges.values())
    np.testing.assert_allclose([low, high], [expected.min(), expected.max()], rtol=1e-5)
    assert_same_grid_point(out, reference.fake_quant(expected, low, high), (high - low) / 255)
    assert not Conv(5, activation="relu6", scheme=Scheme()).output_range.variables


def test_two_layers_can_share_the_range_of_their_outputs():
    shared = quantize(Scheme(), "observed")
    a, b = (Conv(3, scheme=Scheme(), output=shared) for _ in range(2))
    x = tf.constant(batch(12))
    a(x, training=True), b(10.0 * x, training=True)
    assert a.output_range is b.output_range
    assert len({id(v) for v in a.output_range.variables + b.output_range.variables}) == 2


def test_separable_is_depthwise_then_pointwise_with_both_biases():
    x = batch(13)
    layer = built(SeparableConv(6, groups=2, activation="relu6"), x)
    d, p = arrays(layer.depthwise), arrays(layer.pointwise)
    weights = (d["kernel"], d["bias"], p["kernel"], p["bias"])
    expected = reference.relu6(reference.separable(x, weights, groups=2))
    np.testing.assert_allclose(layer(tf.constant(x)), expected, **FLOAT)


@pytest.mark.parametrize("activation", [None, "relu6"])
def test_add(activation):
    a, b = batch(14) * 3, batch(15) * 3
    expected = a + b if activation is None else reference.relu6(a + b)
    np.testing.assert_allclose(Add(activation)(tf.constant(a), tf.constant(b)), expected, **FLOAT)
    out = Add(activation, Scheme())(tf.constant(a), tf.constant(b), training=True).numpy()
    low, high = (0.0, 6.0) if activation else ((a + b).min(), (a + b).max())
    assert_same_grid_point(out, reference.fake_quant(expected, low, high), (high - low) / 255)


def test_initial_weights_keep_the_scale_of_activations():
    """The mean square stays 1, also where ReLU6 takes half of it (He et al. 2015)."""
    x = tf.random.stateless_normal([4, 12, 12, 64], [1, 2])
    layers = (Conv(64, 3), DepthwiseConv(3), Conv(64, groups=4), SeparableConv(64))
    layers += (Conv(64, 3, activation="relu6"), DepthwiseConv(3, activation="relu6"))
    for layer in layers:
        inside = layer(x)[:, 1:-1, 1:-1]  # padding has no variance
        # 64 channels of random kernels: their mean has a spread of a few percent.
        np.testing.assert_allclose(np.mean(inside**2), 1.0, rtol=0.25)


@pytest.mark.parametrize("layer", [Conv, Add])
def test_an_unknown_activation_is_refused(layer):
    arguments = (4,) if layer is Conv else ()
    with pytest.raises(ValueError, match="'tanh' is not one of None, 'relu6'"):
        layer(*arguments, activation="tanh")


@pytest.mark.parametrize("channels, filters", [(6, 8), (8, 6)])
def test_channels_that_groups_do_not_divide_are_refused(channels, filters):
    with pytest.raises(ValueError, match=f"{channels} input and {filters} output .* 4 groups"):
        Conv(filters, groups=4)(tf.zeros([1, 2, 2, channels]))


@pytest.mark.parametrize("momentum", [-0.5, 1.0, 99.0])
def test_a_momentum_outside_of_0_1_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum {momentum}"):
        BatchNorm(momentum)


REPLICAS = """
import numpy as np
import memvid_tf
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from memvid_tf.layers.conv import BatchNorm, Conv
from memvid_tf.layers.fake_quant import Scheme

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    layer = Conv(3, norm=BatchNorm(0.5), scheme=Scheme())
    layer(tf.zeros([1, 4, 4, 2]))

batches = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2)).astype(np.float32)
batches[1] *= 5
inputs = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(batches[context.replica_id_in_sync_group])
)
outputs = tf.function(lambda x: strategy.run(lambda x: layer(x, training=True), (x,)))(inputs)

kernel = strategy.experimental_local_results(layer.kernel)[0].numpy()[0, 0]
mean = np.mean([(x @ kernel).mean((0, 1, 2)) for x in batches], 0)
np.testing.assert_allclose(layer.mean.read_value(), 0.5 * mean, rtol=1e-5, atol=1e-6)

low, high = (float(v.read_value()) for v in layer.output_range.ranges.values())
found = [x.numpy() for x in strategy.experimental_local_results(outputs)]
# Each replica rounds to the range of its own batch: its extrema are those of its outputs.
np.testing.assert_allclose(low, np.mean([x.min() for x in found]), atol=0.1)
np.testing.assert_allclose(high, np.mean([x.max() for x in found]), atol=0.1)
"""


@pytest.mark.slow
def test_replicas_share_their_statistics_and_ranges_as_means():
    # In a process of its own, since devices are divided before TensorFlow starts.
    result = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
