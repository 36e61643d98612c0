"""The interleaved detector of "Looking Fast and Slow" (LFS), run from a bundle.

One frame is `prepare`, `extract` (f0 or f1), `step` (memory and heads) and `post`. Which extractor
runs when, and what becomes of the state, is up to a runner (`runners`, `asynchronous`).
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.runtime.manifest import BundleError, SignatureSpec, TensorSpec
from memvid_tf.runtime.postprocess import Detections, detections
from memvid_tf.runtime.preprocess import ImagePreparer, PreparedFrame

# The memory: one array for each entry of the manifest's `state`, in that order (c, h), as stored.
State = tuple[np.ndarray, ...]
HEADS = ("box_encodings", "class_logits")


class InterleavedDetector:
    """Graphs of one bundle, for one thread.

    Attributes:
      bundle: the bundle.
      updates_state: by extractor, whether its frames write the state.
      f1_only_reads: whether those of f1 take a call of the memory that cannot.
      extract_ms, memory_ms, post_ms: wall time of the latest call of each kind, invoke only (all of
        the function where NumPy post-processes).
    """

    def __init__(
        self,
        bundle: Bundle,
        num_threads: int = 1,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ):
        """Loads f0, f1, the memory's calls and the post-processing.

        Args:
          bundle: a bundle whose system is "interleaved".
          num_threads: threads of one invoke.
          score_threshold: None keeps the bundle's. A value, here or in the two that follow,
            replaces the compiled post-processing by the NumPy one.
          iou_threshold: the same.
          max_detections: the same.

        Raises:
          BundleError: another system, or a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        bundle.require_system("interleaved")
        self.bundle = bundle
        self.updates_state = manifest.updates_state
        self.extract_ms = self.memory_ms = self.post_ms = 0.0

        calls, images = {}, {}
        for name in ("f0", "f1"):
            call = manifest.calls[name][0]
            calls[name] = load_graph(bundle, call, num_threads).bind(("image",), ("features",))
            images[name] = manifest.tensor(f"{call}/image", "inputs")
        self._extract = calls
        self._preparer = ImagePreparer(manifest.image, images["f0"], images["f1"])

        step_name, f1_name = (manifest.calls[extractor][1] for extractor in ("f0", "f1"))
        memory = load_graph(bundle, step_name, num_threads)
        inputs = ("features", *(state.input for state in manifest.state))
        step = memory.bind(inputs, HEADS)
        self._step_and_write = memory.bind(
            inputs, (*HEADS, *(state.output for state in manifest.state))
        )
        self.f1_only_reads = f1_name != step_name
        self._steps = {"f0": step, "f1": step}
        if self.f1_only_reads:
            self._steps["f1"] = load_graph(bundle, f1_name, num_threads).bind(inputs, HEADS)

        overrides = (score_threshold, iou_threshold, max_detections)
        self._post = post_processing(bundle, step_name, num_threads, *overrides)

    def prepare(self, frame: np.ndarray, extractors: Sequence[str] = ("f0", "f1")) -> PreparedFrame:
        """The images that the extractors take.

        Args:
          frame: [H, W, 3] uint8 RGB of any size.
          extractors: which images are wanted.

        Raises:
          ValueError: not such an array.
        """
        return self._preparer.prepare(frame, extractors)

    def initial_state(self) -> State:
        """The empty memory."""
        return initial_state(self.bundle)

    def extract(self, extractor: str, image: np.ndarray) -> np.ndarray:
        """Features [1, h, w, C], as stored, of a prepared image; `extractor` is "f0" or "f1"."""
        call = self._extract[extractor]
        features = call(image)[0]
        self.extract_ms = call.last_ms
        return features

    def step(
        self, features: np.ndarray, state: State, extractor: str, update_state: bool
    ) -> tuple[np.ndarray, np.ndarray, State]:
        """Memory and heads.

        Args:
          features: what `extract` returned.
          state: the memory before this frame.
          extractor: which made the features, "f0" or "f1".
          update_state: False returns `state` itself (LFS: f1 frames leave the memory alone). Where
            f1 only reads, its frames always do.

        Returns:
          box_encodings [1, A, 4] and class_logits [1, A, C + 1], as stored, and the next state.
        """
        if update_state and not (self.f1_only_reads and extractor == "f1"):
            call = self._step_and_write
            box_encodings, class_logits, *written = call(features, *state)
            state = tuple(written)
        else:
            call = self._steps[extractor]
            box_encodings, class_logits = call(features, *state)
        self.memory_ms = call.last_ms
        return box_encodings, class_logits, state

    def post(self, box_encodings: np.ndarray, class_logits: np.ndarray) -> Detections:
        """Detections of the heads that `step` returned."""
        found = self._post(box_encodings, class_logits)
        self.post_ms = self._post.last_ms
        return found


class _CompiledPost:
    """`post.tflite`: stored heads to detections."""

    def __init__(self, bundle: Bundle, heads: list[TensorSpec], num_threads: int):
        graph = load_graph(bundle, bundle.manifest.calls["post"][0], num_threads)
        self._call = graph.bind(HEADS, ("boxes", "scores", "classes", "count"))
        self.last_ms = 0.0
        # Each head goes in as stored, or as real values where the graph takes those.
        self._convert = [
            dequantizer(head) if graph.inputs[name].dtype == np.float32 else lambda stored: stored
            for name, head in zip(HEADS, heads)
        ]

    def __call__(self, box_encodings: np.ndarray, class_logits: np.ndarray) -> Detections:
        to_boxes, to_logits = self._convert
        boxes, scores, classes, count = self._call(to_boxes(box_encodings), to_logits(class_logits))
        self.last_ms = self._call.last_ms
        found = int(count[0])
        return Detections(boxes[0, :found], scores[0, :found], classes[0, :found].astype(np.int32))


class _NumpyPost:
    """The NumPy post-processing, with thresholds of one's own."""

    def __init__(
        self,
        bundle: Bundle,
        heads: list[TensorSpec],
        score_threshold: float | None,
        iou_threshold: float | None,
        max_detections: int | None,
    ):
        post = bundle.manifest.post
        self.last_ms = 0.0
        self._convert = [dequantizer(head) for head in heads]
        self._arguments = (
            bundle.anchors,
            bundle.manifest.box_coder,
            post.score_threshold if score_threshold is None else score_threshold,
            post.iou_threshold if iou_threshold is None else iou_threshold,
            post.max_detections if max_detections is None else max_detections,
        )

    def __call__(self, box_encodings: np.ndarray, class_logits: np.ndarray) -> Detections:
        start = time.perf_counter()
        to_boxes, to_logits = self._convert
        found = detections(to_boxes(box_encodings), to_logits(class_logits), *self._arguments)
        self.last_ms = (time.perf_counter() - start) * 1e3
        return found


def post_processing(
    bundle: Bundle,
    call: str,
    num_threads: int = 1,
    score_threshold: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
) -> _CompiledPost | _NumpyPost:
    """A function from the stored heads of a frame to its `Detections`; `last_ms` is its time.

    Args:
      bundle: of a detector.
      call: "graph/signature" that the heads come from.
      num_threads: threads of one invoke.
      score_threshold, iou_threshold, max_detections: None keeps the bundle's; a value for any
        replaces the compiled post-processing by the NumPy one.
    """
    heads = [bundle.manifest.tensor(f"{call}/{name}", "outputs") for name in HEADS]
    overrides = (score_threshold, iou_threshold, max_detections)
    if all(override is None for override in overrides):
        return _CompiledPost(bundle, heads, num_threads)
    return _NumpyPost(bundle, heads, *overrides)


def initial_state(bundle: Bundle) -> State:
    """The empty memory of a bundle: new arrays in the order of the manifest's `state`."""
    return tuple(
        np.full(state.shape, state.initial, state.dtype) for state in bundle.manifest.state
    )


def load_graph(bundle: Bundle, call: str, num_threads: int = 1) -> Graph:
    """Loads the signature that `"graph/signature"` names and compares it with the manifest.

    Raises:
      BundleError: a tensor of the file differs from its description.
      GraphError: the file cannot be loaded.
    """
    name, _, signature = call.partition("/")
    spec = bundle.manifest.signature(call)
    graph = Graph(bundle.graph_path(name), signature, num_threads)
    _compare(bundle, call, graph, spec)
    return graph


def _compare(bundle: Bundle, call: str, graph: Graph, spec: SignatureSpec) -> None:
    for side in ("inputs", "outputs"):
        described, actual = getattr(spec, side), getattr(graph, side)
        if described.keys() != actual.keys():
            raise BundleError(
                f"bundle {bundle.path}: {graph.name} has {side} {sorted(actual)}, wanted "
                f"{sorted(described)} as manifest.json says"
            )
        for name, wanted in described.items():
            info = actual[name]
            found = TensorSpec(info.shape, str(info.dtype), info.scale, info.zero_point)
            if found != wanted:
                raise BundleError(
                    f"bundle {bundle.path}: tensor {call}/{name} of {graph.name} is {found}, "
                    f"wanted {wanted} as manifest.json says"
                )


def dequantizer(spec: TensorSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a tensor's stored values, any shape, to float32 real ones. Values of a
    float32 tensor are returned as they are, not copied."""
    if spec.dtype == "float32":
        return lambda stored: stored
    scale, zero_point = np.float32(spec.scale), np.float32(spec.zero_point)
    if zero_point == 0:
        return lambda stored: stored * scale
    return lambda stored: (stored - zero_point) * scale
