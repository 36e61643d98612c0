"""Plans: what the native runner is to do, as a folder with one text file and the data it names.

A plan is made from a bundle (goldens here, schedules in `schedules`) or from any `.tflite` (the
latency of one graph). All paths in it are relative, so the folder runs wherever it is copied to;
`Job.files` says what to copy. Files of bundles and models lie in a folder of their own, so that
none of their names can take the place of something else. Words are split at blanks, so no name may
hold one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle

VERSION = 1
STATE = "state"  # folder of what a plan needs beyond the bundle's own files
GIVEN = "given/"  # prefix of files whose names others chose, and of nothing else


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the runner.

    Attributes:
      text: the plan.
      files: what it reads, by relative path: a file to copy, or its content.
      samples: number of latencies that its result must hold.
      outputs: files it writes beside the result.
    """

    text: str
    files: dict[str, Path | bytes]
    samples: int = 0
    outputs: tuple[str, ...] = ()


def graph(
    path: Path, signature: str | None, threads: int, runs: int, warm_up: int,
    inputs: dict[str, bytes] | None = None, profile: bool = False,
) -> Job:  # fmt: skip
    """Latency of one signature of a `.tflite` file.

    Args:
      path: the file.
      signature: None takes the only one.
      threads: of one invoke.
      runs: number of measured runs.
      warm_up: number of runs before them, at least 1: the first run is reported apart.
      inputs: raw tensors by name; those left out get fixed pseudo-random bytes.
      profile: also asks the runtime how long each operator takes, which costs time.
    """
    name, word = GIVEN + path.name, signature or "-"
    lines = [("job", "graph"), ("threads", threads), ("graph", name, word)]
    lines += [("runs", runs), ("warm_up", warm_up)]
    content: dict[str, Path | bytes] = {name: path}
    for number, (tensor, data) in enumerate((inputs or {}).items()):
        file = f"{STATE}/{number}.bin"
        lines.append(("set", f"{name}:{word}", tensor, file))
        content[file] = data
    if profile:
        lines.append(("profile",))
    return Job(text(lines), content, runs)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A call whose outputs are known. Tensors are named with the file that holds them and what that
    file is.

    Attributes:
      file: of the model.
      model: what that file is.
      signature: of the model.
      inputs: by tensor.
      outputs: by tensor.
    """

    file: str
    model: Path | bytes
    signature: str
    inputs: dict[str, tuple[str, Path | bytes]]
    outputs: dict[str, tuple[str, Path | bytes]]


def comparison(calls: Sequence[Recorded], threads: int = 1) -> Job:
    """Compares what the runner computes with what is known, element by element."""
    lines, content = [("job", "golden"), ("threads", threads)], {}
    for call in calls:
        model = GIVEN + call.file
        content[model] = call.model
        lines.append(("golden", model, call.signature))
        for key, tensors in (("set", call.inputs), ("expect", call.outputs)):
            for tensor, (file, data) in tensors.items():
                lines.append((key, f"{model}:{call.signature}", tensor, GIVEN + file))
                content[GIVEN + file] = data
    return Job(text(lines), content)


def goldens(bundle: Bundle, threads: int = 1) -> Job:
    """Compares every recorded call of a bundle with what the runner computes."""
    calls = []
    for golden in bundle.manifest.golden:
        file = bundle.manifest.graphs[golden.graph].file
        sides = (
            {tensor: (name, bundle.path / name) for tensor, name in side.items()}
            for side in (golden.inputs, golden.outputs)
        )
        calls.append(Recorded(file, bundle.path / file, golden.signature, *sides))
    return comparison(calls, threads)


def text(lines: Sequence[tuple]) -> str:
    """A plan of lines of words.

    Raises:
      UserError: a word that is empty or holds a blank.
    """
    written = [("memvid_plan", VERSION), *lines, ("end",)]
    for line in written:
        for word in line:
            if len(str(word).split()) != 1:
                raise UserError(f"a plan cannot name {word!r}, which is empty or holds a blank")
    return "".join(" ".join(map(str, line)) + "\n" for line in written)
