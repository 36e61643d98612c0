"""Faults in training, by the injections of `benchmarks.faults`: what is on disk stays valid."""

import contextlib
import dataclasses
import io
import logging as std_logging
import random
import sys

import flagless
import pytest
import tiny_run
from absl import logging

import memvid_tf  # noqa: F401  (before TensorFlow)
from benchmarks import injection, small_training
from benchmarks.small_training import SmallTraining
from memvid_tf.tasks import checkpoints

faults = flagless.program("benchmarks.faults")
pytestmark = pytest.mark.slow
STEPS = 5
OVERRIDES = {
    "trainer.train_steps": STEPS,
    "trainer.steps_per_loop": 1,
    "trainer.summary_interval": 1,
    "trainer.checkpoint_interval": 2,
    # Several short runs, of whose graphs nothing is needed: eager ones spare the tracing.
    "trainer.train_tf_function": "false",
    "trainer.train_tf_while_loop": "false",
}


@dataclasses.dataclass(frozen=True)
class Tiny(SmallTraining):
    """Starts a process only where it is to be killed, since that takes far longer than training."""

    def run(self, model_dir, fault="", overrides=None):
        if fault:
            return super().run(model_dir, fault, overrides)
        said = io.StringIO()
        pairs = {f"task.{part}_data.input_path": self.data for part in ("train", "validation")}
        pairs |= {**self.overrides, **(overrides or {})}
        # The handler that is there writes to the stream of when it was made.
        handler = std_logging.StreamHandler(said)
        logging.get_absl_logger().addHandler(handler)
        with contextlib.redirect_stderr(said):
            code = tiny_run.program(
                "memvid_tf.train",
                mode="train",
                config_file=self.config_file,
                params_override=",".join(f"{key}={value}" for key, value in pairs.items()),
                model_dir=model_dir,
            )
        logging.get_absl_logger().removeHandler(handler)
        return code, said.getvalue()


@pytest.fixture(name="bench", scope="module")
def fixture_bench(tmp_path_factory):
    training = Tiny(
        data=tiny_run.data(),
        command=(sys.executable, tiny_run.__file__),
        config_file=tiny_run.config_files()[0],
        overrides=OVERRIDES,
    )
    return faults.Bench(training, str(tmp_path_factory.mktemp("faults")), STEPS, random.Random(1))


@pytest.mark.parametrize("point", injection.POINTS)
def test_a_process_that_is_killed_while_it_saves_goes_on(bench, point, monkeypatch):
    if point != "pieces":
        monkeypatch.setattr(bench, "goes_on", lambda folder: small_training.step(folder))
    monkeypatch.setattr(injection, "POINTS", (point,))
    assert faults.killed_saving(bench) == "none"


def test_what_was_left_by_a_kill_is_swept_away_and_nothing_else(tmp_path):
    pieces = ["ckpt-4_temp/part-00000-of-00001.index", "best/best_ckpt-1_temp/part"]
    single = ["ckpt-4.data-00000-of-00001.tempstate123", "checkpoint.tmp0a1b"]
    kept = ["ckpt-2.index", "ckpt-2.data-00000-of-00001", "checkpoint", "my_temp/file", "train.log"]
    for name in pieces + single + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    checkpoints.sweep(str(tmp_path))
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == set(kept)
    checkpoints.sweep(str(tmp_path / "gone"))


def test_sigterm_writes_a_checkpoint(bench):
    assert faults.terminated(bench) == "none"


def test_a_full_disk_ends_with_one_line_and_training_goes_on(bench):
    try:
        assert faults.full_disk(bench) == "none"
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_truncated_shard_is_named_and_training_goes_on_when_it_is_whole(bench):
    assert faults.truncated_shard(bench) == "none"


def test_a_corrupt_picture_stops_training_unless_it_may_be_skipped(bench):
    assert faults.corrupt_picture(bench) == "1 clip of 7, skipped and named"
