"""From a single-frame network to a bundle: one graph, its post-processing, goldens and manifest."""

import numpy as np
import tensorflow as tf

from export import bundle, convert, gate, predictions
from export.graphs import SERVING, Kept
from memvid_tf.runtime import manifest as schema

NETWORK = f"network/{SERVING}"
CALLS = {"first": (NETWORK,)}


def convert_graphs(network, options: bundle.Options) -> dict[str, bytes]:
    """The flatbuffers of a network, past the gate.

    Args:
      network: a detector or a segmenter with simulated quantization for "int8", without for
        "float32".
      options: of the export; `tau` means nothing here.

    Returns:
      The bytes of network, and of post for a detector.

    Raises:
      GateError: if a graph is not one that an accelerator runs whole; names the tensors.
      UserError: a network of the other precision, or with a range that was never observed.
    """
    predictions.check_precision(network, options)
    bundle.check_observed(network)
    spec = tf.TensorSpec([1, *network.config.image_size, 3], tf.float32, "image")
    whole = tf.function(
        lambda image: network.tail(network.body(image)), input_signature=[spec], autograph=False
    )
    content = convert.convert(Kept(network), {SERVING: whole}, precision=options.precision)
    flatbuffers = {"network": content}
    gate.check(flatbuffers, (), precision=options.precision)
    return predictions.with_post(network, NETWORK, flatbuffers, options)


def write(network, source: bundle.Source, options: bundle.Options, output_dir: str) -> None:
    """Writes a bundle, whole or not at all.

    Args:
      network: see `convert_graphs`.
      source: where it comes from.
      options: of the export.
      output_dir: the bundle's folder, whose name becomes the bundle's; an older one is replaced.

    Raises:
      GateError: see `convert_graphs`.
      UserError: the same, or if the folder holds something else.
    """
    bundle.check_output(output_dir)
    flatbuffers = convert_graphs(network, options)

    def make_manifest(name):
        return schema.Manifest(
            **bundle.common_sections(source, options, flatbuffers),
            system="single_frame",
            name=name,
            image=schema.ImageSpec(sizes={"full": tuple(network.config.image_size)}),
            state=(),
            edges=predictions.post_edges(network, NETWORK),
            calls={**CALLS, **predictions.post_calls(network)},
            **predictions.sections(network, options),
        )

    bundle.write_folder(output_dir, flatbuffers, source.labels, make_manifest, _record_goldens)


def _record_goldens(recorder: bundle.Recorder, manifest: schema.Manifest) -> None:
    """Runs a random frame through every call."""
    rng = np.random.default_rng(bundle.GOLDEN_SEED)
    image = bundle.random_image(rng, manifest.tensor(f"{NETWORK}/image", "inputs"))
    outputs = recorder.record(NETWORK, {"image": image})
    if manifest.post is not None:
        recorder.record(predictions.POST, outputs)
