"""The folder on a device: pushing what changed, running jobs in it, and surviving a disconnect.

The folder is ours: we made it, a marker in it says so, and nothing else on the device is removed.
Programs, jobs and what users push lie in three folders in it, so that no file can take the place of
another one's.

A job runs apart from the adb connection that started it, under a time limit of its own, and writes
its result whole or not at all. Where the connection breaks, the result is fetched when the device is
back; if there is none, the job is run again.
"""

import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from benchmarks.adb import AWAY, Adb, AdbError, TooSlow
from benchmarks.payload import FOLDER, LOADER, Payload
from benchmarks.runner import local, plan
from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle, file_entry

ATTEMPTS = 3
WORK, MARKER = "memvid_tf", ".memvid_tf"
JOB, PUSHED = "job", "pushed"
# Largest differences that are the processor's and not a fault. int8 convolutions are exact
# everywhere, so extractors must agree byte for byte. Of the memory's operators only its
# multiplications round otherwise on arm64 cores, by one step (benchmarks/results/device_goldens.md),
# and the convolutions behind them spread that step (3 seen). Floats are added up in another order;
# the limit is a part of the largest value.
STATE_STEPS, BEHIND_STATE_STEPS, FLOAT_PART = 1, 4, 1e-4


class GoldenMismatch(UserError):
    """The device computes something else than was recorded; nothing is measured."""


class LoaderFailed(AdbError):
    """The C library that was pushed does not run."""


def golden_limit(bundle: Bundle, file: str, signature: str, tensor: str) -> tuple[float, bool]:
    """How far an output may be from what was recorded, and whether in int8 steps."""
    manifest = bundle.manifest
    graph = next(name for name, spec in manifest.graphs.items() if spec.file == file)
    spec = manifest.signature(f"{graph}/{signature}")
    if spec.outputs[tensor].dtype != "int8":
        return FLOAT_PART, False
    if tensor in {state.output for state in manifest.state}:
        return STATE_STEPS, True
    recurrent = {state.input for state in manifest.state} & set(spec.inputs)
    return (BEHIND_STATE_STEPS if recurrent else 0), True


class Foreign(UserError):
    """The folder on the device is not ours."""


class Handset:
    """One device's folder: `memvid_tf` in the folder that the user named.

    Raises:
      UserError: that is no absolute path.

    Attributes:
      adb: the device.
      hashes: sha256 of the runner and LiteRT that it is given, by name.
    """

    def __init__(
        self, adb: Adb, parts: Payload, folder: str, job_s: float = 300.0,
        reconnect_s: float = 60.0, say: Callable[[str], None] = lambda line: None,
    ):  # fmt: skip
        parts_of_path = PurePosixPath(folder).parts
        if parts_of_path[:1] != ("/",) or ".." in parts_of_path or not folder.isprintable():
            raise UserError(
                f"--device_dir={folder!r} is not an absolute path without '..', such as "
                "/data/local/tmp"
            )
        self.adb, self._payload = adb, parts
        self._folder = str(PurePosixPath(folder) / WORK)
        self.hashes = parts.hashes
        self._job_s, self._reconnect_s, self._say = job_s, reconnect_s, say
        self._known: dict[str, str] | None = None  # sha256 by name of what the folder holds

    def prepare(self) -> str:
        """Pushes the payload and runs the loader alone; returns what it said.

        Raises:
          LoaderFailed: it does not run, which nothing else would explain as well.
          AdbError: the device stays away.
        """
        return self._again(self._prepare)

    def _prepare(self) -> str:
        files = self._payload.files
        sent = sum(self._send(f"{FOLDER}/{name}", path) for name, path in files.items())
        programs = f"cd {self._quoted}/{FOLDER}"
        self.adb.check(f"{programs} && chmod 755 {' '.join(files)}")
        done = self.adb.shell(f"{programs} && ./{LOADER} --version 2>&1")
        version = re.search(r"version (\S+?)\.?\s", done.stdout)
        if done.code or version is None:
            said = " ".join((done.stdout + done.stderr).split())[-300:]
            raise LoaderFailed(
                f"device {self.adb.serial}: {LOADER} does not run (code {done.code}): {said}; it "
                f"must be executable in {self._folder}: try another --device_dir"
            )
        return f"glibc {version[1]} runs, {sent} of {len(files)} files pushed"

    def push(self, path: Path) -> str:
        """Pushes a file unless the device has it; returns its path there, as `call` takes it."""
        # Under its hash, since two files may have one name.
        name = f"{PUSHED}/{file_entry(path).sha256[:12]}/{path.name}"
        self._send(name, path)
        self.adb.check(f"chmod 755 {shlex.quote(f'{self._folder}/{name}')}")
        return name

    def check_goldens(self, bundle: Bundle) -> str:
        """Lets the device compute every recorded call; see `golden_limit` for what may differ.

        Raises:
          GoldenMismatch: the device computes something else.
        """
        rows = self.run(plan.goldens(bundle), None)[0]["goldens"]
        off, wrong = [], []
        for row in rows:
            limit, int8 = golden_limit(bundle, row["graph"], row["signature"], row["tensor"])
            where = f"{row['graph']}:{row['signature']} {row['tensor']}"
            if int8 and not row["fully_accelerated"]:
                wrong.append(f"{where}: not run whole by XNNPACK")
            if row["different"]:
                found = f"{where}: {row['different']} of {row['elements']} differ by up to "
                found += row["largest"] + (" steps" if int8 else " of the largest")
                (off if float(row["largest"]) <= limit else wrong).append(found)
        if wrong:
            raise GoldenMismatch(
                f"device {self.adb.serial} does not compute what {bundle.path} recorded: "
                f"{'; '.join(wrong)}; nothing is measured. Push again without --keep; if it stays, "
                "this processor rounds in another way"
            )
        return f"{len(rows)} golden tensors, " + ("; ".join(off) if off else "all byte-equal")

    def run(self, job: plan.Job, mask: str | None) -> tuple[dict, dict[str, bytes]]:
        """Runs a job of the native runner; returns its result and the files it wrote.

        Raises:
          RunnerError: the runner failed, or hung and was stopped.
          AdbError: the device stays away.
        """
        return self._again(lambda: self._run(job, mask))

    def call(self, command: str, mask: str | None) -> str:
        """Runs another program in the folder; returns what it printed on both streams."""
        masked = f"taskset {mask} {command}" if mask else command
        limited = f"cd {self._quoted} && timeout -k 5 {self._job_s:.0f} {masked} 2>&1"
        return self._again(lambda: self.adb.check(limited, self._job_s + 30))

    def remove(self) -> None:
        """Removes what was pushed and the folder, if nothing else came into it."""
        ours = " ".join((FOLDER, JOB, PUSHED))
        left = self.adb.check(
            f"cd {self._quoted} 2>/dev/null && test -f {MARKER} && rm -rf {ours} && ls -A || true"
        ).split("\n")
        others = [name for name in map(str.strip, left) if name not in ("", MARKER)]
        if others:
            self._say(f"{self._folder} stays, since it holds {', '.join(others[:3])}")
        else:
            self.adb.check(f"rm -f {self._quoted}/{MARKER} && rmdir {self._quoted} || true")
        self._known = None

    @property
    def _quoted(self) -> str:
        return shlex.quote(self._folder)

    def _again(self, attempt: Callable[[], object]):
        """`attempt`, repeated when the device was away and came back."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return attempt()
            except AWAY as error:
                if not left:
                    raise
                self._say(f"{error}\nwaiting up to {self._reconnect_s:.0f} s for the device …")
                self._known = None  # it may be another folder than before
                if not self.adb.wait(self._reconnect_s):
                    raise

    def _run(self, job: plan.Job, mask: str | None) -> tuple[dict, dict[str, bytes]]:
        for name, content in job.files.items():
            self._send(f"{JOB}/{name}", content)
        if self._known is not None and f"{FOLDER}/{LOADER}" not in self._known:
            self.prepare()
        # A name that no earlier job had: what one of those left behind is not taken for this one's.
        name = f"job_{secrets.token_hex(8)}"
        self._send(f"{JOB}/{name}.txt", job.text.encode())
        place = f"{self._quoted}/{JOB}"
        masked = f"taskset {mask} " if mask else ""
        command = self._payload.command(f"{name}.txt", f"{name}.json")
        # The job outlives the connection: it writes to files, and hears of no hang-up.
        script = (
            f"cd {place} && rm -f {name}.json {name}.code && ( trap '' HUP; "
            f"timeout -k 5 {self._job_s:.0f} {masked}{command} >/dev/null 2>{name}.err; "
            f"echo $? >{name}.code.part; mv {name}.code.part {name}.code ) </dev/null & wait"
        )
        try:
            self.adb.shell(script, self._job_s + 30)
        except AWAY as error:
            self._say(f"{error}\nwaiting up to {self._reconnect_s:.0f} s for the device …")
            if not self.adb.wait(self._reconnect_s):
                raise
        code = self._code(name)
        if code:
            said = local.reason(self.adb.shell(f"cat {place}/{name}.err").stdout)
            if code in (124, 137, 143):
                said = f"it hung and was stopped after {self._job_s:.0f} s (--job_s): {said}"
            raise local.RunnerError(
                f"device {self.adb.serial}: the runner {local.ending(code)}: {said}"
            )
        text = self.adb.read(f"{self._folder}/{JOB}/{name}.json").decode()
        written = {file: self.adb.read(f"{self._folder}/{JOB}/{file}") for file in job.outputs}
        self.adb.shell(f"cd {place} && rm -f {name}.*")
        return local.parse(text, job), written

    def _code(self, name: str) -> int:
        """The exit code of a job; waits for one that outlived its connection."""
        deadline = time.monotonic() + self._job_s
        while True:
            path = f"{self._quoted}/{JOB}/{name}.code"
            found = self.adb.shell(f"cat {path} 2>/dev/null").stdout.strip()
            if found.isdigit():
                return int(found)
            # In brackets, so that the shell which asks does not find itself.
            running = self.adb.shell(f"pgrep -f '[{name[0]}]{name[1:]}.json'").stdout.split()
            if not running or time.monotonic() > deadline:
                raise TooSlow(f"device {self.adb.serial}: {name} ended without a result")
            time.sleep(1.0)

    def _send(self, name: str, content: Path | bytes) -> bool:
        """Pushes unless the device has it; whether it did."""
        if self._known is None:
            self._known = self._inventory()
        with tempfile.TemporaryDirectory(prefix="memvid_push_") as folder:
            path = content
            if isinstance(content, bytes):
                path = Path(folder) / PurePosixPath(name).name
                path.write_bytes(content)
            wanted = file_entry(path).sha256
            if self._known.get(name) == wanted:
                return False
            target = f"{self._folder}/{name}"
            self.adb.check(f"mkdir -p {shlex.quote(str(PurePosixPath(target).parent))}")
            self._known.pop(name, None)
            self.adb.push(path, target)
            self._known[name] = wanted
        return True

    def _claim(self) -> None:
        """Makes and marks the folder, or sees the mark.

        Raises:
          Foreign: there is one that we did not make.
        """
        folder = self._quoted
        said = self.adb.check(
            f"mkdir -p {folder} && if test -f {folder}/{MARKER} || test -z \"$(ls -A {folder})\"; "
            f"then echo memvid_tf >{folder}/{MARKER}; else echo foreign; fi"
        )
        if said.strip():
            raise Foreign(
                f"device {self.adb.serial}: {self._folder} holds files that are not ours; move "
                "them away or name another --device_dir"
            )

    def _inventory(self) -> dict[str, str]:
        self._claim()
        listing = self.adb.check(
            f"cd {self._quoted} && find . -type f -exec sha256sum {{}} +", 120.0
        )
        pairs = (line.split(maxsplit=1) for line in listing.splitlines())
        return {pair[1].strip().removeprefix("./"): pair[0] for pair in pairs if len(pair) == 2}
