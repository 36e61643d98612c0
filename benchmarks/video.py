r"""Compares the frames and times of videos with those of the programs ffmpeg and ffprobe.

  python -m benchmarks.video --output=benchmarks/results/video

The videos are made by ffmpeg: some frames each, in the situations of phones, screen recorders,
camcorders and editors. Frames are compared with what `ffmpeg` decodes, times with the
`best_effort_timestamp_time` of `ffprobe`, and with frame number / frame rate, as a reader without
times would have it. Each video is also written again by `VideoWriter`, and its times are read by
`ffprobe`. Last, the speed of reading and writing is set beside OpenCV's.

Needs ffmpeg with libx264; the kinds of other encoders are left out, and named, without them.
"""

import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tabulate import tabulate

from benchmarks import pages
from memvid_tf import errors, provenance
from memvid_tf.runtime.video import VideoWriter, open_source

FLAGS = flags.FLAGS
flags.DEFINE_integer("repeats", 3, "Turns of reading and writing. Example: --repeats=3", 1)
flags.DEFINE_string(
    "output",
    "",
    "Results, as PATH.json and PATH.md; by default they are only "
    "printed. Example: --output=benchmarks/results/video",
)

_X264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"
_TEST = "-f lavfi -i testsrc=s=320x180:r=30:d={}"
_PLAIN, _LONG, _VARIABLE = "plain.mp4", "long.mp4", "variable.mp4"
_DEINTERLACE = "yadif=mode=send_frame:deint=interlaced"
# What a kind is, its file, and how ffmpeg makes it, in this order: later ones use earlier ones.
KINDS = (
    ("constant rate", _PLAIN, f"{_TEST.format(1)} {_X264}"),
    ("30 a second, then 5", _VARIABLE,
     f"{_TEST.format(3)} -vf select='lt(t,1)+not(mod(n,6))' -fps_mode vfr {_X264}"),
    ("the same in Matroska", "variable.mkv", f"-i {_VARIABLE} -c copy"),
    ("the same in AVI, with dropped frames", "variable.avi", f"-i {_VARIABLE} -c copy"),
    ("screen recording: the 11th frame at 4.967 s", "screen.mp4",
     f"{_TEST.format(5)} -vf select='lt(n,10)+eq(n,149)' -fps_mode vfr {_X264}"),
    ("one key frame", _LONG, f"{_TEST.format(4)} {_X264} -g 300 -bf 0"),
    ("trimmed without encoding", "trimmed.mp4", f"-ss 2.7 -i {_LONG} -c copy"),
    ("trimmed, QuickTime", "trimmed.mov", f"-ss 2.7 -i {_LONG} -c copy"),
    ("rotated by 90°", "rotated90.mp4", f"-rotate:90 -i {_PLAIN} -c copy"),
    ("rotated by 180°", "rotated180.mp4", f"-rotate:180 -i {_PLAIN} -c copy"),
    ("rotated by 270°", "rotated270.mov", f"-rotate:270 -i {_PLAIN} -c copy"),
    ("interlaced H.264", "interlaced.mp4",
     f"-f lavfi -i testsrc=s=320x180:r=60:d=1 -vf interlace {_X264} -flags +ilme+ildct"),
    ("interlaced MPEG-2, bottom field first", "interlaced.mpg",
     "-f lavfi -i testsrc=s=320x192:r=50:d=1 -vf interlace=scan=bff -c:v mpeg2video -b:v 4M "
     "-flags +ilme+ildct"),
    ("starts 2 s after the sound", "late.mp4",
     f"-itsoffset 2 -i {_PLAIN} -f lavfi -i sine=d=3 -map 0:v -map 1:a -c:v copy -c:a aac"),
    ("sound 2 s longer, MPEG-TS", "longer.ts",
     f"-i {_PLAIN} -f lavfi -i sine=d=3 -c:v copy -c:a mp2"),
    ("a cover as first stream", "cover.mkv",
     f"-f lavfi -i color=c=green:s=640x640:d=0.04 -i {_PLAIN} -map 0 -map 1 -c:v:1 copy "
     "-c:v:0 mjpeg"),
    ("10-bit HDR in HEVC", "hdr.mov",
     f"{_TEST.format(1)} -c:v libx265 -x265-params log-level=none -preset ultrafast "
     "-pix_fmt yuv420p10le -tag:v hvc1 -color_primaries bt2020 -color_trc arib-std-b67 "
     "-colorspace bt2020nc"),
    ("AV1", "av1.mp4", f"{_TEST.format(1)} -c:v libsvtav1 -preset 12"),
    ("odd size, 4:4:4", "odd.mp4",
     "-f lavfi -i testsrc=s=321x181:r=30:d=1 -c:v libx264 -preset ultrafast -pix_fmt yuv444p"),
    ("GIF", "anim.gif", "-f lavfi -i testsrc=s=160x90:r=10:d=1"),
)  # fmt: skip
_SPEED = "-f lavfi -i testsrc2=s=1280x720:r=30:d=4 -c:v libx264 -preset veryfast"


def major_version() -> int:
    """Of ffmpeg.

    Raises:
      UserError: ffmpeg or ffprobe is not installed.
    """
    for program in ("ffmpeg", "ffprobe"):
        if shutil.which(program) is None:
            raise errors.UserError(f"{program} is not installed, and every number is against it")
    said = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"version n?(\d+)", said)[1])


def make(folder: Path, file: str, how: str, version: int) -> bool:
    """Makes a video; False where ffmpeg has no encoder for it."""
    words = how.split()
    if words[0].startswith("-rotate:"):
        degrees = words.pop(0).partition(":")[2]
        if version < 6:
            words += ["-metadata:s:v:0", f"rotate={degrees}"]
        else:
            words = ["-display_rotation", degrees, *words]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-threads", "1", *words, file]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def probed_times(path: Path, size: tuple[int, int] | None = None) -> list[float]:
    """Times of the frames by ffprobe, in seconds of the recording; NaN where it knows none.

    Args:
      path: the video.
      size: (height, width) of the frames of the stream; None takes all.
    """
    command = [
        "ffprobe", "-v", "error", "-of", "json", "-select_streams", "v", "-show_entries",
        "frame=best_effort_timestamp_time,width,height:format=start_time", str(path),
    ]  # fmt: skip
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    # The clocks of these formats begin anywhere.
    start = float(said["format"]["start_time"]) if path.suffix in (".ts", ".mpg") else 0.0
    return [
        float(frame.get("best_effort_timestamp_time", "nan")) - start
        for frame in said["frames"]
        if size is None or (frame["height"], frame["width"]) == size
    ]


def decoded(path: Path, shape: tuple[int, ...], index: int) -> np.ndarray:
    """Frames by ffmpeg, [T, H, W, 3] uint8 RGB: turned, and deinterlaced where they are woven."""
    command = [
        "ffmpeg", "-nostdin", "-v", "error", "-i", str(path), "-map", f"0:v:{index}", "-fps_mode",
        "passthrough", "-vf", _DEINTERLACE, "-pix_fmt", "rgb24", "-f", "rawvideo", "-",
    ]  # fmt: skip
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *shape)


def compare(path: Path, again: Path) -> dict:
    """Our frames and times beside ffmpeg's, and the times of the video written from them."""
    with open_source(path) as source:
        frames, fps = list(source), source.fps
    cover = path.name.startswith("cover")
    shape = frames[0].image.shape
    times = probed_times(path, shape[:2] if cover else None)
    theirs = decoded(path, shape, int(cover))
    ours = np.array([frame.time_s for frame in frames])
    with VideoWriter(again, fps) as writer:
        for frame in frames:
            writer.write(frame.image, frame.time_s)
    written = probed_times(again)
    differences = [
        int(np.abs(frame.image.astype(np.int16) - image).max())
        for frame, image in zip(frames, theirs)
    ]
    return {
        "frames": [len(frames), len(theirs), len(times), len(written)],
        "pixel": max(differences),
        "differing_frames": sum(value > 0 for value in differences),
        "time_s": float(np.nanmax(np.abs(ours - times))),
        "index_s": float(np.nanmax(np.abs(np.arange(len(times)) / fps - times))),
        "written_s": float(np.abs(np.array(written) - ours).max()),
    }


def speeds(path: Path, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Frames a processor second of each way, by turn."""
    with open_source(path) as source:
        frames = [frame.image for frame in source]

    def read():
        with open_source(path) as source:
            return sum(1 for _ in source)

    def read_opencv():
        capture, count = cv2.VideoCapture(str(path)), 0
        while (grabbed := capture.read())[0]:
            cv2.cvtColor(grabbed[1], cv2.COLOR_BGR2RGB)
            count += 1
        return count

    def write():
        with VideoWriter(folder / "speed.mp4", 30) as writer:
            for index, frame in enumerate(frames):
                writer.write(frame, index / 30)
        return len(frames)

    def write_opencv():
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(folder / "opencv.mp4"), codec, 30, frames[0].shape[1::-1])
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return len(frames)

    ways = {
        "reading": read, "reading, OpenCV": read_opencv,
        "writing VP9": write, "writing MPEG-4 Part 2, OpenCV": write_opencv,
    }  # fmt: skip
    rates = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            count = way()
            rates[name].append(count / (time.process_time() - start))
    return rates


def measure(repeats: int) -> dict:
    """Everything; see `markdown`."""
    version, kinds, left_out = major_version(), {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, file, how in KINDS:
            if make(folder, file, how, version):
                kinds[title] = compare(folder / file, folder / "again.mp4")
            else:
                left_out.append(title)
        make(folder, "speed_in.mp4", _SPEED, version)
        rates = speeds(folder / "speed_in.mp4", folder, repeats)
    return {
        "schema_version": 1,
        "ffmpeg": version,
        "kinds": kinds,
        "left_out": left_out,
        "frames_a_processor_second": rates,
        "provenance": provenance.describe(),
    }


def markdown(result: dict) -> str:
    """The results as a page."""
    made = result["provenance"]
    rows = [
        [
            title,
            "/".join(map(str, row["frames"])) if len(set(row["frames"])) > 1 else row["frames"][0],
            row["pixel"],
            row["differing_frames"],
            f"{row['time_s']:.6f}",
            f"{row['index_s']:.3f}",
            f"{row['written_s']:.6f}",
        ]
        for title, row in result["kinds"].items()
    ]
    rates = [
        [name, f"{statistics.median(values):.0f}"]
        for name, values in result["frames_a_processor_second"].items()
    ]
    left_out = ", ".join(result["left_out"]) or "none"
    return "\n".join(
        [
            "# Video against ffmpeg's own frames and times",
            "",
            f"{made['machine']['processor']}, {made['date']}, version {made['code_version']}; "
            f"ffmpeg {result['ffmpeg']}. Made by `python -m benchmarks.video`. Frames: one number "
            "where ours, ffmpeg's, ffprobe's and those of the video written again are as many. "
            "Pixel: the largest difference of a channel, of 255; beside it the frames with any. "
            "Times: the largest difference from ffprobe's, which has six decimals; of frame number "
            "/ frame rate from it; and of the written mp4's times, by ffprobe, from ours.",
            "",
            tabulate(
                rows,
                [
                    "video", "frames", "pixel", "frames that differ", "time, s",
                    "number / rate, s", "written, s",
                ],
                tablefmt="github",
                disable_numparse=True,
            ),  # fmt: skip
            "",
            f"Left out for want of an encoder: {left_out}.",
            "",
            "## Speed: 120 frames of 1280×720, frames a processor second (median)",
            "",
            tabulate(rates, ["way", "frames a second"], tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    result = measure(FLAGS.repeats)
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    errors.run(main)
