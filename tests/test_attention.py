"""The attention network against NumPy, and the history it reads."""

import numpy as np
import pytest
import reference
import tensorflow as tf

import memvid_tf  # noqa: F401  (before TensorFlow)
from export import convert, gate
from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.models.attention import HISTORY_ONE, Attention, AttentionConfig, next_history
from memvid_tf.windows import Windows

MAP, WINDOWS = (4, 6, 5), Windows(4, 2)


def inputs(seed, batch=2):
    random = np.random.default_rng(seed)
    features = random.uniform(0, 6, [batch, *MAP]).astype(np.float32)
    history = random.uniform(0, HISTORY_ONE, [batch, WINDOWS.count]).astype(np.float32)
    return tf.constant(features), tf.constant(history)


def built(seed, scheme=None):
    layer = Attention(AttentionConfig(channels=3, hidden=7), WINDOWS, scheme)
    layer(*inputs(seed), training=True)
    reference.randomise(
        [v for v in layer.variables if not v.name.split(":")[0].endswith(("_min", "_max"))],
        np.random.default_rng(seed),
    )
    return layer


def test_q_values_equal_the_loops():
    layer = built(0)
    features, history = (t.numpy().astype(float) for t in inputs(1))
    w = {name: getattr(layer, name) for name in ("reduce", "hidden", "values")}
    k = {name: conv.kernel.numpy()[0, 0].astype(float) for name, conv in w.items()}
    b = {name: conv.bias.numpy().astype(float) for name, conv in w.items()}
    x = reference.relu6(features @ k["reduce"] + b["reduce"]).reshape(2, -1)
    x = reference.relu6(x @ k["hidden"] + b["hidden"])
    expected = np.concatenate([x, history], 1) @ k["values"] + b["values"]
    # Sums of up to 72 products of order one in float32.
    np.testing.assert_allclose(layer(*inputs(1)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_the_history_is_that_of_equation_1():
    actions = [[3, 0], [3, 8], [1, 8], [3, 8]]
    history = tf.zeros([2, 9])
    expected = np.zeros([2, 9])
    for action in actions:
        history = next_history(history, tf.constant(action), 0.6)
        for b, a in enumerate(action):
            for k in range(9):
                expected[b, k] = min(0.6 * expected[b, k] + (k == a), 1.0)
        np.testing.assert_allclose(history / HISTORY_ONE, expected, rtol=1e-6)
    assert expected[0, 3] == 1.0 and 0.5 < expected[0, 1] < 1.0


def test_the_int8_graph_passes_the_gate():
    layer = built(2, Scheme())
    for _ in range(2):  # the weights have changed since the ranges were observed
        layer(*inputs(3), training=True)

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, *MAP], tf.float32, "features"),
            tf.TensorSpec([1, WINDOWS.count], tf.float32, "history"),
        ]
    )
    def decide(features, history):
        return {"q_values": layer(features, history)}

    content = convert.convert(layer, {"serving_default": decide}, precision="int8")
    assert gate.check_graph("attention", content, precision="int8") == []


@pytest.mark.parametrize(
    "fields, message",
    [(dict(channels=0), "channels 0"), (dict(hidden=-1), "hidden -1"), (dict(decay=1.0), "1.0 is")],
)
def test_numbers_of_which_no_network_can_be_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Attention(AttentionConfig(**fields), WINDOWS)
