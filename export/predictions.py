"""What a bundle says and holds of the predictions of a single-frame network, in windows or not: boxes
with their post-processing, or a mask."""

from collections.abc import Mapping

from export import bundle, gate
from export.graphs import SERVING
from memvid_tf.detection.matching import CODER_WEIGHTS
from memvid_tf.errors import UserError
from memvid_tf.runtime import manifest as schema

POST = f"post/{SERVING}"


def check_precision(network, options: bundle.Options) -> None:
    """Refuses a network that was not made for the precision of an export."""
    wanted = "int8" if options.precision == "int8" else "none"
    found = network.config.quantization
    if found != wanted:
        raise UserError(
            f"precision {options.precision!r} needs a network with quantization {wanted!r}, this "
            f"one has {found!r}"
        )


def _detects(network) -> bool:
    return hasattr(network, "anchors")


def post_calls(network) -> dict[str, tuple[str, ...]]:
    """The call of a detector's post-processing; none of a segmenter."""
    return {"post": (POST,)} if _detects(network) else {}


def post_edges(network, call: str) -> tuple[tuple[str, str], ...]:
    """The edges from the call that predicts, "graph/signature", to the post-processing."""
    if not _detects(network):
        return ()
    return tuple((f"{call}/{name}", f"{POST}/{name}") for name in bundle.HEADS)


def with_post(
    network, call: str, flatbuffers: Mapping[str, bytes], options: bundle.Options
) -> dict[str, bytes]:
    """The graphs with a detector's post-processing.

    Raises:
      GateError: if it does not take the predictions as they are.
    """
    if not _detects(network):
        return dict(flatbuffers)
    graph, _, signature = call.partition("/")
    heads = gate.tensor_info(flatbuffers[graph], signature).outputs
    found = {**flatbuffers, "post": bundle.post_processing(network, heads, options)}
    violations = gate.check_post_processing("post", found["post"])
    violations += gate.check_edges(found, post_edges(network, call))
    if violations:
        raise gate.GateError(violations)
    return found


def sections(network, options: bundle.Options) -> dict:
    """The sections of the manifest that a detector has, or a segmenter."""
    if not _detects(network):
        return {"mask": schema.MaskSpec()}
    return {
        "anchors": tuple(tuple(float(x) for x in anchor) for anchor in network.anchors),
        "box_coder": schema.BoxCoder(*CODER_WEIGHTS),
        "post": options.post,
    }
