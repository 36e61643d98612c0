"""Pictures of data sets: read as the runtime does, stored so that TensorFlow decodes the same.

`runtime.pictures` says what becomes of orientation, 16 bits, transparency and the like. What is
stored is upright 8-bit RGB, of which every decoder makes the same pixels.
"""

import contextlib
import os
from collections.abc import Iterator

import cv2
import numpy as np

from memvid_tf.data.records import DatasetError, MissingFileError
from memvid_tf.runtime import pictures
from memvid_tf.runtime.pictures import Header


def read_rgb(path: str | os.PathLike, annotated: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes a picture: [H, W, 3] uint8 RGB.

    Args:
      path: of the file.
      annotated: (height, width) that its annotation states, if it does.

    Raises:
      DatasetError: naming a file that is missing, no picture, damaged, truncated or too large, or
        of another size than annotated.
    """
    with _errors():
        image = pictures.read(path, annotated)
    if annotated not in (None, image.shape[:2]):
        raise DatasetError(
            f"{path} is {image.shape[0]} x {image.shape[1]} pixels high and wide, its annotation "
            f"says {annotated[0]} x {annotated[1]}"
        )
    return image


def read_indices(path: str | os.PathLike) -> np.ndarray:
    """[H, W] uint8 values of a mask: palette indices, or grey levels where there is no palette.

    Raises:
      DatasetError: as `read_rgb`, and where the file is neither indexed nor up to 8 bits of grey.
    """
    with _errors():
        return pictures.read_indices(path)


def check(
    path: str | os.PathLike, decode: bool, annotated: tuple[int, int] | None = None
) -> Header:
    """What a picture that can be read says of itself; `decode` reads all of it.

    Raises:
      DatasetError: as `read_rgb`, but for the size.
    """
    with _errors():
        header = pictures.header(path, annotated)
        if decode:
            pictures.read(path, annotated)
        return header


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a stored picture, which messages call `name`.

    Raises:
      DatasetError: it is no picture, damaged or too large.
    """
    with _errors():
        return pictures.decode(data, name)


def stored_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of a stored picture, which is not decoded and which messages call `name`.

    Raises:
      DatasetError: it is no picture, or too large.
    """
    with _errors():
        return pictures.stored_size(data, name)


def decode_indices(data: bytes, name: str) -> np.ndarray:
    """[H, W] uint8 of a stored mask, which messages call `name`.

    Raises:
      DatasetError: it is no mask, damaged or too large.
    """
    with _errors():
        return pictures.decode_indices(data, name)


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """[H, W, 3] uint8 RGB as a JPEG with full colour resolution."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    return cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)[1].tobytes()


def encode_png(mask: np.ndarray) -> bytes:
    """[H, W] uint8 as a PNG."""
    return cv2.imencode(".png", mask)[1].tobytes()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Says of a data set what the runtime says of a picture."""
    try:
        yield
    except pictures.MissingPictureError as error:
        raise MissingFileError(str(error)) from error
    except pictures.PictureError as error:
        raise DatasetError(str(error)) from error
