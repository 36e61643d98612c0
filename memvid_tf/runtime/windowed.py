"""Frames in, predictions for the full frame out, though only a window of it was looked at (PW 3).

Two policies need no network: `scanning` takes the windows in turn, `random` any of them (PW table
1). `dqn` is the learned one: once a frame is done, the attention network says which window of the
next frame is worth most. `full` is none: every frame is seen whole, which is all that a single-frame
network knows.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.attention import Attention, next_history
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import dequantizer, post_processing
from memvid_tf.runtime.patchwork import PatchworkNetwork
from memvid_tf.runtime.postprocess import Detections, foreground
from memvid_tf.runtime.runners import Timings
from memvid_tf.runtime.single_frame import SingleFrameNetwork

RANDOM_SEED = 0


class AttentionPolicy(Protocol):
    """Picks the window of every frame but the first."""

    def pick(self, frame_index: int) -> int:
        """The action of frame `frame_index`, from 1."""

    def observe(self, outputs: dict[str, np.ndarray]) -> None:
        """Takes note of a frame that is done, the first one too: of the tail's outputs."""


@dataclasses.dataclass(frozen=True)
class Scanning:
    """The windows in turn, row by row.

    Attributes:
      count: number of windows.
    """

    count: int

    def pick(self, frame_index: int) -> int:
        """The action of frame `frame_index`, from 1."""
        return (frame_index - 1) % self.count

    def observe(self, outputs: dict[str, np.ndarray]) -> None:
        """What is seen does not change the turns."""


class Random:
    """Any window, all alike; the same ones for the same seed."""

    def __init__(self, count: int, seed: int = RANDOM_SEED):
        self._count, self._rng = count, np.random.default_rng(seed)

    def pick(self, frame_index: int) -> int:
        """The action of the next frame."""
        return int(self._rng.integers(self._count))

    def observe(self, outputs: dict[str, np.ndarray]) -> None:
        """Chance has no memory."""


class Learned:
    """The window of which the attention network expects most.

    Args:
      attention: of the bundle.
      count: number of windows.
    """

    def __init__(self, attention: Attention, count: int):
        self._attention = attention
        self._history = np.zeros([1, count], np.float32)
        self._best = None

    def pick(self, frame_index: int) -> int:
        """The action of the next frame, decided after the last."""
        action = self._best
        self._history = next_history(
            self._history, np.array([action]), self._attention.spec.decay
        )
        return action

    def observe(self, outputs: dict[str, np.ndarray]) -> None:
        """Decides about the next frame."""
        prediction = outputs[self._attention.spec.prediction]
        self._best = int(self._attention.q_values(prediction, self._history).argmax())


POLICIES: dict[str, Callable[[int], AttentionPolicy]] = {"scanning": Scanning, "random": Random}
FULL, LEARNED = "full", "dqn"
MODES = (FULL, *POLICIES, LEARNED)


def load_network(bundle: Bundle, num_threads: int = 1) -> PatchworkNetwork | SingleFrameNetwork:
    """The graphs of a bundle whose frames can be seen whole.

    Raises:
      BundleError: another system, or a graph that differs from the manifest.
      GraphError: a graph that cannot be loaded.
    """
    if bundle.manifest.system == "single_frame":
        return SingleFrameNetwork(bundle, num_threads)
    return PatchworkNetwork(bundle, num_threads)


class WindowResult(NamedTuple):
    """What is known after one frame.

    Attributes:
      index: number of the frame, from 0.
      detections: what was found; None where the bundle segments.
      mask: [H, W] bool of the size of the frame; None where the bundle detects.
      action: the window that was looked at; None for a frame that was seen whole, as the first is.
      window: the same as a box `[ymin, xmin, ymax, xmax]`, normalised.
      ages_frames: [slices, slices] int32, frames since each tile was in a window.
      timings: wall times; `extract_ms` is the body's and `memory_ms` the tail's.
    """

    index: int
    detections: Detections | None
    mask: np.ndarray | None
    action: int | None
    window: tuple[float, float, float, float]
    ages_frames: np.ndarray
    timings: Timings


class WindowRunner:
    """Runs one window a frame, or all of it, in the calling thread."""

    def __init__(
        self,
        bundle: Bundle,
        policy: str,
        num_threads: int = 1,
        score_threshold: float | None = None,
    ):
        """Loads the graphs.

        Args:
          bundle: a bundle whose system is "patchwork" or "single_frame".
          policy: one of `MODES`.
          num_threads: threads of one invoke.
          score_threshold: of detections; None keeps the bundle's.

        Raises:
          UserError: the learned policy, of a bundle that has no attention network, or any policy
            of one that has no windows.
        """
        self._network = load_network(bundle, num_threads)
        self._windows = self._network.windows
        if self._windows is None and policy != FULL:
            raise UserError(
                f"bundle {bundle.path} is of a single-frame network, which has no windows to pick; "
                f"its only mode is {FULL!r}, not {policy!r}"
            )
        self._make_policy = POLICIES.get(policy)
        if policy == LEARNED:
            attention = Attention(bundle, num_threads)
            self._make_policy = functools.partial(Learned, attention)
        manifest = bundle.manifest
        *_, tail = manifest.calls["first"]
        self._mask, self._post = manifest.mask, None
        if manifest.mask is None:
            self._post = post_processing(bundle, tail, num_threads, score_threshold)
        else:
            self._to_logits = dequantizer(manifest.tensor(f"{tail}/mask_logits", "outputs"))

    def run(self, frames: Iterable[np.ndarray]) -> Iterator[WindowResult]:
        """Yields a result for every frame of one video, [H, W, 3] uint8 RGB arrays."""
        network, memory = self._network, None
        policy = self._make_policy and self._make_policy(self._windows.count)
        for index, frame in enumerate(frames):
            start = time.perf_counter()
            image = network.prepare(frame)
            ready = time.perf_counter()
            action = None
            if memory is None or policy is None:
                outputs, memory = network.first(image)
            else:
                action = policy.pick(index)
                outputs = network.step(image, action, memory)
            predicted = time.perf_counter()
            detections, mask = None, None
            if self._post is None:
                logits = self._to_logits(outputs["mask_logits"])[0, :, :, 0]
                mask = foreground(logits, frame.shape[:2], self._mask.threshold)
            else:
                detections = self._post(outputs["box_encodings"], outputs["class_logits"])
            done = time.perf_counter()
            if policy is not None:
                policy.observe(outputs)
            end = time.perf_counter()
            timings = Timings(
                (ready - start) * 1e3,
                network.body_ms,
                network.tail_ms,
                (done - predicted) * 1e3 if self._post is None else self._post.last_ms,
                (end - ready) * 1e3,
                (end - done) * 1e3,
            )
            ages = memory.ages_frames.copy()
            yield WindowResult(index, detections, mask, action, self._box(action), ages, timings)

    def _box(self, action: int | None) -> tuple[float, float, float, float]:
        if action is None:
            return 0.0, 0.0, 1.0, 1.0
        windows = self._windows
        top, left = (t / windows.slices for t in windows.tile(action))
        side = windows.adjacent / windows.slices
        return top, left, top + side, left + side
