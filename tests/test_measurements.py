"""Results files, what is computed from them, and the pages."""

import base64
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import flagless
import numpy as np
import pytest
import tiny_bundle

from benchmarks import measurements as schema
from benchmarks import plots
from benchmarks import tasks as work
from benchmarks.engines import PythonEngine
from memvid_tf.errors import UserError
from memvid_tf.evaluation import streaming

host = flagless.program("benchmarks.host")
report = flagless.program("benchmarks.report")
ROOT = Path(__file__).parents[1]
SETTING = schema.Setting("phone", "net int8", "schedule", "sync τ=9", 1, "runner")


def measurement(samples_ms, repeat=0, setting=SETTING, physical=True, **result):
    result = {"latency_us": [1e3 * ms for ms in samples_ms], "extractors": "01" * 50, **result}
    return schema.Measurement(
        setting, repeat, "int8", 9, {"name": setting.device, "physical": physical}, {"m": "1"},
        {"before": {}, "after": {"battery_c": 30.0 + repeat}}, result, f"2026-01-0{repeat + 1}", "v",
    )  # fmt: skip


def repeats(scale, count=7, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    return [measurement(scale * rng.normal(10, 0.2, 50), i, **kwargs) for i in range(count)]


def test_a_file_grows_and_is_read_back(tmp_path):
    results = schema.Results.load(tmp_path / "r.json", missing_ok=True)
    for entry in repeats(1.0, 3):
        results.append(entry)
        assert schema.Results.load(tmp_path / "r.json").measurements == results.measurements
    assert results.has(SETTING, 2, {"m": "1"}) and not results.has(SETTING, 3, {"m": "1"})
    with pytest.raises(UserError, match="since when m changed; name a new --output"):
        results.has(SETTING, 3, {"m": "2"})


def test_what_was_finished_survives_a_failed_write(tmp_path, monkeypatch):
    results = schema.Results.load(tmp_path / "r.json", missing_ok=True)
    first, second = repeats(1.0, 2)
    results.append(first)
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        results.append(second)
    assert schema.Results.load(tmp_path / "r.json").measurements == [first]
    assert os.listdir(tmp_path) == ["r.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(schema_version=1), "schema_version 1"),
        (lambda c: c["measurements"][0].pop("device"), "device"),
        (lambda c: c["measurements"][0]["setting"].update(kind="nap"), "'nap' is not one of"),
        (lambda c: c["measurements"][0]["result"].update(latency_us=[]), "no samples"),
        (lambda c: c["measurements"][0]["result"].update(latency_us=[None]), "no numbers"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, change, message):
    path = tmp_path / "r.json"
    schema.Results.load(path, missing_ok=True).append(repeats(1.0, 1)[0])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        schema.Results.load(path)


def test_summaries_are_medians_over_repeats():
    first = measurement([1, 2, 3, 4, 100], 0, invoke_us=[109000.0], effective_tau=9.0)
    second = measurement([2, 3, 4, 5, 6], 1, invoke_us=[16000.0], effective_tau=10.0)
    third = measurement([2, 2, 2, 2, 2], 2, invoke_us=[10000.0])
    (found,) = schema.summaries([first, second, third])
    assert (found.p50_ms, found.mean_ms, found.max_ms) == (3.0, 4.0, 100.0)
    assert (found.repeats, found.samples, found.effective_tau) == (3, 15, 9.5)
    assert found.fps == 250.0 and found.per_repeat_ms == (22.0, 4.0, 2.0)
    assert found.overhead_share == pytest.approx(110 / 109 - 1)
    assert found.tail == pytest.approx(5.96 / 4)  # of (4 + .96·96) / 3, (5 + .96) / 4 and 1


def test_rows_show_the_share_of_f0_and_starvation_is_warned_of():
    """A policy that never asks for f0 is as fast as f1, which is no gain."""
    names = {"adaptive": "1" * 5, "adaptive+async": "11011", "f1": "1" * 5, "scanning": "01111"}
    found = [
        dataclasses.replace(
            measurement([1, 1, 1, 1, 1], 0, extractors=ran),
            setting=dataclasses.replace(measurement([1], 0).setting, kind="schedule", name=name),
        )
        for name, ran in names.items()
    ]
    table = report.rows(schema.summaries(found))
    column = report.HEADER.index("share of f0")
    assert {row[1]: row[column] for row in table} == {
        "adaptive": "0.0 %", "adaptive+async": "20.0 %", "f1": "0.0 %", "scanning": "",
    }  # fmt: skip
    warned = report.markdown(found)
    assert "**Warning:** f0 never ran in" in warned and warned.count("never ran") == 1
    named = warned.partition("never ran in ")[2].partition(":")[0]
    assert named.endswith(" adaptive") and "async" not in named and "f1" not in named
    assert "never ran" not in report.markdown(found[1:])


def test_a_difference_is_claimed_only_where_there_is_one():
    def verdict(before, after):
        (a,), (b,) = schema.summaries(before), schema.summaries(after)
        return schema.compare(a, b)

    assert verdict(repeats(1.0, seed=1), repeats(1.0, seed=2)).verdict == "no difference"
    slower = verdict(repeats(1.0, seed=1), repeats(1.1, seed=2))
    assert slower.verdict == "slower" and slower.low > 1.0
    assert verdict(repeats(1.0, seed=1), repeats(0.9, seed=2)).verdict == "faster"
    few = verdict(repeats(1.0, 2), repeats(2.0, 2))
    assert few.verdict == "too few repeats to say" and few.ratio == pytest.approx(2.0, rel=0.02)


def test_false_alarms_are_rare():
    """Two results of the same thing: at most about one in eight intervals misses 1 (the bootstrap of
    seven medians is somewhat narrow)."""
    alarms = 0
    for seed in range(60):
        (a,), (b,) = (schema.summaries(repeats(1.0, seed=2 * seed + side)) for side in (0, 1))
        alarms += schema.compare(a, b).verdict != "no difference"
    assert alarms <= 9


def run(module, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, **environment}, timeout=300, check=False,
    )  # fmt: skip


def test_compare_is_a_command(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        results = schema.Results.load(tmp_path / f"{name}.json", missing_ok=True)
        for entry in repeats(1.0, seed=seed):
            results.append(entry)
    paths = [str(tmp_path / f"{name}.json") for name in "ab"]
    done = run("benchmarks.report", "compare", *paths)
    assert done.returncode == 0 and "no difference" in done.stdout
    done = run("benchmarks.report", "compare", paths[0])
    assert done.returncode == 2 and "compare takes two results files, not 1" in done.stderr
    done = run("benchmarks.report", str(tmp_path / "none.json"))
    assert done.returncode == 2 and "no such file" in done.stderr and "Traceback" not in done.stderr


def test_the_page_is_whole_and_needs_no_network():
    hot = dataclasses.replace(SETTING, mode="sustained")
    paced = dataclasses.replace(SETTING, name="<b>&", kind="graph")
    emulated = dataclasses.replace(SETTING, device="emulated Pixel")
    text = report.page(
        [*repeats(1.0), *repeats(1.0, setting=hot), *repeats(1.0, setting=paced),
         *repeats(1.0, setting=emulated, physical=False)],
        report.Accuracy("int8", {"9": 0.5}),
    )  # fmt: skip
    assert "&lt;b&gt;&amp;" in text and "<b>&" not in text
    for title in ("over time", "histogram", "sustained", "mAP against latency"):
        assert title in text
    assert text.count("these times are not latencies") == 1
    assert "http" not in text and "<script" not in text
    assert "nan" not in text.lower()


def test_accuracy_is_of_one_precision(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"precision": "float32", "modes": {"9": {"mean_ap": 0.5}}}))
    accuracy = report.read_accuracy(str(path))
    assert accuracy == report.Accuracy("float32", {"9": 0.5})
    assert "mAP against latency" not in report.page(repeats(1.0), accuracy)  # those are int8
    path.write_text("{}")
    with pytest.raises(UserError, match="not what memvid_tf.evaluate --bundle --output writes"):
        report.read_accuracy(str(path))


def test_ratios_are_those_of_the_paper():
    def schedules(precision, f0, sync, beside):
        for name, ms in (("f0", f0), ("sync τ=9", sync), ("async τ=9", beside)):
            setting = dataclasses.replace(SETTING, name=name, subject=precision)
            yield dataclasses.replace(measurement([ms], setting=setting), precision=precision)

    group = schema.summaries([*schedules("int8", 10, 2.5, 1.25), *schedules("float32", 20, 5, 3)])
    assert report.ratios(group) == [
        ["interleaved over f0 only, int8", "5.60", "4.00"],
        ["int8 over float32, interleaved", "1.74", "2.00"],
        ["asynchronous over synchronous, int8", "1.77", "2.00"],
    ]


def test_two_bundles_of_one_precision_are_not_divided_by_each_other():
    def schedules(subject, tau, f0, sync):
        for name, ms in (("f0", f0), (f"sync τ={tau}", sync)):
            setting = dataclasses.replace(SETTING, name=name, subject=subject)
            made = measurement([ms], setting=setting)
            yield dataclasses.replace(made, tau=None if name == "f0" else tau)

    slow, fast = schedules("large int8", 9, 100, 20), schedules("small int8", 9, 10, 2)
    assert report.ratios(schema.summaries([*slow, *fast])) == [
        ["large: interleaved over f0 only, int8", "5.60", "5.00"],
        ["small: interleaved over f0 only, int8", "5.60", "5.00"],
    ]
    taus = [*schedules("net int8", 9, 10, 2), *list(schedules("net int8", 4, 10, 4))[1:]]
    assert [row[0::2] for row in report.ratios(schema.summaries(taus))] == [
        ["interleaved over f0 only, int8, τ=4", "2.50"],
        ["interleaved over f0 only, int8, τ=9", "5.00"],
    ]
    both = [*schedules("large int8", 9, 100, 20), *schedules("small int8", 9, 10, 2)]
    with pytest.raises(UserError, match="results hold large int8, small int8; give results of"):
        report.page(both, report.Accuracy("int8", {"9": 0.5}))


def test_another_delegation_is_another_measurement(tmp_path):
    plain = schema.Setting("phone", "net", "graph", "f0", 1, "benchmark_model")
    gpu = dataclasses.replace(plain, flags="--use_gpu=true")
    results = schema.Results(None, repeats(1.0, 3, setting=plain))
    assert results.has(plain, 2, {"m": "1"}) and not results.has(gpu, 2, {"m": "1"})
    # The driver falls back without an error: only the output tells.
    whole = repeats(1.0, 3, setting=gpu, delegates="GPU: 64 of 64 nodes")
    part = repeats(2.0, 3, setting=gpu, delegates="GPU: 57 of 64 nodes")
    found = schema.summaries([*results.measurements, *whole, *part])
    assert [summary.repeats for summary in found] == [3, 3, 3]
    page = report.markdown([*results.measurements, *whole, *part])
    assert "benchmark_model --use_gpu=true" in page and "f0 (GPU: 57 of 64 nodes)" in page
    with pytest.raises(UserError, match="nothing in common.*delegated nodes"):
        report.comparison(schema.Results(None, whole), schema.Results(None, part))


def test_what_changed_is_refused_before_anything_is_measured(tmp_path):
    tasks = [
        work.Task(dataclasses.replace(SETTING, name=name), "int8", 9, {"m": now}, 1, pytest.fail)
        for name, now in (("new", "1"), ("sync τ=9", "2"))
    ]
    results = schema.Results(tmp_path / "r.json", repeats(1.0, 1))
    with pytest.raises(UserError, match="since when m changed"):
        host.measure(tasks, PythonEngine(), 1, 0, results, {"name": "phone", "physical": True})
    assert len(results.measurements) == 1


def test_a_plot_shows_every_point():
    series = [
        plots.Series("curve", [0, 1, 2], [5.0, 3.5, 4.0]),
        plots.Series("marks", [1], [3.5], "dots", ["the least"]),
        plots.Series("", [0, 1], [1, 2], "bars"),
    ]
    image = plots.plot("a < b", "frame", "ms", series)
    assert image == plots.plot("a < b", "frame", "ms", series)  # equal data, equal bytes
    assert image.startswith('<img alt="a &lt; b" src="data:image/svg+xml;base64,')
    drawn = base64.b64decode(image.partition("base64,")[2].rstrip('">')).decode()
    # Text is drawn as outlines; a comment before each says what it is.
    for text in ("frame", "ms", "curve", "marks", "the least"):
        assert f"<!-- {text} -->" in drawn
    with pytest.raises(ValueError, match="plot 'x' has no points"):
        plots.plot("x", "", "", [plots.Series("", [], [])])
    with pytest.raises(ValueError, match="style 'pie' is not one of"):
        plots.plot("x", "", "", [plots.Series("", [1], [1], "pie")])


def test_this_machine_is_measured_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    bundle, engine = tiny_bundle.load(), PythonEngine()
    wish = work.Wish([1], runs=3, frames=20, tau=3)
    tasks = work.all_tasks([bundle], [bundle.graph_path("f0")], "here", engine.name, wish)
    device = {"name": "here", "physical": True}
    path = tmp_path / "host.json"

    def stop_after(count):
        left = iter(range(count))

        def run(task, engine):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return task.run(engine)

        return [dataclasses.replace(t, run=lambda e, t=t: run(t, e)) for t in tasks]

    results = schema.Results.load(path, missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        host.measure(stop_after(4), engine, 2, 0, results, device)
    results = schema.Results.load(path)
    kept = list(results.measurements)
    assert len(kept) == 4
    host.measure(tasks, engine, 2, 0, results, device)
    assert results.measurements[:4] == kept and len(results.measurements) == 2 * len(tasks)
    found = {s.setting.name: s for s in schema.summaries(results.measurements)}
    assert found["sync τ=3"].effective_tau == 3 and found["sync τ=3"].samples == 40
    assert "| tiny int8" in report.markdown(results.measurements)
    latencies = streaming.read_latencies(str(path), "int8", 1, trace=True)
    assert len(latencies.extract_ms["f0"]) == 40 and latencies.policy_ms is None


def test_results_have_one_writer(tmp_path):
    """Two would each replace what the other one added."""
    output = str(tmp_path / "r")
    with schema.Results.held(output) as results:
        with pytest.raises(UserError, match="r.json' is in use by process"):
            with schema.Results.held(output):
                pytest.fail("two at once")
        results.append(repeats(1.0, 1)[0])
    with schema.Results.held(output) as results:
        assert len(results.measurements) == 1
    with schema.Results.held("") as results, schema.Results.held(""):
        results.append(repeats(1.0, 1)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_results_that_are_no_file_are_named(tmp_path, kind):
    path = tmp_path / "r.json"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(UserError, match=f"r.json: it is a {kind}, wanted a file"):
        schema.Results.load(path, missing_ok=True)


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--bundle is missing"),
        (["--bundle=none"], "bundle none: no such folder"),
        (["--peer=none.tflite"], "--peer=none.tflite does not exist"),
        (["--peer=x", "--threads=0"], "--threads='0' is not in 1.."),
    ],
)
def test_wrong_flags_of_the_host(flags, message):
    done = run("benchmarks.host", *flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
