r"""Builds every network of the zoo at paper scale, counts it, exports it past the gate, times it.

  python -m benchmarks.zoo --work_dir=runs/zoo
  python -m benchmarks.zoo --entries=f1_only,segmenter --output=

Weights are random and ranges observed on noise: what a network costs, how large its files are, how
long they take and whether it can be exported does not depend on them. Interrupted and started again,
it goes on where it was; the int8 graphs are timed at the end, one after another, which takes less than
a minute and wants an idle machine.
"""

import os
import statistics
import time
from pathlib import Path

from absl import flags

from benchmarks import pages, pipeline, untrained
from benchmarks.engines import ENGINES
from memvid_tf import errors, files
from memvid_tf.models import zoo

FLAGS = flags.FLAGS
PRECISIONS = ("int8", "float32")
# An empty memory adds nothing, and ranges begin with it: an average leaves that only slowly.
MEMORY_STEPS = 16
THREADS, RUNS, WARM_UP = 1, 30, 3


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_list("entries", [], "Only some. Example: --entries=interleaved,segmenter")
    flags.DEFINE_string("work_dir", "runs/zoo", "Results of each entry. Example: runs/zoo")
    flags.DEFINE_enum("engine", "runner", sorted(ENGINES), "What measures. Example: runner")
    flags.DEFINE_string(
        "output",
        "benchmarks/results/zoo",
        "Results, as PATH.json and PATH.md; none with an empty one. Example: results/zoo",
    )


def graphs(entry: zoo.Entry, precision: str) -> dict[str, bytes]:
    """The flatbuffers of an entry at paper scale, past the gate.

    Args:
      entry: of the zoo.
      precision: "int8" or "float32".

    Raises:
      GateError: if a graph is not one that an accelerator runs whole.
    """
    from memvid_tf.models.interleaved import InterleavedConfig
    from memvid_tf.models.zoo import costs

    task = costs.task(entry, entry.config)
    task.model = untrained.in_precision(task.model, precision)
    if isinstance(task.model, InterleavedConfig):
        return _interleaved(task, precision)
    return _windowed(task, precision) if hasattr(task, "windows") else _plain(task, precision)


def _interleaved(task, precision):
    import tensorflow as tf
    from official.core import config_definitions

    from export import bundle
    from memvid_tf.models import interleaved, policy
    from memvid_tf.tasks.trained import Trained

    network = untrained.observe(interleaved.build(task.model), 1, 2, steps=MEMORY_STEPS)
    decides = None
    if hasattr(task, "policy"):
        decides = policy.build_policy(network, task.policy)
        empty = network.initial_state(1)
        full = tf.nest.map_structure(lambda x: tf.random.uniform(x.shape, 0, 6, seed=0), empty)
        decides(full, empty, tf.ones([1, task.policy.history]), training=True)
    params = config_definitions.ExperimentConfig(task=task)
    trained = Trained(params, network, "random weights", 0, decides)
    return bundle.convert_graphs(trained, bundle.Options(precision=precision))


def _windowed(task, precision):
    from export import bundle, patchwork_bundle
    from memvid_tf.models.attentive import AttentiveNetwork

    model = AttentiveNetwork(task.model, task.windows, task.attention)
    untrained.observe(model.network, 1)
    untrained.observe_attention(model.attention)
    options = bundle.Options(precision=precision)
    return patchwork_bundle.convert_graphs(model.patchwork, options, model.attention)


def _plain(task, precision):
    from export import bundle, single_frame_bundle
    from memvid_tf.models.patchwork import NETWORKS

    network = untrained.observe(NETWORKS[type(task.model)](task.model), 1)
    return single_frame_bundle.convert_graphs(network, bundle.Options(precision=precision))


def measured(entry: zoo.Entry, folder: str) -> dict:
    """What is known of an entry once it is built: counts, bytes of its graphs, and seconds.

    Args:
      entry: of the zoo.
      folder: in which the int8 graphs are left, to be timed.
    """
    from memvid_tf.models.zoo import costs

    start = time.monotonic()
    rows = [row._asdict() for row in costs.costs(entry)]
    sizes = {}
    for precision in PRECISIONS:
        found = graphs(entry, precision)
        sizes[precision] = {name: len(content) for name, content in found.items()}
        if precision == "int8":
            for name, content in found.items():
                files.write_bytes(graph_path(folder, name), content)
    return {"costs": rows, "bytes": sizes, "seconds": time.monotonic() - start}


def graph_path(folder: str, name: str) -> str:
    """Where a graph of an entry is left."""
    return os.path.join(folder, f"{name}.tflite")


def latencies(folder: str, names, engine: str) -> dict[str, float]:
    """Median milliseconds of the call of each graph that an ordinary frame needs, on one thread.

    Args:
      folder: of `measured`.
      names: of the graphs.
      engine: a name in `engines.ENGINES`.
    """
    from export.bundle import SIGNATURES

    run, found = ENGINES[engine](), {}
    for name in names:
        path, (signature, *_) = Path(graph_path(folder, name)), SIGNATURES.get(name, (None,))
        timed = run.graph(path, signature, THREADS, RUNS, WARM_UP, {})
        found[name] = statistics.median(timed["latency_us"]) / 1e3
    return found


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    rows = []
    for name, found in result["entries"].items():
        entry = zoo.find(name)
        counted = "; ".join(
            f"{row['what']} {row['multiply_adds'] / 1e6:.1f}" for row in found["costs"]
        )
        size = [f"{sum(found['bytes'][precision].values()) / 1e6:.2f}" for precision in PRECISIONS]
        timed = ", ".join(f"{graph} {ms:.2f}" for graph, ms in found["latency_ms"].items())
        seconds = f"{found['seconds']:.0f}"
        rows.append([name, entry.paper, entry.reported, counted, *size, timed, seconds])
    total = sum(found["seconds"] for found in result["entries"].values())
    machine = result["provenance"]["machine"]
    header = [
        "entry", "paper", "the paper reports", "multiply-adds counted here, M", "int8, MB",
        "float32, MB", "int8 graphs, ms", "seconds to build",
    ]  # fmt: skip
    return "\n".join(
        [
            "# The zoo at paper scale",
            "",
            f"{len(rows)} entries, each built, counted, and exported in int8 and float32; every "
            f"graph passed the gate. Random weights. {total / 60:.0f} minutes in all. Times are "
            f"medians of {RUNS} calls on one thread, engine {result['engine']}, load "
            f"{result['load_average']:.2f} before. "
            f"{machine['processor']}, {machine['cores']} cores, {result['provenance']['date']}.",
            "",
            tabulate(rows, header, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    wanted = [zoo.find(name) for name in FLAGS.entries] or zoo.ENTRIES
    from tqdm import tqdm

    from memvid_tf import provenance

    found = {}
    for number, entry in enumerate(wanted, 1):
        folder = os.path.join(FLAGS.work_dir, entry.name)
        path = os.path.join(folder, "measured.json")
        title = f"[{number}/{len(wanted)}] {entry.name}"
        if not os.path.exists(path):
            print(title, flush=True)
            files.write_json(path, measured(entry, folder))
        else:
            print(f"{title}: there already", flush=True)
        found[entry.name] = pipeline.read(path)
    load_average = os.getloadavg()[0]
    for name, entry in tqdm(found.items(), desc="timing", unit="network"):
        names = entry["bytes"]["int8"]
        entry["latency_ms"] = latencies(os.path.join(FLAGS.work_dir, name), names, FLAGS.engine)
    result = {
        "entries": found,
        "engine": FLAGS.engine,
        "load_average": load_average,
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
