"""Which extractor runs on which frame: the fixed interleaving of LFS section 3.2.

Training-time evaluation and the runtime use these same classes. A schedule is anything with
`pick(frame_index) -> "f0" | "f1"`; it is asked once for every frame, in order.
"""

import dataclasses
from typing import Protocol

from memvid_tf.errors import UserError


class Schedule(Protocol):
    """Picks the extractor of every frame."""

    def pick(self, frame_index: int) -> str:
        """The extractor of frame `frame_index` (from 0): "f0" or "f1"."""


@dataclasses.dataclass(frozen=True)
class FixedSchedule:
    """f0 once, then f1 `tau` times, and again.

    Attributes:
      tau: number of f1 frames after every f0 frame; 0 runs f0 alone, None runs f1 alone (then the
        memory stays empty: only f0 writes it).
    """

    tau: int | None

    def __post_init__(self):
        if self.tau is not None and self.tau < 0:
            raise ValueError(f"tau is {self.tau}, wanted 0 or more, or None for f1 alone")

    def pick(self, frame_index: int) -> str:
        """The extractor of frame `frame_index` (from 0): "f0" or "f1"."""
        if self.tau is None:
            return "f1"
        return "f1" if frame_index % (self.tau + 1) else "f0"

    def __str__(self) -> str:
        return {None: "f1 only", 0: "f0 only"}.get(self.tau, f"tau={self.tau}")


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
