"""When something happens in a synthetic clip: quiet stretches, bursts and cuts.

Real video is not equally hard at all times. An eventful clip is a sequence of scenes, divided by
cuts. In a scene long stretches are calm: everything moves slowly and nothing comes or goes. In a
burst everything moves fast, objects enter and leave, and the camera may pan. How often something
happens differs from clip to clip; in some nothing does.

The defaults are tuned so that the motion split over a set is that of ImageNet VID, as without
events.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# A scene that ends earlier would not be seen, and a burst neither.
MIN_SCENE_FRAMES = 6
MIN_BURST_FRAMES = 3


@dataclasses.dataclass(frozen=True)
class EventConfig:
    """How eventful the clips of a set are.

    Attributes:
      quiet_frames: mean length of a quiet stretch in the median clip.
      liveliness_sigma: log-normal spread over clips of how often something happens.
      calm_pace, burst_pace: speed of everything in quiet stretches and in bursts, over that of a
        clip without events.
      min_burst_frames, max_burst_frames: length of a burst.
      cut_share: part of the events that are cuts to another scene; the others are bursts.
      pan_share: part of the bursts in which the camera pans.
      pan_speed: of such a pan, in frame sides a frame.
    """

    quiet_frames: float = 22.0
    liveliness_sigma: float = 0.8
    calm_pace: float = 0.35
    burst_pace: float = 3.0
    min_burst_frames: int = 4
    max_burst_frames: int = 10
    cut_share: float = 0.25
    pan_share: float = 0.3
    pan_speed: float = 0.015

    def __post_init__(self):
        checks = (
            ("quiet_frames", self.quiet_frames >= 1, "at least 1"),
            ("liveliness_sigma", self.liveliness_sigma >= 0, "at least 0"),
            ("calm_pace", 0 < self.calm_pace <= 1, "in 0..1, above 0"),
            ("burst_pace", 1 <= self.burst_pace <= 10, "in 1..10"),
            (
                "min_burst_frames",
                self.min_burst_frames >= MIN_BURST_FRAMES,
                f"at least {MIN_BURST_FRAMES}",
            ),
            (
                "max_burst_frames",
                self.max_burst_frames >= self.min_burst_frames,
                f"at least {self.min_burst_frames}",
            ),
            ("cut_share", 0 <= self.cut_share <= 1, "in 0..1"),
            ("pan_share", 0 <= self.pan_share <= 1, "in 0..1"),
            ("pan_speed", 0 <= self.pan_speed <= 0.1, "in 0...1"),
        )
        for name, right, allowed in checks:
            if not right:
                raise ValueError(f"events.{name} {getattr(self, name)} is not allowed: {allowed}")


class Activity(NamedTuple):
    """What happens in one scene of T frames.

    Attributes:
      pace: [T] float64, what is covered on the way to each frame, over that of an even scene.
      pan: [T, 2] float64, how far the camera turns on that way, in frame sides.
      bursts: first frame and end of every burst; None in an even scene, in which objects come and
        go at any time.
    """

    pace: np.ndarray
    pan: np.ndarray
    bursts: list[tuple[int, int]] | None

    def reversed(self) -> "Activity":
        """The same with time running backwards."""
        # The way to frame t is the one to frame T - t, backwards. None leads to the first frame.
        count = len(self.pace)
        pace = np.concatenate([self.pace[:1], self.pace[:0:-1]])
        pan = np.concatenate([-self.pan[:1], -self.pan[:0:-1]])
        bursts = [(count - end + 1, count - begin + 1) for begin, end in (self.bursts or ())[::-1]]
        return Activity(pace, pan, None if self.bursts is None else bursts)


def even(count: int) -> Activity:
    """A scene of `count` frames in which nothing is special."""
    return Activity(np.ones(count), np.zeros((count, 2)), None)


def scenes(config: EventConfig, count: int, rng: np.random.Generator) -> list[Activity]:
    """The scenes of an eventful clip of `count` frames."""
    quiet_frames = config.quiet_frames / np.exp(config.liveliness_sigma * rng.normal())
    bursts, cuts, t = [], [0], 0.0
    while (t := t + rng.exponential(quiet_frames)) < count - 1:
        begin = 1 + int(t)
        if rng.random() < config.cut_share:
            if min(begin - cuts[-1], count - begin) >= MIN_SCENE_FRAMES:
                cuts.append(begin)
            continue
        length = rng.integers(config.min_burst_frames, config.max_burst_frames + 1)
        end = min(begin + int(length), count)
        bursts.append((begin, end))
        t = end
    pace, pan = np.full(count, config.calm_pace), np.zeros((count, 2))
    for begin, end in bursts:
        pace[begin:end] = config.burst_pace
        if rng.random() < config.pan_share:
            angle = rng.uniform(0, 2 * np.pi)
            pan[begin:end] = config.pan_speed * np.array([np.sin(angle), np.cos(angle)])
    found = []
    for first, last in zip(cuts, [*cuts[1:], count]):
        inside = [(max(a - first, 1), min(b, last) - first) for a, b in bursts]
        here = [(a, b) for a, b in inside if b - a >= MIN_BURST_FRAMES]
        found.append(Activity(pace[first:last], pan[first:last], here))
    return found
