"""What is missing or wrong in a data set, in plain words; nothing that is found stops the search.

`examine` looks at a layout before it is converted: folders, lists, annotations, boxes, classes,
tracks, pictures. `examine_records` looks at a converted set: its checksums and every frame.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from memvid_tf.data import pictures, records
from memvid_tf.data.layouts import Finding, Layout, Progress, Truth

# What to do about a kind of finding; folders and lists speak for themselves.
ADVICE = {
    "picture that cannot be read": "fetch it again; convert stops there",
    "annotation that cannot be read": "fetch it again; convert stops there",
    "picture of another size than annotated": "the boxes may be of another picture; convert stops "
    "there",
    "box that is inverted": "its maximum is not above its minimum; ImageNet orders corners as "
    "xmax, xmin, ymax, ymin, and a tool that reads by position mixes them "
    "up; convert leaves it out",
    "box outside the frame": "convert leaves it out",
    "box partly outside the frame": "convert cuts it at the border",
    "class that is unknown": "convert leaves it out",
    "track twice in a frame": "convert keeps the first",
    "video of frames of different sizes": "convert brings all to one size",
    "shard that is damaged": "make the data set again",
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
    found = {}
    for split in (*layout.splits, "all"):
        # Where no split is known all videos are looked at, if the layout can tell them.
        if split == "all" and found:
            break
        try:
            found[split] = layout.videos(split)
            yield from layout.findings(split)
        except (records.DatasetError, OSError) as error:
            if split != "all":
                yield Finding(f"split {split} that cannot be found", str(error))
    for videos in found.values():
        step = every if layout.stills else 1
        for video, frames in progress(videos[::step]):
            yield from _video_findings(layout, video, frames, decode, every)


def _video_findings(layout, video, frames, decode, every):
    sizes = set()
    for t in range(0, frames, every):
        where = f"{video} frame {t}" if frames > 1 else video
        try:
            truth = layout.truth(video, t)
        except records.DatasetError as error:
            yield Finding("annotation that cannot be read", str(error))
            continue
        try:
            size = pictures.check(truth.image, decode)
        except records.DatasetError as error:
            yield Finding("picture that cannot be read", str(error))
            size = truth.size
        if size is None:
            continue
        sizes.add(size)
        yield from frame_findings(layout, truth, size, where)
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        yield Finding("video of frames of different sizes", f"{video}: {shown}")


def frame_findings(
    layout: Layout, truth: Truth, size: tuple[int, int], where: str
) -> Iterator[Finding]:
    """Yields what is wrong with the annotation of a frame.

    Args:
      layout: which it belongs to.
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
    for box, class_id, track, name in zip(truth.boxes, truth.classes, truth.tracks, truth.names):
        shown = f"{where}: {name} at [ymin, xmin, ymax, xmax] {box.tolist()}"
        if not class_id:
            if not layout.other_classes:
                yield Finding("class that is unknown", f"{where}: {name}, track {track}")
            continue
        if (box[2:] <= box[:2]).any():
            yield Finding("box that is inverted", shown)
        elif (box[:2] >= limit[:2]).any() or (box[2:] <= 0).any():
            yield Finding("box outside the frame", shown)
        elif (box < -SLACK_PX).any() or (box > limit + SLACK_PX).any():
            yield Finding("box partly outside the frame", shown)
    numbers, counts = np.unique(truth.tracks, return_counts=True)
    for track in numbers[counts > 1]:
        yield Finding("track twice in a frame", f"{where}: track {track}")


def examine_records(info: records.DatasetInfo, progress: Progress = iter) -> Iterator[Finding]:
    """Yields what is wrong in a converted or generated data set.

    Args:
      info: of the data set.
      progress: wraps what takes long, as `tqdm.tqdm` does.
    """
    import cv2

    for split, split_info in info.splits.items():
        try:
            paths = info.shard_paths(split)
        except records.DatasetError as error:
            yield Finding("shard that is damaged", str(error))
            continue
        for path, shard in progress(list(zip(paths, split_info.shards))):
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    yield Finding("shard that is damaged", f"{path}: its checksum is another one")
        try:
            for clip in progress(records.read_clips(info, split)):
                for t, image in enumerate(clip.images):
                    found = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
                    if found is None or found.shape[:2] != (clip.height, clip.width):
                        yield Finding(
                            "clip that cannot be read",
                            f"{split}: {clip.clip_id} frame {t} is no picture of "
                            f"{clip.width} x {clip.height}",
                        )
        except (records.DatasetError, ValueError) as error:
            yield Finding("clip that cannot be read", f"{split}: {error}")


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
