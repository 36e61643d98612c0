"""The report of a bundle: what it measures, and that it notices a bundle that is off."""

import itertools
import json

import numpy as np
import pytest
import tiny_run

from export import verify
from memvid_tf.evaluation.bundle_network import BundleNetwork
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import dequantizer
from memvid_tf.runtime.manifest import TensorSpec
from memvid_tf.tasks import trained

TENSORS = [
    "f0/features", "memory/c_next", "memory/h_next", "memory/box_encodings", "memory/class_logits"
]  # fmt: skip


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(tiny_run.bundle("int8"))


@pytest.fixture(scope="module")
def report(bundle):
    return json.loads((bundle.path / "report.json").read_text())


@pytest.mark.slow
def test_the_report_of_an_export(bundle, report, tmp_path):
    assert (report["bundle"], report["precision"]) == ("int8", "int8")
    assert report["checkpoint_step"] == tiny_run.QAT_STEPS
    assert report["provenance"]["packages"]["ai-edge-litert"]
    assert [row["frame"] for row in report["drift"]] == list(tiny_run.DRIFT_FRAMES)
    for row in report["drift"]:
        assert list(row["tensors"]) == TENSORS
        off = [name for name, value in row["tensors"].items() if value["max"] >= 1.5]
        assert row["first_off"] == (off[0] if off else None)
        for value in row["tensors"].values():
            assert 0 <= value["mean"] <= value["max"] and 0 <= value["within_one"] <= 1
            assert value["mean"] < 5  # rounding, not another network
    # The accuracies are those of the evaluation program, and near one another.
    flags = dict(bundle=bundle.path, modes=",".join(verify.MODES), output=tmp_path / "bundle.json")
    assert tiny_run.program("memvid_tf.evaluate", **flags) == 0
    modes = json.loads((tmp_path / "bundle.json").read_text())["modes"]
    accuracy = report["mAP"]
    assert accuracy["bundle"] == {name: result["mean_ap"] for name, result in modes.items()}
    for name, value in accuracy["checkpoint"].items():
        assert accuracy["bundle"][name] == pytest.approx(value, abs=0.05)

    text = (bundle.path / "report.md").read_text()
    for name, value in accuracy["checkpoint"].items():
        rows = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
        assert len(rows) == 1 and f"{value:.3f}".rstrip("0") in rows[0]
    assert "steps of the int8 grid" in text and report["provenance"]["code_version"] in text


def test_distances_are_in_steps():
    spec = TensorSpec((1, 4), "int8", scale=0.5, zero_point=-3)
    expected = np.array([[0.0, 1.0, -1.0, 2.0]])
    # 0, 1, 2 and 5 steps off.
    stored = np.array([[-3, 0, -3, -4]], np.int8)
    found = verify.difference(expected, stored, spec)
    assert found == {"mean": pytest.approx(2.0), "max": pytest.approx(5.0), "within_one": 0.5}
    spec = TensorSpec((1, 4), "float32")
    found = verify.difference(expected, (expected + 0.25).astype(np.float32), spec)
    assert found == {"mean": 0.25, "max": 0.25, "within_one": 1.0}


class Tensor(np.ndarray):
    """An array that also looks like a tensor of TensorFlow."""

    def numpy(self):
        return np.asarray(self)


class Simulated:
    """Stands for the checkpoint: the bundle itself in real numbers, with faults to be found."""

    forgets = False

    def __init__(self, bundle):
        self._network, manifest = BundleNetwork(bundle), bundle.manifest
        specs = manifest.graphs["memory"].signatures["step"].outputs
        self._real = {name: dequantizer(spec) for name, spec in specs.items()}
        features = manifest.tensor("f0/serving_default/features", "outputs")
        self._features, self.steps = dequantizer(features), {n: s.scale for n, s in specs.items()}
        self.steps["features"] = features.scale

    def fault(self, name, values):
        return values

    def _given(self, name, values):
        return self.fault(name, np.array(values, np.float64)).view(Tensor)

    def extract(self, frames, extractor):
        [self._stored] = self._network.extract(frames, extractor)
        return self._given("features", self._features(self._stored))

    def initial_state(self, batch):
        [state] = self._network.initial_state(batch)
        return state

    def step(self, features, state, extractor):
        stored = getattr(self, "_kept", state)
        *heads, written = self._network.step_stored(self._stored, stored, extractor)
        self._kept = stored if self.forgets else written
        names = ("box_encodings", "class_logits", "c_next", "h_next")
        real = [self._given(n, self._real[n](x)) for n, x in zip(names, (*heads, *written))]
        return real[0], real[1], real[2:]


def drift(bundle, monkeypatch, **faults):
    network = type("Faulty", (Simulated,), faults)(bundle)
    monkeypatch.setattr(verify, "CheckpointNetwork", lambda *_: network)
    monkeypatch.setattr(verify, "DRIFT_FRAMES", (1, 4, 8))
    trained = type("Trained", (), {"model": None, "policy": None})
    done = []
    rows = verify.drift(trained, bundle, iter(tiny_run.frames(6)[0]), advance=done.append)
    # The video ends before the last of the frames that were asked for.
    assert [row["frame"] for row in rows] == [1, 4] and done == [1] * 6
    return rows, network


@pytest.mark.slow
def test_no_drift_where_nothing_differs(bundle, monkeypatch):
    rows, _ = drift(bundle, monkeypatch)
    for row in rows:
        assert row["first_off"] is None
        for value in row["tensors"].values():
            # Real numbers are rounded to float32 on the way.
            assert value["max"] < 1e-4 and value["within_one"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TENSORS)
def test_the_tensor_that_departs_is_named(bundle, monkeypatch, name):
    short = name.partition("/")[2]

    def fault(self, where, values):
        if where == short:
            values.flat[5] += 3 * self.steps[where]
            values.flat[6] -= self.steps[where]
        return values

    for row in drift(bundle, monkeypatch, fault=fault)[0]:
        assert row["first_off"] == name
        for other, value in row["tensors"].items():
            assert value["max"] == pytest.approx(3 if other == name else 0, abs=1e-3)
        size = round(4 / row["tensors"][name]["mean"])
        assert row["tensors"][name]["within_one"] == pytest.approx(1 - 1 / size)


@pytest.mark.slow
def test_a_memory_that_is_not_fed_back_is_noticed(bundle, monkeypatch):
    first, later = drift(bundle, monkeypatch, forgets=True)[0]
    assert first["first_off"] is None
    assert later["first_off"] == "memory/c_next" and later["tensors"]["memory/c_next"]["max"] > 5
    assert later["tensors"]["f0/features"]["max"] < 1e-4


@pytest.mark.slow
def test_the_video_is_the_test_clips_over_and_over():
    data = tiny_run.params().task.validation_data
    once = tiny_run.TEST_CLIPS * tiny_run.TEST_FRAMES
    frames = list(verify.video(data, 2 * once + 3))
    assert len(frames) == 2 * once + 3
    for t, frame in enumerate(frames[once:]):
        np.testing.assert_array_equal(frame, frames[t])
    assert len({frame.tobytes() for frame in frames[:once]}) == once
    assert list(verify.video(data, 0)) == []


def test_data_without_a_whole_batch_is_refused():
    """It would be an endless video of no frames."""
    data = tiny_run.params().task.validation_data
    verify.check_data(data)
    few = data.replace(drop_remainder=True, global_batch_size=tiny_run.TEST_CLIPS + 1)
    with pytest.raises(ValueError, match="fewer than one batch"):
        verify.check_data(few)
    assert list(itertools.islice(verify.video(data, 5), 9))


def test_the_report_of_a_float_bundle(tmp_path):
    row = {"mean": 0.001, "max": 0.25, "within_one": 1.0}
    content = {
        "bundle": "little",
        "precision": "float32",
        "checkpoint_step": 3,
        "drift": [
            {"frame": 1, "tensors": {"f0/features": row}, "first_off": None},
            {"frame": 10, "tensors": {"f0/features": row}, "first_off": "memory/h_next"},
        ],
        "mAP": {"checkpoint": {"f0": 0.5, "9": 0.25}, "bundle": {"f0": 0.5, "9": 0.2}},
        "provenance": {"date": "2024-01-01", "code_version": "1.2.3"},
    }
    text = verify.write_report(str(tmp_path), content)
    assert json.loads((tmp_path / "report.json").read_text()) == content
    assert (tmp_path / "report.md").read_text() == text
    assert "# Verification of little (float32)" in text and "in units" in text
    assert "frame 1: none, frame 10: memory/h_next" in text and "-0.05" in text


@pytest.mark.slow
@pytest.mark.parametrize("cell, state", [("conv_gru", ["h"]), ("flow_guided", ["h", "key"])])
def test_drift_is_of_the_state_that_there_is(monkeypatch, cell, state):
    rival = Bundle.load(tiny_run.rival_bundle("int8", cell))
    monkeypatch.setattr(verify, "DRIFT_FRAMES", (1, 3))
    found = trained.load(tiny_run.rival_run(cell))
    rows = verify.drift(found, rival, iter(tiny_run.frames(3)[0]))
    assert [row["frame"] for row in rows] == [1, 3]
    for row in rows:
        written = [f"memory/{name}_next" for name in state]
        assert list(row["tensors"]) == [TENSORS[0], *written, *TENSORS[3:]]
        assert all(value["mean"] < 5 for value in row["tensors"].values())
