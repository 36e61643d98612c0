"""ImageNet VID 2015, the part of DET that shows VID's thirty classes, and the classification set.

    Data/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000/000000.JPEG
    Data/VID/val/ILSVRC2015_val_00000000/000000.JPEG
    Annotations/VID/...  the same names, .xml
    ImageSets/VID/*.txt
    Data/DET, Annotations/DET: train and val, at any depth
    Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG
    Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG
    Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml

Box coordinates are divided by the size of the picture as they are, as the field's evaluators do,
which add the last pixel themselves.

Differs from the challenge: all videos of a folder are used, whatever ImageSets says; `doctor`
compares the two.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator

from memvid_tf.data import annotation_xml, classes, pictures
from memvid_tf.data.layouts import (
    Finding,
    Progress,
    Truth,
    Video,
    columns,
    inside,
    is_hidden,
    missing_partners,
    needed_folder,
    read_list,
)
from memvid_tf.data.records import DatasetError

HINT = "the folder ILSVRC2015, which holds Data, Annotations and ImageSets"
_CLASS_IDS = {wnid: i + 1 for i, wnid in enumerate(classes.VID_WNIDS)}
_WNIDS = tuple(wnid.encode() for wnid in classes.VID_WNIDS)


@dataclasses.dataclass(frozen=True)
class ImageNetVid:
    """See the module and `layouts.Layout`."""

    source: pathlib.Path
    name: str = "imagenet_vid"
    labels: tuple[str, ...] = classes.VID_LABELS
    splits: tuple[str, ...] = ("train", "val")
    stills: bool = False
    other_classes: bool = False

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`."""
        folder = needed_folder(self.source, f"Data/VID/{split}", "ImageNet VID 2015", HINT)
        needed_folder(self.source, f"Annotations/VID/{split}", "ImageNet VID 2015", HINT)
        found = sorted(folder.glob("*/*/" if split == "train" else "*/"))
        videos = []
        for video in progress(found):
            names = (entry.name for entry in os.scandir(video))
            frames = sum(name.endswith(".JPEG") and not is_hidden(name) for name in names)
            if frames:
                videos.append(Video(f"{split}/{video.relative_to(folder).as_posix()}", frames))
        if not videos:
            raise DatasetError(f"{folder} holds no folder with .JPEG frames")
        return videos

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        return _truth(self.source, "VID", f"{video}/{frame:06d}")

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        frames = dict(self.videos(split))
        kinds = ("frame without an annotation", "annotation without its frame")
        for video, count in frames.items():
            folders = [self.source / part / "VID" / video for part in ("Data", "Annotations")]
            yield from missing_partners(*folders, (".JPEG", ".xml"), kinds)
            gaps = [t for t in range(count) if not (folders[0] / f"{t:06d}.JPEG").is_file()]
            if gaps:
                yield Finding(
                    "video whose frames are not numbered 000000, 000001, ...",
                    f"{folders[0]}: {count} frames, {gaps[0]:06d}.JPEG is not there",
                )
        sets = self.source / "ImageSets" / "VID"
        lists = [path for path in sorted(sets.glob(f"{split}*.txt")) if not is_hidden(path.name)]
        if sets.is_dir() and not lists:  # without any, there is nothing to compare with
            yield Finding("image set that is missing", str(sets / f"{split}.txt"))
        listed = set()
        for path in lists:
            for line in read_list(path):
                name = f"{split}/{inside(line.split()[0], path)}"
                video, _, frame = name.rpartition("/")
                if frame.isdecimal() and int(frame) < frames.get(video, 0):
                    name = video
                listed.add(name)
                if name not in frames:
                    yield Finding("image set naming what is not there", f"{path}: {line}")
        for video in frames.keys() - listed if lists else ():
            yield Finding("video that no image set lists", video)


@dataclasses.dataclass(frozen=True)
class ImageNetDet:
    """The pictures of DET with an object of VID's classes; see the module."""

    source: pathlib.Path
    name: str = "imagenet_det"
    labels: tuple[str, ...] = classes.VID_LABELS
    splits: tuple[str, ...] = ("train", "val")
    stills: bool = True
    other_classes: bool = True

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`. Looks into every annotation for a class of VID."""
        needed_folder(self.source, f"Data/DET/{split}", "ImageNet DET", HINT)
        top = self.source / "Annotations" / "DET"
        folder = needed_folder(self.source, f"Annotations/DET/{split}", "ImageNet DET", HINT)
        found = []
        for path in progress(sorted(folder.rglob("*.xml"))):
            if is_hidden(path.name):
                continue
            with open(path, "rb") as file:
                data = file.read(annotation_xml.MAX_BYTES)
            if any(wnid in data for wnid in _WNIDS):
                found.append(Video(path.relative_to(top).with_suffix("").as_posix(), 1))
        if not found:
            raise DatasetError(f"{folder} holds no annotation with one of VID's classes")
        return found

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        return _truth(self.source, "DET", video)

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`. Pictures of DET without annotation are as they should be."""
        for name, _ in self.videos(split):
            path = self.source / "Data" / "DET" / f"{name}.JPEG"
            if not path.is_file():
                yield Finding("annotation without its picture", str(path))


@dataclasses.dataclass(frozen=True)
class ImageNetClassification:
    """The pictures of the classification set; the one object of each is the whole picture.

    Classes are the folders of the training pictures, in alphabetical order of their WNIDs.
    """

    source: pathlib.Path
    name: str = "imagenet_cls"
    splits: tuple[str, ...] = ("train", "val")
    stills: bool = True
    other_classes: bool = False

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """WNIDs."""
        folder = self._folder("train")
        found = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
        if not found:
            raise DatasetError(f"{folder} holds no folder named by a WNID, such as n01440764")
        return found

    def _folder(self, split):
        return needed_folder(self.source, f"Data/CLS-LOC/{split}", "ImageNet CLS-LOC", HINT)

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`."""
        folder = self._folder(split)
        pattern = "*/*.JPEG" if split == "train" else "*.JPEG"
        found = [
            Video(f"{split}/{path.relative_to(folder).with_suffix('').as_posix()}", 1)
            for path in progress(sorted(folder.glob(pattern)))
            if not is_hidden(path.name)
        ]
        if not found:
            raise DatasetError(f"{folder} holds no {pattern}")
        return found

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        path = self.source / "Data" / "CLS-LOC" / f"{video}.JPEG"
        if video.startswith("train/"):
            wnid = video.split("/")[1]
        else:
            annotation = annotation_xml.read(
                self.source / "Annotations" / "CLS-LOC" / f"{video}.xml"
            )
            # The objects of a picture of this set are all of its class.
            wnid = annotation.objects[0].name if annotation.objects else ""
        height, width = size = pictures.check(path, decode=False).size
        class_id = self.labels.index(wnid) + 1 if wnid in self.labels else 0
        rows = [((0.0, 0.0, float(height), float(width)), class_id, 0, wnid)]
        boxes, class_ids, tracks, names = columns(rows)
        return Truth(path, boxes, class_ids, tracks, names, size)

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        for name, _ in self.videos(split):
            path = self.source / "Annotations" / "CLS-LOC" / f"{name}.xml"
            if split != "train" and not path.is_file():
                yield Finding("picture without an annotation", str(path))


def _truth(source, part, name):
    annotation = annotation_xml.read(source / "Annotations" / part / f"{name}.xml")
    # DET knows no tracks: every object is its own.
    rows = [
        (o.box, _CLASS_IDS.get(o.name, 0), number if o.track is None else o.track, o.name)
        for number, o in enumerate(annotation.objects)
    ]
    boxes, class_ids, tracks, names = columns(rows)
    return Truth(
        source / "Data" / part / f"{name}.JPEG", boxes, class_ids, tracks, names, annotation.size
    )
