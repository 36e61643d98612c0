r"""A paper-scale bundle to measure: the network of LFS with ranges observed on real frames.

  python -m benchmarks.paper_bundle --output_dir=bundles/paper

Latency does not depend on what the weights are, but quantization needs ranges: a few steps of
quantization-aware training on a few synthetic clips of 320 px observe them, a few more those of a
policy. The bundles, int8 and float32, are complete and pass the gate; they detect nothing, and
what the policy decides means nothing.
"""

import os

from absl import flags

from benchmarks import pipeline
from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "Folder of both bundles. Example: bundles/paper")
flags.DEFINE_string(
    "work_dir", "runs/paper_bundle", "Data and training. Example: runs/paper_bundle"
)

STEPS = 4
CLIPS = (
    "task.train_data.global_batch_size=2",
    "task.train_data.unroll_frames=3",
    "task.validation_data.unroll_frames=0",
    "task.validation_data.global_batch_size=1",
    "task.train_data.still_paths=[]",
    "task.train_data.still_share=0.0",
    "task.train_data.max_objects=4",
    "task.validation_data.max_objects=4",
    f"trainer.train_steps={STEPS}",
    f"trainer.steps_per_loop={STEPS}",
    f"trainer.summary_interval={STEPS}",
)
DETECTOR = ("task.model.norm_momentum=0.5",)
POLICY = (
    "task.train_data.image_size=[320,320]",
    "task.validation_data.image_size=[320,320]",
    "task.windows=4",
    "task.ddqn.games_per_step=4",
)


def steps(output_dir: str, work_dir: str) -> list[pipeline.Step]:
    """Data, training and both exports."""
    data, detector, policy = (os.path.join(work_dir, name) for name in ("data", "qat", "policy"))
    inputs = (f"task.train_data.input_path={data}", f"task.validation_data.input_path={data}")
    base = f"task.base_model_dir={detector}"
    return [
        pipeline.Step(
            "synthetic clips of 320 px",
            "memvid_tf.data",
            {"output": data, "preset": "paper", "train_clips": 8, "test_clips": 2},
            pipeline.exists(os.path.join(data, "dataset.json")),
            arguments=("synthetic",),
        ),
        pipeline.training(
            f"{STEPS} steps of quantization-aware training at paper scale",
            ("interleaved", "interleaved_qat"),
            (*inputs, *CLIPS, *DETECTOR),
            detector,
            STEPS,
            mode="train",
        ),
        pipeline.training(
            f"{STEPS} steps of a policy",
            (),
            (*inputs, base, *CLIPS, *POLICY),
            policy,
            STEPS,
            mode="train",
            experiment="interleaved_policy",
        ),
        *(
            pipeline.export(policy, os.path.join(output_dir, precision), precision, verify=False)
            for precision in ("int8", "float32")
        ),
    ]


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.output_dir:
        raise errors.UserError("--output_dir is missing, for example --output_dir=bundles/paper")
    pipeline.run(steps(os.path.abspath(FLAGS.output_dir), os.path.abspath(FLAGS.work_dir)))
    print(f"written: {FLAGS.output_dir}/int8 and {FLAGS.output_dir}/float32")


if __name__ == "__main__":
    errors.run(main)
