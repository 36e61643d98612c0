"""Conversion: names, shapes, precision, numerics and shared weights of real flatbuffers."""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from benchmarks import conversions
from export import convert, gate


def fake_quant(x, low, high):
    return tf.quantization.fake_quant_with_min_max_args(x, low, high)


class Memory(tf.Module):
    """A trunk that both signatures use and a head of `step` alone; weights are variables."""

    def __init__(self, quantized):
        super().__init__()
        random = np.random.default_rng(3)
        self.quantized = quantized
        self.trunk = tf.Variable(random.normal(0, 0.1, [3, 3, 32, 64]).astype(np.float32))
        self.head = tf.Variable(random.normal(0, 0.2, [1, 1, 64, 6]).astype(np.float32))
        self.bias = tf.Variable(random.normal(0, 0.5, [64]).astype(np.float32))

    def quantize(self, x, low, high):
        return fake_quant(x, low, high) if self.quantized else x

    def conv(self, x, kernel):
        if self.quantized:
            limits = tf.reduce_max(tf.abs(kernel), [0, 1, 2])
            kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                kernel, -limits, limits, narrow_range=True
            )
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def next_state(self, features):
        y = tf.nn.relu6(self.conv(self.quantize(features, 0.0, 6.0), self.trunk) + self.bias)
        return self.quantize(y, 0.0, 6.0)

    def step(self, features):
        c_next = self.next_state(features)
        logits = self.conv(c_next, self.head)
        return {"logits": self.quantize(logits, -9.0, 9.0 * 127 / 128), "c_next": c_next}

    def update(self, features):
        return {"c_next": self.next_state(features)}


SPEC = [tf.TensorSpec([1, 5, 7, 32], tf.float32, "features")]


def signatures(module, *names):
    return {name: tf.function(getattr(module, name), input_signature=SPEC) for name in names}


def features():
    return np.random.default_rng(4).uniform(0, 6, [1, 5, 7, 32]).astype(np.float32)


@pytest.fixture(scope="module")
def int8_model():
    module = Memory(quantized=True)
    return convert.convert(module, signatures(module, "step", "update"), precision="int8")


def test_signatures_keep_their_names_and_are_int8_throughout(int8_model):
    runner = Interpreter(model_content=int8_model).get_signature_list()
    assert runner == {
        "step": {"inputs": ["features"], "outputs": ["c_next", "logits"]},
        "update": {"inputs": ["features"], "outputs": ["c_next"]},
    }
    for name in runner:
        info = gate.tensor_info(int8_model, name)
        assert {one.dtype for one in [*info.inputs.values(), *info.outputs.values()]} == {"int8"}
    assert gate.check_graph("memory", int8_model, precision="int8") == []


def test_int8_is_the_simulated_network(int8_model):
    info = gate.tensor_info(int8_model, "step")
    scale = info.inputs["features"].scale
    levels = np.round(features() / scale - 128).astype(np.int8)
    simulated = Memory(quantized=True).step((levels.astype(np.float32) + 128) * scale)
    found = Interpreter(model_content=int8_model).get_signature_runner("step")(features=levels)
    for name, value in simulated.items():
        output = info.outputs[name]
        wanted = value.numpy() / output.scale + output.zero_point
        # One step: the runtime rounds its int32 accumulator, the simulation a float32 sum. The
        # head sees the trunk's steps weighted by kernels of about .2, hence one more there.
        steps = 1.01 if name == "c_next" else 2.01
        np.testing.assert_allclose(found[name].astype(np.float32), wanted, rtol=0, atol=steps)
        assert np.mean(np.abs(found[name] - wanted) < 0.5) > 0.95


def test_float32_is_the_float_network():
    module = Memory(quantized=False)
    model = convert.convert(module, signatures(module, "step"), precision="float32")
    assert gate.check_graph("memory", model, precision="float32") == []
    found = Interpreter(model_content=model).get_signature_runner("step")(features=features())
    for name, value in module.step(features()).items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-5, atol=1e-5)


def test_signatures_of_one_file_share_weights_and_agree(int8_model):
    module = Memory(quantized=True)
    step = convert.convert(module, signatures(module, "step"), precision="int8")
    kernel_bytes = 3 * 3 * 32 * 64
    # `update` adds its own tensor records (scales and zero points by channel, 12 bytes each), but
    # not the kernel that it shares.
    assert len(step) > kernel_bytes
    assert len(int8_model) - len(step) < 0.2 * kernel_bytes
    levels = np.random.default_rng(5).integers(-128, 128, [1, 5, 7, 32], np.int8)
    interpreter = Interpreter(model_content=int8_model)
    states = [
        interpreter.get_signature_runner(name)(features=levels)["c_next"].copy()
        for name in ("step", "update")
    ]
    np.testing.assert_array_equal(*states)
    assert np.unique(states[0]).size > 50


def test_a_dynamic_shape_is_refused_and_named():
    def body(features):
        return {"c_next": features * 2.0}

    for shape in ([None, 5, 7, 32], [2, 5, 7, 32], [1, None, 7, 32], []):
        spec = tf.TensorSpec(shape, tf.float32, "features")
        function = tf.function(body, input_signature=[spec])
        with pytest.raises(ValueError, match="'step': input 'features' has shape .* batch 1"):
            convert.convert(tf.Module(), {"step": function}, precision="float32")

    def lost(features):
        return {"kept": features, "rows": tf.boolean_mask(features, features[..., 0] > 0)}

    function = tf.function(lost, input_signature=SPEC)
    with pytest.raises(ValueError, match="'step': output 'rows' has shape"):
        convert.convert(tf.Module(), {"step": function}, precision="float32")


def test_what_has_no_name_or_signature_is_refused():
    module = Memory(quantized=True)
    with pytest.raises(ValueError, match="'step' returns .*: return a dict"):
        function = tf.function(module.next_state, input_signature=SPEC)
        convert.convert(module, {"step": function}, precision="int8")
    with pytest.raises(ValueError, match="'step': .* tf.function with an input_signature"):
        convert.convert(module, {"step": tf.function(module.step)}, precision="int8")
    with pytest.raises(ValueError, match="'int4' is not one of"):
        convert.convert(module, signatures(module, "step"), precision="int4")
    with pytest.raises(ValueError, match="signatures is empty"):
        convert.convert(module, {}, precision="int8")


def test_concrete_functions_convert_too():
    module = Memory(quantized=True)
    function = tf.function(module.update).get_concrete_function(*SPEC)
    model = convert.convert(module, {"update": function}, precision="int8")
    assert list(gate.tensor_info(model, "update").inputs) == ["features"]


def test_the_converter_is_quiet_unless_it_fails(capfd):
    module = Memory(quantized=True)
    functions = signatures(module, "update")
    functions["update"].get_concrete_function()
    capfd.readouterr()
    convert.convert(module, functions, precision="int8")
    assert capfd.readouterr() == ("", "")

    def unsupported(features):
        return {"y": tf.raw_ops.Betainc(a=features, b=features, x=features)}

    function = tf.function(unsupported, input_signature=SPEC)
    with pytest.raises(Exception, match="Betainc") as caught:
        convert.convert(tf.Module(), {"update": function}, precision="float32")
    assert any(note.startswith("The converter logged:") for note in caught.value.__notes__)


@pytest.mark.slow
def test_conversions_keep_no_copy_of_their_weights():
    """With large weights: what the allocator keeps by itself, up to 2 MiB a call, is less."""
    weights_mib = 9 * 256 * 1024 * 4 / conversions.MIB
    found = conversions.measure(conversions.conversion((256, 1024)), 12)
    assert conversions.growth_mib(found["held_mib"], 3) < weights_mib / 2


def test_a_variable_that_the_module_does_not_hold_is_refused():
    module = Memory(quantized=True)
    with pytest.raises(AssertionError, match="untracked"):
        convert.convert(tf.Module(), signatures(module, "update"), precision="int8")
