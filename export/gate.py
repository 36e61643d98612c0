"""The gate every exported graph passes: what the converter wrote, read back from the flatbuffer.

A forgotten fake-quant node, a sigmoid ranged [0, 1] or a lone ReLU6 costs no error message: the
graph converts, runs, and is slow or wrong. So each export is refused unless, in int8,

  * no operator touches a float tensor and no graph input or output is one,
  * there is no QUANTIZE or DEQUANTIZE: neighbours agree on one range,
  * convolution weights are symmetric and have a scale a channel,
  * XNNPACK takes each subgraph whole, as one partition, but of graphs that the caller names: they
    are too small for a partition to matter,

and, in int8 and float32, every subgraph has a signature with static shapes and batch 1, and the
tensors on both ends of an edge between graphs are the same: shape, type, scale and zero point, so
that a runtime copies bytes and nothing else. The post-processing graph is float by nature and is
exempt only where the caller names it.

The numbers a manifest and the cost tables quote (`tensor_info`, `count`) are read from the same
flatbuffer. No TensorFlow here.
"""

import collections
import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from memvid_tf.errors import UserError
from memvid_tf.runtime import litert

POST_PROCESSING_OP = "TFLite_Detection_PostProcess"

_FILE_IDENTIFIER = b"TFL3"
_OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if name.isupper()}
_RESCALING = ("QUANTIZE", "DEQUANTIZE")
_PARTITION_HINTS = {
    "int8": "XNNPACK has no int8 form of it: fuse activations into a convolution or an addition",
    "float32": "export the float network, without quantizers",
}
EDGE_FIELDS = ("shape", "dtype", "scale", "zero_point")
COPIED_FIELDS = EDGE_FIELDS[1:]  # of an edge whose values are copied into a part of the other end
# The axis of a weight tensor that holds the output channels, in the flatbuffer's layout.
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
# They multiply and add too, but no graph of ours holds them and `count` does not know them.
_UNCOUNTED = ("BATCH_MATMUL", "CONV_3D", "CONV_3D_TRANSPOSE", "TRANSPOSE_CONV")


@dataclasses.dataclass(frozen=True)
class Violation:
    """One rule broken at one place. `op` is a name and a position ("CONV_2D #3"), or ""."""

    graph: str
    subgraph: str
    op: str
    tensor: str
    what: str
    hint: str

    def __str__(self) -> str:
        place = f"{self.graph}/{self.subgraph}" + (f" {self.op}" if self.op else "")
        return f"{place} tensor {self.tensor!r}: {self.what} ({self.hint})"


class GateError(UserError):
    """The graphs break the rules of the gate; `violations` holds every one of them."""

    _SHOWN = 5  # of each graph: one fault has many consequences

    def __init__(self, violations: Sequence[Violation]):
        self.violations = tuple(violations)
        shown, count = [], collections.Counter()
        for violation in self.violations:
            count[violation.graph] += 1
            if count[violation.graph] <= self._SHOWN:
                shown.append(str(violation))
        rest = len(self.violations) - len(shown)
        more = f"; and {rest} more" if rest > 0 else ""
        super().__init__(f"the exported graphs were refused: {'; '.join(shown)}{more}")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output; the fields are those of the manifest. Float tensors have no scale."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


@dataclasses.dataclass(frozen=True)
class SignatureInfo:
    """The inputs and outputs of one signature, by the names that a caller uses."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


@dataclasses.dataclass(frozen=True)
class Count:
    """Cost of one signature: kernel multiply-adds (no bias), kernel elements and biases."""

    multiply_adds: int
    kernel_parameters: int
    bias_parameters: int

    @property
    def parameters(self) -> int:
        return self.kernel_parameters + self.bias_parameters


def check(
    models: Mapping[str, bytes],
    edges: Sequence[tuple[str, str]],
    *,
    precision: str,
    post_processing: Collection[str] = (),
    in_parts: Collection[str] = (),
) -> None:
    """Checks every graph of a bundle and the edges between them.

    Args:
      models: graph name → `.tflite` bytes.
      edges: (producer, consumer), each "graph/signature/tensor", state fed back included.
      precision: "int8" or "float32".
      post_processing: names of the graphs around `TFLite_Detection_PostProcess`, for which
        `check_post_processing` replaces `check_graph`.
      in_parts: names of the graphs that XNNPACK need not take whole.

    Raises:
      GateError: with all violations.
      ValueError: for an unknown precision, graph, signature or tensor name.
    """
    for argument, names in (("post_processing", post_processing), ("in_parts", in_parts)):
        unknown = sorted(set(names) - set(models))
        if unknown:
            raise ValueError(f"{argument} names {unknown}, which are not in {sorted(models)}")
    violations = []
    for name, model in models.items():
        if name in post_processing:
            violations += check_post_processing(name, model)
        else:
            whole = name not in in_parts
            violations += check_graph(name, model, precision=precision, whole=whole)
    violations += check_edges(models, edges)
    if violations:
        raise GateError(violations)


def check_graph(
    name: str, model: bytes, *, precision: str, whole: bool = True
) -> list[Violation]:
    """Violations of one graph that runs on the accelerator.

    Args:
      name: the graph's name in the records.
      model: `.tflite` bytes.
      precision: "int8" or "float32".
      whole: whether XNNPACK has to take it as one partition.

    Returns:
      The violations, rule by rule and in the order of the operators; empty when the graph passes.
    """
    if precision not in _PARTITION_HINTS:
        raise ValueError(f"precision {precision!r} is not one of {sorted(_PARTITION_HINTS)}")
    violations = []
    for graph in _subgraphs(name, model):
        violations += _check_interface(graph)
        if precision == "int8":
            violations += _check_floats(graph)
            violations += _check_rescaling(graph)
            violations += _check_weights(graph)
        if whole:
            violations += _check_partition(graph, _PARTITION_HINTS[precision])
    return violations


def check_post_processing(name: str, model: bytes) -> list[Violation]:
    """Violations of a post-processing graph: its interface, and one custom op that is the known
    one. Float tensors and operators outside XNNPACK are what such a graph is made of."""
    violations = []
    for graph in _subgraphs(name, model):
        violations += _check_interface(graph)
        customs = [op.name for op in graph.ops if op.name not in _OP_NAMES.values()]
        if customs != [POST_PROCESSING_OP]:
            what = f"ends a graph with custom ops {customs}, not one {POST_PROCESSING_OP}"
            hint = "name only graphs made by export.post as post-processing"
            violations.append(graph.violation(None, graph.tensors[graph.outputs[0]], what, hint))
    return violations


def check_edges(
    models: Mapping[str, bytes],
    edges: Sequence[tuple[str, str]],
    fields: Sequence[str] = EDGE_FIELDS,
) -> list[Violation]:
    """Violations of the edges "graph/signature/output" → "graph/signature/input"."""
    violations = []
    for producer, consumer in edges:
        source = _end(models, producer, "outputs")
        target = _end(models, consumer, "inputs")
        violations += check_edge(producer, source, consumer, target, fields)
    return violations


def check_edge(
    producer: str,
    source: TensorInfo,
    consumer: str,
    target: TensorInfo,
    fields: Sequence[str] = EDGE_FIELDS,
) -> list[Violation]:
    """Violations of one edge: each of the fields has to be equal.

    Args:
      producer: "graph/signature/tensor" of the output.
      source: that output.
      consumer: "graph/signature/tensor" of the input that takes its bytes as they are.
      target: that input.
      fields: of `TensorInfo`.
    """
    graph, signature, tensor = producer.split("/")
    differences = [
        f"{field} {getattr(source, field)} → {getattr(target, field)}"
        for field in fields
        if getattr(source, field) != getattr(target, field)
    ]
    if not differences:
        return []
    what = f"differs from {consumer}, which it feeds: {', '.join(differences)}"
    hint = "share one quantizer between the two ends"
    return [Violation(graph, signature, "", tensor, what, hint)]


def signatures(model: bytes) -> list[str]:
    """The names of a graph's signatures, sorted.

    Raises:
      ValueError: if the bytes are no `.tflite` file.
    """
    return sorted(_text(item.signatureKey) for item in _parse(model).signatureDefs or [])


def tensor_info(model: bytes, signature: str) -> SignatureInfo:
    """Names, shapes, types, scales and zero points of a signature's inputs and outputs.

    Raises:
      ValueError: if the bytes are no `.tflite` file or the signature is not in it.
    """
    parsed = _parse(model)
    definition = _definition(parsed, signature)
    tensors = parsed.subgraphs[definition.subgraphIndex].tensors
    sides = (
        {_text(item.name): _info(_text(item.name), tensors[item.tensorIndex]) for item in items}
        for items in (definition.inputs, definition.outputs)
    )
    return SignatureInfo(*sides)


def count(model: bytes, signature: str) -> Count:
    """Multiply-adds and parameters of one signature, from the shapes in the flatbuffer.

    Counts CONV_2D (grouped too), DEPTHWISE_CONV_2D and FULLY_CONNECTED, as the papers do. A kernel
    that several operators use (a box predictor shared by all maps) counts once, with one bias; so
    would two layers whose kernels are equal to the last bit.

    Raises:
      ValueError: for an unknown signature, or an operator whose cost is not known.
    """
    parsed = _parse(model)
    subgraph = parsed.subgraphs[_definition(parsed, signature).subgraphIndex]
    multiply_adds = 0
    kernels: dict[int, int] = {}
    biases: dict[int, int] = {}
    for op in _ops(parsed, subgraph):
        if op.name in _UNCOUNTED:
            raise ValueError(f"the multiply-adds of {op.name} (#{op.index}) are not known")
        if op.name not in _CHANNEL_AXIS:
            continue
        kernel = subgraph.tensors[op.inputs[1]]
        if parsed.buffers[kernel.buffer].data is None:
            raise ValueError(f"the kernel {_text(kernel.name)!r} of {op.label} is not a constant")
        channels = int(kernel.shape[_CHANNEL_AXIS[op.name]])
        elements = int(np.prod(kernel.shape))
        # Every output element costs the kernel elements of its own channel.
        multiply_adds += _size(subgraph.tensors[op.outputs[0]]) * elements // channels
        kernels[kernel.buffer] = elements
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            biases[kernel.buffer] = _size(subgraph.tensors[op.inputs[2]])
    return Count(multiply_adds, sum(kernels.values()), sum(biases.values()))


@dataclasses.dataclass(frozen=True)
class _Op:
    index: int
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.name} #{self.index}"


@dataclasses.dataclass(frozen=True)
class _Subgraph:
    """One subgraph of a parsed model, with the names that violations carry."""

    graph: str
    name: str
    position: int
    model: Any
    ops: tuple[_Op, ...]
    tensors: Sequence[Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    named: frozenset[int]

    def violation(self, op: _Op | None, tensor: Any, what: str, hint: str) -> Violation:
        label = op.label if op else ""
        return Violation(self.graph, self.name, label, _text(tensor.name), what, hint)


def _subgraphs(graph: str, model: bytes) -> Iterator[_Subgraph]:
    parsed = _parse(model)
    definitions = {item.subgraphIndex: item for item in parsed.signatureDefs or []}
    for position, subgraph in enumerate(parsed.subgraphs):
        definition = definitions.get(position)
        items = [*definition.inputs, *definition.outputs] if definition else []
        yield _Subgraph(
            graph=graph,
            name=_text(definition.signatureKey) if definition else f"subgraph {position}",
            position=position,
            model=parsed,
            ops=tuple(_ops(parsed, subgraph)),
            tensors=subgraph.tensors,
            inputs=tuple(int(index) for index in subgraph.inputs),
            outputs=tuple(int(index) for index in subgraph.outputs),
            named=frozenset(int(item.tensorIndex) for item in items),
        )


def _check_interface(graph: _Subgraph) -> Iterator[Violation]:
    for index in dict.fromkeys(graph.inputs + graph.outputs):
        tensor = graph.tensors[index]
        if index not in graph.named:
            what, hint = "is an input or output that no signature names", "export by signature"
            yield graph.violation(None, tensor, what, hint)
        info = _info("", tensor)
        if info.dtype == "int8" and info.scale is None:
            what, hint = "is int8 without a scale", "put a fake-quant node on it"
            yield graph.violation(None, tensor, what, hint)
        dynamic = tensor.shapeSignature is not None and np.any(np.less(tensor.shapeSignature, 0))
        shape = [int(size) for size in tensor.shapeSignature] if dynamic else list(info.shape)
        if dynamic or not shape or shape[0] != 1:
            what = f"has shape {shape}, not a static one with batch 1"
            yield graph.violation(None, tensor, what, "give the input specs batch 1")


def _check_floats(graph: _Subgraph) -> Iterator[Violation]:
    """Each float tensor once, at the operator that makes it or is the first to read it."""
    hint = "a fake-quant node is missing on it or on a neighbour"
    floats = {index for index, tensor in enumerate(graph.tensors) if "float" in _dtype(tensor)}
    for op in graph.ops:
        for index in () if op.name in _RESCALING else op.outputs + op.inputs:
            if index in floats:
                floats.remove(index)
                what = f"is {_dtype(graph.tensors[index])}"
                yield graph.violation(op, graph.tensors[index], what, hint)
    for index in sorted(floats.intersection(graph.inputs + graph.outputs)):
        what = f"is {_dtype(graph.tensors[index])} and an input or output"
        alone = "put a fake-quant node on it, or leave it out if nothing uses it"
        yield graph.violation(None, graph.tensors[index], what, alone)


def _check_rescaling(graph: _Subgraph) -> Iterator[Violation]:
    for op in graph.ops:
        if op.name not in _RESCALING:
            continue
        source, target = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
        what = f"goes through {op.name}: {_range(source)} → {_range(target)}"
        hint = (
            "use one quantizer where the two meet; after a sigmoid its range is [0, 255/256]"
            if _dtype(source) == _dtype(target)
            else "a fake-quant node is missing next to it"
        )
        yield graph.violation(op, source, what, hint)


def _check_weights(graph: _Subgraph) -> Iterator[Violation]:
    hint = "quantize the folded kernel by channel, symmetrically"
    for op in graph.ops:
        if op.name not in _CHANNEL_AXIS:
            continue
        weights = graph.tensors[op.inputs[1]]
        if "float" in _dtype(weights):
            continue  # `_check_floats` has named it.
        axis = _CHANNEL_AXIS[op.name]
        channels = int(weights.shape[axis])
        scales = _values(weights.quantization, "scale")
        whole = len(scales) == 1 and (op.name == "FULLY_CONNECTED" or channels == 1)
        by_channel = len(scales) == channels and weights.quantization.quantizedDimension == axis
        if not (whole or by_channel):
            what = f"has {len(scales)} scales for {channels} output channels"
            yield graph.violation(op, weights, what, hint)
        if np.any(_values(weights.quantization, "zeroPoint")):
            yield graph.violation(op, weights, "has weights with a zero point other than 0", hint)


def _check_partition(graph: _Subgraph, hint: str) -> Iterator[Violation]:
    """Names each operator that XNNPACK leaves out, or else the number of its partitions."""
    try:
        interpreter = litert.interpreter(_alone(graph), num_threads=1)
    except (RuntimeError, ValueError) as error:
        what = f"belongs to a graph that LiteRT refuses: {error}"
        yield graph.violation(None, graph.tensors[graph.outputs[0]], what, hint)
        return
    # The delegate's nodes follow the operators that they replace.
    nodes = litert.operators(interpreter)
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    producers = {index: op for op in graph.ops for index in op.outputs}
    taken: set[int] = set()
    for partition in partitions:
        limits = {int(index) for index in partition["inputs"]}
        pending = [int(index) for index in partition["outputs"]]
        while pending:
            index = pending.pop()
            op = producers.get(index)
            if op is None or index in limits or op.index in taken:
                continue
            taken.add(op.index)
            pending += op.inputs
    left = [op for op in graph.ops if op.index not in taken]
    for op in left:
        what = f"comes from an operator that XNNPACK leaves out: {len(partitions)} partitions"
        yield graph.violation(op, graph.tensors[op.outputs[0]], what, hint)
    if not left and len(partitions) != 1:
        what = f"ends a graph that XNNPACK runs in {len(partitions)} partitions, not one"
        yield graph.violation(None, graph.tensors[graph.outputs[0]], what, hint)


def _alone(graph: _Subgraph) -> bytes:
    """The model with this subgraph only: LiteRT lists the operators of the first one alone."""
    model = copy.copy(graph.model)
    model.subgraphs = [graph.model.subgraphs[graph.position]]
    model.signatureDefs = None
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=_FILE_IDENTIFIER)
    return bytes(builder.Output())


def _parse(model: bytes) -> Any:
    if model[4:8] != _FILE_IDENTIFIER:
        raise ValueError(f"not a .tflite file: {model[4:8]!r} where {_FILE_IDENTIFIER!r} belongs")
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))


def _ops(model: Any, subgraph: Any) -> Iterator[_Op]:
    for index, operator in enumerate(subgraph.operators):
        code = model.operatorCodes[operator.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = builtin == schema.BuiltinOperator.CUSTOM
        yield _Op(
            index,
            _text(code.customCode) if custom else _OP_NAMES[builtin],
            tuple(int(tensor) for tensor in operator.inputs),
            tuple(int(tensor) for tensor in operator.outputs),
        )


def _definition(model: Any, signature: str) -> Any:
    definitions = {_text(item.signatureKey): item for item in model.signatureDefs or []}
    if signature not in definitions:
        raise ValueError(f"signature {signature!r} is not one of {sorted(definitions)}")
    return definitions[signature]


def _end(models: Mapping[str, bytes], end: str, side: str) -> TensorInfo:
    parts = end.split("/")
    if len(parts) != 3:
        raise ValueError(f"edge end {end!r} is not of the form graph/signature/tensor")
    graph, signature, tensor = parts
    if graph not in models:
        raise ValueError(f"edge end {end!r}: graph {graph!r} is not one of {sorted(models)}")
    infos = getattr(tensor_info(models[graph], signature), side)
    if tensor not in infos:
        raise ValueError(f"edge end {end!r}: {tensor!r} is not one of the {side} {sorted(infos)}")
    return infos[tensor]


def _info(name: str, tensor: Any) -> TensorInfo:
    scales = _values(tensor.quantization, "scale")
    zero_points = _values(tensor.quantization, "zeroPoint")
    return TensorInfo(
        name=name,
        shape=tuple(int(size) for size in (tensor.shape if tensor.shape is not None else ())),
        dtype=_dtype(tensor),
        scale=float(scales[0]) if len(scales) == 1 else None,
        zero_point=int(zero_points[0]) if len(scales) == 1 else None,
    )


def _values(quantization: Any, field: str) -> np.ndarray:
    values = None if quantization is None else getattr(quantization, field)
    return np.zeros(0) if values is None else np.asarray(values)


def _range(tensor: Any) -> str:
    info = _info("", tensor)
    if info.scale is None:
        return info.dtype
    return f"{info.dtype} scale {info.scale:.8g} zero point {info.zero_point}"


def _dtype(tensor: Any) -> str:
    return _TYPES[tensor.type]


def _size(tensor: Any) -> int:
    return int(np.prod([int(size) for size in tensor.shape]))


def _text(name: bytes) -> str:
    return name.decode()
