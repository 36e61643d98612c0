"""Which extractor runs when."""

import pytest

from memvid_tf.errors import UserError
from memvid_tf.runtime.schedules import FixedSchedule, parse


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
