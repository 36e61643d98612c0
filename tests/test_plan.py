"""What `benchmarks.plan` recommends."""

import os
import subprocess
import sys
from pathlib import Path

import flagless
import pytest
import tiny_patchwork

from benchmarks import measurements as schema
from memvid_tf.errors import UserError
from memvid_tf.evaluation.streaming import Latencies

plan = flagless.program("benchmarks.plan")
ROOT = Path(__file__).parents[1]
LATENCIES = Latencies({"f0": [30.0], "f1": [4.0]}, {"f0": 1.0, "f1": 1.0}, 0.5, 0.25)


def option(mode, mean, worst, accuracy, threads=1):
    return plan.Option(mode, threads, mean, worst, mean, accuracy)


def test_times_of_a_mode():
    f0 = plan.timing("f0", 1, LATENCIES, 1.0)
    assert (f0.typical_ms, f0.worst_ms, f0.mean_ms) == (31.0, 31.0, 31.0)
    tau = plan.timing("9", 1, LATENCIES, 0.1)
    assert (tau.typical_ms, tau.worst_ms) == (5.0, 31.0) and tau.mean_ms == pytest.approx(7.6)
    f1 = plan.timing("f1", 1, LATENCIES, 0.0)
    assert (f1.worst_ms, f1.mean_ms) == (5.0, 5.0)
    beside = plan.timing("async9", 1, LATENCIES, 0.1)
    assert (beside.worst_ms, beside.mean_ms) == (5.0, 5.0)
    learned = plan.timing("adaptive", 1, LATENCIES, 0.1)
    assert learned.mean_ms == pytest.approx(7.85)
    assert plan.timing("adaptive+async", 1, LATENCIES, 0.1).worst_ms == 5.25


def test_the_most_accurate_of_what_fits_is_recommended():
    options = [
        option("f0", 31, 31, 0.70), option("9", 7.6, 31, 0.66), option("async9", 5, 5, 0.64),
        option("async4", 5.1, 5.1, 0.641), option("f1", 5, 5, 0.3),
    ]  # fmt: skip
    assert [o.mode for o in plan.recommend(options, 30, 33)] == ["f0", "9"]
    # f0's frames are too long for 20 ms; .001 mAP is no reason to be slower.
    assert [o.mode for o in plan.recommend(options, 30, 20)] == ["async9", "async4"]
    assert [o.mode for o in plan.recommend(options, 60, 40)] == ["9", "async9"]
    assert plan.recommend(options, 500, 20) == (None, None)
    assert [o.mode for o in plan.recommend(options[2:3], 30, 20) if o] == ["async9"]


def test_advice_names_runner_up_or_what_is_nearest():
    options = [option("f0", 31, 31, 0.7), option("async9", 5, 5, 0.64, threads=2)]
    text = plan.advice(options, 30, 33)
    assert "--mode=f0 with 1 thread(s), expected streaming mAP 0.700" in text
    assert "runner-up: --mode=async9 with 2 thread(s), streaming mAP 0.640" in text
    text = plan.advice(options, 300, 2)
    assert "nothing fits 300 fps and at most 2 ms a frame" in text and "async9 with 2" in text


def test_frames_that_were_left_out_cost_nothing():
    def score(threads):
        return {"4": {"mean_ap": 0.5 + threads / 10, "f0_share": 0.1, "processed_share": 0.5}}

    found = plan.options_for(lambda threads: LATENCIES, [1, 2], score)
    assert [(o.threads, o.accuracy) for o in found] == [(1, 0.6), (2, 0.7)]
    assert found[0].mean_ms == pytest.approx(0.2 * 31 + 0.8 * 5)


def test_results_without_the_bundle_are_refused():
    with pytest.raises(UserError, match="no measurement of a bundle in int8; measure it"):
        plan.settings_of(schema.Results("r.json"), "int8")


def test_a_failed_evaluation_names_its_command(tmp_path):
    with pytest.raises(
        UserError, match=r"python -m memvid_tf.evaluate --bundle=.*none --streaming"
    ):
        plan.streaming_scores(str(tmp_path / "none"), "", "r.json", 1, 30.0, ["f0"])


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.plan", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ, check=False,
    )  # fmt: skip


def test_wrong_flags():
    done = run("--results=r.json")
    assert done.returncode == 2 and "--bundle is missing" in done.stderr


def test_windows_are_refused():
    _, bundle = tiny_patchwork.exported("detector")
    done = run("--results=r.json", f"--bundle={bundle.path}")
    assert done.returncode == 2 and "system is 'patchwork', wanted" in done.stderr
    assert "Traceback" not in done.stderr
