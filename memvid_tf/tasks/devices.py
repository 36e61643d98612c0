"""The devices of a training: one, several of a machine (`mirrored`) or several machines
(`multi_worker_mirrored`), by `runtime.*` of its configuration.

A batch is divided among the replicas, which normalise it and its loss together, so that as many
devices as one likes take the steps that one takes. Every worker validates on all clips: what is
scored in Python would otherwise be the worker's own. The library's runner is mended where several
workers meet: all restore what the chief wrote, and decide together which checkpoint is the best.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf
import tf_keras
from official.common import distribute_utils
from official.core import config_definitions, train_lib, train_utils

from memvid_tf import files
from memvid_tf.errors import UserError

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored")
# By `runtime.mixed_precision_dtype`. bfloat16 has the exponents of float32, so its gradients need no
# loss scale, which float16's would.
POLICIES = {None: "float32", "float32": "float32", "bfloat16": "mixed_bfloat16"}
NVIDIA_DRIVER = "/dev/nvidiactl"


@dataclasses.dataclass
class RuntimeConfig(config_definitions.RuntimeConfig):
    """Where a training runs. Of the inherited fields the others than `worker_hosts`, `task_index`,
    `all_reduce_alg` and `mixed_precision_dtype` say nothing.

    Attributes:
      distribution_strategy: one of `STRATEGIES`.
      num_gpus: GPUs of each machine, 0 for its CPU; by default one with one_device, else as many of
        those there are as divide the batch.
      deterministic: whether a training ends with the same bits whenever it runs on the same
        machine, interrupted or not. Without, a GPU may be faster.
    """

    distribution_strategy: str = "one_device"
    num_gpus: Optional[int] = None
    deterministic: bool = True


def _hosts(runtime: RuntimeConfig) -> list[str]:
    return runtime.worker_hosts.split(",") if runtime.worker_hosts else []


def _check(runtime: RuntimeConfig, visible: int) -> None:
    """Raises UserError naming a value that is not allowed."""
    hosts, wanted = _hosts(runtime), runtime.num_gpus or 0
    seen = f"the {visible} that TensorFlow sees" if visible else "TensorFlow sees no GPU"
    checks = (
        (
            "distribution_strategy",
            runtime.distribution_strategy in STRATEGIES,
            f"one of {STRATEGIES}",
        ),
        (
            "num_gpus",
            wanted <= 1 or runtime.distribution_strategy != "one_device",
            "0 or 1 with one_device; several make a 'mirrored' training",
        ),
        ("num_gpus", 0 <= wanted <= visible, f"0 to {visible}, {seen}"),
        (
            "enable_xla",
            not runtime.enable_xla,
            "false; XLA compiles neither memories of as many steps as are drawn, nor the Python "
            "that keeps a batch whose loss is not finite",
        ),
        (
            "mixed_precision_dtype",
            runtime.mixed_precision_dtype in POLICIES,
            f"one of {tuple(POLICIES)}; float16 would need a loss scale",
        ),
        (
            "worker_hosts",
            not hosts or runtime.distribution_strategy == "multi_worker_mirrored",
            "empty without multi_worker_mirrored",
        ),
        (
            "task_index",
            not hosts or 0 <= runtime.task_index < len(hosts),
            f"0 to {len(hosts) - 1}, the place of this worker in runtime.worker_hosts",
        ),
    )
    for name, right, allowed in checks:
        if not right:
            raise UserError(f"runtime.{name} {getattr(runtime, name)!r} is not allowed: {allowed}")


def gpus(runtime: RuntimeConfig, batch: int) -> list[tf.config.PhysicalDevice]:
    """The GPUs of this machine that a training uses.

    Args:
      runtime: of the configuration.
      batch: its global batch size.

    Raises:
      UserError: naming a value that is not allowed.
    """
    found = tf.config.list_physical_devices("GPU")
    _check(runtime, len(found))
    if runtime.num_gpus is not None:
        return found[: runtime.num_gpus]
    if runtime.distribution_strategy == "one_device":
        return found[:1]
    machines = max(1, len(_hosts(runtime)))
    counts = range(len(found), 1, -1)
    return found[: next((n for n in counts if batch % (n * machines) == 0), 1)]


def described(used: Sequence[tf.config.PhysicalDevice]) -> str:
    """What a training runs on, of what there is, in one line."""
    found = tf.config.list_physical_devices("GPU")
    if not found:
        hint = ""
        if os.path.exists(NVIDIA_DRIVER):
            hint = ", though there is an NVIDIA driver; pip install -e '.[cuda]' adds its libraries"
        return f"training on the CPU: TensorFlow sees no GPU{hint}"
    if not used:
        return f"training on the CPU, as runtime.num_gpus says; GPUs there are: {len(found)}"
    names = [
        f"GPU:{number} {tf.config.experimental.get_device_details(gpu).get('device_name', '')}"
        for number, gpu in enumerate(used)
    ]
    return f"training on {len(used)} of {len(found)} GPUs: " + ", ".join(map(str.strip, names))


def strategy(
    runtime: RuntimeConfig, used: Sequence[tf.config.PhysicalDevice]
) -> tf.distribute.Strategy:
    """The strategy of a configuration; joins the other workers, for whom it waits.

    Args:
      runtime: of the configuration.
      used: what `gpus` returned.

    Raises:
      UserError: naming a value that is not allowed.
    """
    if runtime.distribution_strategy == "multi_worker_mirrored":
        # It takes all that are visible.
        tf.config.set_visible_devices(used, "GPU")
    distribute_utils.configure_cluster(runtime.worker_hosts, runtime.task_index)
    try:
        return distribute_utils.get_distribution_strategy(
            distribution_strategy=runtime.distribution_strategy,
            num_gpus=len(used),
            all_reduce_alg=runtime.all_reduce_alg,
        )
    except ValueError as error:
        raise UserError(f"runtime: {error}") from error


@contextlib.contextmanager
def precision(runtime: RuntimeConfig, task: config_definitions.TaskConfig):
    """Networks that are built in the block compute in `runtime.mixed_precision_dtype`. Weights,
    batch statistics, losses and the optimizer stay float32.

    Raises:
      UserError: if simulated quantization, or a policy that learns on a network as it is, would be
        rounded by it.
    """
    wanted, usual = (
        POLICIES[runtime.mixed_precision_dtype],
        tf_keras.mixed_precision.global_policy(),
    )
    quantization = getattr(task.model, "quantization", "none")
    if wanted != "float32" and (quantization != "none" or hasattr(task, "base_model_dir")):
        raise UserError(
            f"runtime.mixed_precision_dtype {runtime.mixed_precision_dtype!r} is for the float "
            f"phases; {task.name!r} with task.model.quantization {quantization!r} needs 'float32'"
        )
    tf_keras.mixed_precision.set_global_policy(wanted)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(usual)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this worker writes checkpoints and summaries."""
    return strategy.extended.should_checkpoint


@tf.function(autograph=False)
def _mean(value):
    # What comes from outside has no device yet.
    value = tf.identity(value)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def mean_of_workers(strategy: tf.distribute.Strategy, value: float) -> float:
    """The mean of a number over all replicas; every worker has to ask."""
    if strategy.num_replicas_in_sync == 1:
        return value
    found = strategy.run(_mean, args=(tf.constant(value, tf.float32),))
    return float(strategy.experimental_local_results(found)[0])


class BestCheckpoints(train_utils.BestCheckpointExporter):
    """Keeps the checkpoint with the best accuracy.

    Saving takes all workers, so they have to agree: each starts from what the chief wrote of the
    best one, and they compare the mean of what they measured. `info.json` is written last, and
    whole: a process that is killed before that validates again.
    """

    def __init__(self, trainer: config_definitions.TrainerConfig, model_dir: str, strategy):
        self._strategy, self._metric = strategy, trainer.best_checkpoint_eval_metric
        folder = os.path.join(model_dir, trainer.best_checkpoint_export_subdir)
        super().__init__(folder, self._metric, trainer.best_checkpoint_metric_comp)
        if not is_chief(strategy):
            self._export_dir = tempfile.mkdtemp()

    def maybe_export_checkpoint(self, checkpoint, eval_logs, global_step, write_logs=True):
        value = mean_of_workers(self._strategy, float(eval_logs[self._metric]))
        logs = {**eval_logs, self._metric: value}
        if not super().maybe_export_checkpoint(checkpoint, logs, global_step, write_logs=False):
            return False
        self.export_best_eval_metric(logs, global_step)
        return True

    def export_best_eval_metric(self, eval_logs, global_step):
        scalars = {name: float(value) for name, value in eval_logs.items()}
        files.write_json(
            self.best_ckpt_logs_path, {**scalars, "best_ckpt_global_step": float(global_step)}
        )


class Runner(train_lib.OrbitExperimentRunner):
    """The library's runner, whose workers all restore the checkpoint of the chief."""

    def _maybe_build_checkpoint_manager(self):
        manager = super()._maybe_build_checkpoint_manager()
        if is_chief(self.strategy):
            return manager
        # The library gives the others an empty folder, to save in and to restore from.
        restore = manager.restore_or_initialize

        def restore_or_initialize():
            manager._latest_checkpoint = tf.train.latest_checkpoint(self.model_dir)
            return restore()

        manager.restore_or_initialize = restore_or_initialize
        return manager
