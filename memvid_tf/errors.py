"""What a program tells its user when the input is wrong: one line, and a non-zero exit."""

import os
import select
import sys
from collections.abc import Callable

from absl import app

from memvid_tf import flag_parsing


class UserError(Exception):
    """The input is wrong. The message names the thing, the bad value, the allowed values and the
    next step; programs print it as one line."""


class Terminated(Exception):
    """The program was asked to end, and has kept what it had done. The message says what to do."""


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl program whose `UserError`s become `error: <message>` and exit code 2.

    So do flags that are wrong; see `flag_parsing`.

    As in a shell, 130 says that it was interrupted, 143 that it was terminated and 141 that nobody
    reads its output any more, as `head` does not.
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

    app.run(guarded, flags_parser=flag_parsing.parse)


def _is_unread(stream) -> bool:
    """Whether a stream is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))
