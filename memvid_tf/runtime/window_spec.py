"""The manifest's description of attention windows: all that a client of Patchwork has to copy."""

import dataclasses
import math

from memvid_tf.windows import Cell, StripLayout, Windows

Pair = tuple[int, int]
MAX_CELL_SIZE = 8192
# Of the tables that a runtime makes; frames of 384 px in four by four tiles have a tenth.
MAX_TABLE_ENTRIES = 2**26


@dataclasses.dataclass(frozen=True)
class CellSpec:
    """A feature map of [height, width, channels] that the body reads with a halo around the window:
    `rows` = [above, below] and `columns` = [left, right]. Of the full frame's map a client keeps
    the rows `kept_rows` and the columns `kept_columns`, counted from 0; no window reads others."""

    height: int
    width: int
    channels: int
    rows: Pair
    columns: Pair
    kept_rows: tuple[int, ...]
    kept_columns: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """How a frame is computed from one window of it (PW 3).

    The frame is cut into `slices` × `slices` equal tiles; a window has `adjacent` × `adjacent` of
    them. With P = slices - adjacent + 1, action a, of P² actions, is the window whose upper left
    tile is in row a // P and column a % P. In anything of height H, the frame or a map, the window
    starts at row (a // P)·H / slices and has h = H / slices·adjacent rows; the same for columns.
    Zero is the stored value of 0, which is a tensor's zero point.

    The first frame of a video goes whole through `calls.first`. `strips` is what the cells then
    keep: for each cell in order all `kept_rows`, [rows, width, channels], and all `kept_columns`,
    [height, columns, channels], one flat sequence of numbers. Each other output is a map of the
    full frame and the input of that name of the tail; the client keeps it too.

    Every other frame takes an action and `calls.step`:

      1. `image` is the window of the stored frame with `image_rows` = [above, below] and
         `image_columns` = [left, right] around it, zero outside the frame.
      2. `halo` is, for each cell in order, what lies above the window and below it,
         [rows, left + w + right, channels], then to its left and to its right, [h, columns,
         channels]; zero outside the frame, all in one flat sequence. Rows above and below are taken
         from the kept rows, their corners too, the others from the kept columns.
      3. `own` is, for each cell in order, its kept rows inside the window, [rows, w, channels] for
         each run of consecutive ones, and its kept columns inside the window, [h, columns,
         channels] for each run. They replace what was kept of these rows and columns there.
      4. Each other output replaces the window of the map of its name.
      5. The tail runs on the maps.

    Attributes:
      slices, adjacent: M and N.
      image_rows, image_columns: the halo of the window of the frame.
      chunk: numbers in a row of `strips`, `halo` and `own`; means nothing else.
      cells: in the order of the sequences.
      maps: names of the maps.
    """

    slices: int
    adjacent: int
    image_rows: Pair
    image_columns: Pair
    chunk: int
    cells: tuple[CellSpec, ...]
    maps: tuple[str, ...]

    def layout(self) -> StripLayout:
        """Where each number of the flat sequences belongs.

        Raises:
          ValueError: windows or cells that cannot be.
        """
        self._check_sizes()
        cells = [
            Cell(f"cell {number}", (c.height, c.width), c.channels, c.rows, c.columns)
            for number, c in enumerate(self.cells)
        ]
        windows = Windows(self.slices, self.adjacent)
        for cell in cells:
            windows.check(cell.name, cell.size)
        return StripLayout(cells, windows)


    def _check_sizes(self) -> None:
        """Refuses tables that would fill the memory, before they are made."""
        numbers = 0
        for number, cell in enumerate(self.cells):
            sides = (cell.height, cell.width, cell.channels)
            if not all(1 <= size <= MAX_CELL_SIZE for size in sides):
                raise ValueError(f"cell {number} has sizes {sides}, wanted 1 to {MAX_CELL_SIZE}")
            halo = (*cell.rows, *cell.columns)
            if not all(0 <= lines <= MAX_CELL_SIZE for lines in halo):
                raise ValueError(f"cell {number} has a halo of {halo}, wanted 0 to {MAX_CELL_SIZE}")
            padded = (cell.height + sum(cell.rows)) * (cell.width + sum(cell.columns))
            numbers += padded * cell.channels
        if not self.cells:
            raise ValueError("there are no cells, wanted one at least")
        chunks = numbers // math.gcd(*(cell.channels for cell in self.cells))
        entries = chunks * Windows(self.slices, self.adjacent).count
        if entries > MAX_TABLE_ENTRIES:
            raise ValueError(
                f"tables have up to {entries} entries, wanted at most {MAX_TABLE_ENTRIES}"
            )


def describe(layout: StripLayout, image_halo: list[Pair], maps: tuple[str, ...]) -> WindowSpec:
    """The description of a layout; `image_halo` is that of rows and that of columns."""
    cells = []
    for cell in layout.cells:
        rows, columns = layout.lines(cell, layout.windows.slices)
        shape = (*cell.size, cell.channels)
        cells.append(CellSpec(*shape, cell.rows, cell.columns, tuple(rows), tuple(columns)))
    windows = layout.windows
    return WindowSpec(
        windows.slices, windows.adjacent, *image_halo, layout.chunk, tuple(cells), maps
    )
