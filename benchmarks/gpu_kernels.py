"""Which operations a step is made of, and what TensorFlow has for each of them on a GPU.

Nothing here needs one: TensorFlow's wheel for Linux is built for CUDA, and its registry lists the
kernels of every device. What determinism refuses is in no registry; `REFUSALS` is made of the texts
of the errors, which `unknown_texts` looks up in the installed library.
"""

import dataclasses
import mmap
import os
import re
from collections.abc import Callable, Iterator

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels, op_callbacks, op_def_registry

# The input pipeline runs on the host, on whatever device the step runs.
PIPELINE = re.compile(r"Iterator|Dataset|RebatchBatchSize|OptionalFrom")
NOT_TRAINING = "is_training"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An error of GPU kernels where `enable_op_determinism` is on.

    Attributes:
      text: a part of the message.
      ops: names of the operations; none where nothing refuses any more.
      attribute: of the operation, which must be false for it to refuse; "" if it always does.
      why: why nothing refuses.
    """

    text: str
    ops: tuple[str, ...] = ()
    attribute: str = ""
    why: str = ""


REF_SCATTERS = tuple(
    f"Scatter{nd}{kind}"
    for nd in ("", "Nd")
    for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Update")
)
REFUSALS = (
    Refusal("AdjustContrast is", ("AdjustContrast",)),
    Refusal("AdjustContrastv2 is", ("AdjustContrastv2",)),
    Refusal("ResizeNearestNeighborGrad", ("ResizeNearestNeighborGrad",)),
    Refusal("SparseTensorDenseMatmulOp", ("SparseTensorDenseMatMul",)),
    Refusal(
        "fused batch-norm backprop, when training is disabled",
        ("FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"),
        attribute=NOT_TRAINING,
    ),
    Refusal("DebugNumericSummaryV2", ("DebugNumericSummaryV2",)),
    Refusal("Dilation2DBackpropFilter", ("Dilation2DBackpropFilter",)),
    Refusal("Dilation2DBackpropInput", ("Dilation2DBackpropInput",)),
    Refusal("MaxPoolGradWithArgmax", ("MaxPoolGradWithArgmax",)),
    Refusal("SVD of matrices", ("Svd",)),
    Refusal("implementation of Bincount", ("Bincount",)),
    Refusal("implementation of DenseBincount", ("DenseBincount",)),
    Refusal("FakeQuantWithMinMaxVarsGradient", ("FakeQuantWithMinMaxVarsGradient",)),
    Refusal(
        "FakeQuantWithMinMaxVarsPerChannelGradient",
        ("FakeQuantWithMinMaxVarsPerChannelGradient",),
    ),
    Refusal("Scatter ops with ref inputs", REF_SCATTERS),
    Refusal("CropAndResizeBackpropBoxes", ("CropAndResizeGradBoxes",)),
    Refusal("CropAndResizeBackpropImage", ("CropAndResizeGradImage",)),
    Refusal("of SoftmaxCrossEntropyWithLogits", ("SoftmaxCrossEntropyWithLogits",)),
    Refusal("of SparseSoftmaxCrossEntropyWithLogits", ("SparseSoftmaxCrossEntropyWithLogits",)),
    Refusal("Timestamp cannot be called", ("Timestamp",)),
    Refusal(
        "DepthwiseConvBackpropFilter",
        why="only built with a cuDNN before 7.6.3; with a later one cuDNN computes it",
    ),
    Refusal("sorted segment reduction op", why="these have a deterministic kernel"),
    Refusal(
        " do not yet have a deterministic implementation",
        why="scatter operations of what is no number; those of numbers are computed on the CPU",
    ),
    Refusal("GPU MaxPool gradient ops", why="of XLA, which is not used"),
)
_MESSAGES = re.compile(
    rb"[Dd]eterminism is not yet supported|[Dd]eterministic GPU implementation of|"
    rb"when determinis[mn]+ is enabled|yet have a deterministic|would have been executed is not det"
)


@dataclasses.dataclass(frozen=True, order=True)
class Operation:
    """An operation with the attributes by which kernels are chosen.

    Attributes:
      name: of the operation.
      types: (attribute, data type) pairs.
      refuses: whether its GPU kernel refuses determinism.
    """

    name: str
    types: tuple[tuple[str, int], ...]
    refuses: bool


def _library() -> str:
    return os.path.join(tf.sysconfig.get_lib(), "libtensorflow_cc.so.2")


def texts(path: str | None = None) -> list[str]:
    """Messages of a library, by default TensorFlow's, that speak of determinism on a GPU."""
    with open(path or _library(), "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found, at = set(), content.find(b"eterminis")
    while at >= 0:
        start = content.rfind(b"\0", max(at - 1000, 0), at) + 1
        end = content.find(b"\0", at)
        message = content[start:end]
        if _MESSAGES.search(message) and message.isascii() and b"\n" not in message:
            found.add(message.decode())
        at = content.find(b"eterminis", end)
    return sorted(found)


def unknown_texts() -> list[str]:
    """Messages of the installed TensorFlow that no entry of `REFUSALS` explains."""
    return [text for text in texts() if not any(refusal.text in text for refusal in REFUSALS)]


def _refuses(name: str, attribute: Callable[[str], bool]) -> bool:
    return any(
        name in refusal.ops and not (refusal.attribute and attribute(refusal.attribute))
        for refusal in REFUSALS
    )


def _defaults(name: str) -> dict:
    definition = op_def_registry.get(name)
    return {attr.name: attr.default_value for attr in definition.attr} if definition else {}


def _of_node(node) -> Operation:
    attributes = {**_defaults(node.op), **node.attr}
    types = ((key, value.type) for key, value in attributes.items() if value.type)
    refuses = _refuses(node.op, lambda key: attributes[key].b)
    return Operation(node.op, tuple(sorted(types)), refuses)


def _of_call(name: str, attributes: dict) -> Operation:
    types = []
    for attr in op_def_registry.get(name).attr:
        if attr.type == "type" and attr.name in attributes:
            types.append((attr.name, int(attributes[attr.name])))
    return Operation(name, tuple(sorted(types)), _refuses(name, lambda key: bool(attributes[key])))


def _functions_of(node) -> Iterator[str]:
    yield node.op
    for value in node.attr.values():
        yield value.func.name
        yield from (function.name for function in value.list.func)


def _expanded(function: str) -> Iterator[Operation]:
    """The operations of a function, and of those that it calls."""
    known, todo, done = context.context(), {function}, set()
    while todo:
        name = todo.pop()
        done.add(name)
        for node in known.get_function_def(name).node_def:
            todo |= {f for f in _functions_of(node) if f and known.has_function(f)} - done
            if not known.has_function(node.op):
                yield _of_node(node)


def of_graph(function) -> set[Operation]:
    """What a concrete function is made of, with what it calls: loops, branches and gradients."""
    return set(_expanded(tf.compat.as_str(function.name)))


def of_steps(step: Callable[[], object]) -> set[Operation]:
    """Runs a step twice and returns what it is made of: the operations that run eagerly, and all of
    the graphs that run. What is made only at the first run is no part of it, nor is the input
    pipeline.
    """
    found, seen = set(), set()

    def note(op_type, inputs, attrs, outputs, op_name=None, graph=None):
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        if graph is not None or name in seen:
            return
        if context.context().has_function(name):
            seen.add(name)
            found.update(_expanded(name))
        else:
            found.add(_of_call(name, dict(zip(attrs[::2], attrs[1::2]))))

    step()
    op_callbacks.add_op_callback(note)
    try:
        step()
    finally:
        op_callbacks.remove_op_callback(note)
    return {operation for operation in found if not PIPELINE.search(operation.name)}


def devices(operation: Operation) -> set[str]:
    """The kinds of devices that have a kernel for an operation with these data types. DEFAULT
    stands for every device: functions, variables and what moves data."""
    types = dict(operation.types)
    return {
        kernel.device_type
        for kernel in kernels.get_registered_kernels_for_op(operation.name).kernel
        if all(
            types.get(constraint.name) in (None, *constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        )
    }


def on_host(operation: Operation) -> bool:
    """Whether an operation is of strings, which no GPU holds: the texts of assertions."""
    return any(kind == tf.string.as_datatype_enum for _, kind in operation.types)


def on_gpu(operation: Operation) -> bool:
    """Whether an operation has a kernel on a GPU."""
    return bool(devices(operation) & {"GPU", "DEFAULT"})


def named(operation: Operation) -> str:
    """An operation with its data types, as tables show it."""
    types = sorted({tf.dtypes.as_dtype(kind).name for _, kind in operation.types})
    return f"{operation.name}({', '.join(types)})"
