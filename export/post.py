"""The post-processing graph: raw outputs of the memory graph to detections.

Softmax over the class logits, box decoding and non-maximum suppression per class, the last two by
LiteRT's custom op `TFLite_Detection_PostProcess`. It is a graph of its own because the op is float
and runs on the CPU: inside the memory graph it would break the accelerated partition. The papers
use the same SSD post-processing; `memvid_tf.runtime.postprocess` is its oracle in NumPy.
"""

from collections.abc import Mapping

import numpy as np

from export import convert, gate

_OUTPUTS = ("boxes", "classes", "scores", "count")


def post_graph(
    anchors: np.ndarray,
    *,
    num_classes: int,
    box_coder: Mapping[str, float],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    box_quantization: tuple[float, int] | None = None,
    logit_quantization: tuple[float, int] | None = None,
) -> bytes:
    """The graph for one set of anchors and thresholds.

    Inputs `box_encodings` [1, A, 4] (y, x, height, width) and `class_logits` [1, A, C + 1] (column
    0 is the background), int8 with the given quantization or float32. Outputs, all float32, by
    falling score: `boxes` [1, K, 4] (ymin, xmin, ymax, xmax; normalised, not clipped to the frame),
    `classes` [1, K] (0-based, without background), `scores` [1, K] in [0, 1], `count` [1]; places
    from `count` on are zeros.

    Args:
      anchors: [A, 4] float32, (ycenter, xcenter, height, width), normalised.
      num_classes: C, without the background.
      box_coder: divisors of the encodings, keys "y", "x", "height" and "width".
      score_threshold: a detection has at least this score; in [0, 1].
      iou_threshold: a box that overlaps a better one of its class by more is dropped; in (0, 1].
      max_detections: K, over all classes.
      box_quantization: scale and zero point of `box_encodings`, as the memory graph gives them.
      logit_quantization: the same of `class_logits`; both are given or neither.

    Returns:
      The `.tflite` file's bytes, with the signature "serving_default".

    Raises:
      ValueError: for a value outside the ranges above, or a scale the converter cannot reproduce.
    """
    import tensorflow as tf

    anchors = np.asarray(anchors, np.float32)
    _check_arguments(anchors, num_classes, box_coder, score_threshold, iou_threshold)
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}: at least 1 is needed")
    if (box_quantization is None) != (logit_quantization is None):
        raise ValueError(
            f"box_quantization is {box_quantization} and logit_quantization {logit_quantization}: "
            "give both for an int8 graph or neither for a float one"
        )
    operator = _operator(num_classes, box_coder, score_threshold, iou_threshold, max_detections)
    rows = len(anchors)

    @tf.function(
        input_signature=[
            tf.TensorSpec([1, rows, 4], tf.float32, "box_encodings"),
            tf.TensorSpec([1, rows, num_classes + 1], tf.float32, "class_logits"),
        ],
        autograph=False,
    )
    def detect(box_encodings, class_logits):
        if box_quantization is not None:
            box_encodings = _fake_quant(box_encodings, *box_quantization)
            class_logits = _fake_quant(class_logits, *logit_quantization)
            # Softmax does not see a common shift, but the converter does: straight after an int8
            # tensor it would choose the int8 softmax, whose scores have steps of 1/256.
            class_logits -= 256 * logit_quantization[0]
        scores = tf.nn.softmax(class_logits)
        outputs = operator(box_encodings, scores, tf.constant(anchors))
        return dict(zip(_OUTPUTS, outputs, strict=True))

    precision = "float32" if box_quantization is None else "int8"
    model = convert.convert_post_processing(
        tf.Module(), {"serving_default": detect}, precision=precision
    )
    inputs = gate.tensor_info(model, "serving_default").inputs
    wanted = {"box_encodings": box_quantization, "class_logits": logit_quantization}
    for name, quantization in wanted.items():
        scale, zero_point = (None, None) if quantization is None else quantization
        if (inputs[name].scale, inputs[name].zero_point) != (scale, zero_point):
            raise ValueError(
                f"the converter gave {name} scale {inputs[name].scale} and zero point "
                f"{inputs[name].zero_point}, not {scale} and {zero_point}: the pinned TensorFlow "
                "version computes them otherwise"
            )
    return model


def _check_arguments(
    anchors: np.ndarray,
    num_classes: int,
    box_coder: Mapping[str, float],
    score_threshold: float,
    iou_threshold: float,
) -> None:
    if anchors.ndim != 2 or anchors.shape[0] < 1 or anchors.shape[1] != 4:
        raise ValueError(f"anchors have shape {anchors.shape}, not [A, 4]")
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: at least 1 is needed")
    if set(box_coder) != {"y", "x", "height", "width"}:
        raise ValueError(f"box_coder has {sorted(box_coder)}, not y, x, height and width")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold {score_threshold} is not in [0, 1]")
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"iou_threshold {iou_threshold} is not in (0, 1]")


def _operator(
    num_classes: int,
    box_coder: Mapping[str, float],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
):
    """The custom op, as a function that the converter replaces by it.

    The zeros stand in for its results: their shapes become those of the graph's outputs.
    """
    import tensorflow as tf

    attributes = {
        # One class takes all places at most, so no result depends on a limit per class; the third
        # belongs to the fast, class-agnostic mode, and the op wants it all the same.
        "max_detections": f"i: {max_detections}",
        "detections_per_class": f"i: {max_detections}",
        "max_classes_per_detection": "i: 1",
        "use_regular_nms": "b: true",
        "nms_score_threshold": f"f: {score_threshold}",
        "nms_iou_threshold": f"f: {iou_threshold}",
        "y_scale": f"f: {box_coder['y']}",
        "x_scale": f"f: {box_coder['x']}",
        "h_scale": f"f: {box_coder['height']}",
        "w_scale": f"f: {box_coder['width']}",
        "num_classes": f"i: {num_classes}",
    }
    lines = [f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items()]

    @tf.function(
        experimental_implements=f'name: "{gate.POST_PROCESSING_OP}" ' + " ".join(lines),
        autograph=False,
    )
    def operator(box_encodings, scores, anchors):
        del box_encodings, scores, anchors
        places = [1, max_detections]
        return tf.zeros([*places, 4]), tf.zeros(places), tf.zeros(places), tf.zeros([1])

    return operator


def _fake_quant(x, scale: float, zero_point: int):
    import tensorflow as tf

    return tf.quantization.fake_quant_with_min_max_args(x, *fake_quant_range(scale, zero_point))


def fake_quant_range(scale: float, zero_point: int) -> tuple[float, float]:
    """The float32 range (min, max) from which the converter computes exactly this scale.

    The converter's scale is float32((max − min) / 255). With both ends rounded to float32 that is
    one unit in the last place off for one scale in sixty, so the ends' neighbours are tried too.
    The range may reach a few millionths of a step past zero where an end is zero.

    Raises:
      ValueError: if the scale is not a positive float32, the zero point not in [−128, 127], or no
        range near by gives the scale.
    """
    if not -128 <= zero_point <= 127:
        raise ValueError(f"zero point {zero_point} is not in [-128, 127]")
    if not scale > 0 or float(np.float32(scale)) != scale:
        raise ValueError(f"scale {scale!r} is not a positive float32: take it from the flatbuffer")
    steps = np.array([0, 1, -1, 2, -2], np.float32)
    lows, highs = (np.float32(scale * (level - zero_point)) for level in (-128, 127))
    unit = np.float32(64) * np.spacing(np.float32(scale))
    lows = lows + steps * np.spacing(lows) if lows else -unit * np.abs(steps)
    highs = highs + steps * np.spacing(highs) if highs else unit * np.abs(steps)
    for low in lows.tolist():
        for high in highs.tolist():
            if float(np.float32((high - low) / 255)) == scale:
                return low, high
    raise ValueError(f"no float32 range has scale {scale!r} and zero point {zero_point}")
