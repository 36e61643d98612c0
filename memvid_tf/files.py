"""Writing files and folders whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[str]:
    """Yields a name in the same folder that is renamed to `path` at the end.

    The temporary name keeps the suffix of `path`. If the block raises, nothing is left.
    """
    folder, name = os.path.split(os.fspath(path))
    os.makedirs(folder or ".", exist_ok=True)
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[str]:
    """Yields an empty folder that replaces `path` at the end, or is removed if the block raises."""
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
    os.chmod(temporary, 0o755)  # mkdtemp makes folders that only their owner can read
    try:
        yield temporary
        if os.path.isdir(path):
            # Two renames, since a folder cannot replace one that is not empty.
            old = tempfile.mkdtemp(prefix=f".{name}.old.", dir=parent)
            try:
                os.replace(path, os.path.join(old, name))
                os.replace(temporary, path)
            finally:
                if not os.path.exists(path):
                    os.replace(os.path.join(old, name), path)
                shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes indented JSON; floats keep their precision, tuples become lists."""
    write_text(path, json.dumps(value, indent=1) + "\n")
