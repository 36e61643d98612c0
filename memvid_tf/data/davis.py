"""DAVIS 2016 as clips: one object a frame, its box drawn tightly around its mask.

The layout is `JPEGImages/480p/<sequence>/00000.jpg`, ... with masks of the same names under
`Annotations/480p/<sequence>/00000.png`, whose pixels are 0 or 255. The first part of every
sequence is cut into training clips and the rest is one test clip, so that a detector can be
trained and tested on real frames with the few sequences at hand. Such a test set shows the
training set's objects again: a number from it says that the pipeline works on real video, not how
well a model generalises.

Differs from the paper: DAVIS is a segmentation benchmark, split by sequence, with measures of its
own (J and F); here it is a detection set.
"""

import dataclasses
import functools
import pathlib

import cv2
import numpy as np

from memvid_tf.data.records import ClipRecord, DatasetError
from memvid_tf.data.sharding import DatasetPlan, SplitPlan

IMAGES = pathlib.PurePath("JPEGImages", "480p")
MASKS = pathlib.PurePath("Annotations", "480p")


@dataclasses.dataclass(frozen=True)
class DavisConfig:
    """How to convert.

    Attributes:
      image_size: (height, width) of the stored frames; the aspect ratio is not kept.
      clip_frames: length of a training clip.
      unroll_frames: the shortest training clip that is kept, at the end of a sequence's part.
      train_part: part of each sequence, from its beginning, that becomes training clips.
      label: name of the only class, or '' to make every sequence a class of its name.
      jpeg_quality: of the stored frames.
    """

    image_size: tuple[int, int] = (96, 96)
    clip_frames: int = 24
    unroll_frames: int = 8
    train_part: float = .7
    label: str = "object"
    jpeg_quality: int = 95

    def __post_init__(self):
        checks = (
            ("image_size", len(self.image_size) == 2 and min(self.image_size) >= 16,
             "height and width of at least 16"),
            ("unroll_frames", self.unroll_frames >= 1, "at least 1"),
            ("clip_frames", self.clip_frames >= self.unroll_frames,
             f"at least unroll_frames, {self.unroll_frames}"),
            ("train_part", 0 < self.train_part < 1, "between 0 and 1"),
            ("jpeg_quality", 50 <= self.jpeg_quality <= 100, "in 50..100"),
        )
        for name, right, allowed in checks:
            if not right:
                raise ValueError(f"{name} {getattr(self, name)} is not allowed: {allowed}")


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames first..first + count - 1 of a sequence."""

    sequence: str
    first: int
    count: int


def plan(source: str | pathlib.Path, config: DavisConfig) -> DatasetPlan:
    """What `sharding.write_dataset` needs to convert a DAVIS folder.

    Args:
      source: folder that holds JPEGImages and Annotations.
      config: see `DavisConfig`.

    Raises:
      DatasetError: when the layout is not there, a frame lacks its mask, or no sequence is long
        enough.
    """
    source = pathlib.Path(source)
    frames = sequences(source)
    windows = {"train": [], "test": []}
    for name, stems in frames.items():
        train, test = split_sequence(name, len(stems), config)
        windows["train"] += train
        windows["test"] += test
    if not windows["train"]:
        longest = max(len(stems) for stems in frames.values())
        raise DatasetError(
            f"{source} has no sequence long enough: the longest has {longest} frames, of which "
            f"{config.train_part} must hold {config.unroll_frames}")
    labels = [config.label] if config.label else list(frames)
    described = dataclasses.asdict(config)
    described["image_size"] = list(config.image_size)
    described["sequences"] = {name: len(stems) for name, stems in frames.items()}
    return DatasetPlan(
        name="davis2016",
        labels=labels,
        image_size=tuple(config.image_size),
        config=described,
        seed=0,
        splits={split: SplitPlan(clips=len(of), clip_frames=max(w.count for w in of))
                for split, of in windows.items()},
        make_clip=functools.partial(_make_clip, source, config, labels, frames, windows),
    )


def sequences(source: pathlib.Path) -> dict[str, list[str]]:
    """Sequence name -> names of its frames without extension, both sorted.

    Raises:
      DatasetError: when there are no sequences or a frame has no mask.
    """
    images, masks = source / IMAGES, source / MASKS
    for folder in (images, masks):
        if not folder.is_dir():
            raise DatasetError(f"{source} is not laid out like DAVIS 2016: {folder} is missing")
    found = {}
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        stems = sorted(path.stem for path in folder.glob("*.jpg"))
        for stem in stems:
            if not (masks / folder.name / f"{stem}.png").is_file():
                raise DatasetError(f"frame {folder / stem}.jpg has no mask "
                                   f"{masks / folder.name / stem}.png")
        # Two frames are the least that can be split.
        if len(stems) >= 2:
            found[folder.name] = stems
    if not found:
        raise DatasetError(f"{images} holds no sequence of two or more .jpg frames")
    return found


def split_sequence(
    name: str, count: int, config: DavisConfig
) -> tuple[list[Window], list[Window]]:
    """Training and test windows of a sequence of `count` frames, without overlap."""
    border = min(max(int(config.train_part * count), 1), count - 1)
    train = []
    for first in range(0, border, config.clip_frames):
        length = min(config.clip_frames, border - first)
        if length >= config.unroll_frames:
            train.append(Window(name, first, length))
    return train, [Window(name, border, count - border)]


def read_mask(path: pathlib.Path) -> np.ndarray:
    """[H, W] bool foreground of a DAVIS 2016 mask.

    Raises:
      DatasetError: when the file is no image or holds anything but 0 and 255.
    """
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise DatasetError(f"{path} is not an image")
    strange = sorted(set(np.unique(mask).tolist()) - {0, 255})
    if strange:
        raise DatasetError(f"{path} is no DAVIS 2016 mask: it holds {strange[:5]}, allowed are "
                           "0 and 255")
    return mask > 0


def tight_box(mask: np.ndarray) -> np.ndarray | None:
    """[4] float32 `[ymin, xmin, ymax, xmax]` in [0, 1] around [H, W] bool; None when empty."""
    if not mask.any():
        return None
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return np.array([rows[0] / height, columns[0] / width,
                     (rows[-1] + 1) / height, (columns[-1] + 1) / width], np.float32)


def _make_clip(source, config, labels, frames, windows, split, index):
    window = windows[split][index]
    height, width = config.image_size
    # The object is the same in all clips of a sequence, but a track is a clip's own.
    class_id = labels.index(config.label or window.sequence) + 1
    clip = ClipRecord(clip_id=f"davis2016-{window.sequence}-{window.first:05d}",
                      height=height, width=width)
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    for stem in frames[window.sequence][window.first:window.first + window.count]:
        path = source / IMAGES / window.sequence / f"{stem}.jpg"
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise DatasetError(f"{path} is not an image")
        mask = read_mask(source / MASKS / window.sequence / f"{stem}.png")
        if mask.shape != image.shape[:2]:
            raise DatasetError(f"{path} is {image.shape[:2]} and its mask {mask.shape}")
        # The area filter needs shrinking; enlarging it would be nearest neighbour.
        shrinks = image.shape[0] >= height and image.shape[1] >= width
        image = cv2.resize(image, (width, height),
                           interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        box = tight_box(mask)
        stored = cv2.resize(mask.astype(np.uint8), (width, height),
                            interpolation=cv2.INTER_NEAREST)
        objects = 0 if box is None else 1
        clip.add_frame(
            image=cv2.imencode(".jpg", image, jpeg)[1].tobytes(),
            boxes=np.zeros((0, 4)) if box is None else box[None],
            classes=np.full(objects, class_id),
            tracks=np.zeros(objects, np.int64),
            mask=cv2.imencode(".png", stored)[1].tobytes() if objects else b"",
        )
    return clip
