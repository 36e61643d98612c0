"""What a program tells its user when the input is wrong: one line, and a non-zero exit."""

import os
import select
import signal
import sys
from collections.abc import Callable

from absl import app


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


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl program whose `UserError`s become `error: <message>` and exit code 2.

    As in a shell, 130 says that it was interrupted, 143 that it was terminated, 129 that its
    terminal is gone and 141 that nobody reads its output any more, as `head` does not.
    """

    def guarded(argv: list[str]) -> int | None:
        try:
            code = main(argv)
            sys.stdout.flush()  # not at exit, where a closed pipe would be reported as a failure
            return code
        except UserError as error:
            message = " ".join(str(error).split())
            print(f"error: {message}", file=sys.stderr)
            return 2
        except Interrupted as end:
            print(end.text, file=sys.stderr)
            return 128 + end.signum
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Terminated as end:
            print(end, file=sys.stderr)
            return 143
        except BrokenPipeError:
            if not _is_unread(sys.stdout):
                raise  # it was another pipe
            # What is left in the buffer must go somewhere when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141

    app.run(guarded)


def _is_unread(stream) -> bool:
    """Whether a stream is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
