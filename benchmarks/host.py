r"""Measures bundles on this machine: every graph, and every schedule with its real state.

  python -m benchmarks.host --bundle=bundles/paper/int8 --bundle=bundles/paper/float32 \
    --peer=ssdlite.tflite --output=benchmarks/results/host_paper

Everything is measured in one run in which the things compared take turns in a shuffled order, each
in a process of its own: medians and ratios are what to read. Every repeat is written when it is
done; the same command again goes on after the last one. Preparing a frame (resizing) is not part of
a frame, since a camera pipeline does it elsewhere.
"""

import dataclasses
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from benchmarks import measurements as schema
from benchmarks import report
from benchmarks.engines import ENGINES, Engine
from benchmarks.runner import plan
from memvid_tf import errors, files, provenance
from memvid_tf.runtime.bundle import Bundle, file_entry

FLAGS = flags.FLAGS
FIXTURES = "MEMVID_FIXTURES"
WARM_UP = 20


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to measure, again and again.

    Attributes:
      setting: of the measurement.
      precision: of the bundle, None of a peer.
      tau: of the schedule.
      hashes: of the model files.
      run: measures once and returns an engine's result.
    """

    setting: schema.Setting
    precision: str | None
    tau: int | None
    hashes: dict[str, str]
    run: Callable[[], dict]


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_multi_string(
        "bundle", [], "Bundle to measure; may be given again. Example: --bundle=bundles/paper/int8"
    )
    flags.DEFINE_multi_string(
        "peer", [], "Any .tflite, measured beside the bundles. Example: --peer=ssdlite.tflite"
    )
    flags.DEFINE_bool(
        "fixtures", True,
        f"Also measure the models below ${FIXTURES}, or ../shared/fixtures. Example: --nofixtures",
    )  # fmt: skip
    flags.DEFINE_list("threads", ["1", "2"], "Threads of one invoke. Example: --threads=1,2")
    flags.DEFINE_integer("frames", 300, "Measured frames of one repeat. Example: 300", 20)
    flags.DEFINE_integer("runs", 50, "Measured runs of a graph in one repeat. Example: 50", 1)
    flags.DEFINE_integer("repeats", 5, "Repeats of everything; they take turns. Example: 5", 1)
    flags.DEFINE_integer("tau", 9, "Interleave ratio. Example: --tau=9", 1)
    flags.DEFINE_float("fps", 0.0, "Frame rate of the schedules; 0 is full speed. Example: 30", 0.0)
    flags.DEFINE_integer("seed", 0, "Seed of frames and order. Example: --seed=0", 0)
    flags.DEFINE_enum("engine", "runner", sorted(ENGINES), "What measures. Example: runner")
    flags.DEFINE_string(
        "output", "", "Results, as PATH.json and PATH.md. Example: benchmarks/results/host_paper"
    )


def graph_tasks(
    bundle: Bundle, subject: str, device: str, engine: Engine, threads: int, runs: int
) -> list[Task]:
    """Every call of a bundle, on its golden inputs."""
    tasks = []
    for golden in bundle.manifest.golden:
        path = bundle.graph_path(golden.graph)
        inputs = bundle.read_golden(golden)[0]

        def run(path=path, signature=golden.signature, inputs=inputs):
            return engine.graph(path, signature, threads, runs, WARM_UP, inputs)

        name = f"{golden.graph}/{golden.signature}"
        setting = schema.Setting(device, subject, "graph", name, threads, engine.name)
        hashes = {path.name: bundle.manifest.files[path.name].sha256}
        tasks.append(Task(setting, bundle.manifest.precision, None, hashes, run))
    return tasks


def schedule_tasks(
    bundle: Bundle, subject: str, device: str, engine: Engine, threads: int, frames: int, tau: int,
    fps: float, seed: int,
) -> list[Task]:  # fmt: skip
    """Every schedule that the bundle can run; none of another system than the interleaved detector.
    What a policy decides on random frames means nothing; what it costs does."""
    if bundle.manifest.system != "interleaved":
        return []
    images = plan.random_frames(bundle, 16, seed)
    names = ["f0", "f1", "sync", "async"]
    if bundle.manifest.policy is not None:
        names += ["adaptive", "adaptive+async"]
    hashes = {
        graph.file: bundle.manifest.files[graph.file].sha256
        for graph in bundle.manifest.graphs.values()
    }
    tasks = []
    for name in names:
        chosen = tau if name in ("sync", "async") else None
        wanted = plan.ScheduleSetting(name, chosen, threads, frames, WARM_UP, fps)
        label = name if chosen is None else f"{name} τ={chosen}"
        setting = schema.Setting(
            device, subject, "schedule", label, threads, engine.name, "burst", fps
        )

        def run(wanted=wanted):
            return engine.schedule(bundle, wanted, images)

        tasks.append(Task(setting, bundle.manifest.precision, chosen, hashes, run))
    return tasks


def peer_task(path: Path, device: str, engine: Engine, threads: int, runs: int) -> Task:
    """Somebody's model, one call a frame."""
    setting = schema.Setting(device, path.stem, "graph", "whole model", threads, engine.name)
    hashes = {path.name: file_entry(path).sha256}
    return Task(
        setting, None, None, hashes,
        lambda: engine.graph(path, None, threads, runs, WARM_UP, {}),
    )  # fmt: skip


def fixture_models(environment: dict[str, str]) -> tuple[list[Path], str]:
    """Other people's models that lie beside the repository, and where they were looked for."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    folder = Path(environment.get(FIXTURES, beside)) / "tflite"
    return sorted(folder.glob("*/*.tflite")), str(folder)


def describe_host() -> dict:
    """This machine, as results name it."""
    machine = provenance.describe()["machine"]
    return {"name": f"host: {machine['processor']}", "physical": True, **machine}


def measure(
    tasks: Sequence[Task], repeats: int, seed: int, results: schema.Results, device: dict,
    engine_hashes: dict[str, str],
) -> None:  # fmt: skip
    """Measures everything that the results do not hold yet, in turns and in shuffled order."""
    from tqdm import tqdm

    rng = random.Random(seed)
    with tqdm(total=repeats * len(tasks), desc="measuring", unit="run") as bar:
        for repeat in range(repeats):
            for task in rng.sample(list(tasks), len(tasks)):
                hashes = task.hashes | engine_hashes
                if not results.has(task.setting, repeat, hashes):
                    before = {"load_average": os.getloadavg()[0]}
                    result = task.run()
                    results.append(
                        schema.Measurement(
                            task.setting, repeat, task.precision, task.tau, device, hashes,
                            {"before": before, "after": {"load_average": os.getloadavg()[0]}},
                            result, provenance.now(), provenance.code_version(),
                        )
                    )  # fmt: skip
                bar.update(1)


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


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle and not FLAGS.peer:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/tiny")
    threads = thread_counts(FLAGS.threads, os.cpu_count() or 1)
    engine, device = ENGINES[FLAGS.engine](), describe_host()
    peers = [Path(path) for path in FLAGS.peer]
    for path in peers:
        if not path.is_file():
            raise errors.UserError(f"--peer={path}: no such file; wanted a .tflite")
    if FLAGS.fixtures:
        found, folder = fixture_models(dict(os.environ))
        peers += found
        if not found:
            print(f"no models of others at {folder}; set {FIXTURES} to measure them too")
    bundles = [Bundle.load(path) for path in FLAGS.bundle]
    results = schema.Results(None)
    if FLAGS.output:
        results = schema.Results.load(f"{FLAGS.output}.json", missing_ok=True)
    tasks = []
    for count in threads:
        for bundle, subject in zip(bundles, subjects(bundles)):
            where = (bundle, subject, device["name"], engine, count)
            tasks += graph_tasks(*where, FLAGS.runs)
            tasks += schedule_tasks(*where, FLAGS.frames, FLAGS.tau, FLAGS.fps, FLAGS.seed)
        tasks += [peer_task(path, device["name"], engine, count, FLAGS.runs) for path in peers]
    measure(tasks, FLAGS.repeats, FLAGS.seed, results, device, engine.hashes())
    text = report.markdown(results.measurements)
    print(text)
    if FLAGS.output:
        files.write_text(f"{FLAGS.output}.md", text)
        print(f"written: {FLAGS.output}.json and .md")


def thread_counts(words: Sequence[str], most: int) -> list[int]:
    """The numbers of --threads."""
    for word in words:
        if not word.isdigit() or not 1 <= int(word) <= most:
            raise errors.UserError(f"--threads={word!r} is not in 1..{most}")
    return [int(word) for word in words]


if __name__ == "__main__":
    define_flags()
    errors.run(main)
