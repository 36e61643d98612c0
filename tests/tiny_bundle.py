"""Small but real bundles for tests: every graph is converted by TensorFlow and run by LiteRT.

The networks are one random convolution deep and detect nothing sensible; what matters is that they
have the signatures, the quantization, the state and the edges of real ones, and that sizes differ
wherever mixing two up should be noticed. `build(precision)` converts once a process; tests that
damage a bundle copy it first.
"""

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from export import convert, post
from memvid_tf.runtime.bundle import Bundle, file_entry
from memvid_tf.runtime.interpreter import Graph, TensorInfo
from memvid_tf.runtime.manifest import (
    F1_FROM_F0,
    SCHEMA_VERSION,
    BoxCoder,
    Checkpoint,
    Golden,
    GraphSpec,
    ImageSpec,
    Manifest,
    PostSpec,
    SignatureSpec,
    StateSpec,
    TensorSpec,
)

F0_SIZE, F1_SIZE = (32, 48), (16, 24)
MAP, CHANNELS, ANCHORS_A_CELL = (4, 6), 8, 3
LABELS = ("disc", "square", "star", "ring", "cross")
ANCHORS = MAP[0] * MAP[1] * ANCHORS_A_CELL
CODER = BoxCoder(y=10.0, x=10.0, height=5.0, width=5.0)
POST = PostSpec(score_threshold=0.3, iou_threshold=0.5, max_detections=20)


@functools.cache
def build(precision: str = "int8") -> Path:
    """The folder of a bundle; treat it as read-only."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_bundle_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "golden").mkdir()
    for name, content in _convert(precision).items():
        (folder / f"{name}.tflite").write_bytes(content)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    graphs = {
        graph: GraphSpec(
            file=f"{graph}.tflite",
            signatures={name: _describe(folder / f"{graph}.tflite", name) for name in signatures},
            multiply_adds=1000,
            parameters=100,
        )
        for graph, signatures in {
            "f0": ["serving_default"],
            "f1": ["serving_default"],
            "memory": ["step", "update"],
            "post": ["serving_default"],
        }.items()
    }
    state = []
    for name in ("c", "h"):
        spec = graphs["memory"].signatures["step"].inputs[name]
        initial = 0.0 if spec.zero_point is None else spec.zero_point
        state.append(StateSpec(name, name, f"{name}_next", spec.shape, spec.dtype, initial))
    golden = [
        _record(folder, graph, signature)
        for graph, spec in graphs.items()
        for signature in spec.signatures
    ]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    edges = [
        (f"{extractor}/serving_default/features", f"memory/{signature}/features")
        for extractor, signature in (("f0", "step"), ("f1", "step"), ("f0", "update"))
    ]
    edges += [
        (f"memory/step/{name}", f"post/serving_default/{name}")
        for name in ("box_encodings", "class_logits")
    ]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        system="interleaved",
        name="tiny",
        precision=precision,
        created="2024-01-01T00:00:00+00:00",
        code_version="test",
        checkpoint=Checkpoint("ckpt-0", 0),
        config={"task": {"model": {"tiny": True}}},
        labels="labels.txt",
        files={path.relative_to(folder).as_posix(): file_entry(path) for path in files},
        image=ImageSpec({"f0": F0_SIZE, "f1": F1_SIZE}, f1_from_f0=F1_FROM_F0),
        graphs=graphs,
        state=tuple(state),
        edges=tuple(edges),
        calls={
            "f0": ("f0/serving_default", "memory/step"),
            "f1": ("f1/serving_default", "memory/step"),
            "update": ("f0/serving_default", "memory/update"),
            "post": ("post/serving_default",),
        },
        golden=tuple(golden),
        updates_state={"f0": True, "f1": False},
        anchors=tuple(map(tuple, anchors().tolist())),
        box_coder=CODER,
        post=POST,
        tau=9,
    )
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def load(precision: str = "int8") -> Bundle:
    """The same bundle, loaded."""
    return Bundle.load(build(precision))


def anchors() -> np.ndarray:
    """[A, 4] float32: three anchors a cell, ycenter, xcenter, height, width."""
    rows, columns = MAP
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    sizes = [(0.3, 0.2), (0.2, 0.45), (0.6, 0.5)]
    cells = [np.stack([y, x, np.full_like(y, h), np.full_like(y, w)], -1) for h, w in sizes]
    return np.stack(cells, 2).reshape(-1, 4).astype(np.float32)


def frames(count: int, size: tuple[int, int] = F0_SIZE, seed: int = 0) -> list[np.ndarray]:
    """Random blocky frames, [H, W, 3] uint8 RGB each, of which no two are alike."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, -(-size[0] // 4), -(-size[1] // 4), 3), np.uint8)
    whole = blocks.repeat(4, axis=1).repeat(4, axis=2)[:, : size[0], : size[1]]
    return list(np.ascontiguousarray(whole))


def _convert(precision: str) -> dict[str, bytes]:
    import tensorflow as tf

    rng = np.random.default_rng(7)
    module = tf.Module()

    def fake_quant(x, low, high):
        if precision == "float32":
            return tf.clip_by_value(x, low, high)
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    def convolution(shape, gain, bias=None):
        fan_in = shape[0] * shape[1] * shape[2]
        kernel = rng.normal(0, gain / np.sqrt(fan_in), shape).astype(np.float32)
        bias = rng.normal(0, 0.3, shape[-1]) if bias is None else bias

        def apply(x, stride=1):
            limit = float(np.abs(kernel).max())
            weights = tf.constant(kernel)
            if precision == "int8":
                weights = tf.quantization.fake_quant_with_min_max_args(
                    weights, -limit, limit, narrow_range=True
                )
            return tf.nn.conv2d(x, weights, stride, "SAME") + tf.constant(bias, tf.float32)

        return apply

    def extractor(size, stride):
        conv = convolution((3, 3, 3, CHANNELS), 4.0)

        def call(image):
            x = fake_quant(image, -1.0, 127 / 128)
            return {"features": fake_quant(tf.nn.relu6(conv(x, stride)), 0.0, 6.0)}

        spec = [tf.TensorSpec((1, *size, 3), tf.float32, "image")]
        return {"serving_default": tf.function(call, input_signature=spec)}

    mix = convolution((3, 3, 3 * CHANNELS, 2 * CHANNELS), 2.0)
    box_head = convolution((1, 1, CHANNELS, ANCHORS_A_CELL * 4), 2.0)
    class_head = convolution((1, 1, CHANNELS, ANCHORS_A_CELL * (len(LABELS) + 1)), 3.0)

    def cell(features, c, h):
        joined = tf.concat([fake_quant(x, 0.0, 6.0) for x in (features, c, h)], -1)
        mixed = fake_quant(tf.nn.relu6(mix(joined)), 0.0, 6.0)
        c_next, h_next = tf.split(mixed, 2, -1)
        return fake_quant(c_next, 0.0, 6.0), fake_quant(h_next, 0.0, 6.0)

    def step(features, c, h):
        c_next, h_next = cell(features, c, h)
        boxes = fake_quant(box_head(h_next), -8.0, 8.0 * 127 / 128)
        logits = fake_quant(class_head(h_next), -12.0, 12.0 * 127 / 128)
        return {
            "box_encodings": tf.reshape(boxes, (1, ANCHORS, 4)),
            "class_logits": tf.reshape(logits, (1, ANCHORS, len(LABELS) + 1)),
            "c_next": c_next,
            "h_next": h_next,
        }

    def update(features, c, h):
        return dict(zip(("c_next", "h_next"), cell(features, c, h)))

    spec = [tf.TensorSpec((1, *MAP, CHANNELS), tf.float32, name) for name in ("features", "c", "h")]
    memory = {
        "step": tf.function(step, input_signature=spec),
        "update": tf.function(update, input_signature=spec),
    }
    quantization = {}
    if precision == "int8":
        quantization = {"box_quantization": (8 / 128, 0), "logit_quantization": (12 / 128, 0)}
    return {
        "f0": convert.convert(module, extractor(F0_SIZE, 8), precision=precision),
        "f1": convert.convert(module, extractor(F1_SIZE, 4), precision=precision),
        "memory": convert.convert(module, memory, precision=precision),
        "post": post.post_graph(
            anchors(),
            num_classes=len(LABELS),
            box_coder=dataclasses.asdict(CODER),
            score_threshold=POST.score_threshold,
            iou_threshold=POST.iou_threshold,
            max_detections=POST.max_detections,
            **quantization,
        ),
    }


def _describe(path: Path, signature: str) -> SignatureSpec:
    graph = Graph(path, signature)

    def spec(info: TensorInfo) -> TensorSpec:
        return TensorSpec(info.shape, str(info.dtype), info.scale, info.zero_point)

    return SignatureSpec(
        inputs={name: spec(info) for name, info in graph.inputs.items()},
        outputs={name: spec(info) for name, info in graph.outputs.items()},
    )


def _record(folder: Path, graph: str, signature: str) -> Golden:
    rng = np.random.default_rng(3)
    call = Graph(folder / f"{graph}.tflite", signature)
    inputs = {}
    for name, info in call.inputs.items():
        values = rng.uniform(0, 2, info.shape).astype(np.float32)
        inputs[name] = values if info.scale is None else info.quantize(values)
    files = []
    for tensors in (inputs, call(**inputs)):
        files.append({name: f"golden/{graph}.{signature}.{name}.bin" for name in tensors})
        for name, array in tensors.items():
            array.astype(array.dtype.newbyteorder("<")).tofile(folder / files[-1][name])
    return Golden(graph, signature, *files)
