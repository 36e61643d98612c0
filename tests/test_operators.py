"""Graphs taken apart into their operators, and the comparison of each with what it should compute."""

import flagless
import numpy as np
import pytest
import tiny_bundle

from benchmarks import operators
from benchmarks.runner import build, local, plan

goldens = flagless.program("benchmarks.goldens")


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle.load("int8")


def test_operators_one_after_another_are_the_graph(bundle, tmp_path):
    for golden in bundle.manifest.golden:
        if golden.graph == "post":
            continue
        inputs, outputs = bundle.read_golden(golden)
        content = bundle.graph_path(golden.graph).read_bytes()
        apart = operators.take_apart(content, golden.signature)
        (tmp_path / "apart.tflite").write_bytes(apart.model)
        values = operators.compute(tmp_path / "apart.tflite", apart, inputs)
        assert sorted(apart.outputs) == sorted(outputs)
        for name, array in outputs.items():
            np.testing.assert_array_equal(values[apart.outputs[name]], array)
        kinds = [operator.kind for operator in apart.operators]
        assert "CONV_2D" in kinds and len(set(op.signature for op in apart.operators)) == len(kinds)
    with pytest.raises(ValueError, match="'none' is not one of"):
        operators.take_apart(content, "none")


def test_the_operator_that_differs_is_named(bundle):
    try:
        build.build(build.host())
    except build.NoCompiler as error:
        pytest.skip(str(error))
    calls = goldens.operator_calls(bundle, "memory", "step")
    rows = local.run(plan.comparison(calls))[0]["goldens"]
    assert {row["different"] for row in rows} == {0} and len(rows) >= len(calls) > 5
    (at,) = [i for i, call in enumerate(calls) if call.signature.startswith("SPLIT")][:1]
    name = next(iter(calls[at].outputs))
    file, data = calls[at].outputs[name]
    wrong = bytearray(data)
    wrong[3], wrong[8] = wrong[3] ^ 1, wrong[8] ^ 32
    calls[at] = plan.Recorded(
        calls[at].file, calls[at].model, calls[at].signature, calls[at].inputs,
        calls[at].outputs | {name: (f"{file}.wrong", bytes(wrong))},
    )  # fmt: skip
    rows = local.run(plan.comparison(calls))[0]["goldens"]
    table = goldens.operator_table(rows)
    graph, kind, number, equal, _, by_one, more = table[0]
    assert (graph, kind, by_one, more) == ("memory_step", "SPLIT", 1, 1) and equal == number - 1
    assert all(row[5] + row[6] == 0 for row in table[1:])


def test_the_page_counts_equal_off_by_one_and_more():
    def row(graph, signature, tensor, different, by_one):
        return {"graph": graph, "signature": signature, "tensor": tensor, "elements": 100,
                "different": different, "by_one": by_one, "largest": "3"}  # fmt: skip

    tensors = [row("memory.tflite", "step", "boxes", 7, 5), row("f0.tflite", "x", "features", 0, 0)]
    alone = [row("memory_step.operators.tflite", "LOGISTIC_4", "t9", 2, 2),
             row("memory_step.operators.tflite", "CONV_2D_5", "t10", 0, 0)]  # fmt: skip
    text = goldens.page(
        {"bundle": "b", "date": "d", "code_version": "v",
         "cpus": {"cortex-a76": {"tensors": tensors, "operators": alone},
                  "cortex-a710": {"tensors": tensors[1:], "operators": []}}}
    )  # fmt: skip
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    assert ["", "memory.tflite:step", "boxes", "100", "93", "5", "2", "3", ""] in cells
    assert ["", "memory_step", "LOGISTIC", "1", "0", "100", "2", "0", ""] in cells
    assert "differ by themselves: LOGISTIC; the other 1 of 2 are byte-equal" in text
    assert text.count("Operators of the graphs") == 1
