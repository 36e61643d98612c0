"""What an export may replace: an older bundle, and nothing that somebody else put there."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import killing
import pytest

from memvid_tf import files, locks
from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle, inventory

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(ROOT / "memvid_tf/models/zoo/bundles/interleaved_policy",
                                tmp_path / "bundle"))  # fmt: skip


def test_an_older_bundle_may_be_replaced(folder):
    files.check_folder(folder, "bundle", inventory)
    for name in ("report.json", "report.md", "card.json"):
        (folder / name).write_text("made of it")
    (folder / "labels.txt").unlink()
    files.check_folder(folder, "bundle", inventory)


@pytest.mark.parametrize("name", ["notes.txt", "golden/mine.bin", "report.html", "a/b/c"])
def test_a_bundle_with_something_else_in_it_is_kept(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("precious")
    with pytest.raises(UserError, match=f"holds {name}, which came later and would be lost"):
        files.check_folder(folder, "bundle", inventory)


def test_a_bundle_with_a_graph_of_the_users_is_kept(folder):
    (folder / "f0.tflite").write_bytes(b"quantized by hand")
    with pytest.raises(UserError, match="holds f0.tflite, which came later"):
        files.check_folder(folder, "bundle", inventory)


@pytest.mark.parametrize(
    "manifest",
    [
        '{"manifest_version": 3, "name": "a web app", "icons": []}',
        '{"schema_version": 1, "files": ["a.js"], "graphs": {}}',
        '{"schema_version": 99, "files": {}, "graphs": {}}',
        '{"schema_version": 1, "files": {}, "graphs": {"f0": {"file": "index.html"}}}',
        "[1]",
        "no JSON",
    ],
)
def test_a_manifest_of_another_kind_protects_its_folder(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    (tmp_path / "index.html").write_text("precious")
    with pytest.raises(UserError, match="holds index.html, manifest.json and no bundle of ours"):
        files.check_folder(tmp_path, "bundle", inventory)


def export(model_dir, *flags):
    command = [sys.executable, "-m", "export", f"--model_dir={model_dir}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_program_refuses_before_it_begins(tmp_path):
    """Long before TensorFlow is loaded and a network converted."""
    training, theirs = tmp_path / "training", tmp_path / "theirs"
    training.mkdir()
    (training / "params.yaml").write_text("")
    theirs.mkdir()
    (theirs / "index.html").write_text("precious")
    done = export(training, f"--output_dir={theirs}")
    assert done.returncode == 2 and "holds index.html and no bundle of ours" in done.stderr
    with locks.target(theirs / "new"):
        done = export(training, f"--output_dir={theirs / 'new'}")
    assert done.returncode == 2 and "new' is in use by process" in done.stderr
    done = export(training, "--output_dir=gs://bucket/new")
    assert done.returncode == 2 and "only local paths are supported" in done.stderr
    assert (theirs / "index.html").read_text() == "precious"
    assert [path.name for path in theirs.iterdir()] == ["index.html"]


@pytest.mark.parametrize("older", [True, False])
def test_an_export_survives_death_at_every_step(folder, tmp_path, monkeypatch, older):
    """At its name lies the old bundle or the new one, whole; the next export clears up."""
    from export import bundle as bundles

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a process dies, not the machine
    source, output = Bundle.load(folder), tmp_path / "exported" / "bundle"
    flatbuffers = {name: source.graph_path(name).read_bytes() for name in source.manifest.graphs}
    inputs = {
        f"{golden.graph}/{golden.signature}": source.read_golden(golden)[0]
        for golden in source.manifest.golden
    }

    def record(recorder, manifest):
        for call, tensors in inputs.items():
            recorder.record(call, tensors)

    def write(tau):
        bundles.write_folder(
            str(output),
            flatbuffers,
            source.labels,
            lambda name: dataclasses.replace(source.manifest, tau=tau, files={}, golden=()),
            record,
        )

    def tau_of(path):
        return Bundle.load(path).manifest.tau  # which compares every hash

    def look(step):
        if older:
            assert tau_of(output) in (4, 5), step
        write(4)
        assert tau_of(output) == 4 and os.listdir(output.parent) == ["bundle"], step
        if not older:
            shutil.rmtree(output)

    if older:
        write(4)
    assert killing.every_step(monkeypatch, lambda: write(5), look) > 20
    assert tau_of(output) == 5 and os.listdir(output.parent) == ["bundle"]
