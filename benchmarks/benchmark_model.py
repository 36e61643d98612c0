"""What `benchmark_model`, TensorFlow Lite's or LiteRT's, prints.

It is the second engine, for delegates that the native runner does not drive: the user supplies the
binary. It reports statistics instead of samples, so a repeat counts as one sample, its average.
Generations differ: lines may begin with "INFO: ", newer ones add percentiles.
"""

import re
import shlex

from memvid_tf.errors import UserError

_NUMBER = r"([0-9.eE+]+)"
_STATISTICS = re.compile(
    rf"^count=(\d+) (?:first={_NUMBER} curr={_NUMBER} min={_NUMBER} max={_NUMBER} avg={_NUMBER} "
    rf"std={_NUMBER}(?: p5={_NUMBER} median={_NUMBER} p95={_NUMBER})?|curr={_NUMBER} ?\(all same\))"
)
_PREFIX = re.compile(r"^(?:INFO|WARNING|ERROR): (?:\[[^\]]*\] )?")
_NAMES = ("first", "curr", "min", "max", "avg", "std", "p5", "median", "p95")


class ParseError(UserError):
    """The output is not whole."""


def command(binary: str, model: str, threads: int, runs: int, extra: str) -> str:
    """The shell command; flags that both generations take, and the user's."""
    words = [binary, f"--graph={model}", f"--num_threads={threads}", f"--num_runs={runs}"]
    return " ".join(map(shlex.quote, [*words, *shlex.split(extra)]))


def parse(text: str) -> dict:
    """The measurement in the output of one call.

    Returns:
      As an engine's result: "latency_us" with the average alone, "reported" with everything that
      was said about it in microseconds, "init_us", "warm_up_us" and "delegated_nodes" (None where
      not said).

    Raises:
      ParseError: statistics or timings are missing: the call failed or was cut short.
    """
    lines = [_PREFIX.sub("", line.strip()) for line in text.splitlines()]
    found = [match for line in lines if (match := _STATISTICS.match(line))]
    timings = next((line for line in lines if "nference timings in us:" in line), None)
    # The first statistics are the warm-up's, unless there was none.
    if not found or timings is None:
        raise ParseError(
            "benchmark_model printed no 'count=… avg=…' line or no 'Inference timings in us' line: "
            f"it failed or was cut short; the end of it: {' '.join(' '.join(lines[-3:]).split())}"
        )
    count, *values, same = found[-1].groups()
    if same is not None:
        reported = dict.fromkeys(("first", "curr", "min", "max", "avg"), float(same))
    else:
        reported = {n: float(v) for n, v in zip(_NAMES, values, strict=True) if v is not None}
    named = dict(re.findall(rf"(Init|Warmup(?: \(avg\))?|no stats): {_NUMBER}", timings))
    named |= dict(re.findall(rf"(Inference) \(avg\): {_NUMBER}", timings))
    average = float(named.get("Inference", named.get("no stats", reported["avg"])))
    delegated = re.search(r"(\d+) nodes? (?:out of|delegated out of) (\d+)", "\n".join(lines))
    delegated = delegated or re.search(r"Replacing (\d+) out of (\d+) node", "\n".join(lines))
    return {
        "latency_us": [average],
        "reported": {"count": int(count), **reported},
        "init_us": float(named["Init"]) if "Init" in named else None,
        "warm_up_us": _first(named, "Warmup (avg)", "Warmup"),
        "delegated_nodes": int(delegated[1]) if delegated else None,
    }


def parse_profile(text: str) -> list[dict]:
    """Operators of the CSV that --profiling_output_csv_file wrote, in the order in which they run.

    Node types hold commas that are not escaped, so seven fields are split from the right.
    """
    operators, inside = [], False
    for line in text.splitlines():
        if "Run Order" in line:
            inside, operators = True, []
        elif inside and not line.strip():
            inside = False
        elif inside and line.count(",") >= 7:
            kind, _first_ms, average, *_, times, name = line.rsplit(",", 7)
            try:
                operators.append(
                    {"type": kind.strip().strip('"'), "ms": float(average), "times": int(times),
                     "name": name.strip()}
                )  # fmt: skip
            except ValueError:
                continue  # the header
    return operators


def _first(named: dict[str, str], *names: str) -> float | None:
    return next((float(named[name]) for name in names if name in named), None)
