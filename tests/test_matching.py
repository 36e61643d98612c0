"""Matching against loops over anchors and objects."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from memvid_tf.detection import matching

# Encodings divide by anchors of at least .1, times 10: float32 noise of 1e-7 grows to 1e-5.
ENCODING = dict(rtol=1e-4, atol=5e-5)


def make_anchors(seed=0, count=60):
    random = np.random.default_rng(seed)
    centers, sizes = random.uniform(0, 1, [count, 2]), random.uniform(0.1, 0.7, [count, 2])
    return np.concatenate([centers, sizes], 1).astype(np.float32)


def make_boxes(random, shape):
    center, size = random.uniform(0.1, 0.9, [*shape, 2]), random.uniform(0.05, 0.6, [*shape, 2])
    return np.concatenate([center - size / 2, center + size / 2], -1).astype(np.float32)


def match(anchors, boxes, classes, threshold=0.5):
    targets = matching.match(anchors, tf.constant(boxes), tf.constant(classes), threshold)
    return targets.classes.numpy(), targets.box_encodings.numpy()


def assert_equal_to_loops(anchors, boxes, classes, threshold):
    result = match(anchors, boxes, classes, threshold)
    rows = anchors.astype(float)
    for b in range(len(boxes)):
        expected = reference.match(rows, boxes[b].astype(float), classes[b], threshold)
        np.testing.assert_array_equal(result[0][b], expected[0])
        np.testing.assert_allclose(result[1][b], expected[1], **ENCODING)
    return result


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_matches_equal_the_loops(seed, threshold):
    random = np.random.default_rng(seed)
    boxes = make_boxes(random, (5, 7))
    classes = random.integers(1, 5, (5, 7)).astype(np.int32)
    classes[random.uniform(size=classes.shape) < 0.3] = 0  # padding anywhere, not only at the end
    boxes[classes == 0] = 0.0
    result, _ = assert_equal_to_loops(make_anchors(seed), boxes, classes, threshold)
    assert (result > 0).any() and (result == 0).any()


def test_forced_matches_only():
    """A threshold that no anchor reaches leaves exactly the best anchor of each object."""
    random = np.random.default_rng(10)
    boxes, classes = make_boxes(random, (4, 3)), random.integers(1, 9, (4, 3)).astype(np.int32)
    result, _ = assert_equal_to_loops(make_anchors(10), boxes, classes, threshold=1.1)
    assert 1 <= (result > 0).sum(1).min() and (result > 0).sum(1).max() <= 3


def test_a_forced_match_overrides_a_better_one():
    # Anchor 0 overlaps object 0 by more than half, but it is the best that object 1 can get.
    anchors = np.array([[0.5, 0.5, 0.4, 0.4], [0.5, 0.45, 0.4, 0.4]], np.float32)
    boxes = np.array([[[0.3, 0.25, 0.7, 0.65], [0.4, 0.65, 0.6, 0.75]]], np.float32)
    classes = np.array([[3, 8]], np.int32)
    result, _ = assert_equal_to_loops(anchors, boxes, classes, 0.5)
    np.testing.assert_array_equal(result, [[8, 3]])


def test_of_objects_that_want_the_same_anchor_the_first_gets_it():
    anchors = np.array([[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]], np.float32)
    boxes = [[[0.35, 0.35, 0.6, 0.6], [0.3, 0.3, 0.7, 0.7], [0.4, 0.4, 0.7, 0.7]]]
    boxes = np.array(boxes, np.float32)
    for classes in ([[5, 6, 7]], [[0, 6, 7]], [[0, 0, 7]]):
        classes = np.array(classes, np.int32)
        result, _ = assert_equal_to_loops(anchors, boxes, classes, 0.5)
        np.testing.assert_array_equal(result, [[classes[classes > 0][0], 0]])


def test_a_frame_without_objects_is_background():
    random = np.random.default_rng(20)
    boxes = make_boxes(random, (3, 4))
    classes = np.array([[0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]], np.int32)
    result, encodings = match(make_anchors(20), boxes, classes)
    assert not result[[0, 2]].any() and result[1].any()
    np.testing.assert_array_equal(encodings[result == 0], 0.0)


def test_what_stands_in_the_padding_does_not_matter():
    random = np.random.default_rng(30)
    boxes, classes = make_boxes(random, (2, 6)), np.array([[1, 2, 0, 0, 3, 0]] * 2, np.int32)
    expected = match(make_anchors(30), boxes, classes)
    for rest in (0.0, 1.0, -1.0, 7.5):
        changed = np.where(classes[..., None] > 0, boxes, np.float32(rest))
        for a, b in zip(match(make_anchors(30), changed, classes), expected):
            np.testing.assert_array_equal(a, b)


def test_encodings_decode_to_the_objects():
    """With the box coder of SSD, inverted by its definition."""
    random = np.random.default_rng(40)
    anchors, boxes = make_anchors(40), make_boxes(random, (3, 2))
    classes = np.array([[1, 2]] * 3, np.int32)  # the class tells which object an anchor got
    result, encodings = match(anchors, boxes, classes, 0.4)
    assert matching.CODER_WEIGHTS == (10.0, 10.0, 5.0, 5.0)
    for b, a in zip(*np.nonzero(result)):
        y, x, h, w = encodings[b, a] / [10, 10, 5, 5]
        center = anchors[a, :2] + [y, x] * anchors[a, 2:]
        half = anchors[a, 2:] * np.exp([h, w]) / 2
        expected = boxes[b, result[b, a] - 1]
        np.testing.assert_allclose([*(center - half), *(center + half)], expected, atol=1e-5)


def test_corners():
    anchors = make_anchors(50)
    expected = [reference.corners(a) for a in anchors]
    np.testing.assert_allclose(matching.anchor_corners(anchors), expected, atol=1e-6)


def test_a_batch_of_unknown_size_in_a_graph():
    random = np.random.default_rng(60)
    boxes, classes = make_boxes(random, (3, 4)), random.integers(0, 3, (3, 4)).astype(np.int32)
    anchors = make_anchors(60)
    signature = [tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None], tf.int32)]
    graph = tf.function(lambda b, c: matching.match(anchors, b, c, 0.5), signature)
    result, expected = graph(boxes, classes), match(anchors, boxes, classes)
    np.testing.assert_array_equal(result.classes, expected[0])
    np.testing.assert_allclose(result.box_encodings, expected[1], **ENCODING)
