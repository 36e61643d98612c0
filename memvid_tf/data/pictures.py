"""Pictures of data sets that others made: sizes are checked before anything is decoded.

A JPEG that ends early is an error here, not a picture with a grey lower half, which is what
OpenCV makes of it. Orientation tags are ignored, since annotations refer to the stored pixels.
"""

import os
import pathlib
import struct

import cv2
import numpy as np
from PIL import Image

from memvid_tf.data.records import DatasetError

# The largest pictures of the supported sets have 5 megapixels (derived: DET); ten times that.
MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG")


def read_rgb(
    path: str | pathlib.Path, at_least: tuple[int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes a picture.

    Args:
      path: of a JPEG or PNG file.
      at_least: (height, width) that is enough: a larger JPEG may be decoded at a half, a quarter
        or an eighth of its size, which is much faster.

    Returns:
      [h, w, 3] uint8 RGB, and the (height, width) of the stored picture.

    Raises:
      DatasetError: naming a file that is missing, no picture, truncated or too large.
    """
    with _opened(path) as image:
        size = image.size[::-1]
        if at_least:
            image.draft("RGB", at_least[::-1])
        return np.asarray(_loaded(image, path).convert("RGB")), size


def read_indices(path: str | pathlib.Path) -> np.ndarray:
    """[H, W] uint8 values of a mask: palette indices, or grey levels where there is no palette.

    Raises:
      DatasetError: as `read_rgb`, and where the file is neither indexed nor 8-bit grey.
    """
    with _opened(path) as image:
        if image.mode not in ("P", "L"):
            raise DatasetError(
                f"{path} is no mask: its pixels are {image.mode}, wanted are "
                "palette indices or 8-bit grey"
            )
        return np.asarray(_loaded(image, path)).copy()


def check(path: str | pathlib.Path, decode: bool) -> tuple[int, int]:
    """(height, width) of a picture that can be read; `decode` reads all of it, not the header only.

    Raises:
      DatasetError: as `read_rgb`.
    """
    with _opened(path) as image:
        size = image.size[::-1]
        if decode:
            _loaded(image, path)
        return size


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


def _opened(path):
    try:
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            raise DatasetError(f"{path} has {size} bytes, allowed are {MAX_FILE_BYTES}")
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing") from error
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} is not a JPEG or PNG picture") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise DatasetError(f"{path} is {width}x{height} pixels, allowed are {MAX_PIXELS}")
    return image


def _loaded(image, path):
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise DatasetError(f"{path} is damaged or truncated: {error}") from error
    return image
