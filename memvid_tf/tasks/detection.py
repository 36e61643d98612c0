"""Training and validation of the interleaved detector (LFS 3.3).

A step unrolls a clip in which each frame goes to a random extractor. The draw is made for the whole
batch, so that only the extractor that was picked is computed.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions, exp_factory, task_factory
from official.modeling import optimization

from memvid_tf import files
from memvid_tf.data import clips, records
from memvid_tf.detection import loss as detection_loss
from memvid_tf.detection.matching import match
from memvid_tf.errors import UserError
from memvid_tf.layers import replicas
from memvid_tf.models import interleaved
from memvid_tf.runtime import schedules
from memvid_tf.tasks import backbone_weights, checkpoints
from memvid_tf.tasks.validation import ClipScores, per_replica

EXPERIMENT = "interleaved"


@dataclasses.dataclass
class InterleavedTaskConfig(config_definitions.TaskConfig):
    """The task.

    Attributes:
      labels: class names; by default those of the training data.
      validation_tau: interleave ratio at which validation during training runs whole clips.
      seed: of weights, schedules and everything random that is not data.
      f0_probability: of running f0 on a frame of a training clip; at least one frame of a clip
        goes to each extractor.
      freeze_norm_step: step from which batch normalisation is frozen; -1 never.
      backbone_weights_f0, backbone_weights_f1: files of MobileNetV2 weights, as those of
        tf_keras.applications, from which a new run starts where nothing else is said.
    """

    model: interleaved.InterleavedConfig = dataclasses.field(
        default_factory=interleaved.InterleavedConfig
    )
    train_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=True)
    )
    validation_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=False)
    )
    losses: detection_loss.LossConfig = dataclasses.field(default_factory=detection_loss.LossConfig)
    labels: tuple[str, ...] = ()
    validation_tau: int = 9
    seed: int = 0
    f0_probability: float = 0.5
    freeze_norm_step: int = -1
    backbone_weights_f0: str = ""
    backbone_weights_f1: str = ""


def sample_schedule(steps: int, probability: float, seed):
    """Draws which extractor sees which frame of a clip.

    Args:
      steps: frames of the clip, at least two.
      probability: of f0 on each frame.
      seed: [2] int32; the draw is a pure function of it.

    Returns:
      Ascending times of f0 and of f1, [n0] and [n1] int32, neither empty, n0 + n1 = steps.
    """
    draws = tf.random.stateless_uniform([steps], seed)
    # Picking the n0 smallest draws is the same as comparing each with the probability, except that
    # n0 can be kept away from 0 and from `steps`: an extractor needs a batch to normalise.
    count = tf.clip_by_value(tf.reduce_sum(tf.cast(draws < probability, tf.int32)), 1, steps - 1)
    order = tf.argsort(draws)
    return tf.sort(order[:count]), tf.sort(order[count:])


def check_clips(task) -> None:
    """Raises UserError where clips are not of the size that the network takes."""
    for name in ("train_data", "validation_data"):
        size = tuple(getattr(task, name).image_size)
        if size != tuple(task.model.image_size):
            raise UserError(
                f"task.{name}.image_size is {size}, but task.model.image_size is "
                f"{tuple(task.model.image_size)}"
            )


def check_numbers(task: InterleavedTaskConfig) -> None:
    """Raises UserError naming a value that would end training later, or spoil it."""
    names = detection_loss.CLASSIFICATION_LOSSES
    checks = (
        ("validation_tau", task.validation_tau, task.validation_tau >= 0, "0 or more"),
        ("f0_probability", task.f0_probability, 0 <= task.f0_probability <= 1, "0 to 1"),
        (
            "train_data.unroll_frames",
            task.train_data.unroll_frames,
            task.train_data.unroll_frames >= 2,
            "at least 2, one for each extractor",
        ),
        (
            "losses.classification",
            task.losses.classification,
            task.losses.classification in names,
            f"one of {names}",
        ),
    )
    for name, value, right, allowed in checks:
        if not right:
            raise UserError(f"task.{name} {value!r} is not allowed: {allowed}")


def start_backbones(task: InterleavedTaskConfig, model: interleaved.InterleavedDetector) -> None:
    """Gives the extractors the weights of the files that are named, or raises UserError."""
    for extractor, path in (("f0", task.backbone_weights_f0), ("f1", task.backbone_weights_f1)):
        if path:
            backbone_weights.load(model.extractors[extractor], path)


def clip_inputs(params: clips.ClipConfig, input_context, start_step: int) -> tf.data.Dataset:
    """`clips.clip_dataset` from a step on, or UserError saying what does not fit.

    In validation every worker reads all clips.
    """
    if input_context and not params.is_training:
        local = input_context.num_replicas_in_sync // input_context.num_input_pipelines
        input_context = tf.distribute.InputContext(1, 0, local)
    try:
        return clips.clip_dataset(params, input_context, start_step if params.is_training else 0)
    except ValueError as error:
        raise UserError(str(error)) from error


def with_labels(task: InterleavedTaskConfig) -> InterleavedTaskConfig:
    """The task with the class names of its training data, unless it names its own.

    Raises:
      UserError: if their number is not `model.num_classes`, or if the data has more classes.
    """
    found = tuple(records.read_info(task.train_data.input_path).labels)
    labels = tuple(task.labels) or found
    if len(labels) != task.model.num_classes or len(found) > len(labels):
        raise UserError(
            f"task.model.num_classes is {task.model.num_classes} with {len(labels)} labels, but "
            f"{task.train_data.input_path!r} has {len(found)} classes: {', '.join(found)}"
        )
    return task.replace(labels=labels)


@task_factory.register_task_cls(InterleavedTaskConfig)
class InterleavedTask(base_task.Task):
    """See the module.

    Attributes:
      start_step: global step from which training goes on; the input stream starts there.
      replicates: whether several replicas may train it together.
    """

    start_step = 0
    replicates = True

    @classmethod
    def completed(cls, config: InterleavedTaskConfig) -> InterleavedTaskConfig:
        """The task with what its data says; see `with_labels`."""
        check_clips(config)
        check_numbers(config)
        return with_labels(config)

    def checkpoint_items(self, model) -> dict[str, object]:
        """What a checkpoint needs beside model and optimizer: nothing."""
        return {}

    def build_model(self) -> interleaved.InterleavedDetector:
        try:
            return interleaved.build(self.task_config.model)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def initialize(self, model):
        """Gives a new run its weights: those of an earlier phase, and those of backbones."""
        config = self.task_config
        if config.init_checkpoint:
            path = config.init_checkpoint
            if tf.io.gfile.isdir(path):
                path = checkpoints.find(path)
            checkpoints.restore(model, path, allow_new_ranges=True)
        start_backbones(config, model)

    def build_inputs(self, params, input_context=None):
        return clip_inputs(params, input_context, self.start_step)

    def build_losses(self, labels, model_outputs, aux_losses=None):
        """labels: a batch of `clip_dataset`; model_outputs: of `InterleavedDetector.call`."""

        def frames(x):
            return tf.reshape(x, [-1, *x.shape[2:]])

        config = self.task_config.losses
        targets = match(
            self._anchors,
            frames(labels["boxes"]),
            frames(labels["classes"]),
            config.match_threshold,
        )
        return detection_loss.frame_loss(
            frames(model_outputs["box_encodings"]),
            frames(model_outputs["class_logits"]),
            targets,
            config,
        )

    def build_metrics(self, training: bool = True):
        names = ("classification_loss", "box_loss", "gradient_norm") if training else ()
        return [tf_keras.metrics.Mean(name) for name in names]

    def train_step(self, inputs, model, optimizer, metrics=None):
        config = self.task_config
        self._anchors = model.anchors
        step = tf.cast(optimizer.iterations, tf.int32)
        # Set on every step: a phase may start from the checkpoint of one that froze.
        model.norm.frozen.assign((config.freeze_norm_step >= 0) & (step >= config.freeze_norm_step))
        f0_steps, f1_steps = sample_schedule(
            inputs["frames"].shape[1], config.f0_probability, tf.stack([config.seed, step])
        )
        with tf.GradientTape() as tape:
            outputs = model(inputs["frames"], f0_steps, f1_steps, training=True)
            losses = self.build_losses(inputs, outputs)
            # For each positive anchor of all replicas: gradients add up to those of one device.
            count = tf.distribute.get_strategy().num_replicas_in_sync
            positives = replicas.mean(tf.reduce_sum(losses.positives))
            positives = tf.maximum(positives, 1.0 / count)
            loss = losses.total(config.losses.box_weight, positives)
            scaled_loss = loss / count
        gradients = replicas.sums(tape.gradient(scaled_loss, model.trainable_variables))
        norm = tf.linalg.global_norm(gradients)
        with tf.control_dependencies([self._require_finite(loss, norm, inputs, step)]):
            replicas.apply(optimizer, gradients, model.trainable_variables)
        values = (
            tf.reduce_sum(losses.classification) / positives,
            tf.reduce_sum(losses.box) / positives,
            norm,
        )
        for metric, value in zip(metrics or (), values):
            metric.update_state(value)
        return {self.loss: loss}

    def _require_finite(self, loss, norm, inputs, step):
        """An operation that keeps the batch and stops training if the loss is not a number."""
        names = sorted(inputs)

        def stop(loss, norm, step, *arrays):
            path = os.path.join(self.logging_dir or ".", f"not_finite_step_{int(step)}.npz")
            with files.atomic_path(path) as temporary:
                np.savez_compressed(temporary, **dict(zip(names, arrays)))
            raise FloatingPointError(
                f"loss is {float(loss):g} and its gradient {float(norm):g} at step {int(step)}; its "
                f"batch is kept in {path}; lower the learning rate or look at the batch"
            )

        def keep_batch():
            return tf.py_function(stop, [loss, norm, step, *(inputs[n] for n in names)], [])

        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        return tf.cond(finite, tf.no_op, lambda: tf.group(keep_batch()))

    def validation_step(self, inputs, model, metrics=None):
        """Runs whole clips at a fixed interleave ratio."""
        self._anchors = model.anchors
        picks = schedules.FixedSchedule(self.task_config.validation_tau)
        by_extractor = {"f0": [], "f1": []}
        for t in range(inputs["frames"].shape[1]):
            by_extractor[picks.pick(t)].append(t)
        outputs = model(
            inputs["frames"], *(tf.constant(t, tf.int32) for t in by_extractor.values())
        )
        return {**outputs, **inputs}

    def aggregate_logs(self, state=None, step_logs=None):
        if state is None:
            state = ClipScores(self.task_config.labels, self._anchors)
        for batch in per_replica(step_logs):
            state.add(batch)
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        return aggregated_logs.summaries(global_step)


@exp_factory.register_config_factory(EXPERIMENT)
def interleaved_experiment() -> config_definitions.ExperimentConfig:
    """Paper scale (LFS 3.3): batch 12, unroll 6, learning rate .002 with cosine decay."""
    return config_definitions.ExperimentConfig(
        task=InterleavedTaskConfig(name=EXPERIMENT),
        runtime=config_definitions.RuntimeConfig(distribution_strategy="one_device"),
        trainer=config_definitions.TrainerConfig(
            train_steps=200_000,
            steps_per_loop=100,
            summary_interval=100,
            checkpoint_interval=2_000,
            validation_interval=10_000,
            max_to_keep=3,
            best_checkpoint_export_subdir="best",
            best_checkpoint_eval_metric="mAP",
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "adam", "adam": {"global_clipnorm": 10.0}},
                    "learning_rate": {
                        "type": "cosine",
                        "cosine": {"initial_learning_rate": 0.002, "decay_steps": 200_000},
                    },
                    "warmup": {"type": "linear", "linear": {"warmup_steps": 500}},
                }
            ),
        ),
        restrictions=[
            "task.train_data.is_training != None",
            "task.validation_data.is_training != None",
        ],
    )
