"""Attention windows and what a convolution inside one needs from outside (PW 3.1, 3.2). NumPy only.

A frame is cut into M × M equal tiles, and a window is a square of N × N adjacent tiles. A
convolution with SAME padding, computed on a window alone, also reads a halo of features around it:
`before` above and to the left, `after` below and to the right. With a frame of n positions, a
window of w, a kernel of K and a stride of s, the halo is

    before = the rows that SAME padding puts in front of the whole frame
    after  = (w / s - 1)·s + K - w - before  =  K - s - before

provided that s divides every offset of a window and w. Then s divides n too, and the halo is the
SAME padding of the frame itself, whatever the window: (1, 1) for K = 3 at stride 1, (0, 1) at
stride 2. The paper's symmetric halo of k = (K - 1) / 2 holds at stride 1 only.

Of a feature map, other windows can only ever read the lines along the borders of tiles: its strips.
`StripLayout` says where each of them is kept. The layers that are trained and the runtime share it.

Differs from the paper: asymmetric halos, and strips in place of whole memories (both exact).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Windows:
    """All attention windows (PW 3.1). Action a is the window in row `a // positions` and column
    `a % positions`.

    Attributes:
      slices: M, how many times each side of the frame is sliced.
      adjacent: N, how many adjacent slices form a side of a window.
    """

    slices: int
    adjacent: int

    def __post_init__(self):
        if not 1 <= self.adjacent <= self.slices:
            raise ValueError(
                f"windows of {self.adjacent} of {self.slices} slices: wanted 1 ≤ N ≤ M"
            )

    @property
    def positions(self) -> int:
        """Windows in a row or a column."""
        return self.slices - self.adjacent + 1

    @property
    def count(self) -> int:
        """Number of windows, which is the number of actions."""
        return self.positions**2

    def tile(self, action: int) -> Pair:
        """Row and column of the upper left tile of a window.

        Raises:
          ValueError: there is no such action.
        """
        if not 0 <= action < self.count:
            raise ValueError(f"action {action} is not one of 0 … {self.count - 1}")
        return divmod(action, self.positions)

    def size(self, side: int) -> int:
        """Side of a window in a map whose side is a multiple of `slices`."""
        return side // self.slices * self.adjacent

    def check(self, name: str, sides: Sequence[int], strides: int = 1) -> None:
        """Refuses a map that the windows do not fit.

        Args:
          name: of the layer that reads the map, for the message.
          sides: height and width of the map.
          strides: of the layer.

        Raises:
          ValueError: naming the layer and the first offset that its stride misses.
        """
        for side in sides:
            if side % self.slices:
                raise ValueError(
                    f"{name}: a side of {side} cannot be cut into {self.slices} equal slices"
                )
            step = side // self.slices
            starts = [i * step for i in range(1, self.positions)]
            for offset in starts + [self.size(side)]:
                if offset % strides:
                    what = "a window's offset" if offset in starts else "a window's size"
                    raise ValueError(
                        f"{name}: {what}, {offset} of {side}, is not a multiple of its stride "
                        f"{strides}; use a larger frame, fewer slices, or run it on the full frame"
                    )


def same_padding(side: int, kernel_size: int, strides: int) -> Pair:
    """TensorFlow's SAME padding in front of and behind `side` positions."""
    out = -(-side // strides)
    total = max((out - 1) * strides + kernel_size - side, 0)
    return total // 2, total - total // 2


@dataclasses.dataclass(frozen=True)
class Cell:
    """A feature map that convolutions inside a window read with a halo.

    Several convolutions that read one map share its cell, which has the largest of their halos.

    Attributes:
      name: of the first layer that reads the map.
      size: height and width of the map of the full frame.
      channels: of the map.
      rows: halo above and below a window.
      columns: halo to its left and right.
    """

    name: str
    size: Pair
    channels: int
    rows: Pair
    columns: Pair

    def parts(self, windows: Windows) -> list[Pair]:
        """Height and width of the parts of a halo, in order: above and below, both with their
        corners, then left and right."""
        height, width = map(windows.size, self.size)
        wide = width + sum(self.columns)
        return [
            (self.rows[0], wide),
            (self.rows[1], wide),
            (height, self.columns[0]),
            (height, self.columns[1]),
        ]


def border_lines(tile: int, tiles: int, halo: Pair) -> list[int]:
    """Lines (rows or columns) along the borders of `tiles` tiles, ascending.

    Args:
      tile: side of a tile.
      tiles: how many follow one another.
      halo: before and after. What lies before a window is the end of a tile, what lies after it
        the beginning of one.
    """
    before, after = min(halo[0], tile), min(halo[1], tile)
    inside = sorted({*range(after), *range(tile - before, tile)})
    return [t * tile + line for t in range(tiles) for line in inside]


def runs(lines: Sequence[int]) -> list[Pair]:
    """Maximal runs of consecutive lines: (first, how many)."""
    found: list[list[int]] = []
    for line in lines:
        if found and sum(found[-1]) == line:
            found[-1][1] += 1
        else:
            found.append([line, 1])
    return [(first, count) for first, count in found]


class StripLayout:
    """Where the strips of all cells are kept: one memory of chunks of `chunk` channels.

    The memory holds, cell after cell, the rows along the borders of tiles, [lines, W, C], and then
    the columns, [H, lines, C]. A step reads the halos of its window, cell after cell in the order
    of `Cell.parts`; outside the frame they are zero. It writes its own strips: of every cell the
    `runs` of rows, [lines, w, C] each, and then those of columns, [h, lines, C] each.

    Attributes:
      cells: the cells, in the order in which the network reads them.
      windows: the attention windows.
      chunk: channels of a chunk; every cell's number of channels is a multiple of it.
      memory, halo, own: sizes in chunks of the memory, of what a step reads and what it writes.
      read: [actions, halo] int32, the chunk of the memory that each chunk of the halo is; `memory`
        where it is outside the frame.
      readers: [actions, memory] int32, the same from the other end: the chunk of the halo that each
        chunk of the memory becomes, and `halo` where it is not read.
      places: [actions, own] int32, the chunk of the memory that each chunk written is.
      write: [actions, memory] int32, the same from the other end, where each chunk of the next
        memory comes from: below `own` the window's own strips, and `own` plus its place in the
        memory where it stays.
    """

    def __init__(self, cells: Sequence[Cell], windows: Windows):
        self.cells, self.windows = tuple(cells), windows
        self.chunk = math.gcd(*(cell.channels for cell in cells))
        blocks = [_Block(cell, windows, cell.channels // self.chunk) for cell in cells]
        self.memory = sum(block.memory for block in blocks)
        base, reads, owns = 0, [], []
        for block in blocks:
            actions = [windows.tile(action) for action in range(windows.count)]
            reads.append([block.read(tile, base, self.memory) for tile in actions])
            owns.append([block.own(tile, base) for tile in actions])
            base += block.memory
        self.read = np.concatenate(reads, 1).astype(np.int32)
        self.places = np.concatenate(owns, 1).astype(np.int32)
        self.halo, self.own = self.read.shape[1], self.places.shape[1]
        # One column more takes what is outside the frame.
        self.readers = np.full([windows.count, self.memory + 1], self.halo, np.int32)
        np.put_along_axis(self.readers, self.read, np.arange(self.halo, dtype=np.int32)[None], 1)
        self.readers = self.readers[:, :-1]
        stays = self.own + np.arange(self.memory)
        self.write = np.tile(stays, (windows.count, 1)).astype(np.int32)
        np.put_along_axis(self.write, self.places, np.arange(self.own, dtype=np.int32)[None], 1)

    def lines(self, cell: Cell, tiles: int) -> tuple[list[int], list[int]]:
        """Rows and columns of a cell that are kept, counted from the corner of `tiles` tiles."""
        return _lines(cell, self.windows, tiles)


def _lines(cell: Cell, windows: Windows, tiles: int) -> tuple[list[int], list[int]]:
    if windows.positions == 1:
        return [], []  # there is no other window that could read them
    return tuple(
        border_lines(side // windows.slices, tiles, halo)
        for side, halo in zip(cell.size, (cell.rows, cell.columns))
    )


class _Block:
    """The part of the memory that belongs to one cell; counts chunks from the block's start."""

    def __init__(self, cell: Cell, windows: Windows, chunks: int):
        self._cell, self._windows = cell, windows
        height, width = cell.size
        rows, columns = _lines(cell, windows, windows.slices)
        shapes = (len(rows), width, chunks), (height, len(columns), chunks)
        split = math.prod(shapes[0])
        self.memory = split + math.prod(shapes[1])
        places = np.arange(self.memory)
        self._rows = places[:split].reshape(shapes[0])
        self._columns = places[split:].reshape(shapes[1])
        # The same by position in the frame, which is padded by the halo; -1 is not kept.
        padded = (height + sum(cell.rows), width + sum(cell.columns), chunks)
        self._by_row, self._by_column = np.full(padded, -1), np.full(padded, -1)
        top, left = cell.rows[0], cell.columns[0]
        self._by_row[[top + y for y in rows], left : left + width] = self._rows
        self._by_column[top : top + height, [left + x for x in columns]] = self._columns

    def read(self, tile: Pair, base: int, outside: int) -> np.ndarray:
        """Chunks of the memory, the halo of the window at a tile; 1-D."""
        (above, below, left, right), (y, x) = self._cell.parts(self._windows), self._offset(tile)
        height, width = left[0], above[1] - left[1] - right[1]
        parts = [
            self._by_row[y:, x:][: above[0], : above[1]],
            self._by_row[y + above[0] + height :, x:][: below[0], : below[1]],
            self._by_column[y + above[0] :, x:][: left[0], : left[1]],
            self._by_column[y + above[0] :, x + left[1] + width :][: right[0], : right[1]],
        ]
        flat = np.concatenate([part.reshape(-1) for part in parts])
        return np.where(flat < 0, outside, base + flat)

    def own(self, tile: Pair, base: int) -> np.ndarray:
        """Chunks of the memory that the window at a tile writes, in its order; 1-D."""
        cell, windows, (y, x) = self._cell, self._windows, self._offset(tile)
        height, width = map(windows.size, cell.size)
        rows, columns = _lines(cell, windows, windows.adjacent)
        # As many lines are kept in front of a window as in as many tiles.
        before = [len(lines) // windows.adjacent * t for lines, t in zip((rows, columns), tile)]
        parts = [self._rows[before[0] :, x : x + width][: len(rows)].reshape(-1)]
        taken = before[1]
        for _, count in runs(columns):
            parts.append(self._columns[y : y + height, taken : taken + count].reshape(-1))
            taken += count
        return base + np.concatenate(parts)

    def _offset(self, tile: Pair) -> Pair:
        return tuple(t * (side // self._windows.slices) for t, side in zip(tile, self._cell.size))
