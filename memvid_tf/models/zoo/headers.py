"""The headers of configurations: what each is, and the commands that make it.

A header is the comment on top of a file, of fields `# Name: text` whose text may go on in further
lines. Commands in it are what a reader types, so a program that needs one reads it there too.
"""

import dataclasses
import pathlib
import re
import shlex

COMMAND = re.compile(r"python -m ((?:.*\\\n)*.*)")


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m module words --flag=value …`; a flag may come several times."""

    module: str
    words: tuple[str, ...]
    flags: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The values of a flag, in order."""
        return [value for flag, value in self.flags if flag == name]

    def one(self, name: str, default: str = "") -> str:
        """The last value of a flag."""
        return (self.all(name) or [default])[-1]


def header(path: pathlib.Path) -> dict[str, str]:
    """The fields of the header of a configuration, by name."""
    fields, name = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        line = line.removeprefix("#").rstrip()
        start = re.match(r" (\S+):\s+(.*)", line)
        if start:
            name, line = start.groups()
        if name:
            fields.setdefault(name, []).append(line.strip())
    return {name: "\n".join(lines) for name, lines in fields.items()}


def commands(text: str) -> list[Command]:
    """The commands in a text."""
    found = []
    for match in COMMAND.finditer(text):
        module, *arguments = shlex.split(match[1].replace("\\\n", " "))
        flags = [argument[2:].partition("=")[::2] for argument in arguments if argument[:2] == "--"]
        words = [argument for argument in arguments if argument[:2] != "--"]
        found.append(Command(module, tuple(words), tuple(flags)))
    return found


def training_command(path: pathlib.Path) -> Command:
    """The command that trains a configuration."""
    (command,) = commands(header(path)["Command"])
    return command
