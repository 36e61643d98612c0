"""What a program tells its user when something is wrong: one line, and a non-zero exit."""

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from memvid_tf import flag_parsing

# No room, or no right to any: the machine must be changed, not the program.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """The input is wrong. The message names the thing, the bad value, the allowed values and the
    next step; programs print it as one line."""


class Terminated(Exception):
    """The program was asked to end, and has kept what it had done. The message says what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Attributes:
      signum: the signal: SIGINT, SIGTERM or SIGHUP.
      text: what to tell the user.
    """

    def __init__(self, signum: int):
        self.signum = signum
        name = signal.Signals(signum).name
        self.text = "interrupted" if signum == signal.SIGINT else f"ended by {name}"
        super().__init__(self.text)


class Interruptions:
    """Makes SIGINT, SIGTERM and SIGHUP raise one `Interrupted` in the `with` block.

    Only the first one raises: what it makes the program tidy up is not interrupted again. Signals
    that the parent had ignored (nohup, a shell's background) stay ignored.
    """

    def __init__(self):
        self._before: dict[int, object] = {}
        self._first: int | None = None
        self._held = False

    def __enter__(self) -> "Interruptions":
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[signum] = signal.signal(signum, self._take)
        return self

    def __exit__(self, *error) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def hold(self) -> None:
        """Puts signals off until `release`, for what must be done whole or not at all."""
        self._held = True

    def release(self) -> None:
        """Ends `hold`.

        Raises:
          Interrupted: a signal came meanwhile.
        """
        self._held = False
        if self._first is not None:
            raise Interrupted(self._first)

    def _take(self, signum: int, frame) -> None:
        if self._first is None:
            self._first = signum
            if not self._held:
                raise Interrupted(signum)


def run(main: Callable[[list[str]], int | None], addresses: Sequence[str] = ()) -> None:
    """Runs an absl program whose `UserError`s become `error: <message>` and exit code 2.

    So do flags that are wrong; see `flag_parsing`.

    As in a shell, 130 says that it was interrupted, 143 that it was terminated, 129 that its
    terminal is gone and 141 that nobody reads its output any more, as `head` does not. Where the
    output cannot be written, because the disk is full or there is none, the program does its work
    to the end and then says so. A full disk is the user's to mend as well, wherever it is met.

    Args:
      main: takes the arguments that are no flags; returns the exit code, None for 0.
      addresses: flags that may be given an address, such as rtsp://camera; all others are refused
        one, since they name local files and folders.
    """

    def guarded(argv: list[str]) -> int | None:
        code = None
        try:
            _refuse_addresses(addresses)
            code = main(argv)
        except UserError as error:
            message = " ".join(str(error).split())
            print(f"error: {message}", file=sys.stderr)
            code = 2
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            what = error.filename or "a file"
            print(f"error: {what} cannot be written: {error.strerror}", file=sys.stderr)
            code = 2
        except Interrupted as end:
            print(end.text, file=sys.stderr)
            code = 128 + end.signum
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        except Terminated as end:
            print(end, file=sys.stderr)
            code = 143
        sys.stdout.flush()
        if code or output.error is None:
            return code
        if output.error.errno == errno.EPIPE:
            return 141
        print(f"error: standard output: {output.error.strerror}", file=sys.stderr)
        return 2

    with contextlib.ExitStack() as stack:
        output = _kept(stack, "stdout", 1)
        _kept(stack, "stderr", 2)
        _fill_descriptors()
        app.run(guarded, flags_parser=flag_parsing.parse)


def _refuse_addresses(allowed: Sequence[str]) -> None:
    from memvid_tf import files  # which raises our UserError

    for name in set(flags.FLAGS) - set(allowed):
        flag = flags.FLAGS[name]
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in values if flag.present else ():
            if isinstance(value, str):
                try:
                    files.local(value)
                except UserError as error:
                    raise UserError(f"--{name}: {error}") from error


class _Stream(io.RawIOBase):
    """Standard output or error, whose end may be gone: the first error is kept, not raised.

    A full disk under a log, or a terminal that was closed, must not end hours of work.

    Attributes:
      error: since which nothing is written any more.
    """

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor, self.error = descriptor, None

    def writable(self):
        return True

    def fileno(self):
        return self._descriptor

    def isatty(self):
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, data):
        if self.error is None:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self.error = error
        return len(data)


def _kept(stack: contextlib.ExitStack, name: str, descriptor: int) -> _Stream:
    """Puts such a stream in the place of Python's own until the stack is left."""
    usual = getattr(sys, name)  # None where it was closed before Python began
    stream = _Stream(-1 if usual is None else descriptor)
    if usual is not getattr(sys, f"__{name}__"):
        return stream  # somebody else takes what is written
    encoding, problems = ("utf-8", "replace") if usual is None else (usual.encoding, usual.errors)
    text = io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=encoding,
        errors=problems,
        line_buffering=name == "stderr" or stream.isatty(),
        write_through=usual is not None and usual.write_through,
    )
    setattr(sys, name, text)
    stack.callback(setattr, sys, name, usual)
    stack.callback(text.flush)
    return stream


def _fill_descriptors() -> None:
    """Keeps the numbers of closed standard streams from the files that the program opens: on them
    libraries write what they have to say."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
