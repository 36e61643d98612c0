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
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.evaluation import vid_map

SCHEMA_VERSION = 1
INFO_FILE = "dataset.json"
CHECKSUMS_FILE = "SHA256SUMS"
MAKE_COMMAND = "python -m memvid_tf.data synthetic --output={folder}"


class DatasetError(UserError, ValueError):
    """A data set is missing, incomplete, or not what was asked for."""


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
    clip = ClipRecord(
        clip_id=context["clip/id"].bytes_list.value[0].decode(),
        **{
            size: context[f"clip/{size}"].int64_list.value[0]
            for size in ("height", "width", "source_height", "source_width")
            if f"clip/{size}" in context
        },
    )
    for image, boxes, classes, tracks, mask in zip(
        *(lists[name].feature for name in wanted), strict=True
    ):
        clip.add_frame(
            image=image.bytes_list.value[0],
            boxes=np.array(boxes.float_list.value, np.float32),
            classes=np.array(classes.int64_list.value, np.int64),
            tracks=np.array(tracks.int64_list.value, np.int64),
            mask=mask.bytes_list.value[0],
        )
    return clip


def read_clips(info: "DatasetInfo", split: str) -> Iterator[ClipRecord]:
    """Yields a split's clips in order, with their encoded frames.

    Raises:
      DatasetError: when a shard is missing, damaged or no clip record.
    """
    import tensorflow as tf

    for path in info.shard_paths(split):
        try:
            for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                yield deserialize(serialized)
        except tf.errors.DataLossError as error:
            raise DatasetError(f"{path} is damaged; make the data set again") from error


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


def count_clip(clip: ClipRecord, num_classes: int) -> dict:
    """Counts of one clip, of which `merge_counts` makes a shard's and a split's."""
    per_frame = [len(classes) for classes in clip.classes]
    speeds = vid_map.motion_speed(np.concatenate(vid_map.motion_iou(clip.boxes, clip.tracks)))
    return {
        "frames": len(clip.images),
        "min_clip_frames": len(clip.images),
        "tracks": len(np.unique(np.concatenate(clip.tracks))),
        "left_out": clip.left_out,
        "max_objects": max(per_frame),
        "frames_with_objects": np.bincount(per_frame).tolist(),
        "class_objects": np.bincount(np.concatenate(clip.classes), minlength=num_classes + 1)[
            1:
        ].tolist(),
        "speed_objects": [int((speeds == s).sum()) for s in range(len(vid_map.SPEEDS))],
    }


def merge_counts(counts: list[dict]) -> dict:
    """Adds up the counts of clips or shards; at least one."""

    def total(name):
        longest = max(len(c[name]) for c in counts)
        rows = [np.pad(c[name], (0, longest - len(c[name]))) for c in counts]
        return np.sum(rows, axis=0).tolist()

    return {
        "frames": sum(c["frames"] for c in counts),
        "min_clip_frames": min(c["min_clip_frames"] for c in counts),
        "tracks": sum(c["tracks"] for c in counts),
        "left_out": sum(c["left_out"] for c in counts),
        "max_objects": max(c["max_objects"] for c in counts),
        "frames_with_objects": total("frames_with_objects"),
        "class_objects": total("class_objects"),
        "speed_objects": total("speed_objects"),
    }


def statistics(counts: dict, labels: list[str]) -> dict:
    """What `dataset.json` says about a split, from its merged counts.

    The motion split is over objects whose motion IoU is known, see `vid_map`.
    """
    objects = sum(counts["class_objects"])
    known = max(1, sum(counts["speed_objects"]))
    return {
        "objects": objects,
        "objects_per_frame": round(objects / counts["frames"], 4),
        "frames_by_object_count": counts["frames_with_objects"],
        "max_objects": counts["max_objects"],
        "min_clip_frames": counts["min_clip_frames"],
        "tracks": counts["tracks"],
        "left_out": counts["left_out"],
        "objects_by_class": dict(zip(labels, counts["class_objects"])),
        "motion_split": {
            speed: round(number / known, 4)
            for speed, number in zip(vid_map.SPEEDS, counts["speed_objects"])
        },
    }


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
    statistics: dict


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
                f"{self.folder} has the classes {', '.join(self.labels)}, but the network was "
                f"trained on {', '.join(labels)}"
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
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is not JSON: {error}; {hint}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}; {hint}"
        )
    try:
        info = _typed(folder, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is incomplete: {error!r}; {hint}") from error
    for split, split_info in info.splits.items():
        for shard in split_info.shards:
            if pathlib.PurePath(shard.file).name != shard.file or shard.file in ("", ".", ".."):
                raise DatasetError(f"{path}: shard {shard.file!r} is not a plain file name")
        if sum(shard.clips for shard in split_info.shards) != split_info.clips:
            raise DatasetError(
                f"{path}: the shards of {split} do not add up to {split_info.clips} clips"
            )
    return info


def _typed(folder, data):
    splits = {}
    for name, split in data["splits"].items():
        splits[name] = SplitInfo(
            clips=int(split["clips"]),
            frames=int(split["frames"]),
            clip_frames=int(split["clip_frames"]),
            shards=tuple(ShardInfo(**shard) for shard in split["shards"]),
            statistics=dict(split["statistics"]),
        )
    height, width = data["image_size"]
    return DatasetInfo(
        folder=folder,
        name=str(data["name"]),
        labels=tuple(data["labels"]),
        image_size=(int(height), int(width)),
        config=dict(data["config"]),
        seed=int(data["seed"]),
        splits=splits,
    )
