"""The native runner computes what the Python runtime computes, frame by frame, in every schedule."""

import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest
import tiny_bundle
import tiny_patchwork
import tiny_run

from benchmarks.runner import build, local, plan, schedules
from memvid_tf.errors import UserError
from memvid_tf.runtime import schedules as runtime_schedules
from memvid_tf.runtime.asynchronous import MemoryUpdater
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector, load_graph
from memvid_tf.runtime.manifest import GraphSpec, PolicySpec
from memvid_tf.runtime.patchwork import PatchworkNetwork
from memvid_tf.runtime.policy import Policy
from memvid_tf.runtime.windowed import POLICIES

FRAMES = 12
HEADS = ("box_encodings", "class_logits")
OUTPUTS = ("boxes", "scores", "classes", "count")


@pytest.fixture(scope="module", autouse=True)
def runner():
    """Every test needs the binary."""
    try:
        return build.build(build.host())
    except build.NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["int8", "float32"])
def bundle(request):
    return tiny_bundle.load(request.param)


@pytest.fixture(scope="module")
def adaptive_bundle():
    """The float bundle with a policy: f0 again when enough f1 frames or enough change went by."""
    import tensorflow as tf

    from export import convert

    bundle = tiny_bundle.load("float32")
    folder, manifest = bundle.path, bundle.manifest
    names = ("c", "h", "c_before", "h_before")
    spec = [tf.TensorSpec(manifest.state[0].shape, tf.float32, name) for name in names]
    spec.append(tf.TensorSpec((1, 5), tf.float32, "eta"))

    @tf.function(input_signature=spec)
    def policy(c, h, c_before, h_before, eta):
        change = tf.reduce_mean(tf.abs(c - c_before) + 0.3 * tf.abs(h - h_before), (1, 2, 3))
        f0 = tf.reduce_sum(eta, -1) + change
        return {"q_values": tf.stack([tf.fill([1], 14.5), f0], -1)}

    # f1 comes first in q_values, so that the order matters.
    flatbuffer = convert.convert(tf.Module(), {"serving_default": policy}, precision="float32")
    (folder / "policy.tflite").write_bytes(flatbuffer)
    graph = GraphSpec("policy.tflite", {"serving_default": tiny_bundle._describe(
        folder / "policy.tflite", "serving_default")})  # fmt: skip

    def with_policy(observes):
        changed = dataclasses.replace(
            manifest,
            graphs=manifest.graphs | {"policy": graph},
            calls=manifest.calls | {"policy": ("policy/serving_default",)},
            policy=PolicySpec(("f1", "f0"), 5, 6.0, observes),
        )
        return Bundle(folder, changed, bundle.labels)

    yield with_policy
    (folder / "policy.tflite").unlink()


def decode(bundle, recorded):
    """What the runner recorded: by frame, raw bytes of heads and post-processing."""
    step, post = bundle.manifest.calls["f0"][1], bundle.manifest.calls["post"][0]
    names = [f"{step}/{name}" for name in HEADS] + [f"{post}/{name}" for name in OUTPUTS]
    sizes = [bundle.manifest.tensor(name, "outputs").bytes for name in names]
    ends = np.cumsum(sizes)
    assert len(recorded) % ends[-1] == 0
    return [
        np.split(np.frombuffer(frame, np.uint8), ends[:-1])
        for frame in np.split(np.frombuffer(recorded, np.uint8), len(recorded) // ends[-1])
    ]


def assert_same(actual, boxes, logits, found):
    """One frame of the runner against arrays of the Python runtime, byte for byte."""
    assert actual[0].tobytes() == boxes.tobytes()
    assert actual[1].tobytes() == logits.tobytes()
    count = int(np.frombuffer(actual[5].tobytes(), np.float32)[0])
    assert count == len(found.scores)
    rows = np.frombuffer(actual[2].tobytes(), np.float32).reshape(-1, 4)[:count]
    np.testing.assert_array_equal(rows, found.boxes)
    np.testing.assert_array_equal(
        np.frombuffer(actual[3].tobytes(), np.float32)[:count], found.scores
    )
    np.testing.assert_array_equal(
        np.frombuffer(actual[4].tobytes(), np.float32)[:count], found.classes
    )


def in_turn(bundle, schedule, frames):
    """The Python runtime: extractor, heads and detections of every frame."""
    detector = InterleavedDetector(bundle)
    state = seen = detector.initial_state()
    for index, frame in enumerate(frames):
        extractor = schedule.pick(index)
        features = detector.extract(extractor, getattr(detector.prepare(frame), extractor))
        updates = detector.updates_state[extractor]
        boxes, logits, after = detector.step(
            features, state, extractor, updates or schedule.wants_candidate
        )
        schedule.observe(extractor, after, seen)
        state, seen = after if updates else state, after
        yield extractor, boxes, logits, detector.post(boxes, logits)


def setting(name, tau, **changes):
    return schedules.ScheduleSetting(name, tau, frames=FRAMES, warm_up=0, record=True, **changes)


@pytest.mark.parametrize("name, tau", [("f0", None), ("f1", None), ("sync", 3)])
def test_frames_in_turn_equal_the_python_runtime(bundle, name, tau):
    frames = schedules.recorded_frames(bundle, tiny_bundle.frames(FRAMES, seed=4))
    result, files = local.run(schedules.schedule(bundle, setting(name, tau), frames))
    fixed = runtime_schedules.FixedSchedule({"f0": 0, "f1": None}.get(name, tau))
    wanted = list(in_turn(bundle, fixed, frames))
    assert result["extractors"] == "".join(extractor[1] for extractor, *_ in wanted)
    for actual, (_, *arrays) in zip(decode(bundle, files[schedules.RECORD]), wanted, strict=True):
        assert_same(actual, *arrays)
    assert result["memory_age_frames"] == {
        "f0": [0] * 12, "f1": [-1] * 12, "sync": [0, 1, 2, 3] * 3
    }[name]  # fmt: skip
    if name == "sync":
        assert result["effective_tau"] == 3
    assert all(a >= b > 0 for a, b in zip(result["latency_us"], result["invoke_us"]))


@pytest.mark.slow
def test_frames_of_f1_take_a_call_of_their_own():
    """Of the detector whose memory they only read."""
    bundle = Bundle.load(tiny_run.rival_bundle("int8", "flow_guided"))
    frames = schedules.recorded_frames(bundle, tiny_bundle.frames(FRAMES, seed=5))
    _, files = local.run(schedules.schedule(bundle, setting("sync", 2), frames))
    wanted = in_turn(bundle, runtime_schedules.FixedSchedule(2), frames)
    for actual, (_, *arrays) in zip(decode(bundle, files[schedules.RECORD]), wanted, strict=True):
        assert_same(actual, *arrays)
    result, files = local.run(schedules.schedule(bundle, setting("async", 2), frames))
    replays(bundle, frames, result, decode(bundle, files[schedules.RECORD]))


@pytest.mark.parametrize("observes", ["memory", "candidate"])
@pytest.mark.parametrize("max_tau", [None, 1])
def test_a_policy_decides_as_in_the_python_runtime(adaptive_bundle, observes, max_tau):
    bundle = adaptive_bundle(observes)
    frames = schedules.recorded_frames(bundle, tiny_bundle.frames(FRAMES, seed=6))
    result, files = local.run(schedules.schedule(bundle, setting("adaptive", max_tau), frames))
    schedule = runtime_schedules.AdaptiveSchedule(Policy(bundle), max_tau)
    wanted = list(in_turn(bundle, schedule, frames))
    extractors = "".join(extractor[1] for extractor, *_ in wanted)
    assert {"0", "1"} == set(extractors), "the test's policy must do both"
    assert result["extractors"] == extractors
    for actual, (_, *arrays) in zip(decode(bundle, files[schedules.RECORD]), wanted, strict=True):
        assert_same(actual, *arrays)


def replays(bundle, frames, result, recorded):
    """Compares each frame with the memory that it met; returns the frames that made a memory."""
    detector, update = InterleavedDetector(bundle), MemoryUpdater(bundle)
    memories, state = {}, detector.initial_state()
    for written in map(int, result["update_frames"]):
        memories[written] = state = update(detector.prepare(frames[written]).f0, state)
    for index, (actual, age) in enumerate(zip(recorded, result["memory_age_frames"], strict=True)):
        features = detector.extract("f1", detector.prepare(frames[index]).f1)
        boxes, logits, _ = detector.step(features, memories[index - int(age)], "f1", False)
        assert_same(actual, boxes, logits, detector.post(boxes, logits))
    return list(memories)


@pytest.mark.parametrize("fps", [0.0, 60.0])
@pytest.mark.parametrize("name", ["async", "adaptive+async"])
def test_beside_the_worker_equals_a_replay_of_what_happened(adaptive_bundle, name, fps):
    """Which frame meets which memory depends on time; what comes out of the two does not."""
    bundle = adaptive_bundle("memory")
    frames = schedules.recorded_frames(bundle, tiny_bundle.frames(FRAMES, seed=8))
    result, files = local.run(schedules.schedule(bundle, setting(name, 2, fps=fps), frames))
    recorded = decode(bundle, files[schedules.RECORD])
    assert len(recorded) == FRAMES == len(result["late_us"]) or not fps
    updated = replays(bundle, frames, result, recorded)
    # At full speed a busy machine may never get round to the worker.
    assert 0 in updated and (len(updated) > 1 or not fps)


def test_frames_are_not_taken_before_they_are_there():
    bundle = tiny_bundle.load()
    frames = schedules.random_frames(bundle, 2, seed=1)
    result, _ = local.run(schedules.schedule(bundle, setting("f1", None, fps=100.0), frames))
    assert len(result["late_us"]) == FRAMES and min(result["late_us"]) >= 0
    assert result["elapsed_us"] >= (FRAMES - 1) * 1e4


@pytest.mark.parametrize("factor", [2, 3])
def test_images_are_shrunk_and_stored_as_in_the_python_runtime(bundle, factor):
    """f1 sees nothing but the box mean."""
    sizes = {"f0": tuple(factor * side for side in tiny_bundle.F1_SIZE), "f1": tiny_bundle.F1_SIZE}
    image = dataclasses.replace(bundle.manifest.image, sizes=sizes)
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, image=image))
    frames = schedules.random_frames(other, FRAMES, seed=5)
    result, files = local.run(schedules.schedule(other, setting("f1", None), frames))
    wanted = in_turn(other, runtime_schedules.FixedSchedule(None), frames)
    for actual, (_, *arrays) in zip(decode(bundle, files[schedules.RECORD]), wanted, strict=True):
        assert_same(actual, *arrays)
    assert len(result["prepare_us"]) == FRAMES and min(result["prepare_us"]) > 0


@pytest.mark.parametrize("name", schedules.PATCHWORK)
@pytest.mark.parametrize("kind", tiny_patchwork.KINDS)
def test_windows_equal_the_python_runtime(kind, name):
    _, bundle = tiny_patchwork.exported(kind)
    count = 2 * bundle.manifest.windows.layout().windows.count + 3
    frames = schedules.recorded_frames(bundle, tiny_bundle.frames(count, (70, 90), seed=9))
    wish = schedules.ScheduleSetting(name, frames=count - 2, warm_up=2, record=True)
    result, files = local.run(schedules.schedule(bundle, wish, frames))
    wanted, ages, memory = b"", [], None
    network = PatchworkNetwork(bundle)
    policy = None if name == "full" else POLICIES[name](network.layout.windows.count)
    post = None
    if "post" in bundle.manifest.calls:
        post = load_graph(bundle, bundle.manifest.calls["post"][0])
    for index, frame in enumerate(frames):
        image = network.prepare(frame)
        if memory is None or name == "full":
            outputs, memory = network.first(image)
        else:
            outputs = network.step(image, policy.pick(index), memory)
        wanted += b"".join(array.tobytes() for array in outputs.values())
        if post is not None:
            found = post(**outputs)
            wanted += b"".join(found[name].tobytes() for name in OUTPUTS)
        ages.append(memory.ages_frames.max())
    assert files[schedules.RECORD] == wanted
    assert result["memory_age_frames"] == ages[2:]
    assert result["extractors"] == ("0" if name == "full" else "1") * (count - 2)
    mean = result["mean_us"]
    assert mean["extract"] > 0 and mean["memory"] > 0 and (mean["post"] > 0) == (post is not None)
    assert all(a >= b > 0 for a, b in zip(result["latency_us"], result["invoke_us"]))


def test_goldens_are_compared_element_by_element(tmp_path, bundle):
    result, _ = local.run(plan.goldens(bundle))
    assert {row["different"] for row in result["goldens"]} == {0}
    assert len(result["goldens"]) == sum(len(g.outputs) for g in bundle.manifest.golden)
    if bundle.manifest.precision == "float32":
        return
    job = plan.goldens(bundle)
    file = f"{plan.GIVEN}golden/f1.serving_default.features.bin"
    data = bytearray(job.files[file].read_bytes())
    data[5], data[9] = data[5] ^ 1, data[9] ^ 64
    damaged = dataclasses.replace(job, files=job.files | {file: bytes(data)})
    rows = local.run(damaged)[0]["goldens"]
    bad = [row for row in rows if row["different"]]
    assert [(r["graph"], r["different"], r["largest"]) for r in bad] == [("f1.tflite", 2, "64")]


def test_one_graph_and_its_operators():
    path = tiny_bundle.build() / "f0.tflite"
    result, _ = local.run(plan.graph(path, None, threads=1, runs=7, warm_up=2, profile=True))
    assert len(result["latency_us"]) == 7 and result["fully_accelerated"]
    assert "Convolution" in result["profile"] and result["peak_memory_kib"] > 1000


def test_models_of_others_run(fixtures_dir):
    """They have no signatures, and shapes that are known only when the graph is prepared."""
    path = next(fixtures_dir.glob("tflite/ssd_mobilenet_v1/*.tflite"))
    result, _ = local.run(plan.graph(path, None, threads=1, runs=1, warm_up=1))
    assert len(result["latency_us"]) == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("f1.tflite serving_default", "f1.tflite nothing"),
            "no such signature; .*serving_default",
        ),
        (("job graph", "job nap"), "job is 'nap', wanted graph, golden or schedule"),
        (("runs 3", "runs many"), "runs is 'many', wanted a whole number"),
        (("runs 3\n", ""), "0 lines 'runs', wanted one"),
        (("end\n", ""), "cut short"),
        (("memvid_plan 1", "memvid_plan 9"), "first line is not"),
        (
            ("runs 3", "runs 3\nset given/f1.tflite:serving_default image none.bin"),
            "none.bin: No such",
        ),
        (("runs 3", "runs 3\nset given/f1.tflite:serving_default picture x"), "no tensor picture"),
    ],
)
def test_a_bad_plan_is_one_line(change, message):
    job = plan.graph(tiny_bundle.build() / "f1.tflite", "serving_default", 1, runs=3, warm_up=1)
    assert change[0] in job.text
    with pytest.raises(local.RunnerError, match=message):
        local.run(dataclasses.replace(job, text=job.text.replace(*change)))


@pytest.mark.parametrize(
    "pattern, other, message",
    [
        (r"(windows \d+ \d+ \d+) \d+", r"\1 7", "7 chunks of .* bytes are not the strips"),
        (r"places.bin", "read.bin", "do not fit the graph"),
        (r"map (\w+) (\d+)", r"map \1 1", "map .* does not fit the graph"),
        (r"system patchwork", "system x", "system is 'x', wanted interleaved or patchwork"),
    ],
)
def test_a_bad_plan_of_windows_is_one_line(pattern, other, message):
    _, bundle = tiny_patchwork.exported("detector")
    frames = schedules.random_frames(bundle, 1, seed=0)
    job = schedules.schedule(bundle, schedules.ScheduleSetting("random", frames=20), frames)
    assert re.search(pattern, job.text)
    with pytest.raises(local.RunnerError, match=message):
        local.run(dataclasses.replace(job, text=re.sub(pattern, other, job.text)))


def test_a_result_that_is_not_whole_is_refused():
    job = plan.Job("", {}, samples=3)
    with pytest.raises(local.RunnerError, match="not JSON"):
        local.parse('{"latency_us":[1,2', job)
    with pytest.raises(local.RunnerError, match="2 samples, wanted 3"):
        local.parse(json.dumps({"latency_us": [1, 2]}), job)


def test_a_runner_that_hangs_is_stopped():
    bundle = tiny_bundle.load()
    slow = schedules.ScheduleSetting("f1", None, frames=100, warm_up=0, fps=0.1)
    job = schedules.schedule(bundle, slow, schedules.random_frames(bundle, 1, seed=0))
    with pytest.raises(local.RunnerError, match="stopped after 1 s"):
        local.run(job, timeout_s=1.0)


@pytest.mark.parametrize(
    "name, tau, message",
    [
        ("adaptive", None, "has no policy"),
        ("often", 1, "'often' is not one of f0, f1, sync"),
        ("sync", None, "tau of schedule 'sync' is None"),
        ("scanning", None, "'scanning' is not one of f0, f1, sync"),
    ],
)
def test_schedules_that_a_bundle_cannot_run(name, tau, message):
    bundle = tiny_bundle.load()
    with pytest.raises(UserError, match=message):
        frames = schedules.random_frames(bundle, 1, 0)
        schedules.schedule(bundle, schedules.ScheduleSetting(name, tau), frames)


def test_the_binary_is_built_once_and_whole(runner, monkeypatch, tmp_path):
    assert build.build(build.host()) == runner
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("built again"))
    assert build.build(build.host()) == runner
    monkeypatch.undo()
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "main.cpp").write_text("int main() { return nothing; }\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("MEMVID_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="nothing"):
        build.build(build.host())
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_machine_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.NoCompiler, match="aarch64-linux-gnu-g.*pip install ziglang"):
        build.compiler("arm64")
