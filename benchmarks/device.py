r"""Measures bundles on Android devices over adb.

  python -m benchmarks.device --bundle=bundles/paper/int8 --output=results/pixel
  python -m benchmarks.device --doctor                # only says what is found, and what is wrong

A device is checked, given what it lacks, made to compute the recorded golden outputs and only then
measured, in shuffled order, cool, on its fastest cores. Every repeat is written when it is done: the
same command again goes on after the last one. Afterwards its settings are put back and its folder is
removed (--keep leaves it, and the next push sends only what changed).
"""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from benchmarks import adb as adb_lib
from benchmarks import benchmark_model, host, payload, phone, report
from benchmarks import measurements as schema
from benchmarks.handset import GoldenMismatch, Handset
from benchmarks.runner import local, plan
from memvid_tf import errors, files, provenance
from memvid_tf.runtime.bundle import Bundle, file_entry

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to measure on a device."""

    setting: schema.Setting
    precision: str | None
    tau: int | None
    hashes: dict[str, str]
    cores: int
    run: Callable[[Handset, str | None], dict]


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_multi_string(
        "bundle", [], "Bundle to measure. Example: --bundle=bundles/paper/int8"
    )
    flags.DEFINE_multi_string("peer", [], "Any .tflite beside it. Example: --peer=ssdlite.tflite")
    flags.DEFINE_multi_string(
        "serial",
        [],
        "Device, may be given again; needed if there are several. Example: --serial=1A2B",
    )
    flags.DEFINE_string("adb", "", "adb program; else the one on PATH. Example: --adb=/opt/adb")
    flags.DEFINE_bool("doctor", False, "Only check devices. Example: --doctor")
    flags.DEFINE_list("threads", ["1", "2"], "Threads of one invoke. Example: --threads=1,2")
    flags.DEFINE_integer("frames", 300, "Measured frames of one repeat. Example: 300", 20)
    flags.DEFINE_integer("runs", 50, "Measured runs of a graph in one repeat. Example: 50", 1)
    flags.DEFINE_integer("repeats", 5, "Repeats of everything. Example: --repeats=5", 1)
    flags.DEFINE_integer("tau", 9, "Interleave ratio. Example: --tau=9", 1)
    flags.DEFINE_float("fps", 0.0, "Frame rate of schedules; 0 is full speed. Example: 30", 0.0)
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
        "device_dir", "/data/local/tmp/memvid", "Folder on the device. Example: /data/local/tmp/x"
    )
    flags.DEFINE_bool("keep", False, "Leave the folder on the device. Example: --keep")
    flags.DEFINE_integer("seed", 0, "Seed of frames and order. Example: --seed=0", 0)
    flags.DEFINE_string("output", "", "Results, as PATH.json and PATH.md. Example: results/pixel")


def tasks_for(
    bundles: Sequence[Bundle], peers: Sequence[Path], device: str, threads: Sequence[int]
) -> list[Task]:
    """Everything that the flags ask for on one device, in burst mode."""
    tasks = []
    for count in threads:
        for bundle, subject in zip(bundles, host.subjects(bundles)):
            manifest = bundle.manifest
            for golden in manifest.golden:
                path = bundle.graph_path(golden.graph)
                raw = {name: (bundle.path / file).read_bytes()
                       for name, file in golden.inputs.items()}  # fmt: skip
                job = plan.graph(path, golden.signature, count, FLAGS.runs, host.WARM_UP, raw)
                setting = schema.Setting(
                    device, subject, "graph", f"{golden.graph}/{golden.signature}", count, "runner"
                )
                hashes = {path.name: manifest.files[path.name].sha256}
                tasks.append(Task(setting, manifest.precision, None, hashes, count, _runs(job)))
            tasks += _schedules(bundle, subject, device, count)
        for path in peers:
            job = plan.graph(path, None, count, FLAGS.runs, host.WARM_UP)
            setting = schema.Setting(device, path.stem, "graph", "whole model", count, "runner")
            hashes = {path.name: file_entry(path).sha256}
            tasks.append(Task(setting, None, None, hashes, count, _runs(job)))
        if FLAGS.benchmark_model:
            tasks += _foreign(bundles, peers, device, count)
    return tasks


def _schedules(bundle: Bundle, subject: str, device: str, count: int) -> list[Task]:
    manifest = bundle.manifest
    if manifest.system != "interleaved":
        return []
    images = plan.random_frames(bundle, 16, FLAGS.seed)
    hashes = {graph.file: manifest.files[graph.file].sha256 for graph in manifest.graphs.values()}
    names = [n for n in plan.SCHEDULES if manifest.policy is not None or "adaptive" not in n]
    tasks = []
    for name in names:
        tau = FLAGS.tau if name in ("sync", "async") else None
        wanted = plan.ScheduleSetting(name, tau, count, FLAGS.frames, host.WARM_UP, FLAGS.fps)
        job = plan.schedule(bundle, wanted, images)
        label = name if tau is None else f"{name} τ={tau}"
        setting = schema.Setting(
            device, subject, "schedule", label, count, "runner", "burst", FLAGS.fps
        )
        cores = count + name.endswith("async")
        tasks.append(Task(setting, manifest.precision, tau, hashes, cores, _runs(job)))
    return tasks


def _foreign(
    bundles: Sequence[Bundle], peers: Sequence[Path], device: str, count: int
) -> list[Task]:
    """The first signature of every graph, with the user's benchmark_model."""
    binary = Path(FLAGS.benchmark_model)
    graphs = [
        (subject, name, bundle.graph_path(name), bundle.manifest.precision)
        for bundle, subject in zip(bundles, host.subjects(bundles))
        for name in bundle.manifest.graphs
    ]
    graphs += [(path.stem, "whole model", path, None) for path in peers]
    tasks = []
    for subject, name, path, precision in graphs:

        def run(handset, mask, path=path):
            model = handset.push(path)
            call = f"./{handset.push(binary)}"
            command = benchmark_model.command(call, model, count, FLAGS.runs, FLAGS.benchmark_flags)
            return benchmark_model.parse(handset.call(command, mask))

        setting = schema.Setting(device, subject, "graph", name, count, "benchmark_model")
        hashes = {path.name: file_entry(path).sha256, binary.name: file_entry(binary).sha256}
        tasks.append(Task(setting, precision, None, hashes, count, run))
    return tasks


def _runs(job: plan.Job) -> Callable[[Handset, str | None], dict]:
    return lambda handset, mask: handset.run(job, mask)[0]


class Session:
    """Measuring on one device into one results file."""

    def __init__(
        self, handset: Handset, device: dict, results: schema.Results, hashes: dict[str, str],
        cool_down_s: float, say: Callable[[str], None],
    ):  # fmt: skip
        self._handset, self._device, self._results = handset, device, results
        self._hashes, self._cool_down_s, self._say = hashes, cool_down_s, say
        self._max_khz = phone.read_frequencies(handset.adb, "cpuinfo_max_freq")

    def measure(self, task: Task, repeat: int, fixed: bool, wait: bool = True) -> None:
        """One repeat, unless the results hold it."""
        hashes = task.hashes | self._hashes
        if self._results.has(task.setting, repeat, hashes):
            return
        adb = self._handset.adb
        before = (
            phone.wait_until_cool(adb, self._cool_down_s, self._say) if wait else phone.sensors(adb)
        )
        mask = phone.fastest_mask(self._max_khz, task.cores)
        result = task.run(self._handset, mask)
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

    def burst(self, tasks: Sequence[Task], repeats: int, seed: int, fixed: bool) -> None:
        """All repeats, in turns and in shuffled order, each on a cool device."""
        from tqdm import tqdm

        rng = random.Random(seed)
        name = self._device["name"]
        with tqdm(total=repeats * len(tasks), desc=name, unit="run") as bar:
            for repeat in range(repeats):
                for task in rng.sample(list(tasks), len(tasks)):
                    self.measure(task, repeat, fixed)
                    bar.update(1)

    def sustained(self, tasks: Sequence[Task], seconds: float, fixed: bool) -> None:
        """Every schedule again and again until it ran for so long, whatever the temperature
        becomes. What the results hold of it counts."""
        from tqdm import tqdm

        for task in tasks:
            if task.setting.kind != "schedule":
                continue
            warm = dataclasses.replace(
                task, setting=dataclasses.replace(task.setting, mode="sustained")
            )
            with tqdm(total=seconds, desc=f"sustained {task.setting.name}", unit="s") as bar:
                while (left := seconds - self._spent_s(warm)) > 0:
                    bar.update(seconds - left - bar.n)
                    repeat = self._count(warm)
                    self.measure(warm, repeat, fixed, wait=repeat == 0)

    def _count(self, task: Task) -> int:
        return sum(m.setting == task.setting for m in self._results.measurements)

    def _spent_s(self, task: Task) -> float:
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
    threads: Sequence[int], results: schema.Results,
) -> None:  # fmt: skip
    """Everything on one device, from the first push to the last file removed."""
    device = phone.describe(adb)
    handset = Handset(adb, parts, FLAGS.device_dir, FLAGS.job_s, FLAGS.reconnect_s, print)
    try:
        print(f"{device['name']}: {handset.prepare()}", flush=True)
        for bundle in bundles:
            print(f"{bundle.path}: {handset.check_goldens(bundle)}", flush=True)
        tasks = tasks_for(bundles, peers, device["name"], threads)
        session = Session(handset, device, results, parts.hashes, FLAGS.cool_down_s, print)
        with phone.steady(adb) as fixed:
            session.burst(tasks, FLAGS.repeats, FLAGS.seed, fixed)
            if FLAGS.sustained_s:
                session.sustained(tasks, FLAGS.sustained_s, fixed)
    finally:
        if not FLAGS.keep:
            with contextlib.suppress(adb_lib.AdbError):  # gone; the next run cleans up
                handset.remove()


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
    for name in filter(None, [*FLAGS.peer, FLAGS.benchmark_model]):
        if not Path(name).is_file():
            raise errors.UserError(f"{name}: no such file; wanted a .tflite or a benchmark_model")
    if not FLAGS.output:
        raise errors.UserError("--output is missing, for example --output=results/pixel")
    bundles = [Bundle.load(path) for path in FLAGS.bundle]
    results = schema.Results.load(f"{FLAGS.output}.json", missing_ok=True)
    threads = host.thread_counts(FLAGS.threads, 8)
    print("preparing what the device lacks (the first time fetches packages) …", flush=True)
    parts = payload.arm64()
    failed = []
    for adb in chosen:
        try:
            measure_device(adb, parts, bundles, [Path(p) for p in FLAGS.peer], threads, results)
        except (adb_lib.AdbError, phone.TooHot, phone.WrongDevice, GoldenMismatch,
                local.RunnerError) as error:  # fmt: skip
            failed.append(str(error))  # the other devices are measured all the same
    if results.measurements:
        files.write_text(f"{FLAGS.output}.md", report.markdown(results.measurements))
        print(f"written: {FLAGS.output}.json and .md, {len(results.measurements)} repeats")
    if failed:
        raise errors.UserError("; ".join(failed))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
