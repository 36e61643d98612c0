r"""Measures a bundle on this machine: every graph, and every schedule with its real state.

  python -m benchmarks.host --bundle=bundles/paper_int8 --float_bundle=bundles/paper_float32

All numbers of a results file come from one run, in which the things compared take turns: medians
and ratios are what to read. The preparation of frames (resizing) is measured apart, since a camera
pipeline does it elsewhere.
"""

import gc
import os
import statistics
import time

import numpy as np
from absl import flags

from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_string("bundle", None, "Bundle to measure. Example: --bundle=bundles/paper_int8")
flags.DEFINE_string(
    "float_bundle", None, "The same network in float32, for the ratio. Example: bundles/paper_float32"
)
flags.DEFINE_list("threads", ["1", "2"], "Threads of one invoke. Example: --threads=1,2")
flags.DEFINE_integer("frames", 300, "Frames of one run of a schedule. Example: 300", 20)
flags.DEFINE_integer("repeats", 5, "Runs of each schedule; they take turns. Example: 5", 1)
flags.DEFINE_integer("tau", 9, "Interleave ratio. Example: --tau=9", 1)
flags.DEFINE_integer("seed", 0, "Seed of the frames and of the order of runs. Example: 0", 0)
flags.DEFINE_string(
    "output", "", "Results, as PATH.json and PATH.md. Example: benchmarks/results/host_paper"
)

# LFS table 2, frames a second on a Pixel 3.
PAPER_FPS = {"f0": 4.2, "sync": 23.5, "async": 48.8, "int8 sync": 40.8, "int8 async": 72.3}
WARM_UP_FRAMES = 20


def percentile_summary(samples_ms: list[float]) -> dict[str, float]:
    """Median and tail of samples in milliseconds."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return {
        "samples": len(samples_ms),
        "mean_ms": float(np.mean(samples_ms)),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "max_ms": float(np.max(samples_ms)),
    }


def _frames(bundle, count: int, seed: int):
    """Prepared random frames, a few of them again and again."""
    from memvid_tf.runtime.detector import InterleavedDetector

    detector = InterleavedDetector(bundle)
    rng = np.random.default_rng(seed)
    height, width = bundle.manifest.image.sizes["f0"]
    made = [
        detector.prepare(rng.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(16)
    ]
    return [made[i % len(made)] for i in range(count)]


def measure_graphs(bundle, threads: int, runs: int) -> dict[str, dict]:
    """Latency of every call of a bundle on its golden inputs, taking turns.

    Returns:
      By "graph/signature", a `percentile_summary`.
    """
    from memvid_tf.runtime.detector import load_graph

    calls = {}
    for golden in bundle.manifest.golden:
        name = f"{golden.graph}/{golden.signature}"
        inputs, _ = bundle.read_golden(golden)
        bound = load_graph(bundle, name, threads).bind(tuple(inputs), tuple(golden.outputs))
        calls[name] = (bound, list(inputs.values()), [])
    for run in range(runs + WARM_UP_FRAMES):
        for bound, inputs, samples in calls.values():
            bound(*inputs)
            if run >= WARM_UP_FRAMES:
                samples.append(bound.last_ms)
    return {name: percentile_summary(samples) for name, (_, _, samples) in calls.items()}


def _run(runner, frames) -> dict[str, list[float] | float]:
    """One run of a schedule: latency and invoke time of every frame after the warm-up."""
    latency, invoke, decide, tau = [], [], [], None
    gc.collect()
    for result in runner.run(frames):
        if result.index == WARM_UP_FRAMES:
            start = time.perf_counter()
        if result.index >= WARM_UP_FRAMES:
            latency.append(result.timings.frame_ms)
            invoke.append(result.timings.invoke_ms)
            decide.append(result.timings.schedule_ms)
        tau = result.effective_tau
    seconds = time.perf_counter() - start
    return {
        "latency_ms": latency,
        "invoke_ms": invoke,
        "schedule_ms": decide,
        "fps": (len(latency) - 1) / seconds,
        "effective_tau": tau,
    }


def measure_schedules(bundle, threads: int, tau: int, frames: int, repeats: int, seed: int) -> dict:
    """Frame latency of f0 alone, f1 alone, interleaved and asynchronous, taking turns, and of the
    bundle's policy if it has one.

    Returns:
      By schedule: frames a second (median of the repeats), latency, share of the orchestration in
      the time of a frame, what deciding about the next frame costs, and the effective τ. What a
      policy decides on random frames means nothing; what it costs does.
    """
    from memvid_tf.runtime.asynchronous import AsyncRunner, MemoryUpdater
    from memvid_tf.runtime.detector import InterleavedDetector
    from memvid_tf.runtime.policy import Policy
    from memvid_tf.runtime.runners import SyncRunner
    from memvid_tf.runtime.schedules import AdaptiveSchedule, FixedSchedule

    prepared = _frames(bundle, frames + WARM_UP_FRAMES, seed)
    detector = InterleavedDetector(bundle, threads)
    runners = {
        "f0": SyncRunner(detector, FixedSchedule(0)),
        "f1": SyncRunner(detector, FixedSchedule(None)),
        "sync": SyncRunner(detector, FixedSchedule(tau)),
        # The worker's thread and the main one already fill two cores.
        "async": AsyncRunner(detector, tau, MemoryUpdater(bundle)),
    }
    if bundle.manifest.policy is not None:
        runners["adaptive"] = SyncRunner(detector, AdaptiveSchedule(Policy(bundle, threads)))
    runs = {name: [] for name in runners}
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        for name in rng.permutation(list(runners)):
            runs[name].append(_run(runners[name], prepared))
    return {name: _summary(results) for name, results in runs.items()}


def _summary(results: list[dict]) -> dict:
    latency = [sample for result in results for sample in result["latency_ms"]]
    invoke = [sample for result in results for sample in result["invoke_ms"]]
    decide = [sample for result in results for sample in result["schedule_ms"]]
    overhead = statistics.median(a - b for a, b in zip(latency, invoke))
    return {
        "fps": statistics.median(result["fps"] for result in results),
        "latency": percentile_summary(latency),
        "orchestration_us": 1e3 * overhead,
        "orchestration_share": sum(latency) / sum(invoke) - 1.0,
        "schedule_us": 1e3 * statistics.median(decide),
        "schedule_share": sum(decide) / sum(latency),
        "effective_tau": statistics.median(result["effective_tau"] or 0 for result in results),
        "latency_ms": [[round(sample, 4) for sample in result["latency_ms"]] for result in results],
    }


def amortised_ms(graphs: dict[str, dict], tau: int) -> float:
    """Median time of a frame at τ, from the medians of the graphs."""
    once = {name: summary["p50_ms"] for name, summary in graphs.items()}
    large, small = once["f0/serving_default"], once["f1/serving_default"]
    shared = once["memory/step"] + once["post/serving_default"]
    return (large + tau * small) / (tau + 1) + shared


def ratios(int8: dict, float32: dict | None, tau: int) -> list[dict]:
    """What the paper claims as ratios, beside what was measured. LFS table 2 on a Pixel 3."""
    fps = {name: schedule["fps"] for name, schedule in int8["schedules"].items()}
    rows = [
        {
            "ratio": f"interleaved τ={tau} over f0 only",
            "paper": PAPER_FPS["sync"] / PAPER_FPS["f0"],
            "measured": fps["sync"] / fps["f0"],
        },
        {
            "ratio": "asynchronous over synchronous",
            "paper": PAPER_FPS["int8 async"] / PAPER_FPS["int8 sync"],
            "measured": fps["async"] / fps["sync"],
        },
    ]
    if float32:
        rows.insert(
            1,
            {
                "ratio": "int8 over float32, amortised",
                "paper": PAPER_FPS["int8 sync"] / PAPER_FPS["sync"],
                "measured": float32["schedules"]["sync"]["latency"]["mean_ms"]
                / int8["schedules"]["sync"]["latency"]["mean_ms"],
            },
        )
    return rows


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    machine = result["provenance"]["machine"]
    lines = [
        "# Host latency",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {result['provenance']['date']}. One "
        "run in which everything compared takes turns; XNNPACK.",
    ]
    for measurement in result["measurements"]:
        title = f"{measurement['bundle']} ({measurement['precision']}), "
        lines += ["", f"## {title}{measurement['threads']} thread(s)", ""]
        graphs = [
            [name, *(f"{s[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms"))]
            for name, s in measurement["graphs"].items()
        ]
        lines += [tabulate(graphs, ["graph", "p50 ms", "p90 ms", "p99 ms"], tablefmt="github"), ""]
        schedules = [
            [
                name,
                f"{s['fps']:.0f}",
                *(f"{s['latency'][key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
                f"{s['orchestration_us']:.0f}",
                f"{100 * s['orchestration_share']:.1f} %",
                f"{s['schedule_us']:.0f}",
                f"{100 * s['schedule_share']:.1f} %",
                f"{s['effective_tau']:.1f}",
            ]
            for name, s in measurement["schedules"].items()
        ]
        header = ["schedule", "fps", "p50 ms", "p90 ms", "p99 ms", "orchestration µs", "share"]
        header += ["deciding µs", "share"]
        lines.append(tabulate(schedules, [*header, "effective τ"], tablefmt="github"))
    for threads, rows in result["ratios"].items():
        table = [[r["ratio"], f"{r['paper']:.2f}", f"{r['measured']:.2f}"] for r in rows]
        lines += ["", f"## Ratios, {threads} thread(s)", ""]
        header = ["ratio", "paper (Pixel 3)", "measured here"]
        lines.append(tabulate(table, header, tablefmt="github"))
    return "\n".join(lines) + "\n"


def measure(bundles: list, threads: list[int], tau: int, frames: int, repeats: int, seed: int):
    """Everything about one or two bundles (int8 first, then float32); see `markdown`."""
    from tqdm import tqdm

    from memvid_tf import provenance

    measurements = []
    with tqdm(total=len(bundles) * len(threads), desc="measuring", unit="setting") as bar:
        for count in threads:
            for bundle in bundles:
                schedules = measure_schedules(bundle, count, tau, frames, repeats, seed)
                graphs = measure_graphs(bundle, count, frames)
                measurements.append(
                    {
                        "bundle": bundle.manifest.name,
                        "precision": bundle.manifest.precision,
                        "threads": count,
                        "graphs": graphs,
                        "amortised_ms": amortised_ms(graphs, tau),
                        "schedules": schedules,
                    }
                )
                bar.update(1)
    by_threads = {
        str(count): ratios(*([m for m in measurements if m["threads"] == count] + [None])[:2], tau)
        for count in threads
    }
    return {
        "tau": tau,
        "frames": frames,
        "repeats": repeats,
        "seed": seed,
        "load_average": os.getloadavg()[0],
        "measurements": measurements,
        "ratios": by_threads,
        "provenance": provenance.describe(),
    }


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/tiny")
    threads = []
    for word in FLAGS.threads:
        if not word.isdigit() or not 1 <= int(word) <= (os.cpu_count() or 1):
            raise errors.UserError(f"--threads={word!r} is not in 1..{os.cpu_count()}")
        threads.append(int(word))
    from memvid_tf import files
    from memvid_tf.runtime.bundle import Bundle

    bundles = [Bundle.load(path) for path in (FLAGS.bundle, FLAGS.float_bundle) if path]
    result = measure(bundles, threads, FLAGS.tau, FLAGS.frames, FLAGS.repeats, FLAGS.seed)
    text = markdown(result)
    print(text)
    if FLAGS.output:
        files.write_json(f"{FLAGS.output}.json", result)
        files.write_text(f"{FLAGS.output}.md", text)
        print(f"written: {FLAGS.output}.json and .md")


if __name__ == "__main__":
    errors.run(main)
