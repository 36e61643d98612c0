"""Runs the native runner on this machine."""

import json
import signal
import subprocess
import tempfile
from pathlib import Path

from benchmarks.runner import build
from benchmarks.runner.plan import GIVEN, Job
from memvid_tf.errors import UserError

PLAN, RESULT = "plan.txt", "result.json"


class RunnerError(UserError):
    """The runner failed, or its result is not whole."""


def place(job: Job, folder: Path) -> None:
    """Lays out a job's plan and files in a folder; models are linked, not copied."""
    (folder / PLAN).write_text(job.text, encoding="utf-8")
    for name, content in job.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.symlink_to(content.resolve())


def run(job: Job, timeout_s: float = 600.0) -> tuple[dict, dict[str, bytes]]:
    """Runs a job.

    Returns:
      What the runner measured, and the files that it wrote beside, by name.

    Raises:
      NoCompiler: the runner cannot be built here.
      RunnerError: it failed, took too long, or its result is not whole.
    """
    binary, library = build.build(build.host()), build.litert_library()
    with tempfile.TemporaryDirectory(prefix="memvid_runner_") as name:
        folder = Path(name)
        place(job, folder)
        try:
            done = subprocess.run(
                [binary, PLAN, RESULT, library],
                cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RunnerError(f"the runner was stopped after {timeout_s:.0f} s") from error
        if done.returncode:
            raise RunnerError(f"the runner {ending(done.returncode)}: {reason(done.stderr)}")
        result = parse((folder / RESULT).read_text(encoding="utf-8"), job)
        return result, {file: (folder / file).read_bytes() for file in job.outputs}


def ending(code: int) -> str:
    """How a program ended, of its code as `subprocess` or a shell says it."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"died of {signal.Signals(number).name}"
    return f"ended with code {code}"


def reason(stderr: str) -> str:
    """The lines of the runner's standard error that say why it failed, without LiteRT's chatter."""
    lines = [x for x in stderr.splitlines() if not x.startswith(("INFO:", "WARNING:"))]
    return " ".join(" ".join(lines).split())[-1000:] or "it said nothing"


def parse(text: str, job: Job) -> dict:
    """The runner's JSON, checked: as many samples as runs. Graphs have the names they were given.

    Raises:
      RunnerError: it is cut short or not of this job.
    """
    try:
        result = json.loads(text)
    except ValueError as error:
        raise RunnerError(f"the runner's result is not JSON: {error}") from error
    samples = len(result.get("latency_us", [])) if isinstance(result, dict) else -1
    if samples != job.samples:
        raise RunnerError(f"the runner's result holds {samples} samples, wanted {job.samples}")
    for row in result.get("goldens", ()):
        row["graph"] = row["graph"].removeprefix(GIVEN)
    return result
