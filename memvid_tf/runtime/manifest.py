"""The manifest of a bundle: what a consumer must know to run the graphs, and nothing else.

`manifest.json` is one `Manifest`. The export fills these dataclasses in and writes `to_json()`; the
runtime and the benchmarks read them back with `from_json()`. Both ends run `validate()`, so a
manifest that contradicts itself is neither written nor loaded.

The sections `graphs`, `state`, `edges`, `calls` and `golden` say nothing about a particular system:
a call is a list of `"graph/signature"`, an edge joins two `"graph/signature/tensor"`. What one
system needs beyond that (which calls, which image sizes, anchors) is checked by the function that
`_SYSTEMS` names for it.
"""

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.typed_json import SchemaError, decode, decode_fields, encode, parse
from memvid_tf.runtime.window_spec import WindowSpec, describe

SCHEMA_VERSION = 1
F1_FROM_F0 = "box mean, rounded half up"
DTYPES = ("float32", "int8")
OBSERVES = ("memory", "candidate")
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
    """Tensors of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """One `.tflite` file. `multiply_adds` (of one call) and `parameters` count kernels only; None
    where counting makes no sense (post-processing)."""

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
    """How the policy's graph is called (LFS 3.4). After every frame: the state after it, the same
    tensors with the suffix `_before` for the state before it, and `eta`. The extractor of the next
    frame is the one with the largest value in `q_values`, the first of equals; the first frame of a
    video takes f0.

    Attributes:
      actions: the extractors, in the order of `q_values`.
      history: length of `eta`, whose element k - 1 tells of the frame k frames ago.
      eta_one: real value of an element of `eta` where f1 ran; 0 where f0 did, or nothing yet.
      observes: the state after a frame of f1: "memory", which f1 left alone, or "candidate", what
        the memory's step returned for f1, though it is not kept.
    """

    actions: tuple[str, ...]
    history: int
    eta_one: float
    observes: str


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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`. Sections that one system does not have are None."""

    schema_version: int
    system: str
    name: str
    precision: str
    created: str
    code_version: str
    checkpoint: Checkpoint
    config: dict[str, Any]
    labels: str
    files: dict[str, FileEntry]
    image: ImageSpec
    graphs: dict[str, GraphSpec]
    state: tuple[StateSpec, ...]
    edges: tuple[tuple[str, str], ...]
    calls: dict[str, tuple[str, ...]]
    golden: tuple[Golden, ...]
    updates_state: dict[str, bool] | None = None
    anchors: tuple[tuple[float, float, float, float], ...] | None = None
    box_coder: BoxCoder | None = None
    post: PostSpec | None = None
    tau: int | None = None
    policy: PolicySpec | None = None
    windows: WindowSpec | None = None
    mask: MaskSpec | None = None

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads and validates a manifest.

        Args:
          text: content of `manifest.json`.

        Raises:
          BundleError: broken JSON, an unknown, repeated or missing key, a value of a wrong type, or
            sections that contradict each other.
        """
        try:
            value = parse(text)
            version = value.get("schema_version") if isinstance(value, dict) else None
            if version != SCHEMA_VERSION:
                raise SchemaError(
                    f"schema_version: {version!r} is not {SCHEMA_VERSION}, the version that this "
                    "code reads; export the bundle again with this code"
                )
            manifest = decode(cls, value, "")
        except SchemaError as error:
            raise BundleError(f"manifest.json: {error}") from error
        manifest.validate()
        return manifest

    def to_json(self) -> str:
        """Validates the manifest and returns the text of `manifest.json`."""
        self.validate()
        text = json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False)
        # A list of plain numbers (a shape, an anchor) reads better on one line. Strings cannot
        # match: a raw newline never occurs inside one.
        return (
            re.sub(
                r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]",
                lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]",
                text,
            )
            + "\n"
        )

    def signature(self, call: str) -> SignatureSpec:
        """The signature that `"graph/signature"` names.

        Raises:
          BundleError: there is none.
        """
        graph, _, signature = call.partition("/")
        spec = self.graphs.get(graph)
        if spec is None:
            raise BundleError(
                f"manifest.json: {call!r}: graph {graph!r} is not one of {sorted(self.graphs)}"
            )
        if signature not in spec.signatures:
            raise BundleError(
                f"manifest.json: {call!r}: signature {signature!r} is not one of "
                f"{sorted(spec.signatures)} of graph {graph!r}"
            )
        return spec.signatures[signature]

    def tensor(self, name: str, side: str) -> TensorSpec:
        """The tensor that `"graph/signature/tensor"` names.

        Args:
          name: the full name.
          side: "inputs" or "outputs".

        Raises:
          BundleError: there is none on that side.
        """
        call, _, tensor = name.rpartition("/")
        tensors = getattr(self.signature(call), side)
        if tensor not in tensors:
            raise BundleError(
                f"manifest.json: {name!r}: {tensor!r} is not among the {side} of {call!r}: "
                f"{sorted(tensors)}"
            )
        return tensors[tensor]

    def validate(self) -> None:
        """Checks that the sections agree with one another.

        Raises:
          BundleError: the first contradiction found.
        """
        if self.schema_version != SCHEMA_VERSION:
            _fail("schema_version", self.schema_version, SCHEMA_VERSION)
        if self.system not in _SYSTEMS:
            _fail("system", self.system, f"one of {sorted(_SYSTEMS)}")
        if self.precision not in DTYPES:
            _fail("precision", self.precision, f"one of {list(DTYPES)}")
        for name, entry in self.files.items():
            if entry.bytes < 0:
                _fail(f"files.{name}.bytes", entry.bytes, "0 or more")
            if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
                _fail(f"files.{name}.sha256", entry.sha256, "64 lower-case hexadecimal digits")
        if self.labels not in self.files:
            _fail("labels", self.labels, "a file listed in files")
        self._validate_graphs()
        self._validate_state()
        self._validate_edges()
        self._validate_golden()
        if self.post is not None:
            _validate_post(self.post)
        if self.image.color != "RGB":
            _fail("image.color", self.image.color, "'RGB'")
        if self.image.std <= 0:
            _fail("image.std", self.image.std, "a number above 0")
        _SYSTEMS[self.system](self)

    def _validate_graphs(self) -> None:
        for graph, spec in self.graphs.items():
            if spec.file not in self.files:
                _fail(f"graphs.{graph}.file", spec.file, "a file listed in files")
            if not spec.signatures:
                _fail(f"graphs.{graph}.signatures", {}, "at least one signature")
            for signature, tensors in spec.signatures.items():
                for side in ("inputs", "outputs"):
                    for name, tensor in getattr(tensors, side).items():
                        _validate_tensor(f"{graph}/{signature}/{name}", tensor)
        for call, steps in self.calls.items():
            if not steps:
                _fail(f"calls.{call}", [], "at least one 'graph/signature'")
            for step in steps:
                self.signature(step)

    def _validate_state(self) -> None:
        names = [state.name for state in self.state]
        if len(set(names)) != len(names):
            _fail("state", names, "names that differ")
        signatures = {step: self.signature(step) for steps in self.calls.values() for step in steps}
        for state in self.state:
            where = f"state.{state.name}"
            if state.dtype not in DTYPES:
                _fail(f"{where}.dtype", state.dtype, f"one of {list(DTYPES)}")
            if state.dtype == "int8" and not (
                isinstance(state.initial, int) and -128 <= state.initial <= 127
            ):
                _fail(f"{where}.initial", state.initial, "an integer in [-128, 127] for int8")
            used = False
            for step, tensors in signatures.items():
                ends = [
                    (f"{step}/{state.input}", tensors.inputs.get(state.input)),
                    (f"{step}/{state.output}", tensors.outputs.get(state.output)),
                ]
                ends = [(name, tensor) for name, tensor in ends if tensor is not None]
                used = used or len(ends) == 2
                for name, tensor in ends:
                    for field in ("shape", "dtype"):
                        if getattr(tensor, field) != getattr(state, field):
                            _fail(
                                f"{where}.{field}",
                                getattr(state, field),
                                f"{getattr(tensor, field)!r}, which {name} has",
                            )
                if len(ends) == 2 and ends[0][1] != ends[1][1]:
                    # Raw values are fed back, so a scale that differs would drift silently.
                    _fail(f"{ends[1][0]} (fed back)", ends[1][1], f"equal to {ends[0]}")
            if not used:
                _fail(where, (state.input, state.output), "tensors of a signature in calls")

    def _validate_edges(self) -> None:
        for producer, consumer in self.edges:
            _validate_edge(
                f"edge {producer} -> {consumer}",
                self.tensor(producer, "outputs"),
                self.tensor(consumer, "inputs"),
            )

    def _validate_golden(self) -> None:
        for golden in self.golden:
            call = f"{golden.graph}/{golden.signature}"
            tensors = self.signature(call)
            for side in ("inputs", "outputs"):
                files, specs = getattr(golden, side), getattr(tensors, side)
                if sorted(files) != sorted(specs):
                    _fail(f"golden {call} {side}", sorted(files), sorted(specs))
                for name, file in files.items():
                    if file not in self.files:
                        _fail(f"golden {call} {name}", file, "a file listed in files")
                    if self.files[file].bytes != specs[name].bytes:
                        _fail(
                            f"files.{file}.bytes",
                            self.files[file].bytes,
                            f"{specs[name].bytes}, the size of tensor {call}/{name}",
                        )


def _fail(where: str, value: Any, wanted: Any) -> None:
    raise BundleError(f"manifest.json: {where} is {value!r}, wanted {wanted}")


def _validate_tensor(name: str, tensor: TensorSpec) -> None:
    if tensor.dtype not in DTYPES:
        _fail(f"tensor {name}: dtype", tensor.dtype, f"one of {list(DTYPES)}")
    if not all(1 <= size < 2**31 for size in tensor.shape):
        _fail(f"tensor {name}: shape", tensor.shape, "positive sizes")
    if tensor.dtype == "float32":
        if tensor.scale is not None or tensor.zero_point is not None:
            _fail(
                f"tensor {name}: scale, zero_point",
                (tensor.scale, tensor.zero_point),
                "null for float32",
            )
        return
    if tensor.scale is None or tensor.scale <= 0:
        _fail(f"tensor {name}: scale", tensor.scale, "a number above 0 for int8")
    if tensor.zero_point is None or not -128 <= tensor.zero_point <= 127:
        _fail(f"tensor {name}: zero_point", tensor.zero_point, "an integer in [-128, 127]")


def _validate_edge(where: str, producer: TensorSpec, consumer: TensorSpec) -> None:
    for field in ("shape", "dtype", "scale", "zero_point"):
        left, right = getattr(producer, field), getattr(consumer, field)
        if left != right:
            _fail(f"{where}: {field} of the consumer", right, f"{left!r}, which the producer has")


def _validate_post(post: PostSpec) -> None:
    for field in ("score_threshold", "iou_threshold"):
        if not 0 <= getattr(post, field) <= 1:
            _fail(f"post.{field}", getattr(post, field), "a number in [0, 1]")
    if post.max_detections < 1:
        _fail("post.max_detections", post.max_detections, "1 or more")
    if post.score != "softmax":
        _fail("post.score", post.score, "'softmax'")
    if post.background_class != 0:
        _fail("post.background_class", post.background_class, 0)


def _validate_interleaved(manifest: Manifest) -> None:
    """What the interleaved detector (Looking Fast and Slow) needs beyond the generic schema."""
    for field in ("updates_state", "anchors", "box_coder", "post", "tau"):
        if getattr(manifest, field) is None:
            _fail(field, None, "a value: system 'interleaved' needs it")
    for field, wanted in (
        ("calls", {"f0", "f1", "update", "post"}),
        ("updates_state", {"f0", "f1"}),
        ("graphs", {"f0", "f1", "memory", "post"}),
    ):
        missing = sorted(wanted - set(getattr(manifest, field)))
        if missing:
            _fail(field, sorted(getattr(manifest, field)), f"also {missing}")
    if manifest.tau < 0:
        _fail("tau", manifest.tau, "0 or more")
    if not manifest.state:
        _fail("state", [], "at least one tensor")
    sizes = manifest.image.sizes
    if set(sizes) != {"f0", "f1"}:
        _fail("image", sorted(sizes), "the sizes of exactly ['f0', 'f1']")
    if manifest.image.f1_from_f0 != F1_FROM_F0:
        _fail("image.f1_from_f0", manifest.image.f1_from_f0, repr(F1_FROM_F0))
    factors = {big / small for big, small in zip(sizes["f0"], sizes["f1"])}
    if len(factors) != 1 or not factors.copy().pop().is_integer():
        _fail("image.f1", sizes["f1"], f"image.f0 = {sizes['f0']} divided by one whole number")
    for name in ("f0", "f1", "update"):
        _validate_extractor_call(manifest, name)
    for name in ("f0", "f1"):
        image = f"{manifest.calls[name][0]}/image"
        if manifest.tensor(image, "inputs").shape != (1, *sizes[name], 3):
            _fail(f"image.{name}", sizes[name], f"the size of tensor {image}")
    step = manifest.calls["f0"][1]
    if manifest.calls["f1"][1] != step:
        _fail("calls.f1", manifest.calls["f1"], f"the memory's signature of calls.f0, {step!r}")
    _validate_heads(manifest, step)
    if (manifest.policy is None) != ("policy" not in manifest.calls):
        _fail("policy", manifest.policy, "a value exactly where calls has 'policy'")
    if manifest.policy is not None:
        _validate_policy(manifest)


def _validate_policy(manifest: Manifest) -> None:
    policy, calls = manifest.policy, manifest.calls["policy"]
    if sorted(policy.actions) != ["f0", "f1"]:
        _fail("policy.actions", policy.actions, "f0 and f1, in the order of q_values")
    if policy.history < 1:
        _fail("policy.history", policy.history, "1 or more")
    if policy.observes not in OBSERVES:
        _fail("policy.observes", policy.observes, f"one of {list(OBSERVES)}")
    if len(calls) != 1:
        _fail("calls.policy", calls, "one signature")
    step = manifest.calls["f0"][1]
    for state in manifest.state:
        for name in (state.input, f"{state.input}_before"):
            _validate_edge(
                f"calls.policy: edge {step}/{state.output} -> {calls[0]}/{name}",
                manifest.tensor(f"{step}/{state.output}", "outputs"),
                manifest.tensor(f"{calls[0]}/{name}", "inputs"),
            )
    for name, side, shape in (
        ("eta", "inputs", (1, policy.history)), ("q_values", "outputs", (1, 2))
    ):  # fmt: skip
        tensor = manifest.tensor(f"{calls[0]}/{name}", side)
        if tensor.shape != shape:
            _fail(f"tensor {calls[0]}/{name}: shape", tensor.shape, shape)


def _validate_extractor_call(manifest: Manifest, name: str) -> None:
    """An extractor, then a signature of the memory, joined by `features`."""
    steps = manifest.calls[name]
    if len(steps) != 2:
        _fail(f"calls.{name}", steps, "an extractor's signature, then one of the memory")
    producer, consumer = f"{steps[0]}/features", f"{steps[1]}/features"
    _validate_edge(
        f"calls.{name}: edge {producer} -> {consumer}",
        manifest.tensor(producer, "outputs"),
        manifest.tensor(consumer, "inputs"),
    )
    for state in manifest.state:
        manifest.tensor(f"{steps[1]}/{state.input}", "inputs")
        manifest.tensor(f"{steps[1]}/{state.output}", "outputs")


def _validate_heads(manifest: Manifest, step: str) -> None:
    """The predictions of one signature, and the post-processing that takes them."""
    post = manifest.calls["post"][0]
    boxes = manifest.tensor(f"{step}/box_encodings", "outputs").shape
    logits = manifest.tensor(f"{step}/class_logits", "outputs").shape
    anchors = len(manifest.anchors)
    if boxes != (1, anchors, 4):
        _fail(
            f"tensor {step}/box_encodings: shape", boxes, f"(1, {anchors}, 4) for {anchors} anchors"
        )
    if len(logits) != 3 or logits[:2] != (1, anchors) or logits[2] < 2:
        _fail(
            f"tensor {step}/class_logits: shape",
            logits,
            f"(1, {anchors}, classes + 1) for {anchors} anchors",
        )
    for name in ("box_encodings", "class_logits"):
        producer = manifest.tensor(f"{step}/{name}", "outputs")
        consumer = manifest.tensor(f"{post}/{name}", "inputs")
        # The post-processing may take real values instead of the memory's stored ones.
        if consumer.dtype != "float32" or consumer.shape != producer.shape:
            _validate_edge(f"calls.post: edge {step}/{name} -> {post}/{name}", producer, consumer)
    rows = manifest.post.max_detections
    for name, shape in (
        ("boxes", (1, rows, 4)),
        ("classes", (1, rows)),
        ("scores", (1, rows)),
        ("count", (1,)),
    ):
        tensor = manifest.tensor(f"{post}/{name}", "outputs")
        if tensor.shape != shape or tensor.dtype != "float32":
            _fail(f"tensor {post}/{name}", tensor, f"float32 of shape {shape}")


def _validate_patchwork(manifest: Manifest) -> None:
    """What Patchwork needs beyond the generic schema; see `window_spec` for what it means."""
    detects = "post" in manifest.calls
    for field, needed in (
        ("windows", True),
        *((field, detects) for field in ("anchors", "box_coder", "post")),
        ("mask", not detects),
    ):
        if (getattr(manifest, field) is not None) != needed:
            what = "a value" if needed else "nothing"
            _fail(field, getattr(manifest, field), f"{what} where calls are {list(manifest.calls)}")
    for name in ("first", "step"):
        if len(manifest.calls.get(name, ())) != 2:
            found = manifest.calls.get(name)
            _fail(f"calls.{name}", found, "a signature of the body, then the tail")
    (first, tail), (step, same_tail) = (manifest.calls[name] for name in ("first", "step"))
    if same_tail != tail:
        _fail("calls.step", manifest.calls["step"], f"the tail of calls.first, {tail!r}")
    spec, sizes = manifest.windows, manifest.image.sizes
    if set(sizes) != {"full", "window"}:
        _fail("image", sorted(sizes), "the sizes of exactly ['full', 'window']")
    for name, call in (("full", first), ("window", step)):
        if manifest.tensor(f"{call}/image", "inputs").shape != (1, *sizes[name], 3):
            _fail(f"image.{name}", sizes[name], f"the size of tensor {call}/image")
    try:
        layout = spec.layout()
        layout.windows.check("image.full", sizes["full"])
    except ValueError as error:
        _fail("windows", str(error), "windows that fit every cell")
    if spec != describe(layout, [spec.image_rows, spec.image_columns], spec.maps):
        _fail("windows", spec, "kept rows and columns, and the chunk, that follow from the rest")
    for axis, halo in enumerate((spec.image_rows, spec.image_columns)):
        wanted = layout.windows.size(sizes["full"][axis]) + sum(halo)
        if sizes["window"][axis] != wanted:
            _fail("image.window", sizes["window"], f"{wanted} on axis {axis}, halo included")
    ends = [(f"{step}/halo", "inputs", layout.halo), (f"{step}/own", "outputs", layout.own)]
    ends.append((f"{first}/strips", "outputs", layout.memory))
    halo = manifest.tensor(ends[0][0], "inputs")
    for name, side, chunks in ends:
        wanted = dataclasses.replace(halo, shape=(1, chunks, spec.chunk))
        if manifest.tensor(name, side) != wanted:
            _fail(f"tensor {name}", manifest.tensor(name, side), f"{wanted}")
    if sorted(spec.maps) != sorted(manifest.signature(tail).inputs):
        _fail("windows.maps", spec.maps, f"the inputs of {tail}")
    for name in spec.maps:
        whole = manifest.tensor(f"{tail}/{name}", "inputs")
        window = [layout.windows.size(side) for side in whole.shape[1:3]]
        part = dataclasses.replace(whole, shape=(1, *window, *whole.shape[3:]))
        for producer, wanted in ((first, whole), (step, part)):
            if manifest.tensor(f"{producer}/{name}", "outputs") != wanted:
                found = manifest.tensor(f"{producer}/{name}", "outputs")
                _fail(f"tensor {producer}/{name}", found, f"{wanted}")
    if detects:
        _validate_heads(manifest, tail)
    else:
        manifest.tensor(f"{tail}/mask_logits", "outputs")
        if manifest.mask.resize != MASK_RESIZE:
            _fail("mask.resize", manifest.mask.resize, repr(MASK_RESIZE))


_SYSTEMS = {"interleaved": _validate_interleaved, "patchwork": _validate_patchwork}
