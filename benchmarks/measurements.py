"""One schema for what was measured, on this machine or on a phone.

A results file is JSON: `{"schema_version": 2, "measurements": [...]}`, one entry for each repeat of
each thing, with every sample. Entries are only ever appended, and the file is replaced whole, so
that what was finished survives whatever comes next. Medians and intervals are made by readers.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from memvid_tf import files, locks
from memvid_tf.errors import UserError

SCHEMA_VERSION = 2
KINDS = ("graph", "schedule")
RESAMPLES = 2000  # bootstrap; the interval's own error is then far below its width


@dataclasses.dataclass(frozen=True)
class Setting:
    """What was measured, without the repeat.

    Attributes:
      device: `device["name"]`; see `Measurement`.
      subject: bundle or model, with the precision if it has one.
      kind: "graph" or "schedule".
      name: "graph/signature", or the schedule.
      threads: of one invoke.
      engine: "runner", "python" or "benchmark_model".
      mode: "burst" or "sustained".
      fps: frame rate of a paced schedule, 0 for full speed.
      flags: further flags of benchmark_model, which choose the delegate among others.
    """

    device: str
    subject: str
    kind: str
    name: str
    threads: int
    engine: str
    mode: str = "burst"
    fps: float = 0.0
    flags: str = ""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One repeat of one setting.

    Attributes:
      setting: what was measured.
      repeat: number of the repeat, from 0.
      precision: "int8" or "float32" of a bundle, None of other people's models.
      tau: of the schedule; None where it has none.
      device: what ran it: "name", "physical" (False for anything but real hardware), and whatever
        else is known (SoC, build fingerprint, Android version, cores).
      hashes: sha256 of the model files, the runner and LiteRT, by name.
      conditions: clocks, temperatures and load "before" and "after".
      result: what the engine returned; "latency_us" holds every sample.
      date: ISO 8601, UTC.
      code_version: of this repository.
      mask: hexadecimal mask of the cores that were allowed, None for all.
    """

    setting: Setting
    repeat: int
    precision: str | None
    tau: int | None
    device: dict
    hashes: dict[str, str]
    conditions: dict[str, dict]
    result: dict
    date: str
    code_version: str
    mask: str | None = None

    @property
    def identity(self) -> tuple[Setting, str]:
        """What may be pooled and compared: the setting, and which delegate took how many nodes,
        which only a run shows and which may change without an error."""
        return self.setting, self.result.get("delegates", "")

    @property
    def latency_ms(self) -> np.ndarray:
        """[n] float64 milliseconds: a run of a graph, or a frame of a schedule."""
        return np.asarray(self.result["latency_us"], np.float64) / 1e3


class Results:
    """A results file that grows.

    Attributes:
      path: of the file; None keeps everything in memory.
      measurements: in the order in which they were made.
    """

    def __init__(self, path: str | os.PathLike | None, measurements: Iterable[Measurement] = ()):
        self.path, self.measurements = path, list(measurements)
        self._lock = threading.Lock()  # several devices may append

    @classmethod
    def load(cls, path: str | os.PathLike, missing_ok: bool = False) -> "Results":
        """Reads a results file.

        Args:
          path: of the file.
          missing_ok: a file that is not there is an empty one.

        Raises:
          UserError: it cannot be read or is no results file.
        """
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"results {path}: it {files.what(path)}, wanted a file")
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if content["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version {content['schema_version']!r}")
            return cls(path, [_decode(entry) for entry in content["measurements"]])
        except FileNotFoundError as error:
            if missing_ok:
                return cls(path)
            raise UserError(
                f"results {path}: no such file; python -m benchmarks.host writes one"
            ) from error
        except OSError as error:
            raise UserError(f"results {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"results {path}: {error!r}; wanted a results file of benchmarks.host or "
                f"benchmarks.device, schema_version {SCHEMA_VERSION}"
            ) from error

    @classmethod
    @contextlib.contextmanager
    def held(cls, output: str) -> Iterator["Results"]:
        """The results in `output`.json, to which no other process adds in the meantime; in memory
        with an empty `output`.

        Raises:
          UserError: another process adds to them; see `load`, too.
        """
        with contextlib.ExitStack() as stack:
            path = f"{output}.json" if output else None
            if path:
                stack.enter_context(locks.target(path))
            yield cls.load(path, missing_ok=True) if path else cls(None)

    def append(self, measurement: Measurement) -> None:
        """Adds a measurement and replaces the file."""
        with self._lock:
            self.measurements.append(measurement)
            if self.path is None:
                return
            # One line an entry: samples would take one each in indented JSON.
            lines = ",\n".join(json.dumps(dataclasses.asdict(m)) for m in self.measurements)
            files.write_text(
                self.path,
                f'{{"schema_version": {SCHEMA_VERSION}, "measurements": [\n{lines}\n]}}\n',
            )

    def has(self, setting: Setting, repeat: int, hashes: dict[str, str]) -> bool:
        """Whether this repeat is there already. Ask for everything before the first run: what
        changed would else be found after the others were measured.

        Raises:
          UserError: the setting was measured with other files, which would be mixed up.
        """
        same = [m for m in self.measurements if m.setting == setting]
        for measurement in same:
            if measurement.hashes != hashes:
                changed = sorted(
                    name
                    for name in measurement.hashes.keys() | hashes.keys()
                    if measurement.hashes.get(name) != hashes.get(name)
                )
                raise UserError(
                    f"results {self.path} hold {setting.subject} {setting.name} of "
                    f"{measurement.date}, since when {', '.join(changed)} changed; name a new "
                    "--output and compare the two with python -m benchmarks.report compare A B"
                )
        return any(m.repeat == repeat for m in same)


def _decode(entry: dict) -> Measurement:
    setting = Setting(**entry["setting"])
    if setting.kind not in KINDS:
        raise ValueError(f"kind {setting.kind!r} is not one of {KINDS}")
    measurement = Measurement(**{**entry, "setting": setting})
    if not measurement.latency_ms.size or not np.isfinite(measurement.latency_ms).all():
        raise ValueError(f"{setting}: no samples, or some that are no numbers")
    return measurement


@dataclasses.dataclass(frozen=True)
class Summary:
    """All repeats of one setting with one delegation.

    Attributes:
      p50_ms: median over the repeats of their medians.
      mean_ms: median over the repeats of their means: what a frame costs in the long run.
      p90_ms, p95_ms, p99_ms, max_ms: of all samples.
      tail: median over the repeats of p99 over p50, which one disturbed repeat does not spoil.
      fps: frames a second that `mean_ms` allows.
      per_repeat_ms: what two results are compared by: medians of a graph, means of a schedule.
      overhead_share: time of a schedule outside its invokes, as a part of the invokes; None for
        graphs, and where f0 ran inside a frame of an asynchronous schedule.
      effective_tau: median over the repeats; None where f0 wrote less than twice.
      f0_share: part of the frames of all repeats on which f0 ran or was started, or of which a
        window's bundle saw all; None for graphs.
    """

    setting: Setting
    first: Measurement
    repeats: int
    samples: int
    p50_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    tail: float
    per_repeat_ms: tuple[float, ...]
    overhead_share: float | None
    effective_tau: float | None
    f0_share: float | None

    @property
    def identity(self) -> tuple[Setting, str]:
        """See `Measurement.identity`."""
        return self.first.identity

    @property
    def fps(self) -> float:
        """Frames or runs a second."""
        return 1e3 / self.mean_ms


def summaries(measurements: Iterable[Measurement]) -> list[Summary]:
    """One summary an identity, in the order in which they first occur."""
    groups: dict[tuple[Setting, str], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.identity, []).append(measurement)
    return [_summary(setting, group) for (setting, _), group in groups.items()]


def _summary(setting: Setting, group: Sequence[Measurement]) -> Summary:
    medians = [float(np.median(m.latency_ms)) for m in group]
    means = [float(np.mean(m.latency_ms)) for m in group]
    tails = [float(np.percentile(m.latency_ms, 99)) / p50 for m, p50 in zip(group, medians)]
    samples = np.concatenate([m.latency_ms for m in group])
    p90, p95, p99 = np.percentile(samples, [90, 95, 99])
    invoked = [sum(m.result.get("invoke_us", ())) for m in group]
    overhead = None
    if all(invoked):
        overhead = statistics.median(
            float(np.sum(m.latency_ms)) * 1e3 / total - 1.0 for m, total in zip(group, invoked)
        )
    ran = "".join(m.result.get("extractors", "") for m in group)
    taus = [tau for m in group if (tau := m.result.get("effective_tau")) is not None]
    return Summary(
        setting=setting, first=group[0], repeats=len(group), samples=len(samples),
        p50_ms=statistics.median(medians), mean_ms=statistics.median(means),
        p90_ms=float(p90), p95_ms=float(p95), p99_ms=float(p99), max_ms=float(samples.max()),
        tail=statistics.median(tails),
        per_repeat_ms=tuple(medians if setting.kind == "graph" else means),
        overhead_share=overhead, effective_tau=statistics.median(taus) if taus else None,
        f0_share=ran.count("0") / len(ran) if ran else None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two results of one setting.

    Attributes:
      ratio: time of the second over the first.
      low, high: 95 % interval of the ratio; None with fewer than three repeats on a side.
    """

    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.low is None:
            return "too few repeats to say"
        if self.low <= 1.0 <= self.high:
            return "no difference"
        return "slower" if self.ratio > 1.0 else "faster"


def compare(before: Summary, after: Summary, seed: int = 0) -> Comparison:
    """Compares by bootstrap over repeats: samples of one repeat are not independent."""
    first, second = np.array(before.per_repeat_ms), np.array(after.per_repeat_ms)
    ratio = float(np.median(second) / np.median(first))
    if min(len(first), len(second)) < 3:
        return Comparison(ratio, None, None)
    rng = np.random.default_rng(seed)
    medians = [
        np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
        for values in (first, second)
    ]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    return Comparison(ratio, float(low), float(high))
