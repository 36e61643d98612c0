"""One signature of a `.tflite` file, called by tensor names.

Names are resolved to tensor indices once. LiteRT's own signature runner resizes and allocates at
every call; here a call is set, invoke, get. Models without signatures, such as other people's
detectors, are called by the names of their input and output tensors.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime import litert


class GraphError(UserError):
    """A model file that cannot be loaded, or a tensor or signature that it does not have."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output. `scale` and `zero_point` are None where the tensor is not quantized:
    real value = scale * (stored value - zero_point)."""

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float | None
    zero_point: int | None

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Real values, any shape, to stored ones; rounds half to even and saturates.

        Raises:
          ValueError: the tensor is not quantized.
        """
        self._require_quantized()
        limits = np.iinfo(self.dtype)
        stored = np.rint(np.asarray(values, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.clip(stored, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """Stored values, any shape, to float32 real ones.

        Raises:
          ValueError: the tensor is not quantized.
        """
        self._require_quantized()
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    def _require_quantized(self) -> None:
        if self.scale is None:
            raise ValueError(f"tensor {self.name!r} of type {self.dtype} is not quantized")


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Says which model it is that LiteRT refuses."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise GraphError(
            f"model {path} ({path.stat().st_size} bytes) cannot be loaded: {error}; it may be "
            "cut short or need an operator that this runtime lacks"
        ) from error


class Graph:
    """One signature of one model, with an interpreter of its own.

    An interpreter serves one thread at a time: build one Graph a thread. Different Graphs run in
    parallel, since `invoke` releases the GIL.

    Attributes:
      name: the file's name and the signature, for messages.
      inputs: TensorInfo by name.
      outputs: TensorInfo by name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        signature: str | None = None,
        num_threads: int = 1,
    ):
        """Loads the model and allocates its tensors.

        Args:
          path: the `.tflite` file.
          signature: None picks the only signature, or the bare graph of a model that has none.
          num_threads: threads of one invoke.

        Raises:
          GraphError: no such file or signature, or the file is not a whole model.
          UserError: LiteRT is of a version that was not tried.
        """
        path = Path(path)
        if not path.is_file():
            raise GraphError(f"model {path}: no such file")
        with _refusals(path):
            self._interpreter = litert.interpreter(path, num_threads)
        self._wrapper = litert.wrapper(self._interpreter)
        signatures = self._wrapper.GetSignatureDefs() or {}
        if signature is None and len(signatures) == 1:
            signature = next(iter(signatures))
        if signature is None and signatures:
            raise GraphError(f"model {path}: name one of its signatures {sorted(signatures)}")
        if signature is not None and signature not in signatures:
            raise GraphError(
                f"model {path}: signature {signature!r} is not one of {sorted(signatures)}"
            )
        self.name = path.name if signature is None else f"{path.name}:{signature}"
        if signature is None:
            self._subgraph = 0
            inputs = self._wrapper.InputIndices()
            outputs = self._wrapper.OutputIndices()
            inputs = {self._wrapper.TensorName(int(index), 0): index for index in inputs}
            outputs = {self._wrapper.TensorName(int(index), 0): index for index in outputs}
        else:
            self._subgraph = self._wrapper.GetSubgraphIndexFromSignature(signature)
            inputs = signatures[signature]["inputs"]
            outputs = signatures[signature]["outputs"]
            with _refusals(path):
                self._wrapper.AllocateTensors(self._subgraph)
        self.inputs = {name: self._describe(name, index) for name, index in inputs.items()}
        self.outputs = {name: self._describe(name, index) for name, index in outputs.items()}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph once.

        Args:
          **inputs: one array of the tensor's exact shape and dtype for each of `self.inputs`.

        Returns:
          A new array for each of `self.outputs`.

        Raises:
          ValueError: a name, shape or dtype that is not the tensor's.
        """
        return self.run(inputs)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same as a call, for names that are no Python identifiers (`"image:0"`)."""
        if inputs.keys() != self.inputs.keys():
            raise ValueError(
                f"{self.name}: inputs {sorted(inputs)} given, wanted {sorted(self.inputs)}"
            )
        for name, info in self.inputs.items():
            array = np.asarray(inputs[name])
            if array.shape != info.shape or array.dtype != info.dtype:
                raise ValueError(
                    f"{self.name}: input {name!r} is {array.dtype} {array.shape}, wanted "
                    f"{info.dtype} {info.shape}"
                )
        values = self.bind(tuple(inputs), tuple(self.outputs))(*inputs.values())
        return dict(zip(self.outputs, values))

    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> "BoundCall":
        """A fast call with positional arguments, for a loop over frames.

        Args:
          inputs: every input's name, in the order in which arrays will be passed.
          outputs: names of the outputs wanted, in the order in which they are returned. Outputs
            left out are not copied.

        Raises:
          GraphError: a name that the graph does not have, or an input left out.
        """
        for side, names in (("input", inputs), ("output", outputs)):
            known = self.inputs if side == "input" else self.outputs
            for name in names:
                if name not in known:
                    raise GraphError(f"{self.name}: {side} {name!r} is not one of {sorted(known)}")
        if sorted(inputs) != sorted(self.inputs):
            raise GraphError(f"{self.name}: inputs {list(inputs)}, wanted {sorted(self.inputs)}")
        return BoundCall(
            self.name,
            self._wrapper,
            self._subgraph,
            [self.inputs[name].index for name in inputs],
            [self.outputs[name].index for name in outputs],
        )

    def delegated_partitions(self) -> int | None:
        """Number of partitions that XNNPACK runs; 1 where it runs the whole graph.

        None for the second and later signatures of a file: LiteRT lists the nodes of the first
        graph only.
        """
        if self._subgraph != 0:
            return None
        nodes = [self._wrapper.NodeName(node) for node in range(self._wrapper.NumNodes())]
        return nodes.count("DELEGATE")

    def _describe(self, name: str, index: int) -> TensorInfo:
        index = int(index)
        details = self._wrapper.TensorQuantizationParameters(index, self._subgraph)
        scales, zero_points = details[0], details[1]
        quantized = len(scales) == 1
        return TensorInfo(
            name=name,
            index=index,
            shape=tuple(int(size) for size in self._wrapper.TensorSize(index, self._subgraph)),
            dtype=np.dtype(self._wrapper.TensorType(index, self._subgraph)),
            scale=float(scales[0]) if quantized else None,
            zero_point=int(zero_points[0]) if quantized else None,
        )


class BoundCall:
    """A graph's call with the tensors already looked up; made by `Graph.bind`.

    Attributes:
      last_ms: wall time of the latest invoke, without the copies in and out.
    """

    __slots__ = ("last_ms", "_name", "_inputs", "_outputs", "_set", "_invoke", "_get", "_subgraph")

    def __init__(
        self, name: str, wrapper, subgraph: int, inputs: list[int], outputs: list[int]
    ):
        self.last_ms, self._name = 0.0, name
        self._inputs, self._outputs, self._subgraph = inputs, outputs, subgraph
        self._set, self._invoke, self._get = wrapper.SetTensor, wrapper.Invoke, wrapper.GetTensor

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Runs the graph once: arrays in the bound order, new arrays in the bound order.

        Raises:
          GraphError: an operator of the graph refuses what it is given.
          ValueError: a number of arrays, a shape or a dtype that is not the graph's.
        """
        subgraph = self._subgraph
        for index, array in zip(self._inputs, arrays, strict=True):
            self._set(index, array, subgraph)
        start = time.perf_counter()
        try:
            self._invoke(subgraph)
        except RuntimeError as error:
            raise GraphError(f"{self._name} cannot be run: {error}; export it again") from error
        self.last_ms = (time.perf_counter() - start) * 1e3
        return [self._get(index, subgraph) for index in self._outputs]
