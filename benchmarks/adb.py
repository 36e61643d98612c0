"""The adb program, with errors that say what to do and a bound on every wait.

Exit codes alone are not trusted: adb 29 returns 0 when a device dies in the middle of a shell
command, and a failed connect returns 0 too. Every shell command therefore ends in a sentinel.
"""

import contextlib
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
CONNECT_S = 10.0  # of one attempt; some hang while a device boots


class AdbError(UserError):
    """Something between here and the device; the subclasses say what."""


class NoAdb(AdbError):
    """There is no adb program."""


class NoServer(AdbError):
    """adb's server does not start, so nothing is known of any device."""


class NoDevice(AdbError):
    """No device, or not the one that was named."""


class ManyDevices(AdbError):
    """More than one device and none named."""


class Unauthorized(AdbError):
    """The device has not accepted this computer."""


class NoAccess(AdbError):
    """This computer does not let its user open the device."""


class NotBooted(AdbError):
    """The device answers, but Android does not run on it."""


class Offline(AdbError):
    """The device does not answer."""


class Disconnected(AdbError):
    """The device went away in the middle."""


class NoSpace(AdbError):
    """The device is full."""


class Denied(AdbError):
    """The device refuses."""


class Failed(AdbError):
    """A command ran to its end on the device and failed."""


class TooSlow(AdbError):
    """A command took longer than it may."""


# After these it is worth waiting for the device.
AWAY = (NoServer, NoDevice, Offline, Disconnected, TooSlow)

# States of `adb devices`; the ones with spaces are followed by an explanation.
_STATES = (
    "device|offline|unauthorized|authorizing|connecting|recovery|rescue|sideload|bootloader|host|"
    "detached|unknown|no permissions|insufficient permissions"
)
# Most adbs divide serial and state by a tab, some by spaces; a serial of mDNS may hold spaces.
_DEVICE = re.compile(rf"(\S.*?)(?:\t\s*|\s+)((?:{_STATES})\b.*)")
_SAID_BY_ADB = re.compile(r"\*|error\b|adb\b")

# What adb says, in the wording of adb 29 to 36.
_MESSAGES = (
    (r"cannot connect to daemon|failed to (?:start|check) |smartsocket", NoServer,
     "something else may hold its port (5037, or ANDROID_ADB_SERVER_PORT): end that, then: "
     "adb kill-server && adb devices"),
    (r"device '.*' not found|no devices/emulators found|no devices found", NoDevice,
     "plug it in, switch USB debugging on, and look at: adb devices"),
    (r"more than one device", ManyDevices, "name one with --serial=…; adb devices lists them"),
    (r"no permissions|insufficient permissions", NoAccess,
     "let this user open it: install udev rules (apt-get install "
     "android-sdk-platform-tools-common), join the group plugdev, then plug it in again"),
    (r"authorizing|device connecting", Offline,
     "wait a moment and try again; a question may be waiting on the device's screen"),
    (r"unauthorized", Unauthorized, "accept the RSA key on the device's screen"),
    (r"device (?:is )?(?:in )?(?:recovery|rescue|sideload|bootloader)", NotBooted,
     "start Android on it: adb reboot, or fastboot reboot"),
    (r"device offline|device detached", Offline,
     "unplug it and plug it in again, or: adb reconnect"),
    (r"No space left on device|ENOSPC", NoSpace, "free some space below /data/local/tmp"),
    (r"Permission denied|Read-only file system|Operation not permitted", Denied,
     "name a --device_dir that the shell user may write and run files in"),
    (r"doesn't match this client", Disconnected,
     "two adb programs of different versions end each other's server; use one (--adb=…)"),
    (r"protocol fault|connection reset|closed|EOF|failed to read|Broken pipe|couldn't read",
     Disconnected, "look at cable and power; the same command again goes on where it was"),
)  # fmt: skip

# What the shell and its tools say of files. Other programs may print anything.
_TOOLS = r"^(?:\S*/)?(?:sh|mkdir|chmod|find|cat|cd|mv|rm|sha256sum|timeout|taskset): .*"
# Old Androids print such lines before the answer of every program.
_BANNER = re.compile(r"^WARNING: linker: .*\n?", re.MULTILINE)
_BANNER_BYTES = re.compile(rb"\A(?:WARNING: linker: [^\n]*\n)+")


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
    """The typed error that a message of adb means."""
    words = _short(text)
    for pattern, kind, hint in _MESSAGES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind(f"{doing}: {words}; {hint}")
    return AdbError(f"{doing}: {words or 'adb said nothing'}; try: adb reconnect")


def failure(code: int, said: str, doing: str) -> AdbError:
    """The typed error of a command that ran to its end and failed.

    The connection is sound, whatever words the command printed.
    """
    message = f"{doing}: exit code {code}: {_short(said) or 'it said nothing'}"
    for pattern, kind, hint in _MESSAGES:
        if kind in (NoSpace, Denied) and re.search(f"{_TOOLS}(?:{pattern})$", said, re.MULTILINE):
            return kind(f"{message}; {hint}")
    return Failed(message)


def _short(text: str) -> str:
    return " ".join(text.split())[-400:]


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
            raise _lost(done.stderr, done.stdout, f"device {self.serial}: {command[:60]}")
        stdout = _BANNER.sub("", done.stdout[: found.start()])
        return Shell(int(found[1]), stdout, _BANNER.sub("", done.stderr))

    def check(self, command: str, timeout_s: float = 30.0) -> str:
        """Runs a command that must succeed; returns what it printed.

        Raises:
          Failed, NoSpace, Denied: it ran and failed.
          AdbError: see `shell`.
        """
        done = self.shell(command, timeout_s)
        if done.code:
            said = done.stderr or done.stdout
            raise failure(done.code, said, f"device {self.serial}: {command[:60]}")
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
        for content in (done.stdout, _BANNER_BYTES.sub(b"", done.stdout)):
            if hashlib.sha256(content).hexdigest() == wanted:
                return content
        said = done.stderr.decode(errors="replace")
        raise _lost(said, "", f"device {self.serial}: reading {path}")

    def wait(self, timeout_s: float) -> bool:
        """Whether the device answers again within that time."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            if ":" in self.serial:  # over the network: adb does not reconnect by itself
                with contextlib.suppress(TooSlow):  # what comes of it is seen below
                    limit = min(CONNECT_S, max(1.0, left))
                    self._run(["connect", self.serial], limit, "connect", device=False)
            try:
                self.check("true", timeout_s=min(5.0, max(1.0, left)))
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


def _lost(stderr: str, stdout: str, doing: str) -> AdbError:
    """The command did not come to its end: the device went away, unless adb says what happened.

    Lines of the command itself are shown, but mean nothing.
    """
    lines = [line for line in stderr.splitlines() if _SAID_BY_ADB.match(line)]
    if lines:
        error = error_for("\n".join(lines), doing)
        if type(error) is not AdbError:
            return error
    said = _short(stderr or stdout) or "nothing was said"
    return Disconnected(
        f"{doing}: the connection closed before the command ended ({said}); look at cable and "
        "power; the same command again goes on where it was"
    )


def parse_devices(text: str) -> dict[str, str]:
    """State by serial in what `adb devices` prints, with or without `-l`.

    A state is "device", "offline", "unauthorized", … or "no permissions (why)".
    """
    lines = text.partition("List of devices attached")[2].splitlines()
    found = [_DEVICE.fullmatch(line.strip()) for line in lines if not line.startswith("*")]
    states = {match[1]: match[2] for match in found if match}
    # What follows a state of one word describes the device.
    return {
        serial: state if "permissions" in state else state.split()[0]
        for serial, state in states.items()
    }


def devices(program: str) -> dict[str, str]:
    """State by serial of everything that adb sees; see `parse_devices`.

    Raises:
      NoAdb: the program cannot be run.
      NoServer: its server does not start or does not answer.
    """
    try:
        done = subprocess.run(
            [program, "devices"], capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=30, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise NoServer(
            f"{program} devices: no answer within 30 s; adb kill-server, then adb devices"
        ) from error
    except OSError as error:
        raise NoAdb(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode or "List of devices attached" not in done.stdout:
        error = error_for(done.stderr or done.stdout, "adb's server does not start")
        raise error if isinstance(error, NoServer) else NoServer(str(error))
    return parse_devices(done.stdout)


def pick(program: str, serial: str = "") -> Adb:
    """The device that is named, or the only one; those that are offline do not count.

    Raises:
      NoDevice, ManyDevices, Unauthorized, Offline, NoAccess, NotBooted: it is not there or not
        usable.
      NoAdb, NoServer: see `devices`.
    """
    states = devices(program)
    listed = ", ".join(f"{name} ({state})" for name, state in states.items()) or "none"
    if not serial:
        if not states:
            raise error_for("no devices/emulators found", "adb")
        # The address of an emulator that has ended stays in the list as offline.
        online = [name for name, state in states.items() if state != "offline"] or list(states)
        if len(online) > 1:
            raise error_for("more than one device/emulator", f"adb sees {listed}")
        serial = online[0]
    state = states.get(serial)
    if state is None:
        raise error_for(f"device '{serial}' not found", f"adb sees {listed}")
    if state != "device":
        raise error_for(f"device {state}", f"device {serial}")
    return Adb(program, serial)
