"""Each operator of a `.tflite` graph by itself, to find the one that computes otherwise.

A graph that gives other outputs on another processor does not say which of its operators differs,
since one that rounds otherwise changes what all behind it see. Alone, every operator gets the
inputs that it has in the whole graph on this machine.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from memvid_tf.runtime.interpreter import Graph

_FILE_IDENTIFIER = b"TFL3"
_KINDS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
      kind: such as "CONV_2D".
      signature: of it alone.
      inputs: names of the tensors that it reads and that are no constants.
      outputs: names of those that it writes.
    """

    kind: str
    signature: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Apart:
    """A graph taken apart.

    Attributes:
      model: a `.tflite` in which each operator is a signature of its own. Its tensors are called "t"
        and their number in the graph.
      operators: in the order in which they run.
      inputs: names of the graph's own inputs, by the names in its signature.
      outputs: the same of its outputs.
    """

    model: bytes
    operators: tuple[Operator, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]


def take_apart(model: bytes, signature: str) -> Apart:
    """Takes one signature of a `.tflite` apart.

    Raises:
      ValueError: there is no such signature.
    """
    parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    definitions = {item.signatureKey.decode(): item for item in parsed.signatureDefs or []}
    if signature not in definitions:
        raise ValueError(f"signature {signature!r} is not one of {sorted(definitions)}")
    definition = definitions[signature]
    graph = parsed.subgraphs[definition.subgraphIndex]
    parsed.subgraphs, parsed.signatureDefs, operators = [], [], []
    for index, operator in enumerate(graph.operators):
        code = parsed.operatorCodes[operator.opcodeIndex]
        kind = _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        part = _subgraph(parsed, graph, operator)
        sides = ([part.tensors[i].name for i in side] for side in (part.inputs, part.outputs))
        found = Operator(kind, f"{kind}_{index}", *map(tuple, sides))
        parsed.signatureDefs.append(_signature(found.signature, len(parsed.subgraphs), part))
        parsed.subgraphs.append(part)
        operators.append(found)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(parsed.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    ends = (
        {item.name.decode(): f"t{item.tensorIndex}" for item in items}
        for items in (definition.inputs, definition.outputs)
    )
    return Apart(bytes(builder.Output()), tuple(operators), *ends)


def compute(path: Path, apart: Apart, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of the graph on this machine, one operator after another.

    Args:
      path: a file that holds `apart.model`.
      apart: the graph.
      inputs: by the names in its signature.

    Returns:
      Arrays as stored, by the names in `apart`.
    """
    values = {apart.inputs[name]: array for name, array in inputs.items()}
    for operator in apart.operators:
        graph = Graph(path, operator.signature)
        values |= graph.run({name: values[name] for name in operator.inputs})
    return values


def _subgraph(parsed: Any, graph: Any, operator: Any) -> Any:
    """One operator with its tensors; constants stay in their buffers."""
    part, numbers, read = schema.SubGraphT(), {}, []
    part.tensors = []
    for tensor in map(int, [*operator.inputs, *operator.outputs]):
        if tensor < 0 or tensor in numbers:  # -1 is an optional input that is left out
            continue
        numbers[tensor] = len(part.tensors)
        copy = schema.TensorT()
        vars(copy).update(vars(graph.tensors[tensor]))
        copy.name = f"t{tensor}"
        part.tensors.append(copy)
        if tensor in operator.inputs and parsed.buffers[copy.buffer].data is None:
            read.append(tensor)
    alone = schema.OperatorT()
    vars(alone).update(vars(operator))
    alone.inputs = [numbers.get(int(tensor), -1) for tensor in operator.inputs]
    alone.outputs = [numbers[int(tensor)] for tensor in operator.outputs]
    part.operators, part.outputs = [alone], alone.outputs
    part.inputs = [numbers[tensor] for tensor in read]
    return part


def _signature(name: str, index: int, part: Any) -> Any:
    definition = schema.SignatureDefT()
    definition.signatureKey, definition.subgraphIndex = name, index
    for side in ("inputs", "outputs"):
        maps = []
        for tensor in getattr(part, side):
            item = schema.TensorMapT()
            item.name, item.tensorIndex = part.tensors[tensor].name, tensor
            maps.append(item)
        setattr(definition, side, maps)
    return definition
