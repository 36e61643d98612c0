"""A training step of every experiment, which `make test` runs with both sets of TensorFlow's CPU
kernels; the ones without oneDNN know fewer operations. Exports and evaluations that it runs twice
are marked where they are."""

import flagless
import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory, train_utils

from memvid_tf.models.mobilenet_v2 import BACKBONES, Stage

gpu_ops = flagless.program("benchmarks.gpu_ops")
pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        stages = (Stage(2, 16, 1, 2), Stage(2, 16, 1, 1), Stage(2, 24, 1, 1))
        patch.setitem(BACKBONES, gpu_ops.BACKBONE, stages)
        yield gpu_ops.write_data(str(tmp_path_factory.mktemp("portable")))


# In float and quantization-aware; other cells and data types are made of the same operations.
TRAININGS = [row for row in gpu_ops.trainings() if row[2] in ({}, gpu_ops.FLOAT, gpu_ops.INT8)]


@pytest.mark.parametrize("name, stem, changes", TRAININGS, ids=[name for name, *_ in TRAININGS])
def test_a_training_step_changes_weights_by_a_finite_loss(name, stem, changes, data, tmp_path):
    params = gpu_ops.configured(stem, changes, data, str(tmp_path))
    task = task_factory.get_task(params.task)
    model = task.build_model()
    task.checkpoint_items(model)
    optimizer = train_utils.create_optimizer(task, params)
    batch = next(iter(task.build_inputs(params.task.train_data)))
    before = [variable.numpy() for variable in model.trainable_variables]
    optimizer.iterations.assign(10)  # the learning rate of a warm-up begins with zero

    def step(batch):
        return task.train_step(batch, model, optimizer)

    # What Grappler makes of a graph has kernels of its own.
    if params.trainer.train_tf_function:
        optimizer._create_all_weights(model.trainable_variables)
        step = tf.function(step)
    assert np.isfinite(float(step(batch)[task.loss]))
    after = [variable.numpy() for variable in model.trainable_variables]
    assert all(np.isfinite(value).all() for value in after)
    assert any((old != new).any() for old, new in zip(before, after))
