"""DAVIS's J and F against published results on real masks, and against a slow reading of the
definitions."""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image

from memvid_tf.evaluation import davis


def slow_boundary_accuracy(mask, truth):
    """The definition pixel by pixel."""
    height, width = mask.shape
    radius = int(np.ceil(0.008 * np.sqrt(height**2 + width**2)))

    def outline(m):
        found = []
        for y in range(height):
            for x in range(width):
                # Beyond the border a pixel has no neighbour to differ from.
                below, right = min(y + 1, height - 1), min(x + 1, width - 1)
                if m[y, x] != m[below, x] or m[y, x] != m[y, right] or m[y, x] != m[below, right]:
                    found.append((y, x))
        return found

    def part_near(points, others):
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in others) for y, x in points]
        return sum(near) / len(points)

    a, b = outline(mask), outline(truth)
    if not a or not b:
        return float(not a and not b)
    precision, recall = part_near(a, b), part_near(b, a)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blob(rng, size):
    noise = cv2.GaussianBlur(rng.normal(size=size), (0, 0), 4)
    return noise > noise.std() * 0.3


def test_against_the_definition():
    rng = np.random.default_rng(0)
    for size in ((30, 41), (57, 33)):
        for _ in range(3):
            mask, truth = blob(rng, size), blob(rng, size)
            for pair in ((mask, truth), (mask, np.roll(mask, 2, axis=1)), (mask, mask)):
                assert davis.boundary_accuracy(*pair) == pytest.approx(
                    slow_boundary_accuracy(*pair), abs=1e-12
                )
                a, b = pair
                both = sum(x and y for x, y in zip(a.flat, b.flat))
                either = sum(x or y for x, y in zip(a.flat, b.flat))
                assert davis.region_similarity(a, b) == pytest.approx(both / either)


def test_empty_masks():
    nothing, something = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    something[5:9, 5:9] = True
    for measure in (davis.region_similarity, davis.boundary_accuracy):
        assert measure(nothing, nothing) == 1
        assert measure(nothing, something) == measure(something, nothing) == 0
        assert measure(something, something) == 1


def test_the_summary_by_hand():
    # Eight frames: borders at 0, 1.75, 3.5, 5.25, 7, rounded 0, 2, 4, 5, 7.
    values = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1]
    measure = davis.summarize(values)
    assert measure.mean == pytest.approx(0.6)
    assert measure.recall == 5 / 8  # .5 is not above .5.
    assert measure.decay == pytest.approx(0.9 - 0.8 / 3)
    assert davis.summarize([0.7]) == davis.Measure(0.7, 1.0, 0.0)


def test_objects_are_scored_apart_and_void_counts_nowhere():
    truth = np.zeros((3, 20, 30), np.uint8)
    truth[:, 2:8, 2:8], truth[:, 10:16, 10:20], truth[:, 10:16, 20:24] = 1, 4, 255
    masks = truth.copy()
    masks[truth == 255] = 4  # Void: no fault.
    masks[1, 2:8, 2:8] = 4  # Object 1 is taken for object 4.
    found = davis.evaluate_sequence(masks, truth, "semi_supervised")
    assert set(found) == {1, 4} and found[1].frames == 1
    assert found[1].j.mean == found[1].f.mean == 0
    assert found[4].j.mean == pytest.approx(60 / 96)
    found = davis.evaluate_sequence(masks, truth, "unsupervised")
    assert found[1].j.mean == pytest.approx(2 / 3)
    result = davis.combine({"a": found}, "unsupervised")
    assert result.j.mean == pytest.approx((2 / 3 + (2 + 60 / 96) / 3) / 2)
    assert [row[:3] for row in result.rows()] == [["a", 1, 3], ["a", 4, 3]]
    assert result.to_json()["sequences"]["a"][1]["j"]["mean"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "masks, truth, convention, message",
    [
        (4, 4, "online", "convention 'online' is not one of semi_supervised, unsupervised"),
        (4, 3, "unsupervised", "4 masks are given and 3 frames"),
        (2, 2, "semi_supervised", "2 frames has none to score"),
        (3, 3, "unsupervised", "the truth shows no object"),
    ],
)
def test_wrong_input_is_named(masks, truth, convention, message):
    frame = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=message):
        davis.evaluate_sequence([frame] * masks, [frame] * truth, convention)


def test_frames_of_other_sizes_are_named():
    with pytest.raises(ValueError, match=r"mask 0 of those scored is \(4, 5\), truth \(5, 4\)"):
        davis.evaluate_sequence([np.zeros((4, 5))], [np.ones((5, 4))], "unsupervised")


def test_against_the_reference_implementations(fixtures_dir):
    folder = fixtures_dir / "davis2016"
    path = folder / "osvos_pred_reference_JF.csv"
    if not path.is_file():
        pytest.skip(f"no reference results at {path}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    for row in rows:
        name = row["sequence"]
        truth, masks = (
            [
                (np.asarray(Image.open(p)) > 0).astype(np.uint8)
                for p in sorted((folder / part / "480p" / name).glob("*.png"))
            ]
            for part in ("Annotations", "osvos_pred")
        )
        for convention, suffix in (("unsupervised", "all"), ("semi_supervised", "skip_first_last")):
            found = davis.evaluate_sequence(masks, truth, convention)[1]
            for measure in ("J", "F"):
                for statistic in ("mean", "recall", "decay"):
                    assert getattr(getattr(found, measure.lower()), statistic) == pytest.approx(
                        float(row[f"{measure}_{statistic}_{suffix}"]), abs=1e-6
                    ), (name, convention, measure, statistic)
