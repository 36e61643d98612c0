"""From a Patchwork network to a bundle: graphs, gate, goldens and manifest, in one folder."""

import numpy as np

from export import bundle, convert, gate, patchwork_graphs, predictions
from export.graphs import SERVING
from memvid_tf.errors import UserError
from memvid_tf.models.attention import HISTORY_ONE, Attention
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.runtime import manifest as schema
from memvid_tf.runtime.window_spec import describe

TAIL = f"tail/{SERVING}"
ATTENTION = f"attention/{SERVING}"
CALLS = {"first": ("body/full", TAIL), "step": ("body/window", TAIL)}


def convert_graphs(
    model: Patchwork, options: bundle.Options, attention: Attention | None = None
) -> dict[str, bytes]:
    """The flatbuffers of a network, past the gate.

    Args:
      model: a network with simulated quantization for "int8", without for "float32".
      options: of the export; `tau` means nothing here.
      attention: its attention network, or None.

    Returns:
      The bytes of body and tail, of attention if there is one, and of post for a detector.

    Raises:
      GateError: if a graph is not one that an accelerator runs whole; names the tensors.
      UserError: a network of the other precision, or with a range that was never observed.
    """
    predictions.check_precision(model.network, options)
    if model.context != "memory":
        raise UserError(
            f"task.windows.context {model.context!r} is a control of the paper's table 2; networks "
            "are exported with 'memory'"
        )
    bundle.check_observed(model)
    graphs, edges = patchwork_graphs.patchwork(model), patchwork_graphs.map_edges(model)
    if attention is not None:
        bundle.check_observed(attention)
        graphs["attention"] = patchwork_graphs.attention_graph(model, attention, graphs["tail"])
        edges += patchwork_graphs.attention_edges(model)
    flatbuffers = {
        name: convert.convert(graph.module, graph.signatures, precision=options.precision)
        for name, graph in graphs.items()
    }
    # A score is the largest of many, which XNNPACK has no int8 form of.
    in_parts = ("attention",) if attention is not None else ()
    gate.check(flatbuffers, edges, precision=options.precision, in_parts=in_parts)
    copied = patchwork_graphs.copied_edges(model)
    violations = gate.check_edges(flatbuffers, copied, gate.COPIED_FIELDS)
    if violations:
        raise gate.GateError(violations)
    return predictions.with_post(model.network, TAIL, flatbuffers, options)


def write(
    model: Patchwork,
    source: bundle.Source,
    options: bundle.Options,
    output_dir: str,
    attention: Attention | None = None,
) -> None:
    """Writes a bundle, whole or not at all.

    Args:
      model: the network and its windows.
      source: where it comes from.
      options: of the export.
      output_dir: the bundle's folder, whose name becomes the bundle's; an older one is replaced.
      attention: what picks the windows, or None.

    Raises:
      GateError: see `convert_graphs`.
      UserError: the same, or if the folder holds something else.
    """
    bundle.check_output(output_dir)
    flatbuffers = convert_graphs(model, options, attention)
    bundle.write_folder(
        output_dir,
        flatbuffers,
        source.labels,
        lambda name: _manifest(model, source, options, flatbuffers, attention, name),
        _record_goldens,
    )


def _manifest(model, source, options, flatbuffers, attention, name) -> schema.Manifest:
    """The manifest of a bundle, without its files and goldens."""
    network, sections = model.network, {}
    edges = patchwork_graphs.map_edges(model) + predictions.post_edges(network, TAIL)
    calls = {**CALLS, **predictions.post_calls(network)}
    if attention is not None:
        edges += patchwork_graphs.attention_edges(model)
        calls = {**calls, "attention": (ATTENTION,)}
        sections["attention"] = schema.AttentionSpec(
            network.presence_from, attention.config.decay, HISTORY_ONE
        )
    return schema.Manifest(
        **bundle.common_sections(source, options, flatbuffers),
        system="patchwork",
        name=name,
        image=schema.ImageSpec(sizes={"full": model.image_size, "window": model.window_size}),
        state=(),
        edges=edges,
        calls=calls,
        windows=describe(model.layout, model.frame_halo, tuple(model.map_sizes)),
        **predictions.sections(network, options),
        **sections,
    )


def _record_goldens(recorder: bundle.Recorder, manifest: schema.Manifest) -> None:
    """Runs two random frames, the first whole, and records every call.

    The halo of the window is cut from the first frame's strips, in whatever order: what it says is
    random anyway, and no input is constant.
    """
    rng = np.random.default_rng(bundle.GOLDEN_SEED)
    first, step = CALLS["first"][0], CALLS["step"][0]
    full_image, image = (
        bundle.random_image(rng, manifest.tensor(f"{call}/image", "inputs"))
        for call in (first, step)
    )
    full = recorder.record(first, {"image": full_image})
    spec = manifest.tensor(f"{step}/{patchwork_graphs.HALO}", "inputs")
    halo = np.resize(full.pop(patchwork_graphs.STRIPS), spec.shape)
    recorder.record(step, {"image": image, patchwork_graphs.HALO: halo})
    outputs = recorder.record(TAIL, full)
    if manifest.attention is not None:
        spec = manifest.tensor(f"{ATTENTION}/history", "inputs")
        history = rng.uniform(0, manifest.attention.one, spec.shape)
        if spec.dtype == "int8":
            history = np.rint(history / spec.scale) + spec.zero_point
        prediction = outputs[manifest.attention.prediction]
        history = history.astype(spec.dtype)
        recorder.record(ATTENTION, {"prediction": prediction, "history": history})
    if manifest.post is not None:
        recorder.record(predictions.POST, outputs)
