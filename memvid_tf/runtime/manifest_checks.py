"""Whether the sections of a manifest agree with one another, whatever the system.

Every function raises BundleError for the first contradiction that it finds.
"""

import dataclasses
import re
from typing import Any

from memvid_tf.runtime.manifest_parts import (
    DTYPES,
    MASK_RESIZE,
    BundleError,
    ImageSpec,
    PostSpec,
    TensorSpec,
)


# No bundle comes near them: what lies beyond would cost memory or time before it is refused, or
# has no float32.
MAX_SIDE_PX = 8192
MAX_FILE_BYTES = 2**31 - 1  # a flatbuffer's offsets reach no further
MAX_ALL_BYTES = 2**32
MAX_LABELS_BYTES = 2**20
MAX_TENSOR_BYTES = 2**30
MAX_REAL = 1e6
MIN_REAL = 1e-12  # of what is divided by


def fail(where: str, value: Any, wanted: Any) -> None:
    """Raises BundleError saying which part of the manifest is what, and what it should be."""
    raise BundleError(f"manifest.json: {where} is {value!r}, wanted {wanted}")


def check_divisor(where: str, value: float) -> None:
    """Refuses what nothing can be divided by."""
    if not MIN_REAL <= value <= MAX_REAL:
        fail(where, value, f"a number from {MIN_REAL:g} to {MAX_REAL:g}")


def check_real(where: str, value: float) -> None:
    """Refuses a number of a magnitude that means nothing."""
    if not abs(value) <= MAX_REAL:
        fail(where, value, f"a number from {-MAX_REAL:g} to {MAX_REAL:g}")


def _check_shape(where: str, shape: tuple[int, ...], dtype: str) -> None:
    if not all(1 <= size < 2**31 for size in shape):
        fail(where, shape, "positive sizes")
    if len(shape) > 8 or TensorSpec(shape, dtype).bytes > MAX_TENSOR_BYTES:
        fail(where, shape, f"at most 8 sizes and {MAX_TENSOR_BYTES} bytes")


def _check_tensor(name: str, tensor: TensorSpec) -> None:
    if tensor.dtype not in DTYPES:
        fail(f"tensor {name}: dtype", tensor.dtype, f"one of {list(DTYPES)}")
    _check_shape(f"tensor {name}: shape", tensor.shape, tensor.dtype)
    if tensor.dtype == "float32":
        if tensor.scale is not None or tensor.zero_point is not None:
            fail(
                f"tensor {name}: scale, zero_point",
                (tensor.scale, tensor.zero_point),
                "null for float32",
            )
        return
    if tensor.scale is None:
        fail(f"tensor {name}: scale", None, "a number above 0 for int8")
    check_divisor(f"tensor {name}: scale", tensor.scale)
    if tensor.zero_point is None or not -128 <= tensor.zero_point <= 127:
        fail(f"tensor {name}: zero_point", tensor.zero_point, "an integer in [-128, 127]")


def check_edge(where: str, producer: TensorSpec, consumer: TensorSpec) -> None:
    """Refuses two ends of an edge that differ in shape, dtype or quantization."""
    for field in ("shape", "dtype", "scale", "zero_point"):
        left, right = getattr(producer, field), getattr(consumer, field)
        if left != right:
            fail(f"{where}: {field} of the consumer", right, f"{left!r}, which the producer has")


def _check_post(post: PostSpec) -> None:
    for field in ("score_threshold", "iou_threshold"):
        if not 0 <= getattr(post, field) <= 1:
            fail(f"post.{field}", getattr(post, field), "a number in [0, 1]")
    if post.max_detections < 1:
        fail("post.max_detections", post.max_detections, "1 or more")
    if post.score != "softmax":
        fail("post.score", post.score, "'softmax'")
    if post.background_class != 0:
        fail("post.background_class", post.background_class, 0)


def check(manifest) -> None:
    """Checks everything that means the same in every system."""
    if manifest.precision not in DTYPES:
        fail("precision", manifest.precision, f"one of {list(DTYPES)}")
    for name, entry in manifest.files.items():
        if not 0 <= entry.bytes <= MAX_FILE_BYTES:
            fail(f"files.{name}.bytes", entry.bytes, f"0 to {MAX_FILE_BYTES}")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            fail(f"files.{name}.sha256", entry.sha256, "64 lower-case hexadecimal digits")
    if manifest.labels not in manifest.files:
        fail("labels", manifest.labels, "a file listed in files")
    if (size := manifest.files[manifest.labels].bytes) > MAX_LABELS_BYTES:
        fail(f"files.{manifest.labels}.bytes", size, f"at most {MAX_LABELS_BYTES} of labels")
    if (size := sum(entry.bytes for entry in manifest.files.values())) > MAX_ALL_BYTES:
        fail("files: bytes of all", size, f"at most {MAX_ALL_BYTES}")
    _check_graphs(manifest)
    _check_state(manifest)
    _check_edges(manifest)
    _check_golden(manifest)
    if manifest.post is not None:
        _check_post(manifest.post)
    _check_image(manifest.image)
    if manifest.mask is not None:
        check_real("mask.threshold", manifest.mask.threshold)


def _check_image(image: ImageSpec) -> None:
    if image.color != "RGB":
        fail("image.color", image.color, "'RGB'")
    check_real("image.mean", image.mean)
    check_divisor("image.std", image.std)
    for name, size in image.sizes.items():
        if not all(1 <= side <= MAX_SIDE_PX for side in size):
            fail(f"image.{name}", size, f"sides from 1 to {MAX_SIDE_PX} pixels")


def _check_suffix(where: str, file: str, suffix: str) -> None:
    """What a bundle brings is copied beside programs, and must not be taken for one."""
    if not file.endswith(suffix):
        fail(where, file, f"a file that ends in {suffix}")


def _check_graphs(manifest) -> None:
    for graph, spec in manifest.graphs.items():
        if spec.file not in manifest.files:
            fail(f"graphs.{graph}.file", spec.file, "a file listed in files")
        _check_suffix(f"graphs.{graph}.file", spec.file, ".tflite")
        if not spec.signatures:
            fail(f"graphs.{graph}.signatures", {}, "at least one signature")
        for signature, tensors in spec.signatures.items():
            for side in ("inputs", "outputs"):
                for name, tensor in getattr(tensors, side).items():
                    _check_tensor(f"{graph}/{signature}/{name}", tensor)
    for call, steps in manifest.calls.items():
        if not steps:
            fail(f"calls.{call}", [], "at least one 'graph/signature'")
        for step in steps:
            manifest.signature(step)


def _check_state(manifest) -> None:
    names = [state.name for state in manifest.state]
    if len(set(names)) != len(names):
        fail("state", names, "names that differ")
    signatures = {
        step: manifest.signature(step) for steps in manifest.calls.values() for step in steps
    }
    for state in manifest.state:
        where = f"state.{state.name}"
        if state.dtype not in DTYPES:
            fail(f"{where}.dtype", state.dtype, f"one of {list(DTYPES)}")
        _check_shape(f"{where}.shape", state.shape, state.dtype)
        check_real(f"{where}.initial", state.initial)
        if state.dtype == "int8" and not (
            isinstance(state.initial, int) and -128 <= state.initial <= 127
        ):
            fail(f"{where}.initial", state.initial, "an integer in [-128, 127] for int8")
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
                        fail(
                            f"{where}.{field}",
                            getattr(state, field),
                            f"{getattr(tensor, field)!r}, which {name} has",
                        )
            if len(ends) == 2 and ends[0][1] != ends[1][1]:
                # Raw values are fed back, so a scale that differs would drift silently.
                fail(f"{ends[1][0]} (fed back)", ends[1][1], f"equal to {ends[0]}")
        if not used:
            fail(where, (state.input, state.output), "tensors of a signature in calls")


def _check_edges(manifest) -> None:
    for producer, consumer in manifest.edges:
        check_edge(
            f"edge {producer} -> {consumer}",
            manifest.tensor(producer, "outputs"),
            manifest.tensor(consumer, "inputs"),
        )


def _check_golden(manifest) -> None:
    recorded = {f"{golden.graph}/{golden.signature}" for golden in manifest.golden}
    called = {step for steps in manifest.calls.values() for step in steps}
    if missing := sorted(called - recorded):
        fail("golden", sorted(recorded), f"also {missing}: each call is recorded once at least")
    for golden in manifest.golden:
        call = f"{golden.graph}/{golden.signature}"
        tensors = manifest.signature(call)
        for side in ("inputs", "outputs"):
            files, specs = getattr(golden, side), getattr(tensors, side)
            if sorted(files) != sorted(specs):
                fail(f"golden {call} {side}", sorted(files), sorted(specs))
            for name, file in files.items():
                if file not in manifest.files:
                    fail(f"golden {call} {name}", file, "a file listed in files")
                _check_suffix(f"golden {call} {name}", file, ".bin")
                if manifest.files[file].bytes != specs[name].bytes:
                    fail(
                        f"files.{file}.bytes",
                        manifest.files[file].bytes,
                        f"{specs[name].bytes}, the size of tensor {call}/{name}",
                    )


def check_predictions(manifest, call: str) -> None:
    """Boxes or a mask from one signature, and the sections that belong to them alone."""
    detects = "post" in manifest.calls
    for field, needed in (
        *((field, detects) for field in ("anchors", "box_coder", "post")),
        ("mask", not detects),
    ):
        if (getattr(manifest, field) is not None) != needed:
            what = "a value" if needed else "nothing"
            fail(field, getattr(manifest, field), f"{what} where calls are {list(manifest.calls)}")
    if detects:
        check_heads(manifest, call)
    else:
        manifest.tensor(f"{call}/mask_logits", "outputs")
        if manifest.mask.resize != MASK_RESIZE:
            fail("mask.resize", manifest.mask.resize, repr(MASK_RESIZE))


def _check_boxes(manifest) -> None:
    """The anchors, and the coder of what is predicted for them."""
    for field in dataclasses.fields(manifest.box_coder):
        check_divisor(f"box_coder.{field.name}", getattr(manifest.box_coder, field.name))
    for number, (y, x, height, width) in enumerate(manifest.anchors):
        check_real(f"anchors[{number}]", y)
        check_real(f"anchors[{number}]", x)
        check_divisor(f"anchors[{number}]: height", height)
        check_divisor(f"anchors[{number}]: width", width)


def check_heads(manifest, step: str) -> None:
    """The predictions of one signature, and the post-processing that takes them."""
    if len(manifest.calls["post"]) != 1:
        fail("calls.post", manifest.calls["post"], "one signature")
    _check_boxes(manifest)
    post = manifest.calls["post"][0]
    boxes = manifest.tensor(f"{step}/box_encodings", "outputs").shape
    logits = manifest.tensor(f"{step}/class_logits", "outputs").shape
    anchors = len(manifest.anchors)
    if boxes != (1, anchors, 4):
        fail(
            f"tensor {step}/box_encodings: shape", boxes, f"(1, {anchors}, 4) for {anchors} anchors"
        )
    if len(logits) != 3 or logits[:2] != (1, anchors) or logits[2] < 2:
        fail(
            f"tensor {step}/class_logits: shape",
            logits,
            f"(1, {anchors}, classes + 1) for {anchors} anchors",
        )
    for name in ("box_encodings", "class_logits"):
        producer = manifest.tensor(f"{step}/{name}", "outputs")
        consumer = manifest.tensor(f"{post}/{name}", "inputs")
        # The post-processing may take real values instead of the memory's stored ones.
        if consumer.dtype != "float32" or consumer.shape != producer.shape:
            check_edge(f"calls.post: edge {step}/{name} -> {post}/{name}", producer, consumer)
    rows = manifest.post.max_detections
    for name, shape in (
        ("boxes", (1, rows, 4)),
        ("classes", (1, rows)),
        ("scores", (1, rows)),
        ("count", (1,)),
    ):
        tensor = manifest.tensor(f"{post}/{name}", "outputs")
        if tensor.shape != shape or tensor.dtype != "float32":
            fail(f"tensor {post}/{name}", tensor, f"float32 of shape {shape}")
