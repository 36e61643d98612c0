"""The folder on a device, with this machine in the place of the device."""

import dataclasses
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks import adb as adb_lib
from benchmarks import payload
from benchmarks.handset import Foreign, Handset
from benchmarks.runner import build, local, plan, schedules
from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle, file_entry

BUNDLE = Path(__file__).parents[1] / "memvid_tf/models/zoo/bundles/interleaved_policy"
LOADER = """#!/bin/sh
[ "$1" = --version ] && { echo "ld.so release version 2.41."; exit; }
shift 2
exec "$@"
"""


class Here(adb_lib.Adb):
    """An adb whose device is this machine."""

    def __init__(self):
        super().__init__("none", "here")

    def _run(self, words, timeout_s, doing, text=True, device=True):
        if words[0] == "push":
            shutil.copyfile(*words[1:])
            words = ["shell", "true"]
        return subprocess.run(
            ["sh", "-c", words[1]], capture_output=True, text=text, timeout=timeout_s, check=False
        )


@pytest.fixture(scope="module", name="parts")
def fixture_parts(tmp_path_factory):
    try:
        runner = build.build(build.host())
    except build.NoCompiler as error:
        pytest.skip(str(error))
    loader = tmp_path_factory.mktemp("loader") / payload.LOADER
    loader.write_text(LOADER)
    library = Path(build.litert_library())
    return payload.Payload(
        {payload.LOADER: loader, payload.RUNNER: runner, payload.LITERT: library}
    )


def everything(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes()
            for path in folder.rglob("*")}  # fmt: skip


def f1_job(bundle):
    setting = schedules.ScheduleSetting("f1", frames=20, warm_up=0, record=True)
    return schedules.schedule(bundle, setting, schedules.random_frames(bundle, 2, seed=3))


def test_only_what_was_pushed_is_removed(tmp_path, parts):
    (tmp_path / "DCIM").mkdir()
    (tmp_path / "DCIM" / "holiday.jpg").write_bytes(b"precious")
    before = everything(tmp_path)
    device = Handset(Here(), parts, str(tmp_path))
    assert device.prepare() == "glibc 2.41 runs, 3 of 3 files pushed"
    bundle = Bundle.load(BUNDLE)
    assert "golden tensors" in device.check_goldens(bundle)
    result, written = device.run(f1_job(bundle), None)
    assert len(result["latency_us"]) == 20
    assert written == local.run(f1_job(bundle))[1]
    kept = Handset(Here(), parts, str(tmp_path))
    assert kept.prepare() == "glibc 2.41 runs, 0 of 3 files pushed"
    kept.remove()
    assert everything(tmp_path) == before


def test_a_folder_that_is_not_ours_is_neither_used_nor_removed(tmp_path, parts):
    (tmp_path / "memvid_tf" / "job").mkdir(parents=True)
    (tmp_path / "memvid_tf" / "job" / "notes.txt").write_text("precious")
    before = everything(tmp_path)
    device = Handset(Here(), parts, str(tmp_path))
    with pytest.raises(Foreign, match="memvid_tf holds files that are not ours; move them away"):
        device.prepare()
    device.remove()
    assert everything(tmp_path) == before


def test_a_file_that_came_into_our_folder_stays(tmp_path, parts):
    said = []
    device = Handset(Here(), parts, str(tmp_path), say=said.append)
    device.prepare()
    (tmp_path / "memvid_tf" / "notes.txt").write_text("precious")
    device.remove()
    assert said == [f"{tmp_path}/memvid_tf stays, since it holds notes.txt"]
    assert sorted(os.listdir(tmp_path / "memvid_tf")) == [".memvid_tf", "notes.txt"]
    assert device.prepare().endswith("3 of 3 files pushed"), "it is ours still"


def test_nothing_is_removed_where_nothing_was_pushed(tmp_path, parts):
    Handset(Here(), parts, str(tmp_path)).remove()
    (tmp_path / "memvid_tf").write_text("a file")
    Handset(Here(), parts, str(tmp_path)).remove()
    assert everything(tmp_path) == {Path("memvid_tf"): b"a file"}


@pytest.mark.parametrize("folder", ["", "x", "../x", "/data/../..", "//x", "/a\nb", "~"])
def test_a_suspicious_folder_is_refused(parts, folder):
    with pytest.raises(UserError, match="is not an absolute path without '..', such as /data/"):
        Handset(Here(), parts, folder)


def test_a_bundle_cannot_take_the_place_of_a_program(tmp_path, parts):
    """Whatever its graphs are called, if a manifest with such names were ever let in: what runs is
    ours, and the bundle stays as it was."""
    names = [payload.LITERT, payload.RUNNER, schedules.RECORD, "plan.txt", "state/0.bin"]
    plain = Bundle.load(BUNDLE)
    folder, graphs = Path(shutil.copytree(BUNDLE, tmp_path / "bundle")), {}
    for name, (graph, spec) in zip(names, plain.manifest.graphs.items(), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        os.rename(folder / spec.file, folder / name)
        graphs[graph] = dataclasses.replace(spec, file=name)
    manifest = dataclasses.replace(plain.manifest, graphs=graphs)
    bundle = dataclasses.replace(plain, path=folder, manifest=manifest)
    before = everything(folder)
    wanted = local.run(f1_job(plain))[1]
    (tmp_path / "device").mkdir()
    device = Handset(Here(), parts, str(tmp_path / "device"))
    device.prepare()
    for run in (local.run, lambda job: device.run(job, None)):
        assert run(f1_job(bundle))[1] == wanted
        rows = run(plan.goldens(bundle))[0]["goldens"]
        assert {row["graph"] for row in rows} <= set(names)
        assert {row["different"] for row in rows} == {0}
    for name, path in parts.files.items():
        there = tmp_path / "device/memvid_tf/program" / name
        assert file_entry(there) == file_entry(path)
    assert everything(folder) == before


def test_pushed_files_of_one_name_are_two(tmp_path, parts):
    (tmp_path / "a").mkdir()
    for folder, text in (("a", "one"), (".", "two")):
        path = tmp_path / folder / payload.LITERT
        path.write_text(f"#!/bin/sh\necho {text}\n")
    (tmp_path / "device").mkdir()
    device = Handset(Here(), parts, str(tmp_path / "device"))
    device.prepare()
    calls = [device.push(tmp_path / folder / payload.LITERT) for folder in ("a", ".")]
    assert [device.call(f"./{call}", None) for call in calls] == ["one\n", "two\n"]
    assert device.prepare().endswith("0 of 3 files pushed")


def test_a_job_that_fails_says_why_and_leaves_the_folder_usable(tmp_path, parts):
    device = Handset(Here(), parts, str(tmp_path), job_s=20)
    device.prepare()
    job = f1_job(Bundle.load(BUNDLE))
    start = time.monotonic()
    with pytest.raises(local.RunnerError, match="system is 'x'"):
        device.run(dataclasses.replace(job, text=job.text.replace("system ", "system x\n#")), None)
    assert time.monotonic() - start < 20
    assert len(device.run(job, None)[0]["latency_us"]) == 20
