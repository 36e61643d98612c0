"""One writer at a time: a file or folder that a program holds, and that a second one is refused.

A lock is a file `.memvid.lock` in a folder, or `.memvid.NAME.lock` beside what is replaced whole.
The kernel gives it back when its holder ends, however it ends; a lock file that was left behind
means nothing. Where a filesystem knows no locks, nobody is refused.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator

from memvid_tf.errors import UserError

# What filesystems answer that know no locks.
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def folder(path: str | os.PathLike) -> Iterator[None]:
    """Holds a folder that stays, such as that of a training.

    It is made if it is not there, and removed again if nothing was put into it.

    Raises:
      UserError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        if not os.path.isdir(path):
            os.makedirs(path, exist_ok=True)
            stack.callback(_remove_empty, path)
        stack.enter_context(_held(os.path.join(path, ".memvid.lock"), path))
        yield


def _remove_empty(path: str | os.PathLike) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)


@contextlib.contextmanager
def target(path: str | os.PathLike) -> Iterator[None]:
    """Holds the name of a file or folder that is replaced whole; makes the folder it lies in.

    Raises:
      UserError: another process holds it.
    """
    parent, name = os.path.split(os.path.realpath(path))
    os.makedirs(parent, exist_ok=True)
    with _held(os.path.join(parent, f".memvid.{name}.lock"), path):
        yield


@contextlib.contextmanager
def _held(lock: str, path: str | os.PathLike) -> Iterator[None]:
    try:
        held = take(lock)
    except BlockingIOError as error:
        raise UserError(
            f"{os.fspath(path)!r} is in use by {_holder(lock)}; wait for it or name another"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, held)
        # Before that: whoever opened it in the meantime sees that it is gone, and makes another.
        stack.callback(pathlib.Path(lock).unlink, missing_ok=True)
        os.truncate(held, 0)
        os.write(held, f"process {os.getpid()} since {time.strftime('%F %T')}".encode())
        yield


def _holder(lock: str) -> str:
    with contextlib.suppress(OSError), open(lock, encoding="utf-8", errors="replace") as file:
        return file.read(100) or "another process"
    return "another process"


def take(lock: str) -> int:
    """Makes a lock file and locks it; it is held until the descriptor is closed.

    Returns:
      The descriptor.

    Raises:
      BlockingIOError: another process holds it.
    """
    while True:
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNKNOWN:
                os.close(held)
                raise
        if _is_at(held, lock):
            return held
        os.close(held)  # its holder removed it before we had it


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
