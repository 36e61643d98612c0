"""DAVIS 2016 and 2017: masks of every frame, from which boxes are drawn tightly.

    JPEGImages/480p/bear/00000.jpg    Annotations/480p/bear/00000.png
    ImageSets/480p/train.txt          2016: lines of picture and mask; masks are 0 or 255
    ImageSets/2017/train.txt          2017: lines of sequences; pixels are objects, 255 is void

For a detector on a few sequences, or without `ImageSets` of the year, every sequence can be split
in time: `conversion.ConversionConfig.train_part`.

Differs from the benchmark, which is about masks: its measures are in `evaluation.davis`. There is
one class, `object`.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import pictures
from memvid_tf.data.layouts import (
    Finding,
    Progress,
    Truth,
    Video,
    columns,
    inside,
    is_hidden,
    mask_positions,
    missing_partners,
    needed_folder,
    read_list,
    tight_box,
)
from memvid_tf.data.records import DatasetError

IMAGES = pathlib.PurePosixPath("JPEGImages/480p")
MASKS = pathlib.PurePosixPath("Annotations/480p")
LABEL = "object"
VOID = 255
HINT = "the folder DAVIS, which holds JPEGImages and Annotations"


@dataclasses.dataclass(frozen=True)
class Davis:
    """See the module and `layouts.Layout`; `year` is 2016 or 2017."""

    source: pathlib.Path
    year: int
    labels: tuple[str, ...] = (LABEL,)
    splits: tuple[str, ...] = ("train", "val")
    stills: bool = False
    other_classes: bool = False

    @property
    def name(self) -> str:
        """davis2016 or davis2017."""
        return f"davis{self.year}"

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`; split 'all' is every sequence."""
        images = needed_folder(self.source, str(IMAGES), f"DAVIS {self.year}", HINT)
        needed_folder(self.source, str(MASKS), f"DAVIS {self.year}", HINT)
        if split == "all":
            names = sorted(p.name for p in images.iterdir() if p.is_dir() and not is_hidden(p.name))
        else:
            names = sorted(set(self._listed(split)))
        found = []
        for name in progress(names):
            frames = sum(not is_hidden(path.name) for path in (images / name).glob("*.jpg"))
            if not frames:
                raise DatasetError(f"{images / name} holds no .jpg frames")
            found.append(Video(name, frames))
        if not found:
            raise DatasetError(f"{images} holds no sequence")
        return found

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        path = self.source / MASKS / video / f"{frame:05d}.png"
        indices = read_mask(path, self.year)
        tracks = np.unique(indices[indices > 0])
        rows = [(tight_box(indices == track), 1, track, LABEL) for track in tracks]
        boxes, class_ids, tracks, names = columns(rows)
        return Truth(
            self.source / IMAGES / video / f"{frame:05d}.jpg",
            boxes,
            class_ids,
            tracks,
            names,
            indices.shape,
            mask_positions(indices, tracks),
        )

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        for name, count in self.videos(split):
            images, masks = (self.source / part / name for part in (IMAGES, MASKS))
            yield from missing_partners(
                images, masks, (".jpg", ".png"), ("frame without a mask", "mask without its frame")
            )
            gaps = [t for t in range(count) if not (images / f"{t:05d}.jpg").is_file()]
            if gaps:
                yield Finding(
                    "video whose frames are not numbered 00000, 00001, ...",
                    f"{images}: {count} frames, {gaps[0]:05d}.jpg is not there",
                )

    def _listed(self, split):
        """Sequences of a split's list."""
        folder = "480p" if self.year == 2016 else "2017"
        path = self.source / "ImageSets" / folder / f"{split}.txt"
        if not path.is_file():
            raise DatasetError(
                f"{path} is missing, so the splits of DAVIS {self.year} are unknown; "
                "--train_part=0.7 splits every sequence in time instead"
            )
        for line in read_list(path):
            name = inside(line.split()[0].lstrip("/"), path)
            # 2016 lists frames: /JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png
            yield pathlib.PurePosixPath(name).parent.name if self.year == 2016 else name


def read_mask(path: pathlib.Path, year: int) -> np.ndarray:
    """[H, W] uint8 of objects 1, 2, ...; 0 is background and void.

    Raises:
      DatasetError: when the file is no mask, or a mask of 2016 holds anything but 0 and 255.
    """
    indices = pictures.read_indices(path)
    if year == 2016:
        strange = sorted(set(np.unique(indices).tolist()) - {0, 255})
        if strange:
            raise DatasetError(
                f"{path} is no DAVIS 2016 mask: it holds {strange[:5]}, allowed are 0 and 255"
            )
        return (indices > 0).astype(np.uint8)
    return np.where(indices == VOID, 0, indices).astype(np.uint8)
