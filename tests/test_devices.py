"""Several workers: two processes on 127.0.0.1 learn what one does, also if one is killed."""

import dataclasses
import os
import sys

import flagless
import pytest
import tiny_run

import memvid_tf  # noqa: F401  (before TensorFlow)
from benchmarks import small_training
from benchmarks.small_training import SmallTraining
from memvid_tf.errors import UserError
from memvid_tf.tasks import devices as of_tasks

devices = flagless.program("benchmarks.devices")
STEPS, KILLED_AT = 8, 3
OVERRIDES = {
    "task.train_data.global_batch_size": 4,
    "trainer.train_steps": STEPS,
    "trainer.steps_per_loop": 1,
    "trainer.summary_interval": 1,
    "trainer.checkpoint_interval": 2,
    "trainer.validation_interval": STEPS,
}


@pytest.mark.slow
def test_two_workers_learn_what_one_does_though_one_of_them_is_killed(tmp_path):
    training = SmallTraining(
        data=tiny_run.data(),
        command=(sys.executable, tiny_run.__file__),
        config_file=tiny_run.config_files()[0],
        overrides=OVERRIDES,
        mode="train_and_eval",
    )
    folders = {name: str(tmp_path / name) for name in ("one", "two")}
    code, said = training.run(folders["one"])
    assert code == 0, said
    one = small_training.losses(folders["one"])
    assert sorted(one) == list(range(1, STEPS + 1))
    two, ending = devices.train_with_a_kill(training, folders["two"], {}, KILLED_AT)
    assert KILLED_AT <= ending["went_on_from"] < STEPS
    # Sums of float32 in another order give 1e-7; a batch that was not divided, or statistics of a
    # part of it, more than a tenth.
    assert devices.difference(one, two) < 1e-4, (one, two)
    # The one that writes knows the accuracy of all clips, and keeps the best checkpoint.
    found, wanted = (tiny_run.scalars(f"{folder}/validation", "mAP") for folder in folders.values())
    assert list(found) == list(wanted) == [STEPS]
    assert os.path.exists(os.path.join(folders["two"], "best", "info.json"))


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(distribution_strategy="tpu"), "distribution_strategy 'tpu' is not allowed: one of"),
        (dict(mixed_precision_dtype="float16"), "mixed_precision_dtype 'float16'"),
        (dict(num_gpus=-1), "num_gpus -1"),
        (dict(distribution_strategy="one_device", num_gpus=2), "num_gpus 2 is not allowed: 0 or 1"),
        (dict(distribution_strategy="mirrored", worker_hosts="a:1,b:2"), "worker_hosts"),
        (
            dict(distribution_strategy="multi_worker_mirrored", worker_hosts="a:1,b:2"),
            "task_index -1 is not allowed: 0 to 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    runtime = dataclasses.replace(tiny_run.params().runtime, **values)
    with pytest.raises(UserError, match=message):
        of_tasks.strategy(runtime)
