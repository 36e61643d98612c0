"""Pascal VOC 2012: still images with boxes and, for some, a mask of every object.

    JPEGImages/2007_000027.jpg        Annotations/2007_000027.xml
    ImageSets/Main/train.txt, val.txt    a name a line, maybe with 1, 0 or -1, or with a suffix
    SegmentationObject/2007_000032.png   object i of the XML has index i; 255 is void

Pictures of own sets may have other suffixes, and names with spaces.

Objects marked `difficult` are left out. Coordinates count pixels from one, the last included.

The masks of `SegmentationClass` follow from the objects', whose classes the XML names.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import annotation_xml, classes, pictures
from memvid_tf.data.layouts import (
    Finding,
    PictureNames,
    Progress,
    Truth,
    Video,
    columns,
    inside,
    mask_positions,
    needed_folder,
    read_list,
)
from memvid_tf.data.records import DatasetError
from memvid_tf.runtime.pictures import SUFFIXES

HINT = "the folder VOC2012, which holds JPEGImages, Annotations and ImageSets"
_CLASS_IDS = {label: i + 1 for i, label in enumerate(classes.VOC_LABELS)}
_FIRST_PIXEL = np.array([1, 1, 0, 0])


@dataclasses.dataclass(frozen=True)
class Voc2012:
    """See the module and `layouts.Layout`."""

    source: pathlib.Path
    name: str = "voc2012"
    labels: tuple[str, ...] = classes.VOC_LABELS
    splits: tuple[str, ...] = ("train", "val")
    stills: bool = True
    other_classes: bool = False
    _pictures: PictureNames = dataclasses.field(default_factory=PictureNames, compare=False)

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`."""
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            needed_folder(self.source, folder, "Pascal VOC", HINT)
        path = self.source / "ImageSets" / "Main" / f"{split}.txt"
        found = sorted({self._name(line, path) for line in progress(read_list(path))})
        if not found:
            raise DatasetError(f"{path} is empty")
        return [Video(name, 1) for name in found]

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`. A track is the position in the XML, from 1."""
        annotation = annotation_xml.read(self._annotation(video))
        boxes, class_ids, tracks, names = columns(
            [
                (np.array(o.box) - _FIRST_PIXEL, _CLASS_IDS.get(o.name, 0), number, o.name)
                for number, o in enumerate(annotation.objects, start=1)
                if not o.difficult
            ]
        )
        path, size = self.source / "SegmentationObject" / f"{video}.png", annotation.size
        mask = mask_positions(pictures.read_indices(path), tracks) if path.is_file() else None
        if mask is not None:
            if size not in (None, mask.shape):
                raise DatasetError(f"mask {path} is {mask.shape}, its annotation says {size}")
            size = mask.shape
        return Truth(
            self._picture(video),
            boxes,
            class_ids,
            tracks,
            names,
            size,
            mask,
        )

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        for name, _ in self.videos(split):
            try:
                paths = (self._picture(name), self._annotation(name))
            except DatasetError as error:
                yield Finding("two pictures of one name", str(error))
                continue
            for path in paths:
                if not path.is_file():
                    yield Finding("image set naming what is not there", str(path))

    def _picture(self, name):
        return self._pictures.find(self.source / "JPEGImages" / f"{name}.jpg")

    def _annotation(self, name):
        return self.source / "Annotations" / f"{name}.xml"

    def _name(self, line, path):
        """The name that a line of a list gives: of those that it may mean the annotated one."""
        marked = re.fullmatch(r"(.*?)\s+(-1|0|1)", line)
        meant = [line, marked[1]] if marked else [line]
        for text in meant:
            name = pathlib.PurePosixPath(inside(text, path))
            bare = name.with_suffix("") if name.suffix.lower() in (*SUFFIXES, ".xml") else name
            for found in (str(name), str(bare)):
                if self._annotation(found).is_file():
                    return found
        return inside(meant[-1], path)
