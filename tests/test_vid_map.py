"""The VID evaluator against hand-worked cases and a literal loop over everything.

The motion split here is the strict one; the field's is in test_motion_split.
"""

import dataclasses
import json
import math

import numpy as np
import pytest

from memvid_tf.evaluation import vid_map
from memvid_tf.evaluation.vid_map import VidMap, average_precision, motion_iou

NO_BOXES = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))


def frame(boxes, values, classes):
    """(boxes, scores, classes) of a frame of detections."""
    return np.array(boxes, float).reshape(-1, 4), np.array(values, float), np.array(classes, int)


def truth(boxes, classes, tracks):
    return np.array(boxes, float).reshape(-1, 4), np.array(classes, int), np.array(tracks, int)


def square(top, left, side=0.2):
    return [top, left, top + side, left + side]


# --- The loop-level reference -------------------------------------------------------------------


def iou_reference(a, b, extra):
    height = min(a[2], b[2]) - max(a[0], b[0]) + extra
    width = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if height <= 0 or width <= 0:
        return 0.0
    both = height * width
    return both / (
        (a[2] - a[0] + extra) * (a[3] - a[1] + extra)
        + (b[2] - b[0] + extra) * (b[3] - b[1] + extra)
        - both
    )


def motion_reference(clip_truth):
    """Speed name or None of every object, frame by frame."""
    result = []
    for t, (boxes, _, tracks) in enumerate(clip_truth):
        speeds = []
        for box, track in zip(boxes, tracks):
            values = []
            for other in range(max(0, t - 10), min(len(clip_truth), t + 11)):
                if other == t or track < 0:
                    continue
                for other_box, other_track in zip(clip_truth[other][0], clip_truth[other][2]):
                    if other_track == track:
                        values.append(iou_reference(box, other_box, 0.0))
            if not values:
                speeds.append(None)
            else:
                mean = sum(values) / len(values)
                speeds.append("slow" if mean > 0.9 else "fast" if mean < 0.7 else "medium")
        result.append(speeds)
    return result


def map_reference(clips, num_classes, matching, size, speed=None):
    """Mean AP with nothing vectorised; `speed` None counts every object."""
    by_class = {c: [] for c in range(1, num_classes + 1)}
    positives = dict.fromkeys(by_class, 0)
    for detections, clip_truth in clips:
        speeds = motion_reference(clip_truth)
        for t, ((boxes, scores, classes), (real, real_classes, _)) in enumerate(
            zip(detections, clip_truth)
        ):
            counted = [speed is None or s == speed for s in speeds[t]]
            for c in by_class:
                positives[c] += sum(1 for k, rc in zip(counted, real_classes) if k and rc == c)
            taken = set()
            for d in sorted(range(len(scores)), key=lambda d: -scores[d]):
                best, best_iou, in_ignored = None, -1.0, False
                for n in range(len(real)):
                    if real_classes[n] != classes[d]:
                        continue
                    a, b, threshold, extra = boxes[d], real[n], 0.5, 0.0
                    if matching == "size_dependent":
                        scale = np.array([*size, *size])
                        a, b, extra = a * scale, b * scale, 1.0
                        h, w = b[2] - b[0] + 1, b[3] - b[1] + 1
                        threshold = min(0.5, h * w / ((h + 10) * (w + 10)))
                    iou = iou_reference(a, b, extra)
                    if iou < threshold:
                        continue
                    if not counted[n]:
                        in_ignored = True
                    elif n not in taken and iou > best_iou:
                        best, best_iou = n, iou
                if best is not None:
                    taken.add(best)
                    by_class[classes[d]].append((scores[d], True))
                elif not in_ignored:
                    by_class[classes[d]].append((scores[d], False))
    values = []
    for c, found in by_class.items():
        if not positives[c]:
            continue
        found = sorted(found, key=lambda pair: -pair[0])
        points, right = [], 0
        for rank, (_, correct) in enumerate(found, 1):
            right += correct
            points.append((right / positives[c], right / rank))
        area, recall = 0.0, 0.0
        for i, (r, _) in enumerate(points):
            if r > recall:
                area += (r - recall) * max(p for _, p in points[i:])
                recall = r
        values.append(area)
    return sum(values) / len(values) if values else math.nan


def random_clip(rng, frames, num_classes):
    """Tracks of all speeds which come and go, detections near and far from them."""
    count = rng.integers(0, 4)
    place = rng.uniform(0.1, 0.6, (count, 2))
    side = rng.uniform(0.05, 0.3, (count, 2))
    step = side * np.exp(rng.normal(-4.2, 1.3, (count, 1)))
    classes = rng.integers(1, num_classes + 1, count)
    clip_truth, detections = [], []
    for t in range(frames):
        shown = np.flatnonzero(rng.random(count) < 0.9)
        corner = place[shown] + t * step[shown]
        boxes = np.concatenate([corner, corner + side[shown]], axis=1)
        clip_truth.append((boxes, classes[shown], shown))
        extra = rng.integers(0, 3)
        again = rng.integers(0, len(shown), 2) if len(shown) else np.zeros(0, int)
        near = np.concatenate([boxes, boxes[again]])
        near = near + rng.normal(0, 0.02, near.shape)
        far = rng.uniform(0, 0.6, (extra, 2))
        guesses = np.concatenate([near, np.concatenate([far, far + 0.2], axis=1)])
        names = np.concatenate(
            [classes[shown], classes[shown][again], rng.integers(1, num_classes + 1, extra)]
        )
        flip = rng.random(len(names)) < 0.15
        names = np.where(flip, rng.integers(1, num_classes + 1, len(names)), names)
        detections.append((guesses, rng.random(len(guesses)), names))
    return detections, clip_truth


@pytest.mark.parametrize("matching", vid_map.MATCHING)
def test_equals_the_literal_loop(matching):
    rng = np.random.default_rng(5)
    # A small frame, so that the size-dependent threshold is far below .5 for most objects.
    size = (60, 90)
    clips = [random_clip(rng, frames, 3) for frames in (14, 1, 25, 9, 17) * 4]
    evaluator = VidMap(3, matching=matching, motion_rule="strict")
    for detections, clip_truth in clips:
        evaluator.add_clip(detections, clip_truth, image_size=size)
    result = evaluator.result()
    # Both sides are float64; they differ in the order of a few thousand additions.
    assert result.mean_ap == pytest.approx(map_reference(clips, 3, matching, size), abs=1e-12)
    for speed in vid_map.SPEEDS:
        assert result.counts[speed] > 0
        expected = map_reference(clips, 3, matching, size, speed)
        assert result.motion[speed] == pytest.approx(expected, abs=1e-12)
    counts = result.counts
    assert counts["frames"] == 264 and counts["clips"] == 20
    assert counts["objects"] == sum(counts[s] for s in (*vid_map.SPEEDS, "unknown_speed"))


# --- Hand-worked cases --------------------------------------------------------------------------


def test_average_precision_by_hand():
    # By score: right, wrong, right, wrong, right; three of four objects are found.
    # Precisions at the right ones: 1/1, 2/3, 3/5, already falling, so the envelope keeps them.
    # AP = 1/4 (1 + 2/3 + 3/5) = 17/30.
    scores = [0.2, 0.9, 0.5, 0.8, 0.6]
    correct = [True, True, False, False, True]
    assert average_precision(scores, correct, 4) == pytest.approx(17 / 30)


def test_the_envelope_lifts_a_dip():
    # wrong, right, right: precisions at the right ones 1/2, 2/3; the envelope makes both 2/3.
    assert average_precision([0.9, 0.8, 0.7], [False, True, True], 2) == pytest.approx(2 / 3)


def test_no_positives_is_nan_and_no_detections_zero():
    assert math.isnan(average_precision([0.9], [False], 0))
    assert average_precision([], [], 3) == 0


def test_a_duplicate_is_wrong_and_the_better_score_wins():
    # Two detections of one object; the one with the higher score counts although it overlaps
    # less. Then a second object is found by the lowest score: right, wrong, right of 2.
    # AP = 1/2 (1 + 2/3) = 5/6.
    evaluator = VidMap(1)
    evaluator.add_clip(
        [
            frame(
                [square(0.1, 0.1), square(0.1, 0.12), square(0.6, 0.6)], [0.8, 0.9, 0.7], [1, 1, 1]
            )
        ],
        [truth([square(0.1, 0.1), square(0.6, 0.6)], [1, 1], [0, 1])],
    )
    assert evaluator.result().mean_ap == pytest.approx(5 / 6)


def test_a_second_detection_takes_the_next_best_free_object():
    # Both detections overlap object A (1 and .6) best, the second also B with exactly
    # .18/.22 > .5: B is still free, so both are right.
    a, b = [0.1, 0.1, 0.3, 0.3], [0.1, 0.17, 0.3, 0.37]
    second = [0.1, 0.15, 0.3, 0.35]
    evaluator = VidMap(1)
    evaluator.add_clip([frame([a, second], [0.9, 0.8], [1, 1])], [truth([a, b], [1, 1], [0, 1])])
    assert evaluator.result().mean_ap == 1


def test_classes_do_not_mix_and_empty_classes_stay_out_of_the_mean():
    # Class 1: its object is called class 2, so AP 0. Class 2: one right, one wrong after it: 1.
    # Class 3 has no objects: nan, and the mean is over two classes.
    evaluator = VidMap(3, labels=["cat", "dog", "eel"])
    evaluator.add_clip(
        [frame([square(0.1, 0.1), square(0.5, 0.5), square(0.7, 0.7)], [0.5, 0.9, 0.3], [2, 2, 3])],
        [truth([square(0.1, 0.1), square(0.5, 0.5)], [1, 2], [0, 1])],
    )
    result = evaluator.result()
    assert result.per_class_ap["cat"] == 0 and result.per_class_ap["dog"] == 1
    assert math.isnan(result.per_class_ap["eel"])
    assert result.mean_ap == 0.5
    assert json.loads(json.dumps(result.to_json()))["per_class_ap"]["eel"] is None


def test_iou_of_exactly_one_half_counts():
    # Extents 2x2 and 2x3 sharing 2x2... of 6: no. 1x2 inside 2x2: 2 / 4 = .5, exact in binary.
    evaluator = VidMap(1)
    evaluator.add_clip(
        [frame([[0, 0, 0.25, 0.5]], [0.9], [1])], [truth([[0, 0, 0.5, 0.5]], [1], [0])]
    )
    assert evaluator.result().mean_ap == 1


def test_size_dependent_threshold_by_hand():
    # An object of 9 x 9 pixels on a 100 x 100 frame: extents with +1 are 10 x 10, so the
    # threshold is 100 / 400 = .25. A detection 5 pixels to the right shares 10 x 5 of 150:
    # 1/3 is enough for it, and not for .5. (Without +1: 9 * 4 / (81 + 45) = .29, 81/361 = .22.)
    real, guess = [0.10, 0.10, 0.19, 0.19], [0.10, 0.15, 0.19, 0.24]
    for matching, expected in (("plain", 0), ("size_dependent", 1)):
        evaluator = VidMap(1, matching=matching)
        evaluator.add_clip([frame([guess], [0.9], [1])], [truth([real], [1], [0])], (100, 100))
        assert evaluator.result().mean_ap == expected
        assert evaluator.result().matching == matching
    # 7 pixels off: 10 x 3 of 170 = .18 is too little for either.
    evaluator = VidMap(1, matching="size_dependent")
    evaluator.add_clip(
        [frame([[0.10, 0.17, 0.19, 0.26]], [0.9], [1])], [truth([real], [1], [0])], (100, 100)
    )
    assert evaluator.result().mean_ap == 0


def test_large_objects_keep_one_half():
    # 99 x 99 pixels: 100^2 / 110^2 = .83, so the threshold is .5: IoU .45 is wrong.
    # 38 of 100 columns off: 62 x 100 of 138 x 100 = .449.
    evaluator = VidMap(1, matching="size_dependent")
    evaluator.add_clip(
        [frame([[0, 0.19, 0.495, 0.685]], [0.9], [1])],
        [truth([[0, 0, 0.495, 0.495]], [1], [0])],
        (200, 200),
    )
    assert evaluator.result().mean_ap == 0


def test_motion_iou_by_hand():
    # Side .2, .02 to the right in every frame: IoU with the next frame is .18/.22, with the one
    # after .16/.24. The track is missing in frame 1, so frame 0 sees only frame 2.
    boxes = [np.array([square(0.1, 0.1 + 0.02 * t)]) for t in range(3)]
    tracks = [np.array([4]), np.array([-1]), np.array([4])]
    first, missing, last = motion_iou(boxes, tracks)
    assert first[0] == pytest.approx(0.16 / 0.24) and last[0] == pytest.approx(0.16 / 0.24)
    assert np.isnan(missing[0])
    tracks[1] = np.array([4])
    values = np.concatenate(motion_iou(boxes, tracks))
    np.testing.assert_allclose(
        values, [(0.18 / 0.22 + 0.16 / 0.24) / 2, 0.18 / 0.22, (0.18 / 0.22 + 0.16 / 0.24) / 2]
    )


def test_motion_iou_looks_ten_frames_far():
    # Still for 11 frames, then far away: frame 0 sees only its equals, frame 1 one that is not.
    boxes = [np.array([square(0.1, 0.1 if t < 11 else 0.6)]) for t in range(12)]
    values = np.concatenate(motion_iou(boxes, [np.array([0])] * 12))
    assert values[0] == 1
    assert values[1] == pytest.approx(10 / 11)


def speedy_clip():
    """Ten frames: track 0 stands still, track 1 jumps by half its side."""
    return [
        truth([square(0.1, 0.1), square(0.6, 0.05 + 0.08 * t, 0.16)], [1, 1], [0, 1])
        for t in range(10)
    ]


def test_objects_of_other_speeds_are_neither_missed_nor_wrong():
    clip = speedy_clip()
    # Everything still is found, nothing fast is: half the objects, precision 1 until then.
    still = [frame([boxes[0]], [0.9], [1]) for boxes, _, _ in clip]
    evaluator = VidMap(1, motion_rule="strict")
    evaluator.add_clip(still, clip)
    result = evaluator.result()
    assert result.mean_ap == pytest.approx(0.5)
    assert result.motion["slow"] == 1 and result.motion["fast"] == 0
    assert math.isnan(result.motion["medium"])
    assert (result.counts["slow"], result.counts["fast"]) == (10, 10)


def test_videos_are_scored_by_their_own_objects():
    box, other = [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]
    evaluator = VidMap(3)
    for video, found, real in (
        ("a", frame([box], [0.9], [1]), truth([box], [1], [0])),
        ("b", frame([box, other], [0.9, 0.8], [2, 1]), truth([other], [1], [0])),
        ("a", frame([box], [0.5], [1]), truth([box, other], [1, 2], [0, 1])),
        ("c", frame([box], [0.5], [1]), truth([], [], [])),
    ):
        evaluator.add_clip([found], [real], video=video)
    evaluator.add_clip([], [], video="b")
    evaluator.add_clip([NO_BOXES] * 2, [truth([box], [3], [0])] * 2)
    rows = [dataclasses.astuple(video) for video in evaluator.result().videos]
    # In a, class 1 is found twice and class 2 never; b's detection of class 2 is of a class that
    # b does not have.
    assert rows[:2] == [("a", 2, 3, 2, 0.5), ("b", 1, 1, 2, 1.0)]
    assert rows[2][:4] == ("c", 1, 0, 1) and math.isnan(rows[2][4])
    assert rows[3] == ("clip 5", 2, 2, 0, 0.0)


def test_a_detection_of_nothing_is_wrong_at_every_speed():
    clip = speedy_clip()
    # Each frame: a false alarm scored above the still object, and the fast one in between, which
    # is ignored for 'slow' and right for 'fast'. At either speed the ranks are 10 wrong, then 10
    # right: the envelope's best precision is 10/20.
    found = [
        frame([square(0.8, 0.8), boxes[1], boxes[0]], [0.9, 0.5, 0.4], [1, 1, 1])
        for boxes, _, _ in clip
    ]
    evaluator = VidMap(1, motion_rule="strict")
    evaluator.add_clip(found, clip)
    result = evaluator.result()
    assert result.motion["slow"] == pytest.approx(0.5)
    assert result.motion["fast"] == pytest.approx(0.5)
    # A second detection of the ignored fast object changes nothing for 'slow'; for 'fast' a
    # duplicate after all the right ones does not either, but without split it costs.
    doubled = [
        frame([*f[0], boxes[1]], [*f[1], 0.45], [1] * 4) for f, (boxes, _, _) in zip(found, clip)
    ]
    evaluator = VidMap(1, motion_rule="strict")
    evaluator.add_clip(doubled, clip)
    assert evaluator.result().motion["slow"] == pytest.approx(0.5)
    assert evaluator.result().motion["fast"] == pytest.approx(0.5)
    # 10 wrong, 10 right, 10 wrong, 10 right: envelope 20/40 throughout, as against 20/30.
    assert evaluator.result().mean_ap == pytest.approx(0.5)
    assert result.mean_ap == pytest.approx(20 / 30)


def test_an_object_that_counts_goes_before_one_that_is_ignored():
    # A still object and a fast one that passes over it, both of class 1; in the frames where
    # they overlap by more than half, a detection of the still one could be excused as one of the
    # fast one. It is right, at its full count of five frames.
    clip = [
        truth([square(0.1, 0.1), square(0.1, 0.1 + 0.07 * (t - 2))], [1, 1], [0, 1])
        for t in range(5)
    ]
    found = [frame([boxes[0]], [0.9], [1]) for boxes, _, _ in clip]
    evaluator = VidMap(1, motion_rule="strict")
    evaluator.add_clip(found, clip)
    result = evaluator.result()
    assert result.counts["slow"] == result.counts["fast"] == 5
    assert result.motion["slow"] == 1


def test_equal_scores_keep_the_order_of_arrival():
    # One score for all. Frame by frame in order: right, wrong gives AP 1; wrong, right gives 1/2.
    right, wrong = square(0.1, 0.1), square(0.6, 0.6)
    for order, expected in (((right, wrong), 1.0), ((wrong, right), 0.5)):
        evaluator = VidMap(1)
        evaluator.add_clip([frame(order, [0.7, 0.7], [1, 1])], [truth([right], [1], [0])])
        assert evaluator.result().mean_ap == expected


def test_clips_without_detections_or_truth():
    evaluator = VidMap(2)
    assert math.isnan(evaluator.result().mean_ap)
    evaluator.add_clip([NO_BOXES] * 3, [truth([], [], [])] * 3)
    evaluator.add_clip([], [])
    assert math.isnan(evaluator.result().mean_ap)
    # Missed in two frames, then found once in a clip of its own, with a false alarm where there
    # is nothing, at a higher score: 1 of 3 found, precision 1/2: AP 1/6.
    evaluator.add_clip([NO_BOXES] * 2, [truth([square(0.1, 0.1)], [1], [0])] * 2)
    evaluator.add_clip([frame([square(0.3, 0.3)], [0.9], [1])], [truth([], [], [])])
    evaluator.add_clip(
        [frame([square(0.1, 0.1)], [0.8], [1])], [truth([square(0.1, 0.1)], [1], [0])]
    )
    assert evaluator.result().mean_ap == pytest.approx(1 / 6)
    assert evaluator.result().counts["detections"] == 2


@pytest.mark.parametrize(
    "detections, clip_truth, message",
    [
        ([NO_BOXES], [], "1 frames of detections and 0 of truth"),
        (
            [frame([square(0.1, 0.1)], [0.5], [3])],
            [truth([], [], [])],
            r"\[3\] are not all in 1..2",
        ),
        ([frame([square(0.1, 0.1)], [np.nan], [1])], [truth([], [], [])], "not finite"),
        (
            [frame([square(0.1, 0.1)], [0.5, 0.6], [1])],
            [truth([], [], [])],
            "1 boxes, 1 classes and 2",
        ),
        ([NO_BOXES], [truth([square(0.1, 0.1)] * 2, [1, 1], [7, 7])], "holds a track twice"),
    ],
)
def test_wrong_input_is_named(detections, clip_truth, message):
    with pytest.raises(ValueError, match=message):
        VidMap(2).add_clip(detections, clip_truth)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="'voc' is not one of plain, size_dependent"):
        VidMap(2, matching="voc")
    with pytest.raises(ValueError, match="'coco' is not one of fgfa, strict"):
        VidMap(2, motion_rule="coco")
    with pytest.raises(ValueError, match="2 different names"):
        VidMap(2, labels=["a", "a"])
    with pytest.raises(ValueError, match="image_size"):
        VidMap(1, matching="size_dependent").add_clip([NO_BOXES], [truth([], [], [])])
