"""Running recorded clips through a detector with memory, in every inference mode.

One implementation for checkpoints and for bundles: both are a `Network` to it. Features do not
depend on the mode, so each frame passes each extractor once, however many modes are scored.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime import schedules

ASYNC_DELAY_FRAMES = 1


class Network(Protocol):
    """A detector with memory; B clips at a time. States and features are opaque to the caller."""

    def extract(self, frames: np.ndarray, extractor: str) -> Any:
        """frames: [B, H, W, 3] uint8; returns the features of one frame of every clip."""

    def initial_state(self, batch: int) -> Any:
        """The empty memory of `batch` clips."""

    def step(self, features: Any, state: Any, extractor: str) -> tuple[np.ndarray, np.ndarray, Any]:
        """Returns box encodings [B, A, 4], class logits [B, A, 1 + C], both float32, and the next
        state."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the frames of a clip are distributed (LFS 3.1, 3.2, 3.5).

    Attributes:
      tau: f1 frames after each f0 frame; 0 is f0 alone, None is f1 alone.
      asynchronous: whether f0 runs beside f1, which makes all detections.
      f1_updates: whether f1 writes to the memory too, which LFS 3.2 argues against.
      delay_frames: asynchronously, after how many frames f0's result reaches the memory.
    """

    tau: int | None
    asynchronous: bool = False
    f1_updates: bool = False
    delay_frames: int = ASYNC_DELAY_FRAMES

    @property
    def name(self) -> str:
        """As `parse_mode` reads it, without the delay."""
        base = {None: "f1", 0: "f0"}.get(self.tau, str(self.tau))
        if self.asynchronous:
            base = f"async{self.tau}"
        return f"{base}+update" if self.f1_updates else base


def parse_mode(text: str) -> Mode:
    """The mode of a user's word: "f0", "f1", "9", "async9", each optionally with "+update".

    Raises:
      UserError: on anything else.
    """
    word, _, suffix = text.partition("+")
    if suffix not in ("", "update"):
        raise UserError(f"mode {text!r}: after '+' only 'update' is known, as in '9+update'")
    asynchronous = word.startswith("async")
    schedule = schedules.parse(word.removeprefix("async"))
    if asynchronous and (not schedule.tau or suffix):
        raise UserError(f"mode {text!r}: asynchronous modes are 'async' and tau ≥ 1, as in 'async9'")
    return Mode(schedule.tau, asynchronous, f1_updates=bool(suffix))


def extract_all(network: Network, frames: np.ndarray) -> dict[str, list[Any]]:
    """Features of both extractors for every frame.

    Args:
      network: the detector.
      frames: [B, T, H, W, 3] uint8.

    Returns:
      For "f0" and "f1", one entry a frame.
    """
    return {
        extractor: [network.extract(frames[:, t], extractor) for t in range(frames.shape[1])]
        for extractor in ("f0", "f1")
    }


def roll(
    network: Network, features: dict[str, list[Any]], batch: int, mode: Mode
) -> tuple[np.ndarray, np.ndarray]:
    """Runs clips in one mode.

    Asynchronously the first frame waits for f0, since detections from an empty memory are useless;
    `runtime.AsyncRunner` does the same.

    Args:
      network: the detector.
      features: of `extract_all`.
      batch: number of clips.
      mode: how the frames are distributed.

    Returns:
      Box encodings [B, T, A, 4] and class logits [B, T, A, 1 + C], float32.
    """
    schedule = schedules.FixedSchedule(mode.tau)
    state = network.initial_state(batch)
    boxes, logits = [], []
    for t in range(len(features["f0"])):
        picked = schedule.pick(t)
        if mode.asynchronous:
            source = t - mode.delay_frames if t else 0
            if t == 0 or (source > 0 and schedule.pick(source) == "f0"):
                *_, state = network.step(features["f0"][source], state, "f0")
            picked = "f1"
        box, logit, next_state = network.step(features[picked][t], state, picked)
        if picked == "f0" or mode.f1_updates:
            state = next_state
        boxes.append(box)
        logits.append(logit)
    return np.stack(boxes, 1), np.stack(logits, 1)
