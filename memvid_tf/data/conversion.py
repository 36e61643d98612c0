"""Real data sets as clip records: videos are cut into clips, pictures are resized, boxes scaled.

A clip is a window of a video. Training videos are cut into windows of equal length, whose short
rest is left out; of other videos every frame is kept, in longer clips. At the border of two clips a
detector starts anew, and an object has fewer neighbours for its motion IoU: longer clips bring a
score nearer to that of whole videos.

Differs from the papers: none of them describes storage.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from memvid_tf.data import coco, davis, imagenet, pictures, voc
from memvid_tf.data.layouts import Layout, Progress, Truth, counted
from memvid_tf.data.records import MAX_SIDE, ClipRecord, DatasetError
from memvid_tf.data.sharding import DatasetPlan, SplitPlan
from memvid_tf.runtime import preprocess

LAYOUTS = {
    "coco2017": coco.Coco2017,
    "coco2017_boats": functools.partial(coco.Coco2017, boats=True),
    "davis2016": functools.partial(davis.Davis, year=2016),
    "davis2017": functools.partial(davis.Davis, year=2017),
    "imagenet_cls": imagenet.ImageNetClassification,
    "imagenet_det": imagenet.ImageNetDet,
    "imagenet_vid": imagenet.ImageNetVid,
    "voc2012": voc.Voc2012,
}
# Of still images a hundred are quickly made; fewer, larger files are easier to handle.
STILLS_A_SHARD = 1000
# Part of a set's description, since pixels depend on it: how pictures are read and resized.
PIXELS = "upright, area mean"


def open_layout(name: str, source: str | pathlib.Path) -> Layout:
    """The layout of a data set.

    Raises:
      DatasetError: when there is no such layout or folder.
    """
    if name not in LAYOUTS:
        raise DatasetError(f"dataset {name!r} is not one of {', '.join(LAYOUTS)}")
    source = pathlib.Path(source)
    if not source.is_dir():
        raise DatasetError(f"source {source} is not a folder")
    return LAYOUTS[name](source)


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """How to convert.

    Attributes:
      image_size: (height, width) of the stored frames; the aspect ratio is not kept.
      clip_frames: length of a training clip.
      min_clip_frames: the shortest training clip that is kept, at the end of a video.
      eval_clip_frames: length of the other clips; the last one of a video is shorter.
      train_part: 0 keeps the data set's own splits. Otherwise the part of each video, from its
        beginning, that becomes split train; the rest becomes test, which then shows the training
        set's objects again. DAVIS only.
      jpeg_quality: of the stored frames.
      splits: names of those to convert, of the data set's own or, with train_part, of train and
        test; none means all.
      skip_unreadable: how many clips may be left out because a picture or an annotation cannot be
        read; each is named. With more the conversion stops.
    """

    image_size: tuple[int, int] = (320, 320)
    clip_frames: int = 24
    min_clip_frames: int = 8
    eval_clip_frames: int = 100
    train_part: float = 0.0
    jpeg_quality: int = 95
    splits: tuple[str, ...] = ()
    skip_unreadable: int = 0

    def __post_init__(self):
        checks = (
            (
                "image_size",
                len(self.image_size) == 2
                and 16 <= min(self.image_size)
                and max(self.image_size) <= MAX_SIDE,
                f"height and width in 16..{MAX_SIDE}",
            ),
            ("min_clip_frames", self.min_clip_frames >= 1, "at least 1"),
            (
                "clip_frames",
                self.clip_frames >= self.min_clip_frames,
                f"at least min_clip_frames, {self.min_clip_frames}",
            ),
            ("eval_clip_frames", self.eval_clip_frames >= 1, "at least 1"),
            ("train_part", 0 <= self.train_part < 1, "0, or between 0 and 1"),
            ("jpeg_quality", 50 <= self.jpeg_quality <= 100, "in 50..100"),
            ("skip_unreadable", self.skip_unreadable >= 0, "at least 0"),
        )
        for name, right, allowed in checks:
            if not right:
                raise ValueError(f"{name} {getattr(self, name)} is not allowed: {allowed}")


def plan(layout: Layout, config: ConversionConfig, progress: Progress = iter) -> DatasetPlan:
    """What `sharding.write_dataset` needs to convert a data set.

    Args:
      layout: of `open_layout`.
      config: see `ConversionConfig`.
      progress: wraps what takes long, as `tqdm.tqdm` does.

    Raises:
      DatasetError: when the layout or a split is not there, no video is long enough, or no object
        is of the layout's classes.
    """
    windows, too_short = _windows(layout, config, progress)
    splits = {}
    for split, of_split in windows.items():
        if not of_split:
            raise DatasetError(
                f"{layout.source} has no video in {split} of {layout.name} that "
                f"gives a clip of min_clip_frames, {config.min_clip_frames}"
            )
        _require_an_object(layout, split, of_split, progress)
        splits[split] = SplitPlan(clips=len(of_split), clip_frames=max(c for *_, c in of_split))
    described = {**dataclasses.asdict(config), "pixels": PIXELS}
    del described["skip_unreadable"]  # A run that stopped for it goes on with more.
    described["image_size"] = list(config.image_size)
    described["splits"] = list(windows)
    # Two runs are the same only if they found the same videos.
    described["windows_sha256"] = hashlib.sha256(repr(windows).encode()).hexdigest()
    ids = {split: _ids(layout, of_split) for split, of_split in windows.items()}
    size = {"shard_clips": STILLS_A_SHARD} if layout.stills else {}
    return DatasetPlan(
        name=layout.name,
        labels=list(layout.labels),
        image_size=tuple(config.image_size),
        config=described,
        seed=0,
        splits=splits,
        make_clip=functools.partial(_make_clip, layout, config, windows, ids),
        skip_unreadable=config.skip_unreadable,
        too_short=too_short,
        **size,
    )


def cut(first: int, end: int, length: int, shortest: int) -> list[tuple[int, int]]:
    """(first frame, frames) of the clips that cover first..end - 1 without overlap.

    Args:
      first, end: of the frames.
      length: of a clip.
      shortest: a last clip with fewer frames is left out.
    """
    counts = [(start, min(length, end - start)) for start in range(first, end, length)]
    return [(start, count) for start, count in counts if count >= shortest]


def _windows(layout, config, progress):
    """Split -> [(video, first frame, frames)], and split -> videos that are too short for one."""
    splits = ("train", "test") if config.train_part else layout.splits
    strange = [split for split in config.splits if split not in splits]
    if strange:
        raise DatasetError(f"splits {', '.join(strange)} are not of {', '.join(splits)}")
    wanted = [split for split in splits if split in config.splits or not config.splits]
    found, too_short = {split: [] for split in wanted}, {split: [] for split in wanted}
    for split, video, first, end in _parts(layout, config, wanted, progress):
        length, shortest = config.eval_clip_frames, 1
        if split == "train" and not layout.stills:
            length, shortest = config.clip_frames, config.min_clip_frames
        clips = cut(first, end, length, shortest)
        found[split] += [(video, *clip) for clip in clips]
        too_short[split] += [video] if not clips else []
    return found, too_short


def _parts(layout, config, splits, progress):
    """Yields (split, video, first frame, end) of what is cut into clips."""
    if config.train_part:
        if not isinstance(layout, davis.Davis):
            raise DatasetError(
                f"train_part {config.train_part} is not allowed for {layout.name}: "
                "only DAVIS is split in time"
            )
        for video, frames in layout.videos("all", progress):
            border = min(max(int(config.train_part * frames), 1), frames - 1)
            for split, first, end in (("train", 0, border), ("test", border, frames)):
                if split in splits:
                    yield split, video, first, end
        return
    for split in splits:
        for video, frames in layout.videos(split, progress):
            yield split, video, 0, frames


def _require_an_object(layout, split, windows, progress):
    """Raises DatasetError where no frame shows an object of the layout's classes.

    Looks no further than to the first one.
    """
    names, unreadable = collections.Counter(), False
    for video, first, count in progress(windows):
        for t in range(first, first + count):
            try:
                truth = layout.truth(video, t)
            except DatasetError:
                unreadable = True
                continue
            if (truth.classes > 0).any():
                return
            names.update(truth.names)
    if not unreadable:  # else making the clip will tell why
        raise DatasetError(
            f"{layout.source} has no object of {layout.name} in {split}: annotated are "
            f"{counted(names) or 'none'}; its classes are {', '.join(layout.labels)}"
        )


def _ids(layout, windows):
    """Video -> what its clips are called: its last name, or all of it where that is not unique."""
    videos = {video for video, *_ in windows}
    last = {video: pathlib.PurePosixPath(video).name for video in videos}
    counts = collections.Counter(last.values())
    return {
        video: f"{layout.name}-{name if counts[name] == 1 else video}"
        for video, name in last.items()
    }


def _make_clip(
    layout: Layout,
    config: ConversionConfig,
    windows: dict[str, Sequence[tuple[str, int, int]]],
    ids: dict[str, dict[str, str]],
    split: str,
    index: int,
) -> ClipRecord:
    video, first, count = windows[split][index]
    height, width = config.image_size
    clip = ClipRecord(clip_id=f"{ids[split][video]}:{first:05d}", height=height, width=width)
    for t in range(first, first + count):
        truth = layout.truth(video, t)
        image = pictures.read_rgb(truth.image, truth.size)
        size = image.shape[:2]
        if t == first:
            clip.source_height, clip.source_width = size
        kept, boxes = usable_boxes(truth, size)
        clip.left_out += int((truth.classes > 0).sum()) - len(kept)
        for name in np.array(truth.names)[truth.classes == 0].tolist():
            clip.unknown[name] = clip.unknown.get(name, 0) + 1
        clip.add_frame(
            image=pictures.encode_jpeg(
                preprocess.resize(image, (height, width)), config.jpeg_quality
            ),
            boxes=boxes,
            classes=truth.classes[kept],
            tracks=truth.tracks[kept],
            mask=_mask(truth, kept, (height, width)),
        )
    return clip


def usable_boxes(truth: Truth, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The objects that a detector can learn from.

    Left out are objects of other classes, boxes without extent inside the picture, and further
    objects of a track that the frame holds already.

    Args:
      truth: of the frame.
      size: (height, width) of its picture.

    Returns:
      Their positions [k] in `truth`, and their boxes [k, 4] float32 in [0, 1].
    """
    boxes = np.clip(truth.boxes / np.array([*size, *size]), 0, 1).astype(np.float32)
    first_of_track = np.zeros(len(boxes), bool)
    first_of_track[np.unique(truth.tracks, return_index=True)[1]] = True
    extent = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    kept = np.flatnonzero((truth.classes > 0) & extent & first_of_track)
    return kept, boxes[kept]


def _mask(truth, kept, size):
    if truth.mask is None or not len(kept):
        return b""
    position = np.zeros(256, np.uint8)
    position[kept + 1] = np.arange(1, len(kept) + 1)
    return pictures.encode_png(
        cv2.resize(position[truth.mask], size[::-1], interpolation=cv2.INTER_NEAREST)
    )
