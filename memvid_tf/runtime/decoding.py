"""Decodes video with FFmpeg (PyAV): every frame once, upright, progressive and with its own time.

Times are FFmpeg's best-effort presentation times, edit lists honoured. Where a format's clock
begins anywhere (MPEG-TS, RTSP, cameras) they count from the start of the recording.

A file is damaged only where FFmpeg says so: a packet that the decoder refuses, a frame that it
marks as corrupt, or an end in the middle of a packet or of the file's own index. What the decoder
refuses before its first frame is none: recordings may begin between two key frames. Live sources
lose packets, so their decoders go on.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.format import Flags

from memvid_tf.errors import UserError

# Decoders of pictures: a stream of theirs beside another is a cover or a preview.
_PICTURE_CODECS = {"mjpeg", "png", "bmp", "gif", "webp", "tiff"}
# How FFmpeg's demuxers say that a file ends before its index does (mov.c, matroskadec.c).
_CUT_SHORT = ("partial file", "ended prematurely")
# A URL or camera that is silent for so long has ended. Signals wait for it too.
_TIMEOUT_S = 10.0


class VideoError(UserError):
    """A video that cannot be read or written. The message names it and what was wanted."""


class Frame(NamedTuple):
    """A frame of a source.

    Attributes:
      image: [H, W, 3] uint8 RGB.
      time_s: when it is shown, in seconds of the source's clock.
    """

    image: np.ndarray
    time_s: float


class Decoder:
    """The frames of one video; iterate once.

    Attributes:
      fps: nominal frames a second, or None where the container does not say.
      frame_count: number of frames that the container counts, or None.
    """

    def __init__(
        self,
        name: str,
        source: str | BinaryIO,
        wanted: str = "a video that FFmpeg can decode",
        demuxer: str | None = None,
        live: bool = False,
    ):
        """Opens the video and decodes its first frame.

        Args:
          name: how messages call it.
          source: what FFmpeg opens (`file:`, a URL, a device), or an open pipe.
          wanted: what messages say that it should have been.
          demuxer: FFmpeg's name for the cameras of a system, which have no end.
          live: whether lost packets are usual.

        Raises:
          VideoError: not a video, or none of its frames can be decoded.
        """
        self._name, self._live, self._endless = name, live, demuxer is not None
        self._pipe = None if isinstance(source, str) else _Pipe(source)
        self._container = _open(name, self._pipe or source, wanted, demuxer)
        self._stream = _main_stream(name, self._container)
        rate = self._stream.guessed_rate or self._stream.average_rate
        self.fps = float(rate) if rate and 0 < rate < 1e4 else None
        self.frame_count = _frame_count(self._stream)
        clock_has_no_zero = self._container.format.flags & (Flags.ts_discont | Flags.no_file).value
        start = self._container.start_time if clock_has_no_zero else None
        self._start = Fraction(start or 0, av.time_base)
        self._frames = self._shown()
        # Some damaged files open and only then turn out to be empty.
        self._first = next(self._frames, None)
        if self._first is None:
            self.close()
            raise VideoError(f"video {name!r}: none of its frames can be decoded")

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames, all of the first one's size: others are scaled to it.

        Raises:
          VideoError: after the last good frame, where the file is damaged or cut short.
        """
        yield self._first
        yield from self._frames

    def close(self) -> None:
        """Closes the source."""
        self._frames.close()
        self._container.close()

    def _shown(self) -> Iterator[Frame]:
        time_s, step_s = None, 1 / (self.fps or 25)  # FFmpeg's rate of raw streams
        for frame in _progressive_rgb(self._decoded()):
            if frame.pts is not None:
                time_s = float(frame.pts * frame.time_base - self._start)
            else:
                time_s = 0.0 if time_s is None else time_s + step_s
            yield Frame(_upright(frame), time_s)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        count, cut = 0, False
        for packet, complaints in self._packets():
            cut = packet.is_corrupt if packet.size else cut  # the last, empty one says nothing
            cut |= any(end in text for end in _CUT_SHORT for text in complaints)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if self._live or not count:
                    continue
                for frame in self._waiting():
                    count += 1
                    yield frame
                raise self._damage(count, cut) from None
            for frame in frames:
                if frame.is_corrupt and not self._live:
                    raise self._damage(count, cut)
                count += 1
                if self._container.format.name == "avi":
                    frame.pts = frame.dts  # AVI knows no presentation times, FFmpeg's are guesses
                yield frame
        if self._endless:
            raise VideoError(f"camera {self._name!r} stopped after {count} frames")
        if cut and count:
            raise self._damage(count, cut)

    def _packets(self) -> Iterator[tuple[av.Packet, list[str]]]:
        """Packets of the stream, the last one empty, and what FFmpeg complained of meanwhile."""
        packets = self._container.demux(self._stream)
        while True:
            with _complaints() as complaints:
                try:
                    packet = next(packets, None)
                except av.FFmpegError as error:
                    raise VideoError(f"video {self._name!r}: {_reason(error)}") from None
            if self._pipe is not None and self._pipe.interrupt is not None:
                raise self._pipe.interrupt
            if packet is None:
                return
            # An empty packet ends the decoder's work; AVI has them for dropped frames too.
            if packet.size or packet.dts is None:
                yield packet, [text for *_, text in complaints]

    def _waiting(self) -> Iterator[av.VideoFrame]:
        """Frames before the damage, which the decoder still holds back."""
        with contextlib.suppress(av.FFmpegError):
            for frame in self._stream.codec_context.decode(None):
                if frame.is_corrupt:
                    return
                yield frame

    def _damage(self, count: int, cut: bool) -> VideoError:
        what = "is cut short" if cut else "is damaged"
        return VideoError(f"video {self._name!r} {what}: frame {count} cannot be decoded")


class _Pipe:
    """A pipe for PyAV, whose callbacks lose KeyboardInterrupt: it is kept, and the pipe ends."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.interrupt: KeyboardInterrupt | None = None

    def read(self, size: int) -> bytes:
        try:
            if self.interrupt is None:  # FFmpeg asks again at an end
                return os.read(self._file.fileno(), size)
        except KeyboardInterrupt as interrupt:
            self.interrupt = interrupt
        return b""


@contextlib.contextmanager
def _complaints() -> Iterator[list[tuple[int, str, str]]]:
    """Collects FFmpeg's errors (level, part, text) in place of printing them.

    Only while nothing holds Python's lock for long: threads of a decoder wait for it to complain.
    """
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=False) as complaints:
            yield complaints
    finally:
        av.logging.set_level(None)


def _open(
    name: str, source: "str | _Pipe", wanted: str, demuxer: str | None
) -> av.container.InputContainer:
    with _complaints() as complaints:
        try:
            timeout = _TIMEOUT_S if isinstance(source, str) and source[:5] != "file:" else None
            return av.open(source, format=demuxer, timeout=timeout)
        except av.FFmpegError as error:
            if isinstance(source, _Pipe) and source.interrupt is not None:
                raise source.interrupt from None
            said = [text.strip() for _, part, text in complaints if part]
            raise VideoError(f"video {name!r} is not {wanted}: {_reason(error, said)}") from None


def _reason(error: av.FFmpegError, said: list[str] = ()) -> str:
    if isinstance(error, av.InvalidDataError) and said:
        return said[-1]
    return error.strerror


def _main_stream(name: str, container: av.container.InputContainer) -> av.VideoStream:
    """The stream that players show: no cover, then the default, then the largest."""
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        container.close()
        raise VideoError(f"video {name!r} holds no video stream")
    default = av.stream.Disposition.default
    return max(
        streams,
        key=lambda s: (
            s.codec_context.name not in _PICTURE_CODECS,
            bool(s.disposition & default),
            s.width * s.height,
        ),
    )


def _frame_count(stream: av.VideoStream) -> int | None:
    """What the container counts, less what an edit list hides."""
    if not stream.frames:
        return None
    shown = stream.frames
    if stream.duration and stream.average_rate:
        shown = round(stream.duration * stream.time_base * stream.average_rate)
    return min(stream.frames, shown) or None


def _progressive_rgb(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """One frame for each, in RGB and of the first one's size as ffmpeg makes it; interlaced ones
    made progressive."""
    graph, form, size, interlaced, error = None, None, None, False, None
    try:
        for frame in frames:
            interlaced |= frame.interlaced_frame
            new_form = frame.width, frame.height, frame.format.name, interlaced
            if form != new_form:
                yield from _drained(graph)
                size = size or (frame.width, frame.height)
                graph, form = _rgb_graph(frame, size, interlaced), new_form
            graph.vpush(frame)
            yield from _pulled(graph)
    except VideoError as damage:
        error = damage  # the filter still holds the frame before it
    yield from _drained(graph)
    if error is not None:
        raise error


def _rgb_graph(
    frame: av.VideoFrame, size: tuple[int, int], interlaced: bool
) -> av.filter.Graph:
    graph = av.filter.Graph()
    filters = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name,
            time_base=frame.time_base,
        )
    ]  # fmt: skip
    if interlaced:
        filters.append(graph.add("yadif", "mode=send_frame:deint=interlaced"))
    if size != (frame.width, frame.height):
        filters.append(graph.add("scale", f"{size[0]}:{size[1]}"))
    filters += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*filters).configure()
    return graph


def _pulled(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    with contextlib.suppress(av.BlockingIOError, av.EOFError):
        while True:
            yield graph.vpull()


def _drained(graph: av.filter.Graph | None) -> Iterator[av.VideoFrame]:
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned and mirrored as the display matrix says.

    The matrix sends a pixel at (x, y) to (a x + c y, b x + d y); angles between quarter turns are
    taken for the nearest.
    """
    image = frame.to_ndarray()
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # beside it lies something that PyAV has no name for, such as EXIF
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
