"""Multiply-adds and parameters of a network, counted in the graph that TensorFlow traces from it.

The convention is that of LFS table 2 (derived in shared design): a multiply-add is one kernel
element applied at one position of the output, a parameter is one kernel element. Biases, batch
normalisation, activations and resizing count nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping

import tensorflow as tf

from memvid_tf.layers import conv

# Operation → output channels of its kernel, given the kernel's shape and the operation's node.
_CHANNELS = {
    "Conv2D": lambda shape, node: shape[3],  # [h, w, input channels / groups, output channels]
    "DepthwiseConv2dNative": lambda shape, node: shape[2] * shape[3],
    "MatMul": lambda shape, node: shape[0 if node.attr["transpose_b"].b else 1],
}
# These multiply too. A network that has one is refused rather than counted too low.
_UNCOUNTED = {
    "BatchMatMul",
    "BatchMatMulV2",
    "BatchMatMulV3",
    "Conv",
    "Conv2DBackpropInput",
    "Conv3D",
    "DepthwiseConv2dNativeBackpropInput",
    "Einsum",
    "_FusedConv2D",
    "_FusedMatMul",
}
# What may lie between a variable and the operation whose kernel it is; the kernel comes first.
_TRANSPARENT = {
    "Cast",
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "Identity",
    "Mul",
    "ReadVariableOp",
    "Reshape",
}
# Operation → attributes that name its functions, and the number of inputs that are not theirs.
_CALLS = {
    "PartitionedCall": (("f",), 0),
    "StatefulPartitionedCall": (("f",), 0),
    "While": (("cond", "body"), 0),
    "StatelessWhile": (("cond", "body"), 0),
    "If": (("then_branch", "else_branch"), 1),
    "StatelessIf": (("then_branch", "else_branch"), 1),
    "Case": (("branches",), 1),
    "StatelessCase": (("branches",), 1),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network or a part of one costs.

    Attributes:
      multiply_adds: for one example.
      kernels: number of elements of every kernel. Adding costs keeps a shared kernel once.
    """

    multiply_adds: int = 0
    kernels: Mapping[Hashable, int] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Elements of all kernels."""
        return sum(self.kernels.values())

    def __add__(self, other: "Cost") -> "Cost":
        """One part after the other."""
        return Cost(self.multiply_adds + other.multiply_adds, {**self.kernels, **other.kernels})


@dataclasses.dataclass
class _Scope:
    """One graph or function body while it is walked.

    Attributes:
      nodes: by name.
      arguments: argument of the function → the scope of its caller and the tensor's name there.
    """

    nodes: dict
    arguments: dict


def _shape(node) -> list[int]:
    """Shape of a node's only output."""
    shapes = node.attr["_output_shapes"].list.shape
    if len(shapes) != 1 or shapes[0].unknown_rank or any(d.size < 0 for d in shapes[0].dim):
        raise ValueError(
            f"{node.op} {node.name!r} has no static shape; trace the network with fully known "
            "shapes, batch 1"
        )
    return [d.size for d in shapes[0].dim]


def _output(tensor: str) -> int:
    """Number of an output, by the name of its tensor: `node`, `node:1`, or `node:output:1`."""
    number = tensor.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


class _Walk:
    """Adds up a traced function; the variables' names are those of its captured arguments."""

    def __init__(self, graph_def, variables: dict):
        self.functions = {f.signature.name: f for f in graph_def.library.function}
        self.variables = variables

    def _source(self, scope: _Scope, tensor: str):
        """Follows a kernel to its variable.

        Returns:
          The variable's key, None for a constant, and the static shape of the nearest tensor.
        """
        shape = None
        while True:
            name = tensor.split(":")[0]
            if name in scope.arguments:
                scope, tensor = scope.arguments[name]
                continue
            node = scope.nodes[name]
            if node.op == "IdentityN":  # around what has a gradient of its own
                tensor = node.input[_output(tensor)]
                continue
            if name in self.variables and node.op == "Placeholder":
                return self.variables[name], shape
            shape = shape or _shape(node)
            if node.op == "Const":
                return None, shape
            if node.op not in _TRANSPARENT:
                raise ValueError(f"the kernel {name!r} comes from {node.op}, not from a variable")
            tensor = node.input[0]

    def _kernel(self, scope: _Scope, node) -> Cost:
        key, shape = self._source(scope, node.input[1])
        elements = math.prod(shape)
        if key is not None and key.deref().shape.num_elements() != elements:
            raise ValueError(
                f"the kernel {shape} of {node.op} {node.name!r} is not the whole of the variable "
                f"{key.deref().name!r} of shape {tuple(key.deref().shape)}"
            )
        positions = math.prod(_shape(node)) // _CHANNELS[node.op](shape, node)
        return Cost(positions * elements, {} if key is None else {key: elements})

    def _call(self, scope: _Scope, node) -> Cost:
        attributes, skipped = _CALLS[node.op]
        names = []
        for attribute in attributes:
            value = node.attr[attribute]
            names += [f.name for f in value.list.func] or [value.func.name]
        inputs = [name for name in node.input if not name.startswith("^")][skipped:]
        costs = []
        for name in names:
            function = self.functions[name]
            arguments = {
                argument.name: (scope, tensor)
                for argument, tensor in zip(function.signature.input_arg, inputs)
            }
            body = _Scope({n.name: n for n in function.node_def}, arguments)
            costs.append(self.scope(body))
        total = sum(costs, Cost())
        if node.op.endswith(("If", "Case")):
            return Cost(max(c.multiply_adds for c in costs), total.kernels)
        return total

    def scope(self, scope: _Scope) -> Cost:
        """The cost of everything in a scope."""
        total = Cost()
        for node in scope.nodes.values():
            if node.op in _CHANNELS:
                total += self._kernel(scope, node)
            elif node.op in _CALLS:
                total += self._call(scope, node)
            elif node.op in _UNCOUNTED:
                raise ValueError(f"{node.op} {node.name!r} multiplies and cannot be counted")
        return total


def trace(function: Callable, *specs) -> tuple[Cost, tf.TensorSpec]:
    """Traces a function and counts it, without running it.

    Of a conditional the branch with more multiply-adds counts, and the kernels of all. Of a loop
    one step counts.

    Args:
      function: Keras layer, model or function of them, built or not.
      *specs: fully known shapes of its arguments, batch 1; nested structures are allowed.

    Returns:
      The cost, and the specs of the outputs in the structure of the outputs.

    Raises:
      ValueError: naming the operation, if a shape is unknown, a kernel is not a variable, or an
        operation multiplies in a way that is not counted.
    """
    with conv.grouped_operator():
        concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    graph_def = concrete.graph.as_graph_def(add_shapes=True)
    keys = {id(variable.handle): variable.ref() for variable in concrete.variables}
    captured = concrete.captured_inputs
    placeholders = concrete.inputs[len(concrete.inputs) - len(captured) :]
    variables = {
        inner.op.name: keys[id(outer)]
        for inner, outer in zip(placeholders, captured)
        if id(outer) in keys
    }
    nodes = {node.name: node for node in graph_def.node}
    cost = _Walk(graph_def, variables).scope(_Scope(nodes, {}))
    outputs = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), concrete.structured_outputs
    )
    return cost, outputs


def count(function: Callable, *specs) -> Cost:
    """The cost that `trace` returns."""
    return trace(function, *specs)[0]
