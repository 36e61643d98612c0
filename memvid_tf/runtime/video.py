"""Frames in and out: video files, streams, cameras, pipes and folders of frames.

`open_source` gives RGB frames with their times whatever they come from. `VideoWriter` keeps the
times, and puts a video under its final name only when it is whole.

Video is written as VP9, in mp4 as in webm: browsers play it, and its encoder, libvpx, is under the
BSD licence with a grant of patents. PyAV's wheel encodes H.264 with x264 alone, which is under the
GPL, and H.264 itself is licensed by patent holders.
"""

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from memvid_tf import files
from memvid_tf.runtime import pictures
from memvid_tf.runtime.decoding import Decoder, Frame, VideoError

# For sources that do not say: a folder of frames, some cameras.
DEFAULT_FPS = 30.0
_STDIN = "-"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# How FFmpeg calls the cameras of a system: its format, and the name of number n.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
# 1/90000 s holds the times of 24, 25, 30, 60 and 30000/1001 frames a second exactly.
_TICKS_A_SECOND = 90000
# VP9 in real time, the fastest that libvpx has; by eye at 360 and 540 lines letters stay clear.
_ENCODER = {
    "deadline": "realtime", "cpu-used": "8", "row-mt": "1", "lag-in-frames": "0",
    "crf": "28", "b": "0",
}  # fmt: skip
# mp4: the index in front, so that a browser plays while it loads; the time of the first frame in
# our ticks, not in ms.
_CONTAINERS = {
    ".mp4": {"movflags": "+faststart", "movie_timescale": str(_TICKS_A_SECOND)}, ".webm": {},
}  # fmt: skip


class FrameSource:
    """Frames of a video, a folder or a camera; iterate once, in a `with` block.

    Attributes:
      name: what the user gave.
      fps: frames a second: nominal where frames have times of their own.
      frame_count: number of frames, or None where it is unknown.
    """

    def __init__(self, name: str, fps: float, frame_count: int | None, frames, close):
        self.name = name
        self.fps = fps
        self.frame_count = frame_count
        self._frames = frames
        self._close = close

    def __iter__(self) -> Iterator[Frame]:
        """Yields frames, [H, W, 3] uint8 RGB, and their times.

        Raises:
          VideoError: after the last good frame, where a frame is unreadable or a file is cut short,
            and where a camera stops.
        """
        return self._frames

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, *error) -> None:
        self._frames.close()
        self._close()


def open_source(spec: str | os.PathLike[str], fps: float | None = None) -> FrameSource:
    """Opens a source of frames.

    Args:
      spec: a video file or pipe, "-" for standard input, a URL (http, rtsp, ...), a folder of
        images (taken in natural order: 2.png before 10.png), a camera's number such as "0" or its
        device.
      fps: frames a second, in place of the source's own times. Folders have none: None is 30.

    Raises:
      VideoError: nothing there, an empty folder, or not a video.
    """
    name = os.fspath(spec)
    if os.path.isdir(name):
        return _open_folder(Path(name), fps or DEFAULT_FPS)
    decoder = _open_decoder(name)
    frames = iter(decoder)
    if fps is not None:
        frames = _at_rate(frames, fps)
    return FrameSource(
        name, fps or decoder.fps or DEFAULT_FPS, decoder.frame_count, frames, decoder.close
    )


def _open_decoder(name: str) -> Decoder:
    if name == _STDIN:
        return Decoder("standard input", sys.stdin.buffer)
    if _URL.match(name):
        return Decoder(name, name, live=name.partition("://")[0].lower() not in ("http", "https"))
    if os.path.exists(name):
        mode = os.stat(name).st_mode
        if stat.S_ISCHR(mode):
            demuxer, _ = _cameras()
            return Decoder(name, name, "a camera of this machine", demuxer, live=True)
        if stat.S_ISFIFO(mode):
            return Decoder(name, open(name, "rb", buffering=0))
        if not os.path.getsize(name):
            raise VideoError(f"video {name!r} is empty (0 bytes)")
        # Without the protocol a colon in a name would be taken for the end of one.
        return Decoder(name, f"file:{name}")
    if name.isascii() and name.isdigit():
        demuxer, device = _cameras()
        camera = device.format(name)
        return Decoder(name, camera, "a camera of this machine", demuxer, live=True)
    raise VideoError(
        f"video {name!r}: no such file or folder; give a video file, a folder of images, a URL or "
        "a camera's number such as 0"
    )


def _cameras() -> tuple[str, str]:
    if sys.platform not in _CAMERAS:
        raise VideoError(f"cameras are known on {sorted(_CAMERAS)}, not on {sys.platform!r}")
    return _CAMERAS[sys.platform]


def _at_rate(frames: Iterator[Frame], fps: float) -> Iterator[Frame]:
    for index, frame in enumerate(frames):
        yield frame._replace(time_s=index / fps)


class VideoWriter:
    """Writes RGB frames to a video that appears under its name at the end of the `with` block.

    An error in the block leaves an earlier file of that name as it was, and nothing else.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float):
        """Checks the arguments; the file is opened with the first frame.

        Args:
          path: a `.mp4` or `.webm` file in an existing folder.
          fps: nominal frames a second: how long the last frame is shown, and any whose next one
            has no later time.

        Raises:
          VideoError: another suffix, no such folder, or not a frame rate.
        """
        self._path = Path(path)
        self._suffix = self._path.suffix.lower()
        if self._suffix not in _CONTAINERS:
            raise VideoError(
                f"video {self._path}: suffix {self._path.suffix!r} is not one of "
                f"{sorted(_CONTAINERS)}"
            )
        if not self._path.parent.is_dir():
            raise VideoError(f"video {self._path}: folder {self._path.parent} does not exist")
        if not 0 < fps < 1e4:
            raise VideoError(f"video {self._path}: fps is {fps}, wanted more than 0, at most 10000")
        self._fps = fps
        self._stack = contextlib.ExitStack()
        self._temporary: str | None = None
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._shape: tuple[int, ...] | None = None
        self._count, self._last, self._shift = 0, None, 0

    def write(self, frame: np.ndarray, time_s: float) -> None:
        """Appends a frame, [H, W, 3] uint8 RGB of the first one's size.

        Args:
          frame: the frame.
          time_s: when it is shown, in seconds from the start of the video; to 1/90000 s in mp4 and
            1 ms in webm. Where it is not later than the frame before, as after a clock's jump,
            this frame and all that follow are moved behind that.

        Raises:
          VideoError: another size, or it cannot be encoded or written.
        """
        if self._shape is None:
            self._open(frame.shape)
        if frame.shape != self._shape:
            raise VideoError(
                f"video {self._path}: a frame has shape {frame.shape}, wanted {self._shape}"
            )
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        picture.time_base = self._stream.codec_context.time_base
        picture.pts = self._ticks(time_s)
        with self._written():
            self._container.mux(self._stream.encode(picture))
        self._count += 1

    def __enter__(self) -> "VideoWriter":
        self._temporary = self._stack.enter_context(files.atomic_path(self._path))
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            with self._stack:
                self._finish()
        else:
            with contextlib.suppress(av.FFmpegError):  # the first error is the one that counts
                if self._container is not None:
                    self._container.close()
            self._stack.__exit__(kind, error, trace)

    def _open(self, shape: tuple[int, ...]) -> None:
        options = _CONTAINERS[self._suffix]
        with self._written():
            self._container = av.open(
                self._temporary, "w", format=self._suffix[1:], container_options=options
            )
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = self._container.add_stream("libvpx-vp9", rate=rate, options=dict(_ENCODER))
        stream.height, stream.width = shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, _TICKS_A_SECOND)
        # Said in the file: players guess by the size otherwise.
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        self._stream, self._shape = stream, shape

    def _ticks(self, time_s: float) -> int:
        ticks = round(time_s * _TICKS_A_SECOND) + self._shift
        if self._last is not None and ticks <= self._last:
            step = max(1, round(_TICKS_A_SECOND / self._fps))
            self._shift += self._last + step - ticks
            ticks = self._last + step
        self._last = ticks
        return ticks

    def _finish(self) -> None:
        if self._container is None:
            raise VideoError(f"video {self._path}: no frame was written")
        with self._written():
            try:
                self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
        # A full disk is not always reported: what lies there is counted.
        with self._written(), av.open(self._temporary) as written:
            count = sum(packet.size > 0 for packet in written.demux(video=0))
        if count != self._count:
            raise VideoError(
                f"video {self._path}: {count} of {self._count} frames reached the disk; is it full?"
            )

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except av.FFmpegError as error:
            raise VideoError(f"video {self._path} cannot be written: {error.strerror}") from None


def _open_folder(path: Path, fps: float) -> FrameSource:
    images = [file for file in path.iterdir() if pictures.is_picture(file)]
    images.sort(key=_natural)
    if not images:
        raise VideoError(
            f"folder {path} holds no frames: no file ends in one of {pictures.SUFFIXES}"
        )
    frames = _folder_frames(images, fps)
    return FrameSource(str(path), fps, len(images), frames, lambda: None)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts runs of digits by value. The pairs keep numbers and words comparable."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _folder_frames(images: list[Path], fps: float) -> Iterator[Frame]:
    first = None
    for index, file in enumerate(images):
        try:
            image = pictures.read(file)
        except pictures.PictureError as error:
            raise VideoError(f"frame {error}") from error
        first = image.shape if first is None else first
        if image.shape != first:
            raise VideoError(
                f"frame {file} is {image.shape[1]}x{image.shape[0]}, wanted "
                f"{first[1]}x{first[0]} as {images[0].name}; frames of a folder share one size"
            )
        yield Frame(image, index / fps)
