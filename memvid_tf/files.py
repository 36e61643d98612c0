"""Writing files and folders: whole or not at all, checked, and never over what is not ours.

What is written lies in a hidden folder beside its target, `.memvid.NAME.RANDOM`, until it is whole
and on the disk. Then it takes the target's name in one step; a folder that is replaced changes
places with the new one, so that at every moment one of them is whole at the name. A program that is
killed leaves its hidden folder behind, which the next one to write beside it removes.

A file that is named is replaced. A folder is replaced only if it holds nothing but what its maker
is known to have written: as `MARKER` in it lists, or as a bundle's manifest does.
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping

from memvid_tf import locks
from memvid_tf.errors import UserError

MARKER = ".memvid_tf.json"
# Free space that must be left behind a file: more than any program keeps in its buffers at the end.
_ROOM_BYTES = 2**16
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What kernels and filesystems answer that cannot exchange two names.
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_STAGE = re.compile(r"\.memvid\.(.+)\.\w{8}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

# What of a folder's content its maker wrote: bytes by relative path, None for any size. None in its
# place says that it did not make the folder.
Inventory = Callable[[str], Mapping[str, int | None] | None]


def local(path: str | os.PathLike) -> str:
    """A path as a string.

    Raises:
      UserError: it is an address, such as gs://bucket/folder.
    """
    name = os.fspath(path)
    if _SCHEME.match(name):
        raise UserError(f"{name!r} is an address; only local paths are supported, copy it first")
    return name


def what(path: str | os.PathLike) -> str:
    """What lies at a path, for messages: "is a folder", "does not exist"."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    kinds |= {stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return f"is a {kinds[stat.S_IFMT(mode)]}"


def has_room(path: str) -> None:
    """The check of a file whose writer may hide that the disk was full.

    Raises:
      OSError: the disk, a quota or a limit allows no more behind the file, so that its end may be
        missing.
    """
    with open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if file.write(bytes(_ROOM_BYTES)) < _ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.fsync(file.fileno())
        file.truncate(size)


def check_file(path: str | os.PathLike) -> None:
    """Refuses a path at which no file can be written, or one is protected.

    Raises:
      UserError: naming it.
    """
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise UserError(f"{local(path)!r} {what(path)}, wanted a file or a new name")
        if not os.access(path, os.W_OK):
            raise UserError(f"{local(path)!r} is read-only; name another file")


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike, check: Callable[[str], None] = has_room
) -> Iterator[str]:
    """Yields the name of a file to write, which is renamed to `path` at the end.

    It has the same name as `path`, in a folder beside it. If the block or the check raises, nothing
    is left, and what was at `path` is as it was.

    Args:
      path: of the file; a link is followed.
      check: takes the yielded name after the block, and raises if the file is not what was meant.

    Raises:
      UserError: something else than a file is there, or it is an address.
    """
    check_file(path)
    path = os.path.realpath(local(path))
    with _staging(path) as stage:
        new = os.path.join(stage, os.path.basename(path))
        yield new
        check(new)
        _flush(new)
        if os.path.exists(path):
            shutil.copymode(path, new)
        os.replace(new, path)
        _flush(os.path.dirname(path))


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, kind: str, made: Inventory | None = None
) -> Iterator[str]:
    """Yields an empty folder that replaces `path` at the end, or is removed if the block raises.

    Args:
      path: of the folder; a link is followed.
      kind: what it is, such as "frames", for its `MARKER`.
      made: the inventory of folders that need no marker.

    Raises:
      UserError: see `check_folder`.
    """
    path = os.path.realpath(local(path))
    with _staging(path) as stage:
        check_folder(path, kind, made)
        new = os.path.join(stage, os.path.basename(path))
        os.mkdir(new)
        yield new
        if made is None:
            content = {"kind": kind, "files": dict(_content(new))}
            write_text(os.path.join(new, MARKER), json.dumps(content, indent=1) + "\n")
        _flush_all(new)
        check_folder(path, kind, made)  # something may have come while the block ran
        _replace_folder(new, path)
        _flush(os.path.dirname(path))


def check_folder(path: str | os.PathLike, kind: str, made: Inventory | None = None) -> None:
    """Refuses a path whose folder must not be replaced; see `atomic_folder`.

    Raises:
      UserError: a file is there, or a folder that holds what its maker did not write; names it.
    """
    path = local(path)
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise UserError(f"{path!r} {what(path)}, wanted a new or an empty folder")
    held = dict(_content(path))
    if not held and not os.listdir(path):
        return
    known = (made or functools.partial(marked, kind=kind))(path)
    if known is None:
        named = ", ".join(sorted(os.listdir(path))[:3])
        raise UserError(
            f"{path!r} holds {named} and no {kind} of ours; name a new or an empty folder"
        )
    foreign = [
        name for name, size in held.items() if name not in known or known[name] not in (size, None)
    ]
    if foreign:
        raise UserError(
            f"{path!r} holds {', '.join(sorted(foreign)[:3])}, which came later and would be lost; "
            "move it away or name another folder"
        )


def marked(path: str, kind: str) -> Mapping[str, int | None] | None:
    """The inventory that a folder's `MARKER` gives, if it is one of that kind."""
    try:
        with open(os.path.join(path, MARKER), encoding="utf-8") as file:
            content = json.load(file)
        return {**content["files"], MARKER: None} if content["kind"] == kind else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file."""

    def check(written):
        size = os.path.getsize(written)
        if size != len(data):
            raise OSError(errno.EIO, f"{size} of {len(data)} bytes were written", os.fspath(path))

    with atomic_path(path, check) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 text file."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value) -> None:
    """Writes indented JSON; floats keep their precision, tuples become lists."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def sweep(parent: str | os.PathLike) -> None:
    """Removes what killed writers left in a folder, and puts back what they took away."""
    for found in filter(None, map(_STAGE.fullmatch, os.listdir(parent))):
        stage, name = os.path.join(parent, found[0]), found[1]
        try:
            held = locks.take(_lock(stage, name))
        except (BlockingIOError, FileNotFoundError, NotADirectoryError, PermissionError):
            continue  # its writer lives, or has just removed it, or it is somebody else's
        try:
            _clear(stage, os.path.join(parent, name))
        finally:
            os.close(held)


@contextlib.contextmanager
def _staging(path: str) -> Iterator[str]:
    """Yields a locked folder beside a target, for what will take its name."""
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    sweep(parent)
    while True:
        stage = tempfile.mkdtemp(prefix=f".memvid.{name}.", dir=parent)
        try:
            held = locks.take(_lock(stage, name))
            break
        except (BlockingIOError, FileNotFoundError):
            continue  # another writer took it for one that was left behind
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, held)
        stack.callback(_clear, stage, path)
        try:
            yield stage
        except OSError as error:  # of the file that the user knows
            if error.filename is None or os.fspath(error.filename).startswith(stage):
                error.filename = path
            raise


def _lock(stage: str, name: str) -> str:
    return os.path.join(stage, f"{name}.lock")


def _old(stage: str, name: str) -> str:
    return os.path.join(stage, f"{name}.old")


def _clear(stage: str, path: str) -> None:
    """Removes a hidden folder, after what it took away from its target was put back."""
    old = _old(stage, os.path.basename(path))
    if os.path.lexists(old) and not os.path.lexists(path):
        os.rename(old, path)
    shutil.rmtree(stage, ignore_errors=True)


def _replace_folder(new: str, path: str) -> None:
    if not os.path.isdir(path) or not os.listdir(path):
        os.rename(new, path)  # which replaces a folder that is empty
        return
    try:
        _exchange(new, path)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        # Two renames, between which nothing is at the name: `_clear` mends it if they end there.
        os.rename(path, _old(*os.path.split(new)))
        os.rename(new, path)


def _exchange(a: str, b: str) -> None:
    """Lets two paths change places in one step.

    Raises:
      OSError: with one of `_NO_EXCHANGE` where that is unknown.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:  # an old C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
    if rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), b)


def _content(folder: str) -> Iterator[tuple[str, int | None]]:
    """Everything in a folder that is not a folder: relative path, and bytes of files."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in (*names, *links):
            path = os.path.join(parent, name)
            found = os.lstat(path)
            size = found.st_size if stat.S_ISREG(found.st_mode) else None
            yield os.path.relpath(path, folder), size


def _flush(path: str) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some filesystems know nothing of folders
            raise
    finally:
        os.close(descriptor)


def _flush_all(folder: str) -> None:
    """Waits until everything in a folder is on the disk."""
    try:
        sync = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:  # not Linux
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if sync(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(descriptor)
