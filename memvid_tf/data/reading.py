"""Random access to clip records, and what becomes of a record that cannot be decoded.

A record is read by its byte offset, which a chain of record headers gives. In training a clip whose
frames cannot be decoded may be skipped; the next one takes its place. Every such clip is counted;
beyond the configured share reading stops with the list of them. A resumed training repeats as many
examples as were skipped before.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from memvid_tf.data import records


class RecordTable(NamedTuple):
    """Where every record is.

    Attributes:
      paths: [S] of the shards.
      shard: [C] int64, index of the record's shard.
      offset: [C] int64, where the record starts in it.
    """

    paths: list[str]
    shard: np.ndarray
    offset: np.ndarray

    def place(self, clip: int) -> str:
        """Shard and number in it, for people."""
        shard = self.shard[clip]
        return f"record {clip - int(np.searchsorted(self.shard, shard))} of {self.paths[shard]}"


def record_table(sources: Sequence[tuple[records.DatasetInfo, str]]) -> RecordTable:
    """The records of some data sets' splits, one after another.

    Raises:
      DatasetError: naming a shard that is missing, truncated or damaged.
    """
    paths, shard, offset = [], [], []
    for info, split in sources:
        for path, expected in zip(info.shard_paths(split), info.split(split).shards):
            offsets = records.record_offsets(path, expected)
            shard += [len(paths)] * len(offsets)
            offset += offsets
            paths.append(str(path))
    return RecordTable(paths, np.array(shard, np.int64), np.array(offset, np.int64))


def read_record(table: RecordTable, clip: tf.Tensor) -> tf.data.Dataset:
    """A data set of one serialized record, which is empty if its checksum is wrong."""
    shard = tf.gather(table.shard, clip)
    # Opening at an offset is in no public class; a file of fixed-length records, which has a
    # header to skip, reads all that it skips. Without a buffer only the record itself is read.
    record = tf.raw_ops.TFRecordDatasetV2(
        filenames=tf.gather(table.paths, shard)[None],
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=tf.gather(table.offset, clip)[None],
    )
    record = tf.data.experimental.from_variant(record, tf.TensorSpec([], tf.string))
    nothing = tf.data.Dataset.from_tensors("")
    return record.take(1).ignore_errors().concatenate(nothing).take(1)


@contextlib.contextmanager
def dataset_errors() -> Iterator[None]:
    """Turns what `Skipped` says inside a graph back into a DatasetError, and so any other error of
    a data set's iterator, as of a record that lacks something."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        said = re.search(r"DatasetError: (.*)", str(error))
        if said:
            raise records.DatasetError(said.group(1)) from error
        if "IteratorGetNext" in str(error):
            reason = re.sub(r"\{\{.*?\}\}|\s+", " ", str(error.message)).strip()[:200]
            raise records.DatasetError(
                f"a clip cannot be read: {reason}; python -m memvid_tf.data check --input=... "
                "names it"
            ) from error
        raise


class Skipped:
    """Counts clips that could not be decoded.

    Args:
      table: of all records.
      allowed: number of different clips that may be skipped.
      warn: told of each clip that is skipped.
    """

    def __init__(self, table: RecordTable, allowed: int, warn: Callable[[str], None]):
        self._table, self._allowed, self._warn = table, allowed, warn
        self._clips = {}

    def note(self, clip: np.ndarray) -> np.bool_:
        """Takes note of a clip, [] integer; returns False, "not to be kept".

        Raises:
          DatasetError: listing the clips, when they are more than allowed.
        """
        clip = int(clip)
        known = clip in self._clips
        self._clips[clip] = self._table.place(clip)
        count = len(self._clips)
        if count > self._allowed:
            raise records.DatasetError(
                f"{count} clips cannot be decoded, allowed are {self._allowed}: "
                f"{'; '.join(self._clips.values())}. Look with python -m memvid_tf.data check "
                "--input=..., and make the data set again or raise max_unreadable"
            )
        if not known:
            self._warn(
                f"{self._clips[clip]} cannot be decoded and is skipped: {count} of at most "
                f"{self._allowed}"
            )
        return np.False_


def decode_if_possible(
    encoded: tf.Tensor,
    decode: Callable[[tf.Tensor], tf.Tensor],
    shape: tuple[int | None, int | None, int],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes pictures, or says that it cannot be done.

    Args:
      encoded: [n] files.
      decode: `file -> [H, W, 3] uint8`, which fails on a damaged one.
      shape: of a picture; None where it is not known.

    Returns:
      [n, H, W, 3] uint8, or zeros, and [] bool whether it worked.
    """

    def pictures(files):
        if files.shape[0] is None:
            return tf.map_fn(decode, files, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
        # A loop costs as much as it takes to decode a small picture.
        return tf.stack([decode(file) for file in tf.unstack(files)])

    # An operation that fails ends a graph; a data set of one element can be asked to ignore it.
    done = tf.data.Dataset.from_tensors(encoded).map(lambda files: (pictures(files), True))
    zeros = tf.zeros([side or 1 for side in (encoded.shape[0], *shape)], tf.uint8)
    nothing = tf.data.Dataset.from_tensors((zeros, False))
    return done.ignore_errors().concatenate(nothing).take(1).get_single_element()


def keep_readable(dataset: tf.data.Dataset, skipped: Skipped) -> tf.data.Dataset:
    """Of (readable [] bool, clip [] integer, example) the examples that are; `skipped` is told of
    the others."""

    def keep(readable, clip, example):
        return tf.cond(
            readable,
            lambda: True,
            lambda: tf.ensure_shape(tf.numpy_function(skipped.note, [clip], tf.bool), []),
        )

    return dataset.filter(keep).map(lambda readable, clip, example: example)
