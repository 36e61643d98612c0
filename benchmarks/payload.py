"""What an arm64 device is given: the runner, LiteRT, and the C library that Android does not have.

LiteRT comes from the aarch64 wheel of the installed version, the libraries from Debian's arm64
packages; both are fetched once into the cache.
"""

import dataclasses
import functools
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks import packages
from benchmarks.runner import build
from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.runtime import litert
from memvid_tf.runtime.bundle import file_entry

ABI = "arm64-v8a"
LOADER = "ld-linux-aarch64.so.1"
LITERT = "libLiteRt.so"
RUNNER = "memvid_runner"
FOLDER = "program"  # on the device; what it is given to compute lies elsewhere
_LIBRARIES = (LOADER, "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1")
_WHEEL_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class Payload:
    """Files by the name that they have on the device."""

    files: dict[str, Path]

    @functools.cached_property
    def hashes(self) -> dict[str, str]:
        """sha256 of the runner and LiteRT, as results name them."""
        parts = {"runner": RUNNER, "litert": LITERT}
        return {name: file_entry(self.files[file]).sha256 for name, file in parts.items()}

    def command(self, plan: str, result: str) -> str:
        """The shell command that runs a plan, in a folder beside the payload's."""
        at = f"../{FOLDER}"
        return f"{at}/{LOADER} --library-path {at} {at}/{RUNNER} {plan} {result} {at}/{LITERT}"


def arm64() -> Payload:
    """The payload, made if the cache does not hold it.

    Raises:
      NoCompiler: the runner cannot be built for arm64 here.
      NoPackages: the libraries cannot be had here.
      UserError: LiteRT's wheel cannot be had.
    """
    system = packages.fetch("trixie", "arm64", ["libc6", "libgcc-s1", "libstdc++6"])
    folder = system / "usr/lib/aarch64-linux-gnu"
    content = {name: (folder / name).resolve() for name in _LIBRARIES}
    content[RUNNER] = build.build("arm64")
    content[LITERT] = litert_arm64()
    return Payload(content)


def litert_arm64() -> Path:
    """libLiteRt.so for aarch64, of the version of ai-edge-litert that is installed.

    Raises:
      UserError: the installed version was not tried, or pip cannot fetch the wheel, or it holds no
        such file.
    """
    version = litert.version()
    target = build.cache() / f"litert_{version}_arm64" / LITERT
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="memvid_wheel_") as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder]
        command += ["--only-binary=:all:", "--python-version", "3.11"]
        command += [word for name in _WHEEL_PLATFORMS for word in ("--platform", name)]
        try:
            done = subprocess.run(
                [*command, f"{litert.PACKAGE}=={version}"],
                capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UserError(f"pip did not fetch LiteRT for arm64 in {_TIMEOUT_S} s") from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = " ".join(done.stderr.split())[-400:]
            raise UserError(f"pip cannot fetch {litert.PACKAGE} {version} for arm64: {reason}")
        with zipfile.ZipFile(wheels[0]) as wheel, files.atomic_path(target) as temporary:
            try:
                content = wheel.read(f"ai_edge_litert/{LITERT}")
            except KeyError as error:
                raise UserError(f"{wheels[0].name} holds no {LITERT}") from error
            Path(temporary).write_bytes(content)
    return target
