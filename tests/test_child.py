"""Programs that are watched: what is shown of them, and how their failure is told."""

import os
import re
import signal
import sys
import threading
import time

import pytest

from benchmarks import child, pipeline
from memvid_tf import errors

BAR = "import sys; sys.stderr.write('step: 1/2\\rstep: 2/2\\n'); "


def python(code, tmp_path):
    return child.run(["-c", code], str(tmp_path))


def test_stdout_and_bars_are_shown(tmp_path, capfd):
    ended = python(BAR + "import os; print(os.getcwd())", tmp_path)
    assert ended.code == 0
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == (f"{tmp_path}\n", "step: 1/2\rstep: 2/2\n")


FAILURES = {
    "a sentence": ("sys.exit('error: no room; make some')", "no room; make some"),
    "a traceback": ("1 / 0", "ZeroDivisionError: division by zero"),
    "a bar that was never ended": ("sys.stderr.write('a\\rb 50%'); sys.exit(3)", "b 50%"),
    "a signal": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, as happens where mem"),
}


@pytest.mark.parametrize("code, cause", FAILURES.values(), ids=FAILURES)
def test_the_cause_is_a_line(tmp_path, capfd, code, cause):
    ended = python(BAR + code, tmp_path)
    assert ended.code and ended.cause.startswith(cause)
    shown = capfd.readouterr().err
    assert shown.startswith("step: 1/2\rstep: 2/2\n")
    assert "Traceback" not in shown and "error: " not in shown
    if "traceback" in code:
        assert "Traceback" in ended.said


def test_without_a_word_the_cause_is_the_code(tmp_path):
    assert python("raise SystemExit(7)", tmp_path).cause == "exit code 7"


def test_only_the_end_of_a_long_story_is_kept(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(child, "LOG_BYTES", 1000)
    ended = python("import sys; sys.stderr.write('x' * 100_000 + '\\nlast'); sys.exit(1)", tmp_path)
    assert len(ended.said) == 1000 and ended.cause == "last"
    assert len(capfd.readouterr().err) == 100_005


def test_a_terminal_stays_one(tmp_path, monkeypatch):
    """Bars are as wide as it is, and are drawn in place; before them the seconds are counted."""
    import termios

    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 67))
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        code = "import os, sys; print(os.get_terminal_size(2).columns, file=sys.stderr)"
        assert python(code, tmp_path).said == "67\n"
        assert os.read(master, 100) == b"67\r\n"
        monkeypatch.setattr(child, "SILENT_S", 0.01)
        assert python(f"import time; time.sleep(0.1); {code}", tmp_path).said == "67\n"
        monkeypatch.undo()
    shown = b"loading and compiling, 0 s"
    assert re.fullmatch(rb"(%b\r)+ {26}\r67\r\n" % shown, os.read(master, 9999))
    os.close(master)


def test_sigterm_ends_the_program_too(tmp_path):
    code = (
        "import signal, sys, pathlib, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)"
    )

    def terminate():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    assert python(code, tmp_path).code == 143
    assert signal.getsignal(signal.SIGTERM) == before


# Steps.


def step(title, tmp_path, flags, minutes=0.0):
    """`python -m memvid_tf.data`, which is quick to say what is wrong; done where `title` is."""
    done = pipeline.exists(tmp_path / title)
    return pipeline.Step(title, "memvid_tf.data", flags, done, ("check",), minutes)


def test_a_step_that_fails_names_itself_the_cause_and_the_log(tmp_path, capfd):
    (tmp_path / "first one").touch()
    todo = [step("first one", tmp_path, {}), step("a look", tmp_path, {"input": "/gone"})]
    with pytest.raises(errors.UserError) as error:
        pipeline.run(todo, str(tmp_path))
    log = tmp_path / "a_look.log"
    text = str(error.value)
    assert text.startswith("step 2 of 2, a look: data set folder /gone does not exist; make a ")
    assert text.endswith(f"; the same command again goes on from here; log: {log}")
    assert "\n" not in text
    command, _, said = log.read_text().splitlines()
    assert command == "python -m memvid_tf.data check --input=/gone"
    assert said.startswith("error: data set folder /gone")
    shown = capfd.readouterr()
    assert shown.out == "[1/2] first one: there already\n[2/2] a look\n" and not shown.err


def test_the_time_left_is_said_by_what_was_measured(tmp_path, capfd, monkeypatch):
    """At the pace of the steps before."""
    titles = {"one": 1.0, "two": 3.0, "three": 0.5}
    todo = [step(title, tmp_path, {"n": title}, minutes) for title, minutes in titles.items()]
    now = [0.0]

    def run(command, folder):
        title = command[-1].partition("=")[2]
        (tmp_path / title).touch()
        now[0] += 2 * 60 * titles[title]
        return child.Ended(0, "")

    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])
    assert pipeline.run(todo) == {"one": 120.0, "two": 360.0, "three": 60.0}
    assert capfd.readouterr().out.splitlines() == [
        "[1/3] one: about 1 min, then 3.5 min more",
        "[2/3] two: about 6 min, then 1 min more",
        "[3/3] three: about 1 min",
    ]


@pytest.mark.parametrize("code, kind", [(130, KeyboardInterrupt), (143, errors.Terminated)])
def test_a_step_that_was_stopped_is_no_failure(tmp_path, monkeypatch, code, kind):
    monkeypatch.setattr(child, "run", lambda *_: child.Ended(code, "interrupted"))
    with pytest.raises(kind):
        pipeline.run([step("one", tmp_path, {})], str(tmp_path))
    assert not list(tmp_path.iterdir())
