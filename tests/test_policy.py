"""The policy network: the paper's layers, their cost, and the exported graph."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tiny_run

from export import convert, gate, graphs
from memvid_tf.layers.conv_lstm import State
from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.models import interleaved
from memvid_tf.models.policy import ETA_ONE, Policy, PolicyConfig, build_policy
from memvid_tf.runtime.interpreter import Graph

CONFIG = PolicyConfig(branch_channels=3, branch_kernel=3, channels=5, history=4, strides=1)
MAP = (5, 7, 2)


def states(rng, batch, shape=MAP):
    return State(*(tf.constant(rng.uniform(0, 6, (batch, *shape)), tf.float32) for _ in range(2)))


def etas(rng, batch, history=CONFIG.history):
    return tf.constant(rng.integers(0, 2, (batch, history)) * ETA_ONE, tf.float32)


def test_the_branches_are_one_grouped_convolution():
    """The literal form: the four maps concatenated and convolved in four groups (LFS figure 4)."""
    tf_keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    policy = Policy(CONFIG)
    after, before, eta = states(rng, 3), states(rng, 3), etas(rng, 3)
    found = policy(after, before, eta)
    for variable in policy.trainable_variables:  # biases begin with zeros
        variable.assign_add(rng.normal(0, 0.1, variable.shape))
    found = policy(after, before, eta)

    changes = [a - b for a, b in zip(after, before)]
    kernel = tf.concat([branch.kernel for branch in policy.branches], -1)
    bias = tf.concat([branch.bias for branch in policy.branches], -1)
    grouped = tf.nn.conv2d(tf.concat([*after, *changes], -1), kernel, 2, "SAME") + bias
    x = tf.nn.relu6(grouped)
    x = tf.nn.depthwise_conv2d(x, policy.depthwise.kernel, [1, 1, 1, 1], "SAME")
    x = tf.nn.conv2d(x + policy.depthwise.bias, policy.pointwise.kernel, 1, "SAME")
    x = tf.reduce_max(tf.nn.relu6(x + policy.pointwise.bias), [1, 2])
    weights = policy.values.kernel[0, 0]
    wanted = tf.concat([x, eta], -1) @ weights + policy.values.bias
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-4)


def test_every_input_counts():
    tf_keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    policy = Policy(CONFIG)
    inputs = [*states(rng, 1), *states(rng, 1), etas(rng, 1)]

    def run(parts):
        return policy(State(*parts[:2]), State(*parts[2:4]), parts[4]).numpy()

    whole = run(inputs)
    for place in range(5):
        changed = list(inputs)
        changed[place] = ETA_ONE - changed[place]
        assert not np.allclose(run(changed), whole), place


def test_maps_of_one_cell_and_observers():
    rng = np.random.default_rng(4)
    policy = Policy(CONFIG, Scheme())
    inputs = states(rng, 2, (2, 2, 3)), states(rng, 2, (2, 2, 3)), etas(rng, 2)
    assert policy(*inputs, training=True).shape == (2, 2)
    ranges = [v for v in policy.non_trainable_variables if "max" in v.name]
    assert ranges and all(v.numpy() > 0 for v in ranges)
    kept = [v.numpy() for v in ranges]
    policy(states(rng, 2, (2, 2, 3)), *inputs[1:], training=False)
    assert kept == [v.numpy() for v in ranges]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"history": 0}, "policy.history 0"), ({"strides": 0}, "policy.strides 0"),
     ({"observes": "all"}, "policy.observes: 'all' is not one of")],
)  # fmt: skip
def test_impossible_networks_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Policy(CONFIG.replace(**changes))


@functools.cache
def detector():
    tiny_run.add_backbone()
    config = interleaved.InterleavedConfig(quantization="int8")
    config.override(tiny_run.FLOAT["task"]["model"])
    return interleaved.build(config)


def test_a_memory_without_c_is_refused():
    model = interleaved.build(detector().config.replace(cell="conv_gru"))
    with pytest.raises(ValueError, match="model.cell 'conv_gru' has no c, which the policy reads"):
        build_policy(model, CONFIG)


@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(branch_kernel=1, strides=2)])
def test_the_int8_graph_is_the_network(config, tmp_path):
    tf_keras.utils.set_random_seed(5)
    rng = np.random.default_rng(5)
    model = detector()
    policy = build_policy(model, config)
    shape = (*model.map_size, model.config.state_channels)
    for _ in range(20):
        policy(states(rng, 4, shape), states(rng, 4, shape), etas(rng, 4), training=True)
    graph = graphs.policy_graph(model, policy)
    flatbuffer = convert.convert(graph.module, graph.signatures, precision="int8")
    gate.check({"policy": flatbuffer}, (), precision="int8")  # pure int8, one partition
    (tmp_path / "policy.tflite").write_bytes(flatbuffer)
    exported = Graph(tmp_path / "policy.tflite")
    values = exported.outputs["q_values"]
    for _ in range(20):
        after, before, eta = states(rng, 1, shape), states(rng, 1, shape), etas(rng, 1)
        inputs = {
            "c": after.c,
            "h": after.h,
            "c_before": before.c,
            "h_before": before.h,
            "eta": eta,
        }
        stored = {name: exported.inputs[name].quantize(x.numpy()) for name, x in inputs.items()}
        assert set(stored["eta"].ravel()) <= {-128, 127}  # the ends of int8, exactly 0 and ETA_ONE
        found = values.dequantize(exported(**stored)["q_values"])
        # A step where two ways of rounding a half meet, not two.
        np.testing.assert_allclose(found, policy(after, before, eta), atol=1.5 * values.scale)
