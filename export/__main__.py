r"""Writes the bundle of a trained network and proves that it computes the same.

  python -m export --model_dir=runs/tiny_qat --output_dir=bundles/tiny

The configuration is the one beside the checkpoint. The bundle holds f0, f1, memory and
post-processing as `.tflite`, the manifest that describes them, and a report of the verification.
The --model_dir of a policy's training gives a bundle with the policy in it. That of a training of
Patchwork (detector_patchwork, segmenter_patchwork) gives body, tail, attention and post-processing;
that of a single-frame network (detector, segmenter) one graph and post-processing.
"""

from absl import flags, logging

from memvid_tf import errors, files, locks, paths
from memvid_tf.data import records
from memvid_tf.runtime.bundle import Bundle, inventory

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "Folder of a training. Example: --model_dir=runs/tiny_qat")
flags.DEFINE_string(
    "checkpoint", "", "Checkpoint in --model_dir; the newest by default. Example: ckpt-800"
)
flags.DEFINE_string("output_dir", None, "Folder of the bundle. Example: --output_dir=bundles/tiny")
flags.DEFINE_enum(
    "precision",
    "int8",
    ["int8", "float32"],
    "int8 needs a checkpoint of quantization-aware training.",
)
flags.DEFINE_integer(
    "tau", 9, "Interleave ratio that the manifest recommends. Example: --tau=9", 0, 10_000
)
flags.DEFINE_float(
    "score_threshold", 0.3, "Least score of a detection. Example: --score_threshold=0.3", 0.0, 1.0
)
flags.DEFINE_float(
    # TensorFlow Lite's operator takes no 0.
    "iou_threshold", 0.5, "IoU of non-maximum suppression. Example: --iou_threshold=0.5", 0.01, 1.0
)
flags.DEFINE_integer("max_detections", 20, "Most detections of a frame. Example: 20", 1, 1000)
flags.DEFINE_bool("verify", True, "Whether to compare the bundle with the checkpoint on clips.")
flags.DEFINE_string(
    "input_path", "", "Data set of the verification; the training's by default. Example: data/test"
)


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    for name in ("model_dir", "output_dir"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing; see --help")
    paths.check_training("model_dir", FLAGS.model_dir, FLAGS.checkpoint)
    paths.check_output("output_dir", FLAGS.output_dir, folder=True)
    if FLAGS.input_path:
        records.read_info(FLAGS.input_path)
    logging.set_verbosity(logging.WARNING)
    files.check_folder(FLAGS.output_dir, "bundle", inventory)  # before TensorFlow is loaded
    with locks.target(FLAGS.output_dir):
        _export()


def _export():
    from export import bundle, patchwork_bundle, patchwork_verify, single_frame_bundle, verify
    from memvid_tf.models.interleaved import InterleavedDetector
    from memvid_tf.models.patchwork import Patchwork
    from memvid_tf.runtime.manifest import PostSpec
    from memvid_tf.tasks import trained

    quantization = "none" if FLAGS.precision == "float32" else ""
    found = trained.load(FLAGS.model_dir, FLAGS.checkpoint, quantization)
    if FLAGS.precision == "int8" and found.params.task.model.quantization != "int8":
        raise errors.UserError(
            f"--precision=int8, but {FLAGS.model_dir} was trained without quantization; run "
            "quantization-aware training first (configs/*_qat.yaml, configs/*_patchwork*.yaml, "
            "task.model.quantization=int8 of single frames) or export with --precision=float32"
        )
    data = found.params.task.validation_data
    if FLAGS.input_path:
        data = data.replace(input_path=FLAGS.input_path)
        if not patchwork_verify.segments(found):
            records.read_info(data.input_path).check_labels(found.params.task.labels)
    if FLAGS.verify:
        verify.check_data(data)  # before minutes of conversion
    options = bundle.Options(
        precision=FLAGS.precision,
        tau=FLAGS.tau,
        post=PostSpec(FLAGS.score_threshold, FLAGS.iou_threshold, FLAGS.max_detections),
    )
    proof, target = patchwork_verify, (bundle.source_of(found), options, FLAGS.output_dir)
    if isinstance(found.model, InterleavedDetector):
        proof = verify
        bundle.write(found, options, FLAGS.output_dir)
    elif isinstance(found.model, Patchwork):
        patchwork_bundle.write(found.model, *target, found.attention)
    else:
        single_frame_bundle.write(found.model, *target)
    written = Bundle.load(FLAGS.output_dir)
    print(f"written: {FLAGS.output_dir}")
    if FLAGS.verify:
        print(proof.write_report(FLAGS.output_dir, proof.verify(found, written, data)))


if __name__ == "__main__":
    errors.run(main)
