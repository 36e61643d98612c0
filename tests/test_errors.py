"""How programs end: one line, the right exit code, and their work done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from absl import flags
from memvid_tf import errors, files
flags.DEFINE_string("output", "", "A file.")
flags.DEFINE_multi_string("peer", [], "Files.")
flags.DEFINE_string("video", "", "A file or an address.")
def main(argv):
    print("x" * {size})
    files.write_text(flags.FLAGS.output or "done", "whole")
    {end}
errors.run(main, addresses=("video",))
"""


def run(folder, *arguments, size=10, end="return None", shell="", **pipes):
    """Runs a program that prints, writes `done` and ends somehow."""
    (folder / "program.py").write_text(PROGRAM.format(size=size, end=end))
    command = f'exec "{sys.executable}" program.py "$@" {shell}'
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", command, "sh", *arguments],
        cwd=folder, text=True, env=environment, timeout=60, check=False, **pipes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "shell", "code", "said"),
    [
        (10, ">/dev/full", 2, "error: standard output: No space left on device\n"),
        # More than Python keeps back.
        (100_000, ">/dev/full", 2, "error: standard output: No space left on device\n"),
        (100_000, ">&-", 2, "error: standard output: Bad file descriptor\n"),
        (10, ">/dev/full 2>&-", 2, ""),
        (10, "<&- 2>&-", 0, ""),
    ],
)
def test_an_output_that_cannot_be_written_is_said_after_the_work(tmp_path, size, shell, code, said):
    ended = run(tmp_path, size=size, shell=shell)
    assert (ended.returncode, ended.stderr) == (code, said)
    assert (tmp_path / "done").read_text() == "whole"


def test_a_reader_that_is_gone_does_not_end_the_work(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(tmp_path, size=100_000, stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")
    assert (tmp_path / "done").read_text() == "whole"


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return 1", 1, ""),
        ("raise errors.UserError('--a=1\\n is wrong')", 2, "error: --a=1 is wrong\n"),
        ("raise OSError(28, 'No space', 'a')", 2, "error: a cannot be written: No space\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
        ("raise errors.Terminated('kept')", 143, "kept\n"),
    ],
)
def test_how_it_ended_counts_more_than_its_output(tmp_path, end, code, said):
    ended = run(tmp_path, end=end, shell=">/dev/full")
    assert (ended.returncode, ended.stderr) == (code, said)


def test_an_address_is_no_path(tmp_path):
    for flag in ("--output=gs://bucket/a", "--peer=s3://b", "--output=file:///tmp/a"):
        ended = run(tmp_path, "--peer=a.tflite", flag)
        assert ended.returncode == 2 and ended.stderr == (
            f"error: {flag.partition('=')[0]}: {flag.partition('=')[2]!r} is an address; only "
            "local paths are supported, copy it first\n"
        )
        assert os.listdir(tmp_path) == ["program.py"]
    ended = run(tmp_path, "--video=rtsp://camera/1", "--output=c:/a", "--peer=x=gs://y")
    assert (ended.returncode, ended.stderr) == (0, "") and (tmp_path / "c:" / "a").exists()


def test_a_closed_terminal_does_not_stop_the_work(tmp_path):
    """Its progress bar cannot be drawn any more; nohup keeps the signal away."""
    primary, secondary = os.openpty()
    (tmp_path / "program.py").write_text(
        "import sys, time\nfrom tqdm import tqdm\nfrom memvid_tf import errors, files\n"
        "def main(argv):\n"
        "    for n in tqdm(range(6), mininterval=0):\n"
        "        print(n, flush=True)\n        time.sleep(0.1)\n"
        "    files.write_text('done', 'whole')\n"
        "errors.run(main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=secondary,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    os.close(secondary)
    assert process.stdout.readline() == b"0\n"
    os.close(primary)
    assert process.communicate(timeout=30)[0] == b"1\n2\n3\n4\n5\n" and process.returncode == 0
    assert (tmp_path / "done").read_text() == "whole"
