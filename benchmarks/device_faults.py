r"""Plays every fault that a phone can have against the real program, and writes what it says.

  python -m benchmarks.device_faults --bundle=bundles/tiny \
    --output=benchmarks/results/device_faults

One graph of the bundle is measured on an emulated Pixel with the newest adb and with adb 29: once
to have something finished, then again with each fault. The page holds the program's last line, its
exit code, and how many repeats the results file holds afterwards.
"""

import contextlib
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags
from tabulate import tabulate

from benchmarks import adb as adb_lib
from benchmarks import measurements as schema
from benchmarks import pages, payload, pixel, rig
from benchmarks.runner.build import cache
from memvid_tf import errors, files, provenance
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
ROOT = Path(__file__).parents[1]
LONGEST_S = 600.0  # of one run of the program; longer is a hang
LONG_MS = 5000.0  # of a run that is interrupted after a second


@dataclasses.dataclass
class Bench:
    """The rig of one adb.

    Attributes:
      adb: the program.
      folder: for files of the rig.
      cable: to the device.
      serial: of the device behind the cable.
      address: of the device without it.
      model: what is measured.
      finished: the results file of the run without a fault.
    """

    adb: str
    folder: Path
    cable: rig.Cable
    serial: str
    address: str
    model: Path
    finished: Path

    @property
    def device(self) -> adb_lib.Adb:
        """The device behind the cable."""
        return adb_lib.Adb(self.adb, self.serial)


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      name: as the page has it.
      play: brings it about and yields flags of the program, and variables of its environment.
      repeats: that the program is asked for; one is there already.
    """

    name: str
    play: Callable[[Bench], contextlib.AbstractContextManager[tuple[list[str], dict[str, str]]]]
    repeats: int = 2


def _fault(function):
    return contextlib.contextmanager(function)


@_fault
def no_adb(bench: Bench):
    """Neither on PATH nor of a package."""
    empty = bench.folder / "empty"
    (empty / "adbutils").mkdir(parents=True, exist_ok=True)
    (empty / "adbutils/__init__.py").touch()
    yield [], {"PATH": str(empty), "PYTHONPATH": str(empty)}


@_fault
def no_device(bench: Bench):
    """adb sees nothing."""
    rig.disconnect(bench.adb)
    yield [f"--adb={bench.adb}"], {}


@_fault
def two_devices(bench: Bench):
    """Two, and none is named."""
    rig.connected(bench.adb, bench.address)
    yield [f"--adb={bench.adb}"], {}
    rig.disconnect(bench.adb)


@_fault
def unauthorized(bench: Bench):
    """The user has not accepted the key."""
    with rig.listener(rig.never_accepts_the_key) as address:
        rig.connect(bench.adb, address)
        yield [f"--adb={bench.adb}", f"--serial={address}"], {}
        rig.disconnect(bench.adb)


@_fault
def offline(bench: Bench):
    """It is there and says nothing."""
    with rig.listener(rig.never_answers) as address:
        thread = threading.Thread(target=rig.connect, args=(bench.adb, address))
        thread.start()
        while thread.is_alive() and address not in adb_lib.devices(bench.adb):
            time.sleep(0.1)
        yield [f"--adb={bench.adb}", f"--serial={address}"], {}
        rig.disconnect(bench.adb)
        thread.join()


@_fault
def cut_in_push(bench: Bench):
    """A folder without the payload, and a cable that is cut while it is pushed."""
    bench.cable.budget["to"] = 2**20
    yield [*_flags(bench), "--device_dir=/data/local/tmp/cut"], {}


@_fault
def cut_in_run(bench: Bench):
    """The cable is cut a second after the runner began."""
    bench.cable.trigger, bench.cable.delay_s = b"timeout -k", 1.0
    yield [*_flags(bench), *_long(bench)], {}


@_fault
def cut_in_pull(bench: Bench):
    """The cable is cut when the result is fetched."""
    bench.cable.trigger, bench.cable.delay_s = b"exec:cat ", 0.0
    yield _flags(bench), {}


@_fault
def stays_away(bench: Bench):
    """The device goes away in a run and does not come back."""
    with rig.listener(cable := rig.Cable(bench.address)) as address:
        rig.connected(bench.adb, address)
        cable.trigger, cable.delay_s = b"timeout -k", 1.0
        cable.stays_cut = True
        yield [f"--adb={bench.adb}", f"--serial={address}", "--reconnect_s=2", *_long(bench)], {}
    rig.disconnect(bench.adb)


@_fault
def full_disk(bench: Bench):
    """Another device, with less space than the payload needs."""
    with pixel.booted(data_size="4m") as address:
        rig.connected(bench.adb, address)
        yield [f"--adb={bench.adb}", f"--serial={address}"], {}
        rig.disconnect(bench.adb)


@_fault
def missing_loader(bench: Bench):
    """The C library's loader is gone when it is to run."""
    program = rig.removing_adb(bench.adb, bench.folder, payload.LOADER)
    yield [f"--adb={program}", f"--serial={bench.serial}"], {}


@_fault
def wrong_abi(bench: Bench):
    """Not an arm64 device."""
    rig.play(bench.device, "ro.product.cpu.abi", "x86_64")
    yield _flags(bench), {}
    rig.play_nothing(bench.device)


@_fault
def corrupt_push(bench: Bench):
    """A bit of every pushed file is flipped."""
    program = rig.damaging_adb(bench.adb, bench.folder)
    folder = "--device_dir=/data/local/tmp/damaged"
    yield [f"--adb={program}", f"--serial={bench.serial}", folder], {}


@_fault
def hung_runner(bench: Bench):
    """The runner does not end in time."""
    yield [*_flags(bench), "--runs=5000000", "--job_s=5"], {}


@_fault
def too_hot(bench: Bench):
    """A battery of 41.2 °C, and no time to let it cool."""
    rig.play(bench.device, "dumpsys.battery", "  temperature: 412")
    yield [*_flags(bench), "--cool_down_s=0"], {}
    rig.play_nothing(bench.device)


@_fault
def no_sensor(bench: Bench):
    """Nothing says how warm it is."""
    yield _flags(bench), {}


FAULTS = (
    Fault("no adb", no_adb),
    Fault("no device", no_device),
    Fault("two devices, none named", two_devices),
    Fault("unauthorized", unauthorized),
    Fault("offline", offline),
    Fault("disconnect in push", cut_in_push),
    Fault("disconnect in run", cut_in_run),
    Fault("disconnect in pull", cut_in_pull),
    Fault("gone for good in a run", stays_away),
    Fault("full disk", full_disk),
    Fault("missing loader", missing_loader),
    Fault("wrong ABI", wrong_abi),
    Fault("corrupt push", corrupt_push),
    Fault("hung runner", hung_runner),
    Fault("phone too hot", too_hot),
    Fault("sensor unreadable", no_sensor),
)


def _flags(bench: Bench) -> list[str]:
    return [f"--adb={bench.adb}", f"--serial={bench.serial}"]


def _long(bench: Bench) -> list[str]:
    """As many runs of the model as fill LONG_MS here; a number would be too small for some model."""
    (finished,) = schema.Results.load(f"{bench.finished}.json").measurements
    runs = round(LONG_MS / statistics.fmean(finished.latency_ms))
    return [f"--runs={runs}", "--job_s=300"]


@contextlib.contextmanager
def prepared(adb: str, folder: Path, model: Path) -> Iterator[Bench]:
    """The rig, after a run without a fault.

    Raises:
      UserError: even that fails.
    """
    with rig.server(adb), pixel.booted() as address:
        cable = rig.Cable(address)
        with rig.listener(cable) as serial:
            rig.play_nothing(rig.connected(adb, serial))
            bench = Bench(adb, folder, cable, serial, address, model, folder / "finished")
            done = run(bench, bench.finished, _flags(bench), {}, repeats=1)
            if done.returncode:
                raise errors.UserError(f"the run without a fault failed: {last_line(done)}")
            yield bench
        rig.disconnect(adb)


def run(
    bench: Bench, output: Path, options: list[str], environment: dict[str, str], repeats: int
) -> subprocess.CompletedProcess:
    """The program, with `options` behind its usual flags."""
    usual = [f"--peer={bench.model}", f"--output={output}", f"--repeats={repeats}", "--keep"]
    usual += ["--threads=1", "--runs=20", "--job_s=60", "--reconnect_s=30"]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.device", *usual, *options],
        cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess) -> str:
    """What the program says in the end; of a failure, the error."""
    said = done.stderr if done.returncode else done.stdout
    return said.strip().splitlines()[-1] if said.strip() else ""


def measured(fault: Fault, bench: Bench) -> dict:
    """Plays a fault; returns a row of the page."""
    output = bench.folder / fault.name.replace(" ", "_").replace(",", "")
    kept = Path(f"{bench.finished}.json").read_text(encoding="utf-8")
    files.write_text(f"{output}.json", kept)
    if bench.serial not in adb_lib.devices(bench.adb):
        rig.connected(bench.adb, bench.serial)
    cuts, start = bench.cable.cuts, time.monotonic()
    with fault.play(bench) as (options, environment):
        done = run(bench, output, options, environment, fault.repeats)
    found = schema.Results.load(f"{output}.json").measurements
    before = schema.Results.load(f"{bench.finished}.json").measurements
    return {
        "fault": fault.name,
        "message": _neutral(last_line(done), bench),
        "exit_code": done.returncode,
        "asked": fault.repeats,
        "kept": len(found),
        "finished_kept": found[: len(before)] == before,
        "missing": found[-1].conditions["before"]["missing"] if done.returncode == 0 else [],
        "traceback": "Traceback" in done.stderr,
        "cuts": bench.cable.cuts - cuts,
        "seconds": round(time.monotonic() - start, 1),
    }


def _neutral(text: str, bench: Bench) -> str:
    """Without ports and folders, which differ from run to run and from machine to machine."""
    words = {bench.serial: "DEVICE", bench.adb: "adb", str(bench.folder): "…", str(cache()): "…"}
    for name, word in words.items():
        text = text.replace(name, word)
    return re.sub(r"127\.0\.0\.1:\d+", "OTHER", text)


def page(result: dict) -> str:
    """The results as Markdown."""
    lines = ["# Faults of a device, and what the program does", ""]
    lines.append(
        f"An emulated Pixel, {result['date']}, version {result['code_version']}. One repeat was "
        "there already and a second is asked for; DEVICE and OTHER are addresses."
    )
    for version, rows in result["adb"].items():
        lines += ["", f"## adb {version}", ""]
        table = [
            [r["fault"], r["message"] + _missing(r), r["exit_code"],
             f"{r['kept']} of {r['asked']}", r["seconds"]]
            for r in rows
        ]  # fmt: skip
        header = ["fault", "last line", "exit code", "repeats kept", "seconds"]
        lines.append(tabulate(table, header, tablefmt="github", disable_numparse=True))
        lost = [r["fault"] for r in rows if not r["finished_kept"] or r["traceback"]]
        lines += ["", f"Finished repeats lost, or a traceback shown: {', '.join(lost) or 'none'}."]
    return "\n".join(lines) + "\n"


def _missing(row: dict) -> str:
    return f"; not readable: {', '.join(row['missing'])}" if row["missing"] else ""


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/tiny")
    bundle = Bundle.load(FLAGS.bundle)
    payload.arm64()  # before anything is timed
    unknown = set(FLAGS.only) - {fault.name for fault in FAULTS}
    if unknown:
        names = ", ".join(fault.name for fault in FAULTS)
        raise errors.UserError(f"--only={','.join(sorted(unknown))}: wanted some of {names}")
    result = {"date": provenance.now(), "code_version": provenance.code_version(), "adb": {}}
    with tempfile.TemporaryDirectory(prefix="memvid_faults_") as name:
        for program in (adb_lib.find_adb(), rig.adb_29(Path(name))):
            version = rig.version(program)
            folder = Path(name) / version
            folder.mkdir()
            with prepared(program, folder, bundle.graph_path("f1")) as bench:
                rows = result["adb"][version] = []
                for fault in FAULTS:
                    if FLAGS.only and fault.name not in FLAGS.only:
                        continue
                    rows.append(measured(fault, bench))
                    row = rows[-1]
                    print(f"adb {version}, {fault.name}: {row['exit_code']}, {row['kept']} of "
                          f"{row['asked']}: {row['message']}", flush=True)  # fmt: skip
            pages.publish(FLAGS.output, result, page(result))  # what is there outlives what comes


if __name__ == "__main__":
    flags.DEFINE_string("bundle", "", "Whose f1 is measured. Example: --bundle=bundles/tiny")
    flags.DEFINE_list("only", [], "Faults to play; else all. Example: --only='no adb,full disk'")
    flags.DEFINE_string(
        "output", "", "Results, as PATH.json and PATH.md. Example: results/device_faults"
    )
    errors.run(main)
