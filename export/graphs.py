"""The interleaved detector as separately runnable graphs (LFS figures 2 and 5).

f0 and f1 turn a frame into features. `memory` has two signatures that share their weights: `step`
takes features and state to predictions and the next state; `update` leaves the predictions out,
for the asynchronous worker whose frame is shown by f1 anyway. `policy`, where there is one, reads the
state after and before a frame.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from memvid_tf.errors import UserError
from memvid_tf.layers.conv_lstm import FactoredCell, State
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.policy import Policy

SERVING = "serving_default"
STATE = tuple((name, f"{name}_next") for name in State._fields)  # input and output names, in order

# Producer and consumer of every tensor that crosses from one graph to another.
EDGES = tuple(
    (f"{extractor}/{SERVING}/features", f"memory/{signature}/features")
    for extractor, signatures in (("f0", ("step", "update")), ("f1", ("step",)))
    for signature in signatures
)
STATE_EDGES = tuple(
    (f"memory/{producer}/{output}", f"memory/{consumer}/{name}")
    for producer in ("step", "update")
    for consumer in ("step", "update")
    for name, output in STATE
)
BEFORE = tuple(f"{name}_before" for name in State._fields)
POLICY_EDGES = tuple(
    (f"memory/{producer}/{output}", f"policy/{SERVING}/{consumer}")
    for producer in ("step", "update")
    for (name, output), before in zip(STATE, BEFORE)
    for consumer in (name, before)
)


class Graph(NamedTuple):
    """What `convert.convert` takes.

    Attributes:
      module: tracks the variables.
      signatures: functions with static shapes and batch 1, by name.
    """

    module: tf.Module
    signatures: Mapping[str, tf.types.experimental.GenericFunction]


class Kept(tf.Module):
    """Keeps a network alive for the SavedModel."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def interleaved(model: InterleavedDetector) -> dict[str, Graph]:
    """The graphs f0, f1 and memory of a network, in inference mode.

    Raises:
      UserError: if the network's memory is of a form that cannot be one graph for both extractors.
    """
    if not isinstance(model.memory, FactoredCell):
        raise UserError(
            f"task.model.cell {model.config.cell!r} has weights of its own for each extractor and "
            "cannot be exported as one memory graph; train with task.model.cell=factored"
        )
    module = Kept(model)

    def extractor(name):
        spec = tf.TensorSpec([1, *model.frame_size(name), 3], tf.float32, "image")

        @tf.function(input_signature=[spec])
        def extract(image):
            return {"features": model.extract(image, name)}

        return Graph(module, {SERVING: extract})

    channels = model.config.state_channels
    map_spec = [
        tf.TensorSpec([1, *model.map_size, channels], tf.float32, name)
        for name in ("features", *State._fields)
    ]

    def step(features, c, h):
        # Every extractor's features enter the same graph: "f0" only names the weights, which the
        # factored cell does not distinguish.
        output, state = model.step(features, State(c, h), "f0")
        return output, {name: tensor for (_, name), tensor in zip(STATE, state)}

    @tf.function(input_signature=map_spec)
    def step_signature(features, c, h):
        output, state = step(features, c, h)
        return {**model.detect(output), **state}

    @tf.function(input_signature=map_spec)
    def update_signature(features, c, h):
        return step(features, c, h)[1]

    return {
        "f0": extractor("f0"),
        "f1": extractor("f1"),
        "memory": Graph(module, {"step": step_signature, "update": update_signature}),
    }


def policy_graph(model: InterleavedDetector, policy: Policy) -> Graph:
    """The graph of a detector's policy, in inference mode: c, h, c_before, h_before and eta to
    q_values [1, 2]."""
    map_shape = [1, *model.map_size, model.config.state_channels]
    specs = [tf.TensorSpec(map_shape, tf.float32, name) for name in (*State._fields, *BEFORE)]
    specs.append(tf.TensorSpec([1, policy.config.history], tf.float32, "eta"))

    @tf.function(input_signature=specs)
    def decide(c, h, c_before, h_before, eta):
        return {"q_values": policy(State(c, h), State(c_before, h_before), eta)}

    return Graph(Kept(policy), {SERVING: decide})
