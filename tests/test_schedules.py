"""Which extractor runs when."""

import numpy as np
import pytest

from memvid_tf.errors import UserError
from memvid_tf.runtime.manifest import PolicySpec
from memvid_tf.runtime.runners import MemoryHistory
from memvid_tf.runtime.schedules import (
    ACTIONS,
    ActionHistory,
    AdaptiveSchedule,
    DueSchedule,
    FixedSchedule,
    bound,
    parse,
)


@pytest.mark.parametrize(
    ("text", "tau", "picks"),
    [
        ("f0", 0, "f0 f0 f0 f0 f0 f0 f0"),
        ("0", 0, "f0 f0 f0 f0 f0 f0 f0"),
        ("f1", None, "f1 f1 f1 f1 f1 f1 f1"),
        ("1", 1, "f0 f1 f0 f1 f0 f1 f0"),
        ("2", 2, "f0 f1 f1 f0 f1 f1 f0"),
        ("9", 9, "f0 f1 f1 f1 f1 f1 f1"),
    ],
)
def test_fixed_schedules(text, tau, picks):
    schedule = parse(text)
    assert schedule == FixedSchedule(tau)
    assert [schedule.pick(frame) for frame in range(7)] == picks.split()


@pytest.mark.parametrize("text", ["", "f2", "-1", "1.5", "nine", " 9", "٩", "²"])
def test_other_words_are_refused_by_name(text):
    with pytest.raises(UserError, match="'f0'.*'f1'.*whole number") as refused:
        parse(text)
    assert repr(text) in str(refused.value)


def test_a_negative_tau_is_refused():
    with pytest.raises(ValueError, match="-1"):
        FixedSchedule(-1)


def test_what_is_due_stays_due():
    schedule = DueSchedule(2)
    ran = []
    for frame in range(10):
        picked = schedule.pick(frame)
        busy = frame in (3, 4)  # the worker still runs
        ran.append("f1" if busy else picked)
        schedule.observe(ran[-1], None, None)
    assert " ".join(ran) == "f0 f1 f1 f1 f1 f0 f1 f1 f0 f1"
    assert schedule.pick(0) == "f0"


def test_eta_is_1_where_f1_ran_k_frames_ago():
    history = ActionHistory(2, 4)
    assert history.eta.tolist() == [[0] * 4] * 2
    # By video and frame, whether f0 ran.
    ran = np.array(
        [[True, False, False, True, False, False], [True, True, True, True, False, True]]
    )
    for frame in range(6):
        history.record(ran[:, frame])
        for video in range(2):
            wanted = [
                int(frame - k + 1 >= 0 and not ran[video, frame - k + 1]) for k in range(1, 5)
            ]
            assert history.eta[video].tolist() == wanted


def test_picks_take_the_better_value_and_f0_of_equals():
    history = ActionHistory(3, 2)
    assert history.picks(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])).tolist() == [
        False, True, True,
    ]  # fmt: skip


def test_the_bound_on_the_gap_is_hard():
    history, ran = ActionHistory(1, 3, max_tau=2), []
    for _ in range(8):
        f0 = history.picks(np.array([[0.0, 9.0]]))  # the policy never wants f0
        history.record(f0)
        ran.append(bool(f0[0]))
    assert ran == [False, False, True] * 2 + [False, False]
    with pytest.raises(ValueError, match="max_tau is -1"):
        ActionHistory(1, 3, max_tau=-1)


class Script:
    """A policy that says what it was told to and writes down what it was asked."""

    def __init__(self, values, observes="memory"):
        self.spec = PolicySpec(ACTIONS, 3, 6.0, observes)
        self.values, self.asked = list(values), []

    def q_values(self, after, before, eta):
        self.asked.append((after, before, eta.tolist()))
        return np.array(self.values[len(self.asked) - 1], np.float32)


def test_an_adaptive_schedule_asks_after_each_frame():
    f0, f1 = (1.0, 0.0), (0.0, 1.0)
    policy = Script([f1, f1, f0, f1, f0])
    schedule, picked = AdaptiveSchedule(policy), []
    for frame in range(5):
        picked.append(schedule.pick(frame))
        schedule.observe(picked[-1], f"after {frame}", f"before {frame}")
    assert picked == ["f0", "f1", "f1", "f0", "f1"]
    assert [eta for *_, eta in policy.asked] == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1], [1, 0, 1],
    ]  # fmt: skip
    assert policy.asked[3][:2] == ("after 3", "before 3")
    assert schedule.pick(0) == "f0"  # another video
    policy.values.append(f1)
    schedule.observe("f0", "after", "before")
    assert policy.asked[-1] == ("after", "before", [0, 0, 0])


def test_an_adaptive_schedule_wants_candidates_where_the_policy_does():
    assert AdaptiveSchedule(Script([], "candidate")).wants_candidate
    assert not AdaptiveSchedule(Script([])).wants_candidate
    assert not FixedSchedule(3).wants_candidate


@pytest.mark.parametrize(
    "own, asked, wanted",
    [(39, None, 39), (39, 5, 5), (39, 0, None), (0, None, None), (0, 7, 7), (2, 50, 50)],
)
def test_the_bound_is_the_policys_own_unless_another_is_asked_for(own, asked, wanted):
    assert bound(PolicySpec(ACTIONS, 3, 6.0, "memory", own), asked) == wanted


def test_a_bound_below_none_is_refused():
    with pytest.raises(ValueError, match="max_tau is -1"):
        bound(PolicySpec(ACTIONS, 3, 6.0, "memory"), -1)


@pytest.mark.parametrize("asked, gaps", [(None, {39}), (2, {2}), (0, set())])
def test_a_policy_that_never_asks_for_f0_is_bounded(asked, gaps):
    """An untrained one, of a bundle that says nothing of a bound."""
    schedule, ran = AdaptiveSchedule(Script([(0.0, 1.0)] * 200), asked), []
    for frame in range(200):
        picked = schedule.pick(frame)
        schedule.observe(picked, None, None)
        ran += [frame] if picked == "f0" else []
    assert {b - a - 1 for a, b in zip(ran, ran[1:])} == gaps
    assert ran[0] == 0


def test_the_effective_tau_counts_what_follows_the_last_f0():
    """Twenty thousand frames, of which f0 ran on five of the first forty."""
    history = MemoryHistory()
    for frame in range(0, 41, 10):
        history.written(frame, frame)
    # While the last gap is no longer than the others nothing is known of it.
    assert [history.effective_tau(frame) for frame in (40, 45, 49)] == [9.0] * 3
    assert history.effective_tau(53) == pytest.approx((4 * 9 + 13) / 5)
    assert history.effective_tau(19999) == pytest.approx((4 * 9 + 19959) / 5)


def test_a_worker_that_takes_long_makes_no_gap():
    """f0 starts on every twelfth frame and is done eleven later."""
    history, found = MemoryHistory(), []
    history.written(0, 0)
    for frame in range(1, 200):
        if frame % 12 == 11 and frame > 11:
            history.written(frame - 11, frame)
        found.append(history.effective_tau(frame))
    assert set(found[40:]) == {11.0} and found[:22] == [None] * 22
