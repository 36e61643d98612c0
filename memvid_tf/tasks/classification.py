"""Pretraining of extractors and memory on classification (LFS 3.3, first phase).

"We duplicate each frame three times and unroll the LSTM to three steps. At each step, we uniformly
select a random feature extractor to run."

Differs from the paper: of a picture with boxes, the class is that of the largest object, so that
any clip set can be classified; each of the three steps is trained, which the paper leaves open.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from official.core import config_definitions, exp_factory, task_factory

from memvid_tf.data import records
from memvid_tf.errors import UserError
from memvid_tf.layers import replicas
from memvid_tf.models import classifier
from memvid_tf.tasks.clip_task import check_clips, experiment
from memvid_tf.tasks.detection import (
    InterleavedTask,
    InterleavedTaskConfig,
    sample_schedule,
    start_backbones,
)
from memvid_tf.tasks.validation import per_replica

EXPERIMENT = "interleaved_classification"
REPEATS = 3
NO_CLASS = -1


@dataclasses.dataclass
class ClassificationTaskConfig(InterleavedTaskConfig):
    """The task. `model.num_classes` is the next phase's; there are as many classes here as labels.

    Of the inherited fields `losses` and `validation_tau` say nothing.
    """


def classes_of(boxes, classes):
    """What the first frame of each clip shows.

    Args:
      boxes: [B, T, N, 4] float32.
      classes: [B, T, N] int32, 0 where padded.

    Returns:
      [B] int32: class of the largest object, counted from 0; NO_CLASS where there is none.
    """
    sides = boxes[:, 0, :, 2:] - boxes[:, 0, :, :2]
    areas = tf.where(classes[:, 0] > 0, sides[..., 0] * sides[..., 1], -1.0)
    largest = tf.argmax(areas, 1, output_type=tf.int32)
    return tf.gather(classes[:, 0], largest, batch_dims=1) - 1


@task_factory.register_task_cls(ClassificationTaskConfig)
class ClassificationTask(InterleavedTask):
    """See the module."""

    @classmethod
    def completed(cls, config: ClassificationTaskConfig) -> ClassificationTaskConfig:
        """The task with the class names of its data.

        Raises:
          UserError: if something does not fit.
        """
        check_clips(config)
        if not 0 <= config.f0_probability <= 1:
            raise UserError(f"task.f0_probability {config.f0_probability!r} is not allowed: 0 to 1")
        found = tuple(records.read_info(config.train_data.input_path).labels)
        labels = tuple(config.labels) or found
        if labels != found:
            raise UserError(
                f"task.labels are {', '.join(labels)}, but {config.train_data.input_path!r} has "
                f"{', '.join(found)}"
            )
        return config.replace(labels=labels)

    def build_model(self) -> classifier.InterleavedClassifier:
        try:
            return classifier.build_classifier(self.task_config.model, len(self.task_config.labels))
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def initialize(self, model):
        """Gives a new run the weights of backbones, where files are named."""
        if self.task_config.init_checkpoint:
            raise UserError("task.init_checkpoint is not for the first phase; leave it out")
        start_backbones(self.task_config, model.detector)

    def network(self, model):
        return model.detector

    def metric_names(self) -> tuple[str, ...]:
        return ("training_accuracy",)

    def forward(self, inputs, model, step):
        config = self.task_config
        truth = classes_of(inputs["boxes"], inputs["classes"])
        there = tf.cast(truth > NO_CLASS, tf.float32)
        steps = sample_schedule(REPEATS, config.f0_probability, tf.stack([config.seed, step]))
        count = tf.distribute.get_strategy().num_replicas_in_sync
        shown = tf.maximum(replicas.mean(tf.reduce_sum(there)), 1.0 / count)
        logits = model(_repeated(inputs), *steps, training=True)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.repeat(tf.maximum(truth, 0)[:, tf.newaxis], REPEATS, 1), logits
        )
        loss = tf.reduce_sum(tf.reduce_mean(cross_entropy, 1) * there) / shown
        right = tf.cast(tf.argmax(logits[:, -1], -1, tf.int32) == truth, tf.float32)
        return loss, {"training_accuracy": tf.reduce_sum(right) / shown}

    @tf.autograph.experimental.do_not_convert
    def validation_step(self, inputs, model, metrics=None):
        """Runs f0, then f1 on the memory that it left."""
        truth = classes_of(inputs["boxes"], inputs["classes"])
        found = tf.argmax(model(_repeated(inputs)), -1, tf.int32)
        shown = (truth > NO_CLASS) & (inputs["num_frames"] > 0)
        return {"right": found == truth[:, tf.newaxis], "shown": shown}

    def aggregate_logs(self, state=None, step_logs=None):
        state = [] if state is None else state
        state += [batch["right"][batch["shown"]] for batch in per_replica(step_logs)]
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        right = np.concatenate(aggregated_logs).mean(0)
        return {"accuracy": float(right[-1]), "accuracy_f0": float(right[0])}


def _repeated(inputs):
    """[B, REPEATS, H, W, 3]: the first frame of each clip, repeated."""
    # GPUs have no kernel that repeats bytes.
    return tf.repeat(tf.cast(inputs["frames"][:, :1], tf.float32), REPEATS, 1)


@exp_factory.register_config_factory(EXPERIMENT)
def classification_experiment() -> config_definitions.ExperimentConfig:
    """Paper scale, as far as LFS 3.3 says what that is."""
    task = ClassificationTaskConfig(name=EXPERIMENT)
    for data in (task.train_data, task.validation_data):
        data.unroll_frames = 1
    return experiment(
        task,
        "accuracy",
        0.002,
        500_000,
        checkpoint_interval=5_000,
        validation_interval=20_000,
        warmup_steps=2_000,
    )
