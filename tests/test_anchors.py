"""Anchors against loops over maps, rows, columns and shapes."""

import numpy as np
import pytest
import reference

from memvid_tf.detection.anchors import AnchorSpec, make_anchors

MAPS = [(5, 4), (3, 2), (2, 1)]  # not square, to tell rows from columns


@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize("reduce_lowest", [True, False])
@pytest.mark.parametrize("ratios", [(1.0, 0.5, 2.0), (0.3, 1.7), (1.0,)])
def test_anchors_equal_the_loops(ratios, reduce_lowest, interpolated):
    spec = AnchorSpec(0.15, 0.85, ratios, interpolated, reduce_lowest)
    expected = reference.anchors(MAPS, 0.15, 0.85, ratios, interpolated, reduce_lowest)
    anchors = make_anchors(MAPS, spec)
    assert anchors.dtype == np.float32
    np.testing.assert_allclose(anchors, expected, rtol=1e-6)


def test_one_map_alone_has_the_least_scale():
    anchors = make_anchors([(1, 1)], AnchorSpec())
    # 1·.2 square, area .04 at width : height of 1 : 2 and 2 : 1, then √(.2 · 1).
    root = 2**0.5
    expected = [[0.2, 0.2], [0.2 * root, 0.2 / root], [0.2 / root, 0.2 * root], [0.2**0.5] * 2]
    np.testing.assert_allclose(anchors[:, 2:], expected, rtol=1e-6)
    np.testing.assert_array_equal(anchors[:, :2], np.full([4, 2], 0.5))


def test_anchors_of_the_paper():
    """LFS 3.1 at 320 pixels: maps 10, 5, 3, 2, 1 with four anchors, scales .2 to .95."""
    sizes = [(n, n) for n in (10, 5, 3, 2, 1)]
    anchors = make_anchors(sizes, AnchorSpec())
    assert len(anchors) == 4 * (100 + 25 + 9 + 4 + 1)
    squares = anchors[np.isclose(anchors[:, 2], anchors[:, 3])]
    scales = [0.2, 0.3875, 0.575, 0.7625, 0.95, 1.0]
    middles = [(a * b) ** 0.5 for a, b in zip(scales, scales[1:])]
    sides = np.unique(squares[:, 2].round(5))
    np.testing.assert_allclose(sides, sorted(scales[:5] + middles), atol=1e-5)
    reduced = make_anchors(sizes, AnchorSpec(reduce_lowest=True))
    assert len(reduced) == len(anchors) - 100
    np.testing.assert_array_equal(reduced[300:], anchors[400:])


def test_shapes_are_those_of_the_anchors_of_a_cell():
    spec = AnchorSpec(reduce_lowest=True)
    shapes = spec.shapes(3)
    assert [len(s) for s in shapes] == [3, 4, 4]
    anchors = make_anchors(MAPS, spec)
    np.testing.assert_allclose(anchors[:3, 2:], shapes[0], rtol=1e-6)
    np.testing.assert_allclose(anchors[-4:, 2:], shapes[2], rtol=1e-6)
