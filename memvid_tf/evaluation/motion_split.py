"""Slow, medium and fast objects of ImageNet VID, and what a detection costs the score of one speed.

Two rules, `MOTION_RULES`:

- `fgfa`: as the evaluator of Flow-Guided Feature Aggregation counts, which made the field's
  numbers. Ranges are closed at both ends, so an object at a bound is in two; an object without a
  motion IoU has 0 and is fast. Detections choose among all free objects of their class, whatever
  their speed. One that finds none counts as false by where it lies: 1 where the object of any class
  that it overlaps best is in the range, 0 where that one is not; the frame's share of objects out
  of the range where it overlaps both kinds alike, as where it touches nothing; and in a frame
  without objects the share of the range among all objects of the set.
- `strict`: an object is of one speed or of none. Detections choose among the objects of the range
  and are excused by one of their class that is not; a detection of nothing is wrong at every speed.
"""

import numpy as np

MOTION_RULES = ("fgfa", "strict")
SPEEDS = ("slow", "medium", "fast")
UNKNOWN_SPEED = -1
# Bounds of the motion IoU; the field's values.
FAST_BELOW = 0.7
SLOW_ABOVE = 0.9


def motion_speed(values: np.ndarray) -> np.ndarray:
    """Index into `SPEEDS` for motion IoUs [...]; `UNKNOWN_SPEED` where the value is nan."""
    speed = np.where(values > SLOW_ABOVE, 0, np.where(values < FAST_BELOW, 2, 1))
    return np.where(np.isnan(values), UNKNOWN_SPEED, speed)


def in_range(values: np.ndarray, rule: str) -> np.ndarray:
    """Which motion IoUs [...], nan where there is none, are of each of `SPEEDS`: [3, ...] bool."""
    if rule == "strict":
        speed = motion_speed(values)
        return np.stack([speed == place for place in range(len(SPEEDS))])
    known = np.nan_to_num(values, nan=0.0)
    slow, fast = known >= SLOW_ABOVE, known <= FAST_BELOW
    return np.stack([slow, (known >= FAST_BELOW) & (known <= SLOW_ABOVE), fast])


def judged_by_fgfa(
    matches: np.ndarray, overlap: np.ndarray, counted: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What every detection is worth, by the rule `fgfa`.

    Args:
      matches: [F, D, N] bool, whether a detection may match an object; detections of a frame are
        in the order in which they choose.
      overlap: [F, D, N] IoU of all pairs, whatever their classes.
      counted: [R, F, N] bool, the objects that count in each row.
      there: [F, N] bool, the objects that exist; those not counted are ignored.

    Returns:
      right [R, F, D] bool, and [R, F, D] how much each counts as a false one, in [0, 1]; nan where
      that is the row's share of all objects of the set, which only its end tells.
    """
    rows, (frames, detections, objects) = len(counted), matches.shape
    right = np.zeros((rows, frames, detections), bool)
    wrong = np.full((rows, frames, detections), np.nan)
    if objects == 0:
        return right, wrong
    taken = _choose(matches, overlap, there[None])[0]
    found = taken >= 0
    for row, of_row in enumerate(counted):
        ignored = there & ~of_row
        right[row] = found & np.take_along_axis(of_row, taken, axis=1)
        inside, outside = (
            np.where(some[:, None], overlap, -1.0).max(axis=-1) for some in (of_row, ignored)
        )
        share = ignored.sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)
        weight = np.where(inside == outside, share[:, None], inside > outside)
        wrong[row] = np.where(found, 0.0, weight)
    wrong[:, ~there.any(axis=-1)] = np.nan
    return right, wrong


def judged_strictly(
    matches: np.ndarray, overlap: np.ndarray, counted: np.ndarray, there: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same by the rule `strict`; see `judged_by_fgfa`."""
    if matches.shape[2] == 0:
        right = np.zeros((len(counted), *matches.shape[:2]), bool)
        return right, (~right).astype(np.float64)
    right = _choose(matches, overlap, counted) >= 0
    excused = [(matches & (there & ~of_row)[:, None]).any(axis=-1) for of_row in counted]
    return right, (~right & ~np.stack(excused)).astype(np.float64)


def _choose(matches: np.ndarray, overlap: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Detections in turn choose the best-overlapping object that is free; all frames at once.

    Args:
      matches, overlap: see `judged_by_fgfa`.
      free: [R, F, N] bool, the objects that may be chosen in each row.

    Returns:
      [R, F, D] int, the object that each detection has; -1 for none.
    """
    free = free.copy()
    taken = np.full((len(free), *matches.shape[:2]), -1)
    for d in range(matches.shape[1]):
        candidates = free & matches[:, d]
        best = np.where(candidates, overlap[:, d], -1.0).argmax(axis=-1)
        row, frame = np.nonzero(candidates.any(axis=-1))
        taken[row, frame, d] = best[row, frame]
        free[row, frame, best[row, frame]] = False
    return taken


JUDGES = {"fgfa": judged_by_fgfa, "strict": judged_strictly}
