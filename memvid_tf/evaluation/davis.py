"""DAVIS's measures of masks: region similarity J and boundary accuracy F (Perazzi et al., 2016).

J is the IoU of a mask with the truth; F the harmonic mean of precision and recall of its outline,
where a pixel may be off by .8 % of the image's diagonal. Over a sequence each gives a mean, a
recall (part of the frames above .5) and a decay (mean of the first quarter minus mean of the last).

Two conventions, and every result names its own: `semi_supervised` leaves out the first frame, which
was given, and the last; `unsupervised` keeps all. Objects of DAVIS 2017 are scored one by one and
averaged; void pixels count nowhere.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

CONVENTIONS = ("semi_supervised", "unsupervised")
# Of the diagonal; the benchmark's value.
BOUNDARY_TOLERANCE = 0.008
RECALL_THRESHOLD = 0.5
QUARTERS = 4
VOID = 255


@dataclasses.dataclass(frozen=True)
class Measure:
    """J or F of a sequence; mean and recall in [0, 1], decay in [-1, 1]."""

    mean: float
    recall: float
    decay: float


@dataclasses.dataclass(frozen=True)
class ObjectResult:
    """One object of a sequence.

    Attributes:
      frames: number of frames that were scored.
      j, f: region similarity and boundary accuracy.
    """

    frames: int
    j: Measure
    f: Measure


@dataclasses.dataclass(frozen=True)
class DavisResult:
    """What `combine` returns.

    Attributes:
      convention: 'semi_supervised' or 'unsupervised'.
      j, f: means over all objects of all sequences.
      sequences: name -> object -> result.
    """

    convention: str
    j: Measure
    f: Measure
    sequences: dict[str, dict[int, ObjectResult]]

    def to_json(self) -> dict:
        """Returns plain values for `json.dump`."""
        return dataclasses.asdict(self)

    def rows(self) -> list[list]:
        """A table of the objects: sequence, object, frames, then mean, recall, decay of J and F."""
        return [
            [
                name,
                number,
                result.frames,
                *dataclasses.astuple(result.j),
                *dataclasses.astuple(result.f),
            ]
            for name, objects in self.sequences.items()
            for number, result in objects.items()
        ]


def region_similarity(mask: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two masks [H, W] bool; 1 where both are empty."""
    union = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / union if union else 1.0


def boundary_accuracy(mask: np.ndarray, truth: np.ndarray) -> float:
    """F of the outlines of two masks [H, W] bool; 1 where neither has one."""
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(*mask.shape))
    outlines = _outline(mask), _outline(truth)
    counts = [np.count_nonzero(outline) for outline in outlines]
    if not all(counts):
        # One outline without the other has precision or recall 0.
        return 0.0 if any(counts) else 1.0
    # Distances matter between outlines only, and are what takes time.
    view = cv2.boundingRect((outlines[0] | outlines[1]).astype(np.uint8))
    outlines = [
        outline[view[1] : view[1] + view[3], view[0] : view[0] + view[2]] for outline in outlines
    ]
    precision = np.count_nonzero(outlines[0] & _near(outlines[1], radius)) / counts[0]
    recall = np.count_nonzero(outlines[1] & _near(outlines[0], radius)) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _outline(mask):
    """[H, W] bool: where a pixel differs from its right, lower or diagonal neighbour inside."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])


def _near(outline, radius):
    """[H, W] bool: within `radius` of a pixel of the outline, which is not empty."""
    distance = cv2.distanceTransform(
        (~outline).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    # Squared distances are whole, so the next one after radius lies 1 / (2 radius + 1) further.
    return distance < radius + 0.25 / (radius + 1)


def summarize(values: Sequence[float]) -> Measure:
    """Mean, recall and decay of a measure over the frames of a sequence, at least one."""
    values = np.asarray(values, np.float64)
    # The benchmark's quarters share their border frames; halves are rounded up.
    borders = np.floor(np.linspace(0, len(values) - 1, QUARTERS + 1) + 0.5 + 1e-10).astype(int)
    first = values[borders[0] : borders[1] + 1]
    last = values[borders[-2] : borders[-1] + 1]
    return Measure(
        mean=float(values.mean()),
        recall=float((values > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


def evaluate_sequence(
    masks: Sequence[np.ndarray], truth: Sequence[np.ndarray], convention: str = "semi_supervised"
) -> dict[int, ObjectResult]:
    """Scores a sequence.

    Args:
      masks: a frame each, [H, W] uint8: number of the object at every pixel, 0 for none.
      truth: the same, and 255 for void.
      convention: see the module.

    Returns:
      Object's number -> result, for the objects of the truth.

    Raises:
      ValueError: on an unknown convention, different numbers or sizes of frames, or a sequence
        without frames to score or without objects.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is not one of {', '.join(CONVENTIONS)}")
    if len(masks) != len(truth):
        raise ValueError(f"{len(masks)} masks are given and {len(truth)} frames of truth")
    scored = slice(1, -1) if convention == "semi_supervised" else slice(None)
    frames = list(zip(masks, truth))[scored]
    if not frames:
        raise ValueError(f"a sequence of {len(truth)} frames has none to score, {convention}")
    for number, (mask, true) in enumerate(frames):
        if mask.shape != true.shape:
            raise ValueError(f"mask {number} of those scored is {mask.shape}, truth {true.shape}")
    numbers = np.unique(np.concatenate([np.unique(true) for true in truth]))
    numbers = [int(n) for n in numbers if n not in (0, VOID)]
    if not numbers:
        raise ValueError("the truth shows no object")
    results = {}
    for number in numbers:
        pairs = [((mask == number) & (true != VOID), true == number) for mask, true in frames]
        results[number] = ObjectResult(
            frames=len(pairs),
            j=summarize([region_similarity(*pair) for pair in pairs]),
            f=summarize([boundary_accuracy(*pair) for pair in pairs]),
        )
    return results


def combine(sequences: Mapping[str, dict[int, ObjectResult]], convention: str) -> DavisResult:
    """The benchmark's numbers: means over all objects of `evaluate_sequence` by sequence."""
    objects = [result for of_sequence in sequences.values() for result in of_sequence.values()]

    def mean(measures):
        return Measure(*np.mean([dataclasses.astuple(m) for m in measures], axis=0).tolist())

    return DavisResult(
        convention, mean([o.j for o in objects]), mean([o.f for o in objects]), dict(sequences)
    )
