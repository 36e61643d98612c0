"""The bar of a training, drawn into a file; no TensorFlow."""

import re
import time

import pytest

from memvid_tf.tasks import progress


class Step:
    """A step counter that a training loop moves."""

    value = 0

    def numpy(self):
        return self.value


@pytest.fixture
def screen(monkeypatch, capsys):
    """A function that gives what was drawn so far, drawing by drawing; every 5 ms there is one."""
    monkeypatch.setattr(progress, "FILE_S", 0.005)
    drawn = [""]

    def drawings():
        drawn[0] += capsys.readouterr().err
        return [drawing.strip() for drawing in drawn[0].split("\r")]

    return drawings


def until(condition):
    """Waits for the thread that draws."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def started(start, steps):
    bar = progress.Progress(start, steps)
    bar.global_step = Step()
    bar.global_step.value = start
    return bar


def test_it_is_drawn_while_the_first_step_is_compiled(screen):
    bar = started(0, 20)
    until(lambda: len(screen()) > 5)
    assert all(progress.COMPILING in line and "0/20" in line for line in screen() if line)
    bar.close()


def test_it_moves_within_a_loop_of_steps(screen):
    """The trainer calls it only when a loop is over."""
    bar = started(0, 2000)
    for step in (3, 700):
        bar.global_step.value = step
        until(lambda: f"{step}/2000" in screen()[-1])
        assert screen()[-1].startswith(f"{progress.TRAINING}:")
    bar.global_step.value = 1000
    bar({"training_loss": 0.5})
    assert "1000/2000" in screen()[-1] and "loss=0.500" in screen()[-1]
    bar.close()


def test_the_time_left_does_not_count_compiling_nor_validations(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "FILE_S", 1000)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    bar = started(0, 1000)
    now[0] += 300  # compiling
    bar.global_step.value = 10
    bar({"training_loss": 1})
    for _ in range(9):
        now[0] += 1
        bar.global_step.value += 10
        bar({"training_loss": 1})
    # 90 seconds, which a float may be just below.
    assert re.search(r"100/1000 \[00:09<01:(30|29), 10\.00step/s", screen()[-1]), screen()[-1]
    with bar.validating():
        now[0] += 50
    now[0] += 1
    bar.global_step.value += 10
    bar({"training_loss": 1})
    assert re.search(r"110/1000 \[00:10<01:(29|28), 10\.00step/s", screen()[-1]), screen()[-1]
    bar.close()


def test_only_the_first_validation_is_compiled(screen):
    bar = started(0, 20)
    seen = []
    for _ in range(2):
        with bar.validating():
            seen.append(screen()[-1].partition(":")[0])
            bar.validated(1)
            seen.append(screen()[-1].partition(":")[0])
            bar.validated(2)
            seen.append(screen()[-1].partition(":")[0])
    first, again = progress.COMPILING_VALIDATION, progress.VALIDATING
    done = [f"{progress.VALIDATING}, 1 batch done", f"{progress.VALIDATING}, 2 batches done"]
    assert seen == [first, *done, again, *done]
    bar.close()


def test_a_worker_beside_the_chief_draws_nothing(screen):
    bar = progress.Progress(0, 20, hidden=True)
    bar.global_step = Step()
    bar.global_step.value = 20
    bar({"training_loss": 1})
    with bar.validating():
        bar.validated(1)
    bar.close()
    assert screen() == [""]
