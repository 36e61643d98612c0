"""One training run on the trainer of `official.core`."""

import contextlib
import errno
import functools
import os
import re
import signal

import numpy as np
import orbit
import tensorflow as tf
import tf_keras
from official.core import (
    base_trainer,
    config_definitions,
    task_factory,
    train_lib,
    train_utils,
)

from memvid_tf import locks
from memvid_tf.data import reading
from memvid_tf.errors import Terminated, UserError
from memvid_tf.tasks import attention as _registers_attention  # noqa: F401
from memvid_tf.tasks import checkpoints, configuration, devices
from memvid_tf.tasks import classification as _registers_classification  # noqa: F401
from memvid_tf.tasks import detection as _registers_interleaved  # noqa: F401
from memvid_tf.tasks import patchwork as _registers_patchwork  # noqa: F401
from memvid_tf.tasks import policy as _registers_interleaved_policy  # noqa: F401
from memvid_tf.tasks import single_frame as _registers_single_frame  # noqa: F401
from memvid_tf.tasks.progress import Progress

LOG_FILE = "train.log"


class Termination:
    """Whether SIGTERM has come, or SIGHUP of a closed terminal.

    The first steps take minutes of tracing, longer than those who stop programs wait. Until they
    are done there is nothing to keep, and the process ends at once, as after a second signal.

    Attributes:
      asked: whether it has come.
    """

    def __init__(self):
        self.asked, self._learned = False, False

    def learned(self, output):
        """Train action: from now on there is something to keep."""
        self._learned = True

    @contextlib.contextmanager
    def watched(self):
        """Takes note of them within the block; of SIGHUP not under nohup, which ignores it."""
        numbers = [
            number
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN
        ]

        def note(number, frame):
            if not self._learned:
                # Not as an exception, which the tracing would take for one of the network.
                os.write(2, b"\nterminated before the first steps; start the same command again\n")
                os._exit(128 + number)
            self.asked = True
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trainer(base_trainer.Trainer):
    """The library's trainer, which tells how far a validation is."""

    def __init__(self, progress: Progress, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._progress, self._batches = progress, 0

    def eval_begin(self):
        self._batches = 0
        return super().eval_begin()

    def eval_reduce(self, state=None, step_outputs=None):
        self._batches += 1
        self._progress.validated(self._batches)
        return super().eval_reduce(state, step_outputs)


class Controller(orbit.Controller):
    """The library's controller, which after SIGTERM saves a checkpoint and ends the program.

    It looks after every loop and every validation. All workers stop at the same step if one of
    them is told to, since saving takes all of them. Checkpoints are saved after the loops in which
    a multiple of the interval is reached; the library counts from the end of the first loop.
    """

    def __init__(self, termination: Termination, progress: Progress, **kwargs):
        super().__init__(**kwargs)
        self._termination, self._progress = termination, progress
        self._saved_step = int(self.global_step.numpy())

    def _train_n_steps(self, num_steps):
        super()._train_n_steps(num_steps)
        self._end_if_asked()

    def evaluate(self, steps=-1):
        with self._progress.validating():
            found = super().evaluate(steps)
        self._end_if_asked()
        return found

    def _maybe_save_checkpoint(self, check_interval=True):
        step, interval = int(self.global_step.numpy()), self.checkpoint_manager.checkpoint_interval
        if check_interval and interval and step // interval == self._saved_step // interval:
            return False
        self._saved_step = step
        return super()._maybe_save_checkpoint(check_interval=False)

    def _end_if_asked(self):
        if devices.mean_of_workers(self.strategy, float(self._termination.asked)) > 0:
            self.save_checkpoint()
            raise Terminated(
                f"terminated; the checkpoint of step {int(self.global_step.numpy())} is written, "
                "and training goes on from it when it is started again"
            )


def _no_room(error: Exception) -> bool:
    """Whether a file could not be written because a disk or quota is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(os.strerror(number) in str(error) for number in full)


@contextlib.contextmanager
def _said_plainly(model_dir: str):
    """Turns what ends a training into a UserError where the user can do something about it."""
    try:
        with reading.dataset_errors():
            yield
    except (tf.errors.OpError, OSError) as error:
        not_finite = re.search(r"FloatingPointError: (.*)", str(error))
        if not_finite:
            raise UserError(not_finite.group(1)) from error
        if _no_room(error):
            path = checkpoints.latest(model_dir)
            kept = f"from step {checkpoints.step_of(path)}" if path else "from its beginning"
            raise UserError(
                f"there is no room to write in {model_dir!r}; make some and start the same command "
                f"again, training goes on {kept}"
            ) from error
        if isinstance(error, tf.errors.UnavailableError):
            raise UserError(
                "another worker is gone; start the same command again on all workers, training "
                f"goes on from the last checkpoint ({str(error).splitlines()[0]})"
            ) from error
        raise
    except RuntimeError as error:
        if not str(error).startswith("The loss value is"):  # trainer.loss_upper_bound
            raise
        raise UserError(f"training diverged: {error}; lower the learning rate") from error


def completed(params: config_definitions.ExperimentConfig) -> config_definitions.ExperimentConfig:
    """The configuration with what its task reads elsewhere: labels of data, a policy's base.

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
    seeds, and a run that was interrupted equals one that was not; to the bit, with
    `runtime.deterministic`. What the trainer prints goes to `train.log` beside the checkpoints.

    Args:
      params: a configuration of `configuration.load`.
      model_dir: folder of checkpoints and summaries.
      mode: "train" or "train_and_eval".

    Raises:
      UserError: if the input or the checkpoint does not fit, if the loss is not finite, if there is
        no room to write, if another process trains in `model_dir`, or if another worker is gone.
      Terminated: after SIGTERM or SIGHUP, when a checkpoint is written.
    """
    tf_keras.utils.set_random_seed(params.task.seed)
    if params.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    used = devices.gpus(params.runtime, params.task.train_data.global_batch_size)
    # Workers can join only before TensorFlow has done anything.
    strategy = devices.strategy(params.runtime, used)
    with _alone(model_dir) if devices.is_chief(strategy) else contextlib.nullcontext():
        _run(params, model_dir, mode, strategy, used)


@contextlib.contextmanager
def _alone(model_dir: str):
    """Holds the folder of a training, which all its workers share and only the chief writes to."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.folder(model_dir))
        except OSError as error:
            raise UserError(f"{model_dir!r} cannot be written: {error.strerror}") from error
        yield


def _run(params, model_dir, mode, strategy, used):
    chief = devices.is_chief(strategy)
    path = checkpoints.latest(model_dir)
    start = checkpoints.step_of(path) if path else 0
    params = completed(params)
    replicas = strategy.num_replicas_in_sync
    if replicas > 1 and not _replicates(params.task):
        raise UserError(
            f"runtime.distribution_strategy {params.runtime.distribution_strategy!r} makes "
            f"{replicas} replicas, but {params.task.name!r} is trained on one device"
        )
    if params.task.train_data.global_batch_size % replicas:
        raise UserError(
            f"task.train_data.global_batch_size {params.task.train_data.global_batch_size} does "
            f"not divide among {replicas} replicas; without runtime.num_gpus as many run as do"
        )
    with devices.precision(params.runtime, params.task), strategy.scope():
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
        if chief:
            configuration.save(params, model_dir)
            checkpoints.sweep(model_dir)
    except OSError as error:
        raise UserError(f"{model_dir!r} cannot be written: {error.strerror}") from error
    print(devices.described(used))
    progress = Progress(start, params.trainer.train_steps, hidden=not chief)
    termination = Termination()
    with contextlib.ExitStack() as stack:
        stack.callback(progress.close)
        stack.enter_context(_said_plainly(model_dir))
        log_file = os.path.join(model_dir, LOG_FILE) if chief else os.devnull
        log = stack.enter_context(open(log_file, "a", buffering=1))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(np.printoptions(legacy="1.25"))  # 3.7, not np.float32(3.7)
        with strategy.scope():
            optimizer = train_utils.create_optimizer(task, params)
            if params.trainer.train_tf_function:
                # TensorFlow traces a step twice that makes variables, as the first one would.
                optimizer._create_all_weights(model.trainable_variables)
            trainer = Trainer(
                progress,
                params,
                task,
                model,
                optimizer,
                train=True,
                evaluate="eval" in mode,
                checkpoint_exporter=_best_checkpoints(params, model_dir, strategy),
            )
            for name, item in items.items():
                setattr(trainer.checkpoint, name, item)
        runner = devices.Runner(
            distribution_strategy=strategy,
            task=task,
            mode=mode,
            # The controller does that, and ends the program.
            params=params.replace(
                trainer=params.trainer.replace(preemption_on_demand_checkpoint=False)
            ),
            model_dir=model_dir,
            save_summary=chief,
            train_actions=[termination.learned, progress],
            trainer=trainer,
            controller_cls=functools.partial(Controller, termination, progress),
        )
        progress.global_step = trainer.global_step
        stack.enter_context(termination.watched())
        if "eval" in mode:
            _catch_up(runner, start)
        runner.run()


def _replicates(task: config_definitions.TaskConfig) -> bool:
    """Whether a task can be divided among replicas."""
    return getattr(task_factory.get_task_cls(type(task)), "replicates", False)


def _best_checkpoints(params, model_dir, strategy):
    trainer = params.trainer
    if not (trainer.best_checkpoint_export_subdir and trainer.best_checkpoint_eval_metric):
        return None
    return devices.BestCheckpoints(trainer, model_dir, strategy)
