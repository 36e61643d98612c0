"""LiteRT of another version is named in one line, and its private members are used in one place."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from benchmarks import payload
from benchmarks.runner import build
from memvid_tf.errors import UserError
from memvid_tf.models import zoo
from memvid_tf.runtime import litert

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = zoo.BUNDLES / "interleaved_policy"
TRIED = ("2.1.6", "2.2.0", "2.3.0")  # with every golden tensor of the ready bundles
OTHERS = ("1.4.0", "2.0.3", "2.1.5", "2.4.0", "2.4.0.dev20261130", "3.0", "unknown")


def installed(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


@pytest.mark.parametrize("version", [*TRIED, "2.3.7"])
def test_versions_in_the_range_are_taken(monkeypatch, version):
    installed(monkeypatch, version)
    assert litert.version() == version
    assert version in SpecifierSet(litert.RANGE)


@pytest.mark.parametrize("version", OTHERS)
def test_another_version_is_one_line(monkeypatch, version):
    installed(monkeypatch, version)
    advice = re.escape(f"ai-edge-litert {version} is installed, wanted {litert.RANGE}: pip install")
    for use in (
        litert.version,
        build.litert_library,
        payload.litert_arm64,
        lambda: litert.interpreter(BUNDLE / "f1.tflite", 1),
    ):
        with pytest.raises(UserError, match=advice):
            use()


def test_no_version_is_one_line(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="ai-edge-litert is not installed: pip install 'ai-edge"):
        litert.version()


def test_a_program_says_it_and_ends_with_2(tmp_path):
    """The whole way, with the metadata of another version before the installed one."""
    folder = tmp_path / "ai_edge_litert-2.1.4.dist-info"
    folder.mkdir()
    lines = ("Metadata-Version: 2.1", "Name: ai-edge-litert", "Version: 2.1.4")
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "memvid_tf.detect", f"--bundle={BUNDLE}",
         f"--video={ROOT / 'benchmarks/results'}", f"--json={tmp_path / 'found.jsonl'}"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ai-edge-litert 2.1.4 is installed, wanted >=2.1.6,<2.4: pip")


def test_setup_py_asks_for_the_same_range():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    (found,) = (text for text in texts if str(text).startswith(litert.PACKAGE))
    assert Requirement(found).specifier == SpecifierSet(litert.RANGE)


def test_a_private_member_that_is_gone_is_named(monkeypatch):
    made = litert.interpreter(BUNDLE / "f1.tflite", 1)
    assert litert.wrapper(made).GetSignatureDefs().keys() == {"serving_default"}
    assert litert.operators(made)[-1]["op_name"] == "DELEGATE"
    renamed = types.SimpleNamespace(**{name: None for name in litert._MEMBERS if name != "Invoke"})
    for other, name in (
        (types.SimpleNamespace(_interpreter=renamed), "Invoke"),
        (types.SimpleNamespace(), "AllocateTensors"),
    ):
        with pytest.raises(UserError, match=f"{litert.version()} has no {name}, .*-c constraints"):
            litert.wrapper(other)
    with pytest.raises(UserError, match="has no _get_ops_details"):
        litert.operators(types.SimpleNamespace())


def test_every_member_that_is_used_is_asked_for():
    text = (ROOT / "memvid_tf/runtime/interpreter.py").read_text(encoding="utf-8")
    used = set(re.findall(r"[_ ]wrapper\.(\w+)", text))
    assert len(used) > 10 and used == set(litert._MEMBERS)


@pytest.mark.parametrize("top", ["memvid_tf", "export", "benchmarks"])
def test_one_module_touches_the_interpreter(top):
    for path in (ROOT / top).rglob("*.py"):
        if path == Path(litert.__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert "ai_edge_litert.interpreter" not in text, path
        assert not re.search(r"_get_ops_details|(?<!self)\._interpreter\b", text), path
