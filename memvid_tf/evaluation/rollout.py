"""Running recorded clips through a detector with memory, in every inference mode.

One implementation for checkpoints and for bundles: both are a `Network` to it. Features do not
depend on the mode, so each frame passes each extractor once, however many modes are scored.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime import schedules
from memvid_tf.runtime.manifest import PolicySpec

# f0's result serves the next frame but for a mode that names a delay. On LFS's phone f0 takes about
# eleven frames of asynchronous inference (table 2: 4.2 frames a second against 48.8).
ASYNC_DELAY_FRAMES = 1
_DELAY = re.compile(r"(.*)\+delay([1-9][0-9]{0,2})")


class Network(Protocol):
    """A detector with memory; B clips at a time. States and features are opaque to the caller.

    Attributes:
      policy: how its policy is called, or None if it has none.
      f1_only_reads: whether a frame of f1 cannot write the state.
    """

    policy: PolicySpec | None
    f1_only_reads: bool

    def extract(self, frames: np.ndarray, extractor: str) -> Any:
        """frames: [B, H, W, 3] uint8; returns the features of one frame of every clip."""

    def initial_state(self, batch: int) -> Any:
        """The empty memory of `batch` clips."""

    def step(self, features: Any, state: Any, extractor: str) -> tuple[np.ndarray, np.ndarray, Any]:
        """Returns box encodings [B, A, 4], class logits [B, A, 1 + C], both float32, and the next
        state."""

    def choose(self, first: np.ndarray, a: Any, b: Any) -> Any:
        """Of two states, a's part for the clips where `first` [B] bool is true, else b's."""

    def q_values(self, after: Any, before: Any, eta: np.ndarray) -> np.ndarray:
        """The policy's values [B, 2] float32 of f0 and f1, of the states after and before a frame
        and η [B, history] uint8."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """How the frames of a clip are distributed (LFS 3.1, 3.2, 3.4, 3.5).

    Attributes:
      tau: f1 frames after each f0 frame; 0 is f0 alone, None is f1 alone. None in the modes of the
        next three.
      adaptive: whether the policy decides.
      max_tau: most f1 frames in a row that the policy may decide on; None for its own bound, 0
        for any number.
      random_percent: of the frames, drawn at random, that f0 gets, or None.
      asynchronous: whether f0 runs beside f1, which makes all detections.
      f1_updates: whether f1 writes to the memory too, which LFS 3.2 argues against.
      delay_frames: asynchronously, after how many frames f0's result reaches the memory.
    """

    tau: int | None
    asynchronous: bool = False
    f1_updates: bool = False
    delay_frames: int = ASYNC_DELAY_FRAMES
    adaptive: bool = False
    max_tau: int | None = None
    random_percent: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether f0 runs on the same frames of every clip."""
        return not self.adaptive and self.random_percent is None

    @property
    def name(self) -> str:
        """As `parse_mode` reads it."""
        if self.random_percent is not None:
            return f"random{self.random_percent}"
        if self.adaptive:
            bound = "" if self.max_tau is None else str(self.max_tau)
            base = f"adaptive{bound}{'+async' if self.asynchronous else ''}"
        elif self.asynchronous:
            base = f"async{self.tau}"
        else:
            base = {None: "f1", 0: "f0"}.get(self.tau, str(self.tau))
        delay = f"+delay{self.delay_frames}" if self.delay_frames != ASYNC_DELAY_FRAMES else ""
        return f"{base}{'+update' if self.f1_updates else ''}{delay}"


def parse_mode(text: str) -> Mode:
    """The mode of a user's word.

    Args:
      text: "f0", "f1", "9" or "async9", optionally with "+update"; "adaptive", or "adaptive19" with
        at most 19 frames of f1 in a row ("adaptive0" with any number), optionally with "+async";
        "random20", f0 on 20 % of the frames. Asynchronous ones optionally with "+delay11": f0's
        result serves the eleventh frame after its own, in place of the next.

    Raises:
      UserError: on anything else.
    """
    delayed = _DELAY.fullmatch(text)
    if delayed:
        mode = parse_mode(delayed[1])
        if not mode.asynchronous or mode.delay_frames != ASYNC_DELAY_FRAMES:
            raise UserError(
                f"mode {text!r}: one delay of f0 is of asynchronous modes, as in 'async9+delay11'"
            )
        return dataclasses.replace(mode, delay_frames=int(delayed[2]))
    adaptive = re.fullmatch(r"adaptive([0-9]*)(\+async)?", text)
    if adaptive:
        bound = int(adaptive[1]) if adaptive[1] else None
        return Mode(None, bool(adaptive[2]), adaptive=True, max_tau=bound)
    if text.startswith("adaptive"):
        raise UserError(
            f"mode {text!r}: policies run as 'adaptive', 'adaptive19', 'adaptive+async'"
        )
    random = re.fullmatch(r"random([0-9]+)", text)
    if random and int(random[1]) <= 100:
        return Mode(None, random_percent=int(random[1]))
    word, plus, suffix = text.partition("+")
    if plus and suffix != "update":
        raise UserError(
            f"mode {text!r}: after '+' only 'update' and, of asynchronous modes, 'delay1' to "
            "'delay999' are known, as in '9+update' and 'async9+delay11'"
        )
    asynchronous = word.startswith("async")
    schedule = schedules.parse(word.removeprefix("async"))
    if asynchronous and (not schedule.tau or suffix):
        raise UserError(
            f"mode {text!r}: asynchronous modes are 'async' and tau ≥ 1, as in 'async9'"
        )
    return Mode(schedule.tau, asynchronous, f1_updates=bool(suffix))


def delayed(modes: Sequence[Mode], delay_frames: int) -> list[Mode]:
    """The modes, each once, asynchronous ones that name no delay with this one."""
    return list(
        dict.fromkeys(
            dataclasses.replace(mode, delay_frames=delay_frames)
            if mode.asynchronous and mode.delay_frames == ASYNC_DELAY_FRAMES
            else mode
            for mode in modes
        )
    )


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


class Recent(Sequence):
    """Features of one extractor, computed where somebody wants them; the latest are kept.

    Args:
      network: the detector.
      frames: [B, T, H, W, 3] uint8.
      extractor: "f0" or "f1".
      keep: how many frames back somebody may still ask for.
    """

    def __init__(self, network: Network, frames: np.ndarray, extractor: str, keep: int):
        self._network, self._frames, self._extractor = network, frames, extractor
        self._keep, self._known = keep, {}

    def __len__(self) -> int:
        return self._frames.shape[1]

    def __getitem__(self, t: int) -> Any:
        if t not in self._known:
            self._known = {u: x for u, x in self._known.items() if u >= t - self._keep}
            self._known[t] = self._network.extract(self._frames[:, t], self._extractor)
        return self._known[t]


class Rollout(NamedTuple):
    """What became of a batch of clips.

    Attributes:
      box_encodings: [B, T, A, 4] float32.
      class_logits: [B, T, A, 1 + C] float32.
      f0: [B, T] bool, where f0 ran, or was started.
    """

    box_encodings: np.ndarray
    class_logits: np.ndarray
    f0: np.ndarray


class _Fixed:
    """One schedule for every clip, whatever happens in it."""

    wants_candidate = False

    def __init__(self, schedule: schedules.Schedule, batch: int):
        self._schedule, self._batch = schedule, batch

    def picks(self, t: int) -> np.ndarray:
        """Where f0 should run on frame t: [B] bool."""
        return np.full(self._batch, self._schedule.pick(t) == "f0")

    def observe(self, f0_ran: np.ndarray, after: Any, before: Any) -> None:
        """Takes note of a frame; see `schedules.Schedule.observe`."""
        self._schedule.observe("f0" if f0_ran.all() else "f1", after, before)


class _Random:
    """f0 on the first frame, then by lot: the control that a learned policy has to beat.

    Every clip of a set has draws of its own, however clips are batched.
    """

    wants_candidate = False

    def __init__(self, percent: int, batch: int, first_clip: int):
        self._share = percent / 100
        clips = range(first_clip, first_clip + batch)
        self._generators = [np.random.default_rng([percent, clip]) for clip in clips]

    def picks(self, t):
        draws = np.array([generator.random() for generator in self._generators])
        return (draws < self._share) | (t == 0)

    def observe(self, f0_ran, after, before):
        """Chance has no memory."""


class _Adaptive:
    """π for every clip; f0 on the first frame. As `schedules.AdaptiveSchedule`."""

    def __init__(self, network: Network, batch: int, max_tau: int | None):
        if network.policy is None:
            raise UserError(
                "adaptive modes need a policy: name the --model_dir of a policy's training, or a "
                "bundle exported from it"
            )
        self.wants_candidate = network.policy.observes == "candidate"
        self._network, self._batch = network, batch
        bound = schedules.bound(network.policy, max_tau)
        self._history = schedules.ActionHistory(batch, network.policy.history, bound)
        self._q_values = None

    def picks(self, t):
        if self._q_values is None:
            return np.full(self._batch, True)
        return self._history.picks(self._q_values)

    def observe(self, f0_ran, after, before):
        self._history.record(f0_ran)
        self._q_values = self._network.q_values(after, before, self._history.eta)


def picker(
    mode: Mode, network: Network, batch: int, first_clip: int = 0
) -> _Fixed | _Random | _Adaptive:
    """Who decides about `batch` clips in a mode: see `_Fixed`.

    Args:
      mode: how the frames are distributed.
      network: the detector.
      batch: number of clips.
      first_clip: number of the first one in its set, of which chance is drawn.

    Raises:
      UserError: an adaptive mode of a network without a policy, or one in which f1 should write a
        memory that it only reads.
    """
    if mode.f1_updates and network.f1_only_reads:
        raise UserError(
            f"mode {mode.name!r}: frames of f1 only read the memory of this network; leave "
            "'+update' out"
        )
    if mode.adaptive:
        return _Adaptive(network, batch, mode.max_tau)
    if mode.random_percent is not None:
        return _Random(mode.random_percent, batch, first_clip)
    kind = schedules.DueSchedule if mode.asynchronous else schedules.FixedSchedule
    return _Fixed(kind(mode.tau), batch)


def roll(
    network: Network,
    features: dict[str, Sequence[Any]],
    batch: int,
    mode: Mode,
    first_clip: int = 0,
) -> Rollout:
    """Runs clips in one mode; arguments as `frame_by_frame`."""
    boxes, logits, f0 = zip(*frame_by_frame(network, features, batch, mode, first_clip))
    return Rollout(np.stack(boxes, 1), np.stack(logits, 1), np.stack(f0, 1))


def frame_by_frame(
    network: Network,
    features: dict[str, Sequence[Any]],
    batch: int,
    mode: Mode,
    first_clip: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs clips in one mode, a frame at a time.

    Args:
      network: the detector.
      features: of `extract_all`, or `Recent` by extractor.
      batch: number of clips.
      mode: how the frames are distributed.
      first_clip: see `picker`.

    Returns:
      An iterator over frames: box encodings [B, A, 4] and class logits [B, A, 1 + C], both float32,
      and where f0 ran, or was started, [B] bool.

    Raises:
      UserError: see `picker`.
    """
    run = _roll_beside if mode.asynchronous else _roll_in_turn
    return run(network, features, batch, mode, picker(mode, network, batch, first_clip))


def step_of_each(network: Network, features: dict[str, Any], state: Any, f0: np.ndarray):
    """One step in which clips may differ in their extractor.

    Args:
      network: the detector.
      features: of one frame, by extractor.
      state: before the frame.
      f0: [B] bool, where f0 runs.

    Returns:
      As `Network.step`; the state is what the extractor writes, if it may.
    """
    if f0.all() or not f0.any():
        extractor = "f0" if f0.all() else "f1"
        return network.step(features[extractor], state, extractor)
    (*heads0, state0), (*heads1, state1) = (
        network.step(features[extractor], state, extractor) for extractor in ("f0", "f1")
    )
    boxes, logits = (np.where(f0[:, None, None], a, b) for a, b in zip(heads0, heads1))
    return boxes, logits, network.choose(f0, state0, state1)


def _roll_in_turn(network, features, batch, mode, decides):
    """Yields the heads of every frame, and where f0 ran: one extractor a frame."""
    state = seen = network.initial_state(batch)
    for t in range(len(features["f0"])):
        f0 = decides.picks(t)
        both = {extractor: frames[t] for extractor, frames in features.items()}
        boxes, logits, written = step_of_each(network, both, state, f0)
        kept = written if mode.f1_updates else network.choose(f0, written, state)
        after = written if decides.wants_candidate else kept
        decides.observe(f0, after, seen)
        state, seen = kept, after
        yield boxes, logits, f0


def _roll_beside(network, features, batch, mode, decides):
    """Yields the same where f0 runs beside f1, which makes all detections.

    The first frame waits for f0, since detections from an empty memory are useless; then f0 starts
    where it is wanted and not still running, as `runtime.AsyncRunner` does.
    """
    state = seen = network.initial_state(batch)
    nowhere = np.zeros(batch, bool)
    started = []
    for t in range(len(features["f0"])):
        arrived = nowhere
        source = t - mode.delay_frames if t else 0
        if t == 0 or source > 0:
            arrived = started[source] if t else ~nowhere
        if arrived.any():
            *_, written = network.step(features["f0"][source], state, "f0")
            state = network.choose(arrived, written, state)
        boxes, logits, candidate = network.step(features["f1"][t], state, "f1")
        running = np.any([nowhere, *(s for u, s in enumerate(started) if u > max(source, 0))], 0)
        started.append(decides.picks(t) & ~running)
        after = candidate if decides.wants_candidate else state
        after = network.choose(arrived, state, after)
        decides.observe(started[t], after, seen)
        seen = after
        yield boxes, logits, started[t]
