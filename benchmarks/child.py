"""Runs a program in a process of its own: its progress is seen, its failure is told in a line.

What it prints to stdout goes where ours goes. What it says on stderr is shown as it comes, so that
bars move, up to the line or traceback that says why it failed: that is kept for a log, and its last
line is the cause. Until it says something, a terminal shows for how long it has been silent.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from typing import NamedTuple

LOG_BYTES = 1_000_000
SILENT_S = 1.0
# Seconds that a program has to end after Ctrl-C, which it gets as well.
INTERRUPTED_S = 20
# Where a program begins to say why it failed.
_FAILS = re.compile(rb"(?:^|(?<=[\r\n]))(?=error: |Traceback \(most recent call last\))")


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
      code: its exit code, negative where a signal ended it.
      said: the last of what it said on stderr.
    """

    code: int
    said: str

    @property
    def cause(self) -> str:
        """Why it failed, in a line."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            hint = ", as happens where memory is short" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        lines = [line.strip() for line in self.said.splitlines()]  # each drawing of a bar is one
        last = next((line for line in reversed(lines) if line), f"exit code {self.code}")
        return last.removeprefix("error: ")


def run(command: Sequence[str], folder: str) -> Ended:
    """Runs `python command…` in a folder. SIGTERM is passed on; Ctrl-C reaches both."""
    reader, writer = _channel()
    with open(reader, "rb", buffering=0) as stream:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stderr=writer)
        os.close(writer)
        with _terminating(process):
            try:
                said = _shown(stream)
                code = process.wait()
            except BaseException:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(INTERRUPTED_S)
                process.kill()
                raise
    return Ended(code, said.decode(errors="replace"))


def _channel() -> tuple[int, int]:
    """Both ends of what carries stderr: a terminal where ours is one, so that bars fit into it."""
    if not sys.stderr.isatty():
        return os.pipe()
    reader, writer = os.openpty()
    tty.setraw(writer)  # our own terminal does what a terminal does
    termios.tcsetwinsize(writer, termios.tcgetwinsize(sys.stderr.fileno()))
    return reader, writer


def _shown(stream) -> bytes:
    """Shows a stream up to the failure; returns its last bytes."""
    if sys.stderr.isatty():
        _wait(stream)
    said, failed = b"", False
    for chunk in _chunks(stream):
        said = (said + chunk)[-LOG_BYTES:]
        if not failed:
            shown, *rest = _FAILS.split(chunk, maxsplit=1)
            failed = bool(rest)
            sys.stderr.write(shown.decode(errors="replace"))
            sys.stderr.flush()
    return said


def _wait(stream) -> None:
    """Counts the seconds until there is something to read."""
    start, drawn = time.monotonic(), ""
    while not select.select([stream], [], [], SILENT_S)[0]:
        drawn = f"loading and compiling, {time.monotonic() - start:.0f} s"
        # Whatever comes next, also on stdout, begins where this does.
        print(drawn, end="\r", file=sys.stderr, flush=True)
    print(" " * len(drawn), end="\r" if drawn else "", file=sys.stderr, flush=True)


def _chunks(stream) -> Iterator[bytes]:
    # A terminal whose other end is closed is an error where a pipe ends.
    with contextlib.suppress(OSError):
        while chunk := stream.read(65536):
            yield chunk


@contextlib.contextmanager
def _terminating(process: subprocess.Popen) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
