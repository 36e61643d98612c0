"""Frames in and out: video files, folders of frames, cameras.

`open_source` gives RGB frames whatever they come from; `VideoWriter` puts a video under its final
name only when it is whole.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime import pictures

# What OpenCV's PyPI build can encode; it has no H.264 encoder.
_CODECS = {".mp4": "mp4v", ".webm": "VP80"}
# These containers count their frames. Others state a duration, from which OpenCV estimates.
_COUNTING_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi")
_ESTIMATE_TOLERANCE = 0.1


class VideoError(UserError):
    """A video that cannot be read or written. The message names it and what was wanted."""


class FrameSource:
    """Frames of a video file, a folder or a camera; iterate once, in a `with` block.

    Attributes:
      name: what the user gave.
      fps: frames a second, or None where the source does not say (folders, some cameras).
      frame_count: number of frames, or None where it is unknown.
    """

    def __init__(self, name: str, fps: float | None, frame_count: int | None, frames, close):
        self.name = name
        self.fps = fps
        self.frame_count = frame_count
        self._frames = frames
        self._close = close

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields [H, W, 3] uint8 RGB frames.

        Raises:
          VideoError: after the last good frame, where a frame is unreadable, differs in size, or is
            missing although the container counts it.
        """
        return self._frames

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, *error) -> None:
        self._frames.close()
        self._close()


def open_source(spec: str | os.PathLike[str]) -> FrameSource:
    """Opens a source of frames.

    Args:
      spec: a video file, a folder of images (taken in natural order: 2.png before 10.png), or a
        camera's number such as "0".

    Raises:
      VideoError: nothing there, an empty folder, or not a video.
    """
    name = os.fspath(spec)
    if os.path.isdir(name):
        return _open_folder(Path(name))
    if os.path.isfile(name):
        capture = cv2.VideoCapture(name)
        return _open_capture(name, capture, "a video that OpenCV can decode", Path(name))
    if name.isascii() and name.isdigit():
        return _open_capture(name, cv2.VideoCapture(int(name)), "a camera of this machine", None)
    raise VideoError(
        f"video {name!r}: no such file or folder; give a video file, a folder of images or a "
        "camera's number such as 0"
    )


class VideoWriter:
    """Writes RGB frames to a video that appears under its name when it is closed.

    In a `with` block an error leaves nothing behind. Frames of odd height or width get their last
    row or column twice, since the codecs need even sizes.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float):
        """Checks the arguments; the file is opened with the first frame.

        Args:
          path: a `.mp4` (MPEG-4 Part 2) or `.webm` (VP8) file in an existing folder.
          fps: frames a second.

        Raises:
          VideoError: another suffix, no such folder, or not a frame rate.
        """
        self._path = Path(path)
        if self._path.suffix.lower() not in _CODECS:
            raise VideoError(
                f"video {self._path}: suffix {self._path.suffix!r} is not one of {sorted(_CODECS)}"
            )
        if not self._path.parent.is_dir():
            raise VideoError(f"video {self._path}: folder {self._path.parent} does not exist")
        if not 0 < fps < 1e4:
            raise VideoError(f"video {self._path}: fps is {fps}, wanted more than 0, at most 10000")
        self._fps = fps
        self._temporary = self._path.with_name(
            f".{self._path.stem}.{os.getpid()}.tmp{self._path.suffix.lower()}"
        )
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, [H, W, 3] uint8 RGB of the first one's size.

        Raises:
          VideoError: another size, or the encoder cannot be opened.
        """
        if self._writer is None:
            self._open(frame.shape)
        if frame.shape != self._shape:
            raise VideoError(
                f"video {self._path}: a frame has shape {frame.shape}, wanted {self._shape}"
            )
        frame = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        odd_rows, odd_columns = frame.shape[0] % 2, frame.shape[1] % 2
        if odd_rows or odd_columns:
            frame = cv2.copyMakeBorder(frame, 0, odd_rows, 0, odd_columns, cv2.BORDER_REPLICATE)
        self._writer.write(frame)

    def close(self) -> None:
        """Finishes the video and gives it its name; a second call does nothing.

        Raises:
          VideoError: no frame was written, or the encoder produced nothing (disk full).
        """
        if self._temporary is None:
            return
        if self._writer is None:
            raise VideoError(f"video {self._path}: no frame was written")
        self._writer.release()
        if not self._temporary.is_file() or not self._temporary.stat().st_size:
            self.discard()
            raise VideoError(f"video {self._path}: nothing was written; is the disk full?")
        os.replace(self._temporary, self._path)
        self._temporary = None

    def discard(self) -> None:
        """Drops what was written so far; does nothing after `close`."""
        if self._writer is not None:
            self._writer.release()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _open(self, shape: tuple[int, ...]) -> None:
        codec = cv2.VideoWriter_fourcc(*_CODECS[self._temporary.suffix])
        even = (shape[1] + shape[1] % 2, shape[0] + shape[0] % 2)
        self._writer = cv2.VideoWriter(os.fspath(self._temporary), codec, self._fps, even)
        self._shape = shape
        if not self._writer.isOpened():
            self.discard()
            raise VideoError(f"video {self._path}: OpenCV cannot open its encoder for it")


def _open_folder(path: Path) -> FrameSource:
    files = [file for file in path.iterdir() if pictures.is_picture(file)]
    files.sort(key=_natural)
    if not files:
        raise VideoError(
            f"folder {path} holds no frames: no file ends in one of {pictures.SUFFIXES}"
        )
    return FrameSource(str(path), None, len(files), _folder_frames(files), lambda: None)


def _natural(path: Path) -> list[tuple[int, int | str]]:
    """Sorts runs of digits by value. The pairs keep numbers and words comparable."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]


def _folder_frames(files: list[Path]) -> Iterator[np.ndarray]:
    first = None
    for file in files:
        try:
            image = pictures.read(file)
        except pictures.PictureError as error:
            raise VideoError(f"frame {error}") from error
        first = image.shape if first is None else first
        if image.shape != first:
            raise VideoError(
                f"frame {file} is {image.shape[1]}x{image.shape[0]}, wanted "
                f"{first[1]}x{first[0]} as {files[0].name}; frames of a folder share one size"
            )
        yield image


def _open_capture(
    name: str, capture: cv2.VideoCapture, wanted: str, path: Path | None
) -> FrameSource:
    # The first frame is read here: some damaged files open and only then turn out to be empty.
    opened, first = capture.read() if capture.isOpened() else (False, None)
    if not opened:
        capture.release()
        raise VideoError(f"video {name!r} is not {wanted}")
    fps = capture.get(cv2.CAP_PROP_FPS)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if path is not None else 0
    return FrameSource(
        name,
        fps if 0 < fps < 1e4 else None,
        count if count > 0 else None,
        _capture_frames(name, capture, first, count, path),
        capture.release,
    )


def _capture_frames(
    name: str, capture: cv2.VideoCapture, first: np.ndarray, count: int, path: Path | None
) -> Iterator[np.ndarray]:
    decoded, image = 0, first
    while image is not None:
        decoded += 1
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        _, image = capture.read()
    if path is None:
        raise VideoError(f"camera {name} stopped after {decoded} frames")
    exact = path.suffix.lower() in _COUNTING_SUFFIXES
    if decoded < (count if exact else count * (1 - _ESTIMATE_TOLERANCE)):
        raise VideoError(
            f"video {name!r} ends early: frame {decoded} cannot be decoded, but the file counts "
            f"{count} frames; it may be cut short or damaged"
        )
