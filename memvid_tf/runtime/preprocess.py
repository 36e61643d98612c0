"""From a video frame to the images that the extractors take.

The frame is resized to f0's size without keeping its shape (boxes are normalised, so they fit the
original again). f1's image is the k x k box mean of f0's, rounded half up: whoever trains, exports
or runs a model gets the same pixels for the same f0 image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from memvid_tf.runtime.manifest import ImageSpec, TensorSpec


class PreparedFrame(NamedTuple):
    """The images of one frame, ready for `set_tensor`.

    Attributes:
      f0: [1, H, W, 3] of the graph's dtype, or None if it was not asked for.
      f1: [1, h, w, 3], the same.
    """

    f0: np.ndarray | None
    f1: np.ndarray | None


class ImagePreparer:
    """Resizes and stores frames for f0 and f1."""

    def __init__(self, image: ImageSpec, f0: TensorSpec, f1: TensorSpec):
        """`f0` and `f1` are the image tensors of the two graphs."""
        self._size = image.sizes["f0"]
        self._factor = image.sizes["f0"][0] // image.sizes["f1"][0]
        self._store_f0, self._store_f1 = storer(image, f0), storer(image, f1)

    def prepare(self, frame: np.ndarray, extractors: Sequence[str]) -> PreparedFrame:
        """The images of `frame`, [H, W, 3] uint8 RGB of any size.

        Args:
          frame: the frame; it is never aliased by the result.
          extractors: which images are wanted, of "f0" and "f1".

        Raises:
          ValueError: not such an array.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}, wanted uint8 (H, W, 3)")
        large = resize(frame, self._size)
        return PreparedFrame(
            self._store_f0(large)[None] if "f0" in extractors else None,
            self._store_f1(box_mean(large, self._factor))[None] if "f1" in extractors else None,
        )


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame, [H, W, 3] uint8, at `size` (height, width): area mean along an axis that shrinks,
    bilinear along one that grows. The same array if it already fits.

    Conversion uses it too; `data.augmentation.resized` is the same in TensorFlow, to a grey level.
    """
    shrunk = (min(frame.shape[0], size[0]), min(frame.shape[1], size[1]))
    if shrunk != frame.shape[:2]:
        frame = cv2.resize(frame, shrunk[::-1], interpolation=cv2.INTER_AREA)
    if shrunk != tuple(size):
        frame = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return frame


def box_mean(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of every factor x factor block, rounded half up: [H, W, 3] uint8 to [H/factor, ...]."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    if factor == 2:
        # OpenCV's area mean of exactly 2 x 2 rounds half up; for other factors it does not.
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    blocks = image.reshape(height, factor, width, factor, 3)
    area = factor * factor
    return ((blocks.sum(axis=(1, 3), dtype=np.uint32) + area // 2) // area).astype(np.uint8)


def storer(image: ImageSpec, tensor: TensorSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from [H, W, 3] uint8 pixels to a new array of the tensor's stored values."""
    pixels = np.arange(256, dtype=np.float32)
    table = (pixels - np.float32(image.mean)) / np.float32(image.std)
    if tensor.dtype == "int8":
        stored = np.rint(table / np.float32(tensor.scale)) + tensor.zero_point
        table = np.clip(stored, -128, 127).astype(np.int8)
        if np.array_equal(table, np.arange(-128, 128)):
            # The range [-1, 127/128] makes the stored value the pixel with its top bit flipped.
            return lambda pixels: (pixels ^ np.uint8(0x80)).view(np.int8)
    return lambda pixels: cv2.LUT(pixels, table)


def whole_frame(image: ImageSpec, tensor: TensorSpec) -> Callable[[np.ndarray], np.ndarray]:
    """A function from [H, W, 3] uint8 RGB of any size to the stored image of the full frame,
    [1, h, w, 3], for graphs that know it as `full`."""
    size, store = image.sizes["full"], storer(image, tensor)
    return lambda frame: store(resize(frame, size))[np.newaxis]
