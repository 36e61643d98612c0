"""The one reader of pictures: conversion, the checks of data sets and folders of frames use it.

A picture becomes 8-bit RGB, upright, as people see it:

- **Orientation.** It is turned as its EXIF tag says, which is how viewers and labelling tools show
  it. Only where an annotation states the size of the stored pixels, and not that of the turned
  ones, is it left as it is stored.
- **16 bits** become the higher eight.
- **Transparent pixels** are laid over mid-grey, the networks' zero.
- **Grey, palette, CMYK** and other colours become RGB as Pillow converts them.

Sizes are checked before anything is decoded. A file that ends early is an error, not a picture with
a grey lower half; one that holds several frames is a video, not a picture.
"""

import functools
import importlib
import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from memvid_tf.errors import UserError

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".heic",
    ".heif",
    ".avif",
    ".bmp",
    ".tif",
    ".tiff",
)
# The largest phones take pictures of 108 megapixels.
MAX_PIXELS = 120_000_000
MAX_FILE_BYTES = 256 << 20
AROUND = 128
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"hevc", b"hevx")
_ORIENTATION = 0x0112
# What Pillow's readers stumble over in a file that is none of theirs, or a damaged one.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    ZeroDivisionError,
    struct.error,
)


class PictureError(UserError):
    """A picture that cannot be read. The message names it and what was wanted."""


class MissingPictureError(PictureError):
    """There is no such file."""


class Header(NamedTuple):
    """What a picture says before it is decoded.

    Attributes:
      size: (height, width) as it is read, which is turned unless an annotation says otherwise.
      stored: (height, width) of the pixels as they are stored.
      orientation: the EXIF tag, 1 (upright) to 8.
      turned: whether reading turns or mirrors it.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    turned: bool


def is_picture(path: Path) -> bool:
    """Whether a name is a picture's; hidden files, as the `._*` that macOS leaves, are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read(
    path: str | os.PathLike[str], annotated: tuple[int, int] | None = None
) -> np.ndarray:
    """Decodes a picture: [H, W, 3] uint8 RGB, as the module says.

    Args:
      path: of the file.
      annotated: (height, width) that its annotation states, if it does.

    Raises:
      PictureError: naming a file that is missing, no picture, damaged, truncated or too large.
    """
    with _opened(path) as image:
        return _rgb(image, path, annotated)


def decode(data: bytes, name: str) -> np.ndarray:
    """The same of a file's content, which messages call `name`.

    Raises:
      PictureError: as `read`.
    """
    with _opened_content(data, name) as image:
        return _rgb(image, name, None)


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of the pixels of a file's content, which messages call `name`.

    Raises:
      PictureError: as `read`.
    """
    with _opened_content(data, name) as image:
        return image.size[::-1]


def header(
    path: str | os.PathLike[str], annotated: tuple[int, int] | None = None
) -> Header:
    """Reads what a picture says of itself, and decodes nothing.

    Raises:
      PictureError: as `read`.
    """
    with _opened(path) as image:
        return _header(image, annotated)


def read_indices(path: str | os.PathLike[str]) -> np.ndarray:
    """[H, W] uint8 values of a mask as stored: palette indices, or grey levels without a palette.

    Raises:
      PictureError: as `read`, and where the file is neither indexed nor of up to 8 bits of grey.
    """
    with _opened(path) as image:
        return _indices(image, path)


def decode_indices(data: bytes, name: str) -> np.ndarray:
    """The same of a mask's content, which messages call `name`."""
    with _opened_content(data, name) as image:
        return _indices(image, name)


def _opened(path):
    try:
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise PictureError(f"{path} has {size} bytes, allowed are {MAX_FILE_BYTES}")
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MissingPictureError(f"{path} is missing") from error
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror}") from error
    return _opened_content(data, path)


def _opened_content(data, name):
    formats = list(_FORMATS)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        _need_heif(name)
        formats = ["HEIF"]
    try:
        with _quietly():
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name} has more pixels than allowed, {MAX_PIXELS}") from error
    except _DAMAGE as error:
        what = "is empty" if not data else "is no picture that can be read"
        raise PictureError(f"{name} {what}; known are {', '.join(_FORMATS)} and HEIC") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise PictureError(f"{name} is {width}x{height} pixels, allowed are {MAX_PIXELS}")
    return image


@contextmanager
def _quietly() -> Iterator[None]:
    """Pillow warns of odd metadata, and of large pictures that `MAX_PIXELS` allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _heif() -> bool:
    """Whether Pillow can read HEIC, which an extra of the installation brings."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _need_heif(name):
    if not _heif():
        raise PictureError(
            f"{name} is a HEIC picture, which needs pillow-heif: pip install pillow-heif"
        )


@contextmanager
def _decoding(name) -> Iterator[None]:
    try:
        with _quietly():
            yield
    except _DAMAGE as error:
        raise PictureError(f"{name} is damaged or truncated: {_line(error)}") from error


def _line(error):
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__


def _header(image, annotated):
    stored = image.size[::-1]
    try:
        with _quietly():
            orientation = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        orientation = 1  # Broken metadata of a whole picture: nothing says that it is turned.
    if orientation not in range(1, 9):
        orientation = 1
    shown = stored[::-1] if orientation >= 5 else stored
    turned = orientation != 1 and not (annotated == stored != shown)
    return Header(shown if turned else stored, stored, orientation, turned)


def _rgb(image, name, annotated):
    said = _header(image, annotated)
    with _decoding(name):
        # Of a MPO, a JPEG, what follows the first picture is a preview or the other eye.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames == 1:
            image.load()
    if frames > 1:
        raise PictureError(f"{name} holds {frames} frames, wanted is one picture")
    with _decoding(name):
        image = _eight_bits(image, name)
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, (AROUND, AROUND, AROUND, 255))
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        rgb = image.convert("RGB")
        if said.turned:
            rgb.getexif()[_ORIENTATION] = said.orientation
            rgb = ImageOps.exif_transpose(rgb)
        return np.array(rgb)


def _eight_bits(image, name):
    """A picture of 16-bit grey in 8 bits; Pillow does so itself with other colours."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise PictureError(f"{name} has 32-bit pixels, wanted are 8 or 16 bits; save it so")
    return image


def _indices(image, name):
    if image.mode not in ("P", "L", "1"):
        raise PictureError(
            f"{name} is no mask: its pixels are {image.mode}, wanted are palette indices or grey "
            "levels of up to 8 bits"
        )
    with _decoding(name):
        image.load()
        return np.array(image.convert("L") if image.mode == "1" else image)
