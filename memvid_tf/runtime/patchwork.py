"""Patchwork (PW 3) from a bundle: a window of each frame, and predictions for all of it.

The graphs hold no state. Between them lies copying, which the manifest's `windows` describes: the
halos of the window's cells are read from their strips, the window's own strips and maps are written
back.
"""

import dataclasses

import numpy as np

from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import load_graph
from memvid_tf.runtime.manifest import TensorSpec
from memvid_tf.runtime.preprocess import whole_frame
from memvid_tf.windows import StripLayout


@dataclasses.dataclass
class Memory:
    """What is remembered of a video; a step changes it in place.

    Attributes:
      strips: [chunks + 1, chunk] as stored; the last row is zero, which lies outside the frame.
      maps: the body's outputs for the full frame, [1, h, w, C] as stored, by name.
      ages_frames: [slices, slices] int32, how many frames ago each tile was in a window.
    """

    strips: np.ndarray
    maps: dict[str, np.ndarray]
    ages_frames: np.ndarray


class PatchworkNetwork:
    """Graphs of one bundle, for one thread.

    Attributes:
      bundle: the bundle.
      prepare: see `preprocess.whole_frame`.
      layout: where strips are kept.
      windows: the actions.
      outputs: names of the tail's outputs.
      body_ms, tail_ms: wall time of the latest invoke of each.
    """

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        """Loads body and tail.

        Raises:
          BundleError: another system, or a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        bundle.require_system("patchwork")
        self.bundle = bundle
        self.body_ms = self.tail_ms = 0.0
        self._spec = manifest.windows
        self.layout: StripLayout = self._spec.layout()
        self.windows = self.layout.windows
        first, tail = manifest.calls["first"]
        window, _ = manifest.calls["step"]
        maps = self._spec.maps
        self._full = load_graph(bundle, first, num_threads).bind(("image",), (*maps, "strips"))
        self._window = load_graph(bundle, window, num_threads).bind(
            ("image", "halo"), (*maps, "own")
        )
        self.outputs = tuple(manifest.signature(tail).outputs)
        self._tail = load_graph(bundle, tail, num_threads).bind(maps, self.outputs)
        image = manifest.tensor(f"{first}/image", "inputs")
        self.prepare = whole_frame(manifest.image, image)
        self._image_zero = _zero(image)
        self._strip_zero = _zero(manifest.tensor(f"{window}/halo", "inputs"))
        inputs = manifest.signature(window).inputs
        self._window_image, self._halo = (
            np.empty(inputs[name].shape, inputs[name].dtype) for name in ("image", "halo")
        )
        self._read, self._places = (
            table.astype(np.intp) for table in (self.layout.read, self.layout.places)
        )

    def first(self, image: np.ndarray) -> tuple[dict[str, np.ndarray], Memory]:
        """The first frame of a video, seen whole.

        Args:
          image: [1, h, w, 3], what `prepare` returned.

        Returns:
          The outputs of the tail, as stored, and the memory.
        """
        *maps, strips = self._full(image)
        layout = self.layout
        kept = np.full([layout.memory + 1, layout.chunk], self._strip_zero, strips.dtype)
        kept[:-1] = strips[0]
        slices = self.windows.slices
        ages = np.zeros([slices, slices], np.int32)
        memory = Memory(kept, dict(zip(self._spec.maps, maps)), ages)
        return self._predict(memory, self._full.last_ms), memory

    def step(self, image: np.ndarray, action: int, memory: Memory) -> dict[str, np.ndarray]:
        """A later frame, of which one window is looked at.

        Args:
          image: [1, h, w, 3], what `prepare` returned.
          action: which window.
          memory: after the frame before; changed in place.

        Returns:
          The outputs of the tail for the full frame, as stored.

        Raises:
          ValueError: there is no such action.
        """
        windows = self.windows
        tile = windows.tile(action)
        strips = _chunks(memory.strips)
        np.take(strips, self._read[action], out=_chunks(self._halo[0]), mode="clip")
        *maps, own = self._window(self._crop(image, tile), self._halo)
        strips[self._places[action]] = _chunks(own[0])
        for name, part in zip(self._spec.maps, maps):
            _region(memory.maps[name], tile, windows)[...] = part
        memory.ages_frames += 1
        _region(memory.ages_frames[np.newaxis], tile, windows)[...] = 0
        return self._predict(memory, self._window.last_ms)

    def _predict(self, memory: Memory, body_ms: float) -> dict[str, np.ndarray]:
        outputs = self._tail(*memory.maps.values())
        self.body_ms, self.tail_ms = body_ms, self._tail.last_ms
        return dict(zip(self.outputs, outputs))

    def _crop(self, image: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
        """The window with its halo; the same array every time."""
        out, spec = self._window_image, self._spec
        out.fill(self._image_zero)
        source, target = [], []
        for axis, halo in enumerate((spec.image_rows, spec.image_columns), 1):
            side = image.shape[axis]
            start = tile[axis - 1] * side // spec.slices - halo[0]
            stop = start + out.shape[axis]
            source.append(slice(max(start, 0), min(stop, side)))
            target.append(slice(max(-start, 0), min(stop, side) - start))
        out[:, *target] = image[:, *source]
        return out


def _region(array: np.ndarray, tile: tuple[int, int], windows) -> np.ndarray:
    """View of a window of [1, H, W, ...]."""
    rows, columns = (
        slice(t * (side // windows.slices), t * (side // windows.slices) + windows.size(side))
        for t, side in zip(tile, array.shape[1:3])
    )
    return array[:, rows, columns]


def _chunks(array: np.ndarray) -> np.ndarray:
    """View of [n, chunk] as n opaque elements, which are copied ten times as fast as n rows."""
    return array.view(np.dtype((np.void, array.shape[1] * array.itemsize)))[:, 0]


def _zero(tensor: TensorSpec) -> int:
    """The stored value of 0."""
    return tensor.zero_point or 0
