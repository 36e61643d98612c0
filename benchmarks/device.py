r"""Measures bundles on Android devices over adb.

  python -m benchmarks.device --bundle=bundles/paper/int8 --output=results/pixel
  python -m benchmarks.device --doctor                # only says what is found, and what is wrong
  python -m benchmarks.device --serial=A --serial=B …  # both at once, into one file

A device is checked, given what it lacks, made to compute the recorded golden outputs and only then
measured, in shuffled order, cool, on its fastest cores. Every repeat is written when it is done: the
same command again goes on after the last one. Afterwards its settings are put back and our folder
on it is removed (--keep leaves it, and the next push sends only what changed).
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import random
import shlex
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from benchmarks import adb as adb_lib
from benchmarks import benchmark_model, payload, phone, report
from benchmarks import measurements as schema
from benchmarks import tasks as work
from benchmarks.engines import JobEngine
from benchmarks.handset import Handset
from memvid_tf import errors, files, provenance
from memvid_tf.runtime.bundle import Bundle, file_entry

FLAGS = flags.FLAGS


def define_flags() -> None:
    """The flags of this program."""
    work.define_flags()
    flags.DEFINE_multi_string(
        "serial",
        [],
        "Device, may be given again; needed if there are several. Example: --serial=1A2B",
    )
    flags.DEFINE_string("adb", "", "adb program; else the one on PATH. Example: --adb=/opt/adb")
    flags.DEFINE_bool("doctor", False, "Only check devices. Example: --doctor")
    flags.DEFINE_float(
        "sustained_s", 0.0, "Then run every schedule for so long, warm or not. Example: 300", 0.0
    )
    flags.DEFINE_float("cool_down_s", 300.0, "Longest wait for a hot device. Example: 300", 0.0)
    flags.DEFINE_float("reconnect_s", 60.0, "Longest wait for one that went away. Example: 60", 0.0)
    flags.DEFINE_float("job_s", 300.0, "Longest single run. Example: --job_s=300", 1.0)
    flags.DEFINE_string(
        "benchmark_model", "", "Also measure graphs with this binary of yours, for delegates. "
        "Example: --benchmark_model=android_aarch64_benchmark_model",
    )  # fmt: skip
    flags.DEFINE_string("benchmark_flags", "", "Its further flags. Example: --use_gpu=true")
    flags.DEFINE_string(
        "device_dir",
        "/data/local/tmp",
        "Folder on the device, in which a folder memvid_tf is made and removed. Example: "
        "/data/local/tmp/x",
    )
    flags.DEFINE_bool("keep", False, "Leave the folder on the device. Example: --keep")


class DeviceEngine(JobEngine):
    """The native runner on a device.

    Attributes:
      handset: the device.
      mask: of the cores that may be used, None for all.
    """

    def __init__(self, handset: Handset, mask: str | None):
        self.handset, self.mask = handset, mask

    def run(self, job):
        """See `JobEngine`."""
        return self.handset.run(job, self.mask)[0]

    def hashes(self):
        """See `Engine`."""
        return self.handset.hashes


def foreign_tasks(
    bundles: Sequence[Bundle], peers: Sequence[Path], device: str, wish: work.Wish, binary: Path,
    extra: str,
) -> list[work.Task]:  # fmt: skip
    """The first signature of every graph, with the user's benchmark_model and further flags."""
    graphs = [
        (subject, name, bundle.graph_path(name), bundle.manifest.precision)
        for bundle, subject in zip(bundles, work.subjects(bundles))
        for name in bundle.manifest.graphs
    ]
    names = work.peer_names(peers)
    graphs += [(name, "whole model", path, None) for name, path in zip(names, peers)]
    said = shlex.join(benchmark_model.split_flags(extra))
    tasks = []
    for (subject, name, path, precision), threads in itertools.product(graphs, wish.threads):

        def run(engine, path=path, threads=threads):
            handset = engine.handset
            model, call = handset.push(path), f"./{handset.push(binary)}"
            command = benchmark_model.command(call, model, threads, wish.runs, extra)
            return benchmark_model.parse(handset.call(command, engine.mask))

        setting = schema.Setting(
            device, subject, "graph", name, threads, "benchmark_model", flags=said
        )
        hashes = {path.name: file_entry(path).sha256, binary.name: file_entry(binary).sha256}
        tasks.append(work.Task(setting, precision, None, hashes, threads, run))
    return tasks


class Stopped(errors.UserError):
    """The user wants no more."""


class Session:
    """Measuring on one device into a results file, which other devices may share.

    Args:
      handset: the device.
      device: what results say of it.
      results: where measurements go.
      cool_down_s: longest wait for a hot device.
      say: takes lines for people.
      stop: set where no further repeat should begin.
      position: of the progress bar.
    """

    def __init__(
        self, handset: Handset, device: dict, results: schema.Results, cool_down_s: float,
        say: Callable[[str], None], stop: threading.Event, position: int,
    ):  # fmt: skip
        self._handset, self._device, self._results = handset, device, results
        self._cool_down_s, self._say, self._stop = cool_down_s, say, stop
        self._position = position
        self._max_khz = phone.read_frequencies(handset.adb, "cpuinfo_max_freq")

    def measure(self, task: work.Task, repeat: int, fixed: bool, wait: bool = True) -> None:
        """One repeat, unless the results hold it.

        Raises:
          Stopped: no further repeat should begin.
        """
        if self._stop.is_set():
            raise Stopped(f"{self._device['name']}: stopped; what was measured is kept")
        hashes = task.hashes | self._handset.hashes
        if self._results.has(task.setting, repeat, hashes):
            return
        adb = self._handset.adb
        before = (
            phone.wait_until_cool(adb, self._cool_down_s, self._say) if wait else phone.sensors(adb)
        )
        mask = phone.fastest_mask(self._max_khz, task.cores)
        result = task.run(DeviceEngine(self._handset, mask))
        after = phone.sensors(adb)
        conditions = {
            "before": {**dataclasses.asdict(before), "missing": before.missing},
            "after": {**dataclasses.asdict(after), "missing": after.missing},
            "settings": {"fixed_performance_mode": fixed},
        }
        self._results.append(
            schema.Measurement(
                task.setting, repeat, task.precision, task.tau, self._device, hashes, conditions,
                result, provenance.now(), provenance.code_version(), mask,
            )
        )  # fmt: skip

    def burst(self, tasks: Sequence[work.Task], repeats: int, seed: int, fixed: bool) -> None:
        """All repeats, in turns and in shuffled order, each on a cool device."""
        from tqdm import tqdm

        for task in tasks:  # before minutes of measuring
            self._results.has(task.setting, 0, task.hashes | self._handset.hashes)
        rng = random.Random(seed)
        name = self._device["name"]
        total, position = repeats * len(tasks), self._position
        with tqdm(total=total, desc=name, unit="run", position=position) as bar:
            for repeat in range(repeats):
                for task in rng.sample(list(tasks), len(tasks)):
                    self.measure(task, repeat, fixed)
                    bar.update(1)

    def sustained(self, tasks: Sequence[work.Task], seconds: float, fixed: bool) -> None:
        """Every schedule again and again until it ran for so long, whatever the temperature
        becomes. What the results hold of it counts."""
        from tqdm import tqdm

        for task in tasks:
            if task.setting.kind != "schedule":
                continue
            warm = dataclasses.replace(
                task, setting=dataclasses.replace(task.setting, mode="sustained")
            )
            title, position = f"sustained {task.setting.name}", self._position
            with tqdm(total=seconds, desc=title, unit="s", position=position) as bar:
                while (left := seconds - self._spent_s(warm)) > 0:
                    bar.update(seconds - left - bar.n)
                    repeat = self._count(warm)
                    self.measure(warm, repeat, fixed, wait=repeat == 0)

    def _count(self, task: work.Task) -> int:
        return sum(m.setting == task.setting for m in self._results.measurements)

    def _spent_s(self, task: work.Task) -> float:
        mine = (m for m in self._results.measurements if m.setting == task.setting)
        return sum(m.result["elapsed_us"] for m in mine) / 1e6


def check(adb: adb_lib.Adb, handset: Handset) -> list[str]:
    """What the doctor says about a device, a line each; leaves the payload on it.

    Raises:
      AdbError, WrongDevice: what is wrong, and what to do.
    """
    facts = phone.describe(adb)
    found = phone.sensors(adb)
    clocks = phone.read_frequencies(adb, "cpuinfo_max_freq")
    return [
        f"device       {facts['name']}, {facts['soc'] or 'SoC not said'}, Android "
        f"{facts['android'] or 'not said'}",
        f"build        {facts['fingerprint'] or 'not said'}",
        f"hardware     {'real' if facts['physical'] else 'emulated: times are not latencies'}",
        f"battery      {found.battery_c} °C, thermal status {found.thermal_status}",
        f"not readable {', '.join(found.missing) or 'nothing'}",
        f"cores        {clocks or 'clocks not readable: all cores are used'}",
        f"loader       {handset.prepare()}",
    ]


def measure_device(
    adb: adb_lib.Adb, parts: payload.Payload, bundles: Sequence[Bundle], peers: Sequence[Path],
    wish: work.Wish, results: schema.Results, stop: threading.Event, position: int,
) -> None:  # fmt: skip
    """Everything on one device, from the first push to the last file removed."""

    def say(line):
        print(f"{adb.serial}: {line}", flush=True)

    device = phone.describe(adb)
    handset = Handset(adb, parts, FLAGS.device_dir, FLAGS.job_s, FLAGS.reconnect_s, say)
    try:
        say(handset.prepare())
        for bundle in bundles:
            say(f"{bundle.path}: {handset.check_goldens(bundle)}")
        name = device["name"]
        tasks = work.all_tasks(bundles, peers, name, DeviceEngine.name, wish)
        if FLAGS.benchmark_model:
            binary = Path(FLAGS.benchmark_model)
            tasks += foreign_tasks(bundles, peers, name, wish, binary, FLAGS.benchmark_flags)
        session = Session(handset, device, results, FLAGS.cool_down_s, say, stop, position)
        with phone.steady(adb) as fixed:
            session.burst(tasks, FLAGS.repeats, FLAGS.seed, fixed)
            if FLAGS.sustained_s:
                session.sustained(tasks, FLAGS.sustained_s, fixed)
    finally:
        if not FLAGS.keep:
            with contextlib.suppress(adb_lib.AdbError):  # gone; the next run cleans up
                handset.remove()


def side_by_side(
    devices: Sequence[adb_lib.Adb],
    measure: Callable[[adb_lib.Adb, threading.Event, int], None],
) -> list[str]:
    """Measures all devices at once, each in a thread of its own, and lets every one finish.

    Args:
      devices: which.
      measure: takes a device, an event that says when to stop, and the device's number.

    Returns:
      One line for each device that failed.
    """
    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(measure, adb, stop, n) for n, adb in enumerate(devices)]
        try:
            concurrent.futures.wait(futures)
        except KeyboardInterrupt:
            stop.set()  # each device finishes its repeat and is cleaned up
            raise
    found = [future.exception() for future in futures]
    for error in found:
        if error is not None and not isinstance(error, errors.UserError):
            raise error
    return [str(error) for error in found if error is not None]


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    program = adb_lib.find_adb(FLAGS.adb)
    chosen = [adb_lib.pick(program, serial) for serial in FLAGS.serial or [""]]
    if FLAGS.doctor:
        parts = payload.arm64()
        for adb in chosen:
            handset = Handset(adb, parts, FLAGS.device_dir)
            print("\n".join(check(adb, handset)))
            if not FLAGS.keep:
                handset.remove()
        return
    if not FLAGS.bundle and not FLAGS.peer:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/paper/int8")
    if FLAGS.benchmark_model and not Path(FLAGS.benchmark_model).is_file():
        what = files.what(FLAGS.benchmark_model)
        raise errors.UserError(
            f"--benchmark_model={FLAGS.benchmark_model} {what}; wanted a program"
        )
    if benchmark_model.split_flags(FLAGS.benchmark_flags) and not FLAGS.benchmark_model:
        raise errors.UserError("--benchmark_flags are those of a --benchmark_model; name it too")
    if not FLAGS.output:
        raise errors.UserError("--output is missing, for example --output=results/pixel")
    work.check_output(FLAGS)
    wish, peers = work.wish_of(FLAGS, most_threads=8), work.peers_of(FLAGS)
    bundles = [Bundle.load(path) for path in FLAGS.bundle]
    with schema.Results.held(FLAGS.output) as results:
        print("preparing what the device lacks (the first time fetches packages) …", flush=True)
        parts = payload.arm64()
        failed = side_by_side(
            chosen,
            lambda adb, *rest: measure_device(adb, parts, bundles, peers, wish, results, *rest),
        )
        if results.measurements:
            files.write_text(f"{FLAGS.output}.md", report.markdown(results.measurements))
            print(f"written: {FLAGS.output}.json and .md, {len(results.measurements)} repeats")
    if failed:
        raise errors.UserError("; ".join(failed))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
