"""Slow, medium and fast as FGFA's evaluator counts them, against the definition in plain loops."""

import math

import numpy as np
import pytest
import test_vid_map
from test_vid_map import NO_BOXES, frame, iou_reference, square, truth

from memvid_tf.evaluation import motion_split, vid_map
from memvid_tf.evaluation.vid_map import VidMap

RANGES = {"all": (0.0, 1.0), "slow": (0.9, 1.0), "medium": (0.7, 0.9), "fast": (0.0, 0.7)}


# --- The definition, one object and one detection at a time ------------------------------------


def motion_of(clip_truth, t, track):
    """Mean IoU with the same track up to ten frames away; 0 where there is no other frame."""
    [own] = [box for box, other in zip(clip_truth[t][0], clip_truth[t][2]) if other == track]
    values = []
    for u in range(max(0, t - 10), min(len(clip_truth), t + 11)):
        if u == t:
            continue
        for box, other in zip(clip_truth[u][0], clip_truth[u][2]):
            if other == track:
                values.append(iou_reference(own, box, 0.0))
    return sum(values) / len(values) if values else 0.0


def frames_of(clips, matching, size):
    """Of every frame: detections by falling score, and objects as (class, threshold, motion),
    with the overlap of each pair."""
    scale = np.array([*size, *size]) if matching == "size_dependent" else np.ones(4)
    extra = 1.0 if matching == "size_dependent" else 0.0
    for detections, clip_truth in clips:
        for t, (boxes, scores, classes) in enumerate(detections):
            objects = []
            for box, name, track in zip(*clip_truth[t]):
                threshold = 0.5
                if matching == "size_dependent":
                    height, width = (box[2:] - box[:2]) * scale[:2] + 1
                    threshold = min(0.5, height * width / ((height + 10) * (width + 10)))
                objects.append((box * scale, name, threshold, motion_of(clip_truth, t, track)))
            found = []
            for d in sorted(range(len(scores)), key=lambda d: -scores[d]):
                overlaps = [iou_reference(boxes[d] * scale, o[0], extra) for o in objects]
                found.append((scores[d], classes[d], overlaps))
            yield found, [o[1:] for o in objects]


def fgfa_reference(frames, num_classes, low, high):
    """Mean AP of one range of the motion IoU, both ends in it."""
    motions = [motion for _, objects in frames for *_, motion in objects]
    inside_of_set = sum(low <= m <= high for m in motions) / len(motions)
    judged, positives = [], dict.fromkeys(range(1, num_classes + 1), 0)
    for found, objects in frames:
        inside = [low <= motion <= high for *_, motion in objects]
        for (name, _, _), here in zip(objects, inside):
            positives[name] += here
        taken = set()
        for score, name, overlaps in found:
            best = None
            for k, (object_name, threshold, _) in enumerate(objects):
                if object_name != name or k in taken or overlaps[k] < threshold:
                    continue
                if best is None or overlaps[k] > overlaps[best]:
                    best = k
            if best is not None:
                taken.add(best)
                judged.append((score, name, float(inside[best]), 0.0))
                continue
            best_in = max((o for o, here in zip(overlaps, inside) if here), default=-1)
            best_out = max((o for o, here in zip(overlaps, inside) if not here), default=-1)
            if not objects:
                false = inside_of_set
            elif best_in == best_out:
                false = sum(not here for here in inside) / len(inside)
            else:
                false = 1.0 if best_in > best_out else 0.0
            judged.append((score, name, 0.0, false))
    values = []
    for c, count in positives.items():
        if not count:
            continue
        points, right, false = [], 0.0, 0.0
        for score, name, is_right, is_false in sorted(judged, key=lambda row: -row[0]):
            if name == c:
                right, false = right + is_right, false + is_false
                points.append((right / count, right / (right + false) if right else 0.0))
        area, recall = 0.0, 0.0
        for i, (r, _) in enumerate(points):
            if r > recall:
                area += (r - recall) * max(p for _, p in points[i:])
                recall = r
        values.append(area)
    return sum(values) / len(values) if values else math.nan


def crowded_clip(rng, length):
    """A random clip, with some frames emptied of objects and a still object added to half of them,
    on and beside which other classes are detected."""
    detections, clip_truth = test_vid_map.random_clip(rng, length, 3)
    still = rng.random() < 0.5
    for t in range(length):
        boxes, classes, tracks = clip_truth[t]
        if still:
            box = np.array([[0.7, 0.65, 0.95, 0.8]])
            boxes, classes = np.concatenate([boxes, box]), np.append(classes, 2)
            tracks = np.append(tracks, 99)
            found = np.concatenate([detections[t][0], box + rng.normal(0, 0.02, (2, 4))])
            names = np.append(detections[t][2], [2, rng.integers(1, 4)])
            detections[t] = found, np.append(detections[t][1], rng.random(2)), names
        clip_truth[t] = boxes, classes, tracks
        if rng.random() < 0.15:
            clip_truth[t] = truth([], [], [])
    return detections, clip_truth


@pytest.mark.parametrize("matching", vid_map.MATCHING)
def test_equals_the_definition(matching):
    rng, size = np.random.default_rng(11), (60, 90)
    clips = [crowded_clip(rng, length) for length in (14, 1, 23, 9, 17) * 3]
    evaluator = VidMap(3, matching=matching)
    strict = VidMap(3, matching=matching, motion_rule="strict")
    for detections, clip_truth in clips:
        evaluator.add_clip(detections, clip_truth, image_size=size)
        strict.add_clip(detections, clip_truth, image_size=size)
    frames = list(frames_of(clips, matching, size))
    found = evaluator.result()
    assert found.motion_rule == found.to_json()["motion_rule"] == "fgfa"
    # Both sides are float64; they differ in the order of a few thousand additions.
    assert found.mean_ap == pytest.approx(fgfa_reference(frames, 3, 0.0, 1.0), abs=1e-12)
    for speed in vid_map.SPEEDS:
        wanted = fgfa_reference(frames, 3, *RANGES[speed])
        assert found.motion[speed] == pytest.approx(wanted, abs=1e-12)
        assert found.counts[speed] > 10
        # The rules differ on this set, or it would show nothing.
        assert abs(found.motion[speed] - strict.result().motion[speed]) > 1e-3
    # What no split is made of is the same to the last digit.
    other = strict.result()
    assert found.mean_ap == other.mean_ap and found.per_class_ap == other.per_class_ap
    assert found.videos == other.videos


# --- By hand -----------------------------------------------------------------------------------


def example():
    """Two frames of two clips: a slow dog on which a cat of score .9 is seen, and a medium cat,
    found at .8. A neighbouring frame without detections gives each its speed: motion IoU 1, and
    .18/.22."""
    dog, cat = square(0.1, 0.1), square(0.5, 0.5)
    yield [frame([dog], [0.9], [1]), NO_BOXES], [truth([dog], [2], [0])] * 2
    moved = square(0.5, 0.52)
    yield (
        [frame([cat], [0.8], [1]), frame([moved], [0.7], [1])],
        [truth([cat], [1], [0]), truth([moved], [1], [0])],
    )


@pytest.mark.parametrize("rule, wanted", [("fgfa", 1.0), ("strict", 2 / 3)])
def test_a_false_cat_on_a_slow_dog_is_no_fault_among_medium_ones(rule, wanted):
    """Strictly the ranks are wrong, right, right: both right ones have the precision 2/3."""
    evaluator = VidMap(2, labels=["cat", "dog"], motion_rule=rule)
    for detections, clip_truth in example():
        evaluator.add_clip(detections, clip_truth)
    result = evaluator.result()
    assert result.motion["medium"] == pytest.approx(wanted)
    assert result.per_class_ap["cat"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("rule, wanted", [("fgfa", 1.0), ("strict", 0.5)])
def test_the_published_example(rule, wanted):
    """One slow dog with a cat of .9 on it, and one medium cat found at .8, frame by frame: the
    judges are asked directly, since a lone frame has no motion."""
    matches = np.array([[[False]], [[True]]])
    overlap = np.array([[[0.9]], [[0.8]]])
    there = np.array([[True], [True]])
    medium = np.array([[[False], [True]]])
    right, wrong = motion_split.JUDGES[rule](matches, overlap, medium, there)
    found = vid_map.average_precision([0.9, 0.8], right[0, :, 0], 1, wrong[0, :, 0])
    assert found == pytest.approx(wanted)


def test_ranges_are_closed_and_no_motion_is_fast():
    values = np.array([0.0, 0.7, np.nextafter(0.7, 1), 0.9, np.nextafter(0.9, 1), 1.0, np.nan])
    slow, medium, fast = motion_split.in_range(values, "fgfa")
    assert slow.tolist() == [False, False, False, True, True, True, False]
    assert medium.tolist() == [False, True, True, True, False, False, False]
    assert fast.tolist() == [True, True, False, False, False, False, True]
    slow, medium, fast = motion_split.in_range(values, "strict")
    assert slow.tolist() == [False] * 4 + [True, True, False]
    assert medium.tolist() == [False, True, True, True, False, False, False]
    assert fast.tolist() == [True] + [False] * 6


def test_a_false_alarm_where_there_is_nothing_counts_by_the_share_of_the_range():
    # Nine still objects in nine frames and one that no other frame shows: .9 of all are slow.
    # Then an empty frame with a false alarm above them all.
    box = square(0.2, 0.2)
    clip_truth = [truth([box], [1], [0])] * 9
    evaluator = VidMap(1)
    evaluator.add_clip([frame([box], [0.5], [1])] * 9, clip_truth)
    evaluator.add_clip([frame([box], [0.5], [1])], [truth([box], [1], [0])])
    evaluator.add_clip([frame([box], [0.9], [1])], [truth([], [], [])])
    result = evaluator.result()
    assert result.motion["slow"] == pytest.approx(9 / (9 + 0.9))
    assert result.motion["fast"] == pytest.approx(1 / (1 + 0.1))
    assert result.mean_ap == pytest.approx(10 / 11)
    assert (result.counts["fast"], result.counts["unknown_speed"]) == (1, 1)


def test_a_false_alarm_that_touches_nothing_counts_by_the_share_out_of_range():
    # A still object beside two that jump, in five frames; above them a false alarm beside all.
    clip_truth = [
        truth(
            [square(0.1, 0.1), square(0.6, 0.1 * t, 0.1), square(0.8, 0.1 * t, 0.1)],
            [1, 1, 1], [0, 1, 2],
        )
        for t in range(5)
    ]  # fmt: skip
    found = [frame([square(0.1, 0.7), *b], [0.9, 0.5, 0.4, 0.3], [1] * 4) for b, _, _ in clip_truth]
    evaluator = VidMap(1)
    evaluator.add_clip(found, clip_truth)
    result = evaluator.result()
    assert result.motion["slow"] == pytest.approx(5 / (5 + 5 * 2 / 3))
    assert result.motion["fast"] == pytest.approx(10 / (10 + 5 * 1 / 3))


def test_a_detection_takes_an_ignored_object_that_it_overlaps_more():
    # A still object, and a fast one of its class whose box passes nearly over it: the detection of
    # the still one is a little nearer to the fast one, which is free and therefore its match.
    still = square(0.1, 0.1)
    clip_truth = [
        truth([still, square(0.1, 0.12 if t == 2 else 0.5 + 0.1 * t)], [1, 1], [0, 1])
        for t in range(5)
    ]
    found = [NO_BOXES] * 2 + [frame([square(0.1, 0.115)], [0.9], [1])] + [NO_BOXES] * 2
    for rule, wanted in (("fgfa", 0.0), ("strict", 1 / 5)):
        evaluator = VidMap(1, motion_rule=rule)
        evaluator.add_clip(found, clip_truth)
        assert evaluator.result().motion["slow"] == pytest.approx(wanted)
