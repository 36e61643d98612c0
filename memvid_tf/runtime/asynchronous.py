"""Asynchronous inference (LFS section 3.5, figure 5).

f1, the memory's step and the heads run on every frame in the calling thread and alone produce
detections, so no frame waits for f0. Beside them one worker thread runs f0 and the memory's
`update` on about every (tau + 1)-th frame, or whenever the learned policy says so, on interpreters of
its own; when it is done, the next step reads the new memory.

Differs from the paper: on frame 0 f0 and the update run first, in the calling thread, because with
an empty memory f1's detections are nearly worthless. Where f0 takes longer than tau + 1 frames, the
update that is due waits until the worker is free and then takes the newest frame; the result names
the effective tau.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector, State, load_graph
from memvid_tf.runtime.preprocess import PreparedFrame
from memvid_tf.runtime.runners import FrameResult, MemoryHistory, timings
from memvid_tf.runtime.schedules import DueSchedule, Schedule


class MemoryUpdater:
    """f0 and the memory's update, with interpreters of their own, for one thread at a time."""

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        """Loads the two graphs.

        Raises:
          BundleError: a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        f0, update = manifest.calls["update"]
        self._extract = load_graph(bundle, f0, num_threads).bind(("image",), ("features",))
        self._update = load_graph(bundle, update, num_threads).bind(
            ("features", *(state.input for state in manifest.state)),
            [state.output for state in manifest.state],
        )

    def __call__(self, image: np.ndarray, state: State) -> State:
        """The memory after f0 saw `image`, [1, H, W, 3] prepared for f0."""
        return tuple(self._update(self._extract(image)[0], *state))


class AsyncRunner:
    """f1 on every frame in the calling thread, f0 beside it."""

    def __init__(
        self,
        detector: InterleavedDetector,
        tau: int | None,
        updater: Callable[[np.ndarray, State], State] | None = None,
        executor: concurrent.futures.Executor | None = None,
        schedule: Schedule | None = None,
    ):
        """Loads the worker's graphs.

        Args:
          detector: runs f1, the memory's step and the post-processing.
          tau: f0 is due on every (tau + 1)-th frame; 0 or more. None where `schedule` decides.
          updater: what the worker calls, as `MemoryUpdater`; None builds one with one thread.
          executor: None runs the updates in a thread that lives as long as one `run`. Otherwise
            somebody else's, which is not shut down; never more than one update is submitted.
          schedule: decides instead of `tau` on which frames the worker starts; where it is busy, f1
            runs alone and the schedule is told so.

        Raises:
          UserError: a negative tau, or a model whose f1 frames write the state (then two threads
            would).
        """
        if (tau is None) == (schedule is None):
            raise ValueError(f"tau is {tau} and schedule {schedule}: give one of them")
        if tau is not None and tau < 0:
            raise UserError(f"tau is {tau}, wanted 0 or more")
        if detector.updates_state["f1"]:
            raise UserError(
                "this bundle was trained with f1 frames writing the memory (updates_state.f1 is "
                "true), which cannot run asynchronously; use the synchronous mode"
            )
        self._detector = detector
        self._schedule = DueSchedule(tau) if schedule is None else schedule
        self._updater = MemoryUpdater(detector.bundle) if updater is None else updater
        self._executor = executor

    def run(self, frames: Iterable[np.ndarray | PreparedFrame]) -> Iterator[FrameResult]:
        """Yields a result for every frame, starting from an empty memory.

        `timings.frame_ms` of frame 0 includes f0 and the update. Closing the generator waits for
        the worker's current call and ends its thread.

        Args:
          frames: [H, W, 3] uint8 RGB arrays, or frames that `detector.prepare` made before.

        Raises:
          Whatever the worker raised, at the first frame after it; at the end if none follows.
        """
        detector, executor, schedule = self._detector, self._executor, self._schedule
        if executor is None:
            executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="memvid_f0")
        history, seen = MemoryHistory(), detector.initial_state()
        memory: _Memory | None = None
        pending: concurrent.futures.Future[_Memory] | None = None
        try:
            for index, frame in enumerate(frames):
                start = time.perf_counter()
                earlier = memory
                memory, pending, early = _collect(memory, pending)
                # The first frame waits for f0, whatever is picked: an empty memory shows nothing.
                wanted = schedule.pick(index) == "f0" or memory is None
                refresh = pending is None and wanted
                prepared = frame
                if not isinstance(frame, PreparedFrame):
                    prepared = detector.prepare(frame, ("f0", "f1") if refresh else ("f1",))
                ready = time.perf_counter()
                if memory is None:
                    memory = early = self._update(prepared.f0, detector.initial_state(), index)
                elif refresh:
                    pending = executor.submit(self._update, prepared.f0, memory.state, index)
                features = detector.extract("f1", prepared.f1)
                # Once more: f0 may have finished while f1 ran.
                memory, pending, late = _collect(memory, pending)
                boxes, logits, after = detector.step(
                    features, memory.state, "f1", schedule.wants_candidate
                )
                found = detector.post(boxes, logits)
                done = time.perf_counter()
                if memory is not earlier:  # what f0 wrote says more than what f1 would have
                    after = memory.state
                schedule.observe("f0" if refresh else "f1", after, seen)
                end = time.perf_counter()
                seen = after
                update_ms = None
                for written in (early, late):
                    if written is not None:
                        history.written(written.index, index)
                        update_ms = written.update_ms
                yield FrameResult(
                    index,
                    found,
                    "f1",
                    history.age_frames(index),
                    history.effective_tau(index),
                    timings(detector, start, ready, done, end),
                    update_ms,
                    refresh,
                )
            if pending is not None:
                pending.result()
        finally:
            if pending is not None and not pending.cancel():
                concurrent.futures.wait([pending])
            if self._executor is None:
                executor.shutdown()

    def _update(self, image: np.ndarray, state: State, index: int) -> "_Memory":
        start = time.perf_counter()
        state = self._updater(image, state)
        return _Memory(state, index, (time.perf_counter() - start) * 1e3)


class _Memory(NamedTuple):
    """A memory that f0 wrote. Arrays and all are never changed, only replaced, so the thread that
    reads and the one that prepares the next share nothing."""

    state: State
    index: int
    update_ms: float


def _collect(
    memory: _Memory | None, pending: concurrent.futures.Future[_Memory] | None
) -> tuple[_Memory | None, concurrent.futures.Future[_Memory] | None, _Memory | None]:
    """The memory to use, the update still running and the memory that has just arrived."""
    if pending is None or not pending.done():
        return memory, pending, None
    memory = pending.result()
    return memory, None, memory
