"""What is installed: packages, requirements and their pins."""

import ast
import re
import runpy
import sys
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import memvid_tf

ROOT = Path(__file__).parents[1]
OURS = ("memvid_tf", "export", "benchmarks", "tests")


@pytest.fixture(scope="module")
def setup_arguments():
    """The arguments that setup.py passes to setuptools."""
    passed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", passed.update)
        runpy.run_path("setup.py")
    return passed


@pytest.fixture(scope="module")
def requirements(setup_arguments):
    extras = [text for extra in setup_arguments["extras_require"].values() for text in extra]
    return [Requirement(text) for text in setup_arguments["install_requires"] + extras]


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_only_memvid_tf_is_installed_and_all_of_it(setup_arguments):
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "memvid_tf").rglob("*.py")}
    wanted = {".".join(folder.parts) for folder in folders}
    assert set(setup_arguments["packages"]) == wanted, "a package without __init__.py?"
    assert setup_arguments["name"] == "memvid_tf"
    assert setup_arguments["version"] == memvid_tf.__version__


def test_every_direct_requirement_is_pinned_within_its_bounds(requirements, pins):
    versions = {}
    for pin in pins:
        name, version = pin.split("==")
        versions[canonicalize_name(name)] = version
    for requirement in requirements:
        if requirement.name != "setuptools":  # Comes with Python; setup.py bounds it.
            pinned = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pinned), f"{requirement} and {pinned}"
    assert not {"memvid-tf", "pip", "setuptools"} & set(versions)


def test_pins_are_exact_versions_without_hosts_or_paths(pins):
    assert len(pins) > 50
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", pin), pin
    for name in ("constraints.txt", "setup.py", "Makefile", "pytest.ini", ".ci/run"):
        text = (ROOT / name).read_text()
        assert "://" not in text and "index-url" not in text, name


def test_every_import_is_of_a_declared_requirement(requirements):
    declared = {canonicalize_name(requirement.name) for requirement in requirements}
    providers = metadata.packages_distributions()
    undeclared = set()
    for folder in OURS:
        local = {path.stem for path in (ROOT / folder).glob("*.py")}
        for path in (ROOT / folder).rglob("*.py"):
            for module in imported(path) - set(sys.stdlib_module_names) - set(OURS) - local:
                names = {canonicalize_name(name) for name in providers.get(module, [])}
                if not names & declared:
                    undeclared.add((str(path.relative_to(ROOT)), module))
    assert not undeclared, f"add to setup.py, then make constraints: {sorted(undeclared)}"


def imported(path):
    """The top-level modules that a file imports, at any depth of its code."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules
