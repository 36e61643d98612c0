"""Imports go one way, and a bundle runs without TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Package -> packages and modules of ours that it may import, itself aside. Programs (the modules
# right below memvid_tf) may import any of them; export may import memvid_tf, benchmarks both.
ALLOWED = {
    "layers": {"windows"},
    "detection": set(),
    "models": {"layers", "detection", "windows"},
    "runtime": {"errors", "files", "windows"},
    "evaluation": {"errors", "files", "layers", "detection", "models", "runtime"},
    "data": {"errors", "files", "locks", "evaluation", "runtime"},
    "rl": {
        "errors", "files", "layers", "detection", "models", "runtime", "evaluation", "data",
    },
    "tasks": {
        "errors", "files", "locks", "paths", "layers", "detection", "models", "runtime",
        "evaluation", "data", "rl",
    },
    # A program that stands above what it lists.
    "models/zoo": {"errors", "layers", "models", "evaluation", "tasks"},
}  # fmt: skip
ABOVE = {"memvid_tf": {"export", "benchmarks"}, "export": {"benchmarks"}, "benchmarks": set()}
RUNTIME_NEEDS = {"numpy", "cv2", "PIL", "av", "ai_edge_litert"}
SOURCES = sorted(path.relative_to(ROOT) for top in ABOVE for path in (ROOT / top).rglob("*.py"))


def imported(path):
    """Dotted names of everything that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import, wanted an absolute one"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_one_way(path):
    names = [name.split(".") for name in imported(path)]
    for name in names:
        assert name[0] not in ABOVE[path.parts[0]] | {"tests"}, ".".join(name)
    if path.parts[0] == "memvid_tf" and len(path.parts) > 2:
        inner = "/".join(path.parts[1:3])
        package = inner if inner in ALLOWED else path.parts[1]
        assert package in ALLOWED, f"add {package} to the table of this test"
        ours = {name[1] for name in names if name[0] == "memvid_tf" and len(name) > 1}
        assert ours - {package, "__version__"} <= ALLOWED[package]


def test_the_runtime_needs_little():
    outside = set(sys.stdlib_module_names) | RUNTIME_NEEDS | {"memvid_tf"}
    for path in (ROOT / "memvid_tf" / "runtime").glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path.relative_to(ROOT))}
        assert tops <= outside, path.name


def test_detecting_never_loads_tensorflow():
    code = (
        "import sys, pkgutil, importlib, memvid_tf.detect, memvid_tf.runtime as runtime\n"
        "for module in pkgutil.iter_modules(runtime.__path__):\n"
        "    importlib.import_module('memvid_tf.runtime.' + module.name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'tensorflow', 'tf_keras', 'keras', 'official'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
