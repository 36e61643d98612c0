"""What a program tells its user when the input is wrong: one line, and a non-zero exit."""

import sys
from collections.abc import Callable

from absl import app


class UserError(Exception):
    """The input is wrong. The message names the thing, the bad value, the allowed values and the
    next step; programs print it as one line."""


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl program whose `UserError`s become `error: <message>` and exit code 2."""

    def guarded(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except UserError as error:
            message = " ".join(str(error).split())
            print(f"error: {message}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(guarded)
