"""What runs a graph or a schedule on this machine: the native runner, or the Python runtime.

Both return the runner's result: "latency_us" and, of a schedule, "invoke_us", "schedule_us",
"prepare_us", "extractors" ("0" where f0 began or a window's frame was seen whole, else "1"),
"memory_age_frames", "mean_us" of each kind of invoke, and "effective_tau" of the interleaved ones.
"""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.runner import build, local, plan, schedules
from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle, file_entry


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
        self, bundle: Bundle, setting: schedules.ScheduleSetting, frames: Sequence[np.ndarray]
    ) -> dict:
        """Latency of the frames of a schedule; `frames` as `schedules.schedule` takes them."""

    def hashes(self) -> dict[str, str]:
        """sha256 of what measures, by name."""


class JobEngine:
    """The native runner, wherever it runs."""

    name = "runner"

    def run(self, job: plan.Job) -> dict:
        """Runs a plan; returns the runner's result."""
        raise NotImplementedError

    def graph(self, path, signature, threads, runs, warm_up, inputs):
        """See `Engine`."""
        raw = {name: array.tobytes() for name, array in inputs.items()}
        return self.run(plan.graph(path, signature, threads, runs, warm_up, raw))

    def schedule(self, bundle, setting, frames):
        """See `Engine`."""
        return self.run(schedules.schedule(bundle, setting, frames))


class RunnerEngine(JobEngine):
    """The native runner on this machine."""

    def run(self, job):
        """See `JobEngine`."""
        return local.run(job)[0]

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
        samples = {
            f"{name}_us": [] for name in ("latency", "invoke", "schedule", "prepare")
        } | {"memory_age_frames": []}  # fmt: skip
        means = {name: [] for name in ("extract", "memory", "post")}
        extractors, tau, start = "", None, 0.0
        count = setting.warm_up + setting.frames
        gc.collect()
        results = _python_results(bundle, setting, [frames[i % len(frames)] for i in range(count)])
        for index, result in enumerate(results):
            if index < setting.warm_up:
                start = time.perf_counter()
                continue
            timings = result.timings
            for name in ("invoke", "schedule", "prepare"):
                samples[f"{name}_us"].append(1e3 * getattr(timings, f"{name}_ms"))
            samples["latency_us"].append(1e3 * timings.frame_ms)
            for name, values in means.items():
                values.append(1e3 * getattr(timings, f"{name}_ms"))
            whole, age, tau = _what_ran(result)
            extractors += "0" if whole else "1"
            samples["memory_age_frames"].append(age)
        elapsed = 1e6 * (time.perf_counter() - start)
        mean_us = {name: float(np.mean(values)) for name, values in means.items()}
        found = {"mean_us": mean_us, "extractors": extractors, "elapsed_us": elapsed}
        return {**samples, **found} | ({} if tau is None else {"effective_tau": tau})

    def hashes(self):
        """See `Engine`."""
        return {}


ENGINES = {engine.name: engine for engine in (RunnerEngine, PythonEngine)}


def _python_results(bundle: Bundle, setting: schedules.ScheduleSetting, frames: list[np.ndarray]):
    """An iterator over what the runtime says of each frame."""
    from memvid_tf.runtime.asynchronous import AsyncRunner
    from memvid_tf.runtime.detector import InterleavedDetector
    from memvid_tf.runtime.policy import Policy
    from memvid_tf.runtime.runners import SyncRunner
    from memvid_tf.runtime.schedules import AdaptiveSchedule, FixedSchedule
    from memvid_tf.runtime.windowed import WindowRunner

    if bundle.manifest.system == "patchwork":
        return WindowRunner(bundle, setting.name, setting.threads).run(frames)
    detector = InterleavedDetector(bundle, setting.threads)
    if setting.adaptive:
        schedule = AdaptiveSchedule(Policy(bundle, setting.threads), setting.tau)
        if setting.asynchronous:
            return AsyncRunner(detector, None, schedule=schedule).run(frames)
        return SyncRunner(detector, schedule).run(frames)
    if setting.name == "async":
        return AsyncRunner(detector, setting.tau).run(frames)
    fixed = FixedSchedule({"f0": 0, "f1": None}.get(setting.name, setting.tau))
    return SyncRunner(detector, fixed).run(frames)


def _what_ran(result) -> tuple[bool, int, float | None]:
    """Whether the frame was one of f0 or seen whole, the memory's age and the effective τ."""
    if hasattr(result, "action"):
        return result.action is None, int(result.ages_frames.max()), None
    age = result.memory_age_frames
    return result.f0_started, -1 if age is None else age, result.effective_tau
