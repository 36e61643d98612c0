"""COCO 2017 detection: the classes that ImageNet VID has too, as still images.

    annotations/instances_train2017.json, instances_val2017.json
    train2017/000000000009.jpg, ...      val2017/000000000139.jpg, ...

Pictures without an object of these classes are left out of train and kept in val. Crowd regions,
which are no single object, are left out. The list of train takes 450 MB; reading it needs about
three gigabytes of memory for half a minute.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import classes
from memvid_tf.data.layouts import Finding, Progress, Truth, Video, inside, needed_folder
from memvid_tf.data.records import DatasetError

HINT = "the folder which holds annotations, train2017 and val2017"


@dataclasses.dataclass(frozen=True)
class _Table:
    """One split: picture i has objects first[i]..first[i + 1] - 1."""

    files: list[str]
    position: dict[str, int]
    sizes: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    names: list[str]


class Coco2017:
    """See the module and `layouts.Layout`.

    Args:
      source: the folder of the data set.
      boats: whether COCO's boats are VID's watercraft, which has ships and more besides.
    """

    labels = classes.VID_LABELS
    splits = ("train", "val")
    stills = True
    other_classes = True

    def __init__(self, source: pathlib.Path, boats: bool = False):
        self.source = source
        self.name = "coco2017_boats" if boats else "coco2017"
        self._classes = {**classes.COCO_TO_VID, **(classes.BOAT if boats else {})}
        self._tables = {}

    def videos(self, split: str, progress: Progress = iter) -> list[Video]:
        """See `layouts.Layout`."""
        needed_folder(self.source, f"{split}2017", "COCO 2017", HINT)
        table = self._table(split)
        kept = [
            name
            for name, position in table.position.items()
            if split == "val" or table.class_ids[_rows(table, position)].any()
        ]
        if not kept:
            raise DatasetError(f"{self._json(split)} lists no picture with a class of VID")
        return [Video(name, 1) for name in sorted(progress(kept))]

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        folder, _, _ = video.partition("/")
        table = self._table(folder.removesuffix("2017"))
        position = table.position[video]
        rows = _rows(table, position)
        count = rows.stop - rows.start
        return Truth(
            self.source / folder / table.files[position],
            table.boxes[rows],
            table.class_ids[rows],
            np.arange(count),
            tuple(table.names[rows]),
            tuple(table.sizes[position].tolist()),
        )

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        for name, _ in self.videos(split):
            path = self.truth(name, 0).image
            if not path.is_file():
                yield Finding("picture that is missing", str(path))

    def _json(self, split):
        return self.source / "annotations" / f"instances_{split}2017.json"

    def _table(self, split):
        if split not in self._tables:
            needed_folder(self.source, "annotations", "COCO 2017", HINT)
            path = self._json(split)
            try:
                content = json.loads(path.read_bytes())
                self._tables[split] = self._read(path, split, content)
            except (
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                RecursionError,
                OverflowError,
            ) as error:
                if isinstance(error, DatasetError):
                    raise
                raise DatasetError(f"{path} is no list of COCO instances: {error!r}") from error
        return self._tables[split]

    def _read(self, path, split, content):
        names = {category["id"]: category["name"] for category in content["categories"]}
        ids = {name: i + 1 for i, name in enumerate(self.labels)}
        class_of = {number: ids.get(self._classes.get(name), 0) for number, name in names.items()}
        number_of = {image["id"]: i for i, image in enumerate(content["images"])}
        objects = [[] for _ in number_of]
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            x, y, width, height = map(float, annotation["bbox"])
            category = annotation["category_id"]
            if annotation["image_id"] not in number_of or category not in names:
                raise DatasetError(
                    f"{path}: annotation {annotation.get('id')} is of picture "
                    f"{annotation['image_id']} and category {category}, which are "
                    "not both listed"
                )
            objects[number_of[annotation["image_id"]]].append(
                ((y, x, y + height, x + width), class_of[category], names[category])
            )
        rows = [row for of_image in objects for row in of_image]
        files = [inside(image["file_name"], path) for image in content["images"]]
        return _Table(
            files=files,
            position={
                f"{split}2017/{pathlib.PurePosixPath(file).stem}": i for i, file in enumerate(files)
            },
            sizes=np.array(
                [(image["height"], image["width"]) for image in content["images"]], np.int64
            ).reshape(-1, 2),
            first=np.cumsum([0, *map(len, objects)]),
            boxes=np.array([row[0] for row in rows], np.float64).reshape(-1, 4),
            class_ids=np.array([row[1] for row in rows], np.int64),
            names=[row[2] for row in rows],
        )


def _rows(table, position):
    return slice(int(table.first[position]), int(table.first[position + 1]))
