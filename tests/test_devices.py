"""Several workers: two processes on 127.0.0.1 learn what one does, also if one is killed."""

import dataclasses
import os
import sys

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
