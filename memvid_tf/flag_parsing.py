"""The command line of every program: all its flags in --help, and one line where one is wrong.

absl's own parser shows only flags of the main module and ends with 1 even after --help.
"""

import math
import re
import sys

from absl import flags

FLAGS = flags.FLAGS
PACKAGES = ("memvid_tf.", "export.", "benchmarks.")
_HELP = ("help", "helpshort", "helpfull", "h", "?")
_REQUIRED = re.compile(r"Flag --(\w+) must have a value other than None")


def parse(argv: list[str]) -> list[str]:
    """Parses flags, for `app.run`; returns the program's name and its other arguments.

    Raises:
      SystemExit: 0 after --help, 2 where a flag is unknown, missing or has no such value.
    """
    own = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    asked = [word.lstrip("-") for word in own if word.startswith("-")]
    if found := [word for word in asked if word in _HELP]:
        print(help_text(everything="helpfull" in found))
        raise SystemExit(0)
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        _refuse(str(error))
    for name, value in FLAGS.flag_values_dict().items():
        # Comparisons with a bound let nan pass.
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(f"--{name}={value} is no finite number")
    return rest


def help_text(everything: bool = False) -> str:
    """The program's description and its flags, wherever they are defined.

    Args:
      everything: also flags of libraries.
    """
    program = sys.argv[0]
    modules = sorted(FLAGS.flags_by_module_dict(), key=lambda name: (name != program, name))
    chosen = [name for name in modules if everything or _is_ours(name)]
    # Without the headings: which module defines a flag is nothing to a user.
    shown = [FLAGS.module_help(name).strip().partition("\n")[2] for name in chosen]
    description = (sys.modules["__main__"].__doc__ or "").strip()
    return "\n".join([description, "", "flags:", *shown])


def _is_ours(module: str) -> bool:
    return module == sys.argv[0] or module.startswith(PACKAGES)


def _refuse(message: str) -> None:
    if missing := _REQUIRED.search(message):
        message = f"--{missing[1]} is missing; see --help"
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
