"""The multibox loss against loops, and its gradients."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from memvid_tf.detection.loss import FrameLoss, LossConfig, frame_loss
from memvid_tf.detection.matching import Targets

BATCH, ANCHORS, CLASSES = 5, 40, 4


def batch(seed, positives=(0, 1, 3, 12, 40)):
    """Predictions and targets; frame b has positives[b] positive anchors."""
    random = np.random.default_rng(seed)
    encodings = random.normal(0, 1.5, [BATCH, ANCHORS, 4]).astype(np.float32)
    logits = random.normal(0, 2, [BATCH, ANCHORS, 1 + CLASSES]).astype(np.float32)
    classes = np.zeros([BATCH, ANCHORS], np.int32)
    for b, count in enumerate(positives):
        chosen = random.permutation(ANCHORS)[:count]
        classes[b, chosen] = random.integers(1, 1 + CLASSES, count)
    target = random.normal(0, 1.5, [BATCH, ANCHORS, 4]).astype(np.float32)
    target[classes == 0] = 0.0
    return encodings, logits, classes, target


def loss_of(encodings, logits, classes, target, **config):
    targets = Targets(tf.constant(classes), tf.constant(target))
    config = LossConfig(**config)
    return frame_loss(tf.constant(encodings), tf.constant(logits), targets, config)


# float32 sums of at most 160 terms.
FLOAT = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ratio, least, weight", [(3.0, 3, 1.0), (1.5, 0, 1.0), (2.0, 7, 2.5), (100.0, 3, 1.0)]
)
def test_multibox_equals_the_loops(ratio, least, weight):
    data = batch(1)
    loss = loss_of(*data, negatives_per_positive=ratio, min_negatives=least, positive_weight=weight)
    for b in range(BATCH):
        expected = reference.multibox(*(x[b] for x in data), ratio, least, weight)
        np.testing.assert_allclose(loss.classification[b], expected[0], **FLOAT)
        np.testing.assert_allclose(loss.box[b], expected[1], **FLOAT)
        assert loss.positives[b] == expected[2]


def test_mining_reaches_exactly_the_hardest_negatives():
    encodings, logits, classes, target = data = batch(2)
    with tf.GradientTape() as tape:
        watched = tf.constant(logits)
        tape.watch(watched)
        loss = tf.reduce_sum(loss_of(encodings, watched, classes, target).classification)
    reached = np.abs(tape.gradient(loss, watched)).sum(-1) > 0
    for b in range(BATCH):
        *_, negatives = reference.multibox(*(x[b] for x in data), 3.0, 3)
        expected = np.zeros(ANCHORS, bool)
        expected[negatives] = True
        np.testing.assert_array_equal(reached[b], expected | (classes[b] > 0))


def test_of_equally_hard_negatives_the_first_are_taken():
    """At the start all logits may be equal; the number of negatives must still be right."""
    encodings, _, classes, target = batch(3)
    logits = np.zeros([BATCH, ANCHORS, 1 + CLASSES], np.float32)
    loss = loss_of(encodings, logits, classes, target)
    positives = (classes > 0).sum(1)
    negatives = np.minimum(np.maximum(3 * positives, 3), ANCHORS - positives)
    expected = (positives + negatives) * np.log(1 + CLASSES)
    np.testing.assert_allclose(loss.classification, expected, rtol=1e-5)


@pytest.mark.parametrize("gamma, weight", [(2.0, 1.0), (0.5, 3.0), (0.0, 1.0)])
def test_focal_equals_the_loops(gamma, weight):
    data = batch(4)
    loss = loss_of(*data, classification="focal", focal_gamma=gamma, positive_weight=weight)
    for b in range(BATCH):
        expected = reference.focal(data[1][b].astype(float), data[2][b], gamma, weight)
        np.testing.assert_allclose(loss.classification[b], expected, rtol=1e-4)


def test_background_anchors_have_no_box_loss():
    encodings, logits, classes, target = batch(5)
    expected = loss_of(encodings, logits, classes, target)
    encodings[classes == 0] += 100.0
    changed = loss_of(encodings, logits, classes, target)
    np.testing.assert_array_equal(changed.box, expected.box)
    assert expected.box[0] == 0.0 and expected.box[1] > 0.0


@pytest.mark.parametrize("box_weight", [1.0, 0.25])
def test_the_total_is_for_each_positive_of_the_batch(box_weight):
    loss = loss_of(*batch(6))
    losses = loss.classification.numpy() + box_weight * loss.box.numpy()
    expected = sum(losses) / (0 + 1 + 3 + 12 + 40)
    np.testing.assert_allclose(loss.total(box_weight), expected, rtol=1e-5)


def test_the_total_of_a_batch_without_objects_is_the_loss_of_its_negatives():
    loss = loss_of(*batch(7, positives=(0,) * BATCH))
    np.testing.assert_allclose(loss.total(1.0), sum(loss.classification.numpy()), rtol=1e-6)
    assert loss.total(1.0) > 0.0
    nothing = FrameLoss(*(tf.zeros([2]) for _ in range(3)))
    assert nothing.total(1.0) == 0.0


@pytest.mark.parametrize(
    "config",
    [dict()] + [dict(classification="focal", focal_gamma=gamma) for gamma in (2.0, 0.5, 0.0)],
    ids=["hard_negative", "focal", "focal below one", "focal zero"],
)
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "saturated"])
def test_gradients_are_finite_with_and_without_objects(config, scale):
    for positives in ((0,) * BATCH, (0, 1, 3, 12, 40)):
        encodings, logits, classes, target = batch(8, positives)
        watched = [tf.constant(scale * encodings), tf.constant(scale * logits)]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            targets = Targets(tf.constant(classes), tf.constant(target))
            total = frame_loss(*watched, targets, LossConfig(**config)).total(1.0)
        on_boxes, on_logits = tape.gradient(total, watched)
        assert np.isfinite(total)
        assert np.all(np.isfinite(on_boxes)) and np.all(np.isfinite(on_logits))
        assert np.any(on_logits)
        assert np.any(on_boxes) == bool(sum(positives))


def test_gradients_of_the_box_loss_are_clipped_errors():
    encodings, logits, classes, target = batch(9)
    watched = tf.constant(encodings)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        loss = tf.reduce_sum(loss_of(watched, logits, classes, target).box)
    expected = np.clip(encodings - target, -1, 1) * (classes > 0)[..., None]
    np.testing.assert_allclose(tape.gradient(loss, watched), expected, atol=1e-6)


def test_an_unknown_classification_is_refused():
    with pytest.raises(ValueError, match="'softmax' is not one of 'focal', 'hard_negative'"):
        loss_of(*batch(10), classification="softmax")
