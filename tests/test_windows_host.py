"""The page of Patchwork's latency: ratios are of the same round, and what measures is the engines'."""

import flagless
import pytest

import memvid_tf  # noqa: F401  (before TensorFlow)

windows_host = flagless.program("benchmarks.windows_host")
FOUND = {
    ("int8", None): [{"step": 10.0}, {"step": 20.0}, {"step": 10.0}],
    ("int8", "1/4"): [
        {"step": 3.0, "graphs": 2.5, "attention": 1.0},
        {"step": 8.0, "graphs": 7.0, "attention": 2.0},
        {"step": 3.5, "graphs": 3.0, "attention": 0.5},
    ],
}


def test_ratios_are_of_one_round():
    (row,) = windows_host.rows_of(FOUND)
    assert (row["ratio"], row["ratio_least"], row["ratio_most"]) == (0.35, 0.3, 0.4)
    assert row["ratio_with_attention"] == pytest.approx(0.4)
    assert (row["plain_ms"], row["step_ms"], row["ideal"]) == (10.0, 3.5, 0.25)
    result = {
        "rounds": 3,
        "runs": 5,
        "engine": "python",
        "load_average": 0.5,
        "rows": [row],
        "provenance": {"machine": {"processor": "none"}, "date": "today", "code_version": "1"},
    }
    page = windows_host.markdown(result)
    assert "0.350 (0.300 to 0.400)" in page and " 0.33 |" in page


def test_what_a_step_is(monkeypatch):
    """Post-processing is taken out, attention stands beside it."""

    class Engine:
        def graph(self, path, signature, threads, runs, warm_up, inputs):
            assert (signature, threads, runs) == (None, 1, 7)
            return {"latency_us": [400.0 if "attention" in str(path) else 9000.0] * 3}

        def schedule(self, bundle, setting, frames):
            assert (setting.name, setting.threads, setting.frames) == ("scanning", 1, 7)
            means = {"extract": 1500.0, "memory": 200.0, "post": 300.0}
            return {"latency_us": [2000.0, 2300.0, 9000.0], "mean_us": means}

    class FakeBundle:
        def graph_path(self, name):
            return f"{name}.tflite"

    class FakeBundles:
        load = staticmethod(lambda path: FakeBundle())

    monkeypatch.setitem(windows_host.ENGINES, "fake", Engine)
    monkeypatch.setattr(windows_host, "Bundle", FakeBundles)
    monkeypatch.setattr(windows_host.schedules, "random_frames", lambda *_, seed: [])
    ways = windows_host.Turns("work", "fake", 7).ways
    assert len(ways) == 6
    assert ways["int8", "1/4"]() == {"step": 2.0, "graphs": 1.7, "attention": 0.4}
    assert ways["float32", None]() == {"step": 9.0}
