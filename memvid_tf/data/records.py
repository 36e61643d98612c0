"""Clip records: one video clip as a `tf.train.SequenceExample`, and `dataset.json` beside them.

A data set is a folder with `<split>-00000-of-00015.tfrecord`, ... and `dataset.json`, which names
the labels, the frame size, the configuration it was made with, and every shard with its number of
clips, size and sha256; `SHA256SUMS` says the same to `sha256sum -c`. A record holds, in its
context, `clip/id`, `clip/height`, `clip/width` and `clip/num_frames`, `clip/source_height` and
`clip/source_width` where the frames were resized for storage, and one feature a frame in each of
these lists:

    image/encoded   JPEG or PNG
    object/bbox     4 n floats, `[ymin, xmin, ymax, xmax]` in [0, 1] of n objects
    object/class    n integers, 1..C
    object/track    n integers, an object's identity within the clip
    mask/encoded    PNG, a pixel is the position of its object in this frame's list + 1, 0 is
                    background; empty when there is no mask

Differs from the papers: none of them describes storage.
"""

import dataclasses
import itertools
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.runtime import typed_json

SCHEMA_VERSION = 1
INFO_FILE = "dataset.json"
CHECKSUMS_FILE = "SHA256SUMS"
# How stored pictures begin: JPEG, PNG.
STORED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
MAX_INFO_BYTES = 64 << 20
MAX_SIDE = 4096
# TFRecord framing: uint64 length, uint32 crc, data, uint32 crc.
HEADER_BYTES, FOOTER_BYTES = 12, 4
MAKE_COMMAND = "python -m memvid_tf.data synthetic --output={folder}"


class DatasetError(UserError, ValueError):
    """A data set is missing, incomplete, or not what was asked for."""


class MissingFileError(DatasetError):
    """A picture, mask or annotation that a layout names is not there."""


@dataclasses.dataclass
class ClipRecord:
    """One clip with encoded frames; every list has one entry a frame.

    Attributes:
      clip_id: unique in the data set; `video:first frame` where it is a part of a video.
      height, width: of the frames, pixels.
      source_height, source_width: of the frames before they were resized for storage, on which
        metrics in pixels are defined; 0 where they were not.
      images: JPEG or PNG files.
      boxes: [n, 4] float32 in [0, 1].
      classes: [n] int64, 1..C.
      tracks: [n] int64.
      masks: PNG files or b"".
      left_out: objects that a conversion could not use; counted, not stored.
      unknown: class names that are not the data set's, and how many objects have them; counted,
        not stored.
    """

    clip_id: str
    height: int
    width: int
    source_height: int = 0
    source_width: int = 0
    images: list[bytes] = dataclasses.field(default_factory=list)
    boxes: list[np.ndarray] = dataclasses.field(default_factory=list)
    classes: list[np.ndarray] = dataclasses.field(default_factory=list)
    tracks: list[np.ndarray] = dataclasses.field(default_factory=list)
    masks: list[bytes] = dataclasses.field(default_factory=list)
    left_out: int = 0
    unknown: dict[str, int] = dataclasses.field(default_factory=dict)

    def add_frame(
        self,
        image: bytes,
        boxes: np.ndarray,
        classes: np.ndarray,
        tracks: np.ndarray,
        mask: bytes = b"",
    ) -> None:
        """Appends a frame.

        Raises:
          ValueError: when the numbers of boxes, classes and tracks differ, a box is not in
            [0, 1] with positive extents, or a class is below 1.
        """
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        where = f"clip {self.clip_id} frame {len(self.images)}"
        if not len(boxes) == len(classes) == len(tracks):
            raise ValueError(
                f"{where}: {len(boxes)} boxes, {len(classes)} classes and {len(tracks)} tracks"
            )
        inside = (boxes >= 0).all() and (boxes <= 1).all()
        if not (inside and (boxes[:, 2:] > boxes[:, :2]).all()):
            raise ValueError(
                f"{where}: boxes must be [ymin, xmin, ymax, xmax] in [0, 1] with "
                f"positive extents, got {boxes.tolist()}"
            )
        if len(classes) and min(classes) < 1:
            raise ValueError(f"{where}: classes count from 1, got {list(classes)}")
        self.images.append(image)
        self.boxes.append(boxes)
        self.classes.append(np.asarray(classes, np.int64))
        self.tracks.append(np.asarray(tracks, np.int64))
        self.masks.append(mask)


def serialize(clip: ClipRecord) -> bytes:
    """Returns the clip as a serialized `tf.train.SequenceExample`."""
    import tensorflow as tf

    def integers(values) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def data(value) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def floats(values) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    lists = {
        "image/encoded": [data(image) for image in clip.images],
        "object/bbox": [floats(boxes.ravel()) for boxes in clip.boxes],
        "object/class": [integers(classes) for classes in clip.classes],
        "object/track": [integers(tracks) for tracks in clip.tracks],
        "mask/encoded": [data(mask) for mask in clip.masks],
    }
    context = {
        "clip/id": data(clip.clip_id.encode()),
        "clip/height": integers([clip.height]),
        "clip/width": integers([clip.width]),
        "clip/num_frames": integers([len(clip.images)]),
    }
    if clip.source_height:
        context["clip/source_height"] = integers([clip.source_height])
        context["clip/source_width"] = integers([clip.source_width])
    example = tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                name: tf.train.FeatureList(feature=features) for name, features in lists.items()
            }
        ),
    )
    # Map fields have no order of their own; the same clip must give the same bytes.
    return example.SerializeToString(deterministic=True)


def deserialize(serialized: bytes) -> ClipRecord:
    """The inverse of `serialize`, for programs that show or convert clips.

    Raises:
      DatasetError: when the bytes are no clip record.
    """
    import tensorflow as tf
    from google.protobuf import message

    example = tf.train.SequenceExample()
    try:
        example.ParseFromString(serialized)
    except message.DecodeError as error:
        raise DatasetError(f"a record is no SequenceExample: {error}") from error
    context, lists = example.context.feature, example.feature_lists.feature_list
    wanted = ("image/encoded", "object/bbox", "object/class", "object/track", "mask/encoded")
    missing = [name for name in ("clip/id", "clip/height", "clip/width") if name not in context]
    missing += [name for name in wanted if name not in lists]
    if missing:
        raise DatasetError(f"a record is no clip: it lacks {', '.join(missing)}")
    try:
        return _clip(context, {name: lists[name].feature for name in wanted})
    except (IndexError, ValueError) as error:
        raise DatasetError(f"a record is no clip: {error}") from error


def _clip(context, lists):
    """Raises IndexError or ValueError where a value is missing or lists do not fit."""
    clip = ClipRecord(
        clip_id=context["clip/id"].bytes_list.value[0].decode(),
        **{
            size: context[f"clip/{size}"].int64_list.value[0]
            for size in ("height", "width", "source_height", "source_width")
            if f"clip/{size}" in context
        },
    )
    for image, boxes, classes, tracks, mask in zip(*lists.values(), strict=True):
        clip.add_frame(
            image=image.bytes_list.value[0],
            boxes=np.array(boxes.float_list.value, np.float32),
            classes=np.array(classes.int64_list.value, np.int64),
            tracks=np.array(tracks.int64_list.value, np.int64),
            mask=mask.bytes_list.value[0],
        )
    if not clip.images:
        raise ValueError("it has no frame")
    return clip


def record_offsets(path: str | os.PathLike, shard: "ShardInfo") -> list[int]:
    """Where each record of a shard starts.

    Follows the chain of record headers, so a shard that was damaged in length or count is found,
    and no reader is asked for a record that is longer than its file.

    Raises:
      DatasetError: naming a shard that is truncated or damaged.
    """
    offsets, position = [], 0
    with open(path, "rb") as file:
        while header := file.read(HEADER_BYTES):
            whole = len(header) == HEADER_BYTES
            size = struct.unpack("<Q", header[:8])[0] if whole else 0
            start, position = position, position + HEADER_BYTES + size + FOOTER_BYTES
            if size == 0 or position > shard.bytes:
                raise DatasetError(
                    f"{path} is damaged at record {len(offsets)}; make the data set again"
                )
            offsets.append(start)
            file.seek(position, os.SEEK_SET)
    if len(offsets) != shard.clips:
        raise DatasetError(
            f"{path} holds {len(offsets)} clips, {INFO_FILE} says {shard.clips}; make the data set "
            "again"
        )
    return offsets


def read_clips(info: "DatasetInfo", split: str) -> Iterator[ClipRecord]:
    """Yields a split's clips in order, with their encoded frames.

    Raises:
      DatasetError: when a shard is missing or damaged, or a record is no clip of this data set.
    """
    import tensorflow as tf

    for path, shard in zip(info.shard_paths(split), info.split(split).shards):
        record_offsets(path, shard)
        number = 0
        try:
            for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                try:
                    clip = deserialize(serialized)
                    _check_clip(clip, info, split)
                except DatasetError as error:
                    raise DatasetError(f"record {number} of {path}: {error}") from error
                number += 1
                yield clip
        except tf.errors.DataLossError as error:
            raise DatasetError(f"{path} is damaged; make the data set again") from error


def _check_clip(clip, info, split):
    """Raises DatasetError where a clip is not what `dataset.json` says of all."""
    size, longest = (clip.height, clip.width), info.split(split).clip_frames
    beyond = max((int(c.max()) for c in clip.classes if len(c)), default=0)
    if size != info.image_size:
        raise DatasetError(f"it is {size} high and wide, {INFO_FILE} says {info.image_size}")
    if len(clip.images) > longest:
        raise DatasetError(f"it has {len(clip.images)} frames, {INFO_FILE} says at most {longest}")
    if beyond > len(info.labels):
        raise DatasetError(f"it has class {beyond}, {INFO_FILE} names {len(info.labels)}")


def pick_clips(info: "DatasetInfo", split: str, clips: Sequence[int]) -> list[ClipRecord]:
    """Some clips of a split, by position, in the order asked for.

    Raises:
      DatasetError: when there is no such split or clip, or a shard is damaged.
    """
    count = info.split(split).clips
    beyond = [clip for clip in clips if not 0 <= clip < count]
    if beyond or not clips:
        raise DatasetError(
            f"clips {beyond or list(clips)} are not in {split}, which has clips 0..{count - 1}"
        )
    found = {}
    for number, clip in enumerate(itertools.islice(read_clips(info, split), max(clips) + 1)):
        if number in clips:
            found[number] = clip
    return [found[clip] for clip in clips]


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One file of a split."""

    file: str
    clips: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order, clips and frames in total, the longest clip."""

    clips: int
    frames: int
    clip_frames: int
    shards: tuple[ShardInfo, ...]
    statistics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`, typed. `folder` is where it was read from."""

    folder: pathlib.Path
    name: str
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    config: dict
    seed: int
    splits: dict[str, SplitInfo]

    def split(self, name: str) -> SplitInfo:
        """Raises DatasetError, naming the splits there are, when there is no such split."""
        if name not in self.splits:
            raise DatasetError(
                f"{self.folder} has no split {name!r}; it has "
                f"{', '.join(sorted(self.splits)) or 'none'}"
            )
        return self.splits[name]

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raises DatasetError unless class ids mean the same here as in a network's `labels`, of
        which a data set may have the first ones only."""
        if self.labels != tuple(labels[: len(self.labels)]):
            raise DatasetError(
                f"{self.folder} has the classes {', '.join(self.labels)}, but the network's are "
                f"{', '.join(labels)}"
            )

    def shard_paths(self, split: str) -> list[pathlib.Path]:
        """Paths of a split's shards, whose sizes are checked.

        Raises:
          DatasetError: when a shard is missing or has another size than was written.
        """
        paths = []
        for shard in self.split(split).shards:
            path = self.folder / shard.file
            if not path.is_file():
                raise DatasetError(f"{path} is missing; make the data set again, see {INFO_FILE}")
            size = path.stat().st_size
            if size != shard.bytes:
                raise DatasetError(
                    f"{path} has {size} bytes, {INFO_FILE} says {shard.bytes}: it "
                    "was truncated or replaced; make the data set again"
                )
            paths.append(path)
        return paths


def read_info(folder: str | pathlib.Path) -> DatasetInfo:
    """Reads and checks a data set's `dataset.json`.

    Raises:
      DatasetError: naming the folder, what is there, and the command that makes a data set.
    """
    folder = pathlib.Path(files.local(folder))
    path = folder / INFO_FILE
    hint = f"make a data set with: {MAKE_COMMAND.format(folder=folder)}"
    if not folder.is_dir():
        raise DatasetError(f"data set folder {folder} {files.what(folder)}; {hint}")
    if not path.is_file():
        names = sorted(p.name for p in folder.iterdir())
        there = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
        raise DatasetError(f"{path} does not exist, the folder holds {there}; {hint}")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_INFO_BYTES + 1)
        if len(content) > MAX_INFO_BYTES:
            raise ValueError(f"it has more than {MAX_INFO_BYTES} bytes")
        data = typed_json.parse(content.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be used: {error}; {hint}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema version {version!r:.50}, this code reads {SCHEMA_VERSION}; {hint}"
        )
    try:
        described = typed_json.decode(_Description, data, "")
    except typed_json.SchemaError as error:
        raise DatasetError(f"{path} cannot be used: {error}; {hint}") from error
    values = {field.name: getattr(described, field.name) for field in dataclasses.fields(described)}
    del values["schema_version"]
    info = DatasetInfo(folder=folder, **values)
    for fault in _faults(info):
        raise DatasetError(f"{path}: {fault}; {hint}")
    return info


@dataclasses.dataclass(frozen=True)
class _Description:
    """`dataset.json` as it is written; see `DatasetInfo`."""

    schema_version: int
    name: str
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    config: dict[str, Any]
    seed: int
    splits: dict[str, SplitInfo]


def _faults(info):
    """Yields what does not fit in a description whose types do."""
    if not 1 <= min(info.image_size) <= max(info.image_size) <= MAX_SIDE:
        yield f"image_size {info.image_size} is not in 1..{MAX_SIDE}"
    if not info.labels or len(set(info.labels)) < len(info.labels):
        yield f"labels {', '.join(info.labels)[:100]!r} are none, or one is there twice"
    for name, split in info.splits.items():
        for shard in split.shards:
            if pathlib.PurePath(shard.file).name != shard.file or shard.file in ("", ".", ".."):
                yield f"shard {shard.file!r:.100} is not a plain file name"
            if shard.clips < 0 or shard.bytes < 0:
                yield f"shard {shard.file} of {shard.clips} clips and {shard.bytes} bytes"
        if sum(shard.clips for shard in split.shards) != split.clips:
            yield f"the shards of {name} do not add up to {split.clips} clips"
        if not (split.clips >= 1 and 1 <= split.clip_frames <= split.frames):
            yield (
                f"{name} has {split.clips} clips of up to {split.clip_frames} frames, "
                f"{split.frames} in all"
            )
        for count in ("objects", "max_objects", "min_clip_frames"):
            if type(split.statistics.get(count)) is not int:
                yield f"statistics of {name} lack the number {count!r}"
        if list(split.statistics.get("objects_by_class", ())) != list(info.labels):
            yield f"objects_by_class of {name} has other classes than labels"
