"""The single-frame baseline: what its predictions stand for, and that it trains."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras

from memvid_tf.detection import loss as detection_loss
from memvid_tf.detection.matching import match
from memvid_tf.layers.conv import BatchNorm
from memvid_tf.models import single_frame
from memvid_tf.models.mobilenet_v2 import TINY, MobileNetV2
from memvid_tf.models.single_frame import SingleFrameConfig, SingleFrameDetector, TappedMobileNetV2

SIZE = (96, 64)  # maps of 12×8, 6×4, 3×2, 2×1
CLASSES = 3
ANCHORS = 3 * 12 * 8 + 6 * (6 * 4 + 3 * 2 + 2 * 1)


def tiny(**fields):
    return SingleFrameConfig(
        **{
            "num_classes": CLASSES,
            "image_size": SIZE,
            "backbone": "tiny",
            "depth_multiplier": 0.5,
            "last_channels": 96,
            "extra_depths": (64, 48),
            "norm_momentum": 0.9,
            **fields,
        }
    )


def frames(seed, batch):
    """Blurred noise, so that neighbouring pixels belong together."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, [batch, SIZE[0] // 8, SIZE[1] // 8, 3])
    fine = np.repeat(np.repeat(coarse, 8, 1), 8, 2) + random.integers(-20, 20, [batch, *SIZE, 3])
    return tf.constant(np.clip(fine, 0, 255).astype(np.uint8))


def randomised(config, seed):
    model = single_frame.build(config)
    reference.randomise(model.variables, np.random.default_rng(seed))
    return model


def test_a_prediction_stands_at_the_place_of_its_anchor():
    """Every map has its own predictors, in the order of the anchors, within a cell too."""
    model = randomised(tiny(), 0)
    assert model.anchors.shape == (ANCHORS, 4)
    sizes = [(12, 8, 3), (6, 4, 6), (3, 2, 6), (2, 1, 6)]
    start = 0
    for predictor, (height, width, anchors) in zip(model.box_predictors, sizes, strict=True):
        # The bias of an anchor says how large it is.
        cell = model.anchors[start : start + anchors]
        predictor.pointwise.kernel.assign(tf.zeros_like(predictor.pointwise.kernel))
        bias = np.concatenate([cell[:, 2:], 10 * cell[:, 2:]], 1)
        predictor.pointwise.bias.assign(bias.reshape(-1))
        start += height * width * anchors
    outputs = model(frames(1, 2))
    boxes = outputs["box_encodings"].numpy()
    expected = np.concatenate([model.anchors[:, 2:], 10 * model.anchors[:, 2:]], 1)
    np.testing.assert_allclose(boxes, np.stack([expected] * 2), rtol=1e-6)
    assert outputs["class_logits"].shape == (2, ANCHORS, 1 + CLASSES)


@pytest.mark.parametrize("row, column", [(0, 0), (0, 7), (11, 0), (11, 7), (3, 5)])
def test_an_anchor_of_the_largest_map_looks_at_its_own_place(row, column):
    model = randomised(tiny(), 2)
    images = model.preprocess(frames(3, 1))
    anchor = (row * 8 + column) * 3 + 1
    with tf.GradientTape() as tape:
        tape.watch(images)
        logit = model.detect(images)["class_logits"][0, anchor, 2]
    weight = np.abs(tape.gradient(logit, images)[0]).sum(-1)
    seen = [np.average(np.arange(n), weights=weight.sum(1 - k)) for k, n in enumerate(SIZE)]
    center = model.anchors[anchor, :2] * SIZE
    # The field of about 60 pixels is cut off at the border, which pulls its centre inwards by less
    # than a quarter of it; cells are 8 pixels apart.
    assert np.abs(seen - center).max() < 15


def test_the_tap_leaves_the_backbone_as_it_is():
    norm = BatchNorm()
    plain = MobileNetV2(TINY, 0.5, norm)
    tapped = TappedMobileNetV2(TINY, 0.5, norm)
    x = tf.constant(np.random.default_rng(4).uniform(-1, 1, [2, *SIZE, 3]), tf.float32)
    plain(x)
    tapped(x)
    reference.randomise(plain.variables, np.random.default_rng(5))
    tapped.set_weights(plain.get_weights())
    inside, last = tapped(x)
    np.testing.assert_array_equal(last, plain(x))
    # TINY strides for the last time in its fourth stage; its third ends at 64·0.5 channels.
    block = plain.blocks[5]
    before = plain.stem(x)
    for earlier in plain.blocks[:5]:
        before = earlier(before)
    kernel = block.expand.kernel[0, 0].numpy()
    y = before.numpy() @ kernel
    e = block.expand
    y = (y - e.mean) / np.sqrt(e.variance + norm.epsilon) * e.scale + e.bias
    np.testing.assert_allclose(inside, np.clip(y, 0, 6), rtol=1e-4, atol=1e-4)
    assert inside.shape == (2, 12, 8, 4 * before.shape[-1])


def losses(model, images, boxes, classes, training):
    config = detection_loss.LossConfig()
    outputs = model(images, training=training)
    targets = match(model.anchors, boxes, classes, config.match_threshold)
    return detection_loss.frame_loss(
        outputs["box_encodings"], outputs["class_logits"], targets, config
    ).total(config.box_weight)


@pytest.mark.slow
def test_it_learns_a_batch_by_heart():
    tf_keras.utils.set_random_seed(6)
    model = single_frame.build(tiny())
    images = frames(7, 4)
    random = np.random.default_rng(8)
    # Four objects a frame, each for another map.
    sides = np.array([[0.15], [0.45], [0.7], [0.95]]) + random.uniform(-0.03, 0.03, [4, 4, 2])
    corners = random.uniform(0, 1, [4, 4, 2]) * (1 - sides)
    boxes = tf.constant(np.concatenate([corners, corners + sides], -1), tf.float32)
    classes = tf.constant(random.integers(1, CLASSES + 1, [4, 4]), tf.int32)
    optimizer = tf_keras.optimizers.Adam(3e-3)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = losses(model, images, boxes, classes, True)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss, [tf.reduce_max(tf.abs(g)) for g in gradients]

    first, gradients = step()
    names = [v.name for v in model.trainable_variables]
    assert not [name for name, g in zip(names, gradients) if not 0 < g < np.inf]
    for _ in range(60):
        last, _ = step()
    assert last < 0.2 * first
    # Moving statistics have followed, so that what was learned shows without batch statistics.
    assert losses(model, images, boxes, classes, False) < 0.5 * first


def test_a_checkpoint_restores_the_network(tmp_path):
    model = randomised(tiny(), 9)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    other = single_frame.build(tiny())
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    for a, b in zip(model(frames(10, 1)).values(), other(frames(10, 1)).values()):
        np.testing.assert_array_equal(a, b)


def test_the_quantized_network_follows_the_float_one():
    model = randomised(tiny(), 11)
    quantized = single_frame.build(tiny(quantization="int8"))
    # Observers have variables that the float network has not.
    by_name = {v.name: v for v in quantized.variables}
    for variable in model.variables:
        by_name.pop(variable.name.replace(model.name, quantized.name, 1)).assign(variable)
    assert all(name.split(":")[0].endswith(("_min", "_max")) for name in by_name)
    quantized.norm.frozen.assign(True)  # or the observers' pass would move the statistics
    images = frames(12, 4)
    for _ in range(3):
        quantized(images, training=True)
    for name, output in quantized(images).items():
        expected = model(images)[name].numpy()
        error = np.std(output - expected) / np.std(expected)
        # About 25 layers of 8 bits, each adding noise of about a hundredth of its signal.
        assert error < 0.2, name
        levels = np.unique(output)
        assert len(levels) <= 256
        # The values of one output lie on one grid, whichever map they come from.
        steps = np.diff(levels) / np.diff(levels).min()
        np.testing.assert_allclose(steps, np.round(steps), atol=0.01)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="model.backbone: 'resnet' is not one of"):
        SingleFrameDetector(tiny(backbone="resnet"))
    with pytest.raises(ValueError, match="model.quantization: 'int4' is not one of"):
        SingleFrameDetector(tiny(quantization="int4"))
    with pytest.raises(ValueError, match="7 feature maps do not fit"):
        SingleFrameDetector(tiny(extra_depths=(64, 32, 32, 32, 32)))
