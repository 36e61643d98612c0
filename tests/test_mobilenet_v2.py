"""The backbone against the MobileNetV2 of Keras, and what f1 changes in it."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.layers.conv import BatchNorm
from memvid_tf.models.mobilenet_v2 import (
    BACKBONES,
    MOBILENET_V2,
    InvertedResidual,
    MobileNetV2,
    Stage,
    scale_channels,
)

BASE = (32, 16, 24, 32, 64, 96, 160, 320)  # stem and stages


@pytest.mark.parametrize(
    "alpha, expected",
    [
        # TF-Slim's `depth_multiplier` rows; those of .35 and .5 with its min_depth of 8.
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112)),
        (0.5, (16, 8, 16, 16, 32, 48, 80, 160)),
        (1.0, (32, 16, 24, 32, 64, 96, 160, 320)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448)),
    ],
)
def test_channels_follow_the_rule_of_tf_slim(alpha, expected):
    assert tuple(scale_channels(c, alpha, min_depth=8) for c in BASE) == expected
    # The minimum depth of 16, which the rows of LFS table 2 need, is the default.
    assert tuple(scale_channels(c, alpha) for c in BASE) == tuple(max(c, 16) for c in expected)


@pytest.mark.parametrize(
    "channels, alpha", [(11, 1.0), (24, 0.36), (32, 0.28), (17, 1.0), (90, 1.1)]
)
def test_channels_are_multiples_of_8_at_most_a_tenth_below_the_product(channels, alpha):
    scaled = scale_channels(channels, alpha, min_depth=8)
    assert scaled % 8 == 0
    assert 0.9 * channels * alpha <= scaled < channels * alpha + 8


def convolutions(backbone):
    """Our convolutions in the order of execution."""
    layers = [backbone.stem]
    for block in backbone.blocks:
        layers += [*([block.expand] if block.expand else []), block.depthwise, block.project]
    return layers


def copy_to_keras(backbone, model):
    """Gives the layers of Keras, up to the last bottleneck, our weights."""
    kinds = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D)
    theirs = [layer for layer in model.layers if isinstance(layer, kinds)]
    norms = [x for x in model.layers if isinstance(x, tf_keras.layers.BatchNormalization)]
    ours = convolutions(backbone)
    # Keras goes on with one convolution to 1280 channels.
    assert len(theirs) == len(norms) == len(ours) + 1
    for a, b, norm in zip(ours, theirs, norms):
        b.set_weights([a.kernel.numpy()])
        norm.set_weights([x.numpy() for x in (a.scale, a.bias, a.mean, a.variance)])


# SAME pads below and right of even sides alone, and all around odd ones. Keras pads explicitly, to
# the same effect where it knows the size.
@pytest.mark.parametrize("alpha, size", [(1.0, (64, 96)), (0.35, (97, 65)), (1.4, (34, 47))])
def test_outputs_equal_those_of_keras(alpha, size):
    random = np.random.default_rng(int(10 * alpha))
    model = tf_keras.applications.MobileNetV2(
        input_shape=(*size, 3), alpha=alpha, include_top=False, weights=None
    )
    outputs = [model.get_layer(f"block_{k}_project_BN").output for k in (3, 13, 16)]
    keras = tf_keras.Model(model.input, outputs)
    backbone = MobileNetV2(MOBILENET_V2, alpha, BatchNorm(0.999, 1e-3), min_depth=8)
    x = tf.constant(random.uniform(-1, 1, [2, *size, 3]).astype(np.float32))
    backbone(x)
    reference.randomise(backbone.variables, random)
    copy_to_keras(backbone, model)

    stages = {"stage_2_block_0": 0, "stage_5_block_0": 1, "stage_6_block_0": 2}
    for training in (False, True):
        expected = keras(x, training=training)
        y, compared = backbone.stem(x, training=training), 0
        for block in backbone.blocks:
            y = block(y, training=training)
            if block.name in stages:
                target = expected[stages[block.name]].numpy()
                # Two kernels for the same 52 layers of float32 sums; the scale of an output is
                # that of all of its channels.
                np.testing.assert_allclose(y, target, rtol=1e-3, atol=2e-4 * target.std())
                assert target.std() > 0.1
                compared += 1
        assert compared == 3
    # Both moved their statistics by the same amount.
    moved = [layer.variance.numpy() for layer in convolutions(backbone)]
    theirs = [
        x.moving_variance.numpy()
        for x in model.layers
        if isinstance(x, tf_keras.layers.BatchNormalization)
    ]
    for a, b in zip(moved, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_a_call_runs_all_blocks():
    random = np.random.default_rng(5)
    backbone = MobileNetV2(BACKBONES["tiny"], 0.5, BatchNorm(), final_activation="relu6")
    x = tf.constant(random.uniform(-1, 1, [1, 32, 48, 3]).astype(np.float32))
    y = backbone(x)
    assert y.shape == [1, 2, 3, 48] and backbone.stride == 16
    expected = backbone.stem(x)
    for block in backbone.blocks:
        expected = block(expected)
    np.testing.assert_array_equal(y, expected)
    assert len(backbone.blocks) == 8


def small(keep_last_stride, **kwargs):
    """A backbone that ends with its last strided block."""
    stages = (Stage(1, 16, 1, 1), Stage(3, 24, 2, 2), Stage(2, 48, 1, 2))
    norm = BatchNorm()
    return MobileNetV2(stages, 0.5, norm, keep_last_stride=keep_last_stride, **kwargs)


def test_without_its_last_stride_a_backbone_computes_the_positions_in_between(tmp_path):
    random = np.random.default_rng(6)
    kept, removed = small(True), small(False)
    x = tf.constant(random.uniform(-1, 1, [2, 32, 24, 3]).astype(np.float32))
    kept(x), removed(x)
    assert (kept.stride, removed.stride) == (8, 4)
    reference.randomise(kept.variables, random)
    path = tf.train.Checkpoint(model=kept).write(str(tmp_path / "ckpt"))
    tf.train.Checkpoint(model=removed).read(path).assert_consumed()
    coarse, fine = kept(x).numpy(), removed(x).numpy()
    # With stride 2, SAME pads an even side below alone: output i is centred on input 2·i + 1.
    np.testing.assert_allclose(fine[:, 1::2, 1::2], coarse, rtol=1e-4, atol=1e-5)
    assert fine.shape[1:3] == (8, 6)


def test_f1_gives_a_map_of_the_size_of_f0_from_half_a_frame():
    for stages in BACKBONES.values():
        norm = BatchNorm()
        f0 = MobileNetV2(stages, 0.35, norm)
        f1 = MobileNetV2(stages, 0.35, norm, keep_last_stride=False)
        assert f0.stride == 2 * f1.stride
        strides = [
            [(b.strides, b.filters) for b in backbone.blocks if b.strides > 1]
            for backbone in (f0, f1)
        ]
        assert strides[1] == strides[0][:-1]
        assert f0(tf.zeros([1, 64, 96, 3])).shape == f1(tf.zeros([1, 32, 48, 3])).shape


@pytest.mark.parametrize("activation", [None, "relu6"])
def test_only_the_last_block_ends_in_the_final_activation(activation):
    backbone = small(True, final_activation=activation)
    assert [b.project.activation for b in backbone.blocks] == [None, None, None, activation]
    random = np.random.default_rng(7)
    x = tf.constant(random.uniform(-1, 1, [2, 32, 24, 3]).astype(np.float32))
    backbone(x)
    reference.randomise(backbone.variables, random)
    y = backbone(x).numpy()
    assert (y.min() < 0) == (activation is None)


@pytest.mark.parametrize(
    "strides, filters, residual", [(1, 8, True), (2, 8, False), (1, 16, False)]
)
def test_a_residual_stands_where_shapes_agree(strides, filters, residual):
    random = np.random.default_rng(8)
    block = InvertedResidual(filters, 3, strides, None, BatchNorm(), None)
    x = random.normal(0, 1, [2, 6, 5, 8]).astype(np.float32)
    block(tf.constant(x))
    reference.randomise(block.variables, random)
    block.project.kernel.assign(tf.zeros_like(block.project.kernel))
    y = block(tf.constant(x)).numpy()
    # What is left of the block is the input, if it is added, and a constant.
    p = block.project
    constant = p.bias - p.mean / (p.variance + 1e-3) ** 0.5 * p.scale
    expected = constant + x if residual else np.broadcast_to(constant, y.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)
