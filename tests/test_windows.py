"""Window geometry: which windows there are, which halo they need, where strips are kept."""

import numpy as np
import pytest

from memvid_tf.windows import Cell, StripLayout, Windows, runs, same_padding

ALL = [(1, 1), (2, 1), (4, 2), (4, 1), (3, 2), (5, 3), (4, 4)]


def test_the_windows_of_the_paper():
    """PW 3.1: 4 windows, 9 and 16, by their corners as shares of the frame."""
    rows = (((2, 1), 1 / 2, 2), ((4, 2), 1 / 4, 3), ((4, 1), 1 / 4, 4))
    for (slices, adjacent), step, count in rows:
        windows = Windows(slices, adjacent)
        corners = [tuple(t / slices for t in windows.tile(a)) for a in range(windows.count)]
        assert corners == [(i * step, j * step) for i in range(count) for j in range(count)]
        assert windows.size(384) == {(2, 1): 192, (4, 2): 192, (4, 1): 96}[slices, adjacent]


@pytest.mark.parametrize("slices, adjacent", [(0, 0), (2, 0), (2, 3), (-1, -1)])
def test_windows_that_are_none_are_refused(slices, adjacent):
    with pytest.raises(ValueError, match=f"windows of {adjacent} of {slices} slices"):
        Windows(slices, adjacent)
    with pytest.raises(ValueError, match="action 9 is not one of 0 … 8"):
        Windows(4, 2).tile(9)


@pytest.mark.parametrize(
    "side, kernel, strides, expected",
    # TensorFlow's rule, by hand: the odd one goes behind.
    [
        (12, 3, 1, (1, 1)),
        (12, 3, 2, (0, 1)),
        (12, 5, 2, (1, 2)),
        (12, 7, 2, (2, 3)),
        (11, 3, 2, (1, 1)),
    ],
)
def test_the_halo_of_the_table(side, kernel, strides, expected):
    assert same_padding(side, kernel, strides) == expected


def test_a_misaligned_layer_is_named_with_its_offset():
    Windows(4, 1).check("head", (16, 24), 2)
    with pytest.raises(ValueError, match="head: a window's offset, 3 of 12, .* stride 2"):
        Windows(4, 2).check("head", (16, 12), 2)
    with pytest.raises(ValueError, match="head: a side of 10 cannot be cut into 4"):
        Windows(4, 1).check("head", (10, 16), 1)
    with pytest.raises(ValueError, match="head: a window's offset, 4 of 16, .* stride 8"):
        Windows(4, 3).check("head", (16, 16), 8)
    with pytest.raises(ValueError, match="head: a window's size, 9 of 9, .* stride 2"):
        Windows(1, 1).check("head", (9, 9), 2)


def test_runs():
    assert runs([0, 1, 4, 7, 8, 9]) == [(0, 2), (4, 1), (7, 3)]
    assert runs([]) == []


CELLS = (
    Cell("a", (60, 120), 6, (1, 1), (0, 1)),
    Cell("b", (60, 60), 4, (0, 1), (2, 3)),
    Cell("wide", (60, 60), 2, (13, 1), (0, 0)),  # across a whole tile where M is 5
    Cell("one side", (120, 60), 8, (0, 0), (1, 0)),
)


def frame_strips(layout, frames, zero):
    """The memory of `StripLayout`'s docstring, cut from maps of the full frame."""
    parts = []
    for cell, x in zip(layout.cells, frames):
        rows, columns = layout.lines(cell, layout.windows.slices)
        parts += [x[rows].reshape(-1), x[:, columns].reshape(-1)]
    memory = np.concatenate(parts).reshape(-1, layout.chunk)
    assert len(memory) == layout.memory
    return np.concatenate([memory, np.full([1, layout.chunk], zero)])


@pytest.mark.parametrize("slices, adjacent", ALL)
def test_every_window_finds_its_halo_and_leaves_its_strips(slices, adjacent):
    """Against slices of the maps themselves; each value is the place where it lives."""
    windows = Windows(slices, adjacent)
    layout = StripLayout(CELLS, windows)
    assert layout.chunk == 2
    frames, start = [], 0
    for cell in CELLS:
        shape = (*cell.size, cell.channels)
        frames.append(start + np.arange(np.prod(shape)).reshape(shape))
        start += frames[-1].size
    memory = frame_strips(layout, frames, -1)
    for action in range(windows.count):
        i, j = windows.tile(action)
        halo, own = [], []
        for cell, x in zip(CELLS, frames):
            (top, bottom), (left, right) = cell.rows, cell.columns
            padded = np.pad(x, [cell.rows, cell.columns, (0, 0)], constant_values=-1)
            h, w = map(windows.size, cell.size)
            y0, x0 = i * cell.size[0] // slices, j * cell.size[1] // slices
            around = padded[y0 : y0 + top + h + bottom, x0 : x0 + left + w + right]
            halo += [around[:top], around[top + h :]]
            halo += [around[top : top + h, :left], around[top : top + h, left + w :]]
            inside = x[y0 : y0 + h, x0 : x0 + w]
            rows, columns = layout.lines(cell, adjacent)
            own += [inside[rows]] + [inside[:, s : s + n] for s, n in runs(columns)]
        halo, own = (np.concatenate([p.reshape(-1) for p in parts]) for parts in (halo, own))
        np.testing.assert_array_equal(memory[layout.read[action]].reshape(-1), halo)
        assert len(own) == layout.own * layout.chunk
        # Written into an empty memory, the strips are where the full frame has them.
        both = np.concatenate([own.reshape(-1, 2), np.full([layout.memory, 2], -1)])
        written = both[layout.write[action]]
        changed = (written >= 0).any(1)
        assert changed.sum() == layout.own
        np.testing.assert_array_equal(written[changed], memory[:-1][changed])


def test_a_single_window_keeps_nothing():
    layout = StripLayout(CELLS, Windows(3, 3))
    assert layout.memory == layout.own == 0 and layout.halo > 0
