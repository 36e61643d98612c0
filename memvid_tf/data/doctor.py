"""What is missing or wrong in a data set, in plain words; nothing that is found stops the search.

`examine` looks at a layout before it is converted: folders, lists, annotations, boxes, classes,
tracks, pictures. `examine_records` looks at a converted set: its checksums and every frame.
"""

import collections
import hashlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import counts, pictures, records
from memvid_tf.data.conversion import usable_boxes
from memvid_tf.data.layouts import Finding, Layout, Progress, Truth

# What to do about a kind of finding; folders and lists speak for themselves.
ADVICE = {
    "picture that cannot be read": "fetch it again; convert stops there, or leaves it out with "
    "--skip_unreadable",
    "annotation that cannot be read": "mend it; convert stops there, or leaves it out with "
    "--skip_unreadable",
    "picture with an EXIF orientation": "convert turns it as viewers and labelling tools show it, "
    "but where the annotation states the size of the stored pixels; see that its boxes fit",
    "picture of another size than annotated": "the boxes may be of another picture; convert stops "
    "there",
    "box that is inverted": "its maximum is not above its minimum; ImageNet orders corners as "
    "xmax, xmin, ymax, ymin, and a tool that reads by position mixes them "
    "up; convert leaves it out",
    "box outside the frame": "convert leaves it out",
    "box partly outside the frame": "convert cuts it at the border",
    "class that is unknown": "convert leaves it out",
    "split without an object": "none can be used; convert refuses it",
    "track twice in a frame": "convert keeps the first",
    "video of frames of different sizes": "convert brings all to one size",
    "shard that is damaged": "make the data set again",
    "description that does not fit": "make the data set again",
    "clip that cannot be read": "make the data set again",
}
# A box may end this far beyond the last pixel by rounding, pixels.
SLACK_PX = 1.0


def examine(
    layout: Layout, decode: bool = True, every: int = 1, progress: Progress = iter
) -> Iterator[Finding]:
    """Yields what is wrong in a layout.

    Args:
      layout: of `conversion.open_layout`.
      decode: whether pictures are decoded, which finds damaged ones, or only headers are read.
      every: look at every n-th frame of a video, and at every n-th still image.
      progress: wraps what takes long, as `tqdm.tqdm` does.
    """
    found, missing = {}, []
    for split in layout.splits:
        try:
            found[split] = layout.videos(split)
            yield from layout.findings(split)
        except (records.DatasetError, OSError) as error:
            missing.append(Finding(f"split {split} that cannot be found", str(error)))
    if not found:
        # A layout that can tell its videos without lists needs none of them.
        try:
            found["all"], missing = layout.videos("all"), []
            yield from layout.findings("all")
        except (records.DatasetError, OSError):
            pass
    yield from missing
    unknown = _Unknown()
    for split, videos in found.items():
        seen = collections.Counter()
        step = every if layout.stills else 1
        for video, frames in progress(videos[::step]):
            yield from _video_findings(layout, video, frames, decode, every, seen, unknown)
        if every == 1 and seen["frames"] and not seen["objects"]:
            yield Finding("split without an object", f"{split}: {seen['frames']} frames")
    if not layout.other_classes:
        yield from unknown.findings()


class _Unknown:
    """Counts classes that a layout does not know, and where each is first."""

    def __init__(self):
        self._counts, self._first = collections.Counter(), {}

    def add(self, truth, where):
        """Takes note of a frame."""
        for class_id, name in zip(truth.classes, truth.names):
            if not class_id:
                self._counts[name] += 1
                self._first.setdefault(name, where)

    def findings(self):
        """One for each class."""
        for name, count in self._counts.most_common():
            yield Finding(
                "class that is unknown", f"{name}: {count} objects, the first {self._first[name]}"
            )


def _video_findings(layout, video, frames, decode, every, seen, unknown):
    sizes = set()
    for t in range(0, frames, every):
        where = f"{video} frame {t}" if frames > 1 else video
        try:
            truth = layout.truth(video, t)
        except records.MissingFileError:
            continue  # The layout's own findings name it.
        except records.DatasetError as error:
            yield Finding("annotation that cannot be read", str(error))
            continue
        size = truth.size
        try:
            header = pictures.check(truth.image, decode, truth.size)
            size = header.size
            if header.orientation != 1:
                yield Finding("picture with an EXIF orientation", _turn(header, where))
        except records.MissingFileError:
            pass
        except records.DatasetError as error:
            yield Finding("picture that cannot be read", str(error))
        seen["frames"] += 1
        unknown.add(truth, where)
        if size is None:
            seen["objects"] += int((truth.classes > 0).sum())
            continue
        seen["objects"] += len(usable_boxes(truth, size)[0])
        sizes.add(size)
        yield from frame_findings(truth, size, where)
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        yield Finding("video of frames of different sizes", f"{video}: {shown}")


def _turn(header, where):
    done = "turned" if header.turned else "not turned, since its annotation states the stored size"
    return f"{where}: tag {header.orientation}, {done}"


def frame_findings(truth: Truth, size: tuple[int, int], where: str) -> Iterator[Finding]:
    """Yields what is wrong with the boxes and tracks of a frame.

    Args:
      truth: of the frame.
      size: (height, width) of its picture.
      where: name of the frame.
    """
    if truth.size not in (None, size):
        yield Finding(
            "picture of another size than annotated",
            f"{where}: {size[1]} x {size[0]}, annotated as {truth.size[1]} x {truth.size[0]}",
        )
    limit = np.array([*size, *size])
    for box, class_id, name in zip(truth.boxes, truth.classes, truth.names):
        shown = f"{where}: {name} at [ymin, xmin, ymax, xmax] {box.tolist()}"
        if not class_id:
            continue
        if (box[2:] <= box[:2]).any():
            yield Finding("box that is inverted", shown)
        elif (box[:2] >= limit[:2]).any() or (box[2:] <= 0).any():
            yield Finding("box outside the frame", shown)
        elif (box < -SLACK_PX).any() or (box > limit + SLACK_PX).any():
            yield Finding("box partly outside the frame", shown)
    numbers, times = np.unique(truth.tracks, return_counts=True)
    for track in numbers[times > 1]:
        yield Finding("track twice in a frame", f"{where}: track {track}")


def examine_records(info: records.DatasetInfo, progress: Progress = iter) -> Iterator[Finding]:
    """Yields what is wrong in a converted or generated data set.

    Args:
      info: of the data set.
      progress: wraps what takes long, as `tqdm.tqdm` does.
    """
    yield from _checksum_findings(info)
    for split, split_info in info.splits.items():
        try:
            paths = info.shard_paths(split)
        except records.DatasetError as error:
            yield Finding("shard that is damaged", str(error))
            continue
        for path, shard in progress(list(zip(paths, split_info.shards))):
            if _sha256(path) != shard.sha256:
                yield Finding("shard that is damaged", f"{path}: its checksum is another one")
        counted = []
        try:
            for clip in progress(records.read_clips(info, split)):
                counted.append(counts.count_clip(clip, len(info.labels)))
                yield from _clip_findings(clip, split)
        except records.DatasetError as error:
            yield Finding("clip that cannot be read", f"{split}: {error}")
            continue
        found = counts.merge_counts(counted)
        told = {**split_info.statistics, "frames": split_info.frames}
        for name, value in {**counts.statistics(found, info.labels), **found}.items():
            if name in told and name not in counts.OF_SOURCE and told[name] != value:
                yield Finding(
                    "description that does not fit",
                    f"{split}: {name} is {value!r:.100}, {records.INFO_FILE} says "
                    f"{told[name]!r:.100}",
                )


def _checksum_findings(info):
    """Compares SHA256SUMS with what `dataset.json` says of its shards, and with itself."""
    path = info.folder / records.CHECKSUMS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        yield Finding("description that does not fit", f"{path} cannot be read: {error}")
        return
    told = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    expected = {shard.file: shard.sha256 for of in info.splits.values() for shard in of.shards}
    expected[records.INFO_FILE] = _sha256(info.folder / records.INFO_FILE)
    for name in sorted(told.keys() | expected.keys()):
        if told.get(name) != expected.get(name):
            yield Finding("description that does not fit", f"{path}: {name:.100} has another sum")


def _clip_findings(clip, split):
    """Yields frames that are no pictures of their clip, and masks that do not fit their objects."""
    size = (clip.height, clip.width)
    for t, (image, mask, tracks) in enumerate(zip(clip.images, clip.masks, clip.tracks)):
        where = f"{split}: {clip.clip_id} frame {t}"
        try:
            if not image.startswith(records.STORED):
                raise records.DatasetError(f"{where} is no JPEG or PNG")
            # The header first: a small file may claim to be huge.
            for what, data in (("", image), *([(" mask", mask)] if mask else [])):
                found = pictures.stored_size(data, where + what)
                if found != size:
                    raise records.DatasetError(
                        f"{where}{what} is {found[1]} x {found[0]}, wanted {size[1]} x {size[0]}"
                    )
            pictures.decode_rgb(image, where)
            last = pictures.decode_indices(mask, f"{where} mask").max() if mask else 0
            if last > len(tracks):
                raise records.DatasetError(f"{where} mask shows object {last} of {len(tracks)}")
            if len(set(tracks.tolist())) < len(tracks):
                raise records.DatasetError(f"{where} shows a track twice")
        except records.DatasetError as error:
            yield Finding("clip that cannot be read", str(error))


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Diagnosis:
    """Findings by kind.

    Args:
      examples: of each kind that are kept.
    """

    def __init__(self, examples: int = 5):
        self._examples = examples
        self._counts = {}
        self._shown = {}

    def add(self, finding: Finding) -> None:
        """Counts a finding."""
        self._counts[finding.kind] = self._counts.get(finding.kind, 0) + 1
        shown = self._shown.setdefault(finding.kind, [])
        if len(shown) < self._examples:
            shown.append(finding.where)

    @property
    def count(self) -> int:
        """Number of findings."""
        return sum(self._counts.values())

    def text(self) -> str:
        """A paragraph for each kind: number, what to do, examples."""
        paragraphs = []
        for kind, count in self._counts.items():
            advice = f" ({ADVICE[kind]})" if kind in ADVICE else ""
            lines = [f"{count} x {kind}{advice}:"] + [f"    {w}" for w in self._shown[kind]]
            if count > self._examples:
                lines.append(f"    and {count - self._examples} more")
            paragraphs.append("\n".join(lines))
        return "\n".join(paragraphs) or "nothing is wrong"
