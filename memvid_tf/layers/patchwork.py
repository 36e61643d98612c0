"""The Patchwork cell (PW 3.2): the context that a window of the frame lacks.

It replaces SAME padding: what a convolution inside the window reads outside of it are features that
earlier windows left there. With X the features of the window at the action a, and S the memory,

    S_t = S_{t-1} with X_t written at a          state update
    X̂_t = S_t around a, with a halo             feature propagation; zeros outside the frame
    Y_t = VALID convolution of X̂_t

Two forms share the weights of the plain convolution, because neither has any: both are functions
that a layer calls for its halo (`Conv.call`, `surround`).

  * `FullMemory` is the paper's equations, with a memory of the size of each map.
  * `Strips` is what is trained and exported. X̂_t is X_t inside the window, so only its halo has to
    be remembered, and that lies along borders of tiles (`memvid_tf.windows`). Reading all halos
    before the network runs and writing all strips after it leaves one convolutional body.

`FullFrame` is the step that sees everything (M = N = 1). It is the plain network, and fills either
memory.

Differs from the paper: the first convolution reads the frame, which is at hand around the window
too, so its halo comes from this frame and not from a memory. Convolutions that read one tensor
share one memory.
"""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from memvid_tf.windows import Cell, StripLayout, Windows, runs, same_padding


class Convolution(Protocol):
    """What a cell asks of the layer that it serves."""

    kernel_size: int
    strides: int


def paddings(layer: Convolution, size: Sequence[int]) -> list[tuple[int, int]]:
    """Halo (before, after) of a layer, of rows and of columns, on a map of the full frame."""
    return [same_padding(side, layer.kernel_size, layer.strides) for side in size]


def write_window(memory, x, offset):
    """State update: overwrites a window of each example's memory.

    Args:
      memory: [B, H, W, C].
      x: [B, h, w, C], the features of the window.
      offset: [B, 2] int32, row and column of the window in the memory.

    Returns:
      [B, H, W, C].
    """
    inside = []
    for axis in (1, 2):
        side = x.shape[axis]
        place = tf.range(memory.shape[axis])[tf.newaxis] - _column(offset, axis - 1)
        inside.append((place >= 0) & (place < side))
        x = tf.gather(x, tf.clip_by_value(place, 0, side - 1), axis=axis, batch_dims=1)
    mask = inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis]
    return tf.where(mask[..., tf.newaxis], x, memory)


def read_window(memory, offset, size, halos):
    """Feature propagation: a window of each example's memory with its halo.

    Args:
      memory: [B, H, W, C].
      offset: [B, 2] int32, row and column of the window.
      size: height and width of the window.
      halos: (before, after) of rows and of columns.

    Returns:
      [B, h + before + after, w + before + after, C]; zeros outside the memory.
    """
    x = tf.pad(memory, [(0, 0), *halos, (0, 0)])
    for axis, (side, halo) in enumerate(zip(size, halos), 1):
        lines = _column(offset, axis - 1) + tf.range(side + sum(halo))[tf.newaxis]
        x = tf.gather(x, lines, axis=axis, batch_dims=1)
    return x


def _column(offset, axis: int):
    """[B, 1] of [B, 2]. Not in one slice: TensorFlow's optimizer loses the new axis of a slice of
    stacked tensors of unknown batch."""
    return tf.expand_dims(offset[:, axis], 1)


class _Surround:
    """Numbers the tensors that convolutions read, in order; 0 is the frame.

    Attributes:
      tensors: those tensors but the frame, without halos: one a cell.
    """

    def __init__(self):
        self._numbers = {}
        self.tensors = []

    def _cell(self, x) -> int:
        """Number of the cell that holds a tensor; -1 for the frame."""
        number = self._numbers.setdefault(x.ref(), len(self._numbers) - 1)
        if number == len(self.tensors):
            self.tensors.append(x)
        return number


class FullFrame(_Surround):
    """`surround` for a step that sees the full frame: zeros, which is SAME padding.

    Attributes:
      readers: for each cell, the layers that read it.
    """

    def __init__(self):
        super().__init__()
        self.readers = []

    def __call__(self, x, layer: Convolution):
        number = self._cell(x)
        if number == len(self.readers):
            self.readers.append([])
        if number >= 0:
            self.readers[number].append(layer)
        return tf.pad(x, [(0, 0), *paddings(layer, x.shape[1:3]), (0, 0)])

    def cells(self, windows: Windows) -> list[Cell]:
        """The cells that windows of this network need.

        Raises:
          ValueError: windows that the strides of a layer miss, naming layer and offset.
        """
        cells = []
        for x, layers in zip(self.tensors, self.readers):
            size = tuple(x.shape[1:3])
            for layer in layers:
                windows.check(layer_name(layer), size, layer.strides)
            halos = [paddings(layer, size) for layer in layers]
            rows, columns = (
                (max(halo[axis][0] for halo in halos), max(halo[axis][1] for halo in halos))
                for axis in (0, 1)
            )
            cells.append(Cell(layer_name(layers[0]), size, x.shape[-1], rows, columns))
        return cells


def layer_name(layer) -> str:
    """Path of a layer within its network, such as "backbone/stage_1_block_0/depthwise"."""
    return layer.kernel.name.rsplit("/", 1)[0]


class _Windowed(_Surround):
    """What both forms share: a halo that several convolutions may use a part of."""

    def __init__(self, cells: Sequence[Cell]):
        super().__init__()
        self._cells = cells
        self._surrounded = []

    def __call__(self, x, layer: Convolution):
        number = self._cell(x)
        if number < 0:
            return x  # the caller cut the window from the frame, with its halo
        if number >= len(self._cells):
            raise ValueError(
                f"{layer_name(layer)} reads a tensor beyond the {len(self._cells)} cells known"
            )
        if number == len(self._surrounded):
            self._surrounded.append(self._with_halo(number, x))
        cell, y = self._cells[number], self._surrounded[number]
        wanted = paddings(layer, cell.size)
        if wanted == [cell.rows, cell.columns]:
            return y
        # Another layer needs a larger halo of this tensor; leave its lines out.
        (top, bottom), (left, right) = (
            (have[0] - want[0], side - have[1] + want[1])
            for have, want, side in zip((cell.rows, cell.columns), wanted, y.shape[1:3])
        )
        return y[:, top:bottom, left:right]

    def _with_halo(self, number: int, x):
        raise NotImplementedError


class FullMemory(_Windowed):
    """`surround` by the paper's equations.

    Args:
      cells: of the network.
      windows: the attention windows.
      memories: for each cell, [B, H, W, C].
      action: [B] int32.

    Attributes:
      memories: after the network ran, the next memories.
    """

    def __init__(self, cells: Sequence[Cell], windows: Windows, memories: Sequence, action):
        super().__init__(cells)
        self._windows, self._action = windows, action
        self.memories = list(memories)

    def _with_halo(self, number, x):
        cell = self._cells[number]
        offset = offsets(self._windows, self._action, cell.size)
        self.memories[number] = write_window(self.memories[number], x, offset)
        return read_window(self.memories[number], offset, x.shape[1:3], (cell.rows, cell.columns))


class Strips(_Windowed):
    """`surround` by halos that were read before the network runs.

    Args:
      layout: of the strips.
      halo: [B, layout.halo, layout.chunk], what the window reads of the memory.
    """

    def __init__(self, layout: StripLayout, halo):
        super().__init__(layout.cells)
        self._layout, self._halo, self._start = layout, halo, 0

    def _with_halo(self, number, x):
        cell, layout = self._layout.cells[number], self._layout
        batch = -1 if x.shape[0] is None else x.shape[0]
        parts = []
        for height, width in cell.parts(layout.windows):
            size = height * width * cell.channels // layout.chunk
            if size == 0:
                parts.append([])
                continue
            part = tf.slice(self._halo, [0, self._start, 0], [batch, size, layout.chunk])
            parts.append([tf.reshape(part, [batch, height, width, cell.channels])])
            self._start += size
        above, below, left, right = parts
        return _joined([*above, _joined([*left, x, *right], 2), *below], 1)

    def own(self):
        """The window's own strips, after the network ran: [B, layout.own, layout.chunk]."""
        layout = self._layout
        pieces = []
        for x, cell in zip(self.tensors, layout.cells, strict=True):
            rows, columns = layout.lines(cell, layout.windows.adjacent)
            pieces += [_lines(x, 1, *run) for run in runs(rows)]
            pieces += [_lines(x, 2, *run) for run in runs(columns)]
        if not pieces:
            return tf.zeros_like(self._halo[:, :0])
        return _nested([_chunked(piece, layout.chunk) for piece in pieces], 1)


def full_strips(tensors: Sequence, layout: StripLayout):
    """The memory after a step that saw the full frame.

    Args:
      tensors: for each cell [B, H, W, C], `FullFrame.tensors`.
      layout: of the strips.

    Returns:
      [B, layout.memory, layout.chunk].
    """
    pieces = []
    for x, cell in zip(tensors, layout.cells, strict=True):
        for axis, lines in enumerate(layout.lines(cell, layout.windows.slices), 1):
            if lines:  # slices and not a gather, which XNNPACK does not know
                kept = [_lines(x, axis, *run) for run in runs(lines)]
                pieces.append(_chunked(_nested(kept, axis), layout.chunk))
    if not pieces:
        return tf.zeros([tf.shape(tensors[0])[0], 0, layout.chunk])
    return _nested(pieces, 1)


def read_strips(strips, action, layout: StripLayout):
    """The halos of a window: [B, layout.halo, layout.chunk] of the memory, zeros outside the frame.

    Args:
      strips: [B, layout.memory, layout.chunk].
      action: [B] int32.
      layout: of the strips.
    """
    read, readers = (tf.gather(table, action) for table in (layout.read, layout.readers))

    # No chunk is read twice: the gradient is a copy as well, where TensorFlow would add it up.
    @tf.custom_gradient
    def halo(strips):
        return _taken(_and_zero(strips), read), lambda up: _taken(_and_zero(up), readers)

    return halo(strips)


def write_strips(strips, own, action, layout: StripLayout):
    """The next memory. own: [B, layout.own, layout.chunk]; the others as in `read_strips`."""
    write, places = (tf.gather(table, action) for table in (layout.write, layout.places))

    # As in `read_strips`: no chunk is written twice.
    @tf.custom_gradient
    def memory(strips, own):
        def gradient(up):
            stays = tf.cast(write >= layout.own, up.dtype)[..., tf.newaxis]
            return up * stays, _taken(up, places)

        return _taken(tf.concat([own, strips], 1), write), gradient

    return memory(strips, own)


def _taken(chunks, places):
    """Of each example the chunks at some places: [B, n, chunk] and [B, k] to [B, k, chunk]."""
    return tf.gather(chunks, places, axis=1, batch_dims=1)


def _and_zero(chunks):
    """A chunk of zeros behind the others."""
    return tf.pad(chunks, [(0, 0), (0, 1), (0, 0)])


def offsets(windows: Windows, action, size: Sequence[int]):
    """[B, 2] int32: row and column of the windows of [B] actions in a map of `size`."""
    tiles = [action // windows.positions, action % windows.positions]
    return tf.stack([t * (side // windows.slices) for t, side in zip(tiles, size)], -1)


def _lines(x, axis: int, first: int, count: int):
    """`count` rows (axis 1) or columns (axis 2) of [B, H, W, C]."""
    begin, size = [0] * 4, [-1 if side is None else side for side in x.shape]
    begin[axis], size[axis] = first, count
    return tf.slice(x, begin, size)


def _chunked(x, chunk: int):
    """[B, h, w, C] to [B, h·w·C / chunk, chunk]."""
    batch = -1 if x.shape[0] is None else x.shape[0]
    return tf.reshape(x, [batch, x.shape[1:].num_elements() // chunk, chunk])


def _joined(tensors: Sequence, axis: int):
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis)


def _nested(tensors: Sequence, axis: int):
    """Concatenation, four at a time: XNNPACK takes at most five inputs."""
    while len(tensors) > 1:
        tensors = [_joined(tensors[i : i + 4], axis) for i in range(0, len(tensors), 4)]
    return tensors[0]
