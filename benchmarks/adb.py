"""The adb program, with errors that say what to do and a bound on every wait.

Exit codes alone are not trusted: adb 29 returns 0 when a device dies in the middle of a shell
command, and a failed connect returns 0 too. Every shell command therefore ends in a sentinel.
"""

import dataclasses
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

from memvid_tf.errors import UserError

SENTINEL = "memvid_rc="


class AdbError(UserError):
    """Something between here and the device; the subclasses say what."""


class NoAdb(AdbError):
    """There is no adb program."""


class NoDevice(AdbError):
    """No device, or not the one that was named."""


class ManyDevices(AdbError):
    """More than one device and none named."""


class Unauthorized(AdbError):
    """The device has not accepted this computer."""


class Offline(AdbError):
    """The device does not answer."""


class Disconnected(AdbError):
    """The device went away in the middle."""


class NoSpace(AdbError):
    """The device is full."""


class Denied(AdbError):
    """The device refuses."""


class TooSlow(AdbError):
    """A command took longer than it may."""


# After these it is worth waiting for the device.
AWAY = (NoDevice, Offline, Disconnected, TooSlow)

# What adb and the device's shell say, in the wording of adb 29 to 36.
_MESSAGES = (
    (r"device '.*' not found|no devices/emulators found|no devices found", NoDevice,
     "plug it in, switch USB debugging on, and look at: adb devices"),
    (r"more than one device", ManyDevices, "name one with --serial=…; adb devices lists them"),
    (r"unauthorized", Unauthorized, "accept the RSA key on the device's screen"),
    (r"device offline|device still authorizing", Offline,
     "unplug it and plug it in again, or: adb reconnect"),
    (r"No space left on device|ENOSPC", NoSpace, "free some space below /data/local/tmp"),
    (r"Permission denied|Read-only file system|Operation not permitted", Denied,
     "name a --device_dir that the shell user may write and run files in"),
    (r"protocol fault|connection reset|closed|EOF|failed to read|Broken pipe|couldn't read",
     Disconnected, "look at cable and power; the same command again goes on where it was"),
)  # fmt: skip


def find_adb(named: str = "") -> str:
    """The adb program: the named one, else that on PATH, else the one that PyPI's adbutils brings.

    Raises:
      NoAdb: there is none.
    """
    if named:
        if not os.access(named, os.X_OK):
            raise NoAdb(f"--adb={named} is no program; leave it out to look on PATH")
        return named
    if found := shutil.which("adb"):
        return found
    spec = importlib.util.find_spec("adbutils")
    if spec is not None and spec.submodule_search_locations:
        bundled = Path(spec.submodule_search_locations[0]) / "binaries" / "adb"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise NoAdb(
        "no adb on PATH: install Android's platform tools (apt-get install adb), or pip install "
        "adbutils, which brings one"
    )


def error_for(text: str, doing: str) -> AdbError:
    """The typed error that a message of adb or of the device's shell means."""
    words = " ".join(text.split())[-400:]
    for pattern, kind, hint in _MESSAGES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{doing}: {words}; {hint}")
    return AdbError(f"{doing}: {words or 'adb said nothing'}; try: adb reconnect")


@dataclasses.dataclass(frozen=True)
class Shell:
    """How a shell command on the device ended."""

    code: int
    stdout: str
    stderr: str


class Adb:
    """One device.

    Attributes:
      serial: of the device.
    """

    def __init__(self, program: str, serial: str):
        self._program, self.serial = program, serial

    def shell(self, command: str, timeout_s: float = 30.0) -> Shell:
        """Runs a command of the device's shell.

        Raises:
          TooSlow: it does not end; on the device it may go on.
          AdbError: it did not run to its end.
        """
        done = self._run(["shell", f"{command}\necho {SENTINEL}$?"], timeout_s, "shell")
        found = re.search(rf"{SENTINEL}(\d+)\s*$", done.stdout)
        if found is None:
            raise _lost(done.stderr or done.stdout, f"device {self.serial}: {command[:60]}")
        return Shell(int(found[1]), done.stdout[: found.start()], done.stderr)

    def check(self, command: str, timeout_s: float = 30.0) -> str:
        """Runs a command that must succeed; returns what it printed.

        Raises:
          AdbError: it failed, or see `shell`.
        """
        done = self.shell(command, timeout_s)
        if done.code:
            said = done.stderr or done.stdout
            doing = f"device {self.serial}: {command[:60]}"
            raise error_for(f"exit code {done.code}: {said}", doing)
        return done.stdout

    def push(self, source: Path, target: str, timeout_s: float = 300.0) -> None:
        """Copies a file to the device and compares hashes.

        Raises:
          AdbError: it did not arrive, or not whole.
        """
        doing = f"device {self.serial}: pushing {source.name}"
        done = self._run(["push", str(source), target], timeout_s, "push")
        if done.returncode:
            raise error_for(done.stderr + done.stdout, doing)
        with open(source, "rb") as file:
            wanted = hashlib.file_digest(file, "sha256").hexdigest()
        if (found := self.sha256([target]).get(target)) != wanted:
            raise AdbError(
                f"{doing}: sha256 on the device is {found}, wanted {wanted}; the copy is damaged, "
                "look at cable and storage and try again"
            )

    def sha256(self, paths: list[str]) -> dict[str, str]:
        """Hashes of those files that the device has."""
        words = " ".join(map(shlex.quote, paths))
        done = self.shell(f"sha256sum {words} 2>/dev/null", timeout_s=120.0)
        pairs = (line.split(maxsplit=1) for line in done.stdout.splitlines())
        return {pair[1].strip(): pair[0] for pair in pairs if len(pair) == 2}

    def read(self, path: str, timeout_s: float = 120.0) -> bytes:
        """A file of the device, compared by hash.

        Raises:
          AdbError: there is none, or it did not arrive whole.
        """
        wanted = self.sha256([path]).get(path)
        if wanted is None:
            raise AdbError(f"device {self.serial}: {path} is not there")
        done = self._run(["exec-out", f"cat {shlex.quote(path)}"], timeout_s, "pull", text=False)
        if hashlib.sha256(done.stdout).hexdigest() != wanted:
            said = done.stderr.decode(errors="replace")
            raise _lost(said, f"device {self.serial}: reading {path}")
        return done.stdout

    def wait(self, timeout_s: float) -> bool:
        """Whether the device answers again within that time."""
        deadline = time.monotonic() + timeout_s
        while True:
            if ":" in self.serial:  # over the network: adb does not reconnect by itself
                self._run(["connect", self.serial], 10.0, "connect", device=False)
            try:
                self.check("true", timeout_s=5.0)
                return True
            except AdbError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.5)

    def _run(self, words, timeout_s, doing, text=True, device=True):
        chosen = ["-s", self.serial] if device else []
        try:
            return subprocess.run(
                [self._program, *chosen, *words], capture_output=True, text=text,
                errors="replace" if text else None, stdin=subprocess.DEVNULL, timeout=timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise TooSlow(
                f"device {self.serial}: {doing} did not end within {timeout_s:.0f} s and was given "
                "up; is the device busy or asleep?"
            ) from error
        except OSError as error:
            raise NoAdb(f"{self._program} cannot be run: {error.strerror}") from error


def _lost(said: str, doing: str) -> AdbError:
    """The command did not come to its end: whatever adb says, the device went away."""
    error = error_for(said or "connection closed without a word", doing)
    return error if type(error) is not AdbError else Disconnected(str(error))


def devices(program: str) -> dict[str, str]:
    """State by serial of everything that adb sees: "device", "offline", "unauthorized", …

    Raises:
      NoAdb: the program cannot be run, or its server does not start.
    """
    try:
        done = subprocess.run(
            [program, "devices"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAdb(f"{program} devices: {error}") from error
    lines = done.stdout.partition("List of devices attached")[2].splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def pick(program: str, serial: str = "") -> Adb:
    """The device that is named, or the only one.

    Raises:
      NoDevice, ManyDevices, Unauthorized, Offline: it is not there or not usable.
    """
    states = devices(program)
    listed = ", ".join(f"{name} ({state})" for name, state in states.items()) or "none"
    if not serial:
        if not states:
            raise error_for("no devices/emulators found", "adb")
        if len(states) > 1:
            raise error_for("more than one device/emulator", f"adb sees {listed}")
        serial = next(iter(states))
    state = states.get(serial)
    if state is None:
        raise error_for(f"device '{serial}' not found", f"adb sees {listed}")
    if state != "device":
        raise error_for(f"device {state}", f"device {serial}")
    return Adb(program, serial)
