"""What `benchmarks.host` and `benchmarks.device` measure: every graph and every schedule of the
bundles, and other people's models, for each number of threads."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from benchmarks import measurements as schema
from benchmarks.engines import Engine
from benchmarks.runner import schedules
from memvid_tf import errors, files, paths
from memvid_tf.runtime.bundle import Bundle, file_entry

WARM_UP = 20
RECORDED_FRAMES = 16


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to measure, again and again.

    Attributes:
      setting: of the measurement.
      precision: of the bundle, None of a peer.
      tau: of the schedule.
      hashes: of the model files.
      cores: that it keeps busy.
      run: measures once with an engine and returns its result.
    """

    setting: schema.Setting
    precision: str | None
    tau: int | None
    hashes: dict[str, str]
    cores: int
    run: Callable[[Engine], dict]


@dataclasses.dataclass(frozen=True)
class Wish:
    """How much is measured.

    Attributes:
      threads: numbers of threads of one invoke.
      runs: of a graph in one repeat.
      frames: of a schedule in one repeat.
      tau: of the schedules that have one.
      fps: frame rate of the schedules, 0 for full speed.
      seed: of the frames.
    """

    threads: Sequence[int]
    runs: int = 50
    frames: int = 300
    tau: int = 9
    fps: float = 0.0
    seed: int = 0


def define_flags() -> None:
    """The flags that both programs have."""
    flags.DEFINE_multi_string(
        "bundle", [], "Bundle to measure; may be given again. Example: --bundle=bundles/paper/int8"
    )
    flags.DEFINE_multi_string(
        "peer", [], "Any .tflite, measured beside the bundles. Example: --peer=ssdlite.tflite"
    )
    flags.DEFINE_list("threads", ["1", "2"], "Threads of one invoke. Example: --threads=1,2")
    flags.DEFINE_integer("frames", 300, "Measured frames of one repeat. Example: 300", 20, 10**6)
    flags.DEFINE_integer(
        "runs", 50, "Measured runs of a graph in one repeat. Example: 50", 1, 10**6
    )
    flags.DEFINE_integer(
        "repeats", 5, "Repeats of everything; they take turns. Example: 5", 1, 1000
    )
    flags.DEFINE_integer("tau", 9, "Interleave ratio. Example: --tau=9", 1, 10_000)
    flags.DEFINE_float(
        "fps", 0.0, "Frame rate of the schedules; 0 is full speed. Example: 30", 0.0, 1e4
    )
    flags.DEFINE_integer("seed", 0, "Seed of frames and order. Example: --seed=0", 0, 2**32 - 1)
    flags.DEFINE_string(
        "output", "", "Results, as PATH.json and PATH.md. Example: benchmarks/results/host_paper"
    )


def wish_of(values: flags.FlagValues, most_threads: int) -> Wish:
    """What the flags ask for.

    Raises:
      UserError: a number of threads that is none, or more than the most.
    """
    for word in values.threads:
        if not re.fullmatch("[0-9]{1,3}", word) or not 1 <= int(word) <= most_threads:
            raise errors.UserError(f"--threads={word[:20]!r} is not in 1..{most_threads}")
    if not values.threads:
        raise errors.UserError("--threads is empty, for example --threads=1,2")
    threads = list(dict.fromkeys(map(int, values.threads)))
    return Wish(threads, values.runs, values.frames, values.tau, values.fps, values.seed)


def check_output(values: flags.FlagValues) -> None:
    """Refuses an --output whose two files cannot be written, before anything is measured.

    Raises:
      UserError: that.
    """
    for suffix in (".json", ".md"):
        if values.output:
            paths.check_output("output", f"{values.output}{suffix}")


def peers_of(values: flags.FlagValues) -> list[Path]:
    """The models that --peer names.

    Raises:
      UserError: one is not there, or is named twice.
    """
    seen = set()
    for name in values.peer:
        if not Path(name).is_file():
            raise errors.UserError(f"--peer={name} {files.what(name)}; wanted a .tflite")
        if Path(name).resolve() in seen:
            raise errors.UserError(f"--peer={name} is given twice; once is enough")
        seen.add(Path(name).resolve())
    return [Path(name) for name in values.peer]


def peer_names(peers: Sequence[Path]) -> list[str]:
    """A name for each model: its stem, or as much of its path as makes it the only one."""
    paths = [path.resolve() for path in peers]

    def name(path):
        ends = [path.stem, *("/".join(path.parts[-n:]) for n in range(1, len(path.parts)))]
        others = [other for other in paths if other != path]
        return next(
            end
            for end in ends
            if not any(str(other).endswith(f"/{end}") or other.stem == end for other in others)
        )

    return [name(path) for path in paths]


def all_tasks(
    bundles: Sequence[Bundle], peers: Sequence[Path], device: str, engine: str, wish: Wish
) -> list[Task]:
    """Everything, on one device with one engine."""
    tasks = []
    for threads in wish.threads:
        for bundle, subject in zip(bundles, subjects(bundles)):
            where = (bundle, subject, device, engine, threads, wish)
            tasks += [*graph_tasks(*where), *schedule_tasks(*where)]
        for path, subject in zip(peers, peer_names(peers)):
            tasks.append(peer_task(path, subject, device, engine, threads, wish))
    return tasks


def graph_tasks(
    bundle: Bundle, subject: str, device: str, engine: str, threads: int, wish: Wish
) -> list[Task]:
    """Every call of a bundle, on its golden inputs."""
    tasks = []
    for golden in bundle.manifest.golden:
        path = bundle.graph_path(golden.graph)

        def run(engine, path=path, golden=golden):
            inputs = bundle.read_golden(golden)[0]
            return engine.graph(path, golden.signature, threads, wish.runs, WARM_UP, inputs)

        name = f"{golden.graph}/{golden.signature}"
        setting = schema.Setting(device, subject, "graph", name, threads, engine)
        file = bundle.manifest.graphs[golden.graph].file
        hashes = {file: bundle.manifest.files[file].sha256}
        tasks.append(Task(setting, bundle.manifest.precision, None, hashes, threads, run))
    return tasks


def schedule_tasks(
    bundle: Bundle, subject: str, device: str, engine: str, threads: int, wish: Wish
) -> list[Task]:
    """Every schedule that the bundle can run. What a policy decides on random frames means nothing;
    what it costs does."""
    manifest = bundle.manifest
    frames = schedules.random_frames(bundle, RECORDED_FRAMES, wish.seed)
    hashes = {graph.file: manifest.files[graph.file].sha256 for graph in manifest.graphs.values()}
    tasks = []
    for name in schedules.names(bundle):
        tau = wish.tau if name in ("sync", "async") else None
        how = schedules.ScheduleSetting(name, tau, threads, wish.frames, WARM_UP, wish.fps)

        def run(engine, how=how):
            return engine.schedule(bundle, how, frames)

        label = name if tau is None else f"{name} τ={tau}"
        setting = schema.Setting(
            device, subject, "schedule", label, threads, engine, "burst", wish.fps
        )
        cores = threads + how.asynchronous
        tasks.append(Task(setting, manifest.precision, tau, hashes, cores, run))
    return tasks


def peer_task(
    path: Path, subject: str, device: str, engine: str, threads: int, wish: Wish
) -> Task:
    """Somebody's model, one call a frame."""
    setting = schema.Setting(device, subject, "graph", "whole model", threads, engine)
    hashes = {path.name: file_entry(path).sha256}

    def run(engine):
        return engine.graph(path, None, threads, wish.runs, WARM_UP, {})

    return Task(setting, None, None, hashes, threads, run)


def subjects(bundles: Sequence[Bundle]) -> list[str]:
    """A name for each bundle: its own, its precision where that is not said, and nothing twice."""
    names = []
    for bundle in bundles:
        manifest = bundle.manifest
        name = manifest.name
        name = name if manifest.precision in name else f"{name} {manifest.precision}"
        if name in names:
            raise errors.UserError(
                f"--bundle={bundle.path}: another bundle is called {name!r} too; measure it into "
                "an --output of its own"
            )
        names.append(name)
    return names
