"""Frames in, detections out: the synchronous loop of LFS section 3.2.

On every frame the schedule, fixed or learned, picks an extractor; the memory and the heads follow in
the same thread. When the detections are out, the schedule sees what became of the memory.
Only f0 frames write the state (LFS: after an f1 frame the state of the last f0 frame is reused),
which the manifest's `updates_state` says.
"""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.preprocess import PreparedFrame
from memvid_tf.runtime.schedules import Schedule


class Timings(NamedTuple):
    """Wall times of one frame in the calling thread.

    Attributes:
      prepare_ms: resizing and storing the frame; 0 for a frame that came prepared.
      extract_ms, memory_ms, post_ms: the three invokes.
      frame_ms: from the prepared frame to the end of all work on it.
      schedule_ms: deciding about the next frame; part of `frame_ms`.
    """

    prepare_ms: float
    extract_ms: float
    memory_ms: float
    post_ms: float
    frame_ms: float
    schedule_ms: float = 0.0

    @property
    def invoke_ms(self) -> float:
        """Time inside the graphs; `frame_ms` minus this is what the orchestration costs."""
        return self.extract_ms + self.memory_ms + self.post_ms + self.schedule_ms


class FrameResult(NamedTuple):
    """What is known after one frame.

    Attributes:
      index: number of the frame, from 0.
      detections: what was found.
      extractor: "f0" or "f1", whichever produced the detections (asynchronously always f1).
      memory_age_frames: frames since the one that f0 last wrote into the memory; 0 on an f0 frame,
        None while the memory is empty.
      effective_tau: mean number of frames between two that f0 wrote into the memory, so far; None
        before the second. A last gap that is open counts as soon as it is longer than that.
      timings: wall times.
      memory_update_ms: asynchronous only: time that f0 and the memory's update took, on the first
        frame that uses their result; None on the others.
      f0_started: whether f0 ran on this frame, or asynchronously was started on it.
    """

    index: int
    detections: Detections
    extractor: str
    memory_age_frames: int | None
    effective_tau: float | None
    timings: Timings
    memory_update_ms: float | None = None
    f0_started: bool = False


class SyncRunner:
    """Runs one extractor a frame, in the calling thread."""

    def __init__(self, detector: InterleavedDetector, schedule: Schedule):
        self._detector = detector
        self._schedule = schedule

    def run(self, frames: Iterable[np.ndarray | PreparedFrame]) -> Iterator[FrameResult]:
        """Yields a result for every frame, starting from an empty memory.

        Args:
          frames: [H, W, 3] uint8 RGB arrays, or frames that `detector.prepare` made before.
        """
        detector, schedule = self._detector, self._schedule
        state = seen = detector.initial_state()
        history = MemoryHistory()
        for index, frame in enumerate(frames):
            extractor = schedule.pick(index)
            updates = detector.updates_state[extractor]
            start = time.perf_counter()
            prepared = frame
            if not isinstance(frame, PreparedFrame):
                prepared = detector.prepare(frame, (extractor,))
            ready = time.perf_counter()
            image = prepared.f0 if extractor == "f0" else prepared.f1
            features = detector.extract(extractor, image)
            boxes, logits, after = detector.step(
                features, state, extractor, updates or schedule.wants_candidate
            )
            found = detector.post(boxes, logits)
            done = time.perf_counter()
            schedule.observe(extractor, after, seen)
            end = time.perf_counter()
            state, seen = after if updates else state, after
            if extractor == "f0":
                history.written(index, index)
            yield FrameResult(
                index,
                found,
                extractor,
                history.age_frames(index),
                history.effective_tau(index),
                timings(detector, start, ready, done, end),
                f0_started=extractor == "f0",
            )


class MemoryHistory:
    """When f0 wrote the memory."""

    def __init__(self):
        self._first = self._latest = self._arrived = None
        self._writes = 0

    def written(self, index: int, arrived: int) -> None:
        """f0 has written frame `index` into the memory; frame `arrived` is the first to use it."""
        self._first = index if self._first is None else self._first
        self._latest, self._arrived = index, arrived
        self._writes += 1

    def age_frames(self, index: int) -> int | None:
        """Age of the memory at frame `index`; None while it is empty."""
        return None if self._latest is None else index - self._latest

    def effective_tau(self, index: int) -> float | None:
        """Mean number of frames between two writes, known at frame `index`; None before the second.

        What follows the latest write is a gap as well. While it is shorter than the mean nothing is
        known of it; once it is longer, leaving it out would hide that f0 no longer runs.
        """
        if self._writes < 2:
            return None
        gaps, frames, since = self._writes - 1, self._latest - self._first, index - self._arrived
        mean = frames / gaps - 1
        return max(mean, (frames - gaps + since) / (gaps + 1))


def timings(
    detector: InterleavedDetector, start: float, ready: float, done: float, end: float
) -> Timings:
    """The wall times of a frame that was taken at `start`, prepared at `ready` and detected at
    `done`, and of which the schedule knew at `end` (readings of `time.perf_counter`)."""
    return Timings(
        (ready - start) * 1e3,
        detector.extract_ms,
        detector.memory_ms,
        detector.post_ms,
        (end - ready) * 1e3,
        (end - done) * 1e3,
    )
