"""The post-processing graph against decoding and suppression written as plain loops."""

import math

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export import gate, post

CODER = {"y": 10.0, "x": 8.0, "height": 5.0, "width": 4.0}
SCORE_THRESHOLD, IOU_THRESHOLD = 0.3, 0.45
CLASSES = 4
BOX_QUANTIZATION = (float(np.float32(0.0712)), 11)
LOGIT_QUANTIZATION = (float(np.float32(0.0531)), -23)


def anchors(count, seed=0):
    """Crowded anchors of all proportions, so that many boxes overlap."""
    random = np.random.default_rng(seed)
    centers = random.uniform(0.3, 0.7, [count, 2])
    return np.hstack([centers, random.uniform(0.15, 0.6, [count, 2])]).astype(np.float32)


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def decoded(encoding, anchor):
    y, x, height, width = (float(value) for value in anchor)
    center_y = encoding[0] / CODER["y"] * height + y
    center_x = encoding[1] / CODER["x"] * width + x
    half_height = math.exp(encoding[2] / CODER["height"]) * height / 2
    half_width = math.exp(encoding[3] / CODER["width"]) * width / 2
    return [
        center_y - half_height,
        center_x - half_width,
        center_y + half_height,
        center_x + half_width,
    ]


def overlap(one, other):
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return height * width / (sum(areas) - height * width)


def reference(encodings, logits, anchor_boxes, max_detections):
    """Detections [(box, class, score)], best first, and the number of boxes suppressed."""
    boxes = [decoded(*pair) for pair in zip(encodings.tolist(), anchor_boxes, strict=True)]
    scores = [softmax(row) for row in logits.tolist()]
    kept, suppressed = [], 0
    for label in range(len(scores[0]) - 1):
        order = sorted(range(len(boxes)), key=lambda row: -scores[row][label + 1])
        chosen = []
        for row in order:
            score = scores[row][label + 1]
            assert abs(score - SCORE_THRESHOLD) > 1e-6, "a tie with the threshold: change the seed"
            if score < SCORE_THRESHOLD:
                continue
            overlaps = [overlap(boxes[row], boxes[other]) for other in chosen]
            assert all(abs(value - IOU_THRESHOLD) > 1e-6 for value in overlaps), "change the seed"
            if any(value > IOU_THRESHOLD for value in overlaps):
                suppressed += 1
                continue
            chosen.append(row)
            kept.append((boxes[row], label, score))
    kept.sort(key=lambda detection: -detection[2])
    return kept[:max_detections], suppressed


def graph(anchor_boxes, max_detections=9, **quantization):
    return post.post_graph(
        anchor_boxes,
        num_classes=CLASSES,
        box_coder=CODER,
        score_threshold=SCORE_THRESHOLD,
        iou_threshold=IOU_THRESHOLD,
        max_detections=max_detections,
        **quantization,
    )


def run(model, encodings, logits):
    runner = Interpreter(model_content=model).get_signature_runner("serving_default")
    return runner(box_encodings=encodings[None], class_logits=logits[None])


def check(outputs, wanted, max_detections):
    assert outputs["count"].tolist() == [len(wanted)]
    assert outputs["boxes"].shape == (1, max_detections, 4)
    assert outputs["classes"].shape == outputs["scores"].shape == (1, max_detections)
    places = slice(0, len(wanted))
    assert outputs["classes"][0, places].tolist() == [label for _, label, _ in wanted]
    # float32 against float64: exp and the softmax of values up to some tens lose a few ulps.
    np.testing.assert_allclose(
        outputs["scores"][0, places], [score for _, _, score in wanted], rtol=2e-5
    )
    if wanted:
        np.testing.assert_allclose(
            outputs["boxes"][0, places], [box for box, _, _ in wanted], atol=2e-6
        )
    for name in ("boxes", "classes", "scores"):
        assert not outputs[name][0, len(wanted) :].any()


@pytest.fixture(scope="module")
def float_model():
    return graph(anchors(90))


@pytest.fixture(scope="module")
def int8_model():
    return graph(
        anchors(90), box_quantization=BOX_QUANTIZATION, logit_quantization=LOGIT_QUANTIZATION
    )


@pytest.mark.parametrize("places", [9, 60])
@pytest.mark.parametrize("seed", [1, 2])
def test_float_detections_are_those_of_the_loops(seed, places):
    random = np.random.default_rng(seed)
    encodings = random.normal([0.5, -1, 0.3, -0.4], 1.5, [90, 4]).astype(np.float32)
    logits = random.normal([1.5, 0.5, 0, -1, 0.2], 1.5, [90, CLASSES + 1]).astype(np.float32)
    wanted, suppressed = reference(encodings, logits, anchors(90), places)
    # 9 places are too few for all detections, and 60 too many.
    assert suppressed > 0 and (len(wanted) == places) == (places == 9)
    assert len({label for _, label, _ in wanted}) > 1
    check(run(graph(anchors(90), places), encodings, logits), wanted, places)


@pytest.mark.parametrize("seed", [3, 4])
def test_int8_detections_are_those_of_the_loops(int8_model, seed):
    random = np.random.default_rng(seed)
    encodings = random.integers(-40, 60, [90, 4]).astype(np.int8)
    logits = random.integers(-80, 40, [90, CLASSES + 1]).astype(np.int8)
    real = [
        (np.float64(levels) - zero_point) * scale
        for levels, (scale, zero_point) in (
            (encodings, BOX_QUANTIZATION),
            (logits, LOGIT_QUANTIZATION),
        )
    ]
    wanted, suppressed = reference(*real, anchors(90), 9)
    scores = [score for _, _, score in wanted]
    assert suppressed > 0 and len(wanted) == 9 and len(set(scores)) == 9
    check(run(int8_model, encodings, logits), wanted, 9)


def test_boxes_of_different_classes_do_not_suppress_each_other(float_model):
    encodings = np.zeros([90, 4], np.float32)
    logits = np.full([90, CLASSES + 1], -9, np.float32)
    logits[:, 0] = 9
    logits[5] = [-9, 3, 2.7, -9, -9]
    outputs = run(float_model, encodings, logits)
    check(outputs, reference(encodings, logits, anchors(90), 9)[0], 9)
    assert outputs["classes"][0, :2].tolist() == [0, 1]
    np.testing.assert_array_equal(outputs["boxes"][0, 0], outputs["boxes"][0, 1])


def test_nothing_above_the_threshold_gives_no_detection(int8_model):
    logits = np.full([90, CLASSES + 1], -100, np.int8)
    logits[:, 0] = 100
    check(run(int8_model, np.zeros([90, 4], np.int8), logits), [], 9)


def test_fewer_anchors_than_places():
    few = anchors(2, seed=7)
    encodings = np.array([[0, 0, 0.5, -0.5], [9, -9, 0, 0]], np.float32)
    logits = np.array([[0, 4, 0, 0, 0], [0, 0, 0, 0, 2.5]], np.float32)
    model = graph(few, max_detections=5)
    check(run(model, encodings, logits), reference(encodings, logits, few, 5)[0], 5)


def test_inputs_have_exactly_the_given_quantization_and_the_gate_lets_it_pass(int8_model):
    info = gate.tensor_info(int8_model, "serving_default")
    wanted = {
        "box_encodings": gate.TensorInfo("box_encodings", (1, 90, 4), "int8", *BOX_QUANTIZATION),
        "class_logits": gate.TensorInfo("class_logits", (1, 90, 5), "int8", *LOGIT_QUANTIZATION),
    }
    assert info.inputs == wanted
    assert {name: (one.shape, one.dtype) for name, one in info.outputs.items()} == {
        "boxes": ((1, 9, 4), "float32"),
        "classes": ((1, 9), "float32"),
        "scores": ((1, 9), "float32"),
        "count": ((1,), "float32"),
    }
    gate.check({"post": int8_model}, [], precision="int8", post_processing=["post"])
    # The exemption is the caller's word for this graph, not a property the gate looks for.
    with pytest.raises(gate.GateError, match="float32"):
        gate.check({"post": int8_model}, [], precision="int8")


def test_a_range_gives_the_scale_to_the_last_bit():
    random = np.random.default_rng(8)
    scales = np.exp(random.uniform(-12, 4, 2000)).astype(np.float32).tolist()
    zero_points = random.integers(-128, 128, 2000)
    zero_points[:700] = -128
    zero_points[700:1400] = 127
    plain = 0
    for scale, zero_point in zip(scales, zero_points.tolist(), strict=True):
        low, high = post.fake_quant_range(scale, zero_point)
        assert low <= 0 <= high and low == np.float32(low) and high == np.float32(high)
        assert np.float32((high - low) / 255) == np.float32(scale)
        assert round(-128 - low / scale) == zero_point
        ends = [np.float32(scale * (level - zero_point)) for level in (-128, 127)]
        plain += np.float32((float(ends[1]) - float(ends[0])) / 255) == np.float32(scale)
    assert plain < 2000, "the neighbours were never needed"


def test_the_converter_computes_scales_as_assumed():
    # Scales that the plain range misses by one unit in the last place.
    pairs = [(0.0003829486668109894, -128), (0.2157268524169922, 127)]
    model = graph(anchors(6), box_quantization=pairs[0], logit_quantization=pairs[1])
    info = gate.tensor_info(model, "serving_default").inputs.values()
    assert [(one.scale, one.zero_point) for one in info] == pairs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"box_coder": {"y": 10.0}}, r"box_coder has \['y'\]"),
        ({"score_threshold": 1.5}, "score_threshold 1.5"),
        ({"iou_threshold": 0.0}, "iou_threshold 0.0"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"box_quantization": (0.5, 0)}, "give both"),
        ({"anchors": np.zeros([3, 5])}, r"\(3, 5\), not \[A, 4\]"),
        ({"box_quantization": (0.1, 0), "logit_quantization": (0.5, 0)}, "scale 0.1 is not a pos"),
        ({"box_quantization": (0.5, 0), "logit_quantization": (0.5, 200)}, "zero point 200"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "anchors": anchors(3),
        "num_classes": CLASSES,
        "box_coder": CODER,
        "score_threshold": 0.3,
        "iou_threshold": 0.5,
        "max_detections": 5,
    } | change
    with pytest.raises(ValueError, match=message):
        post.post_graph(arguments.pop("anchors"), **arguments)
