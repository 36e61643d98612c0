"""Ends a piece of work at every step at which it changes the disk, as SIGKILL would."""

import os
from collections.abc import Callable

from memvid_tf import files

# Whatever gives, takes or changes a name; the exchange of two names is a call of the kernel.
CALLS = ("mkdir", "remove", "rename", "replace", "rmdir", "unlink", "fsync", "truncate")


class Killed(BaseException):
    """Instead of a call that a dead process does not make any more."""


def every_step(monkeypatch, work: Callable[[], object], look: Callable[[int], None]) -> int:
    """Runs a piece of work again and again, each time killed one step later, until it ends.

    A dead process does nothing, so every call after the fatal one fails too: what a `finally` would
    tidy up stays. Its locks are given back, as the kernel does.

    Args:
      monkeypatch: of pytest.
      work: to run; must bring its own beginning.
      look: called after every death, with the number of the step.

    Returns:
      The number of steps.
    """
    step = 0
    while True:
        left = [step]
        with monkeypatch.context() as patch:

            def counted(call, left=left):
                def counting(*args, **kwargs):
                    if left[0] <= 0:
                        raise Killed
                    left[0] -= 1
                    return call(*args, **kwargs)

                return counting

            for name in CALLS:
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(files, "_exchange", counted(files._exchange))
            try:
                work()
                return step
            except Killed:
                pass
        look(step)
        step += 1
