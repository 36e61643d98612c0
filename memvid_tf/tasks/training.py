"""One training run on the trainer of `official.core`."""

import contextlib
import os
import re

import tensorflow as tf
import tf_keras
from official.common import distribute_utils
from official.core import (
    base_trainer,
    config_definitions,
    task_factory,
    train_lib,
    train_utils,
)
from tqdm import tqdm

from memvid_tf.data import reading
from memvid_tf.errors import UserError
from memvid_tf.tasks import attention as _registers_attention  # noqa: F401
from memvid_tf.tasks import checkpoints, configuration
from memvid_tf.tasks import detection as _registers_interleaved  # noqa: F401
from memvid_tf.tasks import patchwork as _registers_patchwork  # noqa: F401
from memvid_tf.tasks import policy as _registers_interleaved_policy  # noqa: F401
from memvid_tf.tasks import single_frame as _registers_single_frame  # noqa: F401

LOG_FILE = "train.log"


class Progress:
    """Train action: a bar with the time left and the last training loss.

    Args:
      start: step from which training goes on.
      steps: step at which it ends.
      validation_interval: steps between validations, for which the bar stands still; 0 for none.

    Attributes:
      global_step: the trainer's step variable; set when the trainer exists.
    """

    def __init__(self, start: int, steps: int, validation_interval: int = 0):
        self.global_step = None
        self._validation_interval = validation_interval
        self._bar = tqdm(total=steps, initial=start, desc="training", unit="step")

    def __call__(self, output):
        step = int(self.global_step.numpy())
        validates = self._validation_interval and (
            step % self._validation_interval == 0 or step == self._bar.total
        )
        self._bar.set_description("validating" if validates else "training", refresh=False)
        self._bar.set_postfix(loss=f"{float(output['training_loss']):.3f}", refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self):
        self._bar.close()


def completed(params: config_definitions.ExperimentConfig) -> config_definitions.ExperimentConfig:
    """The configuration with what its task reads elsewhere: labels of the data, the base of a policy.

    Raises:
      UserError: if something is missing or does not fit.
    """
    task = task_factory.get_task_cls(type(params.task))
    return params.replace(task=task.completed(params.task))


def _catch_up(runner: train_lib.OrbitExperimentRunner, start: int) -> None:
    """Goes on from a step to the next one at which an uninterrupted run validates, and validates.

    The trainer counts the interval from where it starts. If the run was interrupted in a
    validation, that one is done again.
    """
    trainer, interval = runner.params.trainer, runner.params.trainer.validation_interval
    if not interval or not 0 < start < trainer.train_steps:
        return
    with runner.strategy.scope():
        end = min(-(-start // interval) * interval, trainer.train_steps)
        runner.controller.train(end, checkpoint_at_completion=False)
        runner.controller.evaluate(trainer.validation_steps)


def run(
    params: config_definitions.ExperimentConfig, model_dir: str, mode: str = "train_and_eval"
) -> None:
    """Trains until `trainer.train_steps`, from the last checkpoint if there is one.

    The result is a pure function of the configuration: data, schedules and weights draw from its
    seeds, and a run that was interrupted equals one that was not. What the trainer prints goes to
    `train.log` beside the checkpoints.

    Args:
      params: a configuration of `configuration.load`.
      model_dir: folder of checkpoints and summaries.
      mode: "train" or "train_and_eval".

    Raises:
      UserError: if the input or the checkpoint does not fit, or if the loss is not finite.
    """
    tf_keras.utils.set_random_seed(params.task.seed)
    tf.config.experimental.enable_op_determinism()
    strategy = distribute_utils.get_distribution_strategy(
        distribution_strategy=params.runtime.distribution_strategy,
        num_gpus=params.runtime.num_gpus,
    )
    path = checkpoints.latest(model_dir)
    start = checkpoints.step_of(path) if path else 0
    params = completed(params)
    with strategy.scope():
        task = task_factory.get_task(params.task, logging_dir=model_dir)
        task.start_step = start
        # All that can be wrong is said before anything is written.
        for name in ("train_data", "validation_data") if "eval" in mode else ("train_data",):
            task.build_inputs(getattr(params.task, name))
        model = task.build_model()
        items = task.checkpoint_items(model)
        if path:
            checkpoints.restore(model, path)
        else:
            task.initialize(model)
    try:
        configuration.save(params, model_dir)
    except OSError as error:
        raise UserError(f"{model_dir!r} cannot be written: {error.strerror}") from error
    validation_interval = params.trainer.validation_interval if "eval" in mode else 0
    progress = Progress(start, params.trainer.train_steps, validation_interval)
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        log = stack.enter_context(open(os.path.join(model_dir, LOG_FILE), "a", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(log))
        with strategy.scope():
            trainer = base_trainer.Trainer(
                params,
                task,
                model,
                train_utils.create_optimizer(task, params),
                train=True,
                evaluate="eval" in mode,
                checkpoint_exporter=train_lib.maybe_create_best_ckpt_exporter(params, model_dir),
            )
            for name, item in items.items():
                setattr(trainer.checkpoint, name, item)
        runner = train_lib.OrbitExperimentRunner(
            distribution_strategy=strategy,
            task=task,
            mode=mode,
            params=params,
            model_dir=model_dir,
            train_actions=[progress],
            trainer=trainer,
        )
        progress.global_step = trainer.global_step
        try:
            with reading.dataset_errors():
                if "eval" in mode:
                    _catch_up(runner, start)
                runner.run()
        except tf.errors.OpError as error:
            not_finite = re.search(r"FloatingPointError: (.*)", str(error))
            if not_finite:
                raise UserError(not_finite.group(1)) from error
            raise
        except RuntimeError as error:
            if not str(error).startswith("The loss value is"):  # trainer.loss_upper_bound
                raise
            raise UserError(f"training diverged: {error}; lower the learning rate") from error
