"""What the layouts of real data sets have in common: videos of frames, each with its truth.

A layout knows where files lie and what they say; it decodes no picture. A still image is a video
of one frame. `conversion` makes clip records of any layout, `doctor` looks for what is wrong in it.
"""

import codecs
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from memvid_tf.data.records import DatasetError
from memvid_tf.runtime.pictures import SUFFIXES

Progress = Callable[[Iterable], Iterable]


class Video(NamedTuple):
    """A video of a layout: its name, unique in the layout, and its number of frames."""

    name: str
    frames: int


class Finding(NamedTuple):
    """Something that is wrong in a layout: which kind of thing, and where and what exactly."""

    kind: str
    where: str


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a layout says about one frame.

    Attributes:
      image: path of the picture, which may be missing.
      boxes: [n, 4] float64 `[ymin, xmin, ymax, xmax]` in pixels, as annotated: maybe inverted or
        outside the picture.
      classes: [n] int64, 1..C; 0 where the layout's name is not among the classes.
      tracks: [n] int64, identities within the video.
      names: [n] class names as annotated.
      size: (height, width) of the picture according to its annotation, or None.
      mask: [H, W] uint8, 0 or the position in `boxes` + 1; None where there is none.
    """

    image: pathlib.Path
    boxes: np.ndarray
    classes: np.ndarray
    tracks: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int] | None = None
    mask: np.ndarray | None = None


class Layout(Protocol):
    """A data set on disk; picklable, since workers read it too.

    Attributes:
      name: of the data set.
      labels: class names; class id - 1 is the position.
      splits: names, those for training first.
      stills: whether it holds still images.
      other_classes: whether it annotates things that are none of `labels`, by its nature.
    """

    name: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    stills: bool
    other_classes: bool

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """The videos of a split, sorted.

        Args:
          split: one of `splits`, or 'all' where a layout can tell its videos without lists.
          progress: wraps what takes long, as `tqdm.tqdm` does.

        Raises:
          DatasetError: saying which folder or list is missing.
        """

    def truth(self, video: str, frame: int) -> Truth:
        """The annotation of a frame.

        Raises:
          DatasetError: naming an annotation or a mask that is missing or cannot be read.
        """

    def findings(self, split: str) -> Iterator[Finding]:
        """Yields what is wrong with folders and lists of a split; reads no annotation."""


def needed_folder(source: pathlib.Path, name: str, layout: str, hint: str) -> pathlib.Path:
    """A folder of a layout.

    Raises:
      DatasetError: when it is not there.
    """
    folder = source / name
    if not folder.is_dir():
        raise DatasetError(
            f"{source} is not laid out like {layout}: {folder} is missing; --source is {hint}"
        )
    return folder


def read_list(path: pathlib.Path) -> list[str]:
    """The lines of a list of names, without empty ones; UTF-8, or what Windows makes of it.

    Raises:
      DatasetError: when it is missing or no text.
    """
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"list {path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def inside(name: str, where: pathlib.Path) -> str:
    """A relative path from a file, unless it leaves its folder.

    Raises:
      DatasetError: when it is absolute or goes upwards.
    """
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise DatasetError(f"{where} names {name!r}, which is no path inside the data set")
    return str(path)


def is_hidden(name: str) -> bool:
    """Whether a file name is hidden, as the `._*` that macOS leaves beside every file."""
    return name.startswith(".")


class PictureNames:
    """Finds pictures by their name without suffix; remembers the folders that it has listed."""

    def __init__(self):
        self._folders = {}

    def find(self, path: pathlib.Path) -> pathlib.Path:
        """The picture of this name, with whatever suffix; `path` itself where there is none.

        Raises:
          DatasetError: where several have it.
        """
        if path.parent not in self._folders:
            found = {}
            if path.parent.is_dir():
                for name in sorted(os.listdir(path.parent)):
                    stem, suffix = os.path.splitext(name)
                    if suffix.lower() in SUFFIXES and not is_hidden(name):
                        found.setdefault(stem, []).append(name)
            self._folders[path.parent] = found
        names = self._folders[path.parent].get(path.stem, [path.name])
        if len(names) > 1:
            raise DatasetError(f"{path.parent} holds {' and '.join(names)}, wanted is one of them")
        return path.with_name(names[0])


def columns(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Boxes, classes, tracks and names of `Truth` from (box, class, track, name) rows."""
    boxes, classes, tracks, names = zip(*rows) if rows else ((), (), (), ())
    return (
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(tracks, np.int64),
        tuple(names),
    )


def counted(numbers: Mapping[str, int], most: int = 10) -> str:
    """Names and their numbers, the most frequent first: "dog 7, cat 2 and 3 more"."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(f"{name} {number}" for name, number in ordered[:most]) + more


def mask_positions(indices: np.ndarray, tracks: np.ndarray) -> np.ndarray:
    """[H, W] uint8 mask of `Truth` from [H, W] track ids below 256; other ids become 0."""
    position = np.zeros(256, np.uint8)
    position[tracks] = np.arange(1, len(tracks) + 1)
    return position[indices]


def tight_box(mask: np.ndarray) -> np.ndarray:
    """[4] float64 `[ymin, xmin, ymax, xmax]` in pixels around [H, W] bool that is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    across = np.flatnonzero(mask.any(axis=0))
    return np.array([rows[0], across[0], rows[-1] + 1, across[-1] + 1], np.float64)


def missing_partners(
    first: pathlib.Path, second: pathlib.Path, suffixes: tuple[str, str], kinds: tuple[str, str]
) -> Iterator[Finding]:
    """Yields files of one folder without a file of the same stem in the other, both ways."""
    stems = []
    for folder, suffix in zip((first, second), suffixes):
        found = folder.iterdir() if folder.is_dir() else ()
        stems.append({p.stem for p in found if p.suffix == suffix and not is_hidden(p.name)})
    for stem in sorted(stems[0] - stems[1]):
        yield Finding(kinds[0], str(first / f"{stem}{suffixes[0]}"))
    for stem in sorted(stems[1] - stems[0]):
        yield Finding(kinds[1], str(second / f"{stem}{suffixes[1]}"))
