"""Default boxes of SSD (Liu et al. 2016, section 2.2) with the aspect ratios of LFS 3.1."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class AnchorSpec:
    """Which default boxes every cell of every feature map has.

    Attributes:
      min_scale: side of the square anchor of the largest map, as a share of the frame.
      max_scale: the same of the smallest map; the maps between are spaced linearly.
      aspect_ratios: width over height.
      interpolated: whether a cell also has a square anchor whose side is the geometric mean of
        this map's scale and the next one's.
      reduce_lowest: whether the largest map has only three anchors, as in the predecessor.
    """

    min_scale: float = 0.2
    max_scale: float = 0.95
    aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    interpolated: bool = True
    reduce_lowest: bool = False

    def __post_init__(self):
        for field in ("min_scale", "max_scale"):
            if getattr(self, field) <= 0:
                raise ValueError(f"anchors.{field} {getattr(self, field)} is not positive")
        ratios = tuple(self.aspect_ratios)
        if not ratios or min(ratios) <= 0:
            raise ValueError(f"anchors.aspect_ratios {ratios} are not positive numbers")

    def shapes(self, maps: int) -> list[list[tuple[float, float]]]:
        """(height, width) of the anchors of a cell, for each of `maps` maps, largest map first."""
        scales = np.linspace(self.min_scale, self.max_scale, maps).tolist() + [1.0]
        shapes = []
        for k in range(maps):
            if k == 0 and self.reduce_lowest:
                # The predecessor's choice: a small square and two elongated boxes.
                pairs = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
            else:
                pairs = [(scales[k], ratio) for ratio in self.aspect_ratios]
                if self.interpolated:
                    pairs.append(((scales[k] * scales[k + 1]) ** 0.5, 1.0))
            shapes.append([(scale / ratio**0.5, scale * ratio**0.5) for scale, ratio in pairs])
        return shapes


def make_anchors(map_sizes: Sequence[tuple[int, int]], spec: AnchorSpec) -> np.ndarray:
    """Anchors of all maps, in the order in which the predictor's outputs are concatenated.

    Args:
      map_sizes: (height, width) of the maps, largest first.
      spec: the anchors of a cell.

    Returns:
      [A, 4] float32 `ycenter, xcenter, height, width`, shares of the frame: map by map, row by
      row, cell by cell, the anchors of a cell together.
    """
    parts = []
    for (height, width), shapes in zip(map_sizes, spec.shapes(len(map_sizes))):
        y = (np.arange(height) + 0.5) / height
        x = (np.arange(width) + 0.5) / width
        centers = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[:, :, None, :]
        centers = np.broadcast_to(centers, (height, width, len(shapes), 2))
        sizes = np.broadcast_to(np.asarray(shapes), (height, width, len(shapes), 2))
        parts.append(np.concatenate([centers, sizes], -1).reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)
