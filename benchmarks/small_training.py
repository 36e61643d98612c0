"""Small trainings in processes of their own, of which faults and devices are measured."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

# Laid over configs/interleaved_tiny.yaml: a few seconds of training.
OVERRIDES = {
    "task.model.depth_multiplier_f0": 0.25,
    "task.model.state_channels": 16,
    "task.model.head_depth": 24,
    "task.train_data.global_batch_size": 4,
    "task.train_data.unroll_frames": 3,
    "trainer.train_steps": 6,
    "trainer.steps_per_loop": 1,
    "trainer.summary_interval": 1,
    "trainer.checkpoint_interval": 2,
    "trainer.max_to_keep": 3,
    "trainer.optimizer_config.learning_rate.cosine.decay_steps": 6,
    "trainer.optimizer_config.warmup.linear.warmup_steps": 2,
}
CONFIG_FILE = str(pathlib.Path(__file__).resolve().parents[1] / "configs/interleaved_tiny.yaml")
TRAIN_CLIPS = 12


def write_data(folder: str) -> str:
    """Writes the synthetic set that is trained on; returns its folder."""
    from memvid_tf.data import sharding, synthetic

    config = synthetic.SyntheticConfig(
        train_clips=TRAIN_CLIPS, test_clips=2, train_clip_frames=8, test_clip_frames=4
    )
    return str(sharding.write_dataset(folder, synthetic.plan(config), workers=0)[0].folder)


@dataclasses.dataclass(frozen=True)
class SmallTraining:
    """How to start a training.

    Attributes:
      data: folder of its data set.
      command: what runs a program of ours, before the program's name.
      config_file: its configuration.
      overrides: what is laid over that.
      mode: of `memvid_tf.train`.
    """

    data: str
    command: Sequence[str] = (sys.executable, "-m", "benchmarks.injection")
    config_file: str = CONFIG_FILE
    overrides: dict = dataclasses.field(default_factory=lambda: dict(OVERRIDES))
    mode: str = "train"

    def with_data(self, data: str) -> "SmallTraining":
        """The same training on another data set."""
        return dataclasses.replace(self, data=data)

    def start(self, model_dir: str, fault: str = "", overrides: dict | None = None):
        """Starts it, or goes on with it, in a process of its own."""
        inputs = {f"task.{part}_data.input_path": self.data for part in ("train", "validation")}
        pairs = {**inputs, **self.overrides, **(overrides or {})}
        command = list(self.command)
        if fault:
            command.append(f"--fault={fault}")
        elif command[-1] == "benchmarks.injection":
            command.pop()
        return subprocess.Popen(
            [
                *command,
                "memvid_tf.train",
                f"--mode={self.mode}",
                f"--config_file={self.config_file}",
                "--params_override=" + ",".join(f"{key}={value}" for key, value in pairs.items()),
                f"--model_dir={model_dir}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )

    def run(self, model_dir: str, fault: str = "", overrides: dict | None = None):
        """As `start`; returns the exit code and what it said last."""
        process = self.start(model_dir, fault, overrides)
        said = process.communicate()[1]
        return process.returncode, said


def step(model_dir: str) -> int:
    """Step of the newest checkpoint; 0 if there is none. Raises UserError if it cannot be read."""
    from memvid_tf.tasks import checkpoints

    path = checkpoints.latest(model_dir)
    return checkpoints.step_of(path) if path else 0


def variables(model_dir: str) -> dict:
    """Everything that the newest checkpoint holds, without the number of times it was written.

    Raises:
      UserError: if there is none. Raises what TensorFlow raises if it is damaged.
    """
    import tensorflow as tf

    from memvid_tf.tasks import checkpoints

    reader = tf.train.load_checkpoint(checkpoints.find(model_dir))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and not name.startswith("save_counter")
    }


def losses(model_dir: str) -> dict[int, float]:
    """The training loss at each step, as it was last written."""
    import tensorflow as tf

    found = {}
    for path in sorted(pathlib.Path(model_dir, "train").iterdir(), key=lambda p: p.stat().st_mtime):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "training_loss":
                    found[int(event.step)] = float(tf.make_ndarray(value.tensor))
    return found
