"""The stages of Patchwork in miniature, by the real programs, and the bundle they end in."""

import functools
import os
from unittest import mock

import tiny_run
import yaml

KINDS = ("detector", "segmenter")
STEPS, ATTENTION_STEPS, JOINT_STEPS = 16, 4, 4
JOINT_RATE = 0.005
ACTIONS = 4  # M = 2, N = 1
COMMON = {
    "image_size": list(tiny_run.FRAME),
    "backbone": "least",
    "depth_multiplier": 0.75,
    "min_depth": 8,
    "norm_momentum": 0.8,
}
MODEL = {
    "detector": {
        **COMMON,
        "num_classes": len(tiny_run.LABELS),
        "last_channels": 32,
        "extra_depths": [16],
        "anchors": {"min_scale": 0.35, "max_scale": 0.6},
    },
    "segmenter": {**COMMON, "backbone": "least_plain", "head_depth": 16},
}
LOSSES = {"detector": tiny_run.FLOAT["task"]["losses"], "segmenter": {"positive_weight": 2.0}}
WINDOWS = {
    "windows": {"slices": 2, "adjacent": 1},
    "attention": {"hidden": 8, "decay": 0.5},
}


def clips_of(unroll):
    """Both data sections of a stage that trains on `unroll` frames."""
    task = tiny_run.FLOAT["task"]
    return {
        "train_data": {**task["train_data"], "unroll_frames": unroll},
        "validation_data": task["validation_data"],
    }


def trainer(steps, loop=2):
    return {
        "train_steps": steps,
        "steps_per_loop": loop,
        "summary_interval": loop,
        "checkpoint_interval": loop,
        "validation_interval": steps,
        "max_to_keep": 20,
    }


def cosine(steps, rate):
    return {
        "optimizer_config": {
            "learning_rate": {
                "type": "cosine",
                "cosine": {"initial_learning_rate": rate, "decay_steps": steps},
            },
            "warmup": {"type": "linear", "linear": {"warmup_steps": 2}},
        }
    }


def stages(kind):
    """The configuration of each stage."""
    network = {"model": MODEL[kind], "losses": LOSSES[kind], "seed": 3}
    return {
        "frames": {
            "task": {**network, **clips_of(1)},
            "trainer": {**trainer(STEPS), **cosine(STEPS, 0.02)},
        },
        "attention": {
            "task": {
                **WINDOWS,
                **clips_of(5),
                "seed": 5,
                "ddqn": {
                    "replay_capacity": 50,
                    "batch_size": 8,
                    "games_per_step": 6,
                    "updates_per_step": 2,
                    "target_period": 2,
                    "epsilon_steps": ATTENTION_STEPS,
                },
            },
            "trainer": trainer(ATTENTION_STEPS, loop=1),
        },
        "windows": {
            "task": {
                **network,
                "model": {**MODEL[kind], "quantization": "int8"},
                **WINDOWS,
                **clips_of(3),
            },
            "trainer": {**trainer(JOINT_STEPS, loop=1), **cosine(JOINT_STEPS, JOINT_RATE)},
        },
    }


EXPERIMENTS = {"frames": "", "attention": "_attention", "windows": "_patchwork"}


def command(kind, stage, model_dir, **values):
    """Flags of `memvid_tf.train` for a stage, with overrides."""
    path = os.path.join(tiny_run._folder(), f"{kind}_{stage}.yaml")
    with open(path, "w") as file:
        yaml.safe_dump(stages(kind)[stage], file)
    if stage == "attention":
        values = {"task__base_model_dir": run(kind, "frames"), **values}
    if (kind, stage) == ("detector", "windows"):
        # Tracing an unrolled network takes longer than its few steps; the segmenter is traced.
        eager = ("train_tf_function", "train_tf_while_loop")
        values = {**{f"trainer__{name}": "false" for name in eager}, **values}
    if stage == "windows":
        values = {"task__init_checkpoint": run(kind, "attention"), **values}
    return dict(
        experiment=kind + EXPERIMENTS[stage],
        config_file=path,
        params_override=tiny_run.overrides(**values),
        model_dir=str(model_dir),
    )


@functools.cache
def run(kind, stage):
    """The folder of a stage, trained and validated, and those before it."""
    folder = os.path.join(tiny_run._folder(), f"{kind}_{stage}")
    assert tiny_run.program("memvid_tf.train", **command(kind, stage, folder)) == 0
    return folder


@functools.cache
def bundle(kind):
    """The folder of the exported bundle, verified. Treat it as read-only."""
    folder = os.path.join(tiny_run._folder(), f"{kind}_bundle")
    options = dict(model_dir=run(kind, "windows"), output_dir=folder)
    frames = mock.patch("export.patchwork_verify.DRIFT_FRAMES", (1, 5))
    with frames:
        assert tiny_run.program("export", **options) == 0
    return folder
