"""Streaming accuracy, on timelines worked out by hand."""

import dataclasses
import json

import numpy as np
import pytest

from memvid_tf.errors import UserError
from memvid_tf.evaluation import rollout, streaming
from memvid_tf.evaluation.streaming import Camera, Clock, Latencies
from memvid_tf.runtime.manifest import BoxCoder, PolicySpec
from memvid_tf.runtime.schedules import ACTIONS

FPS = 10.0  # a frame every 100 ms
MEMORY = {"f0": 20.0, "f1": 20.0}
SLOW = Latencies({"f0": [130.0], "f1": [30.0]}, memory_ms=MEMORY, update_ms=40.0)


class Tape:
    """A detector whose memory is the name of the frame that wrote it, and whose detections say
    which frame was seen by whom, and with which memory."""

    anchors = np.array([[0.5, 0.5, 1.0, 1.0]], np.float32)
    f1_only_reads = False

    def __init__(self, values=None, observes="memory"):
        self.policy = PolicySpec(ACTIONS, 3, 6.0, observes) if values else None
        self.values, self.asked, self.seen = values, [], []

    def initial_state(self, batch):
        return "empty"

    def step(self, features, state, extractor):
        self.seen.append(f"{features} on {state}")
        heads = np.zeros((1, 1, 4), np.float32), np.zeros((1, 1, 2), np.float32)
        return *heads, f"{features}"

    def choose(self, first, a, b):
        return a if first[0] else b

    def q_values(self, after, before, eta):
        self.asked.append((after, before, eta[0].tolist()))
        wanted = self.values[len(self.asked) - 1]
        return np.array([[1.0, 0.0] if wanted == "f0" else [0.0, 1.0]], np.float32)


def run(network, mode, latencies=SLOW, count=8):
    """Frames and times of the outputs, the frames of f0, and what was computed."""
    mode = rollout.parse_mode(mode)
    stream = streaming.stream_beside if mode.asynchronous else streaming.stream_in_turn
    outputs, f0_frames = stream(
        network, lambda extractor, t: f"{extractor} {t}", Camera(count, FPS), mode, Clock(latencies)
    )
    return [(o.frame, round(o.ready_ms, 6)) for o in outputs], f0_frames, network.seen


def test_a_camera_shows_the_newest_frame():
    camera = Camera(6, FPS)
    # Free at once, at once again, late, at the moment of a frame, and too late.
    assert [camera.take(now) for now in (0, 5, 250, 400, 600)] == [
        (0, 0), (1, 100), (2, 250), (4, 400), None,
    ]  # fmt: skip


def test_f0_alone_skips_frames():
    # 150 ms a frame: 0-150, then 1 (150-300), 3 (300-450), 4, 6, 7.
    outputs, f0_frames, _ = run(Tape(), "f0")
    assert outputs == [(0, 150), (1, 300), (3, 450), (4, 600), (6, 750), (7, 900)]
    assert f0_frames == [0, 1, 3, 4, 6, 7]


def test_what_is_shown_is_the_newest_that_is_ready():
    outputs = [
        streaming.Output(ready, frame, None, None)
        for frame, ready in [(0, 150), (1, 300), (3, 450), (4, 600), (6, 750), (7, 900)]
    ]
    # Nothing at 0 and 100 ms; what is ready at 300 ms counts at 300 ms.
    assert streaming.in_time(outputs, 8, FPS, 0.0) == [-1, -1, 0, 1, 1, 2, 3, 3]
    assert streaming.in_time(outputs, 8, FPS, 50.0) == [-1, 0, 0, 1, 2, 2, 3, 4]


def test_interleaving_counts_the_frames_that_are_processed():
    # f0 takes 150 ms and f1 50: both together keep up with two frames.
    outputs, f0_frames, seen = run(Tape(), "1")
    assert outputs == [
        (0, 150), (1, 200), (2, 350), (3, 400), (4, 550), (5, 600), (6, 750), (7, 800),
    ]  # fmt: skip
    assert f0_frames == [0, 2, 4, 6]
    assert seen[:4] == ["f0 0 on empty", "f1 1 on f0 0", "f0 2 on f0 0", "f1 3 on f0 2"]


def test_f0_beside_f1():
    # The first frame waits: f0 and update until 170, f1 until 220. Frame 1 is missed. f0 is due on
    # every second frame that is processed: 3 (300-470), 5 (500-670), 7.
    outputs, f0_frames, seen = run(Tape(), "async1")
    assert outputs == [(0, 220), (2, 270), (3, 350), (4, 450), (5, 550), (6, 650), (7, 750)]
    assert f0_frames == [0, 3, 5, 7]
    assert [line for line in seen if line.startswith("f1")] == [
        "f1 0 on f0 0", "f1 2 on f0 0", "f1 3 on f0 0", "f1 4 on f0 0",
        "f1 5 on f0 3", "f1 6 on f0 3", "f1 7 on f0 5",
    ]  # fmt: skip


def test_a_memory_that_arrives_while_f1_runs_is_used():
    # f0 and update need 110 ms, so the first frame ends at 160 and frame 1 at 210. There frame 2
    # begins, whose f0 is done at 320: after frame 3 was seen, before its step at 330.
    quick = Latencies({"f0": [70.0], "f1": [30.0]}, memory_ms=MEMORY, update_ms=40.0)
    _, f0_frames, seen = run(Tape(), "async1", quick, count=6)
    assert f0_frames == [0, 2, 4]
    assert "f1 2 on f0 0" in seen and "f1 3 on f0 2" in seen


def test_a_worker_that_is_busy_is_asked_later():
    slow = Latencies({"f0": [210.0], "f1": [30.0]}, memory_ms=MEMORY, update_ms=40.0)
    # First frame until 300: f0 250, f1 50. Then frame 3 at 300 is f1's, 4 is due (400-650), 5 and 6
    # find the worker busy, 7 (700) takes the turn that 6 could not.
    outputs, f0_frames, _ = run(Tape(), "async1", slow, count=9)
    assert [frame for frame, _ in outputs] == [0, 3, 4, 5, 6, 7, 8]
    assert f0_frames == [0, 4, 7]


def test_the_policy_costs_time_and_sees_what_was_processed():
    # With 60 ms for the policy f1 takes 110 ms in all, so that a frame is missed now and then; the
    # detections are ready before the policy has decided.
    paid = Latencies({"f0": [130.0], "f1": [30.0]}, memory_ms=MEMORY, update_ms=40.0, policy_ms=60.0)
    network = Tape(values=["f1", "f1", "f0", "f1", "f1", "f1", "f1"])
    outputs, f0_frames, _ = run(network, "adaptive", paid)
    # 0: 0-150, decided 210. 2: 210-260, 320. 3: 320-370, 430. 4 (f0): 430-580, 640. 6: 640-690, 750.
    assert outputs == [(0, 150), (2, 260), (3, 370), (4, 580), (6, 690), (7, 800)]
    assert f0_frames == [0, 4]
    assert network.asked[:4] == [
        ("f0 0", "empty", [0, 0, 0]), ("f0 0", "f0 0", [1, 0, 0]),
        ("f0 0", "f0 0", [1, 1, 0]), ("f0 4", "f0 0", [0, 1, 1]),
    ]  # fmt: skip


def test_a_candidate_is_shown_to_the_policy():
    network = Tape(values=["f1"] * 8, observes="candidate")
    run(network, "adaptive", count=3)
    assert [asked[:2] for asked in network.asked] == [
        ("f0 0", "empty"), ("f1 1", "f0 0"), ("f1 2", "f1 1"),
    ]  # fmt: skip


def test_the_policy_starts_the_worker_and_is_told_when_it_could_not():
    network = Tape(values=["f0"] * 8)
    _, f0_frames, _ = run(network, "adaptive+async", count=8)
    # As with async1, but asked on every frame: 2 (220-390) and 4 (400-570), 6 (600-770).
    assert f0_frames == [0, 2, 4, 6]
    assert network.asked[1] == ("f0 0", "f0 0", [0, 0, 0])
    assert network.asked[2] == ("f0 0", "f0 0", [1, 0, 0])  # wanted f0 on 3, but it still ran
    assert network.asked[3][:2] == ("f0 2", "f0 0")  # frame 4 is the first that reads it


def test_samples_are_used_in_turn():
    clock = Clock(Latencies({"f0": [1.0, 2.0], "f1": [3.0]}, 0.0, 0.0))
    assert [clock.extract_ms(e) for e in ("f0", "f1", "f0", "f0", "f1")] == [1, 3, 2, 1, 3]


class Perfect(Tape):
    """Finds the object of the frame it sees: a box of a quarter of the width that moves."""

    def extract(self, frames, extractor):
        return int(frames[0, 0, 0, 0])

    def step(self, features, state, extractor):
        center = 0.125 + 0.1 * features
        codes = [0.0, 10 * (center - 0.5), 0.0, 5 * np.log(0.25)]
        return (
            np.array([[codes]], np.float32),
            np.array([[[-9.0, 9.0]]], np.float32),
            "state",
        )


def moving_clip():
    t = np.arange(8)
    frames = np.zeros((1, 8, 8, 8, 3), np.uint8) + t.astype(np.uint8)[None, :, None, None, None]
    left = 0.1 * t
    boxes = np.stack([np.zeros(8), left, np.ones(8), left + 0.25], -1)[None, :, None]
    return {
        "frames": frames,
        "boxes": boxes.astype(np.float32),
        "classes": np.ones((1, 8, 1), np.int32),
        "tracks": np.zeros((1, 8, 1), np.int32),
        "num_frames": np.array([8], np.int32),
        "source_size": np.array([[8, 8]], np.int32),
    }


def test_the_score_is_of_what_was_known_in_time():
    def score(deadline_ms, mode="f1"):
        [result] = streaming.evaluate(
            Perfect(), [moving_clip()], [rollout.parse_mode(mode)], ["thing"],
            BoxCoder(10.0, 10.0, 5.0, 5.0), fps=FPS, latencies=SLOW, deadline_ms=deadline_ms,
        ).values()  # fmt: skip
        return result

    # f1 needs 50 ms. Looked at then, every frame shows its own box; at once, the one of the frame
    # before, whose IoU is .15 / .35: too little.
    assert score(50.0).score.mean_ap == pytest.approx(1.0)
    assert score(50.0).age_ms == pytest.approx(50.0)
    assert score(0.0).score.mean_ap == 0.0
    assert score(0.0).age_ms == pytest.approx(100.0)
    result = score(150.0, "f0").to_json()
    # Frames 0, 1, 3, 4, 6, 7 of 8 are processed.
    assert result["processed_share"] == result["f0_share"] == 0.75
    assert json.loads(json.dumps(result)) == result


def host_file(tmp_path, left_out=(), extra=()):
    samples = {
        "f0/serving_default": [9.0], "f1/serving_default": [2.0], "memory/step": [0.1, 0.4, 0.9],
        "memory/update": [0.3], "post/serving_default": [0.1], "policy/serving_default": [0.05],
        "f0": [9.5, 10.5, 11.5], "f1": [2.5, 0.2],
    }  # fmt: skip
    measurements = [
        {
            "precision": "int8",
            "setting": {
                "name": name, "threads": 1, "fps": 0.0, "device": "host", "subject": "tiny",
                "engine": "runner",
            },
            "result": {"latency_us": [1e3 * ms]},
        }
        for name, repeats in samples.items()
        for ms in repeats
        if name not in left_out
    ]  # fmt: skip
    path = tmp_path / "host.json"
    path.write_text(json.dumps({"measurements": [*measurements, *extra]}))
    return str(path)


def test_latencies_of_a_results_file(tmp_path):
    path = host_file(tmp_path)
    medians = streaming.read_latencies(path, "int8", 1, trace=False)
    memory = {"f0": 0.5, "f1": 0.5}
    assert medians == Latencies({"f0": [9.0], "f1": [2.0]}, memory, 0.3, 0.05)
    trace = streaming.read_latencies(path, "int8", 1, trace=True)
    foreign = {
        "precision": "int8",
        "setting": {
            "name": "f0", "threads": 1, "fps": 0.0, "device": "host", "subject": "tiny",
            "engine": "benchmark_model",
        },
        "result": {"latency_us": [1.0]},
    }  # fmt: skip
    path = host_file(tmp_path, extra=[foreign])
    assert streaming.read_latencies(path, "int8", 1, trace=True) == trace
    # A frame is more than its extractor: .5 ms of it are the memory's and the heads'.
    assert trace.extract_ms["f0"] == pytest.approx([9.0, 10.0, 11.0])
    assert trace.extract_ms["f1"] == pytest.approx([2.0, 0.0])


def test_frames_of_f1_may_take_another_call_of_the_memory(tmp_path):
    read = {
        "precision": "int8",
        "setting": {
            "name": "memory/read", "threads": 1, "fps": 0.0, "device": "host", "subject": "tiny",
            "engine": "runner",
        },
        "result": {"latency_us": [700.0]},
    }  # fmt: skip
    path = host_file(tmp_path, extra=[read])
    latencies = streaming.read_latencies(path, "int8", 1, trace=False)
    assert latencies.memory_ms == pytest.approx({"f0": 0.5, "f1": 0.8})
    trace = streaming.read_latencies(path, "int8", 1, trace=True)
    assert trace.extract_ms["f1"] == pytest.approx([1.7, 0.0])
    # f0 takes 130 + 20 ms, f1 30 + 5.
    other = dataclasses.replace(SLOW, memory_ms={"f0": 20.0, "f1": 5.0})
    assert run(Tape(), "1", other, count=4)[0] == [(0, 150), (1, 185), (2, 350), (3, 385)]


def test_a_policy_that_was_not_measured_is_not_free():
    with pytest.raises(UserError, match="without a policy"):
        streaming.evaluate(
            Perfect(["f1"]), [moving_clip()], [rollout.parse_mode("adaptive")], ["thing"],
            BoxCoder(10.0, 10.0, 5.0, 5.0), fps=FPS, latencies=SLOW,
        )  # fmt: skip


def test_the_delay_of_f0_is_made_from_latencies():
    # f0 and the update take 240 ms. At 30 frames a second that is 7.2 frames, for f1 fast enough.
    latencies = Latencies({"f0": [230.0, 220.0], "f1": [10.0]}, {"f0": 9.0, "f1": 8.0}, 15.0)
    assert streaming.delay_frames(latencies, 30.0) == 8
    # At full speed a frame of f1 takes 18 ms: 13.3 frames.
    assert streaming.delay_frames(latencies, 1e4) == 14
    # No camera is so slow that the same frame is served.
    assert streaming.delay_frames(latencies, 0.5) == 1


def test_a_delay_beside_the_measured_one_is_refused():
    with pytest.raises(UserError, match=r"'async9\+delay11': --streaming takes f0's delay from"):
        streaming.evaluate(
            Perfect(), [moving_clip()], [rollout.parse_mode("async9+delay11")], ["thing"],
            BoxCoder(10.0, 10.0, 5.0, 5.0), fps=FPS, latencies=SLOW,
        )  # fmt: skip


def test_chance_differs_from_clip_to_clip():
    [result] = streaming.evaluate(
        Perfect(), [moving_clip() for _ in range(12)], [rollout.parse_mode("random50")], ["thing"],
        BoxCoder(10.0, 10.0, 5.0, 5.0), fps=FPS, latencies=SLOW,
    ).values()  # fmt: skip
    assert len(set(result.score.f0_frames)) > 4


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no measurement of float32 with 1 .*\('int8', 1\)"):
        streaming.read_latencies(host_file(tmp_path), "float32", 1, trace=False)
    with pytest.raises(UserError, match="not a results file.*memory/step"):
        streaming.read_latencies(host_file(tmp_path, {"memory/step"}), "int8", 1, trace=False)
    other = {
        "precision": "int8",
        "setting": {
            "name": "f0", "threads": 1, "fps": 0.0, "device": "host", "subject": "big",
            "engine": "runner",
        },
        "result": {"latency_us": [1.0]},
    }  # fmt: skip
    with pytest.raises(UserError, match="more than one bundle.*'big'.*'tiny'"):
        streaming.read_latencies(host_file(tmp_path, extra=[other]), "int8", 1, trace=False)
    (tmp_path / "other").write_text("[]")
    with pytest.raises(UserError, match="not a results file"):
        streaming.read_latencies(str(tmp_path / "other"), "int8", 1, trace=False)
    with pytest.raises(UserError, match="cannot be read"):
        streaming.read_latencies(str(tmp_path / "none"), "int8", 1, trace=False)
