"""YAML of any origin: bounded before time and memory are spent on it. Needs no TensorFlow."""

import re

import yaml

from memvid_tf.errors import UserError

MOST_CHARACTERS, MOST_VALUES, MOST_LEVELS = 1 << 18, 100_000, 32  # of a file; ours have 3 kB


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, for which YAML 1.1 demands `1.0e-3`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse(text: str, what: str, wanted: str):
    """The content of a text.

    Args:
      text: of at most `MOST_CHARACTERS`.
      what: it is, for messages.
      wanted: what it should be, for messages.

    Raises:
      UserError: it is none, nests deeply, or expands to more than fits in memory.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{what} is longer than {MOST_CHARACTERS} characters")
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise UserError(f"{what} is nested more than {MOST_LEVELS} levels deep") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not a date
        raise UserError(f"{what} is not {wanted}: {str(error)[:300]}") from error
    _check_size(content, what)
    return content


def _check_size(content, what: str) -> None:
    """Counts level by level what aliases of aliases stand for, too."""
    level, values = [content], 0
    for _ in range(MOST_LEVELS):
        inner = []
        for value in level:
            if isinstance(value, (dict, list)):
                values += len(value)
                if values > MOST_VALUES:
                    raise UserError(f"{what} holds more than {MOST_VALUES} values")
                inner += value.values() if isinstance(value, dict) else value
        level = inner
    if level:
        raise UserError(f"{what} is nested more than {MOST_LEVELS} levels deep")
