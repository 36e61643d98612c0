"""Which keys of a configuration mean something, and which values they may have.

`official.core` brings fields for pipelines and machines that this code does not use, and takes any
number. What would be ignored, or fail after minutes, is refused when it is read.
"""

import math
import os
import reprlib

from official.core import config_definitions as cfg
from official.modeling import hyperparams

from memvid_tf.errors import UserError
from memvid_tf.tasks.devices import POLICIES, STRATEGIES

# Read neither by this code nor by what it uses of the library. `tests/test_config_rules.py` holds
# the list against the sources.
UNREAD: dict[type[hyperparams.Config], tuple[str, ...]] = {
    cfg.DataConfig: (
        "tfds_split", "shuffle_buffer_size", "cache", "cycle_length", "block_length", "ram_budget",
        "deterministic", "sharding", "enable_tf_data_service", "tf_data_service_address",
        "tf_data_service_job_name", "tfds_data_dir", "tfds_as_supervised",
        "tfds_skip_decoding_feature", "enable_shared_tf_data_service_between_parallel_trainers",
        "apply_tf_data_service_before_batching", "trainer_id", "autotune_algorithm",
    ),
    cfg.RuntimeConfig: (
        "gpu_thread_mode", "dataset_num_private_threads", "per_gpu_thread_count", "tpu",
        "num_packs", "loss_scale", "run_eagerly", "batchnorm_spatial_persistent",
        "tpu_enable_xla_dynamic_padder", "num_cores_per_replica", "default_shard_dim",
        "use_tpu_mp_strategy",
    ),
    cfg.TrainerConfig: (
        "allow_tpu_summary", "continuous_eval_timeout", "preemption_on_demand_checkpoint",
    ),
    cfg.TaskConfig: ("allow_image_summary",),
}  # fmt: skip

# What the library's code names, and still does nothing with here: there is no TPU, float16 is
# refused, nothing trains for ever, and the trainer is told not to save by itself.
NAMED_ELSEWHERE = {
    "tpu", "loss_scale", "tpu_enable_xla_dynamic_padder", "allow_tpu_summary",
    "continuous_eval_timeout", "preemption_on_demand_checkpoint",
}  # fmt: skip

LARGEST = 2**31 - 1  # TensorFlow's int32, in which steps are counted

# Least and largest of numbers, by field, of every configuration that has it.
RANGES: dict[str, tuple[float, float]] = {
    # trainer
    "train_steps": (0, LARGEST), "steps_per_loop": (1, LARGEST), "summary_interval": (1, LARGEST),
    "checkpoint_interval": (1, LARGEST), "max_to_keep": (1, LARGEST),
    "validation_interval": (0, LARGEST), "validation_steps": (-1, LARGEST),
    "recovery_begin_steps": (0, LARGEST),
    # optimizer and its schedules
    "decay_steps": (1, LARGEST), "warmup_steps": (0, LARGEST), "initial_learning_rate": (0, 1e6),
    "learning_rate": (0, 1e6), "warmup_learning_rate": (0, 1e6), "end_learning_rate": (0, 1e6),
    "alpha": (0, 1), "average_decay": (0, 1), "beta_1": (0, 1), "beta_2": (0, 1),
    "epsilon": (0, 1e6), "weight_decay_rate": (0, 1e6), "weight_decay": (0, 1e6),
    "global_clipnorm": (0, 1e12), "clipnorm": (0, 1e12), "clipvalue": (0, 1e12),
    "decay_rate": (0, 1e6), "momentum": (0, 1),
    # data
    "global_batch_size": (1, 1 << 20), "unroll_frames": (0, 1 << 20), "max_objects": (1, 1 << 16),
    "max_stride": (1, 1 << 16), "crop_min_scale": (0, 1), "max_shift": (0, 1),
    "max_expand": (1, 100), "still_share": (0, 1), "still_min_scale": (0, 1),
    "max_unreadable": (0, 1), "prefetch_buffer_size": (0, 1 << 20), "image_size": (1, 1 << 14),
    # networks
    "num_classes": (1, 1 << 16), "shrink": (1, 1 << 10), "min_depth": (1, 1 << 16),
    "depth_multiplier_f0": (1e-3, 100), "depth_multiplier_f1": (1e-3, 100),
    "depth_multiplier": (1e-3, 100), "state_channels": (1, 1 << 16), "groups": (1, 1 << 16),
    "maps": (1, 64), "head_depth": (1, 1 << 16), "last_channels": (1, 1 << 16),
    "extra_depths": (1, 1 << 16), "norm_momentum": (0, 1), "min_scale": (1e-6, 1e3),
    "max_scale": (1e-6, 1e3), "aspect_ratios": (1e-6, 1e6), "slices": (1, 1 << 10),
    "adjacent": (1, 1 << 10),
    # losses and learners
    "match_threshold": (0, 1), "negatives_per_positive": (0, 1e6), "min_negatives": (0, 1 << 20),
    "focal_gamma": (0, 1e3), "positive_weight": (0, 1e6), "box_weight": (0, 1e6),
    "f0_probability": (0, 1), "flow_weight": (0, 1e6), "validation_tau": (0, LARGEST),
    "freeze_norm_step": (-1, LARGEST), "windows": (1, LARGEST), "discount": (0, 1),
    "exploration": (0, 1), "epsilon_begin": (0, 1), "epsilon_end": (0, 1),
    "epsilon_steps": (0, LARGEST), "least_f0": (0, 0.5), "replay_capacity": (1, 1 << 26),
    "batch_size": (1, 1 << 20), "games_per_step": (1, 1 << 16), "updates_per_step": (1, 1 << 16),
    "target_period": (1, LARGEST), "huber_delta": (1e-12, 1e6), "kernel_decay": (0, 1e6),
    "target_momentum": (0, 1), "rate": (0, 1), "weight": (0, 1e6), "history": (1, 1 << 10),
}  # fmt: skip

CHOICES: dict[str, tuple] = {
    "distribution_strategy": STRATEGIES,
    "mixed_precision_dtype": tuple(POLICIES),
    "best_checkpoint_metric_comp": ("higher", "lower"),
}
FOLDERS = ("best_checkpoint_export_subdir", "validation_summary_subdir")


class _Short(reprlib.Repr):
    """`repr` of a bounded length, whatever nests or repeats in a value."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict = 3, 8, 8, 8
        self.maxstring = self.maxother = 100

    def repr_int(self, x, level):
        # Python prints no number of more than 4300 digits.
        return repr(x) if abs(x).bit_length() < 256 else f"a number of {x.bit_length()} bits"


def short(value) -> str:
    """`repr` for a message: at most a few hundred characters."""
    text = _Short().repr(value)
    return text if len(text) <= 300 else f"{text[:297]}..."


def check_value(config: hyperparams.Config, key: str, value, name: str) -> None:
    """Refuses a value that nothing reads or that is out of range. Defaults are taken as they are.

    Args:
      config: the section, with its default.
      key: of the section; it has it.
      value: of the right type.
      name: of the key, for the message.

    Raises:
      UserError: naming the key, the value and what is allowed.
    """
    if value == getattr(config, key):
        return
    if any(key in keys for kind, keys in UNREAD.items() if isinstance(config, kind)):
        raise UserError(
            f"configuration: {name} = {short(value)}: nothing here reads it; leave it out"
        )
    numbers = [n for n in _leaves(value) if isinstance(n, (int, float)) and not isinstance(n, bool)]
    least, largest = RANGES.get(key, (-math.inf, math.inf))
    for number in numbers:
        if not (abs(number) < math.inf and least <= number <= largest):
            allowed = "a finite number"
            if key in RANGES:
                allowed = f"from {least:g} to {largest:g}"
            raise UserError(f"configuration: {name} = {short(value)} is not allowed: {allowed}")
        if isinstance(number, int) and abs(number) > LARGEST:
            raise UserError(
                f"configuration: {name} = {short(value)} is not allowed: at most {LARGEST}"
            )
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(
            f"configuration: {name} = {short(value)} is not one of: "
            f"{', '.join(map(str, CHOICES[key]))}"
        )
    if key in FOLDERS and value and (value in (".", "..") or os.path.basename(value) != value):
        raise UserError(
            f"configuration: {name} = {short(value)} is not allowed: a plain name of a folder, "
            "which is made in the --model_dir"
        )


def _leaves(value):
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
