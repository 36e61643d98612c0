"""Debian packages of any architecture, unpacked into the cache without being installed.

The emulated Pixel and the libraries that a phone lacks come from here. Nothing of the system is
changed: apt-get works with lists and a status file of its own, on the mirror that the system uses,
and checks the archive's signature.
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.runner.build import cache
from memvid_tf import files, locks
from memvid_tf.errors import UserError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = Path("/etc/apt")
_TIMEOUT_S = 900


class NoPackages(UserError):
    """Packages cannot be had on this machine; says why."""


def fetch(suite: str, architecture: str, names: Sequence[str]) -> Path:
    """A folder with the content of packages, fetched if the cache does not hold it.

    Args:
      suite: of Debian, such as "trixie".
      architecture: as Debian calls it, such as "arm64".
      names: of the packages; what they depend on is not followed.

    Raises:
      NoPackages: no apt-get, no mirror, no network, or no such package.
    """
    words = " ".join((suite, architecture, *sorted(names)))
    folder = cache() / "debian" / hashlib.sha256(words.encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoPackages(f"{tool} is not on this machine: packages come from Debian's tools")
    if not Path(KEYRING).is_file():
        raise NoPackages(f"{KEYRING} is missing: apt-get install debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="memvid_apt_") as name:
        work = Path(name)
        options = _options(work, suite, architecture)
        _call(["apt-get", *options, "update", "-qq"], work)
        _call(["apt-get", *options, "download", "-qq", *names], work)
        with locks.target(folder), files.atomic_folder(folder, "packages") as target:
            for package in sorted(work.glob("*.deb")):
                _call(["dpkg-deb", "-x", str(package), target], work)
    return folder


def mirror(folder: Path = SOURCES) -> str:
    """The address of the Debian mirror that the system uses.

    Raises:
      NoPackages: none is configured.
    """
    lists = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    for path in lists:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for pattern in (r"^URIs:\s*(\S+)", r"^deb\s+(?:\[[^\]]*\]\s*)?(\S+)"):
            for found in re.findall(pattern, text, re.MULTILINE):
                if "security" not in found:
                    return found
    raise NoPackages(f"no Debian mirror in {folder}/sources.list or sources.list.d")


def _options(work: Path, suite: str, architecture: str) -> list[str]:
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
        "Dir::Etc::sourcelist": work / "sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
        "Dir::State::status": work / "status",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def _call(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoPackages(f"{command[0]} took more than {_TIMEOUT_S} s") from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[-500:]
        raise NoPackages(f"{command[0]} ended with code {done.returncode}: {reason}")
