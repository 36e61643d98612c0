r"""Scores a trained network or an exported bundle in every inference mode.

  python -m memvid_tf.evaluate --model_dir=runs/tiny_qat --modes=f0,f1,1,4,9,19,async9 \
    --output=results.json
  python -m memvid_tf.evaluate --bundle=bundles/tiny --input_path=data/synthetic

A mode is f0 or f1 (one extractor on every frame), a number τ (f0 once, then f1 τ times), asyncτ
(f0 beside f1), each optionally with +update (f1 writes to the memory too).
"""

from absl import flags

from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model_dir", None, "Folder of a training, whose checkpoint is scored. Example: runs/tiny_qat"
)
flags.DEFINE_string(
    "checkpoint", "", "Checkpoint in --model_dir; the newest by default. Example: ckpt-800"
)
flags.DEFINE_string(
    "bundle", None, "Exported bundle to score instead of a checkpoint. Example: bundles/tiny"
)
flags.DEFINE_list("modes", "f0,f1,1,4,9,19,async9", "Inference modes. Example: --modes=f0,9,async9")
flags.DEFINE_string("input_path", "", "Data set; by default the training's. Example: data/synthetic")
flags.DEFINE_string("split", "", "Split; by default the training's validation split. Example: test")
flags.DEFINE_enum(
    "matching",
    "plain",
    ["plain", "size_dependent"],
    "IoU threshold of a match: .5, or less for small objects as in the VID challenge.",
)
flags.DEFINE_string("output", "", "JSON file for the results. Example: --output=results.json")


def from_model_dir(model_dir: str, checkpoint: str):
    """The network of a training, its coder, its configuration and its name."""
    from memvid_tf.detection.matching import CODER_WEIGHTS
    from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
    from memvid_tf.runtime.manifest import BoxCoder
    from memvid_tf.tasks import trained

    found = trained.load(model_dir, checkpoint)
    return (
        CheckpointNetwork(found.model),
        BoxCoder(*CODER_WEIGHTS),
        found.params.task.validation_data,
        {"model_dir": model_dir, "step": found.step, "seed": found.params.task.seed},
    )


def from_bundle(path: str):
    """The network of a bundle, its coder, the configuration it was trained with and its name."""
    from memvid_tf.data.clips import ClipConfig
    from memvid_tf.evaluation.bundle_network import BundleNetwork
    from memvid_tf.runtime.bundle import Bundle

    bundle = Bundle.load(path)
    manifest = bundle.manifest
    task = manifest.config["task"]
    return (
        BundleNetwork(bundle),
        manifest.box_coder,
        ClipConfig(task["validation_data"]),
        {
            "bundle": path,
            "precision": manifest.precision,
            "step": manifest.checkpoint.step,
            "seed": task["seed"],
        },
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if bool(FLAGS.model_dir) == bool(FLAGS.bundle):
        raise errors.UserError("name one of --model_dir=… and --bundle=…")
    from tqdm import tqdm

    from memvid_tf import files, provenance
    from memvid_tf.data import clips, records
    from memvid_tf.evaluation import report, rollout, scoring

    modes = [rollout.parse_mode(word) for word in FLAGS.modes]
    if FLAGS.bundle:
        network, coder, data, source = from_bundle(FLAGS.bundle)
    else:
        network, coder, data, source = from_model_dir(FLAGS.model_dir, FLAGS.checkpoint)
    data = data.replace(
        input_path=FLAGS.input_path or data.input_path, split=FLAGS.split or data.split
    )
    info = records.read_info(data.input_path)
    with tqdm(total=info.split(data.split).clips, desc="evaluating", unit="clip") as bar:
        results = scoring.evaluate(
            network,
            clips.clip_dataset(data).as_numpy_iterator(),
            modes,
            info.labels,
            coder,
            matching=FLAGS.matching,
            advance=bar.update,
        )
    by_mode = {name: result.to_json() for name, result in results.items()}
    print(report.mode_table(by_mode))
    if FLAGS.output:
        result = {
            **source,
            "data": {"input_path": data.input_path, "split": data.split},
            "matching": FLAGS.matching,
            "modes": by_mode,
            "provenance": provenance.describe(),
        }
        files.write_json(FLAGS.output, result)
        print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    errors.run(main)
