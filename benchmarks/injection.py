r"""Runs a program of ours with a fault in it.

  python -m benchmarks.injection --fault=kill:5 memvid_tf.train --config_file=… --model_dir=…

Faults of a training:
  kill:STEP, terminate:STEP   SIGKILL or SIGTERM to itself once it has reached a step
  killed_saving:POINT:NUMBER  SIGKILL during its NUMBER-th checkpoint; POINT is `data` (at a random
                              moment while numbers are written), `pieces` (they are written but not
                              joined yet) or `list` (the checkpoint is whole but not listed yet)
"""

import os
import random
import runpy
import signal
import sys
import threading
from unittest import mock

POINTS = ("data", "pieces", "list")
# A small checkpoint is written in about so many seconds.
SAVING_S = 0.02


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def signal_at(step: int, number: int) -> None:
    """The training of this process gets a signal once it has reached a step."""
    from memvid_tf.tasks import training

    original, sent = training.Progress.__call__, []

    def call(self, output):
        original(self, output)
        if self.global_step.numpy() >= step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    mock.patch.object(training.Progress, "__call__", call).start()


def killed_saving(point: str, number: int) -> None:
    """This process is killed during its `number`-th checkpoint; `point` is one of POINTS."""
    import memvid_tf  # noqa: F401  (before TensorFlow)
    from tensorflow.python.checkpoint import checkpoint_management
    from tensorflow.python.ops import gen_io_ops, io_ops

    if point not in POINTS:
        raise ValueError(f"point {point!r} is not one of {POINTS}")
    module, name = {
        "data": (io_ops, "save_v2"),
        "pieces": (gen_io_ops, "merge_v2_checkpoints"),
        "list": (checkpoint_management, "update_checkpoint_state_internal"),
    }[point]
    original, calls = getattr(module, name), []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            if point == "data":
                threading.Timer(random.uniform(0, SAVING_S), _die).start()
            else:
                _die()
        return original(*args, **kwargs)

    mock.patch.object(module, name, call).start()


def arm(fault: str) -> None:
    """Injects a fault into this process; see the module."""
    kind, *values = fault.split(":")
    if kind == "killed_saving":
        killed_saving(values[0], int(values[1]))
    else:
        numbers = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
        signal_at(int(values[0]), numbers[kind])


def main() -> None:
    words = sys.argv[1:]
    if not words or not words[0].startswith("--fault="):
        sys.exit("error: --fault=KIND:... comes first; see the module's text")
    arm(words[0].partition("=")[2])
    sys.argv = words[1:]
    runpy.run_module(words[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
