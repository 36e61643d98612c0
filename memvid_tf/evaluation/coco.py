"""COCO's twelve detection numbers, by pycocotools over all images.

An image without detections is an image whose objects were missed; it is scored like any other.
From clip records areas are those of boxes, in pixels of the pictures as they were before they were
resized, and there are no crowd regions; official numbers need the official annotations.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

# In the order of `COCOeval.stats`.
NUMBERS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CocoResult:
    """What `evaluate` returns; nan where there is no ground truth for a number.

    Attributes:
      numbers: the twelve, by `NUMBERS`, in [0, 1].
      per_class_ap: category's name -> AP over the IoUs .5 to .95.
    """

    numbers: dict[str, float]
    per_class_ap: dict[str, float]

    def to_json(self) -> dict:
        """Returns plain values for `json.dump`; nan becomes None."""
        return {
            name: {key: None if math.isnan(value) else value for key, value in values.items()}
            for name, values in dataclasses.asdict(self).items()
        }


def evaluate(truth: dict, detections: Sequence[dict]) -> CocoResult:
    """Scores detections.

    Args:
      truth: content of an `instances_*.json`: images, annotations, categories. An annotation
        without area has its box's, one without iscrowd is no crowd; ids may be any, or none.
      detections: `{image_id, category_id, bbox: [x, y, width, height], score}`, in pixels.

    Raises:
      ValueError: when a detection is of an image or a category which the truth does not list, or a
        value is not finite.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = {name: {entry["id"] for entry in truth[name]} for name in ("images", "categories")}
    for detection in detections:
        if (
            detection["image_id"] not in known["images"]
            or detection["category_id"] not in known["categories"]
            or not np.isfinite([*detection["bbox"], detection["score"]]).all()
        ):
            raise ValueError(
                f"detection {detection} is not of an image and a category of the "
                "truth, or not finite"
            )
    reference, found = COCO(), COCO()
    # Copies, since pycocotools writes into them; and numbers from one: it takes a match with
    # annotation 0 for none.
    reference.dataset = {
        **truth,
        "annotations": [
            {"area": _area(annotation), "iscrowd": 0, **annotation, "id": number}
            for number, annotation in enumerate(truth["annotations"], start=1)
        ],
    }
    found.dataset = {
        **truth,
        "annotations": [
            {**detection, "id": number, "iscrowd": 0, "area": _area(detection)}
            for number, detection in enumerate(detections, start=1)
        ],
    }
    # pycocotools reports on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        found.createIndex()
        scores = COCOeval(reference, found, "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    # [IoU, recall, category, area, most detections]: all areas, one hundred detections.
    precision = scores.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for position, category in enumerate(scores.params.catIds):
        values = precision[:, :, position]
        per_class[names[category]] = float(values.mean()) if (values > -1).all() else math.nan
    return CocoResult(
        {
            name: float(value) if value > -1 else math.nan
            for name, value in zip(NUMBERS, scores.stats)
        },
        per_class,
    )


def _area(entry):
    return entry["bbox"][2] * entry["bbox"][3]


class CocoAp:
    """Collects clips and computes COCO's numbers, as `vid_map.VidMap` does ImageNet VID's.

    Args:
      labels: class names; class ids are 1..C.
    """

    def __init__(self, labels: Sequence[str]):
        self._truth = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": label} for i, label in enumerate(labels, start=1)],
        }
        self._detections = []

    def add_clip(self, detections, truth, image_size: tuple[int, int], video: str = "") -> None:
        """Adds one clip, every frame an image; arguments as of `VidMap.add_clip`."""
        del video  # COCO knows images only.
        scale = np.tile(np.asarray(image_size, np.float64), 2)
        for (boxes, scores, classes), (real_boxes, real_classes, _) in zip(
            detections, truth, strict=True
        ):
            image = len(self._truth["images"]) + 1
            self._truth["images"].append(
                {"id": image, "height": int(image_size[0]), "width": int(image_size[1])}
            )
            for box, class_id in zip(_xywh(real_boxes, scale), real_classes):
                annotations = self._truth["annotations"]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(class_id),
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
            self._detections += [
                {
                    "image_id": image,
                    "category_id": int(class_id),
                    "bbox": box,
                    "score": float(score),
                }
                for box, class_id, score in zip(_xywh(boxes, scale), classes, scores)
            ]

    def result(self) -> CocoResult:
        """Returns the numbers over all clips added so far, at least one."""
        return evaluate(self._truth, self._detections)


def _xywh(boxes, scale):
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    top, left, bottom, right = boxes.T
    return np.stack([left, top, right - left, bottom - top], axis=1).tolist()
