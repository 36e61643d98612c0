r"""The graph with which the native runner tries the library that it opens: y = 2x + 1 of [1, 2, 3].

  python -m benchmarks.runner.probe > benchmarks/runner/src/probe.hpp

The runner carries it as bytes, since it must know the library before it reads a graph of anybody.
"""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SHAPE = (1, 2, 3)
SIGNATURE = "probe"
_BYTES_A_LINE = 16


def model() -> bytes:
    """The `.tflite`: two operators and one signature."""
    graph = schema.SubGraphT()
    buffers = [schema.BufferT()]  # the first one is empty by convention
    graph.tensors = [_tensor("x", SHAPE), _tensor("twice", SHAPE), _tensor("y", SHAPE)]
    constant = schema.BufferT()
    constant.data = np.frombuffer(np.float32(1.0).tobytes(), np.uint8)
    buffers.append(constant)
    graph.tensors.append(_tensor("one", (1,), buffer=1))
    graph.inputs, graph.outputs = [0], [2]
    graph.operators = [_add(0, 0, 1), _add(1, 3, 2)]
    code = schema.OperatorCodeT()
    code.deprecatedBuiltinCode = code.builtinCode = schema.BuiltinOperator.ADD
    code.version = 1
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE, 0
    signature.inputs, signature.outputs = [_named("x", 0)], [_named("y", 2)]
    made = schema.ModelT()
    made.version = 3
    made.operatorCodes, made.subgraphs, made.buffers = [code], [graph], buffers
    made.signatureDefs = [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def header(content: bytes) -> str:
    """The C++ header that holds a graph."""
    rows = [content[at : at + _BYTES_A_LINE] for at in range(0, len(content), _BYTES_A_LINE)]
    lines = ["// Written by `python -m benchmarks.runner.probe`, which says what this is."]
    lines += ["#pragma once", "", "constexpr unsigned char kProbe[] = {"]
    lines += ["  " + " ".join(f"{byte}," for byte in row) for row in rows]
    return "\n".join([*lines, "};", ""])


def _tensor(name, shape, buffer=0):
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
    tensor.type = schema.TensorType.FLOAT32
    return tensor


def _add(left, right, result):
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [left, right], [result]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    return operator


def _named(name, index):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


if __name__ == "__main__":
    print(header(model()), end="")
