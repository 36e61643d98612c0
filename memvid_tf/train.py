r"""Trains a network of the zoo.

  python -m memvid_tf.train --config_file=configs/interleaved_tiny.yaml --model_dir=runs/tiny
  python -m memvid_tf.train --experiment=interleaved_policy --model_dir=runs/tiny_policy \
    --config_file=configs/interleaved_tiny_policy.yaml \
    --params_override=task.base_model_dir=runs/tiny

  python -m memvid_tf.train --experiment=detector --config_file=configs/detector_tiny.yaml \
    --model_dir=runs/detector

Started again with the same --model_dir it goes on from the last checkpoint, and ends with the same
weights as if it had never stopped. The configuration is written beside the checkpoints.
"""

import os

from absl import flags, logging

from memvid_tf import errors, paths

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "experiment",
    "interleaved",
    "Registered experiment whose defaults are used: interleaved, interleaved_classification, "
    "interleaved_policy; detector, detector_attention, detector_patchwork, the stages of Patchwork, "
    "and the same of segmenter.",
)
flags.DEFINE_multi_string(
    "config_file",
    [],
    "YAML file that overrides the defaults; may be given several times, later ones win. "
    "Example: --config_file=configs/interleaved_tiny.yaml",
)
flags.DEFINE_string(
    "params_override",
    "",
    "Comma-separated overrides of the files. "
    "Example: --params_override=task.seed=1,trainer.train_steps=100",
)
flags.DEFINE_string(
    "model_dir", None, "Folder of checkpoints and summaries. Example: --model_dir=runs/tiny"
)
flags.DEFINE_enum(
    "mode",
    "train_and_eval",
    ["train", "train_and_eval"],
    "Whether to validate while training, which the best checkpoint needs.",
)


# What a training may not change on its way: it would end as no training of one configuration does.
FIXED = (
    "task.model",
    "task.policy",
    "task.windows",
    "task.attention",
    "task.seed",
    "task.train_data.seed",
    "trainer.optimizer_config.optimizer",
)


def _fixed(params: dict) -> dict:
    """The entries of a configuration that are FIXED, by their names."""
    found = {}
    for name in FIXED:
        value = params
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def check_same_training(params, model_dir: str) -> None:
    """Refuses to go on in the folder of another training."""
    from memvid_tf.tasks import checkpoints, configuration

    path = os.path.join(model_dir, configuration.PARAMS_FILE)
    if checkpoints.latest(model_dir) is None or not os.path.exists(path):
        return
    saved, wanted = _fixed(configuration.read_yaml(path)), _fixed(params.as_dict())
    found = configuration.difference(saved, wanted)
    if found:
        raise errors.UserError(
            f"--model_dir={model_dir} holds checkpoints of another configuration: {found}; "
            "choose another --model_dir"
        )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    # The bar shows what people watch; everything the trainer says goes to train.log.
    logging.set_verbosity(logging.WARNING)
    if not FLAGS.model_dir:
        raise errors.UserError("--model_dir is missing, for example --model_dir=runs/tiny")
    paths.check_output("model_dir", FLAGS.model_dir, folder=True)
    for file in FLAGS.config_file:
        paths.check_file("config_file", file, "a YAML file such as configs/interleaved_tiny.yaml")
    from memvid_tf.tasks import ended

    wanted = FLAGS.experiment, FLAGS.config_file, FLAGS.params_override
    nothing_to_do = ended.early_message(FLAGS.model_dir, *wanted)
    if nothing_to_do:
        print(nothing_to_do)
        return
    from memvid_tf.tasks import configuration, training

    params = configuration.load(*wanted)
    params = training.completed(params)
    check_same_training(params, FLAGS.model_dir)
    nothing_to_do = ended.message(FLAGS.model_dir, params.trainer.train_steps)
    if nothing_to_do:
        print(nothing_to_do)
        return
    training.run(params, FLAGS.model_dir, FLAGS.mode)


if __name__ == "__main__":
    errors.run(main)
