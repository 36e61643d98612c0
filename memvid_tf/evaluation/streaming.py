"""Streaming accuracy: what a detector knows in time (Li et al. 2020, "Towards Streaming Perception").

The camera sees frame k at k / fps. A detector that is free takes the newest frame and holds the
result when the latency that was measured for it has passed; frames seen in between are left out.
Every frame is scored with the newest detections that are there when it is seen, or a deadline later:
a slow detector is judged by what it says about the past. Before the first result there is nothing.

Schedules see the frames that are processed, as in the runtime. Asynchronously f0 and the memory's
update have a processor of their own; everything else runs as in `runtime.AsyncRunner`.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.evaluation import rollout, scoring
from memvid_tf.evaluation.vid_map import VidMap
from memvid_tf.runtime import postprocess
from memvid_tf.runtime.manifest import BoxCoder

SERVING = "serving_default"
NOTHING = postprocess.Detections(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
)


@dataclasses.dataclass(frozen=True)
class Latencies:
    """Milliseconds of the parts of a frame. Lists are samples, used one after another.

    Attributes:
      extract_ms: by extractor.
      memory_ms: by extractor, the memory's call, the heads and the post-processing.
      update_ms: the memory's update alone.
      policy_ms: π, or None where it was not measured.
    """

    extract_ms: dict[str, Sequence[float]]
    memory_ms: dict[str, float]
    update_ms: float
    policy_ms: float | None = None


def read_latencies(path: str, precision: str, threads: int, trace: bool) -> Latencies:
    """The latencies in a results file of `benchmarks.host` or `benchmarks.device`.

    Args:
      path: the JSON file; it must hold one bundle of this precision on one device.
      precision: "int8" or "float32"; a file may hold both.
      threads: of the measurement.
      trace: whether to take the recorded frames of the schedules f0 and f1 instead of medians; what
        the memory and the heads need is then their median, and the rest of a frame the extractor's.

    Raises:
      UserError: if the file is not one of them, or lacks the setting.
    """
    try:
        with open(path, encoding="utf-8") as file:
            measurements = json.load(file)["measurements"]
        found = {(m["precision"], m["setting"]["threads"]) for m in measurements if m["precision"]}
        if (precision, threads) not in found:
            raise UserError(
                f"--latency={path} has no measurement of {precision} with {threads} thread(s); it "
                f"has {sorted(found)}"
            )
        samples: dict[str, list[float]] = {}
        sources = set()
        for m in measurements:
            setting = m["setting"]
            if setting["engine"] == "benchmark_model":
                continue  # whole graphs under other names, and averages instead of samples
            if (m["precision"], setting["threads"], setting["fps"]) == (precision, threads, 0.0):
                ms = (float(us) / 1e3 for us in m["result"]["latency_us"])
                samples.setdefault(setting["name"], []).extend(ms)
                sources.add((setting["device"], setting["subject"], setting["engine"]))
        if len(sources) > 1:
            raise UserError(
                f"--latency={path} holds more than one bundle, device or engine, "
                f"{sorted(sources)}; measure the one that is meant into a file of its own"
            )
        once = {name: float(np.median(ms)) for name, ms in samples.items()}
        # Where a frame of f1 takes another call of the memory, that was measured too.
        calls = {"f0": once["memory/step"], "f1": once.get("memory/read", once["memory/step"])}
        memory = {name: ms + once[f"post/{SERVING}"] for name, ms in calls.items()}
        extract = {name: [once[f"{name}/{SERVING}"]] for name in ("f0", "f1")}
        if trace:
            for name in extract:
                extract[name] = [max(0.0, ms - memory[name]) for ms in samples[name]]
        update, policy = once["memory/update"], once.get(f"policy/{SERVING}")
    except OSError as error:
        raise UserError(f"--latency={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--latency={path} is not a results file of python -m benchmarks.host: {error!r}"
        ) from error
    return Latencies(extract, memory, update, policy)


def delay_frames(latencies: Latencies, fps: float) -> int:
    """Asynchronously, the frames from one on which f0 starts to the first that its result serves.

    Frames follow one another as the camera gives them, or as f1 can take them where that is slower.

    Args:
      latencies: of the detector.
      fps: frames a second of the camera.
    """
    busy_ms = float(np.mean(latencies.extract_ms["f0"])) + latencies.update_ms
    frame_ms = float(np.mean(latencies.extract_ms["f1"])) + latencies.memory_ms["f1"]
    return max(1, math.ceil(busy_ms / max(frame_ms, 1e3 / fps)))


class Output(NamedTuple):
    """Detections that have become ready.

    Attributes:
      ready_ms: when.
      frame: which frame they are of.
      box_encodings: [A, 4] float32.
      class_logits: [A, 1 + C] float32.
    """

    ready_ms: float
    frame: int
    box_encodings: np.ndarray
    class_logits: np.ndarray


class Clock:
    """Hands out latencies: of each extractor one sample after another, round and round."""

    def __init__(self, latencies: Latencies):
        self.memory_ms, self.update_ms = latencies.memory_ms, latencies.update_ms
        self.policy_ms = latencies.policy_ms or 0.0
        self._samples = {
            name: itertools.cycle(samples) for name, samples in latencies.extract_ms.items()
        }

    def extract_ms(self, extractor: str) -> float:
        """The next sample of an extractor."""
        return next(self._samples[extractor])


class Camera:
    """Frames of a clip, for a detector that always takes the newest.

    Args:
      count: frames of the clip.
      fps: frames a second; frame k is seen at k / fps.
    """

    def __init__(self, count: int, fps: float):
        self._count, self._fps = count, fps
        self._next = 0

    def take(self, now_ms: float) -> tuple[int, float] | None:
        """The newest frame, or the next one where that was taken, and when work on it begins.

        None when the clip is over.
        """
        # A frame that is seen at this very moment counts, whatever rounding says.
        frame = max(self._next, math.floor(now_ms * self._fps / 1e3 + 1e-9))
        if frame >= self._count:
            return None
        self._next = frame + 1
        return frame, max(now_ms, 1e3 * frame / self._fps)


Features = Callable[[str, int], Any]  # of one clip, by extractor and frame


def stream_in_turn(
    network: rollout.Network,
    features: Features,
    camera: Camera,
    mode: rollout.Mode,
    clock: Clock,
    clip: int = 0,
) -> tuple[list[Output], list[int]]:
    """One clip with one extractor a frame.

    Args:
      network: the detector.
      features: of the clip.
      camera: of the clip.
      mode: a synchronous mode.
      clock: of the detector.
      clip: its number in the set, of which chance is drawn.

    Returns:
      What becomes ready, in order, and the frames on which f0 ran.
    """
    state, decides = network.initial_state(1), rollout.picker(mode, network, 1, clip)
    outputs, f0_frames, now, seen = [], [], 0.0, state
    while (taken := camera.take(now)) is not None:
        frame, now = taken
        f0 = decides.picks(len(outputs))
        extractor = "f0" if f0[0] else "f1"
        if extractor == "f0":
            f0_frames.append(frame)
        boxes, logits, written = network.step(features(extractor, frame), state, extractor)
        now += clock.extract_ms(extractor) + clock.memory_ms[extractor]
        outputs.append(Output(now, frame, boxes[0], logits[0]))
        kept = written if mode.f1_updates else network.choose(f0, written, state)
        after = written if decides.wants_candidate else kept
        decides.observe(f0, after, seen)
        state, seen = kept, after
        now += clock.policy_ms if mode.adaptive else 0.0
    return outputs, f0_frames


def stream_beside(
    network: rollout.Network,
    features: Features,
    camera: Camera,
    mode: rollout.Mode,
    clock: Clock,
    clip: int = 0,
) -> tuple[list[Output], list[int]]:
    """The same with f0 beside f1: an asynchronous mode."""
    memory, decides = network.initial_state(1), rollout.picker(mode, network, 1, clip)
    outputs, f0_frames, now, seen = [], [], 0.0, memory
    pending = None  # when the worker is done, and the memory it makes
    while (taken := camera.take(now)) is not None:
        frame, now = taken
        earlier = memory
        memory, pending = _collect(memory, pending, now)
        starts = decides.picks(len(outputs)) & (pending is None)
        if starts[0]:
            f0_frames.append(frame)
            *_, written = network.step(features("f0", frame), memory, "f0")
            done = now + clock.extract_ms("f0") + clock.update_ms
            if outputs:
                pending = done, written
            else:  # nothing is worth detecting before the first memory
                memory, now = written, done
        now += clock.extract_ms("f1")
        memory, pending = _collect(memory, pending, now)
        boxes, logits, candidate = network.step(features("f1", frame), memory, "f1")
        now += clock.memory_ms["f1"]
        outputs.append(Output(now, frame, boxes[0], logits[0]))
        shows_candidate = memory is earlier and decides.wants_candidate
        after = candidate if shows_candidate else memory
        decides.observe(starts, after, seen)
        seen = after
        now += clock.policy_ms if mode.adaptive else 0.0
    return outputs, f0_frames


def _collect(memory, pending, now):
    """The memory to use and what is still running."""
    if pending is None or pending[0] > now:
        return memory, pending
    return pending[1], None


def in_time(outputs: Sequence[Output], count: int, fps: float, deadline_ms: float) -> list[int]:
    """For every frame the place of the newest output that is ready, -1 where there is none."""
    ready = np.array([output.ready_ms for output in outputs])
    # Rounding must not decide where a result is ready at the very moment it is looked at.
    moments = 1e3 * np.arange(count) / fps + deadline_ms + 1e-6
    return (np.searchsorted(ready, moments, side="right") - 1).tolist()


@dataclasses.dataclass(frozen=True)
class StreamingResult:
    """Accuracy of one schedule at one frame rate.

    Attributes:
      score: as of `scoring`, of what was known in time; its share of f0 is of all the camera's
        frames.
      processed_share: part of the camera's frames that were detected.
      age_ms: mean age of what is shown: from seeing the frame that the detections are of to
        looking at them, without frames that nothing is known about; None where all are.
    """

    score: scoring.ModeResult
    processed_share: float
    age_ms: float | None

    def to_json(self) -> dict:
        """Plain values for `json.dump`."""
        return {
            **self.score.to_json(),
            "processed_share": self.processed_share,
            "age_ms": self.age_ms,
        }


class _Score:
    """What one mode did so far."""

    def __init__(self, labels, matching, motion_rule, latencies):
        self.clock = Clock(latencies)
        self.vid_map = VidMap(len(labels), labels, matching, motion_rule)
        self.f0_frames, self.ages_ms = [], []
        self.processed = self.frames = 0

    def result(self) -> StreamingResult:
        f0 = sum(map(len, self.f0_frames))
        score = scoring.ModeResult(
            **vars(self.vid_map.result()),
            f0_share=f0 / self.frames,
            f0_frames=tuple(map(tuple, self.f0_frames)),
        )
        age = float(np.mean(self.ages_ms)) if self.ages_ms else None
        return StreamingResult(score, self.processed / self.frames, age)


def evaluate(
    network: rollout.Network,
    batches: Iterable[dict[str, np.ndarray]],
    modes: Sequence[rollout.Mode],
    labels: Sequence[str],
    coder: BoxCoder,
    *,
    fps: float,
    latencies: Latencies,
    deadline_ms: float = 0.0,
    matching: str = "plain",
    motion_rule: str = "fgfa",
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, StreamingResult]:
    """Streaming accuracy of a detector; arguments as `scoring.evaluate`, and

    Args:
      fps: frames a second of the camera.
      latencies: of the detector.
      deadline_ms: how long after a frame is seen it is scored.

    Returns:
      The result by the name of the mode.

    Raises:
      UserError: an adaptive mode where the policy was not measured, or a delay of f0 beside the
        one that the latencies make.
    """
    for mode in modes:
        if mode.delay_frames != rollout.ASYNC_DELAY_FRAMES:
            raise UserError(
                f"mode {mode.name!r}: --streaming takes f0's delay from --latency; leave "
                f"'+delay{mode.delay_frames}' out"
            )
    if latencies.policy_ms is None and any(mode.adaptive for mode in modes):
        raise UserError(
            "--latency is of a bundle without a policy; measure one with a policy, or leave the "
            "adaptive modes out"
        )
    scores = {mode.name: _Score(labels, matching, motion_rule, latencies) for mode in modes}
    for batch in batches:
        for i in range(len(batch["frames"])):
            clip = {name: value[i] for name, value in batch.items()}
            features = _features_of(network, clip["frames"])
            for mode in modes:
                _stream_clip(
                    scores[mode.name], network, features, clip, mode, coder, fps, deadline_ms
                )
            advance(1)
    return {name: score.result() for name, score in scores.items()}


def _features_of(network, frames) -> Features:
    """Features of frames [T, H, W, 3], computed where some mode wants them, once."""
    return functools.cache(
        lambda extractor, frame: network.extract(frames[frame][np.newaxis], extractor)
    )


def _stream_clip(score, network, features, clip, mode, coder, fps, deadline_ms):
    count = int(clip["num_frames"])
    stream = stream_beside if mode.asynchronous else stream_in_turn
    camera, number = Camera(count, fps), len(score.f0_frames)
    outputs, f0_frames = stream(network, features, camera, mode, score.clock, number)
    found = [
        scoring.detect(o.box_encodings, o.class_logits, network.anchors, coder) for o in outputs
    ]
    shown = in_time(outputs, count, fps, deadline_ms)
    score.vid_map.add_clip(
        [
            (d.boxes, d.scores, d.classes + 1)
            for d in (found[place] if place >= 0 else NOTHING for place in shown)
        ],
        [scoring.frame_truth(clip, t) for t in range(count)],
        image_size=tuple(clip["source_size"].tolist()),
        video=scoring.video_of(clip),
    )
    score.f0_frames.append(f0_frames)
    score.frames += count
    score.processed += len(outputs)
    score.ages_ms += [
        1e3 * (t - outputs[place].frame) / fps + deadline_ms
        for t, place in enumerate(shown)
        if place >= 0
    ]
