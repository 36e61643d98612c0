r"""Measures bundles on this machine: every graph, and every schedule with its real state.

  python -m benchmarks.host --bundle=bundles/paper/int8 --bundle=bundles/paper/float32 \
    --peer=ssdlite.tflite --output=benchmarks/results/host_paper

Everything is measured in one run in which the things compared take turns in a shuffled order, each
in a process of its own: medians and ratios are what to read. Every repeat is written when it is
done; the same command again goes on after the last one. Preparing a frame is not part of its
latency, since a camera pipeline does it elsewhere: resizing is not done at all, and storing the
pixels (for f1 their box mean) as the graph's input is reported as `prepare_us`.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks import measurements as schema
from benchmarks import report
from benchmarks import tasks as work
from benchmarks.engines import ENGINES, Engine
from memvid_tf import errors, files, provenance
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
FIXTURES = "MEMVID_FIXTURES"


def define_flags() -> None:
    """The flags of this program."""
    work.define_flags()
    flags.DEFINE_bool(
        "fixtures", True,
        f"Also measure the models below ${FIXTURES}, or ../shared/fixtures. Example: --nofixtures",
    )  # fmt: skip
    flags.DEFINE_enum("engine", "runner", sorted(ENGINES), "What measures. Example: runner")


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
    tasks: Sequence[work.Task], engine: Engine, repeats: int, seed: int, results: schema.Results,
    device: dict,
) -> None:  # fmt: skip
    """Measures everything that the results do not hold yet, in turns and in shuffled order."""
    from tqdm import tqdm

    rng, measuring = random.Random(seed), engine.hashes()
    for task in tasks:  # before minutes of measuring
        results.has(task.setting, 0, task.hashes | measuring)
    with tqdm(total=repeats * len(tasks), desc="measuring", unit="run") as bar:
        for repeat in range(repeats):
            for task in rng.sample(list(tasks), len(tasks)):
                hashes = task.hashes | measuring
                if not results.has(task.setting, repeat, hashes):
                    before = {"load_average": os.getloadavg()[0]}
                    result = task.run(engine)
                    results.append(
                        schema.Measurement(
                            task.setting, repeat, task.precision, task.tau, device, hashes,
                            {"before": before, "after": {"load_average": os.getloadavg()[0]}},
                            result, provenance.now(), provenance.code_version(),
                        )
                    )  # fmt: skip
                bar.update(1)


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle and not FLAGS.peer:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/tiny")
    work.check_output(FLAGS)
    wish = work.wish_of(FLAGS, os.cpu_count() or 1)
    engine, device, peers = ENGINES[FLAGS.engine](), describe_host(), work.peers_of(FLAGS)
    if FLAGS.fixtures:
        found, folder = fixture_models(dict(os.environ))
        peers += found
        if not found:
            print(f"no models of others at {folder}; set {FIXTURES} to measure them too")
    bundles = [Bundle.load(path) for path in FLAGS.bundle]
    tasks = work.all_tasks(bundles, peers, device["name"], engine.name, wish)
    with schema.Results.held(FLAGS.output) as results:
        measure(tasks, engine, FLAGS.repeats, FLAGS.seed, results, device)
        text = report.markdown(results.measurements)
        if FLAGS.output:
            files.write_text(f"{FLAGS.output}.md", text)
    print(text)
    if FLAGS.output:
        print(f"written: {FLAGS.output}.json and .md")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
