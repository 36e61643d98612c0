r"""Whether conversion holds on to memory: one graph converted again and again, as export does it.

  python -m benchmarks.conversions --count=200 --output=benchmarks/results/conversions

TensorFlow's converter is said to keep tens of megabytes at every call. The graph is small, so that
hundreds of calls take minutes, but a call that kept a copy of its weights would show. Resident
memory is read from /proc before the first call and after each one, first as it is and then with
what lies free in Python and in the C library given back.
"""

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tqdm
from absl import flags

from benchmarks import pages
from memvid_tf import errors, provenance

FLAGS = flags.FLAGS
CHANNELS = (128, 256)
WARM_UP = 20  # calls in which libraries are loaded and arenas of memory find their size
LEAST = WARM_UP + 2  # two calls have a slope
SHOWN = (1, 2, 5, 10, 20, 50, 100, 150, 200)
MIB = 1 << 20


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_integer(
        "count", 200, "Conversions. Example: --count=50", lower_bound=LEAST
    )
    flags.DEFINE_string(
        "output",
        "benchmarks/results/conversions",
        "Results, as PATH.json and PATH.md; none with an empty one. Example: results/conversions",
    )


def conversion(channels: tuple[int, int] = CHANNELS) -> Callable[[], bytes]:
    """A function that converts a cell with two signatures to int8.

    Args:
      channels: of the features and of the state; the 3 × 3 kernel between them is shared.
    """
    import numpy as np
    import tensorflow as tf

    from export import convert

    rng = np.random.default_rng(0)
    module = tf.Module()
    module.kernel = tf.Variable(rng.normal(0, 0.1, (3, 3, *channels)).astype(np.float32))
    module.head = tf.Variable(rng.normal(0, 0.1, (1, 1, channels[1], 6)).astype(np.float32))
    spec = [tf.TensorSpec((1, 4, 4, channels[0]), tf.float32, "features")]

    def conv(x, weights):
        limits = tf.reduce_max(tf.abs(weights), (0, 1, 2))
        weights = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            weights, -limits, limits, narrow_range=True
        )
        return tf.nn.conv2d(x, weights, 1, "SAME")

    def ranged(x, low, high):
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    @tf.function(input_signature=spec)
    def update(features):
        state = tf.nn.relu6(conv(ranged(features, 0.0, 6.0), module.kernel))
        return {"state": ranged(state, 0.0, 6.0)}

    @tf.function(input_signature=spec)
    def step(features):
        state = update(features)["state"]
        return {"state": state, "logits": ranged(conv(state, module.head), -9.0, 9.0 * 127 / 128)}

    signatures = {"step": step, "update": update}
    return lambda: convert.convert(module, signatures, precision="int8")


def measure(convert: Callable[[], bytes], count: int) -> dict:
    """Calls `convert` and reads resident memory.

    Args:
      convert: returns a flatbuffer.
      count: of the calls.

    Returns:
      "before_mib"; by call "resident_mib" and, once free memory is given back, "held_mib", and
      "seconds"; "bytes" of a flatbuffer.
    """
    release = ctypes.CDLL(None).malloc_trim
    gc.collect()
    release(0)
    before, resident, held, seconds, size = _resident_mib(), [], [], [], 0
    for _ in tqdm.tqdm(range(count), unit="conversion"):
        start = time.perf_counter()
        size = len(convert())
        seconds.append(time.perf_counter() - start)
        resident.append(_resident_mib())
        gc.collect()
        release(0)
        held.append(_resident_mib())
    return {
        "schema_version": 1,
        "count": count,
        "bytes": size,
        "before_mib": before,
        "resident_mib": resident,
        "held_mib": held,
        "seconds": seconds,
    }


def growth_mib(held_mib: list[float], warm_up: int = WARM_UP) -> float:
    """How much memory grows by at a call behind the first ones, at least two: the slope."""
    late = held_mib[warm_up:]
    return statistics.linear_regression(range(len(late)), late).slope


def _resident_mib() -> float:
    pages_held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages_held * os.sysconf("SC_PAGE_SIZE") / MIB


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    made, count = result["provenance"], result["count"]
    packages, machine = made["packages"], made["machine"]
    rows = [["before", f"{result['before_mib']:.1f}", "", ""]]
    for call in sorted({*(n for n in SHOWN if n < count), count}):
        numbers = (result[name][call - 1] for name in ("resident_mib", "held_mib", "seconds"))
        rows.append([f"after {call}", *(f"{number:.1f}" for number in numbers)])
    headers = ["conversions", "resident MiB", "free memory given back", "seconds of the call"]
    weights = 9 * CHANNELS[0] * CHANNELS[1] * 4 / MIB
    return "\n".join(
        [
            "# Memory of conversions",
            "",
            f"Written by `python -m benchmarks.conversions --count={count}`, version "
            f"{made['code_version']}, {made['date']}: {machine['processor']}, "
            f"{machine['cores']} cores, TensorFlow {packages['tensorflow']}, Python "
            f"{made['python']}.",
            "",
            f"One graph with {weights:.1f} MiB of float weights becomes a flatbuffer of "
            f"{result['bytes'] / MIB:.1f} MiB with two signatures, in one process, through "
            "`export.convert`.",
            "",
            tabulate(rows, headers, tablefmt="github", disable_numparse=True),
            "",
            f"Behind the first {WARM_UP} conversions memory grows by "
            f"**{result['growth_mib']:.3f} MiB a conversion**, the slope of the third column: no "
            "copy of the weights is kept, and the four or five graphs of a bundle need no process "
            "of their own. A test bounds it.",
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    result = {"provenance": provenance.describe(), **measure(conversion(), FLAGS.count)}
    result["growth_mib"] = growth_mib(result["held_mib"])
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
