"""Running recorded clips through Patchwork, in every inference mode of PW 4.

One implementation for checkpoints and for bundles: both are a `WindowNetwork` to it. Latency is
what PW 4 defines: the multiply-adds of the frame that costs most, and their mean over frames. The
first frame of a video, which fills the memory, is in neither.
"""

import dataclasses
import re
from typing import Any, NamedTuple, Protocol

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.attention import next_history
from memvid_tf.runtime.windowed import FULL, LEARNED, MODES, POLICIES

# Logit of what is shown before the first prediction has arrived: background.
_NOTHING = 50.0
_SAME_ANCHOR = 1e-5  # far above the rounding of float32, far below the distance of two anchors


@dataclasses.dataclass(frozen=True)
class Costs:
    """Multiply-adds of one frame; None where they are not known.

    Attributes:
      full: of the plain network.
      window: of a window, the tail included; None of a network without windows.
      attention: of choosing a window.
    """

    full: int | None = None
    window: int | None = None
    attention: int | None = None


class WindowNetwork(Protocol):
    """A network in windows; B clips at a time. States are opaque to the caller.

    Attributes:
      windows: the attention windows; None of a plain network, which knows the mode `full` alone.
      decay: of attention's history; None without an attention network.
      anchors: [A, 4] of a detector, None of a segmenter.
      costs: of its frames.
    """

    windows: Any
    decay: float | None
    anchors: np.ndarray | None
    costs: Costs

    def first(self, frames: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
        """frames: [B, H, W, 3] uint8, seen whole; predictions [B, ...] float32 and the state."""

    def step(
        self, frames: np.ndarray, actions: np.ndarray, state: Any, context: bool
    ) -> tuple[dict[str, np.ndarray], Any]:
        """A window of each frame, [B] int32; `context` False reads zeros around it."""

    def q_values(self, state: Any, history: np.ndarray) -> np.ndarray:
        """[B, A] float32 values of the windows of the next frame; history: [B, A] in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class WindowMode:
    """How clips are run (PW 4, "model variants").

    Attributes:
      policy: one of `MODES`: the plain network on every frame, or what picks the windows.
      context: whether windows read around them what earlier ones left (PW table 2).
      flip: whether the mirrored frame is processed too and predictions are averaged.
      interval: frames from one that is processed to the next; those between show its prediction.
      delay: frames by which predictions are shown late.
    """

    policy: str
    context: bool = True
    flip: bool = False
    interval: int = 1
    delay: int = 0

    @property
    def name(self) -> str:
        """As `parse_mode` reads it."""
        words = [self.policy]
        words += ["nocell"] * (not self.context) + ["flip"] * self.flip
        words += [f"interval{self.interval}"] * (self.interval > 1)
        words += [f"delay{self.delay}"] * (self.delay > 0)
        return "+".join(words)

    def latency(self, costs: Costs) -> tuple[float | None, float | None]:
        """Maximum and average multiply-adds of a frame (PW 4); None where they are not known.

        What is shown d frames late is processed over d + 1 frames, or until the next key frame.
        """
        parts = [costs.full] if self.policy == FULL else [costs.window]
        parts += [costs.attention] * (self.policy == LEARNED)
        if None in parts:
            return None, None
        total = sum(parts) * (2 if self.flip else 1)
        return total / min(self.interval, self.delay + 1), total / self.interval


def parse_mode(text: str) -> WindowMode:
    """The mode of a user's word.

    Args:
      text: "full", "scanning", "random" or "dqn", with any of "+nocell", "+flip", "+interval4" and
        "+delay3" behind it.

    Raises:
      UserError: on anything else.
    """
    policy, *words = text.split("+")
    if policy not in MODES:
        raise UserError(f"mode {text!r}: {policy!r} is not one of {', '.join(MODES)}")
    found = {}
    for word in words:
        number = re.fullmatch(r"(interval|delay)([1-9][0-9]?)", word)
        if number:
            key, value = number[1], int(number[2])
        elif word in ("nocell", "flip"):
            key, value = {"nocell": ("context", False), "flip": ("flip", True)}[word]
        else:
            raise UserError(
                f"mode {text!r}: {word!r} is not one of nocell, flip, interval1…99, delay1…99"
            )
        if key in found:
            raise UserError(f"mode {text!r}: {word!r} comes twice")
        found[key] = value
    mode = WindowMode(policy, **found)
    if policy == FULL and not mode.context:
        raise UserError(f"mode {text!r}: the full frame has no context to leave out")
    return mode


class WindowRollout(NamedTuple):
    """What became of a batch of clips.

    Attributes:
      predictions: [B, T, ...] float32 by name.
      actions: [B, T] int32, the windows; -1 where the full frame was seen, or nothing.
    """

    predictions: dict[str, np.ndarray]
    actions: np.ndarray


class _Picker:
    """Picks the windows of B clips: the runtime's policies, one a clip, or attention."""

    def __init__(self, network: WindowNetwork, policy: str, batch: int, first_clip: int):
        self._network, self._learned = network, policy == LEARNED
        count = network.windows.count
        if self._learned and network.decay is None:
            raise UserError(
                "mode dqn needs an attention network: name the --model_dir of a training that has "
                "one, or a bundle exported from it"
            )
        if self._learned:
            self._history = np.zeros([batch, count], np.float32)
            return
        made = POLICIES[policy]
        # Every clip of a set has random windows of its own, however clips are batched.
        self._policies = [
            made(count, clip) if policy == "random" else made(count)
            for clip in range(first_clip, first_clip + batch)
        ]

    def pick(self, t: int, state: Any) -> np.ndarray:
        """Windows of frame t, [B] int32, of what is known after frame t - 1."""
        if not self._learned:
            return np.array([policy.pick(t) for policy in self._policies], np.int32)
        actions = self._network.q_values(state, self._history).argmax(1).astype(np.int32)
        self._history = next_history(self._history, actions, self._network.decay)
        return actions


def roll(
    network: WindowNetwork, frames: np.ndarray, mode: WindowMode, first_clip: int = 0
) -> WindowRollout:
    """Runs clips in one mode.

    Args:
      network: the network.
      frames: [B, T, H, W, 3] uint8.
      mode: how.
      first_clip: number of the first clip in its set, of which random windows are drawn.

    Raises:
      UserError: a mode that the network cannot run.
    """
    if mode.policy != FULL and network.windows is None:
        raise UserError(f"mode {mode.name}: a single-frame network has no windows, only 'full'")
    batch, length = frames.shape[:2]
    picker = None if mode.policy == FULL else _Picker(network, mode.policy, batch, first_clip)
    state = mirrored_state = None
    keys, actions = [], np.full([batch, length], -1, np.int32)
    for number, t in enumerate(range(0, length, mode.interval)):
        seen = frames[:, t]
        if picker is None or number == 0:
            outputs, state = network.first(seen)
        else:
            actions[:, t] = picker.pick(number, state)
            outputs, state = network.step(seen, actions[:, t], state, mode.context)
        if mode.flip:
            other = np.ascontiguousarray(seen[:, :, ::-1])
            if picker is None or number == 0:
                mirrored, mirrored_state = network.first(other)
            else:
                windows = mirrored_actions(actions[:, t], network.windows)
                mirrored, mirrored_state = network.step(
                    other, windows, mirrored_state, mode.context
                )
            mirrored = unmirrored(mirrored, network.anchors)
            outputs = {name: (x + mirrored[name]) / 2 for name, x in outputs.items()}
        keys.append(outputs)
    shown = []
    for t in range(length):
        done = t - mode.delay
        shown.append(keys[done // mode.interval] if done >= 0 else nothing(keys[0]))
    predictions = {name: np.stack([s[name] for s in shown], 1) for name in keys[0]}
    return WindowRollout(predictions, actions)


def nothing(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Predictions of the same shapes that show background alone."""
    empty = {name: np.zeros_like(x) for name, x in predictions.items()}
    if "class_logits" in empty:
        empty["class_logits"][..., 0] = _NOTHING
    if "mask_logits" in empty:
        empty["mask_logits"] -= _NOTHING
    return empty


def mirrored_actions(actions: np.ndarray, windows) -> np.ndarray:
    """The windows of mirrored frames that show the same."""
    rows, columns = np.divmod(actions, windows.positions)
    return (rows * windows.positions + windows.positions - 1 - columns).astype(np.int32)


def unmirrored(
    predictions: dict[str, np.ndarray], anchors: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Predictions [B, ...] of a mirrored frame as those of the frame itself."""
    if anchors is None:
        return {name: x[:, :, ::-1] for name, x in predictions.items()}
    order = mirrored_anchors(anchors)
    boxes, logits = (predictions[name][:, order] for name in ("box_encodings", "class_logits"))
    return {"box_encodings": boxes * np.float32([1, -1, 1, 1]), "class_logits": logits}


def mirrored_anchors(anchors: np.ndarray) -> np.ndarray:
    """[A] int: of each anchor the place of its mirror image.

    Raises:
      ValueError: anchors that are not the same to the left and to the right.
    """
    mirrored = anchors * np.float32([1, -1, 1, 1]) + np.float32([0, 1, 0, 0])
    order = np.empty(len(anchors), np.int64)
    for place, image in enumerate(mirrored):
        distance = np.abs(anchors - image).max(1)
        order[place] = distance.argmin()
        if distance[order[place]] > _SAME_ANCHOR:
            raise ValueError(f"anchors have no mirror image of {anchors[place].tolist()}")
    return order
