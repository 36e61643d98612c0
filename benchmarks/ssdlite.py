r"""Writes our single-frame SSDLite as a `.tflite`, the baseline of LFS table 2, to measure beside a bundle.

  python -m benchmarks.ssdlite --output=bundles/paper/ssdlite_1.4_int8.tflite

Latency does not depend on what the weights are, so they are random; ranges are observed on noise.
The graph ends in box encodings and class logits: its post-processing is not part of the time.
"""

from absl import flags

from benchmarks import untrained
from memvid_tf import errors, files

FLAGS = flags.FLAGS


def flatbuffer(depth_multiplier: float, precision: str, image_size: tuple[int, int]) -> bytes:
    """The `.tflite` of a network with random weights.

    Args:
      depth_multiplier: α of the paper's table.
      precision: "int8" or "float32".
      image_size: height and width in pixels.
    """
    from memvid_tf.models import single_frame

    config = single_frame.SingleFrameConfig(
        image_size=image_size, depth_multiplier=depth_multiplier
    )
    network = single_frame.build(untrained.in_precision(config, precision))
    return untrained.flatbuffer(untrained.observe(network, 1), precision)


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.output.endswith(".tflite"):
        raise errors.UserError(f"--output={FLAGS.output!r} does not end in .tflite")
    content = flatbuffer(FLAGS.depth_multiplier, FLAGS.precision, (320, 320))
    files.write_bytes(FLAGS.output, content)
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "File to write. Example: --output=ssdlite.tflite")
    flags.DEFINE_float("depth_multiplier", 1.4, "α of LFS table 2. Example: 1.4", 0.1, 4.0)
    flags.DEFINE_enum("precision", "int8", ["int8", "float32"], "Of the graph. Example: int8")
    errors.run(main)
