"""Plans: what the native runner is to do, as a folder with one text file and the data it names.

A plan is made from a bundle (goldens, a schedule) or from any `.tflite` (the latency of one graph).
All paths in it are relative, so the folder runs wherever it is copied to; `Job.files` says what to
copy. Words are split at blanks, so no name may hold one.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.preprocess import ImagePreparer, PreparedFrame

VERSION = 1
STATE = "state"  # folder of what a plan needs beyond the bundle's own files


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


@dataclasses.dataclass(frozen=True)
class ScheduleSetting:
    """How the frames are run.

    Attributes:
      name: "f0", "f1", "sync", "async", "adaptive" or "adaptive+async".
      tau: of "sync" and "async"; most frames of f1 in a row, or None, of the adaptive ones.
      threads: of one invoke in the calling thread; the worker of the asynchronous ones has one.
      frames: number of frames that are measured.
      warm_up: number of frames before them.
      fps: frame rate at which frames come; 0 runs as fast as it can.
      record: whether everything that heads and post-processing say is written to a file.
    """

    name: str
    tau: int | None
    threads: int = 1
    frames: int = 300
    warm_up: int = 20
    fps: float = 0.0
    record: bool = False


SCHEDULES = ("f0", "f1", "sync", "async", "adaptive", "adaptive+async")
RECORD = "recorded.bin"


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
    name, word = path.name, signature or "-"
    lines = [("job", "graph"), ("threads", threads), ("graph", name, word)]
    lines += [("runs", runs), ("warm_up", warm_up)]
    content: dict[str, Path | bytes] = {name: path}
    for tensor, data in (inputs or {}).items():
        file = f"{STATE}/{tensor}.bin"
        lines.append(("set", f"{name}:{word}", tensor, file))
        content[file] = data
    if profile:
        lines.append(("profile",))
    return Job(_text(lines), content, runs)


def goldens(bundle: Bundle, threads: int = 1) -> Job:
    """Compares every recorded call of a bundle with what the runner computes."""
    lines, content = [("job", "golden"), ("threads", threads)], {}
    for golden in bundle.manifest.golden:
        file = bundle.manifest.graphs[golden.graph].file
        call = f"{file}:{golden.signature}"
        content[file] = bundle.path / file
        lines.append(("golden", file, golden.signature))
        for key, tensors in (("set", golden.inputs), ("expect", golden.outputs)):
            for tensor, recorded in tensors.items():
                lines.append((key, call, tensor, recorded))
                content[recorded] = bundle.path / recorded
    return Job(_text(lines), content)


def schedule(bundle: Bundle, setting: ScheduleSetting, frames: Sequence[PreparedFrame]) -> Job:
    """The detector with its real state on prepared frames, used again and again.

    Raises:
      UserError: a schedule that the bundle cannot run.
    """
    manifest = bundle.manifest
    _check(bundle, setting)
    policy = setting.name.startswith("adaptive")
    kind = "async" if setting.name.endswith("async") else "sync"
    calls = {
        "f0": manifest.calls["f0"][0],
        "f1": manifest.calls["f1"][0],
        "step": manifest.calls["f0"][1],
        "update": manifest.calls["update"][1],
        "post": manifest.calls["post"][0],
    }
    if policy:
        calls["policy"] = manifest.calls["policy"][0]
    lines = [("job", "schedule"), ("threads", setting.threads)]
    content: dict[str, Path | bytes] = {}
    for role, call in calls.items():
        graph_name, _, signature = call.partition("/")
        file = manifest.graphs[graph_name].file
        lines.append(("call", role, file, signature))
        content[file] = bundle.path / file
    for state in manifest.state:
        file = f"{STATE}/{state.name}.bin"
        content[file] = np.full(state.shape, state.initial, state.dtype).tobytes()
        lines.append(("state", state.name, state.input, state.output, file))
    if policy:
        content[f"{STATE}/eta.bin"] = _eta_levels(bundle)
        order = [manifest.policy.actions.index(name) for name in ("f0", "f1")]
        lines.append(("policy", manifest.policy.observes, *order, f"{STATE}/eta.bin"))
    # One name for one sequence of frames: a device keeps those it has.
    images = {name: b"".join(getattr(frame, name).tobytes() for frame in frames)
              for name in ("f0", "f1")}  # fmt: skip
    digest = hashlib.sha256(images["f0"]).hexdigest()[:12]
    names = {name: f"frames/{digest}.{name}.bin" for name in images}
    content |= {names[name]: data for name, data in images.items()}
    updates = manifest.updates_state
    tau = {"f0": 0, "f1": -1}.get(setting.name, -1 if setting.tau is None else setting.tau)
    lines += [
        ("updates_state", int(updates["f0"]), int(updates["f1"])),
        ("frames", len(frames), names["f0"], names["f1"]),
        ("schedule", kind, "adaptive" if policy else "fixed", tau),
        ("length", setting.frames + setting.warm_up, setting.warm_up),
        ("period_us", 1e6 / setting.fps if setting.fps else 0),
    ]
    if setting.record:
        lines.append(("record", RECORD))
    outputs = (RECORD,) if setting.record else ()
    return Job(_text(lines), content, setting.frames, outputs)


def prepared_frames(bundle: Bundle, frames: Sequence[np.ndarray]) -> list[PreparedFrame]:
    """Frames, [H, W, 3] uint8 RGB each, as both extractors take them."""
    manifest = bundle.manifest
    tensors = (manifest.tensor(f"{manifest.calls[x][0]}/image", "inputs") for x in ("f0", "f1"))
    preparer = ImagePreparer(manifest.image, *tensors)
    return [preparer.prepare(frame, ("f0", "f1")) for frame in frames]


def random_frames(bundle: Bundle, count: int, seed: int) -> list[PreparedFrame]:
    """Prepared frames of noise."""
    rng = np.random.default_rng(seed)
    size = bundle.manifest.image.sizes["f0"]
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    return prepared_frames(bundle, noise)


def _check(bundle: Bundle, setting: ScheduleSetting) -> None:
    manifest, name = bundle.manifest, setting.name
    if manifest.system != "interleaved":
        raise UserError(f"bundle {bundle.path}: system {manifest.system!r} is not 'interleaved'")
    if name not in SCHEDULES:
        raise UserError(f"schedule {name!r} is not one of {', '.join(SCHEDULES)}")
    if name.startswith("adaptive") and manifest.policy is None:
        raise UserError(f"bundle {bundle.path} has no policy; leave schedule {name!r} out")
    if name.endswith("async") and manifest.updates_state["f1"]:
        raise UserError(
            f"bundle {bundle.path}: its f1 frames write the memory, which cannot run "
            f"asynchronously; leave schedule {name!r} out"
        )
    if name in ("sync", "async") and (setting.tau is None or setting.tau < 0):
        raise UserError(f"tau of schedule {name!r} is {setting.tau}, wanted 0 or more")
    step, post = manifest.calls["f0"][1], manifest.calls["post"][0]
    for head in ("box_encodings", "class_logits"):
        produced = manifest.tensor(f"{step}/{head}", "outputs")
        if produced.dtype != manifest.tensor(f"{post}/{head}", "inputs").dtype:
            raise UserError(
                f"bundle {bundle.path}: {post}/{head} takes real values, which the native runner "
                "does not convert; export the bundle again, or use --engine=python"
            )


def _eta_levels(bundle: Bundle) -> bytes:
    """The stored elements of eta for f0 and for f1."""
    manifest = bundle.manifest
    spec = manifest.tensor(f"{manifest.calls['policy'][0]}/eta", "inputs")
    levels = np.array([0.0, manifest.policy.eta_one], np.float32)
    if spec.dtype == "int8":
        levels = np.clip(np.rint(levels / np.float32(spec.scale)) + spec.zero_point, -128, 127)
    return levels.astype(spec.dtype).tobytes()


def _text(lines: Sequence[tuple]) -> str:
    written = [("memvid_plan", VERSION), *lines, ("end",)]
    for line in written:
        for word in line:
            if len(str(word).split()) != 1:
                raise UserError(f"a plan cannot name {word!r}, which is empty or holds a blank")
    return "".join(" ".join(map(str, line)) + "\n" for line in written)
