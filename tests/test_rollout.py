"""Rollouts in every mode, against loops written by hand and against the runtime's own runners."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
import tiny_run

from memvid_tf.errors import UserError
from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.bundle_network import BundleNetwork
from memvid_tf.runtime.asynchronous import AsyncRunner
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.runners import SyncRunner
from memvid_tf.runtime.schedules import FixedSchedule

FRAMES = 8


class Arithmetic:
    """A network of a few products in which no two orders of the same calls agree.

    Features and states are Python objects that only this class understands.
    """

    policy = None
    f1_only_reads = False

    def __init__(self):
        self.extracted = []

    def extract(self, frames, extractor):
        assert frames.dtype == np.uint8 and frames.ndim == 4
        self.extracted.append((extractor, frames.tobytes()))
        weight = {"f0": 0.7, "f1": -0.3}[extractor]
        return extractor, weight * frames.astype(np.float64).mean((1, 2, 3))

    def initial_state(self, batch):
        return "state", np.full(batch, 0.1)

    def step(self, features, state, extractor):
        (made_by, x), (word, s) = features, state
        assert made_by == extractor and word == "state"
        seen = np.tanh(x + 2 * s)
        boxes = np.stack([seen, x, s, x * s], -1).astype(np.float32)[:, None]
        logits = np.stack([s - x, seen], -1).astype(np.float32)[:, None]
        return boxes, logits, ("state", 0.5 * s + (3.0 if extractor == "f0" else 0.2) * seen)

    def choose(self, first, a, b):
        return "state", np.where(first, a[1], b[1])


def clips(batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [batch, FRAMES, 4, 6, 3], np.uint8)


def roll(network, frames, word, **changes):
    """Box encodings and class logits [B, T, A, ·] in a mode."""
    mode = dataclasses.replace(rollout.parse_mode(word), **changes)
    features = rollout.extract_all(network, frames)
    return rollout.roll(network, features, len(frames), mode)[:2]


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


# Frame by frame the extractor; a capital letter writes the memory.
IN_TURN = {
    "f0": "AAAAAAAA",
    "f1": "bbbbbbbb",
    "1": "AbAbAbAb",
    "2": "AbbAbbAb",
    "9": "Abbbbbbb",
    "f1+update": "BBBBBBBB",
    "2+update": "ABBABBAB",
}


@pytest.mark.parametrize("word", IN_TURN)
def test_one_extractor_after_the_other(word):
    network, frames = Arithmetic(), clips()
    state, results = network.initial_state(2), []
    for t, letter in enumerate(IN_TURN[word]):
        extractor = {"a": "f0", "b": "f1"}[letter.lower()]
        boxes, logits, written = network.step(
            network.extract(frames[:, t], extractor), state, extractor
        )
        if letter.isupper():
            state = written
        results.append((boxes, logits))
    wanted = [np.stack(head, 1) for head in zip(*results)]
    assert_same(roll(Arithmetic(), frames, word), wanted)


def test_a_memory_that_f1_only_reads_is_not_written_by_it():
    network = Arithmetic()
    network.f1_only_reads = True
    assert_same(roll(network, clips(), "2"), roll(Arithmetic(), clips(), "2"))
    with pytest.raises(UserError, match=r"mode '2\+update': frames of f1 only read the memory"):
        roll(network, clips(), "2+update")


def test_the_modes_differ():
    """Otherwise the comparison with the loop proves nothing."""
    words = [*IN_TURN, "async1", "async2"]
    found = [roll(Arithmetic(), clips(), word)[0].tobytes() for word in words]
    found += [roll(Arithmetic(), clips(), "async1", delay_frames=2)[0].tobytes()]
    assert len(set(found)) == len(found)


# By τ and delay: on which frame the memory of which f0 frame is there first.
BESIDE = {
    (1, 1): {0: 0, 3: 2, 5: 4, 7: 6},
    (1, 2): {0: 0, 4: 2, 6: 4},
    (2, 1): {0: 0, 4: 3, 7: 6},
    (2, 2): {0: 0, 5: 3},
    (2, 3): {0: 0, 6: 3},
    (9, 1): {0: 0},
}


@pytest.mark.parametrize("tau, delay", BESIDE)
def test_f0_beside_f1(tau, delay):
    network, frames = Arithmetic(), clips()
    state, results = network.initial_state(2), []
    for t in range(FRAMES):
        arrived = BESIDE[tau, delay].get(t)
        if arrived is not None:
            *_, state = network.step(network.extract(frames[:, arrived], "f0"), state, "f0")
        results.append(network.step(network.extract(frames[:, t], "f1"), state, "f1")[:2])
    wanted = [np.stack(head, 1) for head in zip(*results)]
    assert_same(roll(Arithmetic(), frames, f"async{tau}", delay_frames=delay), wanted)


def test_each_frame_passes_each_extractor_once():
    network, frames = Arithmetic(), clips(batch=3)
    features = rollout.extract_all(network, frames)
    for word in IN_TURN:
        rollout.roll(network, features, 3, rollout.parse_mode(word))
    wanted = [(e, frames[:, t].tobytes()) for e in ("f0", "f1") for t in range(FRAMES)]
    assert sorted(network.extracted) == sorted(wanted)


@pytest.mark.parametrize("word", [*IN_TURN, "async1", "async19"])
def test_the_name_of_a_mode_is_the_word_for_it(word):
    assert rollout.parse_mode(word).name == word


@pytest.mark.parametrize(
    "word",
    ["", "f2", "-1", "1.5", "async", "async0", "asyncf0", "asyncf1", "async9+update", "9+", "9+x",
     "async9+delay0", "async9+delay1000", "9+delay",
     "9+update+update", "f0 ", "τ"],
)  # fmt: skip
def test_what_is_no_mode(word):
    with pytest.raises(UserError, match="mode|schedule") as caught:
        rollout.parse_mode(word)
    assert repr(word.removeprefix("async")) in str(caught.value) or repr(word) in str(caught.value)


KINDS = ("int8", "float32", "flow_guided")


def bundle(kind, f1_updates=False):
    """Of a precision, or of the cell whose memory f1 only reads."""
    if kind == "flow_guided":
        return Bundle.load(tiny_run.rival_bundle("int8", kind))
    found = Bundle.load(tiny_run.bundle(kind))
    states = {"f0": True, "f1": f1_updates}
    return dataclasses.replace(
        found, manifest=dataclasses.replace(found.manifest, updates_state=states)
    )


class Recorder(InterleavedDetector):
    """A detector that keeps the heads of every step."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.heads = []

    def step(self, *arguments):
        found = super().step(*arguments)
        self.heads.append(found[:2])
        return found

    def real_heads(self):
        """Box encodings [1, T, A, 4] and class logits [1, T, A, 1 + C], by the definition."""
        specs = self.bundle.manifest.graphs["memory"].signatures["step"].outputs
        result = []
        for name, stored in zip(("box_encodings", "class_logits"), zip(*self.heads)):
            real = np.concatenate(stored)[None]
            if specs[name].dtype == "int8":
                real = real.astype(np.int32) - specs[name].zero_point
                real = real * np.float32(specs[name].scale)
            result.append(real.astype(np.float32))
        return result


# The first test to run trains and exports the miniature networks.
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_synchronous_modes_are_those_of_the_runtime(kind):
    frames = tiny_run.frames(FRAMES)
    seen = set()
    modes = [("f0", 0, False), ("f1", None, False), ("1", 1, False), ("2", 2, False)]
    if kind != "flow_guided":
        modes.append(("2", 2, True))
    for word, tau, f1_updates in modes:
        detector = Recorder(bundle(kind, f1_updates))
        results = list(SyncRunner(detector, FixedSchedule(tau)).run(iter(frames[0])))
        assert len(results) == FRAMES
        found = roll(BundleNetwork(detector.bundle), frames, word + "+update" * f1_updates)
        assert_same(found, detector.real_heads())
        seen.add(found[1].tobytes())
    assert len(seen) == len(modes)


class Delayed(concurrent.futures.Executor):
    """Completes an update exactly `delay` frames after the one it was submitted on."""

    def __init__(self, delay):
        self._delay, self._frame, self._job = delay, 0, None

    def submit(self, function, *arguments):
        assert self._job is None
        future = concurrent.futures.Future()
        self._job = self._frame + self._delay, future, function, arguments
        return future

    def frames(self, frames):
        for self._frame, frame in enumerate(frames):
            if self._job and self._job[0] == self._frame:
                self._work()
            yield frame
        if self._job:
            self._work()

    def _work(self):
        (_, future, function, arguments), self._job = self._job, None
        future.set_result(function(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_asynchronous_mode_is_that_of_the_runtime(kind):
    frames = tiny_run.frames(FRAMES, seed=1)
    seen = set()
    for tau, delay in ((1, 1), (1, 2), (2, 1), (2, 2)):
        detector, executor = Recorder(bundle(kind)), Delayed(delay)
        runner = AsyncRunner(detector, tau, executor=executor)
        ages = [result.memory_age_frames for result in runner.run(executor.frames(frames[0]))]
        arrivals = BESIDE[tau, delay]
        latest = [max(source for at, source in arrivals.items() if at <= t) for t in range(FRAMES)]
        assert ages == [t - source for t, source in enumerate(latest)]
        found = roll(BundleNetwork(detector.bundle), frames, f"async{tau}", delay_frames=delay)
        assert_same(found, detector.real_heads())
        seen.add(found[1].tobytes())
    assert len(seen) == 4


@pytest.mark.slow
def test_clips_of_a_batch_do_not_see_each_other():
    network, frames = BundleNetwork(bundle("int8")), tiny_run.frames(FRAMES, batch=3, seed=2)
    for word in ("2", "async1", "1+update"):
        together = roll(network, frames, word)
        for i in range(3):
            alone = roll(network, frames[i : i + 1], word)
            assert_same([head[i : i + 1] for head in together], alone)


@pytest.mark.parametrize(
    "word, delay",
    [("async9+delay11", 11), ("adaptive+async+delay4", 4), ("adaptive19+async+delay999", 999)],
)
def test_a_mode_names_its_delay(word, delay):
    mode = rollout.parse_mode(word)
    assert (mode.delay_frames, mode.name) == (delay, word)
    assert rollout.parse_mode(word.partition("+delay")[0]).delay_frames == 1


def test_the_delay_of_a_word_is_that_of_the_rollout():
    found = roll(Arithmetic(), clips(), "async1+delay2")
    assert_same(found, roll(Arithmetic(), clips(), "async1", delay_frames=2))


@pytest.mark.parametrize(
    "word", ["9+delay3", "adaptive+delay3", "random20+delay3", "async9+delay3+delay4"]
)
def test_a_delay_is_of_asynchronous_modes_and_one(word):
    with pytest.raises(UserError, match=r"one delay of f0 is of asynchronous modes"):
        rollout.parse_mode(word)


def test_a_measured_delay_is_for_modes_that_name_none():
    words = ("f0", "async9", "async4+delay2", "adaptive+async", "async9+delay8")
    modes = rollout.delayed([rollout.parse_mode(word) for word in words], 8)
    assert [mode.name for mode in modes] == [
        "f0", "async9+delay8", "async4+delay2", "adaptive+async+delay8",
    ]  # fmt: skip
