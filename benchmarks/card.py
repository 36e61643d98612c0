r"""Scores a ready bundle of the zoo on a few clips and writes that into its card.

  python -m benchmarks.card --bundle=memvid_tf/models/zoo/bundles/interleaved_policy \
    --preset=eventful --clips=10 --modes=f0,1,4,9,adaptive --command="python -m export …"
  python -m benchmarks.card --bundle=memvid_tf/models/zoo/bundles/detector_patchwork \
    --preset=demo --clips=10 --modes=full,scanning,random,dqn --command="python -m export …"

The clips are the first test clips of a preset of the synthetic set, each of which depends on nothing
but its number. A test scores every ready bundle again and compares.
"""

import contextlib
import dataclasses
import os
import tempfile

from absl import flags

from memvid_tf import errors

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("bundle", None, "The bundle. Example: …/zoo/bundles/interleaved_policy")
    flags.DEFINE_string("preset", "eventful", "Of the synthetic set. Example: --preset=demo")
    flags.DEFINE_integer("clips", 10, "Test clips. Example: --clips=10", 1)
    flags.DEFINE_list("modes", ["f0", "9", "adaptive"], "Inference modes. Example: f0,9,adaptive")
    flags.DEFINE_string("command", None, "The commands that made the bundle, for the reader.")


@contextlib.contextmanager
def preset_clips(data, preset: str, clips: int):
    """The first test clips of a preset of the synthetic set.

    Args:
      data: `ClipConfig` of a bundle, whose frame size they get.
      preset: of `synthetic.PRESETS`.
      clips: how many.

    Yields:
      A `tf.data.Dataset` as of `clips.clip_dataset`, with names.
    """
    from memvid_tf.data import clips as reading
    from memvid_tf.data import sharding, synthetic

    config = dataclasses.replace(
        synthetic.PRESETS[preset], train_clips=1, test_clips=clips, image_size=data.image_size[0]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data")
        made = sharding.write_dataset(path, synthetic.plan(config), workers=0)[0].folder
        yield reading.clip_dataset(data.replace(input_path=str(made), split="test"), names=True)


def score(subject, preset: str, clips: int, modes) -> dict[str, dict[str, float]]:
    """What a bundle reaches, and what it costs, by mode.

    Args:
      subject: of `subjects.from_bundle`.
      preset: of the synthetic set, in frames as large as the bundle's.
      clips: of its test clips, from the first on.
      modes: see `memvid_tf.evaluate`.

    Returns:
      Of an interleaved detector mAP and the share of f0, of Patchwork mAP, or J and F, and the
      largest multiply-adds of a frame.
    """
    with preset_clips(subject.data, preset, clips) as stream:
        results = subject.score(stream.as_numpy_iterator(), subject.modes(modes))

    def numbers(result):
        if subject.windowed:
            return {**result.numbers(), "max_multiply_adds": result.max_multiply_adds}
        return {"mAP": result.mean_ap, "f0_share": result.f0_share}

    return {mode: numbers(result) for mode, result in results.items()}


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle or not FLAGS.command:
        raise errors.UserError("--bundle and --command are needed; see --help for an example")
    from memvid_tf import files, provenance
    from memvid_tf.data import synthetic
    from memvid_tf.models import zoo
    from memvid_tf.tasks import subjects

    if FLAGS.preset not in synthetic.PRESETS:
        allowed = ", ".join(synthetic.PRESETS)
        raise errors.UserError(f"--preset={FLAGS.preset} is not one of {allowed}")
    subject = subjects.from_bundle(FLAGS.bundle)
    card = {
        "command": FLAGS.command,
        "data": "python -m memvid_tf.data synthetic "
        f"--preset={FLAGS.preset} --image_size={subject.data.image_size[0]} "
        f"--output=data/{FLAGS.preset}",
        "preset": FLAGS.preset,
        "clips": FLAGS.clips,
        "modes": score(subject, FLAGS.preset, FLAGS.clips, FLAGS.modes),
        "provenance": provenance.describe(),
    }
    path = os.path.join(FLAGS.bundle, zoo.CARD)
    files.write_json(path, card)
    print(f"written: {path}")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
