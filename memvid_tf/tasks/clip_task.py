"""What all trainings on clips share: data, labels, the optimizer's step, and validation.

A task says what a step computes of a batch (`forward`) and what validation does (`predict`); what
is made of the predictions, a loss and scores, is its objective's (`tasks.objectives`).
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions
from official.modeling import optimization

from memvid_tf import files
from memvid_tf.data import clips, records
from memvid_tf.errors import UserError
from memvid_tf.layers import replicas
from memvid_tf.tasks import checkpoints, devices, objectives
from memvid_tf.tasks.validation import per_replica


@dataclasses.dataclass
class ClipTaskConfig(config_definitions.TaskConfig):
    """The task.

    Attributes:
      labels: class names; by default those of the training data.
      seed: of weights and everything random that is not data.
      freeze_norm_step: step from which batch normalisation is frozen; -1 never.
    """

    train_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=True)
    )
    validation_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=False)
    )
    labels: tuple[str, ...] = ()
    seed: int = 0
    freeze_norm_step: int = -1


def check_clips(task) -> None:
    """Raises UserError where clips are not of the size that the network takes."""
    for name in ("train_data", "validation_data"):
        size = tuple(getattr(task, name).image_size)
        if size != tuple(task.model.image_size):
            raise UserError(
                f"task.{name}.image_size is {size}, but task.model.image_size is "
                f"{tuple(task.model.image_size)}"
            )


def require(checks) -> None:
    """Raises UserError for the first of (name, value, whether it is right, what is allowed) that is
    wrong."""
    for name, value, right, allowed in checks:
        if not right:
            raise UserError(f"task.{name} {value!r} is not allowed: {allowed}")


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


def with_labels(task: ClipTaskConfig) -> ClipTaskConfig:
    """The task with the class names of its training data, unless it names its own.

    Raises:
      UserError: if their number is not `model.num_classes`, or if the data has more classes or
        others.
    """
    found = tuple(records.read_info(task.train_data.input_path).labels)
    labels = tuple(task.labels) or found
    if len(labels) != task.model.num_classes or len(found) > len(labels):
        raise UserError(
            f"task.model.num_classes is {task.model.num_classes} with {len(labels)} labels, but "
            f"{task.train_data.input_path!r} has {len(found)} classes: {', '.join(found)}"
        )
    task = task.replace(labels=labels)
    check_labels(task)
    return task


def check_labels(task) -> None:
    """Raises UserError where class ids mean something else in the data than in `labels`."""
    for data in (task.train_data, task.validation_data):
        if data.input_path:
            records.read_info(data.input_path).check_labels(task.labels)


def experiment(
    task: ClipTaskConfig,
    best: str,
    rate: float,
    steps: int,
    *,
    checkpoint_interval: int = 2_000,
    validation_interval: int = 10_000,
    warmup_steps: int = 500,
) -> config_definitions.ExperimentConfig:
    """An experiment on one device.

    Args:
      task: what is trained.
      best: the number of validation by which the best checkpoint is kept.
      rate: initial learning rate of the cosine.
      steps: training steps.
      checkpoint_interval, validation_interval, warmup_steps: steps too.
    """
    return config_definitions.ExperimentConfig(
        task=task,
        runtime=devices.RuntimeConfig(),
        trainer=config_definitions.TrainerConfig(
            train_steps=steps,
            steps_per_loop=100,
            summary_interval=100,
            checkpoint_interval=checkpoint_interval,
            validation_interval=validation_interval,
            max_to_keep=3,
            best_checkpoint_export_subdir="best",
            best_checkpoint_eval_metric=best,
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "adam", "adam": {"global_clipnorm": 10.0}},
                    "learning_rate": {
                        "type": "cosine",
                        "cosine": {"initial_learning_rate": rate, "decay_steps": steps},
                    },
                    "warmup": {"type": "linear", "linear": {"warmup_steps": warmup_steps}},
                }
            ),
        ),
        restrictions=[
            "task.train_data.is_training != None",
            "task.validation_data.is_training != None",
        ],
    )


class ClipTask(base_task.Task):
    """See the module.

    Attributes:
      start_step: global step from which training goes on; the input stream starts there.
      replicates: whether several replicas may train it together.
      objective: loss and scores; known once a step has been taken.
    """

    start_step = 0
    replicates = False

    @classmethod
    def completed(cls, config: ClipTaskConfig) -> ClipTaskConfig:
        """The task with what its data says.

        Raises:
          UserError: naming a value that would end training later, or spoil it.
        """
        check_clips(config)
        cls.check_numbers(config)
        if objectives.segments(config):
            return objectives.with_masks(config)
        return with_labels(config)

    @classmethod
    def check_numbers(cls, config: ClipTaskConfig) -> None:
        """Raises UserError naming a number that is not allowed."""
        require(objectives.checks(config))

    def checkpoint_items(self, model) -> dict[str, object]:
        """What a checkpoint needs beside model and optimizer: nothing."""
        return {}

    def initialize(self, model):
        """Restores `init_checkpoint`, the end of an earlier phase, into a new run."""
        path = self.task_config.init_checkpoint
        if not path:
            return
        if tf.io.gfile.isdir(path):
            path = checkpoints.find(path)
        checkpoints.restore(model, path, allow_new_ranges=True)

    def build_inputs(self, params, input_context=None):
        return clip_inputs(params, input_context, self.start_step)

    def build_metrics(self, training: bool = True):
        names = (*self.metric_names(), "gradient_norm") if training else ()
        return [tf_keras.metrics.Mean(name) for name in names]

    def metric_names(self) -> tuple[str, ...]:
        """Names of the values that `forward` returns."""
        return objectives.METRICS[objectives.segments(self.task_config)]

    def network(self, model):
        """What predicts, which is the model or a part of it."""
        return model

    def forward(self, inputs, model, step):
        """What a training step computes.

        Args:
          inputs: a batch of `clip_dataset`.
          model: what `build_model` returned.
          step: scalar int32, the number of steps before this one.

        Returns:
          The loss, a scalar whose mean over the replicas is that of the whole batch, and values by
          the names of `metric_names`.
        """
        raise NotImplementedError

    def predict(self, inputs, model):
        """Predictions of whole clips in validation, [B, T, ...] float32 by name."""
        raise NotImplementedError

    # Rewriting Python's control flow takes longer than tracing, and nothing here needs it.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, inputs, model, optimizer, metrics=None):
        config = self.task_config
        network = self.network(model)
        self.objective = objectives.make(config, network)
        step = tf.cast(optimizer.iterations, tf.int32)
        # Set on every step: a phase may start from the checkpoint of one that froze.
        network.norm.freeze_from(config.freeze_norm_step, step)
        with tf.GradientTape() as tape:
            loss, values = self.forward(inputs, model, step)
            scaled_loss = loss / tf.distribute.get_strategy().num_replicas_in_sync
        gradients = replicas.sums(tape.gradient(scaled_loss, model.trainable_variables))
        norm = tf.linalg.global_norm(gradients)
        with tf.control_dependencies([self._require_finite(loss, norm, inputs, step)]):
            replicas.apply(optimizer, gradients, model.trainable_variables)
        values = {**values, "gradient_norm": norm}
        for metric in metrics or ():
            metric.update_state(values[metric.name])
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

    @tf.autograph.experimental.do_not_convert
    def validation_step(self, inputs, model, metrics=None):
        """Runs whole clips."""
        self.objective = objectives.make(self.task_config, self.network(model))
        return {**self.predict(inputs, model), **inputs}

    def aggregate_logs(self, state=None, step_logs=None):
        if state is None:
            state = self.objective.scores()
        for batch in per_replica(step_logs):
            state.add(batch)
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        return aggregated_logs.summaries(global_step)
