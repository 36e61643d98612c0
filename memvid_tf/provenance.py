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


# Which of them a processor has decides what is fast on it, and for TensorFlow also what runs.
VECTOR_UNITS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
)


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            pairs = [line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines()]
    except OSError:
        return {}
    return {pair[0].strip(): pair[-1].strip() for pair in pairs}


def processor() -> str:
    """The name of this machine's processor."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def vector_units() -> list[str] | None:
    """Those of `VECTOR_UNITS` that this machine's processor has; None where nobody says."""
    known = _cpuinfo()
    flags = known.get("flags") or known.get("Features")
    return None if flags is None else [unit for unit in VECTOR_UNITS if unit in flags.split()]


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
        "machine": {
            "processor": processor(),
            "vector_units": vector_units(),
            "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "TensorFlow's choice"),
            "cores": os.cpu_count(),
            "os": platform.system(),
        },
    }
