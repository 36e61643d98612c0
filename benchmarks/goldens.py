r"""Compares what two emulated arm64 cores compute with the recorded outputs of a bundle, and finds
the operators that differ.

  python -m benchmarks.goldens --bundle=bundles/paper/int8 --output=benchmarks/results/device_goldens

Every graph is fed with the recorded inputs, so nothing adds up from graph to graph. A graph with an
output that differs is taken apart (`benchmarks.operators`), and each of its operators is fed with
the inputs that it has on this machine, so nothing adds up from operator to operator either.
"""

import collections
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tabulate import tabulate

from benchmarks import adb as adb_lib
from benchmarks import operators, pages, payload, pixel, rig
from benchmarks.handset import Handset
from benchmarks.runner import plan
from memvid_tf import errors, provenance
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
FOLDER = "/data/local/tmp/memvid_goldens"


def operator_calls(bundle: Bundle, graph: str, signature: str) -> list[plan.Recorded]:
    """Every operator of a call, with its inputs and outputs on this machine."""
    golden = next(
        g for g in bundle.manifest.golden if (g.graph, g.signature) == (graph, signature)
    )
    apart = operators.take_apart(bundle.graph_path(graph).read_bytes(), signature)
    with tempfile.TemporaryDirectory(prefix="memvid_operators_") as folder:
        path = Path(folder) / "operators.tflite"
        path.write_bytes(apart.model)
        values = operators.compute(path, apart, bundle.read_golden(golden)[0])
    file = f"{graph}_{signature}.operators.tflite"

    def tensors(names):
        return {n: (f"{graph}_{signature}/{n}.bin", values[n].tobytes()) for n in names}

    return [
        plan.Recorded(file, apart.model, op.signature, tensors(op.inputs), tensors(op.outputs))
        for op in apart.operators
    ]


def compare(handset: Handset, bundle: Bundle) -> tuple[list[dict], list[dict]]:
    """Differences of the recorded calls, and of the operators of those calls that differ."""
    rows = handset.run(plan.goldens(bundle), None)[0]["goldens"]
    graphs = {spec.file: name for name, spec in bundle.manifest.graphs.items()}
    unequal = sorted({(graphs[r["graph"]], r["signature"]) for r in rows if r["different"]})
    calls = [
        call
        for graph, signature in unequal
        if graph != "post"  # no int8 graph: its differences are those of floats
        for call in operator_calls(bundle, graph, signature)
    ]
    alone = handset.run(plan.comparison(calls), None)[0]["goldens"] if calls else []
    return rows, alone


def tensor_table(rows: Sequence[dict]) -> list[list]:
    """One row a recorded output: elements, off by one, by more, largest difference."""
    return [
        [f"{r['graph']}:{r['signature']}", r["tensor"], r["elements"],
         r["elements"] - r["different"], r["by_one"], r["different"] - r["by_one"], r["largest"]]
        for r in rows
    ]  # fmt: skip


def operator_table(rows: Sequence[dict]) -> list[list]:
    """One row a kind of operator in a graph, those that differ first."""
    groups: dict[tuple[str, str], list[dict]] = collections.defaultdict(list)
    for row in rows:
        graph = row["graph"].removesuffix(".operators.tflite")
        groups[graph, row["signature"].rpartition("_")[0]].append(row)
    table = [
        [graph, kind, len(group), sum(not r["different"] for r in group),
         sum(r["elements"] for r in group), sum(r["by_one"] for r in group),
         sum(r["different"] - r["by_one"] for r in group)]
        for (graph, kind), group in groups.items()
    ]  # fmt: skip
    return sorted(table, key=lambda row: (row[0], -row[5] - row[6], row[1]))


def page(result: dict) -> str:
    """The results as Markdown."""
    lines = ["# Recorded outputs on emulated arm64 cores", ""]
    lines.append(
        f"Bundle {result['bundle']}, {result['date']}, version {result['code_version']}. Recorded "
        "on x86-64; every graph gets the recorded inputs. “Largest” is in steps of int8, of floats "
        "in parts of the largest value. Not devices: what is computed counts here, not how fast."
    )
    for cpu, found in result["cpus"].items():
        lines += ["", f"## {cpu} ({pixel.CPUS[cpu]})", ""]
        header = ["graph", "output", "elements", "byte-equal", "off by one", "by more", "largest"]
        lines.append(_table(tensor_table(found["tensors"]), header))
        if found["operators"]:
            words = "Operators of the graphs that differ, each with the inputs of x86-64:"
            lines += ["", words, ""]
            header = ["graph", "operator", "number", "byte-equal", "elements", "off by one",
                      "by more"]  # fmt: skip
            lines.append(_table(operator_table(found["operators"]), header))
            kinds = {row[1] for row in operator_table(found["operators"]) if row[5] + row[6]}
            rest = sum(not r["different"] for r in found["operators"])
            named, number = ", ".join(sorted(kinds)) or "none", len(found["operators"])
            words = f"Operators that differ by themselves: {named}; the other {rest} of {number} are"
            lines += ["", f"{words} byte-equal."]
    return "\n".join(lines) + "\n"


def _table(rows, header) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.bundle:
        raise errors.UserError("--bundle is missing, for example --bundle=bundles/paper/int8")
    bundle, parts = Bundle.load(FLAGS.bundle), payload.arm64()
    cpus = {}
    with rig.server(adb_lib.find_adb()) as program:
        for cpu in pixel.CPUS:
            with pixel.booted(cpu) as address:
                handset = Handset(rig.connected(program, address), parts, FOLDER, job_s=600.0)
                handset.prepare()
                tensors, alone = compare(handset, bundle)
                cpus[cpu] = {"tensors": tensors, "operators": alone}
                print(f"{cpu}: {len(tensors)} tensors, {len(alone)} operators", flush=True)
            rig.disconnect(program)
    manifest = bundle.manifest
    result = {
        "bundle": f"{manifest.name} {manifest.precision} of {manifest.created}",
        "date": provenance.now(),
        "code_version": provenance.code_version(),
        "cpus": cpus,
    }
    pages.publish(FLAGS.output, result, page(result))


if __name__ == "__main__":
    flags.DEFINE_string("bundle", "", "Bundle to compare. Example: --bundle=bundles/paper/int8")
    flags.DEFINE_string(
        "output", "", "Results, as PATH.json and PATH.md. Example: results/device_goldens"
    )
    errors.run(main)
