"""Builds the native runner into a cache, for this machine or for arm64.

A binary is kept under the hash of the sources, the flags and the compiler, and appears there whole
or not at all. Every system compiler of C++17 does; PyPI's `ziglang` brings one that also builds for
arm64.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.runtime import litert

SOURCES = Path(__file__).parent / "src"
NAME = "memvid_runner"
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", f'-DLITERT_RANGE="{litert.RANGE}"')
LINK = ("-pthread", "-ldl")
GLIBC = "2.34"  # of Android payloads; older than any that the arm64 libraries of a payload bring
_TIMEOUT_S = 600

# What `uname -m` says, by the name that Android and Debian use for it.
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


class NoCompiler(UserError):
    """There is no compiler for an architecture; says which would do."""


def host() -> str:
    """The architecture of this machine.

    Raises:
      NoCompiler: one that the runner is not built for.
    """
    for name, machine in ARCHITECTURES.items():
        if platform.machine() == machine:
            return name
    raise NoCompiler(
        f"the runner is built for {sorted(ARCHITECTURES.values())}, and this machine is "
        f"{platform.machine()!r}; use --engine=python"
    )


def cache() -> Path:
    """The folder in which everything that can be made again is kept."""
    home = os.environ.get("MEMVID_CACHE")
    return Path(home) if home else Path.home() / ".cache" / "memvid_tf"


def compiler(architecture: str) -> list[str]:
    """The command of a C++ compiler for `architecture` ("amd64" or "arm64").

    Raises:
      NoCompiler: there is none on this machine.
    """
    machine = ARCHITECTURES[architecture]
    names = [f"{machine}-linux-gnu-g++"]
    if architecture == host():
        names = ["g++", "clang++", *names]
    for name in names:
        if shutil.which(name):
            return [name, "-static-libstdc++", "-static-libgcc"]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", f"{machine}-linux-gnu.{GLIBC}"]
    raise NoCompiler(
        f"no C++ compiler for {architecture}: looked for {', '.join(names)} and the Python package "
        "ziglang; install one of them, for example: pip install ziglang"
    )


def build(architecture: str) -> Path:
    """The runner's binary for "amd64" or "arm64", built if the cache does not hold it.

    Raises:
      NoCompiler: see `compiler`.
      UserError: the compiler fails; holds the end of what it said.
    """
    command = [*compiler(architecture), *FLAGS]
    sources = sorted(SOURCES.glob("*.cpp"))
    digest = hashlib.sha256()
    for word in (*command, *LINK):
        digest.update(word.encode() + b"\0")
    for path in (*sources, *sorted(SOURCES.glob("*.hpp"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    folder = cache() / "runner" / digest.hexdigest()[:16]
    binary = folder / f"{NAME}.{architecture}"
    if binary.is_file():
        return binary
    with files.atomic_path(binary) as temporary:
        try:
            done = subprocess.run(
                [*command, *map(str, sources), "-o", temporary, *LINK],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"building the runner for {architecture}: {error}") from error
        if done.returncode:
            raise UserError(
                f"building the runner for {architecture}: {command[0]} ended with code "
                f"{done.returncode}: {done.stderr[-2000:]}"
            )
        os.chmod(temporary, 0o755)
    return binary


def litert_library() -> Path:
    """`libLiteRt.so` of the installed ai-edge-litert wheel, for this machine.

    Raises:
      UserError: there is no such wheel, its version was not tried, or it has no library.
    """
    version = litert.version()
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / "libLiteRt.so"
        if path.is_file():
            return path
    raise UserError(
        f"libLiteRt.so is not in the installed {litert.PACKAGE} {version}; install it anew: "
        f"pip install --force-reinstall --no-deps {litert.PACKAGE}=={version}"
    )
