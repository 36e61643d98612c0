"""The sections of a bundle's manifest as dataclasses; `manifest.Manifest` is made of them."""

import dataclasses
import math
from typing import Any

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.typed_json import SchemaError, decode_fields, encode

F1_FROM_F0 = "box mean, rounded half up"
DTYPES = ("float32", "int8")
OBSERVES = ("memory", "candidate")
MAX_TAU = 39  # the largest τ that LFS plots (figure 6)
MASK_RESIZE = "bilinear, half-pixel centres"


class BundleError(UserError):
    """A bundle that cannot be trusted or run. The message names the file, tensor or field, the bad
    value and the wanted one."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor of a signature. `scale` and `zero_point` are None for float32:
    real value = scale · (stored value − zero_point)."""

    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    @property
    def bytes(self) -> int:
        """Size of the raw tensor in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class SignatureSpec:
    """Tensors of one signature, by name, and what a call costs; None where counting makes no sense
    (post-processing)."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    multiply_adds: int | None = None


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """One `.tflite` file. `multiply_adds` (of a call of the signature that an ordinary frame needs)
    and `parameters` count kernels only; None where counting makes no sense (post-processing)."""

    file: str
    signatures: dict[str, SignatureSpec]
    multiply_adds: int | None = None
    parameters: int | None = None


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """One tensor of the state that a caller carries from call to call: `output` of one call is
    `input` of the next. `initial` is the stored value of every element before the first call."""

    name: str
    input: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    initial: int | float


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """Size and hash of one file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The training checkpoint that the graphs come from."""

    name: str
    step: int


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """What the graphs want to see: `sizes[graph]` is [height, width] in pixels, values are
    `(pixel - mean) / std`. In JSON the sizes stand beside the other keys, not below `sizes`."""

    sizes: dict[str, tuple[int, int]]
    mean: float = 128.0
    std: float = 128.0
    color: str = "RGB"
    f1_from_f0: str | None = None

    @classmethod
    def decode_json(cls, value: Any, where: str) -> "ImageSpec":
        """Reads the flat form; whatever is no field of this class is the size of a graph."""
        if not isinstance(value, dict):
            raise SchemaError(f"{where}: {value!r} is not an object")
        fields = {field.name for field in dataclasses.fields(cls)} - {"sizes"}
        flat = {name: item for name, item in value.items() if name in fields}
        sizes = {name: item for name, item in value.items() if name not in fields}
        return decode_fields(cls, {**flat, "sizes": sizes}, where)

    def encode_json(self) -> dict[str, Any]:
        """The flat form."""
        flat = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**encode(flat.pop("sizes")), **flat}


@dataclasses.dataclass(frozen=True)
class BoxCoder:
    """Scales of the SSD box code: `ycenter = code_y / y * anchor_height + anchor_ycenter`,
    `height = exp(code_h / height) * anchor_height`."""

    y: float
    x: float
    height: float
    width: float


@dataclasses.dataclass(frozen=True)
class PostSpec:
    """Thresholds compiled into `post.tflite`."""

    score_threshold: float
    iou_threshold: float
    max_detections: int
    score: str = "softmax"
    background_class: int = 0


@dataclasses.dataclass(frozen=True)
class PolicySpec:
    """How the policy's graph is called (LFS 3.4). After every frame: the state that it observes, the
    same tensors with the suffix `_before` for what it observed after the frame before, which on the
    first frame of a video is the initial state, and `eta`. The extractor of the next frame is the
    one with the largest value in `q_values`, the first of equals; the first frame takes f0.

    Attributes:
      actions: the extractors, in the order of `q_values`.
      history: length of `eta`, whose element k - 1 tells of the frame k frames ago.
      eta_one: real value of an element of `eta` where f1 ran; 0 where f0 did, or nothing yet.
      observes: what is observed after a frame of f1: "memory", which f1 left alone, or "candidate",
        what the memory's step returned for f1, though it is not kept. After a frame of f0 it is the
        memory, and asynchronously after every frame on which f0's result has arrived.
      max_tau: most frames of f1 in a row, whatever the values are: a policy that never asks for f0
        would leave a memory that grows old without end. 0 for any number.
    """

    actions: tuple[str, ...]
    history: int
    eta_one: float
    observes: str
    max_tau: int = MAX_TAU


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """How the attention network is called (PW 3.1). After every frame: its `prediction`, which is an
    output of the tail as it is, and `history` [1, actions]. The window of the next frame is the one
    with the largest value in `q_values`, the first of equals.

    Attributes:
      prediction: name of the tail's output.
      decay: before a video's first frame the history is zeros. After each frame with an action a,
        it becomes min(decay · history + one · onehot(a), one), as real values.
      one: see `decay`.
    """

    prediction: str
    decay: float
    one: float


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """How logits [1, h, w, 1] become a mask of the frame: as real values, resized, it is what lies
    above `threshold`."""

    resize: str = MASK_RESIZE
    threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Golden:
    """Raw little-endian inputs and outputs of one call, recorded at export: files by tensor."""

    graph: str
    signature: str
    inputs: dict[str, str]
    outputs: dict[str, str]
