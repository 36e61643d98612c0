"""Plans of schedules: a bundle with its real state on a sequence of recorded frames.

Frames are recorded as pixels at the size of the largest image that the bundle takes, so the runner
prepares them as an app does, but for resizing.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from benchmarks.runner.plan import GIVEN, STATE, Job, text
from memvid_tf.errors import UserError
from memvid_tf.runtime import windowed
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import HEADS
from memvid_tf.runtime.preprocess import resize, storer

RECORD = "recorded.bin"
INTERLEAVED = ("f0", "f1", "sync", "async", "adaptive", "adaptive+async")
WHOLE = windowed.FULL  # every frame seen whole, which a window's time is compared with
PATCHWORK = (WHOLE, *windowed.POLICIES)


@dataclasses.dataclass(frozen=True)
class ScheduleSetting:
    """How the frames are run.

    Attributes:
      name: one of `INTERLEAVED` or `PATCHWORK`, whichever the bundle is.
      tau: of "sync" and "async"; most frames of f1 in a row, or None, of the adaptive ones.
      threads: of one invoke in the calling thread; the worker of the asynchronous ones has one.
      frames: number of frames that are measured.
      warm_up: number of frames before them.
      fps: frame rate at which frames come; 0 runs as fast as it can.
      record: whether everything that heads and post-processing say is written to a file.
    """

    name: str
    tau: int | None = None
    threads: int = 1
    frames: int = 300
    warm_up: int = 20
    fps: float = 0.0
    record: bool = False

    @property
    def asynchronous(self) -> bool:
        """Whether a second thread works beside the calling one."""
        return self.name.endswith("async")

    @property
    def adaptive(self) -> bool:
        """Whether the bundle's policy decides."""
        return self.name.startswith("adaptive")


def names(bundle: Bundle) -> list[str]:
    """The schedules that a bundle can run."""
    manifest = bundle.manifest
    if manifest.system == "single_frame":
        return []  # its frames are one call, which is measured as a graph
    if manifest.system == "patchwork":
        return list(PATCHWORK)
    return [
        name
        for name in INTERLEAVED
        if not (name.startswith("adaptive") and manifest.policy is None)
        and not (name.endswith("async") and manifest.updates_state["f1"])
    ]


def frame_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the frames that a bundle's plans record."""
    sizes = bundle.manifest.image.sizes
    return sizes["f0" if bundle.manifest.system == "interleaved" else "full"]


def recorded_frames(bundle: Bundle, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Frames, [H, W, 3] uint8 RGB of any size, at the size that plans record."""
    return [resize(frame, frame_size(bundle)) for frame in frames]


def random_frames(bundle: Bundle, count: int, seed: int) -> list[np.ndarray]:
    """Frames of noise, [H, W, 3] uint8, at the size that plans record."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*frame_size(bundle), 3), np.uint8) for _ in range(count)]


def schedule(bundle: Bundle, setting: ScheduleSetting, frames: Sequence[np.ndarray]) -> Job:
    """The bundle with its real state on recorded frames, used again and again.

    Args:
      bundle: of either system.
      setting: how.
      frames: what `recorded_frames` or `random_frames` returned.

    Raises:
      UserError: a schedule that the bundle cannot run.
    """
    _check(bundle, setting)
    system = bundle.manifest.system
    describe = _patchwork if system == "patchwork" else _interleaved
    calls, lines, content = describe(bundle, setting)
    for role, call in calls.items():
        graph_name, _, signature = call.partition("/")
        file = bundle.manifest.graphs[graph_name].file
        lines.append(("call", role, GIVEN + file, signature))
        content[GIVEN + file] = bundle.path / file
    pixels = np.stack(frames).tobytes()
    # One name for one sequence of frames: a device keeps those it has.
    file = f"frames/{hashlib.sha256(pixels).hexdigest()[:12]}.bin"
    content[file] = pixels
    lines += [
        ("job", "schedule"),
        ("system", system),
        ("threads", setting.threads),
        ("frames", len(frames), *frame_size(bundle), file),
        ("length", setting.frames + setting.warm_up, setting.warm_up),
        ("period_us", 1e6 / setting.fps if setting.fps else 0),
    ]
    if setting.record:
        lines.append(("record", RECORD))
    outputs = (RECORD,) if setting.record else ()
    return Job(text(lines), content, setting.frames, outputs)


def _interleaved(bundle: Bundle, setting: ScheduleSetting) -> tuple[dict, list, dict]:
    manifest = bundle.manifest
    calls = {
        "f0": manifest.calls["f0"][0],
        "f1": manifest.calls["f1"][0],
        "step": manifest.calls["f0"][1],
        "update": manifest.calls["update"][1],
        "post": manifest.calls["post"][0],
    }
    if manifest.calls["f1"][1] != calls["step"]:
        calls["read"] = manifest.calls["f1"][1]
    lines, content = [], {}
    factor = manifest.image.sizes["f0"][0] // manifest.image.sizes["f1"][0]
    for name, shrink in (("f0", 1), ("f1", factor)):
        lines.append(("image", name, shrink, _table(bundle, name, calls[name], content)))
    for number, state in enumerate(manifest.state):
        file = f"{STATE}/{number}.bin"
        content[file] = np.full(state.shape, state.initial, state.dtype).tobytes()
        lines.append(("state", state.name, state.input, state.output, file))
    if setting.adaptive:
        calls["policy"] = manifest.calls["policy"][0]
        content[f"{STATE}/eta.bin"] = _eta_levels(bundle)
        order = [manifest.policy.actions.index(name) for name in ("f0", "f1")]
        lines.append(("policy", manifest.policy.observes, *order, f"{STATE}/eta.bin"))
    updates = manifest.updates_state
    lines.append(("updates_state", int(updates["f0"]), int(updates["f1"])))
    kind = "async" if setting.asynchronous else "sync"
    tau = {"f0": 0, "f1": -1}.get(setting.name, -1 if setting.tau is None else setting.tau)
    lines.append(("schedule", kind, "adaptive" if setting.adaptive else "fixed", tau))
    return calls, lines, content


def _patchwork(bundle: Bundle, setting: ScheduleSetting) -> tuple[dict, list, dict]:
    manifest, spec = bundle.manifest, bundle.manifest.windows
    layout = spec.layout()
    full, tail = manifest.calls["first"]
    calls = {"full": full, "tail": tail, "window": manifest.calls["step"][0]}
    if "post" in manifest.calls:
        calls["post"] = manifest.calls["post"][0]
    halo = manifest.tensor(f"{calls['window']}/halo", "inputs")
    image = manifest.tensor(f"{full}/image", "inputs")
    content = {
        f"{STATE}/actions.bin": _actions(layout.windows.count, setting).tobytes(),
        f"{STATE}/read.bin": layout.read.astype("<i4").tobytes(),
        f"{STATE}/places.bin": layout.places.astype("<i4").tobytes(),
    }
    chunk = spec.chunk * np.dtype(halo.dtype).itemsize
    # Of floats the stored 0 is all zero bytes, of int8 it is one byte.
    lines = [
        ("image", "full", 1, _table(bundle, "full", full, content)),
        ("windows", spec.slices, spec.adjacent, chunk, layout.memory, halo.zero_point or 0),
        ("window_image", *manifest.image.sizes["window"], spec.image_rows[0],
         spec.image_columns[0], image.zero_point or 0),
        ("tables", f"{STATE}/read.bin", f"{STATE}/places.bin"),
        ("actions", f"{STATE}/actions.bin"),
    ]  # fmt: skip
    for name in spec.maps:
        lines.append(("map", name, *manifest.tensor(f"{tail}/{name}", "inputs").shape[1:3]))
    lines += [("output", name) for name in manifest.signature(tail).outputs]
    return calls, lines, content


def _actions(count: int, setting: ScheduleSetting) -> np.ndarray:
    """[frames] int32, the window of each frame; -1 where it is seen whole, as the first one is."""
    actions = np.full(setting.warm_up + setting.frames, -1, "<i4")
    if setting.name != WHOLE:
        policy = windowed.POLICIES[setting.name](count)
        actions[1:] = [policy.pick(frame) for frame in range(1, len(actions))]
    return actions


def _table(bundle: Bundle, name: str, call: str, content: dict) -> str:
    """Adds the stored value of each pixel to the files; returns the file's name."""
    tensor = bundle.manifest.tensor(f"{call}/image", "inputs")
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 256)
    file = f"{STATE}/{name}_pixels.bin"
    content[file] = storer(bundle.manifest.image, tensor)(pixels).tobytes()
    return file


def _check(bundle: Bundle, setting: ScheduleSetting) -> None:
    manifest, name = bundle.manifest, setting.name
    systems = {"patchwork": PATCHWORK, "interleaved": INTERLEAVED}
    if manifest.system not in systems:
        raise UserError(f"bundle {bundle.path} is of a single-frame network and has no schedules")
    known = systems[manifest.system]
    if name not in known:
        raise UserError(f"schedule {name!r} is not one of {', '.join(known)}")
    if setting.adaptive and manifest.policy is None:
        raise UserError(f"bundle {bundle.path} has no policy; leave schedule {name!r} out")
    if setting.asynchronous and manifest.updates_state["f1"]:
        raise UserError(
            f"bundle {bundle.path}: its f1 frames write the memory, which cannot run "
            f"asynchronously; leave schedule {name!r} out"
        )
    if name in ("sync", "async") and (setting.tau is None or setting.tau < 0):
        raise UserError(f"tau of schedule {name!r} is {setting.tau}, wanted 0 or more")
    if "post" not in manifest.calls:
        return
    source = manifest.calls["first" if manifest.system == "patchwork" else "f0"][1]
    post = manifest.calls["post"][0]
    for head in HEADS:
        produced = manifest.tensor(f"{source}/{head}", "outputs")
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
