"""The gate on real conversions: a sound graph passes, and each fault is built and refused."""

import numpy as np
import pytest
import tensorflow as tf

from export import convert, gate

IMAGE = (-1.0, 127 / 128)
SIGMOID = (0.0, 255 / 256)


def fake_quant(x, low, high):
    return tf.quantization.fake_quant_with_min_max_args(x, low, high)


def by_channel(kernel):
    limits = tf.reduce_max(tf.abs(kernel), axis=list(range(len(kernel.shape) - 1)))
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -limits, limits, narrow_range=True
    )


class Layers:
    """Quantized layers with random weights, in the order in which they are called."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)

    def normal(self, *shape):
        return tf.constant(self.random.normal(0, 0.5, shape).astype(np.float32))

    def conv(self, x, channels, size=3, stride=1, groups=1, weights=by_channel):
        kernel = self.normal(size, size, x.shape[-1] // groups, channels)
        y = tf.nn.conv2d(x, weights(kernel), stride, "SAME")
        return tf.nn.bias_add(y, self.normal(channels))

    def relu6_conv(self, x, channels, **options):
        return fake_quant(tf.nn.relu6(self.conv(x, channels, **options)), 0.0, 6.0)

    def depthwise(self, x):
        channels = x.shape[-1]
        kernel = by_channel(self.normal(3, 3, channels))
        y = tf.nn.depthwise_conv2d(x, tf.reshape(kernel, [3, 3, channels, 1]), [1] * 4, "SAME")
        return fake_quant(tf.nn.relu6(tf.nn.bias_add(y, self.normal(channels))), 0.0, 6.0)

    def dense(self, x, units):
        kernel = fake_quant(self.normal(x.shape[-1], units), -2.0, 2.0 * 127 / 128)
        return fake_quant(tf.matmul(x, kernel) + self.normal(units), -4.0, 4.0 * 127 / 128)


def sound(image):
    """Every kind of layer that exported graphs have."""
    layers = Layers()
    x = layers.relu6_conv(fake_quant(image, *IMAGE), 16, stride=2)
    x = layers.relu6_conv(layers.depthwise(x), 24, size=1)
    gates = fake_quant(layers.conv(x, 24, groups=4, size=1), -5.0, 5.0 * 127 / 128)
    gated = fake_quant(x * fake_quant(tf.sigmoid(gates), *SIGMOID), 0.0, 6.0)
    x = tf.concat([x, gated], -1)
    pooled = tf.reshape(tf.reduce_max(x, [1, 2]), [1, 48])
    return {"features": x, "logits": layers.dense(pooled, 5)}


def hole(image):
    layers = Layers()
    x = layers.relu6_conv(fake_quant(image, *IMAGE), 16)
    forgotten = tf.multiply(x, fake_quant(tf.sigmoid(x), *SIGMOID), name="forgotten")
    return {"features": layers.relu6_conv(forgotten, 8)}


def wide_sigmoid(image):
    x = fake_quant(Layers().conv(fake_quant(image, *IMAGE), 16), -6.0, 6.0 * 127 / 128)
    return {"features": fake_quant(tf.sigmoid(x, name="wide_sigmoid"), 0.0, 1.0)}


def lone_relu6(image):
    layers = Layers()
    x = fake_quant(layers.conv(fake_quant(image, *IMAGE), 16), -7.0, 7.0 * 127 / 128)
    activated = fake_quant(tf.nn.relu6(x, name="lone"), 0.0, 6.0)
    # The sum keeps x alive, so that the activation cannot be fused into the convolution.
    both = fake_quant(activated + x, -7.0, 7.0 * 127 / 128)
    return {"features": layers.relu6_conv(both, 8)}


def unquantized_input(image):
    return {"features": Layers().relu6_conv(image, 16)}


def one_scale_for_all_channels(image):
    def by_tensor(kernel):
        return fake_quant(kernel, -2.0, 2.0 * 127 / 128)

    return {"features": Layers().relu6_conv(fake_quant(image, *IMAGE), 16, weights=by_tensor)}


def asymmetric_weights(image):
    def by_tensor(kernel):
        return fake_quant(kernel, -1.0, 3.0)

    return {"features": Layers().relu6_conv(fake_quant(image, *IMAGE), 16, weights=by_tensor)}


def converted(body, precision="int8", size=8, name="image"):
    spec = tf.TensorSpec([1, size, size, 3], tf.float32, name)
    function = tf.function(body, input_signature=[spec])
    return convert.convert(tf.Module(), {"serving_default": function}, precision=precision)


@pytest.fixture(scope="module")
def sound_model():
    return converted(sound)


def violations(body, precision="int8"):
    return gate.check_graph("f0", converted(body, precision), precision=precision)


def of(found, what):
    """The violations that say `what`; those there are carry the graph and the signature."""
    assert all((one.graph, one.subgraph) == ("f0", "serving_default") for one in found)
    return [one for one in found if what in one.what]


def test_a_sound_graph_passes(sound_model):
    assert gate.check_graph("f0", sound_model, precision="int8") == []
    gate.check({"f0": sound_model}, [], precision="int8")


def test_a_float_graph_passes_as_float32_only():
    def body(image):
        layers = Layers()
        x = tf.nn.relu6(layers.conv(image, 16, weights=tf.identity))
        return {"features": x * tf.sigmoid(x)}

    model = converted(body, "float32")
    assert gate.check_graph("f0", model, precision="float32") == []
    refused = gate.check_graph("f0", model, precision="int8")
    assert {one.tensor for one in of(refused, "float32")} >= {"serving_default_image:0"}


def test_a_missing_fake_quant_node_is_named():
    found = of(violations(hole), "is float32")
    assert any("forgotten" in one.tensor and one.op.startswith("MUL #") for one in found), found


def test_a_sigmoid_ranged_to_one_is_named():
    (found,) = violations(wide_sigmoid)
    assert "wide_sigmoid" in found.tensor
    assert found.op.startswith("QUANTIZE")
    assert "scale 0.00390625 zero point -128 → int8 scale 0.00392156" in found.what
    assert "255/256" in found.hint


def test_a_lone_relu6_splits_the_partition_and_is_named():
    found = of(violations(lone_relu6), "XNNPACK leaves out")
    assert [one.op.split(" ")[0] for one in found] == ["RELU6"], found
    assert "lone" in found[0].tensor
    assert "2 partitions" in found[0].what


def test_an_unquantized_input_is_named():
    found = of(violations(unquantized_input), "is float32")
    assert any("image" in one.tensor for one in found), found


@pytest.mark.parametrize("body", [one_scale_for_all_channels, asymmetric_weights])
def test_weights_other_than_symmetric_by_channel_are_named(body):
    found = of(violations(body), "weights") + of(violations(body), "1 scales for 16")
    assert found
    assert all(one.op.startswith("CONV_2D #") and "Conv2D" in one.tensor for one in found), found


def test_fake_quant_nodes_left_in_a_float_graph_are_refused():
    found = of(violations(sound, "float32"), "XNNPACK leaves out")
    assert any(one.op.startswith("QUANTIZE") for one in found), found


def test_a_dynamic_batch_is_named(tmp_path):
    # Not by way of export.convert, which refuses it before the gate could.
    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32, "image")
    module = tf.Module()
    module.body = tf.function(
        lambda image: {"features": Layers().relu6_conv(fake_quant(image, *IMAGE), 16)},
        input_signature=[spec],
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.body)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    found = of(gate.check_graph("f0", converter.convert(), precision="int8"), "static")
    assert found[0].what == "has shape [-1, 8, 8, 3], not a static one with batch 1"
    assert found[0].tensor
    assert any("[-1, 8, 8, 16]" in one.what for one in found)


def consumer(low=0.0, high=6.0, channels=48, dtype="int8"):
    def body(features):
        return {"out": Layers(1).relu6_conv(fake_quant(features, low, high), 8)}

    spec = tf.TensorSpec([1, 4, 4, channels], tf.float32, "features")
    function = tf.function(body, input_signature=[spec])
    return convert.convert(tf.Module(), {"step": function}, precision=dtype)


EDGE = ("f0/serving_default/features", "memory/step/features")


def test_equal_ends_make_an_edge(sound_model):
    gate.check({"f0": sound_model, "memory": consumer()}, [EDGE], precision="int8")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"high": 5.9}, "scale"),
        ({"low": -0.5, "high": 5.5}, "zero_point -128 → -107"),
        ({"channels": 32}, "shape (1, 4, 4, 48) → (1, 4, 4, 32)"),
        ({"dtype": "float32"}, "dtype int8 → float32"),
    ],
)
def test_unequal_ends_of_an_edge_are_named(sound_model, options, what):
    models = {"f0": sound_model, "memory": consumer(**options)}
    (found,) = gate.check_edges(models, [EDGE])
    assert (found.graph, found.subgraph, found.tensor) == ("f0", "serving_default", "features")
    assert "memory/step/features" in found.what and what in found.what


def test_a_scale_off_by_one_unit_in_the_last_place_is_no_edge():
    def tensor(scale):
        return gate.TensorInfo("x", (1, 2), "int8", float(scale), -128)

    scale = np.float32(6 / 255)
    next_scale = np.nextafter(scale, np.float32(1))
    assert gate.check_edge("a/b/x", tensor(scale), "c/d/x", tensor(scale)) == []
    assert gate.check_edge("a/b/x", tensor(scale), "c/d/x", tensor(next_scale))


def test_unknown_names_are_refused_with_the_known_ones(sound_model):
    models = {"f0": sound_model}
    for edge, message in (
        (("f9/serving_default/features", EDGE[0]), r"graph 'f9' is not one of \['f0'\]"),
        (("f0/run/features", EDGE[0]), r"signature 'run' is not one of \['serving_default'\]"),
        (("f0/serving_default/c", EDGE[0]), r"'c' is not one of the outputs \['features', 'log"),
        (("f0/features", EDGE[0]), "not of the form"),
    ):
        with pytest.raises(ValueError, match=message):
            gate.check_edges(models, [edge])
    with pytest.raises(ValueError, match="post_processing names"):
        gate.check(models, [], precision="int8", post_processing=["post"])
    with pytest.raises(ValueError, match="in_parts names"):
        gate.check(models, [], precision="int8", in_parts=["attention"])
    with pytest.raises(ValueError, match="'int4' is not one of"):
        gate.check(models, [], precision="int4")
    with pytest.raises(ValueError, match="not a .tflite file"):
        gate.tensor_info(b"<html>404</html>", "serving_default")


def test_the_error_lists_graph_operator_tensor_and_hint():
    with pytest.raises(gate.GateError) as caught:
        gate.check({"f0": converted(wide_sigmoid)}, [], precision="int8")
    (found,) = caught.value.violations
    for part in ("f0/serving_default", found.op, found.tensor, found.what, found.hint):
        assert part in str(caught.value)


def test_the_second_signature_is_checked_too():
    spec = [tf.TensorSpec([1, 8, 8, 3], tf.float32, "image")]
    functions = {
        "step": tf.function(sound, input_signature=spec),
        "update": tf.function(lone_relu6, input_signature=spec),
    }
    model = convert.convert(tf.Module(), functions, precision="int8")
    found = gate.check_graph("memory", model, precision="int8")
    assert [(one.subgraph, one.op.split(" ")[0]) for one in found] == [("update", "RELU6")], found
    assert gate.count(model, "step").multiply_adds != gate.count(model, "update").multiply_adds


def test_tensor_info_gives_what_a_manifest_needs(sound_model):
    info = gate.tensor_info(sound_model, "serving_default")
    assert info.inputs == {"image": gate.TensorInfo("image", (1, 8, 8, 3), "int8", 1 / 128, 0)}
    assert info.outputs["features"] == gate.TensorInfo(
        "features", (1, 4, 4, 48), "int8", float(np.float32(6 / 255)), -128
    )
    assert info.outputs["logits"] == gate.TensorInfo("logits", (1, 5), "int8", 1 / 32, 0)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_count_follows_the_layers(sound_model, precision):
    def shared(image):
        # One predictor on two maps: its kernel and bias count once, its multiply-adds twice.
        layers = Layers()
        kernel, bias = layers.normal(3, 3, 3, 6), layers.normal(6)
        maps = [image, image[:, ::2, ::2]]
        outputs = [tf.nn.conv2d(x, kernel, 1, "SAME") + bias for x in maps]
        return {"large": outputs[0], "small": outputs[1]}

    if precision == "float32":
        kernel = 3 * 3 * 3 * 6
        found = gate.count(converted(shared, "float32"), "serving_default")
        assert found == gate.Count(kernel * (8 * 8 + 4 * 4), kernel, 6)
    else:
        # Of `sound`: stem, depthwise, pointwise, four groups of 6 → 6, dense.
        kernels = [3 * 3 * 3 * 16, 3 * 3 * 16, 16 * 24, 24 * 24 // 4, 48 * 5]
        positions = [4 * 4] * 4 + [1]
        found = gate.count(sound_model, "serving_default")
        assert found.multiply_adds == sum(np.multiply(kernels, positions))
        assert found.kernel_parameters == sum(kernels)
        assert found.bias_parameters == 16 + 16 + 24 + 24 + 5
        assert found.parameters == found.kernel_parameters + found.bias_parameters


def test_count_refuses_what_it_cannot_count():
    def body(image):
        kernel = Layers().normal(3, 3, 4, 3)
        return {"y": tf.nn.conv2d_transpose(image, kernel, [1, 16, 16, 4], 2)}

    with pytest.raises(ValueError, match="TRANSPOSE_CONV"):
        gate.count(converted(body, "float32"), "serving_default")
