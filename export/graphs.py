"""The interleaved detector as separately runnable graphs (LFS figures 2 and 5).

f0 and f1 turn a frame into features. `memory` has two signatures that share their weights: `step`
takes features and state to predictions and the next state; `update` leaves the predictions out,
for the asynchronous worker whose frame is shown by f1 anyway. Where a frame of f1 takes another
computation, which only reads the state, a third signature, `read`, is that. `policy`, where there is
one, reads the state after and before a frame.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from memvid_tf.errors import UserError
from memvid_tf.layers import conv
from memvid_tf.layers.conv_lstm import EXTRACTORS, PaperCell, State
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.policy import Policy

SERVING = "serving_default"

BEFORE = tuple(f"{name}_before" for name in State._fields)
POLICY_EDGES = tuple(
    (f"memory/{producer}/{name}_next", f"policy/{SERVING}/{consumer}")
    for producer in ("step", "update")
    for name, before in zip(State._fields, BEFORE)
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


def state_names(model: InterleavedDetector) -> tuple[tuple[str, str], ...]:
    """Input and output name of every tensor of the state, in order."""
    return tuple((name, f"{name}_next") for name in model.initial_state(1)._fields)


def f1_signature(model: InterleavedDetector) -> str:
    """The memory's signature that a frame of f1 takes."""
    return "read" if model.memory.f1_only_reads else "step"


def memory_edges(model: InterleavedDetector) -> tuple[tuple[str, str], ...]:
    """Producer and consumer of every tensor that the memory gets: features, and the state that goes
    from frame to frame."""
    on_f1 = f1_signature(model)
    features = tuple(
        (f"{extractor}/{SERVING}/features", f"memory/{signature}/features")
        for extractor, signature in (("f0", "step"), ("f0", "update"), ("f1", on_f1))
    )
    return features + tuple(
        (f"memory/{producer}/{output}", f"memory/{consumer}/{name}")
        for producer in ("step", "update")
        for consumer in dict.fromkeys(("step", "update", on_f1))
        for name, output in state_names(model)
    )


def signature(*specs: tf.TensorSpec):
    """Decorator: a tf.function over named tensors of these shapes, as LiteRT is to run it."""

    def decorate(function):
        @tf.function(input_signature=specs, autograph=False)
        def traced(*tensors):
            with conv.grouped_operator():
                return function(*tensors)

        return traced

    return decorate


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
    if isinstance(model.memory, PaperCell):
        raise UserError(
            f"task.model.cell {model.config.cell!r} has weights of its own for each extractor and "
            "cannot be exported as one memory graph; train with task.model.cell=factored"
        )
    module = Kept(model)

    def extractor(name):
        spec = tf.TensorSpec([1, *model.frame_size(name), 3], tf.float32, "image")

        @signature(spec)
        def extract(image):
            return {"features": model.extract(image, name)}

        return Graph(module, {SERVING: extract})

    extractors = {name: extractor(name) for name in EXTRACTORS}
    traced = extractors["f0"].signatures[SERVING].get_concrete_function()
    empty, names = model.initial_state(1), state_names(model)
    map_spec = [
        tf.TensorSpec(tensor.shape, tf.float32, name)
        for name, tensor in {**traced.structured_outputs, **empty._asdict()}.items()
    ]

    def step(features, state, extractor="f0"):
        # Where there is no signature for frames of f1, their features enter this one: "f0" only
        # names the weights, which those cells do not distinguish.
        output, after = model.step(features, type(empty)(*state), extractor)
        return output, {name: tensor for (_, name), tensor in zip(names, after)}

    @signature(*map_spec)
    def step_signature(features, *state):
        output, after = step(features, state)
        return {**model.detect(output), **after}

    @signature(*map_spec)
    def update_signature(features, *state):
        return step(features, state)[1]

    @signature(*map_spec)
    def read_signature(features, *state):
        return model.detect(step(features, state, "f1")[0])

    signatures = {"step": step_signature, "update": update_signature, "read": read_signature}
    if f1_signature(model) != "read":
        del signatures["read"]
    return {**extractors, "memory": Graph(module, signatures)}


def policy_graph(model: InterleavedDetector, policy: Policy) -> Graph:
    """The graph of a detector's policy, in inference mode: c, h, c_before, h_before and eta to
    q_values [1, 2]."""
    map_shape = [1, *model.map_size, model.config.state_channels]
    specs = [tf.TensorSpec(map_shape, tf.float32, name) for name in (*State._fields, *BEFORE)]
    specs.append(tf.TensorSpec([1, policy.config.history], tf.float32, "eta"))

    @signature(*specs)
    def decide(c, h, c_before, h_before, eta):
        return {"q_values": policy(State(c, h), State(c_before, h_before), eta)}

    return Graph(Kept(policy), {SERVING: decide})
