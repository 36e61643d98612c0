r"""Host latency of a whole Patchwork step over the plain network on the full frame (PW figures 6, 8).

  python -m benchmarks.windows_host --work_dir=runs/windows_host \
    --output=benchmarks/results/windows_host

Paper scale: MobileNetV2-SSDLite at 384 px, in windows of a quarter and of a sixteenth of the frame,
int8 and float. Weights are random, since latency does not depend on them; ranges are observed on
noise. A step is everything between a frame and the heads of the full frame: crop, gather of the
halos, body, scatter, tail; then attention, which decides about the next frame. Everything takes
turns, in an order that is shuffled every round: ratios are what to read.
"""

import functools
import os
import random
import statistics
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks import pages, untrained
from benchmarks.engines import ENGINES
from benchmarks.runner import schedules
from memvid_tf import errors
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
IMAGE_SIZE = (384, 384)  # PW 4
WINDOWS = {"1/4": (4, 2), "1/16": (4, 1)}
PRECISIONS = ("int8", "float32")
FRAMES = 4  # that the schedules go through again and again
WARM_UP = 10
# What a step should cost at most, as a share of the plain network (derived in shared design).
TARGETS = {("int8", "1/4"): 0.33, ("float32", "1/4"): 0.38}
TARGETS |= {("int8", "1/16"): 0.125, ("float32", "1/16"): 0.18}


def path_of(work_dir: str, precision: str, share: str) -> str:
    """Folder of a bundle."""
    return os.path.join(work_dir, f"{precision}_{share.replace('/', '_')}")


def plain_of(work_dir: str, precision: str) -> str:
    """File of the plain network."""
    return os.path.join(work_dir, f"plain_{precision}.tflite")


def write_graphs(work_dir: str, precision: str) -> None:
    """Writes what is missing of a precision: the plain network and its bundles."""
    missing = [
        share
        for share in WINDOWS
        if not os.path.exists(os.path.join(path_of(work_dir, precision, share), "manifest.json"))
    ]
    plain = plain_of(work_dir, precision)
    if not missing and os.path.exists(plain):
        return
    from export import bundle, patchwork_bundle
    from memvid_tf import files
    from memvid_tf.models import single_frame
    from memvid_tf.models.attention import AttentionConfig
    from memvid_tf.models.attentive import build_attention
    from memvid_tf.models.patchwork import Patchwork
    from memvid_tf.runtime.manifest import Checkpoint
    from memvid_tf.windows import Windows

    config = single_frame.SingleFrameConfig(image_size=IMAGE_SIZE)
    network = single_frame.build(untrained.in_precision(config, precision))
    untrained.observe(network, 1)
    if not os.path.exists(plain):
        content = untrained.flatbuffer(network, precision)
        files.write_bytes(plain, content)
    for share in missing:
        model = Patchwork(network, Windows(*WINDOWS[share]))
        attention = untrained.observe_attention(build_attention(model, AttentionConfig()))
        labels = tuple(f"class_{k}" for k in range(network.config.num_classes))
        source = bundle.Source({}, labels, Checkpoint("random weights", 0))
        options = bundle.Options(precision=precision)
        path = path_of(work_dir, precision, share)
        patchwork_bundle.write(model, source, options, path, attention)


class Turns:
    """What is measured, each a function that returns milliseconds by name.

    Args:
      work_dir: of `write_graphs`.
      engine: a name in `engines.ENGINES`.
      runs: measured frames of a turn.
    """

    def __init__(self, work_dir: str, engine: str, runs: int):
        self._engine, self._runs = ENGINES[engine](), runs
        self.ways = {}
        for precision in PRECISIONS:
            plain = Path(plain_of(work_dir, precision))
            self.ways[precision, None] = functools.partial(self._plain, plain)
            for share in WINDOWS:
                bundle = Bundle.load(path_of(work_dir, precision, share))
                frames = schedules.random_frames(bundle, FRAMES, seed=0)
                self.ways[precision, share] = functools.partial(self._step, bundle, frames)

    def _graph_ms(self, path: Path) -> float:
        found = self._engine.graph(path, None, 1, self._runs, WARM_UP, {})
        return statistics.median(found["latency_us"]) / 1e3

    def _plain(self, path: Path) -> dict[str, float]:
        """The plain network on full frames."""
        return {"step": self._graph_ms(path)}

    def _step(self, bundle: Bundle, frames: list[np.ndarray]) -> dict[str, float]:
        """Windows in turn, and attention; without post-processing, which the plain network lacks."""
        how = schedules.ScheduleSetting("scanning", None, 1, self._runs, WARM_UP)
        found = self._engine.schedule(bundle, how, frames)
        means = found["mean_us"]
        step = statistics.median(found["latency_us"]) - means["post"]
        return {
            "step": step / 1e3,
            "graphs": (means["extract"] + means["memory"]) / 1e3,
            "attention": self._graph_ms(bundle.graph_path("attention")),
        }


def measure(work_dir: str, engine: str, rounds: int, runs: int) -> list[dict]:
    """Rows of medians and ratios; see `Turns`.

    Args:
      work_dir: of `write_graphs`.
      engine: what measures.
      rounds: times that everything takes its turn.
      runs: measured frames of a turn.
    """
    from tqdm import tqdm

    ways = Turns(work_dir, engine, runs).ways
    found = {key: [] for key in ways}
    order, shuffle = list(ways), random.Random(0)
    for _ in tqdm(range(rounds), desc="measuring", unit="round"):
        shuffle.shuffle(order)
        for key in order:
            found[key].append(ways[key]())
    return rows_of(found)


def rows_of(found: dict[tuple[str, str | None], list[dict[str, float]]]) -> list[dict]:
    """A row for each precision and window, of what every round found."""
    rows = []
    for (precision, share), steps in found.items():
        if share is None:
            continue
        pairs = list(zip(steps, found[precision, None]))
        ratios = [own["step"] / plain["step"] for own, plain in pairs]
        with_attention = [(o["step"] + o["attention"]) / p["step"] for o, p in pairs]
        rows.append(
            {
                "precision": precision,
                "windows": share,
                "plain_ms": statistics.median(p["step"] for _, p in pairs),
                "step_ms": statistics.median(o["step"] for o in steps),
                "graphs_ms": statistics.median(o["graphs"] for o in steps),
                "attention_ms": statistics.median(o["attention"] for o in steps),
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
                "ratio_with_attention": statistics.median(with_attention),
                "target": TARGETS[precision, share],
                "ideal": 1 / int(share.partition("/")[2]),
            }
        )
    return rows


def markdown(result: dict) -> str:
    """The page."""
    from tabulate import tabulate

    rows = [
        [
            r["precision"],
            r["windows"],
            f"{r['plain_ms']:.2f}",
            f"{r['step_ms']:.2f}",
            f"{r['graphs_ms']:.2f}",
            f"{r['ratio']:.3f} ({r['ratio_least']:.3f} to {r['ratio_most']:.3f})",
            f"{r['ratio_with_attention']:.3f}",
            f"{r['target']:.3f}",
            f"{r['ideal']:.4f}",
        ]
        for r in result["rows"]
    ]
    header = ["", "windows", "plain ms", "step ms", "in graphs ms", "step / plain"]
    header += ["with attention", "wanted at most", "ideal"]
    machine = result["provenance"]["machine"]
    return "\n".join(
        [
            "# Patchwork steps on the host",
            "",
            f"MobileNetV2-SSDLite at 384 px, one thread, engine {result['engine']}; medians of "
            f"{result['rounds']} rounds of {result['runs']} frames (least to most of the rounds). "
            "A step is crop, gather, body, scatter and tail; heads are not post-processed. "
            f"{machine['processor']}, load {result['load_average']:.2f} before, "
            f"{result['provenance']['date']}, {result['provenance']['code_version']}.",
            "",
            tabulate(rows, header, tablefmt="github"),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    from memvid_tf import provenance

    os.makedirs(FLAGS.work_dir, exist_ok=True)
    for precision in PRECISIONS:
        write_graphs(FLAGS.work_dir, precision)
    load_average = os.getloadavg()[0]
    result = {
        "schema_version": 1,
        "rounds": FLAGS.rounds,
        "runs": FLAGS.runs,
        "load_average": load_average,
        "engine": FLAGS.engine,
        "rows": measure(FLAGS.work_dir, FLAGS.engine, FLAGS.rounds, FLAGS.runs),
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    flags.DEFINE_string("work_dir", "runs/windows_host", "Graphs. Example: runs/windows_host")
    flags.DEFINE_integer("rounds", 15, "Times that everything takes its turn. Example: 15", 1)
    flags.DEFINE_integer("runs", 30, "Measured frames of a turn. Example: 30", 3)
    flags.DEFINE_enum("engine", "runner", sorted(ENGINES), "What measures. Example: runner")
    flags.DEFINE_string(
        "output",
        "",
        "Results, as PATH.json and PATH.md. Example: benchmarks/results/windows_host",
    )
    errors.run(main)
