"""COCO's numbers against published ones, and by hand where that is possible."""

import json
import math

import numpy as np
import pytest

from memvid_tf.evaluation import coco
from memvid_tf.evaluation.coco import CocoAp

SIZE = (100, 200)
NOTHING = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)


def test_the_published_twelve(fixtures_dir):
    folder = fixtures_dir / "coco100"
    if not folder.is_dir():
        pytest.skip(f"no COCO results at {folder}")
    truth, results, published = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in (
            "sampled_gts_bbox_area.json",
            "sampled_bbox_results.json",
            "coco100_review_dets_stats.json",
        )
    )
    keys = ("image_id", "category_id", "bbox", "score")
    detections = [{key: a[key] for key in keys} for a in results["annotations"]]
    found = coco.evaluate(truth, detections)
    assert list(found.numbers) == list(coco.NUMBERS)
    np.testing.assert_allclose(list(found.numbers.values()), published, atol=5e-7)
    shown = [ap for ap in found.per_class_ap.values() if not math.isnan(ap)]
    assert np.mean(shown) == pytest.approx(published[0], abs=5e-7)


def test_images_without_detections_count():
    """Two images, one object each, one found: half the recall, all precision.

    The first 51 of COCO's 101 recalls are reached, with precision 1: 51/101 at every IoU.
    """
    box = np.array([[0.1, 0.1, 0.7, 0.5]])
    truth = [(box, np.array([1]), np.array([0]))] * 2
    score = CocoAp(["cat", "dog"])
    score.add_clip([(box, np.array([0.9]), np.array([1])), NOTHING], truth, SIZE)
    numbers = score.result().numbers
    assert numbers["AP"] == numbers["AP50"] == pytest.approx(51 / 101)
    assert numbers["AR_100"] == pytest.approx(0.5)
    # 60 x 80 pixels: medium, 32**2 to 96**2.
    assert numbers["AP_medium"] == pytest.approx(51 / 101) and math.isnan(numbers["AP_small"])
    found = score.result()
    assert found.per_class_ap["cat"] == pytest.approx(51 / 101)
    assert math.isnan(found.per_class_ap["dog"])
    assert found.to_json()["numbers"]["AP_small"] is None


def test_nothing_found_at_all():
    score = CocoAp(["cat"])
    score.add_clip([NOTHING], [(np.array([[0, 0, 0.5, 0.5]]), np.array([1]), np.array([0]))], SIZE)
    assert score.result().numbers["AP"] == 0


def test_thresholds_follow_the_overlap():
    """A box of 3/4 of the object's width has IoU .75: right at .5 to .75, six of ten thresholds."""
    score = CocoAp(["cat"])
    score.add_clip(
        [(np.array([[0, 0, 0.5, 0.3]]), np.array([0.9]), np.array([1]))],
        [(np.array([[0, 0, 0.5, 0.4]]), np.array([1]), np.array([0]))],
        (100, 100),
    )
    numbers = score.result().numbers
    assert numbers["AP"] == pytest.approx(0.6) and numbers["AP75"] == pytest.approx(1)


def test_the_size_is_of_the_original_frames():
    truth = [(np.array([[0, 0, 0.5, 0.5]]), np.array([1]), np.array([0]))]
    for size, large in (((60, 60), "AP_small"), ((640, 480), "AP_large")):
        score = CocoAp(["cat"])
        score.add_clip([(truth[0][0], np.array([0.5]), np.array([1]))], truth, size)
        assert score.result().numbers[large] == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [{"image_id": 2}, {"category_id": 3}, {"score": math.nan}, {"bbox": [0, 0, math.inf, 1]}],
)
def test_detections_of_nothing_are_refused(change):
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    detection = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5, **change}
    with pytest.raises(ValueError, match="not of an image and a category of the truth"):
        coco.evaluate(truth, [detection])


def test_annotations_need_no_ids_areas_or_crowds_and_stay_as_they_are():
    """Numbered from 0, twice the same, or not at all: a perfect detection is perfect."""
    images = [{"id": i, "height": 100, "width": 100} for i in (1, 2)]
    boxes = {1: [10, 10, 40, 40], 2: [30, 20, 40, 60]}
    found = [
        {"image_id": i, "category_id": 3, "bbox": box, "score": 0.9} for i, box in boxes.items()
    ]
    for ids in ([{"id": 0}, {"id": 1}], [{"id": 5}, {"id": 5}], [{}, {}]):
        truth = {
            "images": images,
            "categories": [{"id": 3, "name": "cat"}],
            "annotations": [
                {"image_id": i, "category_id": 3, "bbox": box, **number}
                for (i, box), number in zip(boxes.items(), ids)
            ],
        }
        before = json.dumps(truth)
        assert coco.evaluate(truth, found).numbers["AP"] == 1
        assert json.dumps(truth) == before
