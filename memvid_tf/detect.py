"""Detects objects in a video with an exported bundle.

  python -m memvid_tf.detect --bundle=exported/tiny --video=clip.mp4 --output=boxes.mp4
  python -m memvid_tf.detect --bundle=exported/tiny --video=frames/ --json=found.jsonl --mode=async
  python -m memvid_tf.detect --bundle=exported/tiny --video=0 --max_frames=300 --tau=4
  python -m memvid_tf.detect --bundle=exported/tiny --video=rtsp://camera/stream --json=found.jsonl
  python -m memvid_tf.detect --bundle=exported/tiny --video=clip.mp4 --mode=adaptive --max_tau=19
  python -m memvid_tf.detect --bundle=exported/windows --video=clip.mp4 --output=masks.mp4

Bundles of Patchwork look at one window of each frame, and may segment; those of single-frame
networks see every frame whole.
Ctrl-C, SIGTERM and SIGHUP end it with what was done until then. Where an output cannot be written
whole, as on a full disk, none is kept and earlier files stay.
Needs NumPy, OpenCV, PyAV and LiteRT, not TensorFlow.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports needs no traceback

import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from memvid_tf import errors, files
from memvid_tf.errors import Interrupted, Interruptions, UserError
from memvid_tf.runtime import schedules
from memvid_tf.runtime.annotate import annotate, annotate_windows
from memvid_tf.runtime.asynchronous import AsyncRunner, MemoryUpdater
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.policy import Policy
from memvid_tf.runtime.runners import FrameResult, SyncRunner
from memvid_tf.runtime.video import (
    DEFAULT_FPS,
    Frame,
    FrameSource,
    VideoError,
    VideoWriter,
    open_source,
)
from memvid_tf.runtime.windowed import FULL, LEARNED, MODES, WindowResult, WindowRunner

_BUNDLE = flags.DEFINE_string(
    "bundle", None, "Folder that the export wrote (it holds manifest.json).", required=True
)
_VIDEO = flags.DEFINE_string(
    "video", None, "Video file or pipe (- is standard input), URL such as rtsp://..., folder of "
    "images (natural order), or camera number such as 0.", required=True,
)  # fmt: skip
_OUTPUT = flags.DEFINE_string("output", None, "Annotated video to write (VP9): .mp4 or .webm.")
_JSON = flags.DEFINE_string(
    "json", None, "JSON lines to write, one a frame: frame, time_s (of the video's own clock; of "
    "MPEG-TS and live streams from their start), extractor, memory_age_frames, detections (label, "
    "score, box [ymin, xmin, ymax, xmax] in 0..1). Of Patchwork: window (a box) and oldest_frames "
    "in place of the extractor and the age; of masks: foreground, the share of the frame.",
)  # fmt: skip
_MODE = flags.DEFINE_enum(
    "mode", None, ["sync", "async", "adaptive", "adaptive+async", *MODES],
    "sync (default): one extractor a frame. async: f1 on every frame, f0 in a thread beside it. "
    "adaptive: the bundle's policy picks the extractor. adaptive+async: it decides when f0's "
    "thread starts. Bundles of Patchwork: dqn (default where the bundle has attention) picks the "
    "windows, scanning takes them in turn, random any of them; full sees every frame whole, as bundles "
    "of single-frame networks do.",
)  # fmt: skip
_MAX_TAU = flags.DEFINE_integer(
    "max_tau", None, "Adaptive modes: most f1 frames in a row, such as 19. Default: any number.", 0
)
_TAU = flags.DEFINE_string(
    "tau", None, "f1 frames after every f0 frame, such as 9; 'f0' or 'f1' for one extractor alone "
    "(sync). Default: the bundle's.",
)  # fmt: skip
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold", None, "Smallest score shown. Default: the bundle's.", 0.0, 1.0
)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", None, "Stop after this many frames.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads of one graph; async adds its worker.", 1, 64)
_FPS = flags.DEFINE_float(
    "fps", None, "Frames a second, in place of the video's own times. Default: its own times; of a "
    f"folder, {DEFAULT_FPS:g}.",
    1e-3, 1e4,
)  # fmt: skip


class OutputError(UserError):
    """An output cannot be written; nothing of the run is kept."""


@dataclasses.dataclass
class Summary:
    """What a run did, kept while it runs."""

    frames: int = 0
    f0_frames: int = 0
    detections: int = 0
    foregrounds: list[float] = dataclasses.field(default_factory=list)
    effective_tau: float | None = None
    oldest_frames: int | None = None
    frame_ms: list[float] = dataclasses.field(default_factory=list)

    def add(self, result: FrameResult | WindowResult) -> None:
        """Counts one more frame."""
        self.frames += 1
        self.frame_ms.append(result.timings.frame_ms)
        if result.detections is not None:
            self.detections += len(result.detections.scores)
        if isinstance(result, WindowResult):
            if result.mask is not None:
                self.foregrounds.append(float(result.mask.mean()))
            self.oldest_frames = max(self.oldest_frames or 0, int(result.ages_frames.max()))
            return
        self.f0_frames += result.extractor == "f0" or result.memory_update_ms is not None
        self.effective_tau = result.effective_tau

    def text(self, mode: str, seconds: float) -> str:
        """Two lines for the user."""
        tau = "not measured (fewer than two f0 frames)"
        if self.effective_tau is not None:
            tau = f"{self.effective_tau:.2f}"
        how = f"effective tau {tau}, f0 on {self.f0_frames} frames"
        if self.oldest_frames is not None:
            how = f"no part of a frame older than {self.oldest_frames} frames"
        found = f"{self.detections} detections"
        if self.foregrounds:
            found = f"masks of {statistics.mean(self.foregrounds):.1%} of a frame (mean)"
        return (
            f"{self.frames} frames, {found}; {mode}, {how}\n"
            f"{self.frames / seconds:.1f} frames/s with reading and writing; the network "
            f"{statistics.median(self.frame_ms):.2f} ms a frame (median), "
            f"{max(self.frame_ms):.2f} ms at most"
        )


def default_mode(bundle: Bundle, mode: str | None) -> str:
    """The mode, or the bundle's default.

    Raises:
      UserError: a mode of another system.
    """
    windowed = bundle.manifest.system != "interleaved"
    if mode is None and bundle.manifest.system == "single_frame":
        return FULL
    if mode is None and windowed:
        return "scanning" if bundle.manifest.attention is None else LEARNED
    if mode is None:
        return "sync"
    if windowed != (mode in MODES):
        which = "one of" if windowed else "none of"
        raise UserError(
            f"--mode={mode}: a bundle of {bundle.manifest.system!r} has {which} {list(MODES)}"
        )
    return mode


def make_runner(
    bundle: Bundle,
    mode: str,
    tau: str | None,
    score_threshold: float | None,
    threads: int,
    max_tau: int | None = None,
) -> SyncRunner | AsyncRunner | WindowRunner:
    """The runner that the flags describe.

    Raises:
      UserError: a tau that is none, or that the mode cannot run, or a bundle without a policy where
        the mode needs one.
    """
    if mode in MODES:
        if tau is not None or max_tau is not None:
            raise UserError("--tau and --max_tau are of extractors; Patchwork has windows")
        return WindowRunner(bundle, mode, threads, score_threshold)
    if mode.startswith("adaptive"):
        if tau is not None:
            raise UserError(
                f"--tau={tau} is of fixed schedules; --mode={mode} knows --max_tau, a bound"
            )
        adaptive = schedules.AdaptiveSchedule(Policy(bundle, threads), max_tau)
        detector = InterleavedDetector(bundle, threads, score_threshold)
        if mode == "adaptive":
            return SyncRunner(detector, adaptive)
        return AsyncRunner(detector, None, MemoryUpdater(bundle, threads), schedule=adaptive)
    if max_tau is not None:
        raise UserError(f"--max_tau={max_tau} bounds adaptive modes; --mode={mode} knows --tau")
    schedule = schedules.parse(str(bundle.manifest.tau) if tau is None else tau)
    detector = InterleavedDetector(bundle, threads, score_threshold)
    if mode == "sync":
        return SyncRunner(detector, schedule)
    if schedule.tau is None:
        raise UserError("--tau=f1 leaves f0 out; --mode=async wants a whole number such as 9")
    return AsyncRunner(detector, schedule.tau, MemoryUpdater(bundle, threads))


def json_line(
    result: FrameResult | WindowResult, time_s: float, labels: tuple[str, ...]
) -> dict:
    """One line of --json; boxes are cut at the edges of the frame."""
    line = {"frame": result.index, "time_s": round(time_s, 6)}
    if isinstance(result, WindowResult):
        line["window"] = list(result.window)
        line["oldest_frames"] = int(result.ages_frames.max())
        if result.mask is not None:
            return {**line, "foreground": round(float(result.mask.mean()), 5)}
    else:
        line["extractor"] = result.extractor
        line["memory_age_frames"] = result.memory_age_frames
    return {
        **line,
        "detections": [
            {
                "label": labels[int(index)],
                "score": round(float(score), 5),
                "box": [round(float(edge), 5) for edge in np.clip(box, 0, 1)],
            }
            for box, score, index in zip(*result.detections)
        ],
    }


@contextlib.contextmanager
def open_outputs(
    fps: float, labels: tuple[str, ...], mode: str
) -> Iterator[Callable[[Frame, FrameResult | WindowResult], None]]:
    """Opens the files that the flags ask for.

    They get their names when the block ends; if it raises, nothing is left.

    Yields:
      A function that adds a frame and its result.

    Raises:
      OutputError: one of them cannot be written.
    """
    with contextlib.ExitStack() as stack:
        video = lines = None
        if _JSON.value:
            temporary = stack.enter_context(files.atomic_path(_JSON.value))
            lines = stack.enter_context(open(temporary, "w", encoding="utf-8"))
        if _OUTPUT.value:
            video = stack.enter_context(VideoWriter(_OUTPUT.value, fps))

        def write(frame: Frame, result: FrameResult | WindowResult) -> None:
            with _outputs_written():
                if lines is not None:
                    line = json_line(result, frame.time_s, labels)
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                if video is None:
                    return
                if isinstance(result, WindowResult):
                    drawn = annotate_windows(frame.image, result, labels)
                else:
                    how = "async" if mode.endswith("async") else "sync"
                    drawn = annotate(frame.image, result, labels, how)
                video.write(drawn, frame.time_s)

        yield write
        with _outputs_written():
            if lines is not None:
                lines.flush()  # what cannot be written is known before the video gets its name
            stack.close()


@contextlib.contextmanager
def _outputs_written() -> Iterator[None]:
    try:
        yield
    except (OSError, VideoError) as error:
        why = str(error)
        if isinstance(error, OSError):
            why = f"the outputs cannot be written: {error.strerror}"
        raise OutputError(f"{why}; nothing of this run is kept, earlier files stay") from error


def run_frames(
    source: FrameSource,
    runner: SyncRunner | AsyncRunner | WindowRunner,
    write: Callable[[Frame, FrameResult | WindowResult], None],
    summary: Summary,
    interruptions: Interruptions,
) -> tuple[str, int]:
    """Runs the source's frames, at most --max_frames.

    Returns:
      What ended it before the source did, or "", and the exit code; every frame until then is
      written. Signals are held from then on, so that the outputs can be finished.

    Raises:
      UserError, Interrupted: instead, where not one frame was done.
      OutputError: an output cannot be written.
    """
    latest: list[Frame] = []

    def taken() -> Iterator[np.ndarray]:
        for frame in itertools.islice(source, _MAX_FRAMES.value):
            latest[:] = [frame]  # for drawing: a runner yields a frame's result before the next
            yield frame.image

    total = min(filter(None, (source.frame_count, _MAX_FRAMES.value)), default=None)
    results = runner.run(taken())
    try:
        for result in tqdm(results, total=total, unit="frame", disable=None):
            interruptions.hold()  # a frame is in all outputs or in none
            write(latest[0], result)
            summary.add(result)
            interruptions.release()
    except OutputError:
        raise
    except (Interrupted, UserError) as error:
        if not summary.frames:
            raise
        if isinstance(error, Interrupted):
            return error.text, 128 + error.signum
        return str(error), 2
    finally:
        interruptions.hold()
        results.close()
    return "", 0


def _check_outputs() -> None:
    taken = {Path(_VIDEO.value).resolve(): "video"}
    for name, value in (("output", _OUTPUT.value), ("json", _JSON.value)):
        if not value:
            continue
        path = Path(value).resolve()
        if path in taken:
            raise UserError(f"--{name}={value} is the file of --{taken[path]} too, wanted another")
        if path.is_dir():
            raise UserError(f"--{name}={value} is a folder, wanted a file")
        if path.exists() and not path.is_file():
            raise UserError(f"--{name}={value} is a pipe or a device, wanted a file")
        if not path.parent.is_dir():
            raise UserError(f"--{name}={value}: folder {path.parent} does not exist, create it")
        taken[path] = name


def main(argv: list[str]) -> int:
    """Runs the program; returns the exit code."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; every value needs its flag, see --help")
    # Otherwise OpenCV puts lines of its own before our one.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    _check_outputs()
    summary = Summary()
    try:
        with Interruptions() as interruptions:
            bundle = Bundle.load(_BUNDLE.value)
            mode = default_mode(bundle, _MODE.value)
            with open_source(_VIDEO.value, _FPS.value) as source:
                runner = make_runner(
                    bundle,
                    mode,
                    _TAU.value,
                    _SCORE_THRESHOLD.value,
                    _THREADS.value,
                    _MAX_TAU.value,
                )
                with open_outputs(source.fps, bundle.labels, mode) as write:
                    start = time.perf_counter()
                    problem, code = run_frames(source, runner, write, summary, interruptions)
                    seconds = time.perf_counter() - start
    except OSError as error:  # no permission
        raise UserError(f"{error.filename or 'writing the results'}: {error.strerror}") from error
    print(summary.text(mode, seconds))
    for path in filter(None, (_JSON.value, _OUTPUT.value)):
        print(f"written: {path}")
    if problem:
        print(f"error: {problem} (the {summary.frames} frames before are kept)", file=sys.stderr)
    return code


if __name__ == "__main__":
    errors.run(main, addresses=("video",))
