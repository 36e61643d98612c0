"""Files and folders appear whole or not at all, even if the process is killed."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from memvid_tf import files


class Stop(Exception):
    """Raised in the middle of a write."""


def names(folder):
    return sorted(os.listdir(folder))


def test_atomic_path_writes(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    with files.atomic_path(path) as temporary:
        # In the same folder, so that renaming does not copy, and with the suffix that writers
        # such as numpy.savez look at.
        assert Path(temporary).parent == path.parent and temporary.endswith(".json")
        Path(temporary).write_text("1")
        assert not path.exists()
    assert path.read_text() == "1" and names(path.parent) == ["a.json"]


def test_atomic_path_replaces_at_the_end(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with files.atomic_path(path) as temporary:
        Path(temporary).write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["a"]


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


def test_atomic_path_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text("a.txt", "höhe\n")
    assert Path("a.txt").read_bytes() == "höhe\n".encode() and names(tmp_path) == ["a.txt"]


def test_atomic_path_does_not_replace_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").write_text("kept")
    with pytest.raises(OSError):
        files.write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "inside").read_text() == "kept"


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


def test_atomic_folder_writes(tmp_path):
    path = tmp_path / "new" / "bundle"
    with files.atomic_folder(path) as temporary:
        assert os.listdir(temporary) == [] and Path(temporary).parent == path.parent
        Path(temporary, "a").write_text("1")
        assert not path.exists()
    assert names(path.parent) == ["bundle"] and (path / "a").read_text() == "1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_atomic_folder_replaces_a_folder_and_keeps_none_of_its_files(tmp_path):
    path = tmp_path / "bundle"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "old").write_text("old")
    with files.atomic_folder(path) as temporary:
        Path(temporary, "new").write_text("new")
        assert (path / "sub" / "old").read_text() == "old"
    assert names(tmp_path) == ["bundle"] and names(path) == ["new"]


def test_atomic_folder_takes_a_path_that_ends_in_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in "12":
        with files.atomic_folder("bundle/") as temporary:
            Path(temporary, "a").write_text(content)
    assert names(tmp_path) == ["bundle"] and Path("bundle/a").read_text() == "2"


@pytest.mark.parametrize("existing", [True, False])
def test_atomic_folder_leaves_everything_if_the_block_raises(tmp_path, existing):
    path = tmp_path / "bundle"
    if existing:
        path.mkdir()
        (path / "a").write_text("old")
    with pytest.raises(Stop), files.atomic_folder(path) as temporary:
        Path(temporary, "a").write_text("half")
        raise Stop
    assert names(tmp_path) == (["bundle"] if existing else [])
    assert not existing or (path / "a").read_text() == "old"


def test_atomic_folder_does_not_replace_a_file(tmp_path):
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(OSError), files.atomic_folder(tmp_path / "bundle") as temporary:
        Path(temporary, "a").write_text("1")
    assert names(tmp_path) == ["bundle"] and (tmp_path / "bundle").read_text() == "a file"


@pytest.mark.parametrize("failing", ["old", "new"])
def test_atomic_folder_keeps_the_old_folder_if_a_rename_fails(tmp_path, monkeypatch, failing):
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old").write_text("old")
    replace, failed = os.replace, []

    def fail_once(source, target):
        if not failed and Path(source, failing).exists():
            failed.append(source)
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="no"), files.atomic_folder(path) as temporary:
        Path(temporary, "new").write_text("new")
    assert names(tmp_path) == ["bundle"] and names(path) == ["old"]


KILLED = """
import sys
from pathlib import Path
from memvid_tf import files
kind, path = sys.argv[1:]
with getattr(files, kind)(path) as temporary:
    target = Path(temporary, "a") if kind == "atomic_folder" else Path(temporary)
    target.write_text("half")
    print("in the middle", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_process_that_is_killed_leaves_the_old_one(tmp_path, kind, existing):
    path = tmp_path / "a"
    if existing and kind == "atomic_folder":
        path.mkdir()
        (path / "a").write_text("old")
    elif existing:
        path.write_text("old")
    command = [sys.executable, "-c", KILLED, kind, str(path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    def content():
        return (path / "a" if kind == "atomic_folder" else path).read_text()

    assert path.exists() == existing
    assert not existing or content() == "old"
    # What is left behind is hidden, and does not get in the way of the next attempt.
    assert all(name.startswith(".") for name in names(tmp_path) if name != "a")
    with getattr(files, kind)(path) as temporary:
        (Path(temporary, "a") if kind == "atomic_folder" else Path(temporary)).write_text("new")
    assert content() == "new"
