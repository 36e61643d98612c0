"""Which extractor runs on which frame: the fixed interleaving of LFS section 3.2 and the learned one
of section 3.4.

Training, evaluation and the runtime use these same classes. A schedule is asked with `pick` on
every frame, in order, and told with `observe` what ran and what became of the memory.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.manifest import PolicySpec

ACTIONS = ("f0", "f1")  # order of the policy's Q-values


class Schedule(Protocol):
    """Picks the extractor of every frame.

    Attributes:
      wants_candidate: whether what `observe` is shown after a frame of f1 is the state that f1
        would have written, and not the memory.
    """

    wants_candidate: bool

    def pick(self, frame_index: int) -> str:
        """The extractor of frame `frame_index` (from 0): "f0" or "f1"."""

    def observe(self, extractor: str, after: Any, before: Any) -> None:
        """Takes note of a frame: what ran, the state that is shown after it, and the one that was
        shown after the frame before, which on the first is the empty memory."""


@dataclasses.dataclass(frozen=True)
class FixedSchedule:
    """f0 once, then f1 `tau` times, and again.

    Attributes:
      tau: number of f1 frames after every f0 frame; 0 runs f0 alone, None runs f1 alone (then the
        memory stays empty: only f0 writes it).
    """

    tau: int | None
    wants_candidate = False

    def __post_init__(self):
        if self.tau is not None and self.tau < 0:
            raise ValueError(f"tau is {self.tau}, wanted 0 or more, or None for f1 alone")

    def pick(self, frame_index: int) -> str:
        """The extractor of frame `frame_index` (from 0): "f0" or "f1"."""
        if self.tau is None:
            return "f1"
        return "f1" if frame_index % (self.tau + 1) else "f0"

    def observe(self, extractor: str, after: Any, before: Any) -> None:
        """What happens does not change a fixed schedule."""

    def __str__(self) -> str:
        return {None: "f1 only", 0: "f0 only"}.get(self.tau, f"tau={self.tau}")


class DueSchedule:
    """f0 whenever `tau` frames have passed since it last ran: for a worker that may be busy when its
    turn comes. What is due stays due.

    Args:
      tau: number of frames between two runs of f0; 0 or more.
    """

    wants_candidate = False

    def __init__(self, tau: int):
        if tau < 0:
            raise ValueError(f"tau is {tau}, wanted 0 or more")
        self._tau = tau
        self._index = self._due = 0

    def pick(self, frame_index: int) -> str:
        """See `Schedule`; with 0 another video begins."""
        self._index = frame_index
        if frame_index == 0:
            self._due = 0
        return "f0" if frame_index >= self._due else "f1"

    def observe(self, extractor: str, after: Any, before: Any) -> None:
        """See `Schedule`."""
        if extractor == "f0":
            self._due = self._index + self._tau + 1


class ActionHistory:
    """η of B videos, and what is made of the Q-values.

    Args:
      batch: B.
      length: of η (20 in LFS 3.4).
      max_tau: most frames of f1 in a row, a hard bound whatever the Q-values are; None for none.

    Attributes:
      eta: [B, length] uint8: entry k - 1 is 1 where f1 ran k frames ago. It begins with zeros.
    """

    def __init__(self, batch: int, length: int, max_tau: int | None = None):
        if max_tau is not None and max_tau < 0:
            raise ValueError(f"max_tau is {max_tau}, wanted 0 or more, or None for no bound")
        self.eta = np.zeros((batch, length), np.uint8)
        self._max_tau = max_tau
        self._since_f0 = np.zeros(batch, np.int64)

    def picks(self, q_values: np.ndarray) -> np.ndarray:
        """Where f0 runs next, [B] bool, of Q-values [B, 2] in the order of `ACTIONS`.

        Of equal values f0's wins: int8 has few levels, and f0 is the safe choice.
        """
        wanted = q_values[:, 0] >= q_values[:, 1]
        if self._max_tau is not None:
            wanted |= self._since_f0 >= self._max_tau
        return wanted

    def after(self, f0_ran: np.ndarray | bool) -> np.ndarray:
        """η [B, length] after a frame on which f0 ran where `f0_ran`, of [B] bool, says so."""
        eta = np.empty_like(self.eta)
        eta[:, 0] = np.logical_not(f0_ran)
        eta[:, 1:] = self.eta[:, :-1]
        return eta

    def record(self, f0_ran: np.ndarray) -> None:
        """Takes note of where f0 ran on a frame, [B] bool; f1 ran elsewhere."""
        self.eta = self.after(f0_ran)
        self._since_f0 = np.where(f0_ran, 0, self._since_f0 + 1)


def bound(spec: PolicySpec, max_tau: int | None) -> int | None:
    """Most frames of f1 in a row, of what was asked for: None is the policy's own bound, 0 none.

    Returns:
      What `ActionHistory` takes.

    Raises:
      ValueError: a negative number.
    """
    if max_tau is not None and max_tau < 0:
        raise ValueError(f"max_tau is {max_tau}, wanted 0 or more, or None for the policy's own")
    return (spec.max_tau if max_tau is None else max_tau) or None


class PolicyNetwork(Protocol):
    """π of one video.

    Attributes:
      spec: how it is called.
    """

    spec: PolicySpec

    def q_values(self, after: Any, before: Any, eta: np.ndarray) -> np.ndarray:
        """[2] float32 in the order of `ACTIONS`, of what `Schedule.observe` is shown and η
        [history]."""


class AdaptiveSchedule:
    """π picks; f0 runs on the first frame.

    π has seen every frame before it is asked for the next one: what it picks does not wait for that
    frame.

    Args:
      policy: π.
      max_tau: see `bound`.
    """

    def __init__(self, policy: PolicyNetwork, max_tau: int | None = None):
        self._policy, self._max_tau = policy, bound(policy.spec, max_tau)
        self.wants_candidate = policy.spec.observes == "candidate"
        self._restart()

    def _restart(self):
        self._history = ActionHistory(1, self._policy.spec.history, self._max_tau)
        self._q_values = None

    def pick(self, frame_index: int) -> str:
        """The extractor of frame `frame_index`; with 0 another video begins."""
        if frame_index == 0:
            self._restart()
            return "f0"
        return "f0" if self._history.picks(self._q_values[None])[0] else "f1"

    def observe(self, extractor: str, after: Any, before: Any) -> None:
        """Runs π on a frame that is done; see `Schedule`."""
        self._history.record(np.array([extractor == "f0"]))
        self._q_values = self._policy.q_values(after, before, self._history.eta[0])

    def __str__(self) -> str:
        return "adaptive" if self._max_tau is None else f"adaptive, tau at most {self._max_tau}"


def parse(text: str) -> FixedSchedule:
    """The schedule that a user's string names.

    Args:
      text: "f0" or "f1" for one extractor alone, or tau as a whole number such as "9".

    Raises:
      UserError: anything else.
    """
    if text in ("f0", "f1"):
        return FixedSchedule(0 if text == "f0" else None)
    if text.isascii() and text.isdigit():
        return FixedSchedule(int(text))
    raise UserError(
        f"schedule {text!r} is not 'f0' (every frame), 'f1' (every frame) or a whole number tau "
        "from 0 up (f0 once, then f1 tau times), such as '9'"
    )
