"""Weights of MobileNetV2 in the layout of tf_keras.applications, from files of unknown origin."""

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.errors import UserError
from memvid_tf.layers.conv import BatchNorm
from memvid_tf.models.mobilenet_v2 import MOBILENET_V2, MobileNetV2
from memvid_tf.tasks import backbone_weights

ALPHA, SIZE = 0.35, (64, 96)


@pytest.fixture(name="keras", scope="module")
def fixture_keras():
    """The network of Keras with weights and statistics of which none is where it started."""
    model = tf_keras.applications.MobileNetV2(
        input_shape=(*SIZE, 3), alpha=ALPHA, include_top=False, weights=None
    )
    random = np.random.default_rng(3)
    for variable in model.variables:
        shape = variable.shape.as_list()
        if "kernel" in variable.name:
            fan_in = shape[0] * shape[1] * (shape[2] if shape[3] > 1 else 1)
            variable.assign(random.normal(0.05, 1.4 / fan_in**0.5, shape))
        elif "gamma" in variable.name or "variance" in variable.name:
            variable.assign(random.uniform(0.5, 1.7, shape))
        else:
            variable.assign(random.normal(0.1, 0.3, shape))
    return model


@pytest.fixture(name="backbone", scope="module")
def fixture_backbone():
    backbone = MobileNetV2(MOBILENET_V2, ALPHA, BatchNorm(0.999, 1e-3), min_depth=8)
    backbone(tf.zeros([1, *SIZE, 3]))
    return backbone


@pytest.mark.parametrize("save", ["save_weights", "save"])
def test_outputs_equal_those_of_the_classifier(keras, backbone, tmp_path, save):
    path = str(tmp_path / "weights.h5")
    getattr(keras, save)(path)
    backbone_weights.load(backbone, path)
    random = np.random.default_rng(4)
    x = tf.constant(random.uniform(-1, 1, [2, *SIZE, 3]).astype(np.float32))
    expected = tf_keras.Model(keras.input, keras.get_layer("block_16_project_BN").output)(x)
    # Two kernels for the same 52 layers of float32 sums.
    scale = expected.numpy().std()
    assert scale > 0.01
    np.testing.assert_allclose(backbone(x), expected, rtol=1e-3, atol=2e-4 * scale)


def another_shape(file):
    del file["Conv1/Conv1/kernel:0"]
    file["Conv1/Conv1/kernel:0"] = np.zeros((3, 3, 3, 32), np.float32)


def another_type(file):
    values = file["Conv1/Conv1/kernel:0"][()]
    del file["Conv1/Conv1/kernel:0"]
    file["Conv1/Conv1/kernel:0"] = values.astype(np.float64)


def no_number(file):
    file["block_5_expand/block_5_expand/kernel:0"][0, 0, 0, 0] = np.nan


def negative_variance(file):
    file["bn_Conv1/bn_Conv1/moving_variance:0"][2] = -1.0


def lacking(file):
    del file["block_16_project"]


def link_outside(file):
    del file["Conv1/Conv1/kernel:0"]
    file["Conv1/Conv1/kernel:0"] = h5py.ExternalLink("other.h5", "/kernel")


def link_of_a_group(file):
    del file["Conv1"]
    file["Conv1"] = h5py.SoftLink("/bn_Conv1")


def stored_outside(file):
    shape = file["Conv1/Conv1/kernel:0"].shape
    del file["Conv1/Conv1/kernel:0"]
    outside = [("/etc/hostname", 0, int(np.prod(shape)) * 4)]
    file.create_dataset("Conv1/Conv1/kernel:0", shape, np.float32, external=outside)


@pytest.mark.parametrize(
    "change, message",
    [
        (another_shape, r"shape \(3, 3, 3, 32\), wanted is float32 of \(3, 3, 3, 16\)"),
        (another_type, "float64"),
        (no_number, "block_5_expand.* holds values that cannot be"),
        (negative_variance, "moving_variance:0 holds values that cannot be"),
        (lacking, "lack block_16_project/kernel:0"),
        (link_outside, "lack Conv1/kernel:0"),
        (link_of_a_group, "lack Conv1/kernel:0"),
        (stored_outside, "is no array of its own"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_changed(keras, backbone, tmp_path, change, message):
    path = str(tmp_path / "weights.h5")
    keras.save_weights(path)
    with h5py.File(path, "r+") as file:
        change(file)
    before = [variable.numpy() for variable in backbone.variables]
    with pytest.raises(UserError, match=message):
        backbone_weights.load(backbone, path)
    for variable, value in zip(backbone.variables, before):
        np.testing.assert_array_equal(variable, value)


def test_other_files_are_refused(backbone, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        backbone_weights.load(backbone, str(tmp_path / "gone.h5"))
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(UserError, match="cannot be read"):
        backbone_weights.load(backbone, str(tmp_path / "text.h5"))
