r"""Recommends a schedule, τ or policy, and threads for a wanted frame rate and latency bound.

  python -m benchmarks.plan --results=results/pixel.json --bundle=bundles/tiny --fps=30 \
    --latency_bound_ms=33 --data=data/synthetic

The latencies are medians of measured ones (`benchmarks.device` or `benchmarks.host`). The expected accuracy is
the streaming accuracy of the bundle with them: what it knows in time, as memvid_tf.evaluate
--streaming computes it. Of what fits, the most accurate is recommended, and among equals the one that
leaves the most time.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from absl import flags
from tabulate import tabulate

from benchmarks import measurements as schema
from memvid_tf import errors
from memvid_tf.evaluation import streaming
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAME_ACCURACY = 0.002  # mAP: less is noise of any evaluation that one has time for
WORKER = "async"


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to run the bundle.

    Attributes:
      mode: of `memvid_tf.evaluate`; "9" is the synchronous τ = 9.
      threads: of one invoke.
      typical_ms: of a frame, f1's where f0 runs on few.
      worst_ms: of a frame: f0's in turn, f1's beside a worker.
      mean_ms: in the long run.
      accuracy: streaming mAP at the frame rate.
    """

    mode: str
    threads: int
    typical_ms: float
    worst_ms: float
    mean_ms: float
    accuracy: float | None = None

    def fits(self, fps: float, bound_ms: float) -> bool:
        """Whether it keeps up with the camera and no frame takes longer than the bound."""
        return self.mean_ms <= 1e3 / fps and self.worst_ms <= bound_ms


def timing(mode: str, threads: int, latencies: streaming.Latencies, f0_share: float) -> Option:
    """The times of a mode.

    Args:
      mode: see `Option`.
      threads: of the measurement.
      latencies: medians.
      f0_share: part of the frames on which f0 ran.
    """
    policy = (latencies.policy_ms or 0.0) if mode.startswith("adaptive") else 0.0
    small, large = (
        latencies.extract_ms[name][0] + latencies.memory_ms[name] + policy for name in ("f1", "f0")
    )
    if mode.endswith(WORKER) or mode.startswith(WORKER):
        return Option(mode, threads, small, small, small)
    typical = large if f0_share > 0.5 else small
    worst = small if f0_share == 0 else large
    return Option(mode, threads, typical, worst, f0_share * large + (1 - f0_share) * small)


def recommend(
    options: Sequence[Option], fps: float, bound_ms: float
) -> tuple[Option | None, Option | None]:
    """The best option that fits and the runner-up; None where there is none."""
    fitting = [option for option in options if option.fits(fps, bound_ms)]
    first = _best(fitting)
    return first, _best([option for option in fitting if option is not first])


def _best(options: Sequence[Option]) -> Option | None:
    """The fastest of those whose accuracy is the best but for noise."""
    if not options:
        return None
    enough = max(option.accuracy for option in options) - SAME_ACCURACY
    good = [option for option in options if option.accuracy >= enough]
    return min(good, key=lambda option: (option.mean_ms, option.threads))


def settings_of(results: schema.Results, precision: str) -> list[int]:
    """Numbers of threads with which the bundle's precision was measured.

    Raises:
      UserError: it was not.
    """
    found = sorted({m.setting.threads for m in results.measurements if m.precision == precision})
    if not found:
        raise errors.UserError(
            f"--results={results.path} hold no measurement of a bundle in {precision}; measure it "
            "with python -m benchmarks.host or python -m benchmarks.device"
        )
    return found


def streaming_scores(
    bundle: str, data: str, results: str, threads: int, fps: float, modes: Sequence[str]
) -> dict[str, dict]:
    """What memvid_tf.evaluate --streaming says, by mode.

    Raises:
      UserError: it fails; names the command with which to look at it.
    """
    with tempfile.TemporaryDirectory(prefix="memvid_plan_") as folder:
        output = os.path.join(folder, "scores.json")
        bundle, results = os.path.abspath(bundle), os.path.abspath(results)
        command = ["-m", "memvid_tf.evaluate", f"--bundle={bundle}", "--streaming"]
        command += [f"--latency={results}", f"--fps={fps}", f"--latency_threads={threads}"]
        command += [f"--modes={','.join(modes)}"]
        command += [f"--input_path={os.path.abspath(data)}"] if data else []
        done = subprocess.run(
            [sys.executable, *command, f"--output={output}"],
            cwd=ROOT, stdout=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            raise errors.UserError(
                f"the evaluation ended with code {done.returncode}; alone: python "
                f"{shlex.join(command)}"
            )
        with open(output, encoding="utf-8") as file:
            return json.load(file)["modes"]


def options_for(
    latencies: Callable[[int], streaming.Latencies], threads: Sequence[int],
    score: Callable[[int], dict[str, dict]],
) -> list[Option]:  # fmt: skip
    """Every mode with every number of threads.

    Args:
      latencies: by number of threads.
      threads: to consider.
      score: streaming scores by mode, by number of threads.
    """
    found = []
    for count in threads:
        measured = latencies(count)
        for mode, scores in score(count).items():
            # Of the frames that were processed: frames left out cost nothing.
            share = scores["f0_share"] / (scores["processed_share"] or 1.0)
            option = timing(mode, count, measured, share)
            found.append(dataclasses.replace(option, accuracy=scores["mean_ap"]))
    return found


def advice(options: Sequence[Option], fps: float, bound_ms: float) -> str:
    """The table and the recommendation."""
    rows = [
        [o.mode, o.threads, f"{o.typical_ms:.2f}", f"{o.worst_ms:.2f}", f"{o.mean_ms:.2f}",
         f"{o.accuracy:.3f}", "yes" if o.fits(fps, bound_ms) else "no"]
        for o in options
    ]  # fmt: skip
    header = ["mode", "threads", "typical ms", "worst ms", "mean ms", "streaming mAP", "fits"]
    lines = [tabulate(rows, header, tablefmt="github", disable_numparse=True), ""]
    best, second = recommend(options, fps, bound_ms)
    wish = f"{fps:g} fps and at most {bound_ms:g} ms a frame"
    if best is None:
        nearest = min(options, key=lambda o: max(o.mean_ms * fps / 1e3, o.worst_ms / bound_ms))
        lines.append(
            f"nothing fits {wish}; nearest is --mode={nearest.mode} with {nearest.threads} "
            f"thread(s): {nearest.worst_ms:.2f} ms at worst, {1e3 / nearest.mean_ms:.1f} fps. "
            "A smaller depth multiplier or image, or a lower frame rate, would help"
        )
        return "\n".join(lines) + "\n"
    lines.append(
        f"for {wish}: --mode={best.mode} with {best.threads} thread(s), expected streaming mAP "
        f"{best.accuracy:.3f}"
    )
    if second is not None:
        lines.append(
            f"runner-up: --mode={second.mode} with {second.threads} thread(s), streaming mAP "
            f"{second.accuracy:.3f}"
        )
    return "\n".join(lines) + "\n"


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    for name in ("results", "bundle"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing; see the example in --help")
    bundle = Bundle.load(FLAGS.bundle)
    bundle.require_system("interleaved")  # there is no streaming accuracy of windows
    precision = bundle.manifest.precision
    results = schema.Results.load(FLAGS.results)
    modes = FLAGS.modes or ["f0", "1", "4", "9", "19", "async4", "async9", "async19"]
    if not FLAGS.modes and bundle.manifest.policy is not None:
        modes += ["adaptive", "adaptive+async"]
    bound = FLAGS.latency_bound_ms or 1e3 / FLAGS.fps

    def latencies(count):
        return streaming.read_latencies(FLAGS.results, precision, count, trace=False)

    def score(count):
        return streaming_scores(FLAGS.bundle, FLAGS.data, FLAGS.results, count, FLAGS.fps, modes)

    options = options_for(latencies, settings_of(results, precision), score)
    if any(not m.device["physical"] for m in results.measurements):
        print(
            "these times are of an emulated device: they are not latencies, and this is no advice"
        )
    print(advice(options, FLAGS.fps, bound), end="")


if __name__ == "__main__":
    flags.DEFINE_string("results", "", "Measured latencies. Example: --results=results/pixel.json")
    flags.DEFINE_string(
        "bundle", "", "The bundle that was measured. Example: --bundle=bundles/tiny"
    )
    flags.DEFINE_string("data", "", "Clips to score on; else the bundle's. Example: data/synthetic")
    flags.DEFINE_float("fps", 30.0, "Frame rate of the camera. Example: --fps=30", 0.1, 1e4)
    flags.DEFINE_float(
        "latency_bound_ms", 0.0, "Most that a frame may take; 0: the time between two. Example: 20",
        0.0,
    )  # fmt: skip
    flags.DEFINE_list("modes", [], "Modes to consider; else a range of τ. Example: f0,4,9,async9")
    errors.run(main)
