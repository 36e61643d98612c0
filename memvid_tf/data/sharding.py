"""Writing a data set: clips made by worker processes, sharded TFRecords, restartable, atomic.

Everything is written into `<folder>.partial`, `dataset.json` and its checksums last, and the folder
is renamed when it is complete, so a data set that exists is whole. Only then the notes are removed
with which an interrupted run goes on: after the shards it had finished, provided that the
configuration is the same. The bytes do not depend on the number of
workers: a clip is a function of its split and number, and clips are written in order.

Workers only make clips; the parent alone loads TensorFlow, for the record format.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable
from concurrent import futures

import cv2

from memvid_tf import files, locks
from memvid_tf.data import counts, records

# A shard is what a restart repeats at most: seconds of work.
SHARD_CLIPS = 100
# Clips handed to a worker at once.
CHUNK_CLIPS = 4
_PLAN_FILE = "plan.json"
# What the record format adds to a record: its length and two checksums.
_RECORD_FRAME_BYTES = 16


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """How many clips a split gets, and the frames of its longest clip."""

    clips: int
    clip_frames: int


@dataclasses.dataclass(frozen=True)
class DatasetPlan:
    """A data set that is to be written.

    Attributes:
      name: of the data set's kind.
      labels: class names; class id - 1 is the index.
      image_size: (height, width) of the stored frames.
      config: settings, JSON values only; two data sets with equal plans are the same.
      seed: of the set, 0 where nothing is random.
      splits: by name.
      make_clip: `(split, index) -> ClipRecord`; a picklable pure function, because workers call it.
        It raises DatasetError where the clip cannot be made.
      shard_clips: clips of a shard, at most.
      skip_unreadable: how many clips that cannot be made are left out; with more, writing stops.
      too_short: split -> videos of which there is no clip.
    """

    name: str
    labels: list[str]
    image_size: tuple[int, int]
    config: dict
    seed: int
    splits: dict[str, SplitPlan]
    make_clip: Callable[[str, int], records.ClipRecord]
    shard_clips: int = SHARD_CLIPS
    skip_unreadable: int = 0
    too_short: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def description(self) -> dict:
        """What decides the contents, as JSON values."""
        return {
            "schema_version": records.SCHEMA_VERSION,
            "name": self.name,
            "labels": list(self.labels),
            "image_size": list(self.image_size),
            "config": self.config,
            "seed": self.seed,
            "splits": {name: dataclasses.asdict(split) for name, split in self.splits.items()},
        }


def write_dataset(
    folder: str | pathlib.Path,
    plan: DatasetPlan,
    workers: int = 2,
    advance: Callable[[int], None] | None = None,
) -> tuple[records.DatasetInfo, bool]:
    """Writes a data set, or finds the same one already there.

    Args:
      folder: of the data set; its parents are created.
      plan: what to write.
      workers: processes that make clips; 0 makes them in this process.
      advance: called with the number of clips that have just been finished or found finished.

    Returns:
      The data set's description, and whether it was there already.

    Raises:
      DatasetError: when another data set, other files, or another configuration's unfinished run
        are in the way, the disk is full, more clips than allowed cannot be made, or a split has no
        object.
      UserError: when another process is writing the same data set.
    """
    folder = pathlib.Path(os.path.realpath(files.local(folder)))
    advance = advance or (lambda clips: None)
    with locks.target(folder):
        if folder.exists():
            info = _existing(folder, plan)
            _tidy(info)
            advance(sum(split.clips for split in plan.splits.values()))
            return info, True
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(exist_ok=True)
        _claim(partial, plan)
        splits, skipped = {}, _Skipped(plan.skip_unreadable)
        with _maker(plan.make_clip, workers) as make_clips:
            for split in plan.splits:
                splits[split] = _write_split(partial, plan, split, make_clips, skipped, advance)
        files.write_json(partial / records.INFO_FILE, {**plan.description(), "splits": splits})
        _write_checksums(partial, splits)
        os.rename(partial, folder)
        info = records.read_info(folder)
        _tidy(info)
        return info, False


def _tidy(info):
    """Removes what only an unfinished run needs."""
    notes = [_note(path) for split in info.splits for path in info.shard_paths(split)]
    for path in (info.folder / _PLAN_FILE, *notes):
        path.unlink(missing_ok=True)


def _note(shard):
    """The file that says that a shard is whole."""
    return shard.with_name(shard.name + ".json")


def _existing(folder, plan):
    """The data set in `folder`, when it is the planned one."""
    if not folder.is_dir() or not (folder / records.INFO_FILE).is_file():
        raise records.DatasetError(
            f"{folder} exists and is no data set; choose another --output or remove it"
        )
    info = records.read_info(folder)
    skipped = {name: _unreadable(split.statistics) for name, split in info.splits.items()}
    written = {
        "schema_version": records.SCHEMA_VERSION,
        "name": info.name,
        "labels": list(info.labels),
        "image_size": list(info.image_size),
        "config": info.config,
        "seed": info.seed,
        "splits": {
            name: {
                "clips": split.clips + len(skipped[name]),
                # The longest clip may be among those.
                "clip_frames": plan.splits[name].clip_frames
                if skipped[name] and name in plan.splits
                else split.clip_frames,
            }
            for name, split in info.splits.items()
        },
    }
    _compare(folder, "holds another data set", written, plan)
    count = sum(map(len, skipped.values()))
    if count > plan.skip_unreadable:
        raise records.DatasetError(
            f"{folder} is without {count} clips that could not be read; --skip_unreadable={count} "
            "accepts that, or remove it and convert again"
        )
    for split in plan.splits:
        info.shard_paths(split)
    return info


def _compare(folder, what, written, plan):
    wanted = json.loads(json.dumps(plan.description()))
    changes = [f"{name} is {a!r}, asked for {b!r}" for name, a, b in _differences(written, wanted)]
    if changes:
        raise records.DatasetError(
            f"{folder} {what}: {'; '.join(changes[:4])}; choose another --output or remove it"
        )


def _differences(a, b, name=""):
    """Leaves in which two JSON values differ: (dotted name, value in a, value in b)."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def _claim(partial, plan):
    """Writes down what the unfinished folder is for, or checks that it is for the same."""
    path = partial / _PLAN_FILE
    if path.is_file():
        try:
            written = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise records.DatasetError(f"{path} is not JSON; remove {partial}") from error
        _compare(partial, "is an unfinished run of another configuration", written, plan)
        return
    files.sweep(partial)
    strange = sorted(p.name for p in partial.iterdir())
    if strange:
        raise records.DatasetError(
            f"{partial} holds {', '.join(strange[:5])} but no {_PLAN_FILE}; remove it"
        )
    files.write_json(path, plan.description())


@contextlib.contextmanager
def _maker(make_clip, workers):
    """Yields `(split, indices) -> iterator of clips in order`."""
    if workers == 0:
        yield lambda split, indices: (_made(make_clip, split, index) for index in indices)
        return
    # Spawned, not forked: the parent may hold TensorFlow's threads.
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(make_clip,)
    ) as pool:
        try:
            yield lambda split, indices: pool.map(
                _make_in_worker, [split] * len(indices), indices, chunksize=CHUNK_CLIPS
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)  # nobody waits for the rest of a shard
            raise


def _start_worker(make_clip):
    """Makes a worker use one core, leave Ctrl-C to the parent, and never outlive it."""
    # Handed over once: it may hold the annotations of a whole data set.
    _make_in_worker.make_clip = make_clip
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent():
        # A killed parent closes nothing that a worker waits for, so it is watched.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _make_in_worker(split, index):
    return _made(_make_in_worker.make_clip, split, index)


def _made(make_clip, split, index):
    """The clip, or what is wrong with it: an error would end the worker's other clips too."""
    try:
        return make_clip(split, index)
    except records.DatasetError as error:
        return error


class _Skipped:
    """Counts clips that could not be made."""

    def __init__(self, allowed):
        self._allowed, self._reasons = allowed, []

    def add(self, reasons):
        """Raises DatasetError, naming the first ones, when they are more than allowed."""
        self._reasons += reasons
        count = len(self._reasons)
        if count > self._allowed:
            told = "; ".join(self._reasons[:5])
            if self._allowed:
                told = f"{count} clips cannot be read, allowed are {self._allowed}: {told}"
            raise records.DatasetError(
                f"{told}; mend it, or leave such clips out with --skip_unreadable={10 * count}"
            )


def _unreadable(statistics: dict) -> list[str]:
    """Of the statistics of a split: why clips are left out, one line for each."""
    return statistics.get("unreadable", [])


def _write_split(partial, plan, split, make_clips, skipped, advance):
    """Writes the shards of a split that are not there yet; returns its part of dataset.json."""
    split_plan = plan.splits[split]
    total = max(1, math.ceil(split_plan.clips / plan.shard_clips))
    bounds = [split_plan.clips * i // total for i in range(total + 1)]
    shards, of_shards, reasons = [], [], []
    for number, (first, last) in enumerate(zip(bounds, bounds[1:])):
        path = partial / f"{split}-{number:05d}-of-{total:05d}.tfrecord"
        note = _note(path)
        if not (path.is_file() and note.is_file()):
            clips = make_clips(split, range(first, last))
            written = _write_shard(path, clips, len(plan.labels), skipped, advance)
            # The note says that the shard is whole, so it comes last.
            files.write_json(
                note,
                {
                    "bytes": path.stat().st_size,
                    "sha256": _sha256(path),
                    **written,
                },
            )
        else:
            advance(last - first)
            skipped.add(json.loads(note.read_text(encoding="utf-8"))["unreadable"])
        written = json.loads(note.read_text(encoding="utf-8"))
        if path.stat().st_size != written["bytes"] or _sha256(path) != written["sha256"]:
            raise records.DatasetError(f"{path} is damaged; remove it and start again")
        shards.append(
            {
                "file": path.name,
                "clips": written["clips"],
                "bytes": written["bytes"],
                "sha256": written["sha256"],
            }
        )
        reasons += written["unreadable"]
        if written["clips"]:
            of_shards.append(written["counts"])
    if not of_shards:
        raise records.DatasetError(f"no clip of {split} can be read: {'; '.join(reasons[:5])}")
    merged = counts.merge_counts(of_shards)
    statistics = counts.statistics(merged, plan.labels)
    if not statistics["objects"]:
        raise records.DatasetError(
            f"{split} of {plan.name} has no object that can be used: {merged['left_out']} without "
            f"extent in their frame and {sum(merged['unknown_classes'].values())} of other classes "
            "are left out; see python -m memvid_tf.data check"
        )
    too_short = plan.too_short.get(split, [])
    return {
        "clips": split_plan.clips - len(reasons),
        "frames": merged["frames"],
        "clip_frames": merged["max_clip_frames"],
        "shards": shards,
        "statistics": {**statistics, "unreadable": reasons, "too_short": too_short},
    }


def _write_shard(path, clips, num_classes, skipped, advance):
    """Writes the clips that could be made; returns their number and counts, and why not others."""
    import tensorflow as tf

    counted, reasons, size = [], [], 0

    def check(written):
        if os.path.getsize(written) != size:
            raise records.DatasetError(f"{path} was cut short in writing; is the disk full?")

    try:
        with files.atomic_path(path, check) as temporary, tf.io.TFRecordWriter(temporary) as writer:
            for clip in clips:
                if isinstance(clip, records.DatasetError):
                    reasons.append(str(clip))
                    skipped.add(reasons[-1:])
                else:
                    record = records.serialize(clip)
                    writer.write(record)
                    size += len(record) + _RECORD_FRAME_BYTES
                    counted.append(counts.count_clip(clip, num_classes))
                advance(1)
    except tf.errors.OpError as error:
        raise records.DatasetError(f"{path} cannot be written: {error.message}") from error
    return {
        "clips": len(counted),
        "counts": counts.merge_counts(counted) if counted else None,
        "unreadable": reasons,
    }


def _write_checksums(folder, splits):
    sums = {shard["file"]: shard["sha256"] for of in splits.values() for shard in of["shards"]}
    sums[records.INFO_FILE] = _sha256(folder / records.INFO_FILE)
    files.write_text(
        folder / records.CHECKSUMS_FILE,
        "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()),
    )


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
