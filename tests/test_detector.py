"""The detector and its runners, against loops written with LiteRT's own signature runner."""

import concurrent.futures
import dataclasses
import itertools
import json
import shutil
import threading

import numpy as np
import pytest
import tiny_bundle
from ai_edge_litert.interpreter import Interpreter

from memvid_tf.errors import UserError
from memvid_tf.runtime.asynchronous import AsyncRunner, MemoryUpdater
from memvid_tf.runtime.bundle import Bundle, file_entry
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.manifest import BundleError, ImageSpec, PolicySpec, TensorSpec
from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.preprocess import ImagePreparer, PreparedFrame, box_mean, resize
from memvid_tf.runtime.runners import SyncRunner
from memvid_tf.runtime.schedules import ACTIONS, AdaptiveSchedule, FixedSchedule


class Loop:
    """The same computation, step by step, by LiteRT's signature runners."""

    def __init__(self, precision):
        folder = tiny_bundle.build(precision)
        self.int8 = precision == "int8"
        self.runners = {}
        for name, signature in (
            ("f0", "serving_default"), ("f1", "serving_default"), ("memory", "step"),
            ("post", "serving_default"),
        ):  # fmt: skip
            interpreter = Interpreter(str(folder / f"{name}.tflite"))
            interpreter.allocate_tensors()
            self.runners[name] = interpreter.get_signature_runner(signature)
        empty = np.full((1, 4, 6, 8), -128, np.int8) if self.int8 else np.zeros((1, 4, 6, 8))
        self.empty = {name: empty.astype(np.int8 if self.int8 else np.float32) for name in "ch"}

    def image(self, frame, extractor):
        """A frame of f0's size as the graph takes it, by the definition."""
        pixels = frame.astype(np.float64)
        if extractor == "f1":
            blocks = pixels.reshape(16, 2, 24, 2, 3).mean(axis=(1, 3))
            pixels = np.floor(blocks + 0.5)  # half up
        real = pixels / 128 - 1
        return (real * 128).astype(np.int8)[None] if self.int8 else real.astype(np.float32)[None]

    def frame(self, frame, extractor, state):
        """Detections and the state that the extractor would write."""
        features = self.runners[extractor](image=self.image(frame, extractor))["features"]
        out = self.runners["memory"](features=features, **state)
        written = {name: out.pop(f"{name}_next") for name in "ch"}
        found = self.runners["post"](**out)
        count = int(found["count"][0])
        return [found[name][0, :count] for name in ("boxes", "scores", "classes")], written


def assert_same(found: Detections, wanted):
    for one, other in zip(found, wanted):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("tau", [0, 2, None])
def test_streamed_equals_a_loop(precision, tau):
    frames = tiny_bundle.frames(8)
    detector = InterleavedDetector(tiny_bundle.load(precision))
    results = list(SyncRunner(detector, FixedSchedule(tau)).run(iter(frames)))
    loop = Loop(precision)
    state, latest = loop.empty, None
    seen = set()
    for index, (frame, result) in enumerate(zip(frames, results, strict=True)):
        extractor = "f1" if tau is None or index % (tau + 1) else "f0"
        wanted, written = loop.frame(frame, extractor, state)
        if extractor == "f0":  # f1 frames leave the memory alone
            state, latest = written, index
        assert_same(result.detections, wanted)
        seen.add(result.detections.boxes.tobytes())
        assert (result.index, result.extractor) == (index, extractor)
        assert result.memory_age_frames == (None if latest is None else index - latest)
        times = result.timings
        assert times.frame_ms > times.invoke_ms > 0 and times.prepare_ms > 0
    assert len(seen) == len(frames)  # the frames do differ, or the test shows nothing
    assert results[-1].effective_tau == tau
    # A second run starts from an empty memory, and frames may come prepared.
    prepared = [detector.prepare(frame) for frame in frames]
    for result, again in zip(results, SyncRunner(detector, FixedSchedule(tau)).run(prepared)):
        assert_same(again.detections, result.detections)
        assert again.timings.prepare_ms < 1


def test_state_is_in_the_manifests_order_and_explicit():
    detector = InterleavedDetector(tiny_bundle.load())
    c, h = state = detector.initial_state()
    assert c is not h and (c == -128).all() and c.dtype == np.int8
    image = detector.prepare(tiny_bundle.frames(1)[0]).f0
    features = detector.extract("f0", image)
    *heads, after = detector.step(features, state, "f0", update_state=True)
    *same_heads, kept = detector.step(features, state, "f0", update_state=False)
    assert kept is state and (c == -128).all()
    assert_same(heads, same_heads)
    step = Loop("int8").runners["memory"](features=features, c=c, h=h)
    assert_same(after, (step["c_next"], step["h_next"]))
    assert not np.array_equal(*after)


def test_thresholds_of_ones_own():
    bundle = tiny_bundle.load()
    frames = tiny_bundle.frames(4)
    compiled = SyncRunner(InterleavedDetector(bundle), FixedSchedule(2)).run(frames)
    same = InterleavedDetector(bundle, score_threshold=bundle.manifest.post.score_threshold)
    for one, other in zip(compiled, SyncRunner(same, FixedSchedule(2)).run(frames)):
        assert one.detections.classes.tolist() == other.detections.classes.tolist()
        # NumPy's softmax and exp against LiteRT's, in float32.
        np.testing.assert_allclose(one.detections.scores, other.detections.scores, rtol=1e-5)
        np.testing.assert_allclose(one.detections.boxes, other.detections.boxes, atol=1e-5)
        assert other.timings.post_ms > 0
    strict = InterleavedDetector(bundle, score_threshold=0.99, max_detections=3)
    for result in SyncRunner(strict, FixedSchedule(2)).run(frames):
        assert len(result.detections.scores) <= 3 and (result.detections.scores >= 0.99).all()


def test_a_graph_that_is_not_the_manifests_is_refused(tmp_path):
    """f1's file in f0's place, with a hash to match."""
    folder = shutil.copytree(tiny_bundle.build("int8"), tmp_path / "bundle")
    shutil.copy(folder / "f1.tflite", folder / "f0.tflite")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["f0.tflite"] = dataclasses.asdict(file_entry(folder / "f0.tflite"))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = Bundle.load(folder)
    with pytest.raises(BundleError, match=r"f0/serving_default/image of f0.tflite.* is .*\(1, 16"):
        InterleavedDetector(bundle)


# ---- images


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_f1_sees_the_box_mean_rounded_half_up(factor):
    rng = np.random.default_rng(factor)
    image = rng.integers(0, 256, (12 * factor, 20 * factor, 3), np.uint8)
    blocks = image.reshape(12, factor, 20, factor, 3).astype(np.float64).mean(axis=(1, 3))
    halves = blocks % 1 == 0.5
    assert halves.any() == (factor % 2 == 0)
    np.testing.assert_array_equal(box_mean(image, factor), np.floor(blocks + 0.5))


def test_frames_of_any_size_are_fitted():
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 256, (32, 48, 3), np.uint8)
    assert resize(exact, (32, 48)) is exact
    # Shrinking by whole factors is the box mean; growing keeps a constant constant.
    large = exact.repeat(3, axis=0).repeat(5, axis=1)
    np.testing.assert_array_equal(resize(large, (32, 48)), exact)
    small = np.full((7, 9, 3), (10, 20, 30), np.uint8)
    np.testing.assert_array_equal(resize(small, (32, 48)), np.full((32, 48, 3), (10, 20, 30)))
    detector = InterleavedDetector(tiny_bundle.load())
    for image, wanted in zip(detector.prepare(large), detector.prepare(exact)):
        np.testing.assert_array_equal(image, wanted)
    only = detector.prepare(exact, ("f1",))
    assert only.f0 is None and only.f1.shape == (1, 16, 24, 3)
    for bad in (exact[..., 0], exact.astype(np.float32), exact[..., :2], exact[:0]):
        with pytest.raises(ValueError, match=r"wanted uint8 \(H, W, 3\)"):
            detector.prepare(bad)


@pytest.mark.parametrize(
    ("mean", "std", "scale", "zero_point"),
    [(128.0, 128.0, 1 / 128, 0), (127.5, 127.5, 2 / 255, 0), (0.0, 255.0, 1 / 255, -128)],
)
def test_pixels_are_stored_with_the_tensors_own_scale(mean, std, scale, zero_point):
    tensor = TensorSpec((1, 16, 16, 3), "int8", float(np.float32(scale)), zero_point)
    image = ImageSpec({"f0": (16, 16), "f1": (16, 16)}, mean=mean, std=std)
    frame = np.arange(768, dtype=np.int64).astype(np.uint8).reshape(16, 16, 3)
    stored = ImagePreparer(image, tensor, tensor).prepare(frame, ("f0",)).f0[0]
    real = (stored.astype(np.float64) - zero_point) * scale
    # Within half a step of the real value wherever int8 reaches.
    wanted = np.clip((frame - mean) / std, (-128 - zero_point) * scale, (127 - zero_point) * scale)
    assert np.abs(real - wanted).max() <= scale * 0.5001
    assert not np.shares_memory(stored, frame)


# ---- asynchronous mode


class Tape:
    """Stands in for the detector, the updater and the worker thread, and writes down who does what.

    A memory is the number of the frame it was made from; the worker runs when a test says so.
    """

    updates_state = {"f0": True, "f1": False}
    extract_ms = memory_ms = post_ms = 0.0

    def __init__(self):
        self.events = []
        self.jobs = []

    # the detector
    def prepare(self, frame, extractors):
        return PreparedFrame(*(frame if name in extractors else None for name in ("f0", "f1")))

    def initial_state(self):
        return "empty"

    def extract(self, extractor, image):
        self.events.append(f"{extractor} {image}")
        return image

    def step(self, features, state, extractor, update_state):
        assert extractor == "f1" and not update_state
        self.events.append(f"step {features} on {state}")
        return features, state, state

    def post(self, boxes, logits):
        return (boxes, logits)

    # the updater
    def __call__(self, image, state):
        self.events.append(f"update {image} on {state}")
        return image

    # the worker, a concurrent.futures.Executor of one pending job
    def submit(self, function, *arguments):
        self.events.append(f"submit {arguments[0]}")
        future = concurrent.futures.Future()
        self.jobs.append((future, function, arguments))
        return future

    def work(self):
        future, function, arguments = self.jobs.pop()
        assert future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*arguments))
        except ArithmeticError as error:
            future.set_exception(error)

    def take(self):
        events, self.events = self.events, []
        return events


def test_an_event_tape_of_asynchronous_mode():
    tape = Tape()
    results = AsyncRunner(tape, tau=2, updater=tape, executor=tape).run(itertools.count())
    # Frame 0 waits for f0; then f1 detects on its memory.
    assert next(results).memory_update_ms is not None
    assert tape.take() == ["update 0 on empty", "f1 0", "step 0 on 0"]
    next(results), next(results)
    assert tape.take() == ["f1 1", "step 1 on 0", "f1 2", "step 2 on 0"]
    # Frame 3 is due; f1 goes on with the old memory while f0 works.
    result = next(results)
    assert tape.take() == ["submit 3", "f1 3", "step 3 on 0"]
    assert (result.extractor, result.memory_age_frames, result.effective_tau) == ("f1", 3, None)
    assert result.memory_update_ms is None
    tape.work()
    assert tape.take() == ["update 3 on 0"]
    result = next(results)
    assert tape.take() == ["f1 4", "step 4 on 3"]
    assert (result.memory_age_frames, result.effective_tau) == (1, 2.0)
    assert result.memory_update_ms is not None
    next(results), next(results)
    assert tape.take() == ["f1 5", "step 5 on 3", "submit 6", "f1 6", "step 6 on 3"]
    # f0 is slow: frame 9 is due and skipped, frames 10 and 11 find it busy, too.
    for frame in range(7, 12):
        assert next(results).memory_age_frames == frame - 3
    assert all("submit" not in event for event in tape.take())
    tape.work()
    # As soon as it is free the newest frame is taken, on the memory that has just arrived.
    result = next(results)
    assert tape.take() == ["update 6 on 3", "submit 12", "f1 12", "step 12 on 6"]
    assert (result.memory_age_frames, result.effective_tau) == (6, 2.0)
    tape.work()
    result = next(results)
    assert result.effective_tau == 3.0  # 0, 3, 6, 12
    results.close()


def test_a_memory_that_arrives_while_f1_runs_is_used_at_once():
    class Late(Tape):
        def extract(self, extractor, image):
            if self.jobs:
                self.work()
            return super().extract(extractor, image)

    tape = Late()
    results = list(AsyncRunner(tape, tau=1, updater=tape, executor=tape).run(range(5)))
    assert [result.memory_age_frames for result in results] == [0, 1, 0, 1, 0]
    assert "step 4 on 4" in tape.events and results[-1].effective_tau == 1.0


def test_a_fault_of_the_worker_reaches_the_caller():
    class Faulty(Tape):
        def __call__(self, image, state):
            if image == 2:
                raise ArithmeticError("f0 broke")
            return super().__call__(image, state)

    for frames in (range(9), range(3)):  # noticed on the next frame, or at the end
        tape = Faulty()
        results = AsyncRunner(tape, tau=1, updater=tape, executor=tape).run(frames)
        for _ in range(3):
            next(results)
        tape.work()
        with pytest.raises(ArithmeticError, match="f0 broke"):
            next(results)


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("memvid_f0")]


def test_no_frame_waits_for_f0():
    """With real threads and graphs: f0 is held back until later frames have been detected."""
    bundle = tiny_bundle.load()
    updater, release, started = MemoryUpdater(bundle), threading.Event(), threading.Event()
    calls = []

    def held_back(image, state):
        if calls:
            started.set()
            assert release.wait(60)
        calls.append(threading.current_thread().name)
        return updater(image, state)

    detector = InterleavedDetector(bundle)
    frames = tiny_bundle.frames(12)
    results = AsyncRunner(detector, tau=1, updater=held_back).run(iter(frames))
    assert [next(results).memory_age_frames for _ in range(8)] == list(range(8))
    assert started.wait(60) and len(calls) == 1
    release.set()
    rest = list(results)
    assert len(rest) == 4 and calls[0] == "MainThread"
    assert all(name.startswith("memvid_f0") for name in calls[1:]) and len(calls) > 1
    assert not worker_threads()


def test_the_real_worker_computes_what_a_loop_does():
    """An executor that works at once makes the schedule known: f0's memory is used on its frame."""

    class AtOnce(concurrent.futures.Executor):
        def submit(self, function, *arguments):
            future = concurrent.futures.Future()
            future.set_result(function(*arguments))
            return future

    for precision in ("int8", "float32"):
        frames = tiny_bundle.frames(7, seed=4)
        loop, state = Loop(precision), None
        detector = InterleavedDetector(tiny_bundle.load(precision))
        runner = AsyncRunner(detector, tau=2, executor=AtOnce())
        for index, result in enumerate(runner.run(frames)):
            if index % 3 == 0:
                _, state = loop.frame(frames[index], "f0", state or loop.empty)
            wanted, _ = loop.frame(frames[index], "f1", state)
            assert_same(result.detections, wanted)


class Wish:
    """A policy that always wants f0 and writes down what it was shown."""

    def __init__(self, observes):
        self.spec = PolicySpec(ACTIONS, 3, 6.0, observes)
        self.asked = []

    def q_values(self, after, before, eta):
        self.asked.append((after, before, eta.tolist()))
        return np.array([1.0, 0.0], np.float32)


def test_a_policy_starts_the_worker_and_hears_that_it_was_busy():
    tape, wish = Tape(), Wish("memory")
    runner = AsyncRunner(tape, None, updater=tape, executor=tape, schedule=AdaptiveSchedule(wish))
    results = runner.run(itertools.count())
    next(results), next(results), next(results)
    assert tape.take() == [
        "update 0 on empty", "f1 0", "step 0 on 0", "submit 1", "f1 1", "step 1 on 0",
        "f1 2", "step 2 on 0",
    ]  # fmt: skip
    tape.work()
    next(results)
    assert tape.take() == ["update 1 on 0", "submit 3", "f1 3", "step 3 on 1"]
    assert wish.asked == [
        (0, "empty", [0, 0, 0]), (0, 0, [0, 0, 0]), (0, 0, [1, 0, 0]), (1, 0, [0, 1, 0]),
    ]  # fmt: skip
    results.close()


class F1First(FixedSchedule):
    """Would begin with an empty memory, as a schedule of chance may."""

    heard = ()

    def observe(self, extractor, after, before):
        object.__setattr__(self, "heard", (*self.heard, extractor))


def test_the_first_frame_waits_for_f0_whatever_is_picked():
    detector, schedule = InterleavedDetector(tiny_bundle.load()), F1First(None)
    results = list(AsyncRunner(detector, None, schedule=schedule).run(tiny_bundle.frames(3)))
    assert [result.memory_age_frames for result in results] == [0, 1, 2]
    assert schedule.heard == ("f0", "f1", "f1")


def test_a_worker_has_one_reason_to_start():
    for tau, schedule in ((None, None), (3, FixedSchedule(3))):
        with pytest.raises(ValueError, match="give one of them"):
            AsyncRunner(Tape(), tau, updater=Tape(), schedule=schedule)


def test_closing_early_or_failing_ends_the_worker():
    detector = InterleavedDetector(tiny_bundle.load())
    results = AsyncRunner(detector, tau=0).run(tiny_bundle.frames(50))
    next(results), next(results)
    assert worker_threads()
    results.close()
    assert not worker_threads()

    def cut_short():
        yield from tiny_bundle.frames(3)
        raise UserError("the video ends early")

    with pytest.raises(UserError, match="ends early"):
        list(AsyncRunner(detector, tau=0).run(cut_short()))
    assert not worker_threads()
    assert list(AsyncRunner(detector, tau=0).run([])) == []


def test_asynchronous_mode_refuses_what_it_cannot_run():
    tape = Tape()
    with pytest.raises(UserError, match="tau is -1"):
        AsyncRunner(tape, tau=-1, updater=tape)
    tape.updates_state = {"f0": True, "f1": True}
    with pytest.raises(UserError, match="updates_state.f1"):
        AsyncRunner(tape, tau=9, updater=tape)
