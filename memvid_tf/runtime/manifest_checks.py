"""Whether the sections of a manifest agree with one another, whatever the system.

Every function raises BundleError for the first contradiction that it finds.
"""

import re
from typing import Any

from memvid_tf.runtime.manifest_parts import (
    DTYPES,
    MASK_RESIZE,
    BundleError,
    PostSpec,
    TensorSpec,
)


def fail(where: str, value: Any, wanted: Any) -> None:
    """Raises BundleError saying which part of the manifest is what, and what it should be."""
    raise BundleError(f"manifest.json: {where} is {value!r}, wanted {wanted}")


def _check_tensor(name: str, tensor: TensorSpec) -> None:
    if tensor.dtype not in DTYPES:
        fail(f"tensor {name}: dtype", tensor.dtype, f"one of {list(DTYPES)}")
    if not all(1 <= size < 2**31 for size in tensor.shape):
        fail(f"tensor {name}: shape", tensor.shape, "positive sizes")
    if tensor.dtype == "float32":
        if tensor.scale is not None or tensor.zero_point is not None:
            fail(
                f"tensor {name}: scale, zero_point",
                (tensor.scale, tensor.zero_point),
                "null for float32",
            )
        return
    if tensor.scale is None or tensor.scale <= 0:
        fail(f"tensor {name}: scale", tensor.scale, "a number above 0 for int8")
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
        if entry.bytes < 0:
            fail(f"files.{name}.bytes", entry.bytes, "0 or more")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            fail(f"files.{name}.sha256", entry.sha256, "64 lower-case hexadecimal digits")
    if manifest.labels not in manifest.files:
        fail("labels", manifest.labels, "a file listed in files")
    _check_graphs(manifest)
    _check_state(manifest)
    _check_edges(manifest)
    _check_golden(manifest)
    if manifest.post is not None:
        _check_post(manifest.post)
    if manifest.image.color != "RGB":
        fail("image.color", manifest.image.color, "'RGB'")
    if manifest.image.std <= 0:
        fail("image.std", manifest.image.std, "a number above 0")


def _check_graphs(manifest) -> None:
    for graph, spec in manifest.graphs.items():
        if spec.file not in manifest.files:
            fail(f"graphs.{graph}.file", spec.file, "a file listed in files")
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


def check_heads(manifest, step: str) -> None:
    """The predictions of one signature, and the post-processing that takes them."""
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
