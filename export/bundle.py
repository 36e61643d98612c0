"""From a trained network to a bundle: graphs, gate, goldens and manifest, in one folder."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export import convert, gate, graphs, post
from memvid_tf import files, provenance
from memvid_tf.detection.matching import CODER_WEIGHTS
from memvid_tf.errors import UserError
from memvid_tf.evaluation.checkpoint_network import policy_spec
from memvid_tf.layers.fake_quant import Quantize
from memvid_tf.runtime import manifest as schema
from memvid_tf.runtime.bundle import MANIFEST, file_entry, inventory
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.tasks.trained import Trained

KIND = "bundle"  # what its folder is
LABELS = "labels.txt"
GOLDEN_FOLDER = "golden"
GOLDEN_SEED = 1903  # any fixed number: goldens must not change from one export to the next

HEADS = ("box_encodings", "class_logits")
POST_CALL = (f"post/{graphs.SERVING}",)
POLICY_CALL = (f"policy/{graphs.SERVING}",)
# Of graphs with more than one, those that there can be. The first does all that an ordinary frame
# needs.
SIGNATURES = {"memory": ("step", "update", "read"), "body": ("window", "full")}


@dataclasses.dataclass(frozen=True)
class Options:
    """What an export decides that the training did not.

    Attributes:
      precision: "int8" or "float32".
      tau: interleave ratio that the manifest recommends (9 in LFS 4).
      post: thresholds compiled into the post-processing graph.
    """

    precision: str = "int8"
    tau: int = 9
    post: schema.PostSpec = schema.PostSpec(
        score_threshold=0.3, iou_threshold=0.5, max_detections=20
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a network comes from, for its manifest.

    Attributes:
      config: the configuration it was trained with.
      labels: class names; ("foreground",) of a segmenter.
      checkpoint: name and step of the checkpoint.
    """

    config: dict[str, Any]
    labels: tuple[str, ...]
    checkpoint: schema.Checkpoint


def source_of(trained: Trained) -> Source:
    """Where a trained network comes from."""
    return Source(
        config=trained.params.as_dict(),
        labels=tuple(trained.params.task.labels),
        checkpoint=schema.Checkpoint(os.path.basename(trained.checkpoint), trained.step),
    )


def common_sections(
    source: Source, options: Options, flatbuffers: Mapping[str, bytes]
) -> dict[str, Any]:
    """The sections of a manifest that say the same in every system; files and goldens are empty."""
    return dict(
        schema_version=schema.SCHEMA_VERSION,
        precision=options.precision,
        created=provenance.now(),
        code_version=provenance.code_version(),
        checkpoint=source.checkpoint,
        config=source.config,
        labels=LABELS,
        files={},
        graphs={graph: graph_spec(graph, data) for graph, data in flatbuffers.items()},
        golden=(),
    )


def convert_graphs(trained: Trained, options: Options) -> dict[str, bytes]:
    """The flatbuffers of a network, past the gate.

    Args:
      trained: a network with simulated quantization for "int8", without for "float32".
      options: of the export.

    Returns:
      The bytes of f0, f1, memory and post, and of policy if the network has one.

    Raises:
      GateError: if a graph is not one that an accelerator runs whole; names the tensors.
    """
    model, sources = trained.model, graphs.interleaved(trained.model)
    if trained.policy is not None:
        sources["policy"] = graphs.policy_graph(model, trained.policy)
        check_observed(trained.policy)
    check_observed(model)
    flatbuffers = {
        name: convert.convert(graph.module, graph.signatures, precision=options.precision)
        for name, graph in sources.items()
    }
    # First these alone: the post-processing graph is made from the ranges of the heads.
    gate.check(flatbuffers, _tensor_edges(trained), precision=options.precision)
    flatbuffers["post"] = post_processing(
        model, gate.tensor_info(flatbuffers["memory"], "step").outputs, options
    )
    violations = gate.check_post_processing("post", flatbuffers["post"])
    violations += gate.check_edges(flatbuffers, _post_edges(model))
    if violations:
        raise gate.GateError(violations)
    return flatbuffers


def post_processing(model, heads: Mapping[str, gate.TensorInfo], options: Options) -> bytes:
    """The post-processing graph of a detector, for the heads that another graph ends in."""
    quantization = {name: None for name in HEADS}
    if options.precision == "int8":
        quantization = {name: (heads[name].scale, heads[name].zero_point) for name in HEADS}
    return post.post_graph(
        model.anchors,
        num_classes=model.config.num_classes,
        box_coder=dict(zip(("y", "x", "height", "width"), CODER_WEIGHTS)),
        score_threshold=options.post.score_threshold,
        iou_threshold=options.post.iou_threshold,
        max_detections=options.post.max_detections,
        box_quantization=quantization["box_encodings"],
        logit_quantization=quantization["class_logits"],
    )


def _tensor_edges(trained: Trained) -> tuple[tuple[str, str], ...]:
    """Edges between the graphs in front of the post-processing."""
    policy_edges = () if trained.policy is None else graphs.POLICY_EDGES
    return graphs.memory_edges(trained.model) + policy_edges


def _post_edges(model) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f"memory/{signature}/{name}", f"{POST_CALL[0]}/{name}")
        for signature in dict.fromkeys(("step", graphs.f1_signature(model)))
        for name in HEADS
    )


def _calls(trained: Trained) -> dict[str, tuple[str, ...]]:
    calls = {
        "f0": (f"f0/{graphs.SERVING}", "memory/step"),
        "f1": (f"f1/{graphs.SERVING}", f"memory/{graphs.f1_signature(trained.model)}"),
        "update": (f"f0/{graphs.SERVING}", "memory/update"),
        "post": POST_CALL,
    }
    return calls if trained.policy is None else {**calls, "policy": POLICY_CALL}


def check_observed(network: tf.Module) -> None:
    """Refuses a network with a quantization range that no training step has seen."""
    for layer in network.submodules:
        if isinstance(layer, Quantize) and layer.built and "max" in layer.ranges:
            if float(layer.ranges["max"]) == 0.0:
                raise UserError(
                    f"the quantization range of {layer.name!r} was never observed; train for a few "
                    "steps with task.model.quantization=int8 before exporting"
                )


def check_output(output_dir: str) -> None:
    """Raises UserError where a bundle would replace something else than an older bundle."""
    files.check_folder(output_dir, KIND, inventory)


def write(trained: Trained, options: Options, output_dir: str) -> None:
    """Writes a bundle, whole or not at all.

    Args:
      trained: the network, its configuration and its checkpoint.
      options: of the export.
      output_dir: the bundle's folder, whose name becomes the bundle's; an older one is replaced.

    Raises:
      GateError: see `convert_graphs`.
      UserError: if the folder holds something else.
    """
    check_output(output_dir)
    flatbuffers = convert_graphs(trained, options)
    write_folder(
        output_dir,
        flatbuffers,
        trained.params.task.labels,
        lambda name: _manifest(trained, options, flatbuffers, name),
        _record_goldens,
    )


def write_folder(
    output_dir: str,
    flatbuffers: Mapping[str, bytes],
    labels: Sequence[str],
    make_manifest: Callable[[str], schema.Manifest],
    record: Callable[["Recorder", schema.Manifest], None],
) -> None:
    """Writes the folder of any system's bundle, whole or not at all.

    Args:
      output_dir: see `write`; `check_output` has passed it.
      flatbuffers: of the graphs, by name.
      labels: one a class.
      make_manifest: from the bundle's name to its manifest, without files and goldens.
      record: runs the graphs on something random, by `Recorder.record`.
    """
    with files.atomic_folder(output_dir, KIND, inventory) as folder:
        for graph, flatbuffer in flatbuffers.items():
            with open(os.path.join(folder, f"{graph}.tflite"), "wb") as file:
                file.write(flatbuffer)
        files.write_text(os.path.join(folder, LABELS), "".join(f"{x}\n" for x in labels))
        manifest = make_manifest(os.path.basename(os.path.abspath(output_dir)))
        recorder = Recorder(folder, manifest)
        record(recorder, manifest)
        written = sorted(
            os.path.relpath(os.path.join(parent, file), folder)
            for parent, _, names in os.walk(folder)
            for file in names
        )
        manifest = dataclasses.replace(
            manifest,
            golden=tuple(recorder.goldens),
            files={file: file_entry(os.path.join(folder, file)) for file in written},
        )
        files.write_text(os.path.join(folder, MANIFEST), manifest.to_json())


def _manifest(trained, options, flatbuffers, name) -> schema.Manifest:
    """The manifest of a bundle, without its files and goldens."""
    model = trained.model
    common = common_sections(source_of(trained), options, flatbuffers)
    step = common["graphs"]["memory"].signatures["step"]
    policy = trained.policy
    return schema.Manifest(
        **common,
        system="interleaved",
        name=name,
        image=schema.ImageSpec(
            sizes={extractor: model.frame_size(extractor) for extractor in ("f0", "f1")},
            f1_from_f0=schema.F1_FROM_F0,
        ),
        state=tuple(_state_spec(*names, step) for names in graphs.state_names(model)),
        edges=_tensor_edges(trained) + _post_edges(model),
        calls=_calls(trained),
        updates_state={"f0": True, "f1": False},
        anchors=tuple(tuple(float(x) for x in anchor) for anchor in model.anchors),
        box_coder=schema.BoxCoder(*CODER_WEIGHTS),
        post=options.post,
        tau=options.tau,
        policy=None if policy is None else policy_spec(policy.config),
    )


def graph_spec(name: str, flatbuffer: bytes) -> schema.GraphSpec:
    """The manifest's description of one graph."""

    def specs(tensors):
        return {
            key: schema.TensorSpec(tuple(t.shape), t.dtype, t.scale, t.zero_point)
            for key, t in tensors.items()
        }

    known = SIGNATURES.get(name, (graphs.SERVING,))
    names = sorted(gate.signatures(flatbuffer), key=known.index)
    infos = {signature: gate.tensor_info(flatbuffer, signature) for signature in names}
    # Post-processing has no kernels to count.
    costs = {n: None if name == "post" else gate.count(flatbuffer, n) for n in names}
    signatures = {
        signature: schema.SignatureSpec(
            specs(info.inputs),
            specs(info.outputs),
            costs[signature] and costs[signature].multiply_adds,
        )
        for signature, info in infos.items()
    }
    cost = costs[names[0]]
    return schema.GraphSpec(
        file=f"{name}.tflite",
        signatures=signatures,
        multiply_adds=cost and cost.multiply_adds,
        parameters=cost and cost.parameters,
    )


def _state_spec(name: str, output: str, step: schema.SignatureSpec) -> schema.StateSpec:
    """The memory starts empty: zeros, which int8 stores as the zero point."""
    tensor = step.inputs[name]
    initial = 0.0 if tensor.zero_point is None else tensor.zero_point
    return schema.StateSpec(name, name, output, tensor.shape, tensor.dtype, initial)


def _record_goldens(recorder: "Recorder", manifest: schema.Manifest) -> None:
    """Runs a random frame through every call and records what went in and came out.

    The memory has seen f0's features when its calls are recorded, so that none of its inputs is
    constant; on f1's, where the call takes them.
    """
    rng = np.random.default_rng(GOLDEN_SEED)
    state = {s.input: np.full(s.shape, s.initial, s.dtype) for s in manifest.state}
    features = {}
    calls = manifest.calls
    for extractor in ("f0", "f1"):
        call = calls[extractor][0]
        image = random_image(rng, manifest.tensor(f"{call}/image", "inputs"))
        features[extractor] = recorder.record(call, {"image": image})
    (_, step), (_, on_f1), (_, update) = (calls[name] for name in ("f0", "f1", "update"))
    seen = recorder.run(step, {**features["f0"], **state})
    state = {s.input: seen[s.output] for s in manifest.state}
    written_on = features["f1" if step == on_f1 else "f0"]
    recorder.record(update, {**written_on, **state})
    outputs = recorder.record(step, {**written_on, **state})
    if step != on_f1:
        recorder.record(on_f1, {**features["f1"], **state})
    recorder.record(calls["post"][0], {name: outputs[name] for name in HEADS})
    if manifest.policy is not None:
        after = {s.input: outputs[s.output] for s in manifest.state}
        before = {f"{name}_before": tensor for name, tensor in state.items()}
        eta = _random_eta(rng, manifest)
        recorder.record(POLICY_CALL[0], {**after, **before, "eta": eta})


class Recorder:
    """Runs calls of the graphs in a folder and writes their tensors there.

    Attributes:
      goldens: what was recorded.
    """

    def __init__(self, folder: str, manifest: schema.Manifest):
        self._folder, self._manifest = folder, manifest
        self.goldens = []

    def run(self, call: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        graph, signature = call.split("/")
        path = os.path.join(self._folder, self._manifest.graphs[graph].file)
        return Graph(path, signature).run(inputs)

    def record(self, call: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self.run(call, inputs)
        recorded = self._write(call, inputs), self._write(call, outputs)
        self.goldens.append(schema.Golden(*call.split("/"), *recorded))
        return outputs

    def _write(self, call: str, tensors: dict[str, np.ndarray]) -> dict[str, str]:
        os.makedirs(os.path.join(self._folder, GOLDEN_FOLDER), exist_ok=True)
        names = {}
        for name, tensor in tensors.items():
            names[name] = f"{GOLDEN_FOLDER}/{call.replace('/', '.')}.{name}.bin"
            tensor.astype(tensor.dtype.newbyteorder("<")).tofile(
                os.path.join(self._folder, names[name])
            )
        return names


def _random_eta(rng, manifest: schema.Manifest) -> np.ndarray:
    spec = manifest.tensor(f"{POLICY_CALL[0]}/eta", "inputs")
    eta = rng.integers(0, 2, spec.shape) * manifest.policy.eta_one
    if spec.dtype == "int8":
        eta = np.rint(eta / spec.scale) + spec.zero_point
    return eta.astype(spec.dtype)


def random_image(rng, spec: schema.TensorSpec) -> np.ndarray:
    """Noise in the range of images, as stored."""
    pixels = rng.integers(-128, 128, spec.shape)
    return pixels.astype(np.int8) if spec.dtype == "int8" else (pixels / 128).astype(np.float32)
