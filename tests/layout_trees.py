"""Small trees laid out like the real data sets, with their oddities, for tests.

Every function returns what it painted, so that a test compares a reader with the painter. Pictures
have a grey ground and blocks of colour.
"""

import json
import pathlib

import cv2
import numpy as np

SIZE = (48, 64)
# WNIDs that are in VID, and one of DET that is not.
DOG, TRAIN, ACCORDION = "n02084071", "n04468005", "n02672831"


def write_picture(path, size=SIZE, blocks=(), ground=60):
    """A JPEG of [y0, x0, y1, x1] blocks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), ground, np.uint8)
    for number, (y0, x0, y1, x1) in enumerate(blocks):
        image[y0:y1, x0:x1] = (200, 120 + 40 * number, 30)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 98])


def write_png(path, mask, palette=False):
    """A PNG: grey, or indexed with DAVIS's and Pascal's kind of palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not palette:
        assert cv2.imwrite(str(path), mask)
        return
    from PIL import Image

    image = Image.fromarray(mask, mode="P")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)


def annotation_xml(objects, size=SIZE, order="xmax xmin ymax ymin", extra=""):
    """VID's XML; objects are (name, [y0, x0, y1, x1], track or None, further elements)."""
    parts = [
        f"<folder>f</folder><filename>g</filename>{extra}<size><width>{size[1]}</width>"
        f"<height>{size[0]}</height></size>"
    ]
    for name, (y0, x0, y1, x1), track, more in objects:
        corners = {"ymin": y0, "xmin": x0, "ymax": y1, "xmax": x1}
        box = "".join(f"<{c}>{corners[c]}</{c}>" for c in order.split())
        identity = "" if track is None else f"<trackid>{track}</trackid>"
        parts.append(f"<object>{identity}<name>{name}</name><bndbox>{box}</bndbox>{more}</object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def vid(root: pathlib.Path, train=(12, 3), val=(5,)) -> dict:
    """ImageNet VID: a dog moves by a pixel a frame, a train stands; every third frame is empty.

    Returns (video, frame) -> [(WNID, box, track)].
    """
    truth = {}
    names = [f"train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_{i:08d}" for i in range(len(train))]
    names += [f"val/ILSVRC2015_val_{i:08d}" for i in range(len(val))]
    for name, count in zip(names, [*train, *val]):
        for t in range(count):
            objects = (
                []
                if t % 3 == 2
                else [(DOG, (8, 4 + t, 24, 20 + t), 0), (TRAIN, (30, 2, 44, 60), 7)]
            )
            truth[name, t] = objects
            write_picture(root / f"Data/VID/{name}/{t:06d}.JPEG", blocks=[o[1] for o in objects])
            more = "<occluded>0</occluded><generated>1</generated>"
            write_text(
                root / f"Annotations/VID/{name}/{t:06d}.xml",
                annotation_xml([(*o, more) for o in objects]),
            )
    for split in ("train", "val"):
        lines = [
            f"{name.removeprefix(split + '/')}/{t:06d} {i + 1}"
            for i, (name, t) in enumerate(truth)
            if name.startswith(split)
        ]
        if split == "train":  # Lists videos, val frames.
            lines = sorted({line.rpartition("/")[0] + " 1" for line in lines})
        write_text(root / f"ImageSets/VID/{split}.txt", "\n".join(lines) + "\n")
    return truth


def cls(root: pathlib.Path):
    """ImageNet's classification set: two classes; pictures of training have no annotation."""
    for wnid, count in ((TRAIN, 2), (DOG, 3)):
        for i in range(count):
            write_picture(root / f"Data/CLS-LOC/train/{wnid}/{wnid}_{i}.JPEG", size=(30 + i, 40))
    shown = [[(TRAIN, (2, 3, 20, 30)), (TRAIN, (5, 5, 9, 9))], [(DOG, (0, 0, 5, 5))]]
    for i, objects in enumerate(shown):
        name = f"CLS-LOC/val/ILSVRC2012_val_{i + 1:08d}"
        write_picture(root / f"Data/{name}.JPEG")
        objects = [(*o, None, "") for o in objects]
        write_text(root / f"Annotations/{name}.xml", annotation_xml(objects))


def det(root: pathlib.Path) -> None:
    """ImageNet DET: a dog with an accordion, an accordion alone, a picture without annotation."""
    for split, folder in (("train", "train/ILSVRC2013_train/n02084071"), ("val", "val")):
        pictures = {
            "with_dog": [
                (DOG, (8, 4, 24, 20), None, ""),
                (ACCORDION, (20, 30, 40, 60), None, ""),
                (DOG, (25, 4, 44, 20), None, ""),
            ],
            "accordion": [(ACCORDION, (20, 30, 40, 60), None, "")],
            "empty": [],
        }
        for name, objects in pictures.items():
            write_picture(root / f"Data/DET/{folder}/{name}.JPEG", blocks=[o[1] for o in objects])
            write_text(root / f"Annotations/DET/{folder}/{name}.xml", annotation_xml(objects))
        write_picture(root / f"Data/DET/{folder}/unlabelled.JPEG")


COCO_NAMES = {1: "person", 9: "boat", 17: "cat", 21: "cow"}


def coco(root: pathlib.Path) -> None:
    """COCO 2017: a cat and a person; a boat; nothing; a crowd of cows beside one cow."""
    for split in ("train", "val"):
        images, annotations = [], []

        def add(image, category, box, crowd=0):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                    "segmentation": [],
                }
            )

        for number in (9, 25, 30, 34):
            name = f"{number:012d}.jpg"
            images.append({"id": number, "file_name": name, "height": 48, "width": 64})
            write_picture(root / f"{split}2017/{name}")
        add(9, 17, [4.5, 8, 16.25, 16])
        add(9, 1, [30, 8, 10, 30])
        add(25, 9, [10, 20, 30, 20])
        add(34, 21, [0, 0, 60, 40], crowd=1)
        add(34, 21, [40, 10, 20, 30])
        write_text(
            root / f"annotations/instances_{split}2017.json",
            json.dumps(
                {
                    "images": images,
                    "annotations": annotations,
                    "categories": [{"id": i, "name": n} for i, n in COCO_NAMES.items()],
                }
            ),
        )


def voc(root: pathlib.Path) -> np.ndarray:
    """Pascal VOC: a dog, a difficult person and a cat; the first picture has masks.

    Returns the SegmentationObject mask: 1 dog, 2 person, 3 cat, 255 void.
    """
    objects = [
        ("dog", (9, 5, 24, 20), None, "<difficult>0</difficult>"),
        ("person", (1, 40, 20, 64), None, "<difficult>1</difficult>"),
        ("cat", (30, 11, 48, 50), None, ""),
    ]
    mask = np.zeros(SIZE, np.uint8)
    for number, (_, (y0, x0, y1, x1), _, _) in enumerate(objects, start=1):
        mask[y0 - 1 : y1, x0 - 1 : x1] = number
    mask[8, 4:20] = 255
    for split, name in (("train", "2007_000027"), ("val", "2008_000002")):
        write_picture(root / f"JPEGImages/{name}.jpg", blocks=[o[1] for o in objects])
        write_text(
            root / f"Annotations/{name}.xml", annotation_xml(objects, order="xmin ymin xmax ymax")
        )
        write_text(root / f"ImageSets/Main/{split}.txt", f"{name}\n")
    write_png(root / "SegmentationObject/2007_000027.png", mask, palette=True)
    return mask


def davis(root: pathlib.Path, lengths: dict[str, int], year=2016, empty=()) -> dict:
    """DAVIS: a block moves by a pixel a frame; 2017 has a second object, number 3, and void.

    Frames in `empty`, (sequence, t), have no object. Returns the blocks of the first object.
    """
    blocks = {}
    for number, (name, count) in enumerate(lengths.items()):
        for t in range(count):
            top, left = 5 + number, 8 + t
            block = (top, left, top + 12, left + 20)
            blocks[name, t] = list(block)
            mask = np.zeros(SIZE, np.uint8)
            if (name, t) not in empty:
                mask[top : top + 12, left : left + 20] = 255 if year == 2016 else 1
            if year == 2017:
                mask[30:40, 40:60] = 3
                mask[40:42, 40:60] = 255
            write_picture(
                root / f"JPEGImages/480p/{name}/{t:05d}.jpg",
                blocks=[block] if (name, t) not in empty else (),
            )
            write_png(root / f"Annotations/480p/{name}/{t:05d}.png", mask, palette=year == 2017)
    names = list(lengths)
    for split, listed in (("train", names[:-1]), ("val", names[-1:])):
        if year == 2016:
            lines = [
                f"/JPEGImages/480p/{name}/{t:05d}.jpg /Annotations/480p/{name}/{t:05d}.png"
                for name in listed
                for t in range(lengths[name])
            ]
            write_text(root / f"ImageSets/480p/{split}.txt", "\n".join(lines) + "\n")
        else:
            write_text(root / f"ImageSets/2017/{split}.txt", "\n".join(listed) + "\n")
    return blocks
