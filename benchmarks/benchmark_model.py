"""What `benchmark_model`, TensorFlow Lite's or LiteRT's, prints.

It is the second engine, for delegates that the native runner does not drive: the user supplies the
binary. It reports statistics instead of samples, so a repeat counts as one sample, its average.

Both generations print a `count=… avg=…` line in microseconds for the warm-up and one for the runs.
TensorFlow Lite's ends with a line `Inference timings in us: …`. LiteRT's, which runs one signature
through the compiled model, ends with a block of `name: value ms` lines instead, and begins them with
a level and its source's file and line.
"""

import re
import shlex

from memvid_tf.errors import UserError

_NUMBER = r"([0-9.eE+]+)"
_STATISTICS = re.compile(
    rf"^count=(\d+) (?:first={_NUMBER} )?curr={_NUMBER}"
    rf"(?: min={_NUMBER} max={_NUMBER} avg={_NUMBER} std={_NUMBER}| ?\(all same\))?"
    rf"(?: p5={_NUMBER} median={_NUMBER} p95={_NUMBER})?"
)
_NAMES = ("first", "curr", "min", "max", "avg", "std", "p5", "median", "p95")
_PREFIX = re.compile(r"^(?:INFO|WARNING|WARN|ERROR): (?:\[[^\]]*\] ?)?")
_APPLIED = re.compile(
    r"Explicitly applied (\w+) delegate, and the model graph will be (completely|partially)"
)
_REPLACING = re.compile(r"Replacing (\d+) out of (\d+) node(?:\(s\)|s)? with delegate \((\w+)\)")
_TIMINGS = "nference timings in us:"
_BLOCK = "= BENCHMARK RESULTS ="
_BLOCK_LINE = re.compile(rf"^(\w[\w ]*(?:\([a-z]+\))?): +{_NUMBER} ms(?: \((\d+) runs\))?$")


class ParseError(UserError):
    """The output is not whole."""


def command(binary: str, model: str, threads: int, runs: int, extra: str) -> str:
    """The shell command; flags that both generations take, and the user's."""
    words = [binary, f"--graph={model}", f"--num_threads={threads}", f"--num_runs={runs}"]
    return shlex.join([*words, *split_flags(extra)])


def split_flags(text: str) -> list[str]:
    """The words of --benchmark_flags.

    Raises:
      UserError: a quote that is not closed, or a word that is no flag.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--benchmark_flags={text!r}: {error}") from error
    for word in words:
        if not word.startswith("--"):
            raise UserError(
                f"--benchmark_flags: {word!r} is no flag; wanted words such as --use_gpu=true"
            )
    return words


def parse(text: str) -> dict:
    """The measurement in the output of one call.

    Returns:
      As an engine's result: "latency_us" with the average alone, "reported" with everything that
      was said about it in microseconds, "init_us", "warm_up_us", "delegates" (see `delegates`) and
      "delegated_nodes" (of the first; None where not said).

    Raises:
      ParseError: statistics or timings are missing: the call failed or was cut short.
    """
    lines = [_PREFIX.sub("", line.strip()) for line in text.splitlines()]
    # The first statistics are the warm-up's, unless there was none.
    counted = [_statistics(match) for line in lines if (match := _STATISTICS.match(line))]
    timings = next((line for line in lines if _TIMINGS in line), None)
    block = next((lines[i:] for i, line in enumerate(lines) if _BLOCK in line), None)
    if timings is not None and counted:
        said = _timings(timings, counted[-1])
    elif block is not None:
        said = _block(block)
        if counted and said["average"] is not None:
            said["average"] = counted[-1]["avg"]  # the same with all its digits
    else:
        said = {}
    reported = counted[-1] if counted else said.get("reported")
    if said.get("average") is None or reported is None:
        raise ParseError(
            "benchmark_model printed neither a 'count=… avg=…' line with an 'Inference timings in "
            "us' line nor a whole block of BENCHMARK RESULTS: it failed or was cut short; the end "
            f"of it: {' '.join(' '.join(lines[-3:]).split())}"
        )
    found = re.search(r"(\d+) nodes? (?:out of|delegated out of) (\d+)", "\n".join(lines))
    found = found or _REPLACING.search("\n".join(lines))
    return {
        "latency_us": [said["average"]],
        "reported": reported,
        "init_us": said["init"],
        "warm_up_us": said["warm_up"],
        "delegates": delegates("\n".join(lines)),
        "delegated_nodes": int(found[1]) if found else None,
    }


def delegates(text: str) -> str:
    """Which delegate took how many nodes, as in "GPU: completely; XNNPACK: 57 of 64 nodes"; ""
    where the output says nothing of it. Runs that differ in it are not the same measurement."""
    applied = [f"{name}: {how}" for name, how in _APPLIED.findall(text)]
    taken = [f"{name}: {nodes} of {total} nodes" for nodes, total, name in _REPLACING.findall(text)]
    return "; ".join(dict.fromkeys(applied + taken))


def _statistics(match: re.Match) -> dict[str, float]:
    """A `count=…` line; with one run, or runs that are all the same, the last one says it all."""
    count, *values = match.groups()
    found = {n: float(v) for n, v in zip(_NAMES, values, strict=True) if v is not None}
    if "avg" not in found:
        found |= dict.fromkeys(("first", "min", "max", "avg"), found["curr"])
    return {"count": int(count), **found}


def _timings(line: str, runs: dict[str, float]) -> dict[str, float | None]:
    """TensorFlow Lite's last line; the oldest ones call the average "no stats"."""
    named = dict(re.findall(rf"([A-Z][\w ]*(?:\(avg\))?|no stats): {_NUMBER}", line))

    def first(*names):
        return next((float(named[name]) for name in names if name in named), None)

    return {
        "average": first("Inference (avg)", "no stats") or runs["avg"],
        "init": first("Init"),
        "warm_up": first("Warmup (avg)", "Warmup"),
    }


def _block(lines: list[str]) -> dict:
    """LiteRT's block, in milliseconds with two digits."""
    found = {m[1]: m for line in lines if (m := _BLOCK_LINE.match(line))}
    us = {name: 1e3 * float(match[2]) for name, match in found.items()}
    reported = None
    runs = found.get("Inference (avg)")
    if runs is not None and runs[3] is not None:
        names = [n for n in ("avg", "min", "max") if f"Inference ({n})" in us]
        reported = {"count": int(runs[3]), **{n: us[f"Inference ({n})"] for n in names}}
    return {
        "average": us.get("Inference (avg)"),
        "init": us.get("Model initialization"),
        "warm_up": us.get("Warmup (avg)"),
        "reported": reported,
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

