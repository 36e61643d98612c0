"""The head against loops over maps, cells and anchors."""

import numpy as np
import pytest
import reference
import tensorflow as tf

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.detection.anchors import AnchorSpec, make_anchors
from memvid_tf.layers.conv import BatchNorm
from memvid_tf.layers.fake_quant import Scheme
from memvid_tf.models.ssdlite import SSDLite, map_sizes

CLASSES, DEPTH = 3, 6
MAP = (5, 4)
EPSILON = 1e-3
FLOAT = dict(rtol=1e-4, atol=5e-5)  # five layers of float32 sums


def features(seed, batch=2):
    random = np.random.default_rng(seed)
    return random.uniform(0, 3, [batch, *MAP, 7]).astype(np.float32)


def head(anchors, seed=0, scheme=None):
    layer = SSDLite(anchors, CLASSES, DEPTH, BatchNorm(0.9, EPSILON), scheme)
    layer(tf.constant(features(0)))
    reference.randomise(layer.variables, np.random.default_rng(seed))
    return layer


def apply(conv, x):
    """One of our convolutions in inference, with batch normalisation if it has one."""
    kernel = conv.kernel.numpy().astype(float)
    if kernel.shape[-1] == 1 and conv.filters != 1:
        y = reference.depthwise(x, kernel[..., 0], conv.strides)
    else:
        y = reference.conv(x, kernel, conv.strides)
    if conv.norm is None:
        y = y + conv.bias.numpy()
    else:
        statistics = (conv.mean, conv.variance, conv.scale, conv.bias)
        y = reference.batch_norm(y, *(v.numpy() for v in statistics), EPSILON)
    return reference.relu6(y) if conv.activation else y


def expected_predictions(layer, x, counts):
    maps = [apply(layer.project, x)]
    for extra in layer.extras:
        inside = apply(extra.depthwise, apply(extra.reduce, maps[-1]))
        maps.append(apply(extra.expand, inside))
    results = []
    for predictors, outputs in ((layer.box_predictors, 4), (layer.class_predictors, 1 + CLASSES)):
        rows = []
        for count, m in zip(counts, maps):
            p = predictors[str(count)]
            y = apply(p.pointwise, apply(p.depthwise, m))
            for i in range(y.shape[1]):
                for j in range(y.shape[2]):
                    for a in range(count):
                        rows.append(y[:, i, j, a * outputs : (a + 1) * outputs])
        results.append(np.stack(rows, 1))
    return results


@pytest.mark.parametrize("counts", [(4, 4, 4), (3, 4, 4), (3, 4, 3), (2,)])
def test_predictions_equal_the_loops(counts):
    layer, x = head(counts), features(1)
    boxes, logits = expected_predictions(layer, x, counts)
    out = layer(tf.constant(x))
    assert list(out) == ["box_encodings", "class_logits"]
    np.testing.assert_allclose(out["box_encodings"], boxes, **FLOAT)
    np.testing.assert_allclose(out["class_logits"], logits, **FLOAT)


@pytest.mark.parametrize("reduce_lowest", [True, False])
def test_the_order_of_predictions_is_the_order_of_anchors(reduce_lowest):
    """A prediction made to know where and what it is must agree with its anchor."""
    spec = AnchorSpec(reduce_lowest=reduce_lowest)
    sizes = map_sizes(*MAP, 3)
    anchors = make_anchors(sizes, spec)
    shapes = spec.shapes(3)
    layer = head([len(s) for s in shapes])

    # Feature 0 and 1 of every map are made the centre of the cell, in the unit of the frame.
    def centers(height, width):
        y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        cells = np.stack(np.meshgrid(y, x, indexing="ij"), -1)
        return np.concatenate([cells, np.zeros([height, width, DEPTH - 2])], -1)

    maps = [tf.constant(centers(*size)[None], tf.float32) for size in sizes]
    for predictor in layer.box_predictors.values():
        # The window passes its middle on, and two numbers an anchor copy the centre; the other two
        # are the bias, in which each anchor finds its number.
        kernel = np.zeros(predictor.depthwise.kernel.shape)
        kernel[1, 1] = 1.0
        predictor.depthwise.kernel.assign(kernel)
        predictor.depthwise.bias.assign(tf.zeros_like(predictor.depthwise.bias))
        count = predictor.pointwise.filters // 4
        kernel, bias = np.zeros([1, 1, DEPTH, count, 4]), np.zeros([count, 4])
        kernel[0, 0, 0, :, 0] = kernel[0, 0, 1, :, 1] = 1.0
        bias[:, 2] = np.arange(count)
        predictor.pointwise.kernel.assign(kernel.reshape(1, 1, DEPTH, -1))
        predictor.pointwise.bias.assign(bias.reshape(-1))

    rows = layer.predict(maps)["box_encodings"][0].numpy()
    assert rows.shape == anchors.shape
    np.testing.assert_allclose(rows[:, :2], anchors[:, :2], atol=1e-6)
    start = 0
    for (height, width), of_cell in zip(sizes, shapes):
        end = start + height * width * len(of_cell)
        numbers = rows[start:end, 2].astype(int)
        np.testing.assert_allclose(anchors[start:end, 2:], np.array(of_cell)[numbers], rtol=1e-6)
        start = end
    assert start == len(rows)


def test_maps_with_equally_many_anchors_share_predictors():
    assert {*head((3, 4, 4)).class_predictors} == {"3", "4"}
    assert {*head((4, 4, 4)).class_predictors} == {"4"}
    one, many = head((4,)), head((4, 4, 4))
    predictors = [layer.class_predictors["4"].variables for layer in (one, many)]
    assert len(predictors[0]) == len(predictors[1]) == 4


def test_nothing_but_the_maps_below_depends_on_an_extra_map():
    layer, x = head((4, 4, 4)), tf.constant(features(2))
    before = layer(x)["class_logits"].numpy()
    last = layer.extras[-1].expand
    last.bias.assign_add(tf.ones_like(last.bias))
    changed = np.abs(layer(x)["class_logits"] - before).max((0, 2)) > 0
    counts = [4 * h * w for h, w in map_sizes(*MAP, 3)]
    np.testing.assert_array_equal(changed, np.repeat([False, False, True], counts))


def test_a_fresh_head_takes_one_anchor_in_a_hundred_for_an_object():
    layer = SSDLite((3, 4), CLASSES, DEPTH, BatchNorm())
    logits = layer(tf.zeros([1, *MAP, 7]))["class_logits"].numpy()
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = [0.99] + [0.01 / CLASSES] * CLASSES
    np.testing.assert_allclose(scores, np.broadcast_to(expected, scores.shape), rtol=1e-4)


def test_boxes_and_classes_have_one_range_each_over_all_maps():
    layer = head((3, 4, 4), scheme=Scheme())
    layer(tf.constant(features(3)), training=True)
    ranges = {}
    for name, predictors in (("boxes", layer.box_predictors), ("classes", layer.class_predictors)):
        shared = [p.pointwise.output_range for p in predictors.values()]
        assert all(layer is shared[0] for layer in shared)
        ranges[name] = shared[0]
    low, high = ([float(v) for v in r.ranges.values()] for r in ranges.values())
    assert low != high
    out = layer(tf.constant(features(3)))
    for key, (low, high) in zip(("box_encodings", "class_logits"), (low, high)):
        # Every prediction lies on the one grid.
        np.testing.assert_allclose(
            out[key], reference.fake_quant(out[key], low, high), atol=1e-4 * (high - low) / 255
        )
        assert len(np.unique(out[key])) > 30


@pytest.mark.parametrize("batch", [None, 3])
def test_a_graph_takes_any_batch_and_keeps_the_number_of_anchors(batch):
    layer = head((3, 4))
    graph = tf.function(layer, [tf.TensorSpec([batch, *MAP, 7])])
    outputs = graph.get_concrete_function().structured_outputs
    assert outputs["box_encodings"].shape == [batch, 3 * 20 + 4 * 6, 4]
    x = tf.constant(features(4, 3))
    for name, value in layer(x).items():
        np.testing.assert_allclose(graph(x)[name], value, **FLOAT)


@pytest.mark.parametrize(
    "size, maps, expected",
    [
        ((10, 10), 5, [(10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]),  # LFS 3.1
        ((7, 4), 4, [(7, 4), (4, 2), (2, 1), (1, 1)]),
        ((1, 1), 1, [(1, 1)]),
    ],
)
def test_map_sizes_halve_and_round_up(size, maps, expected):
    assert map_sizes(*size, maps) == expected


def test_map_sizes_are_those_of_the_network():
    layer = head((4, 4, 4, 4))
    maps = layer.feature_maps(tf.constant(features(5)))
    assert [tuple(m.shape[1:3]) for m in maps] == map_sizes(*MAP, 4)


def test_more_maps_than_halvings_are_refused():
    with pytest.raises(ValueError, match="5 feature maps do not fit a 5×4 map"):
        map_sizes(5, 4, 5)
