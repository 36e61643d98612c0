"""COCO 2017 detection: the classes that ImageNet VID has too, as still images.

    annotations/instances_train2017.json, instances_val2017.json
    train2017/000000000009.jpg, ...      val2017/000000000139.jpg, ...

Pictures without an object of these classes are left out of train and kept in val. Crowd regions,
which are no single object, are left out. The list of train takes 450 MB; reading it needs about
three gigabytes of memory for half a minute.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import annotation_xml, classes
from memvid_tf.data.layouts import Finding, Progress, Truth, Video, counted, inside, needed_folder
from memvid_tf.data.records import DatasetError

HINT = "the folder which holds annotations, train2017 and val2017"
# Four times the largest list of COCO.
MAX_BYTES = 2 << 30


@dataclasses.dataclass(frozen=True)
class _Table:
    """One split: picture i has objects first[i]..first[i + 1] - 1, and maybe a fault."""

    files: list[str]
    position: dict[str, int]
    sizes: list[tuple[int, int] | None]
    faults: dict[int, str]
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
            if split == "val"
            or position in table.faults
            or table.class_ids[_rows(table, position)].any()
        ]
        if not kept:
            known = collections.Counter(table.names)
            raise DatasetError(
                f"{self._json(split)} lists no picture with a class of VID; it annotates "
                f"{counted(known) or 'nothing'}"
            )
        return [Video(name, 1) for name in sorted(progress(kept))]

    def truth(self, video: str, frame: int) -> Truth:
        """See `layouts.Layout`."""
        folder, _, _ = video.partition("/")
        table = self._table(folder.removesuffix("2017"))
        position = table.position[video]
        if position in table.faults:
            raise DatasetError(table.faults[position])
        rows = _rows(table, position)
        count = rows.stop - rows.start
        return Truth(
            self.source / folder / table.files[position],
            table.boxes[rows],
            table.class_ids[rows],
            np.arange(count),
            tuple(table.names[rows]),
            table.sizes[position],
        )

    def findings(self, split: str) -> Iterator[Finding]:
        """See `layouts.Layout`."""
        table = self._table(split)
        for name, _ in self.videos(split):
            path = self.source / f"{split}2017" / table.files[table.position[name]]
            if not path.is_file():
                yield Finding("picture that is missing", str(path))

    def _json(self, split):
        return self.source / "annotations" / f"instances_{split}2017.json"

    def _table(self, split):
        if split not in self._tables:
            needed_folder(self.source, "annotations", "COCO 2017", HINT)
            path = self._json(split)
            try:
                if path.stat().st_size > MAX_BYTES:
                    raise DatasetError(f"{path} has more than {MAX_BYTES} bytes")
                self._tables[split] = self._read(path, split, json.loads(path.read_bytes()))
            except DatasetError:
                raise
            except KeyError as error:
                raise DatasetError(
                    f"{path} is no list of COCO instances: it lacks {error}"
                ) from error
            except (
                OSError,
                ValueError,
                TypeError,
                AttributeError,
                RecursionError,
                OverflowError,
            ) as error:
                raise DatasetError(
                    f"{path} is no list of COCO instances: {str(error)[:200]}"
                ) from error
        return self._tables[split]

    def _read(self, path, split, content):
        names = {category["id"]: category["name"] for category in content["categories"]}
        ids = {name: i + 1 for i, name in enumerate(self.labels)}
        class_of = {number: ids.get(self._classes.get(name), 0) for number, name in names.items()}
        files = [_file(image["file_name"], f"{split}2017", path) for image in content["images"]]
        number_of = _unique([image["id"] for image in content["images"]], files, path)
        objects, faults = [[] for _ in files], {}
        for annotation in content["annotations"]:
            if annotation.get("iscrowd"):
                continue
            number, category = annotation.get("id"), annotation["category_id"]
            if annotation["image_id"] not in number_of or category not in names:
                raise DatasetError(
                    f"{path}: annotation {number!r:.50} is of picture "
                    f"{annotation['image_id']!r:.50} and category {category!r:.50}, which are "
                    "not both listed"
                )
            place = number_of[annotation["image_id"]]
            try:
                box = _box(annotation.get("bbox"))
            except ValueError as error:
                faults.setdefault(place, f"{path}: annotation {number!r:.50} has {error}")
                continue
            objects[place].append((box, class_of[category], names[category]))
        rows = [row for of_image in objects for row in of_image]
        return _Table(
            files=files,
            position=_named(files, f"{split}2017"),
            sizes=[_size(image) for image in content["images"]],
            faults=faults,
            first=np.cumsum([0, *map(len, objects)]),
            boxes=np.array([row[0] for row in rows], np.float64).reshape(-1, 4),
            class_ids=np.array([row[1] for row in rows], np.int64),
            names=[row[2] for row in rows],
        )


def _file(name, folder, path):
    """Where a picture is in its folder, however the list writes it."""
    name = inside(name.replace("\\", "/"), path)
    return name.removeprefix(f"{folder}/")


def _unique(numbers, files, path):
    """Picture id -> position; raises DatasetError where an id or a file is listed twice."""
    number_of, of_file = {}, {}
    for place, (number, file) in enumerate(zip(numbers, files)):
        if number in number_of:
            raise DatasetError(
                f"{path}: picture id {number!r:.50} is listed twice, for "
                f"{files[number_of[number]]} and {file}; give every picture its own"
            )
        if file in of_file:
            raise DatasetError(
                f"{path}: file {file} is listed twice, as pictures {of_file[file]!r:.50} and "
                f"{number!r:.50}; join their annotations"
            )
        number_of[number], of_file[file] = place, number
    return number_of


def _named(files, folder):
    """Name of a video -> position: the file without its suffix, but where two differ in it only."""
    bare = [str(pathlib.PurePosixPath(file).with_suffix("")) for file in files]
    counts = collections.Counter(bare)
    return {
        f"{folder}/{name if counts[name] == 1 else file}": place
        for place, (name, file) in enumerate(zip(bare, files))
    }


def _size(image):
    """(height, width) of a picture, None where the list does not say."""
    height, width = (int(image.get(side) or 0) for side in ("height", "width"))
    return (height, width) if height and width else None


def _box(bbox):
    """`[ymin, xmin, ymax, xmax]` of COCO's `[x, y, width, height]`; raises ValueError."""
    try:
        values = tuple(map(float, bbox))
    except (TypeError, ValueError):
        values = ()
    # Nor is nan below the bound.
    if len(values) != 4 or not all(abs(v) <= annotation_xml.MAX_VALUE for v in values):
        raise ValueError(f"bbox {bbox!r:.80}, wanted are four numbers: x, y, width, height")
    x, y, width, height = values
    return y, x, y + height, x + width


def _rows(table, position):
    return slice(int(table.first[position]), int(table.first[position + 1]))
