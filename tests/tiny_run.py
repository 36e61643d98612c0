"""A whole training in miniature: data, both phases and bundles, made once a process.

Everything is made by the real programs, which `program` runs in this process, since starting
Python and TensorFlow takes far longer than what is tested. The backbone is a smaller one than any
of the zoo, as tracing a network costs by the layer. Frames are wider than high, so that mixing the
two up is noticed.

As a program it runs one of ours with that backbone, and with a fault of `benchmarks.injection`:

  python tests/tiny_run.py [--fault=kill:5] memvid_tf.train --config_file=… --model_dir=…
"""

import atexit
import functools
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import yaml
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
FRAME, LABELS = (16, 32), ("plain_square", "plain_disk", "horizontal_square", "horizontal_disk")
TEST_CLIPS, TEST_FRAMES = 3, 7
STEPS, QAT_STEPS, FREEZE_STEP, VALIDATION_TAU = 30, 10, 5, 2
DRIFT_FRAMES = (1, 5, 30)

FLOAT = {
    "task": {
        "model": {
            "num_classes": len(LABELS),
            "image_size": list(FRAME),
            "backbone": "least",
            "depth_multiplier_f0": 0.75,
            "depth_multiplier_f1": 0.25,
            "min_depth": 8,
            "state_channels": 8,
            "groups": 2,
            "maps": 2,
            "head_depth": 24,
            "anchors": {"min_scale": 0.35, "max_scale": 0.6},
            "norm_momentum": 0.8,
        },
        "train_data": {
            "split": "train",
            "is_training": True,
            "global_batch_size": 3,
            "unroll_frames": 3,
            "image_size": list(FRAME),
            "max_objects": 2,
            "max_stride": 2,
        },
        "validation_data": {
            "split": "test",
            "is_training": False,
            "global_batch_size": 2,  # leaves a batch that is not full
            "unroll_frames": 0,
            "image_size": list(FRAME),
            "max_objects": 2,
        },
        "losses": {"classification": "focal", "positive_weight": 4.0, "match_threshold": 0.4},
        "validation_tau": VALIDATION_TAU,
        "seed": 3,
    },
    "trainer": {
        "train_steps": STEPS,
        "steps_per_loop": 2,
        "summary_interval": 2,
        "checkpoint_interval": 4,
        "validation_interval": 12,
        "max_to_keep": 20,
        "optimizer_config": {
            "learning_rate": {
                "type": "cosine",
                "cosine": {"initial_learning_rate": 0.02, "decay_steps": STEPS},
            },
            "warmup": {"type": "linear", "linear": {"warmup_steps": 3}},
        },
    },
}
QAT = {
    "task": {"model": {"quantization": "int8"}, "freeze_norm_step": FREEZE_STEP},
    "trainer": {
        "train_steps": QAT_STEPS,
        "steps_per_loop": 1,
        "summary_interval": 1,
        "checkpoint_interval": 1,
        "validation_interval": QAT_STEPS,
        "optimizer_config": {
            "learning_rate": {"cosine": {"initial_learning_rate": 0.005, "decay_steps": QAT_STEPS}},
        },
    },
}


def add_backbone() -> None:
    """Adds to the backbones "least", two blocks of which the last is residual, and "least_plain",
    whose last block, as in the zoo, is not: what a segmenter reads is then in the range of ReLU6.
    "single" is one block, where many networks are made."""
    from memvid_tf.models.mobilenet_v2 import BACKBONES, Stage

    BACKBONES["least"] = (Stage(2, 24, 2, 2),)
    BACKBONES["single"] = (Stage(2, 24, 1, 2),)
    BACKBONES["least_plain"] = (Stage(2, 16, 1, 2), Stage(2, 24, 1, 1))


def program(module: str, *arguments: str, **named) -> int:
    """Runs `python -m module --name=value… argument…` in this process; returns its exit code."""
    add_backbone()
    argv = [module, *(f"--{name}={value}" for name, value in named.items()), *arguments]
    known = set(flags.FLAGS)
    # Programs define flags of the same names: each must find them undefined and leave them so.
    with mock.patch.object(sys, "argv", argv):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code or 0
        finally:
            for name in set(flags.FLAGS) - known:
                if not flags.FLAGS.find_module_defining_flag(name).startswith("absl"):
                    delattr(flags.FLAGS, name)
    raise AssertionError(f"{module} did not exit")


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tiny_run_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def data() -> str:
    """The folder of a synthetic set of square frames, which training resizes."""
    return write_data(_folder() / "data", num_classes=len(LABELS))


def write_data(folder, **changes) -> str:
    """Writes a very small synthetic set."""
    from memvid_tf.data import sharding, synthetic

    config = dict(
        image_size=32,
        train_clips=7,
        test_clips=TEST_CLIPS,
        train_clip_frames=8,
        test_clip_frames=TEST_FRAMES,
        min_side=0.3,
        max_side=0.6,
        max_objects=2,
    )
    plan = synthetic.plan(synthetic.SyntheticConfig(**{**config, **changes}))
    return str(sharding.write_dataset(str(folder), plan, workers=0)[0].folder)


@functools.cache
def config_files() -> tuple[str, str]:
    """YAML files of the float phase and of what quantization-aware training lays over it."""
    paths = _folder() / "float.yaml", _folder() / "qat.yaml"
    for path, content in zip(paths, (FLOAT, QAT)):
        path.write_text(yaml.safe_dump(content))
    return str(paths[0]), str(paths[1])


def overrides(**values) -> str:
    """`--params_override` that names the data set; `.` is written `__`."""
    inputs = {f"task__{split}_data__input_path": data() for split in ("train", "validation")}
    return ",".join(
        f"{key.replace('__', '.')}={value}" for key, value in {**inputs, **values}.items()
    )


def float_flags(model_dir, **values) -> dict:
    """Flags of `memvid_tf.train` for the float phase, with overrides."""
    return {
        "config_file": config_files()[0],
        "params_override": overrides(**values),
        "model_dir": model_dir,
    }


def qat_arguments(model_dir, **values) -> list[str]:
    """Arguments of `memvid_tf.train` for the quantization-aware phase, with overrides."""
    values = {"task__init_checkpoint": float_run(), **values}
    return [
        *(f"--config_file={path}" for path in config_files()),
        f"--params_override={overrides(**values)}",
        f"--model_dir={model_dir}",
    ]


def params(*, quantized: bool = False, **values):
    """The configuration of a phase, as `memvid_tf.train` loads it."""
    from memvid_tf.tasks import configuration
    from memvid_tf.tasks import detection as _registers  # noqa: F401

    add_backbone()
    paths = config_files() if quantized else config_files()[:1]
    if quantized:
        values = {"task__init_checkpoint": float_run(), **values}
    return configuration.load("interleaved", paths, overrides(**values))


def build(params):
    """The network of a configuration, with the weights it starts from."""
    from official.core import task_factory

    return task_factory.get_task(params.task).build_model()


@functools.cache
def float_run() -> str:
    """The folder of the float phase, trained and validated without interruption."""
    folder = str(_folder() / "float")
    assert program("memvid_tf.train", **float_flags(folder)) == 0
    return folder


@functools.cache
def qat_run() -> str:
    """The folder of the quantization-aware phase that follows it."""
    folder = str(_folder() / "qat")
    assert program("memvid_tf.train", *qat_arguments(folder)) == 0
    return folder


@functools.cache
def rival_run(cell: str) -> str:
    """The folder of some quantization-aware steps from scratch, with another cell for memory."""
    folder, steps = str(_folder() / cell), 4
    model = dict(cell=cell, backbone="single", maps=1)
    intervals = ("train_steps", "steps_per_loop", "summary_interval", "checkpoint_interval")
    changes = overrides(
        **{f"task__model__{key}": value for key, value in model.items()},
        **{f"trainer__{key}": steps for key in intervals},
        task__freeze_norm_step=steps // 2,
    )
    files = [f"--config_file={path}" for path in config_files()]
    options = dict(params_override=changes, model_dir=folder, mode="train")
    assert program("memvid_tf.train", *files, **options) == 0
    return folder


@functools.cache
def bundle(precision: str) -> str:
    """The folder of an exported bundle; the int8 one is verified. Treat it as read-only."""
    model_dir = qat_run() if precision == "int8" else float_run()
    return _exported(model_dir, precision, precision, verify=precision == "int8")


@functools.cache
def rival_bundle(precision: str, cell: str) -> str:
    """As `bundle`, of `rival_run`, and not verified."""
    return _exported(rival_run(cell), precision, f"{cell}_{precision}", verify=False)


def _exported(model_dir, precision, name, verify):
    folder = str(_folder() / name)
    options = dict(model_dir=model_dir, output_dir=folder, precision=precision, verify=verify)
    with mock.patch("export.verify.DRIFT_FRAMES", DRIFT_FRAMES):
        assert program("export", **options, tau=VALIDATION_TAU) == 0
    return folder


def frames(count: int, batch: int = 1, seed: int = 0):
    """Random frames of the network's size, [batch, count, H, W, 3] uint8, blocky as images are."""
    import numpy as np

    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (batch, count, FRAME[0] // 4, FRAME[1] // 4, 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(4, axis=2).repeat(4, axis=3))


def events(folder) -> list[tuple]:
    """(step, tag, value) of every summary in a folder: a scalar, or the strings of an image."""
    import tensorflow as tf

    found = []
    for path in sorted(Path(folder).iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                tensor = tf.make_ndarray(value.tensor)
                found.append((event.step, value.tag, tensor if tensor.ndim else float(tensor)))
    return found


def scalars(folder, tag: str) -> dict[int, float]:
    """The values of one summary by step."""
    return {step: value for step, name, value in events(folder) if name == tag}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    arguments = sys.argv[1:]
    if arguments[0].startswith("--fault="):
        from benchmarks import injection

        injection.arm(arguments.pop(0).partition("=")[2])
    sys.exit(program(*arguments))
