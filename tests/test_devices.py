"""Which devices a training uses; two processes on 127.0.0.1 learn what one does, also if one is
killed."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from unittest import mock

import flagless
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tiny_run

from benchmarks import small_training
from benchmarks.small_training import SmallTraining
from memvid_tf.errors import UserError
from memvid_tf.models import deeplab, interleaved, patchwork, single_frame
from memvid_tf.models.zoo import headers
from memvid_tf.tasks import clip_task, configuration, training
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
        (dict(mixed_precision_dtype="float16"), "'float16' is not allowed: one of .*'bfloat16'"),
        (dict(num_gpus=-1), "num_gpus -1"),
        (dict(distribution_strategy="one_device", num_gpus=2), "num_gpus 2 is not allowed: 0 or 1"),
        (dict(num_gpus=1), "num_gpus 1 is not allowed: 0 to 0, TensorFlow sees no GPU"),
        (dict(enable_xla=True), "enable_xla True is not allowed: false; XLA compiles"),
        (dict(distribution_strategy="mirrored", worker_hosts="a:1,b:2"), "worker_hosts"),
        (
            dict(distribution_strategy="multi_worker_mirrored", worker_hosts="a:1,b:2"),
            "task_index -1 is not allowed: 0 to 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    runtime = dataclasses.replace(tiny_run.params().runtime, **values)
    with machine(0)[0], pytest.raises(UserError, match=message):
        of_tasks.gpus(runtime, batch=4)


def machine(count):
    """A machine with so many GPUs, as far as TensorFlow is asked."""
    names = [f"/physical_device:GPU:{number}" for number in range(count)]
    gpus = [tf.config.PhysicalDevice(name, "GPU") for name in names]
    seen = mock.patch.object(tf.config, "list_physical_devices", return_value=gpus)
    details = {"device_name": "NVIDIA A100"}
    known = mock.patch.object(
        tf.config.experimental, "get_device_details", return_value=details
    )
    return seen, known


def workers(hosts):
    """Of the first of several machines."""
    several = "multi_worker_mirrored"
    return dict(distribution_strategy=several, worker_hosts=hosts, task_index=0)


@pytest.mark.parametrize(
    "there, values, used, said",
    [
        (0, {}, 0, "training on the CPU: TensorFlow sees no GPU"),
        (1, {}, 1, "training on 1 of 1 GPUs: GPU:0 NVIDIA A100"),
        (4, {}, 1, "training on 1 of 4 GPUs: GPU:0 NVIDIA A100"),
        (4, dict(num_gpus=0), 0, "training on the CPU, as runtime.num_gpus says; .* are: 4"),
        (3, dict(distribution_strategy="mirrored"), 3, "3 of 3 .* NVIDIA A100, .*GPU:2 NVIDIA"),
        # A batch of twelve divides among six, not among seven or eight.
        (8, dict(distribution_strategy="mirrored"), 6, "6 of 8 GPUs"),
        (8, dict(distribution_strategy="mirrored", num_gpus=2), 2, "2 of 8 GPUs"),
        (8, workers("a:1,b:2"), 6, "6 of 8 GPUs"),
        (5, workers("a:1,b:2,c:3"), 4, "4 of 5 GPUs"),
    ],
)
def test_gpus_that_are_there_are_used_and_named(there, values, used, said, monkeypatch):
    monkeypatch.setattr(of_tasks, "NVIDIA_DRIVER", "/nowhere")
    seen, known = machine(there)
    with seen, known:
        found = of_tasks.gpus(dataclasses.replace(of_tasks.RuntimeConfig(), **values), batch=12)
        assert re.search(said, of_tasks.described(found)), of_tasks.described(found)
    assert [gpu.name for gpu in found] == [f"/physical_device:GPU:{n}" for n in range(used)]


def test_a_gpu_that_tensorflow_does_not_see_is_spoken_of(tmp_path, monkeypatch):
    monkeypatch.setattr(of_tasks, "NVIDIA_DRIVER", str(tmp_path))
    assert ".[cuda]" in of_tasks.described([])


def test_more_gpus_than_there_are_cannot_be_used():
    runtime = of_tasks.RuntimeConfig(distribution_strategy="mirrored", num_gpus=8)
    seen, known = machine(2)
    with seen, known, pytest.raises(UserError, match="num_gpus 8 .* 0 to 2, the 2 that TensorFlow"):
        of_tasks.gpus(runtime, batch=8)


REPOSITORY = pathlib.Path(tiny_run.ROOT)
PAGES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("configs/*"))]
SEVERAL = [
    match[0]
    for page in PAGES
    for match in re.finditer(r"runtime\.distribution_strategy=[\w.,=:']+", page.read_text("utf-8"))
]


def test_pages_name_trainings_on_several_gpus():
    assert len(SEVERAL) >= 4
    assert {re.search(r"=(\w+)", command)[1] for command in SEVERAL} == set(of_tasks.STRATEGIES[1:])


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_every_command_for_several_gpus_divides_every_batch(path):
    command = headers.training_command(path)
    files = [str(REPOSITORY / name) for name in command.all("config_file")]
    experiment = command.one("experiment", "interleaved")
    for several in SEVERAL:
        params = configuration.load(experiment, files, several)
        if not training._replicates(params.task):
            continue
        batch = params.task.train_data.global_batch_size
        machines = len((params.runtime.worker_hosts or "one").split(","))
        for there in range(1, 9):
            seen, known = machine(there)
            with seen, known:
                used = len(of_tasks.gpus(params.runtime, batch))
            assert batch % (used * machines) == 0, (several, there)
            # Not one, where there are more: two divide all of them.
            assert used >= min(there, 2) or batch % (2 * machines), (several, there)


@pytest.mark.parametrize("replicas, batch", [(6, 4), (2, 1), (2, 3), (4, 12)])
def test_validation_divides_among_any_number_of_replicas(replicas, batch):
    config = tiny_run.params(task__validation_data__global_batch_size=batch).task.validation_data
    context = tf.distribute.InputContext(2, 1, replicas)  # of the second of two workers
    batches = list(clip_task.clip_inputs(config, context, 0).as_numpy_iterator())
    each = -(-batch // (replicas // 2))
    assert len(batches) % (replicas // 2) == 0
    assert {len(b["num_frames"]) for b in batches} == {each}
    shown = [int(i) for b in batches for i, n in zip(b["clip_index"], b["num_frames"]) if n]
    assert shown == list(range(tiny_run.TEST_CLIPS))


MIRRORED = """
import tensorflow as tf
from memvid_tf.tasks import devices

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 4 * [tf.config.LogicalDeviceConfiguration()])
gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{n}", "GPU") for n in range(4)]
runtime = devices.RuntimeConfig(distribution_strategy="mirrored")
made = tf.distribute.MirroredStrategy
tf.distribute.MirroredStrategy = lambda devices, **rest: made(
    [name.replace("GPU", "CPU") for name in devices], **rest
)
strategy = devices.strategy(runtime, gpus)
print(strategy.num_replicas_in_sync, devices.mean_of_workers(strategy, 3.0))
"""


def test_the_strategy_of_several_gpus_builds():
    """On as many logical CPUs."""
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == ["4", "3.0"], done.stderr


def gradients(network, clips):
    """A network's predictions of clips and the gradients of their squares, by name."""
    with tf.GradientTape() as tape:
        predictions = network(clips, training=True)
        loss = sum(tf.reduce_sum(x**2) for x in predictions.values())
    names = [v.name.partition("/")[2] for v in network.trainable_variables]
    return predictions, dict(zip(names, tape.gradient(loss, network.trainable_variables)))


@pytest.mark.parametrize("kind", ("interleaved", "detector", "segmenter"))
def test_mixed_precision_rounds_activations_and_nothing_that_is_kept(kind):
    tiny_run.add_backbone()
    tf_keras.utils.set_random_seed(5)
    params = tiny_run.params(runtime__mixed_precision_dtype="bfloat16")
    clips = tf.constant(tiny_run.frames(3, batch=2))
    if kind == "interleaved":
        build, config = interleaved.build, params.task.model
    else:
        common = dict(backbone="least_plain", min_depth=8, image_size=tiny_run.FRAME)
        config = {
            "detector": single_frame.SingleFrameConfig(
                num_classes=2, extra_depths=(24,), last_channels=32, **common
            ),
            "segmenter": deeplab.SegmenterConfig(head_depth=16, **common),
        }[kind]
        build, clips = patchwork.NETWORKS[type(config)], clips[:, 0]
    usual = build(config)
    with of_tasks.precision(params.runtime, params.task):
        mixed = build(config)
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    for to, source in zip(mixed.variables, usual.variables, strict=True):
        to.assign(source)
        # What is kept, and statistics with it, is float32.
        assert to.dtype == tf.float32 or not to.dtype.is_floating
    (outputs, found), (wanted_outputs, wanted) = (gradients(n, clips) for n in (mixed, usual))
    for name, x in outputs.items():
        assert x.dtype == tf.float32
        # A bfloat16 has 8 bits of mantissa, and a few dozen layers each round once: far more than
        # float32's 1e-6, and far less than another network would differ.
        off = np.abs(x - wanted_outputs[name]).max() / np.abs(wanted_outputs[name]).max()
        assert 1e-5 < off < 0.1, name
    scale = tf.linalg.global_norm(list(wanted.values()))
    off = tf.linalg.global_norm([found[name] - g for name, g in wanted.items()]) / scale
    assert all(g.dtype == tf.float32 for g in found.values())
    # Batch statistics of two small frames amplify it; a gradient that has nothing to do with the
    # other is off by more than 1.
    assert 1e-5 < off < 0.2


def test_simulated_quantization_is_not_rounded_a_second_time():
    both = dict(task__model__quantization="int8", runtime__mixed_precision_dtype="bfloat16")
    params = tiny_run.params(**both)
    with pytest.raises(UserError, match="'bfloat16' is for the float phases; .* 'int8' needs"):
        of_tasks.precision(params.runtime, params.task).__enter__()


def test_a_training_in_mixed_precision_learns(tmp_path):
    dtype = dict(runtime__mixed_precision_dtype="bfloat16")
    folder = str(tmp_path)
    assert tiny_run.program("memvid_tf.train", **tiny_run.float_flags(folder, **dtype)) == 0
    found = small_training.losses(folder)
    usual = small_training.losses(tiny_run.float_run())
    assert min(found) == min(usual) and found[max(found)] < 0.7 * found[min(found)]
    assert found != usual
