"""Detections against a reference written as loops, and against the operator in post.tflite."""

import dataclasses
import math

import numpy as np
import pytest

from memvid_tf.runtime.interpreter import Graph
from memvid_tf.runtime.manifest import BoxCoder
from memvid_tf.runtime.postprocess import decode, detections

CODER = BoxCoder(y=10.0, x=9.0, height=5.0, width=4.0)


def scene(rng, anchors, classes, background):
    """Crowded anchors, so that boxes overlap, and logits with the given lead of the background."""
    boxes = np.hstack([rng.uniform(0.3, 0.7, (anchors, 2)), rng.uniform(0.1, 0.5, (anchors, 2))])
    logits = rng.normal(0, 1.7, (anchors, classes + 1))
    logits[:, 0] += background
    codes = rng.normal(0, 1.5, (anchors, 4))
    return codes.astype(np.float32), logits.astype(np.float32), boxes.astype(np.float32)


def overlap(one, other):
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    if height <= 0 or width <= 0 or min(areas) <= 0:
        return 0.0
    return height * width / (sum(areas) - height * width)


def reference(codes, logits, anchors, score_threshold, iou_threshold, max_detections):
    """[(score, class, box)], best first: per class in float64, then merged."""
    boxes = []
    for code, (y, x, height, width) in zip(codes.tolist(), anchors.tolist()):
        y, x = code[0] / CODER.y * height + y, code[1] / CODER.x * width + x
        half_height = math.exp(code[2] / CODER.height) * height / 2
        half_width = math.exp(code[3] / CODER.width) * width / 2
        boxes.append((y - half_height, x - half_width, y + half_height, x + half_width))
    scores = []
    for row in logits.tolist():
        powers = [math.exp(value - max(row)) for value in row]
        scores.append([power / sum(powers) for power in powers[1:]])
    found = []
    for label in range(len(scores[0])):
        kept = []
        for anchor in sorted(range(len(boxes)), key=lambda anchor: -scores[anchor][label]):
            if scores[anchor][label] < score_threshold:
                continue
            if all(overlap(boxes[anchor], boxes[other]) <= iou_threshold for other in kept):
                kept.append(anchor)
                found.append((scores[anchor][label], label, boxes[anchor]))
    found.sort(key=lambda detection: -detection[0])
    return found[:max_detections]


@pytest.mark.parametrize("background", [0.0, 4.0])
@pytest.mark.parametrize(
    ("score_threshold", "iou_threshold", "max_detections"),
    [(0.02, 0.5, 100), (0.3, 0.45, 7), (0.0, 0.6, 150), (0.5, 0.0, 20), (0.02, 1.0, 1000)],
)
def test_the_loops_agree(background, score_threshold, iou_threshold, max_detections):
    rng = np.random.default_rng(int(background) + max_detections)
    codes, logits, anchors = scene(rng, 90, 6, background)
    wanted = reference(codes, logits, anchors, score_threshold, iou_threshold, max_detections)
    found = detections(
        codes[None], logits[None], anchors, CODER, score_threshold, iou_threshold, max_detections
    )
    assert len(wanted) > 3
    assert found.classes.tolist() == [label for _, label, _ in wanted]
    # float32 against float64: a few units in the last place.
    np.testing.assert_allclose(found.scores, [score for score, _, _ in wanted], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, [box for _, _, box in wanted], rtol=1e-5, atol=1e-6)
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (
        np.float32, np.float32, np.int32,
    )  # fmt: skip


def test_many_scenes_agree_with_the_operator(tmp_path):
    """post.tflite's own operator; the export gives it the same thresholds."""
    from export import post

    rng = np.random.default_rng(8)
    _, _, anchors = scene(rng, 120, 5, 0.0)
    model = post.post_graph(
        anchors, num_classes=5, box_coder=dataclasses.asdict(CODER), score_threshold=0.15,
        iou_threshold=0.4, max_detections=30,
    )  # fmt: skip
    (tmp_path / "post.tflite").write_bytes(model)
    graph = Graph(tmp_path / "post.tflite")
    lengths = set()
    for background in np.linspace(0, 14, 25):
        codes, logits, _ = scene(rng, 120, 5, background)
        output = graph(box_encodings=codes[None], class_logits=logits[None])
        count = int(output["count"][0])
        found = detections(codes, logits, anchors, CODER, 0.15, 0.4, 30)
        assert len(found.scores) == count
        assert found.classes.tolist() == output["classes"][0, :count].tolist()
        # Both are float32; softmax and exp differ in the last places.
        np.testing.assert_allclose(found.scores, output["scores"][0, :count], rtol=1e-5)
        np.testing.assert_allclose(found.boxes, output["boxes"][0, :count], rtol=1e-5, atol=1e-6)
        lengths.add(count)
    assert 0 in lengths and 30 in lengths and len(lengths) > 5


def test_thresholds_are_inclusive_and_ties_have_an_order():
    """A score at the threshold counts, an IoU at the threshold does not suppress; equal scores go
    by class, then by anchor."""
    anchors = np.array([[0.5, 0.5, 1, 1], [0.5, 1.0, 1, 1], [0.5, 9.0, 1, 1]], np.float32)
    codes = np.zeros((3, 4), np.float32)
    logits = np.zeros((3, 3), np.float32)  # every score is exactly one third
    third = float(np.float32(1) / np.float32(3))
    # Anchors 0 and 1 overlap by a third as well.
    found = detections(codes, logits, anchors, CODER, third, third, 10)
    assert found.classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.boxes[:, 1].tolist() == [0, 0.5, 8.5, 0, 0.5, 8.5]
    found = detections(codes, logits, anchors, CODER, third, 0.33, 3)
    assert found.classes.tolist() == [0, 0, 1] and found.boxes[:, 1].tolist() == [0, 8.5, 0]
    assert len(detections(codes, logits, anchors, CODER, 0.334, 0.5, 10).scores) == 0


def test_extreme_logits_neither_overflow_nor_hide():
    anchors = np.full((2, 4), 0.5, np.float32)
    logits = np.array([[-1e4, 1e4, 0], [1e30, 0, -1e30]], np.float32)
    found = detections(np.zeros((2, 4)), logits, anchors, CODER, 0.5, 0.5, 10)
    assert found.scores.tolist() == [1.0] and found.classes.tolist() == [0]
    for bad in (np.nan, np.inf):
        logits[0, 1] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            detections(np.zeros((2, 4)), logits, anchors, CODER, 0.5, 0.5, 10)


def test_an_empty_box_suppresses_nothing():
    anchors = np.array([[0.5, 0.5, 0, 0.2], [0.5, 0.5, 0, 0.2]], np.float32)
    logits = np.array([[0, 2], [0, 1]], np.float32)
    found = detections(np.zeros((2, 4)), logits, anchors, CODER, 0.1, 0.0, 10)
    assert len(found.scores) == 2


def test_shapes_and_thresholds_that_do_not_fit_are_refused():
    codes, logits, anchors = scene(np.random.default_rng(0), 4, 2, 0.0)
    with pytest.raises(ValueError, match="do not describe the same anchors"):
        detections(codes[:3], logits, anchors, CODER, 0.1, 0.5, 10)
    with pytest.raises(ValueError, match=r"score_threshold 30 .* must be in \[0, 1\]"):
        detections(codes, logits, anchors, CODER, 30, 0.5, 10)


def test_decoding_uses_each_scale_once():
    coder = BoxCoder(y=2.0, x=4.0, height=5.0, width=8.0)
    box = decode(np.array([[1, 2, 5, 16]], np.float32), np.array([[0.5, 0.25, 0.2, 0.1]]), coder)
    height, width = 0.2 * math.e, 0.1 * math.e**2
    center = (0.5 + 0.2 / 2, 0.25 + 0.1 / 2)
    wanted = [center[0] - height / 2, center[1] - width / 2, center[0] + height / 2,
              center[1] + width / 2]  # fmt: skip
    np.testing.assert_allclose(box[0], wanted, rtol=1e-6)
