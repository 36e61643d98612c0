"""Files and folders appear whole or not at all, and nothing is lost that is not ours."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import killing
import pytest

from memvid_tf import files, locks
from memvid_tf.errors import UserError

KIND = "frames"


class Stop(Exception):
    """Raised in the middle of a write."""


def names(folder):
    return sorted(os.listdir(folder))


def write_folder(path, **content):
    with files.atomic_folder(path, KIND) as folder:
        for name, text in content.items():
            Path(folder, name).write_text(text)


def read_folder(path):
    found = {p.name: p.read_text() for p in path.iterdir()}
    del found[files.MARKER]
    return found


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanging(request, monkeypatch):
    """Whether the kernel can exchange two names."""
    if not request.param:

        def unknown(a, b):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(files, "_exchange", unknown)
    return request.param


# ---- files --------------------------------------------------------------------------------------


def test_atomic_path_writes(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    with files.atomic_path(path) as temporary:
        # On the same disk, so that renaming does not copy, and with the suffix that writers such as
        # numpy.savez look at.
        assert Path(temporary).parents[1] == path.parent and Path(temporary).name == "a.json"
        Path(temporary).write_text("1")
        assert not path.exists()
    assert path.read_text() == "1" and names(path.parent) == ["a.json"]


def test_atomic_path_replaces_at_the_end_and_keeps_the_mode(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o640)
    with files.atomic_path(path) as temporary:
        Path(temporary).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("written", [True, False])
def test_atomic_path_leaves_the_old_file_if_the_block_raises(tmp_path, written):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(Stop), files.atomic_path(path) as temporary:
        if written:
            Path(temporary).write_text("half")
        raise Stop
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_atomic_path_says_so_if_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_file_that_is_not_what_was_meant_replaces_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("old")

    def check(written):
        if "moov" not in Path(written).read_text():
            raise Stop

    with pytest.raises(Stop), files.atomic_path(path, check) as temporary:
        Path(temporary).write_text("mdat")
    assert path.read_text() == "old" and names(tmp_path) == ["a.mp4"]


@pytest.fixture
def full_disk():
    """Lets no file grow beyond 100,000 bytes, as `ulimit -f` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_noticed_behind_a_writer_that_hides_it(tmp_path, full_disk):
    """As OpenCV's writers do: they say nothing, and what they wrote has no end."""
    path = tmp_path / "a.mp4"
    path.write_text("old")
    with pytest.raises(OSError) as full, files.atomic_path(path) as temporary:
        with open(temporary, "wb", buffering=0) as file:
            assert file.write(bytes(200_000)) == 100_000  # and nobody looks
    assert full.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert path.read_text() == "old" and names(tmp_path) == ["a.mp4"]
    with files.atomic_path(path) as temporary:  # room enough
        Path(temporary).write_bytes(bytes(30_000))
    assert path.read_bytes() == bytes(30_000)


def test_a_full_disk_stops_plain_writes(tmp_path, full_disk):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError) as full:
        files.write_bytes(path, bytes(100_001))
    assert full.value.filename == str(path), "not of the hidden one"
    assert path.read_text() == "old" and names(tmp_path) == ["a"]
    files.write_bytes(path, bytes(100_000))  # exactly full
    assert path.stat().st_size == 100_000


def test_atomic_path_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text("a.txt", "höhe\n")
    assert Path("a.txt").read_bytes() == "höhe\n".encode() and names(tmp_path) == ["a.txt"]


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "real" / "a")
    (tmp_path / "folder").symlink_to(tmp_path / "real" / "folder")
    for text in "12":
        files.write_text(tmp_path / "a", text)
        write_folder(tmp_path / "folder", b=text)
    assert (tmp_path / "a").is_symlink() and (tmp_path / "real" / "a").read_text() == "2"
    assert (tmp_path / "folder").is_symlink()
    assert read_folder(tmp_path / "real" / "folder") == {"b": "2"}
    assert names(tmp_path) == ["a", "folder", "real"]
    assert names(tmp_path / "real") == ["a", "folder"]


def test_only_files_are_replaced_by_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(UserError, match=f"{name}' is a {name}, wanted a file or a new name"):
            files.write_text(tmp_path / name, "text")
    with pytest.raises(UserError, match="'/dev/null' is a device"):
        files.write_text("/dev/null", "text")
    assert names(tmp_path) == ["folder", "pipe"] and (tmp_path / "folder/inside").exists()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_protected_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("kept")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may everything
    with pytest.raises(UserError, match="a' is read-only; name another file"):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "kept"


@pytest.mark.parametrize("address", ["gs://bucket/a", "file:///tmp/a", "s3://b"])
def test_addresses_are_no_paths(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is an address; only local paths are supported"):
        files.write_text(address, "text")
    with pytest.raises(UserError, match="is an address"), files.atomic_folder(address, KIND):
        pass
    assert names(tmp_path) == []


def test_what_lies_somewhere_has_a_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_text("")
    found = [files.what(tmp_path / name) for name in ("", "a", "pipe", "none", "a/b")]
    assert found == [
        "is a folder", "is a file", "is a pipe", "does not exist", "cannot be read: Not a directory"
    ]  # fmt: skip


def test_write_json_keeps_numbers(tmp_path):
    value = {"a": 0.1 + 0.2, "b": (1, 2), "c": None, "é": [1e-30]}
    files.write_json(tmp_path / "a.json", value)
    again = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert again == {**value, "b": [1, 2]}


def test_write_json_of_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


# ---- folders ------------------------------------------------------------------------------------


def test_atomic_folder_writes(tmp_path):
    path = tmp_path / "new" / "bundle"
    with files.atomic_folder(path, KIND) as temporary:
        assert os.listdir(temporary) == [] and Path(temporary).parents[1] == path.parent
        Path(temporary, "a").write_text("1")
        assert not path.exists()
    assert names(path.parent) == ["bundle"] and read_folder(path) == {"a": "1"}
    assert json.loads((path / files.MARKER).read_text()) == {"kind": KIND, "files": {"a": 1}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~_umask()


def _umask():
    now = os.umask(0)
    os.umask(now)
    return now


def test_atomic_folder_replaces_its_own_and_keeps_none_of_its_files(tmp_path, exchanging):
    path = tmp_path / "bundle"
    with files.atomic_folder(path, KIND) as temporary:
        Path(temporary, "sub").mkdir()
        Path(temporary, "sub", "old").write_text("old")
    with files.atomic_folder(path, KIND) as temporary:
        Path(temporary, "new").write_text("new")
        assert (path / "sub" / "old").read_text() == "old"
    assert names(tmp_path) == ["bundle"] and read_folder(path) == {"new": "new"}


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    write_folder(tmp_path / "a", b="1")
    assert names(tmp_path) == ["a"] and read_folder(tmp_path / "a") == {"b": "1"}


def test_atomic_folder_takes_a_path_that_ends_in_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in "12":
        write_folder("bundle/", a=content)
    assert names(tmp_path) == ["bundle"] and Path("bundle/a").read_text() == "2"


@pytest.mark.parametrize("existing", [True, False])
def test_atomic_folder_leaves_everything_if_the_block_raises(tmp_path, existing):
    path = tmp_path / "bundle"
    if existing:
        write_folder(path, a="old")
    with pytest.raises(Stop), files.atomic_folder(path, KIND) as temporary:
        Path(temporary, "a").write_text("half")
        raise Stop
    assert names(tmp_path) == (["bundle"] if existing else [])
    assert not existing or read_folder(path) == {"a": "old"}


def _of_another_maker(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")
    (path / "figures").mkdir()


def _of_another_kind(path):
    with files.atomic_folder(path, "bundle") as folder:
        Path(folder, "a").write_text("1")


def _with_something_more(path):
    write_folder(path, a="1")
    (path / "mine").mkdir()
    (path / "mine" / "notes.txt").write_text("precious")


def _with_something_changed(path):
    write_folder(path, a="1")
    (path / "a").write_text("precious")


def _with_a_link(path):
    write_folder(path, a="1")
    (path / "data").symlink_to("/")


def _with_a_false_marker(path):
    path.mkdir()
    (path / files.MARKER).write_text('{"kind": "frames", "files": 3}')
    (path / "a").write_text("precious")


def _a_file(path):
    path.write_text("precious")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_of_another_maker, "holds figures, thesis.tex and no frames of ours; name a new"),
        (_of_another_kind, "holds .memvid_tf.json, a and no frames of ours"),
        (_with_something_more, "holds mine/notes.txt, which came later and would be lost; move"),
        (_with_something_changed, "holds a, which came later and would be lost"),
        (_with_a_link, "holds data, which came later and would be lost"),
        (_with_a_false_marker, "and no frames of ours"),
        (_a_file, "is a file, wanted a new or an empty folder"),
    ],
)
def test_what_is_not_ours_is_not_replaced(tmp_path, make, message):
    path = tmp_path / "a"
    make(path)
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*") if not p.is_symlink()}
    with pytest.raises(UserError, match=message), files.atomic_folder(path, KIND):
        pytest.fail("the block must not be reached")
    after = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*") if not p.is_symlink()}
    assert after == before


def test_what_comes_while_the_new_folder_is_made_is_kept(tmp_path):
    path = tmp_path / "a"
    write_folder(path, a="old")
    with pytest.raises(UserError, match="holds notes.txt"), files.atomic_folder(path, KIND):
        (path / "notes.txt").write_text("precious")
    assert read_folder(path) == {"a": "old", "notes.txt": "precious"} and names(tmp_path) == ["a"]


def test_an_inventory_stands_for_a_marker(tmp_path):
    def made(folder):
        return {"a": None, "b": 1} if Path(folder, "a").exists() else None

    for text in "12":
        with files.atomic_folder(tmp_path / "x", "bundle", made) as folder:
            Path(folder, "a").write_text(text * 7)
            Path(folder, "b").write_text(text)
        assert names(tmp_path / "x") == ["a", "b"]
    (tmp_path / "x" / "a").unlink()
    with pytest.raises(UserError, match="holds b and no bundle of ours"):
        files.check_folder(tmp_path / "x", "bundle", made)


def test_atomic_folder_keeps_the_old_folder_if_a_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "bundle"
    write_folder(path, old="old")
    rename = os.rename

    def fail(source, target):
        if Path(source, "new").exists():
            raise OSError(errno.EIO, "no")
        rename(source, target)

    def unknown(a, b):
        raise OSError(errno.ENOSYS, "unknown")

    monkeypatch.setattr(files, "_exchange", unknown)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        write_folder(path, new="new")
    assert names(tmp_path) == ["bundle"] and read_folder(path) == {"old": "old"}


# ---- sudden death -------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [True, False])
def test_a_file_survives_death_at_every_step(tmp_path, monkeypatch, existing):
    path = tmp_path / "a"
    if existing:
        path.write_text("old")

    def look(step):
        assert not existing or path.read_text() in ("old", "new"), step
        if path.exists():
            assert path.read_text() in ("old", "new"), step
            path.write_text("old")
        # What is left behind is hidden, and is gone after the next write beside it.
        assert all(name.startswith(".memvid.") for name in names(tmp_path) if name != "a"), step
        files.write_text(tmp_path / "a", "new")
        assert names(tmp_path) == ["a"] and path.read_text() == "new", step
        path.write_text("old") if existing else path.unlink()

    steps = killing.every_step(monkeypatch, lambda: files.write_text(path, "new"), look)
    assert steps >= 6 and path.read_text() == "new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_folder_survives_death_at_every_step(tmp_path, monkeypatch, existing, exchanging):
    path = tmp_path / "a"
    if existing:
        write_folder(path, b="old")

    def look(step):
        if exchanging and existing:
            assert read_folder(path)["b"] in ("old", "new"), step
        # Any write beside it puts back what was taken away, and removes what was left.
        files.write_text(tmp_path / "other", "")
        assert names(tmp_path) in (["a", "other"], ["other"] if not existing else []), step
        if path.exists():
            assert read_folder(path)["b"] in ("old", "new"), step
        (tmp_path / "other").unlink()
        write_folder(path, b="old")
        assert names(tmp_path) == ["a"] and read_folder(path) == {"b": "old"}, step
        if not existing:
            files.shutil.rmtree(path)

    steps = killing.every_step(monkeypatch, lambda: write_folder(path, b="new"), look)
    assert steps >= 10 and read_folder(path) == {"b": "new"} and names(tmp_path) == ["a"]


KILLED = """
import sys
from pathlib import Path
from memvid_tf import files
kind, path = sys.argv[1:]
write = files.atomic_path(path) if kind == "file" else files.atomic_folder(path, "frames")
with write as temporary:
    target = Path(temporary) if kind == "file" else Path(temporary, "a")
    target.write_text("half")
    print("in the middle", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_living_writer_is_left_alone_and_a_killed_one_swept(tmp_path, kind):
    path = tmp_path / "a"

    def write():
        files.write_text(path, "new") if kind == "file" else write_folder(path, a="new")

    write()
    command = [sys.executable, "-c", KILLED, kind, str(path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "in the middle\n"
        (left,) = set(names(tmp_path)) - {"a"}
        write()
        assert names(tmp_path) == [left, "a"], "what a living process writes is not swept"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert names(tmp_path) == [left, "a"]
    write()
    assert names(tmp_path) == ["a"]
    assert (path if kind == "file" else path / "a").read_text() == "new"


def test_many_writers_at_once(tmp_path):
    """Nobody sweeps what another one writes, though all sweep all the time."""
    failed = []

    def write(number):
        try:
            for _ in range(15):
                files.write_text(tmp_path / f"{number % 2}", f"{number}" * 1000)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == ["0", "1"]
    assert {len(set((tmp_path / name).read_text())) for name in "01"} == {1}


# ---- locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [locks.folder, locks.target])
def test_the_second_is_refused_and_a_dead_one_is_not_waited_for(tmp_path, lock):
    path = tmp_path / "runs" / "tiny"
    script = (
        "import sys\nfrom memvid_tf import locks\n"
        f"with locks.{lock.__name__}({str(path)!r}):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refused, lock(path):
            pytest.fail("two at once")
        assert f"'{path}' is in use by process {process.pid} since 2" in str(refused.value)
        with locks.target(tmp_path / "runs" / "other"):  # its neighbour is free
            pass
        process.kill()
        process.wait()
    for _ in range(2):
        with lock(path):
            assert any("lock" in name for _, _, found in os.walk(tmp_path) for name in found)
    assert not any(found for _, _, found in os.walk(tmp_path)), "no lock file stays"


def test_one_name_by_two_ways_is_one_lock(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for lock in (locks.folder, locks.target):
        with lock(tmp_path / "real"), pytest.raises(UserError, match="in use"):
            with lock(tmp_path / "link"):
                pytest.fail("two at once")


def test_a_held_folder_stays_if_something_was_put_into_it(tmp_path):
    with locks.folder(tmp_path / "empty"):
        pass
    with locks.folder(tmp_path / "full"):
        (tmp_path / "full" / "a").write_text("")
    (tmp_path / "mine").mkdir()
    with locks.folder(tmp_path / "mine"):
        pass
    assert names(tmp_path) == ["full", "mine"] and names(tmp_path / "full") == ["a"]


def test_a_filesystem_without_locks_refuses_nobody(tmp_path, monkeypatch):
    def unknown(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    with locks.folder(tmp_path), locks.folder(tmp_path):
        pass
