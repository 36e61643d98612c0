"""Pascal VOC 2012: still images with boxes and, for some, a mask of every object.

    JPEGImages/2007_000027.jpg        Annotations/2007_000027.xml
    ImageSets/Main/train.txt, val.txt
    SegmentationObject/2007_000032.png   object i of the XML has index i; 255 is void

Objects marked `difficult` are left out. Coordinates count pixels from one, the last included.

The masks of `SegmentationClass` follow from the objects', whose classes the XML names.
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import annotation_xml, classes, pictures
from memvid_tf.data.layouts import (
    Finding,
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

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`."""
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            needed_folder(self.source, folder, "Pascal VOC", HINT)
        path = self.source / "ImageSets" / "Main" / f"{split}.txt"
        found = sorted({inside(line.split()[0], path) for line in progress(read_list(path))})
        if not found:
            raise DatasetError(f"{path} is empty")
        return [Video(name, 1) for name in found]

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`. A track is the position in the XML, from 1."""
        annotation = annotation_xml.read(self.source / "Annotations" / f"{video}.xml")
        boxes, class_ids, tracks, names = columns(
            [
                (np.array(o.box) - _FIRST_PIXEL, _CLASS_IDS.get(o.name, 0), number, o.name)
                for number, o in enumerate(annotation.objects, start=1)
                if not o.difficult
            ]
        )
        path = self.source / "SegmentationObject" / f"{video}.png"
        mask = mask_positions(pictures.read_indices(path), tracks) if path.is_file() else None
        if mask is not None and annotation.size not in (None, mask.shape):
            raise DatasetError(
                f"mask {path} is {mask.shape}, its annotation says {annotation.size}"
            )
        return Truth(
            self.source / "JPEGImages" / f"{video}.jpg",
            boxes,
            class_ids,
            tracks,
            names,
            annotation.size,
            mask,
        )

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        for name, _ in self.videos(split):
            for path in (f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"):
                if not (self.source / path).is_file():
                    yield Finding("image set naming what is not there", str(self.source / path))
