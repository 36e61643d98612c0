"""The replay: what it keeps, draws and restores."""

from typing import NamedTuple

import numpy as np
import pytest

from memvid_tf.rl.replay import Replay, Transition, from_bytes, to_bytes


class Pair(NamedTuple):
    """A state of two arrays of different shapes."""

    map: np.ndarray
    eta: np.ndarray


def state(number):
    return Pair(np.full((2, 3), number, np.uint8), np.full(4, number + 100, np.uint8))


def transition(number):
    """A transition of which every part tells the number."""
    return Transition(state(number), number % 2, number / 4, 0.5 + number / 100, state(number + 1))


def filled(count, capacity=5):
    replay = Replay(capacity, Pair)
    for number in range(count):
        replay.add(transition(number))
    return replay


def numbers(batch):
    return (batch.r_t * 4).round().astype(int)


@pytest.mark.parametrize(("count", "kept"), [(3, range(3)), (5, range(5)), (13, range(8, 13))])
def test_it_keeps_the_newest(count, kept):
    replay = filled(count)
    assert len(replay) == len(kept)
    drawn = numbers(replay.sample(400, np.random.default_rng(0)))
    assert set(drawn) == set(kept)
    # Each of n is drawn 400/n times; five standard deviations of a binomial.
    expected = 400 / len(kept)
    assert np.abs(np.bincount(drawn)[list(kept)] - expected).max() < 5 * expected**0.5


def test_parts_of_a_transition_stay_together():
    batch = filled(13).sample(64, np.random.default_rng(1))
    drawn = numbers(batch)
    assert batch.s_tm1.map.shape == (64, 2, 3) and batch.s_t.eta.shape == (64, 4)
    np.testing.assert_array_equal(batch.s_tm1.map[:, 1, 2], drawn)
    np.testing.assert_array_equal(batch.s_tm1.eta[:, 0], drawn + 100)
    np.testing.assert_array_equal(batch.s_t.map[:, 0, 0], drawn + 1)
    np.testing.assert_array_equal(batch.a_tm1, drawn % 2)
    np.testing.assert_allclose(batch.discount_t, 0.5 + drawn / 100, rtol=1e-6)
    assert batch.a_tm1.dtype == np.int32 and batch.r_t.dtype == np.float32


def test_the_generator_alone_decides():
    one, other = filled(9), filled(9)
    for seed in (3, 4):
        a, b = (r.sample(16, np.random.default_rng(seed)) for r in (one, other))
        np.testing.assert_array_equal(a.r_t, b.r_t)
    assert not np.array_equal(a.r_t, one.sample(16, np.random.default_rng(5)).r_t)


@pytest.mark.parametrize("count", [0, 3, 13])
def test_restored_equals_kept(count):
    replay, restored = filled(count), Replay(5, Pair)
    restored.set_state(from_bytes(to_bytes(replay.get_state())))
    for number in range(count, count + 2):  # the same places are overwritten next
        replay.add(transition(number))
        restored.add(transition(number))
    a, b = (r.sample(50, np.random.default_rng(2)) for r in (replay, restored))
    for x, y in zip(
        a.s_tm1 + a.s_t + (a.a_tm1, a.r_t, a.discount_t),
        b.s_tm1 + b.s_t + (b.a_tm1, b.r_t, b.discount_t),
    ):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def test_what_is_shared_is_stored_once():
    replay = Replay(10, Pair)
    first = state(0)
    for number in range(6):
        second = Pair(first.map, state(number).eta)  # as after a frame of f1
        replay.add(Transition(first, 1, 0.0, 1.0, second))
        first = second
    tables = replay.get_state()
    assert len(tables["state/map"]) == 1 and len(tables["state/eta"]) == 7


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="capacity 0"):
        Replay(0, Pair)
    with pytest.raises(ValueError, match="empty"):
        Replay(2, Pair).sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="5 transitions do not fit a replay of 4"):
        Replay(4, Pair).set_state(filled(5).get_state())
    with pytest.raises(ValueError):
        from_bytes(b"not arrays")
