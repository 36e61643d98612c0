"""Where a number comes from: date, versions and machine, as every results file states them."""

import datetime
import importlib.metadata
import os
import platform
import subprocess

import memvid_tf

PACKAGES = ("tensorflow", "tf_keras", "tf-models-official", "ai-edge-litert", "numpy")


def code_version() -> str:
    """The version, with the commit where the code runs from a git checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        commit = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout
        return memvid_tf.__version__
    return f"{memvid_tf.__version__}+{commit}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def describe() -> dict:
    """Date, code version, package versions and machine, ready for JSON."""
    return {
        "date": now(),
        "code_version": code_version(),
        "python": platform.python_version(),
        "packages": {package: _installed(package) for package in PACKAGES},
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "os": platform.system()},
    }
