"""What runs a graph or a schedule on this machine: the native runner, or the Python runtime.

Both return the runner's result: "latency_us" and, of a schedule, "invoke_us", "schedule_us",
"extractors", "memory_age_frames" and "effective_tau".
"""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.runner import build, local, plan
from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle, file_entry
from memvid_tf.runtime.preprocess import PreparedFrame


class Engine(Protocol):
    """Measures on this machine.

    Attributes:
      name: as results name it.
    """

    name: str

    def graph(
        self, path: Path, signature: str | None, threads: int, runs: int, warm_up: int,
        inputs: dict[str, np.ndarray],
    ) -> dict:  # fmt: skip
        """Latency of one graph; inputs that are not given are made up."""

    def schedule(
        self, bundle: Bundle, setting: plan.ScheduleSetting, frames: Sequence[PreparedFrame]
    ) -> dict:
        """Latency of the frames of a schedule."""

    def hashes(self) -> dict[str, str]:
        """sha256 of what measures, by name."""


class RunnerEngine:
    """The native runner."""

    name = "runner"

    def graph(self, path, signature, threads, runs, warm_up, inputs):
        """See `Engine`."""
        raw = {name: array.tobytes() for name, array in inputs.items()}
        return local.run(plan.graph(path, signature, threads, runs, warm_up, raw))[0]

    def schedule(self, bundle, setting, frames):
        """See `Engine`."""
        return local.run(plan.schedule(bundle, setting, frames))[0]

    def hashes(self):
        """See `Engine`."""
        parts = {"runner": build.build(build.host()), "litert": build.litert_library()}
        return {name: file_entry(path).sha256 for name, path in parts.items()}


class PythonEngine:
    """`memvid_tf.runtime`, for comparison and where no compiler is."""

    name = "python"

    def graph(self, path, signature, threads, runs, warm_up, inputs):
        """See `Engine`."""
        from memvid_tf.runtime.interpreter import Graph

        graph = Graph(path, signature, threads)
        rng = np.random.default_rng(0)
        arrays = []
        for name, info in graph.inputs.items():
            if name in inputs:
                arrays.append(inputs[name])
            elif info.dtype == np.float32:
                arrays.append(np.zeros(info.shape, np.float32))
            else:
                limits = np.iinfo(info.dtype)
                arrays.append(rng.integers(limits.min, limits.max, info.shape, info.dtype))
        call = graph.bind(tuple(graph.inputs), tuple(graph.outputs))
        samples = []
        for run in range(warm_up + runs):
            call(*arrays)
            if run >= warm_up:
                samples.append(1e3 * call.last_ms)
        return {"latency_us": samples}

    def schedule(self, bundle, setting, frames):
        """See `Engine`."""
        if setting.fps:
            raise UserError("--engine=python runs at full speed; use --engine=runner with --fps")
        samples = {"latency_us": [], "invoke_us": [], "schedule_us": [], "memory_age_frames": []}
        extractors, tau, start = "", None, 0.0
        count = setting.warm_up + setting.frames
        gc.collect()
        runner = _python_runner(bundle, setting)
        for result in runner.run(frames[i % len(frames)] for i in range(count)):
            tau = result.effective_tau
            if result.index < setting.warm_up:
                start = time.perf_counter()
                continue
            timings = result.timings
            samples["latency_us"].append(1e3 * timings.frame_ms)
            samples["invoke_us"].append(1e3 * timings.invoke_ms)
            samples["schedule_us"].append(1e3 * timings.schedule_ms)
            age = result.memory_age_frames
            samples["memory_age_frames"].append(-1 if age is None else age)
            extractors += result.extractor[1]
        elapsed = 1e6 * (time.perf_counter() - start)
        return {**samples, "extractors": extractors, "effective_tau": tau, "elapsed_us": elapsed}

    def hashes(self):
        """See `Engine`."""
        return {}


ENGINES = {engine.name: engine for engine in (RunnerEngine, PythonEngine)}


def _python_runner(bundle: Bundle, setting: plan.ScheduleSetting):
    from memvid_tf.runtime.asynchronous import AsyncRunner
    from memvid_tf.runtime.detector import InterleavedDetector
    from memvid_tf.runtime.policy import Policy
    from memvid_tf.runtime.runners import SyncRunner
    from memvid_tf.runtime.schedules import AdaptiveSchedule, FixedSchedule

    detector = InterleavedDetector(bundle, setting.threads)
    if setting.name.startswith("adaptive"):
        schedule = AdaptiveSchedule(Policy(bundle, setting.threads), setting.tau)
        if setting.name.endswith("async"):
            return AsyncRunner(detector, None, schedule=schedule)
        return SyncRunner(detector, schedule)
    if setting.name == "async":
        return AsyncRunner(detector, setting.tau)
    return SyncRunner(detector, FixedSchedule({"f0": 0, "f1": None}.get(setting.name, setting.tau)))
