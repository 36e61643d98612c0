"""Training windows and evaluation clips from clip records, as a `tf.data.Dataset`.

A training example is a window of `unroll_frames` frames of one clip, at a random start and a
random temporal stride, with one flip, crop and colour change for the whole window (LFS section
4.1 unrolls six steps). An evaluation example is the beginning of a clip, as stored.

The training stream is a pure function of (seed, step). Example n belongs to epoch n // clips; a
seeded permutation of the epoch says which clip it is; the record is read by its byte offset; the
window and the augmentation are drawn from a counter-based generator keyed by (seed, n). So there
is no shuffle buffer to refill, `start_step` resumes exactly at no cost, and every epoch is a full
shuffle. Only the frames that are used are decoded.

Differs from the paper: LFS mixes in still images; that belongs to another source of clips.
"""

import dataclasses
import os
import struct
from typing import Optional, Tuple

import numpy as np
from official.core import config_definitions as cfg
import tensorflow as tf

from memvid_tf.data import records

PADDING_TRACK = -1
# What a shifted frame shows where it has left the stored one: mid-grey, the model's zero.
PADDING_GREY = 128
# Bounds of the photometric change, one draw a window: SSD's (Liu et al., 2016, section 2.2)
# brightness and saturation, with a narrower contrast because textures are contrast.
BRIGHTNESS_DELTA = 32.
CONTRAST_RANGE = (.8, 1.2)
SATURATION_RANGE = (.5, 1.5)
# TFRecord framing: uint64 length, uint32 crc, data, uint32 crc.
_HEADER_BYTES = 12
_FOOTER_BYTES = 4


@dataclasses.dataclass
class ClipConfig(cfg.DataConfig):
    """Where clips come from and how they are sampled.

    Of the inherited fields only input_path, global_batch_size, is_training, drop_remainder, seed
    and prefetch_buffer_size are used.

    Attributes:
      input_path: folder of a data set, see `memvid_tf.data.records`.
      split: of the data set.
      unroll_frames: T. In evaluation 0 means the longest clip of the split; longer clips are cut.
      image_size: (height, width) of the frames handed out; stored frames of another size are
        resized.
      max_objects: N, the objects a frame has room for.
      max_stride: training windows take every 1st to max_stride-th frame.
      time_reversal: turn half of the training windows round in time.
      flip: mirror half of the training windows left to right.
      photometric: change brightness, contrast and saturation of training windows.
      random_crop: crop training windows to between crop_min_scale and 1 of each side and resize.
      crop_min_scale: 1 switches the zoom off: resizing destroys the synthetic set's textures.
      max_shift: shift training windows by up to this part of a side, in even pixels, so that
        the 2x2 box mean of a texture stays what it was; 0 is off.
      seed: of order, windows and augmentation.
      drop_remainder: evaluation only: drop the last batch when it is not full.
    """

    split: str = "train"
    unroll_frames: int = 8
    image_size: Tuple[int, int] = (96, 96)
    max_objects: int = 8
    max_stride: int = 1
    time_reversal: bool = False
    flip: bool = True
    photometric: bool = True
    random_crop: bool = False
    crop_min_scale: float = 1.
    max_shift: float = 0.
    is_training: bool = True
    global_batch_size: int = 8
    seed: Optional[int] = 0
    drop_remainder: bool = False


def clip_dataset(
    config: ClipConfig,
    input_context: tf.distribute.InputContext | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Batches of clips.

    Args:
      config: see `ClipConfig`.
      input_context: of `tf.distribute`; the pipelines together give what one would give.
      start_step: training only: the first global step of the stream.

    Returns:
      A data set, endless in training and in file order otherwise, of dicts:
        frames: [B, T, H, W, 3] uint8; zeros beyond num_frames.
        boxes: [B, T, N, 4] float32 `[ymin, xmin, ymax, xmax]` in [0, 1]; zeros where padded.
        classes: [B, T, N] int32, 1..C; 0 where padded.
        tracks: [B, T, N] int32; -1 where padded.
        num_frames: [B] int32, frames that the clip really has.
        clip_index: [B] int32, position of the clip in the split.

    Raises:
      ValueError: when the data set or the split is missing or damaged, or does not fit the
        configuration; the message names the path and what makes a data set.
    """
    info = records.read_info(config.input_path)
    split = info.split(config.split)
    frames = _checked_frames(config, info, split, start_step)
    table = _record_table(info, config.split)
    pipelines = input_context.num_input_pipelines if input_context else 1
    pipeline = input_context.input_pipeline_id if input_context else 0
    batch = config.global_batch_size
    if input_context:
        batch = input_context.get_per_replica_batch_size(config.global_batch_size)
    if config.is_training:
        dataset = _training_examples(config, split.clips, start_step, pipelines, pipeline)
    else:
        dataset = tf.data.Dataset.range(split.clips).shard(pipelines, pipeline)
        dataset = dataset.map(lambda index: (index, index))
    dataset = dataset.flat_map(lambda example, clip: _read_record(table, example, clip))
    make = _training_window if config.is_training else _whole_clip
    size = (int(config.image_size[0]), int(config.image_size[1]))

    def example(number, clip, serialized):
        clip_frames = make(config, _parse(serialized), number, frames, size)
        return {**clip_frames, "clip_index": tf.cast(clip, tf.int32)}

    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch, drop_remainder=config.is_training or config.drop_remainder)
    dataset = dataset.prefetch(config.prefetch_buffer_size or tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = True
    # Sharding is done above; tf.distribute must not do it a second time.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _checked_frames(config, info, split, start_step):
    """T; raises ValueError when the configuration does not fit the data set."""
    longest, shortest = split.clip_frames, split.statistics["min_clip_frames"]
    frames = config.unroll_frames
    if not config.is_training and frames == 0:
        frames = longest
    checks = (
        ("unroll_frames", frames >= 1, "at least 1; 0 only in evaluation"),
        ("unroll_frames", not config.is_training or frames <= shortest,
         f"at most {shortest}, the shortest clip of {config.split} in {info.folder}"),
        ("image_size", len(config.image_size) == 2 and min(config.image_size) >= 1,
         "(height, width)"),
        ("max_objects", config.max_objects >= split.statistics["max_objects"],
         f"at least {split.statistics['max_objects']}, which a frame of {config.split} holds"),
        ("max_stride", config.max_stride >= 1, "at least 1"),
        ("crop_min_scale", .1 <= config.crop_min_scale <= 1, "in .1..1"),
        ("max_shift", 0 <= config.max_shift < .5, "in 0...5"),
        ("global_batch_size", config.global_batch_size >= 1, "at least 1"),
        ("seed", config.seed is not None and 0 <= config.seed < 2**31, "in 0..2^31-1"),
        ("tfds_name", not config.tfds_name, "empty: clips are read from input_path"),
    )
    for name, right, allowed in checks:
        if not right:
            raise records.DatasetError(
                f"{name} {getattr(config, name)!r} is not allowed: {allowed}")
    if start_step < 0 or (start_step and not config.is_training):
        raise ValueError(f"start_step {start_step} is not allowed: at least 0 in training, "
                         "0 in evaluation")
    return frames


def _record_table(info, split):
    """Where every record of a split is: (paths [S], shard [C], offset [C], bytes [C], size [S]).

    Follows the chain of record headers, so a shard that was damaged in length or count is found.
    """
    paths = info.shard_paths(split)
    shard, offset, length = [], [], []
    for number, (path, expected) in enumerate(zip(paths, info.split(split).shards)):
        position, found = 0, 0
        with open(path, "rb") as file:
            while header := file.read(_HEADER_BYTES):
                size = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER_BYTES else 0
                start = position + _HEADER_BYTES
                position = start + size + _FOOTER_BYTES
                if size == 0 or position > expected.bytes:
                    raise records.DatasetError(
                        f"{path} is damaged at record {found}; make the data set again")
                shard.append(number)
                offset.append(start)
                length.append(size)
                found += 1
                file.seek(position, os.SEEK_SET)
        if found != expected.clips:
            raise records.DatasetError(f"{path} holds {found} clips, {records.INFO_FILE} says "
                                       f"{expected.clips}; make the data set again")
    sizes = [expected.bytes for expected in info.split(split).shards]
    return ([str(path) for path in paths],
            *(np.array(column, np.int64) for column in (shard, offset, length, sizes)))


def _training_examples(config, clips, start_step, pipelines, pipeline):
    """Endless (example number, clip) pairs, int64, of one of the input pipelines."""
    batch = config.global_batch_size
    if batch % pipelines:
        raise ValueError(f"global_batch_size {batch} does not divide among {pipelines} pipelines")
    local = batch // pipelines

    def pick(position):
        # Of every global batch a pipeline takes its own run of examples.
        number = position // local * batch + pipeline * local + position % local
        epoch, place = number // clips, number % clips
        clip = tf.random.experimental.index_shuffle(
            place, tf.stack([tf.constant(config.seed, tf.int64), epoch]), clips - 1)
        return number, clip

    return tf.data.Dataset.range(start_step * local, np.iinfo(np.int64).max // batch).map(pick)


def _read_record(table, number, clip):
    """A data set of one (number, clip, serialized record)."""
    paths, shard, offset, length, sizes = (tf.constant(column) for column in table)
    of = tf.gather(shard, clip)
    start, count = tf.gather(offset, clip), tf.gather(length, clip)
    # A "file of fixed-length records" that is one record long, between header and footer.
    record = tf.data.FixedLengthRecordDataset(
        tf.gather(paths, of), record_bytes=count, header_bytes=start,
        footer_bytes=tf.gather(sizes, of) - start - count)
    return record.map(lambda serialized: (number, clip, serialized))


def _parse(serialized):
    """The record's lists; objects are padded to the fullest frame of the clip."""
    _, lists, = tf.io.parse_single_sequence_example(
        serialized,
        sequence_features={
            "image/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
            "object/bbox": tf.io.VarLenFeature(tf.float32),
            "object/class": tf.io.VarLenFeature(tf.int64),
            "object/track": tf.io.VarLenFeature(tf.int64),
        })
    boxes = tf.sparse.to_dense(lists["object/bbox"])
    return {
        "images": lists["image/encoded"],
        "boxes": tf.reshape(boxes, [tf.shape(boxes)[0], -1, 4]),
        "classes": tf.cast(tf.sparse.to_dense(lists["object/class"]), tf.int32),
        "tracks": tf.cast(
            tf.sparse.to_dense(lists["object/track"], default_value=PADDING_TRACK), tf.int32),
    }


def _select(config, clip, used, frames, size):
    """Decodes and gathers the frames at `used` [n], padded to T frames and N objects."""
    images = tf.map_fn(
        lambda data: _decode(data, size), tf.gather(clip["images"], used),
        fn_output_signature=tf.TensorSpec((*size, 3), tf.uint8))
    room = config.max_objects
    missing = frames - tf.shape(used)[0]

    def padded(name, rest, value):
        array = tf.gather(clip[name], used)
        objects = tf.shape(array)[1]
        array = tf.pad(array, [[0, missing], [0, room - objects]] + [[0, 0]] * len(rest),
                       constant_values=value)
        return tf.ensure_shape(array, (frames, room, *rest))

    images = tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]])
    return {
        "frames": tf.ensure_shape(images, (frames, *size, 3)),
        "boxes": padded("boxes", (4,), 0.),
        "classes": padded("classes", (), 0),
        "tracks": padded("tracks", (), PADDING_TRACK),
        "num_frames": tf.shape(used)[0],
    }


def _decode(data, size):
    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    same = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    return tf.cond(same, lambda: image, lambda: _resize(image, size))


def _resize(images, size):
    """[..., H, W, 3] uint8 to another size, antialiased, rounded to nearest."""
    scaled = tf.image.resize(images, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(scaled), 0., 255.), tf.uint8)


def _whole_clip(config, clip, number, frames, size):
    del number  # Nothing is random.
    count = tf.minimum(tf.shape(clip["images"])[0], frames)
    return _select(config, clip, tf.range(count), frames, size)


def _training_window(config, clip, number, frames, size):
    # One generator for each decision: a new one must not change what the others draw.
    seeds = tf.random.split([tf.constant(config.seed, tf.int64), number], 7, alg="philox")

    def uniform(which, low, high, dtype=tf.float32):
        return tf.random.stateless_uniform([], seeds[which], low, high, dtype, alg="philox")

    length = tf.shape(clip["images"])[0]
    widest = tf.minimum(config.max_stride, (length - 1) // max(1, frames - 1))
    stride = uniform(0, 1, tf.maximum(widest, 1) + 1, tf.int32)
    span = (frames - 1) * stride
    used = uniform(1, 0, length - span, tf.int32) + stride * tf.range(frames)
    if config.time_reversal:
        used = tf.cond(uniform(2, 0, 2, tf.int32) > 0, lambda: used[::-1], lambda: used)
    window = _select(config, clip, used, frames, size)
    if config.flip:
        window = tf.cond(uniform(3, 0, 2, tf.int32) > 0, lambda: flipped(window), lambda: window)
    if config.random_crop and config.crop_min_scale < 1:
        draws = tf.random.stateless_uniform([3], seeds[4], alg="philox")
        scale = config.crop_min_scale + (1 - config.crop_min_scale) * draws[0]
        window = cropped(window, scale, draws[1:])
    if config.max_shift > 0:
        draws = tf.random.stateless_uniform([2], seeds[5], -1., 1., alg="philox")
        limit = config.max_shift * tf.cast(size, tf.float32)
        window = shifted(window, 2 * tf.cast(tf.round(draws * limit / 2), tf.int32))
    if config.photometric:
        draws = tf.random.stateless_uniform([3], seeds[6], alg="philox")
        window["frames"] = recolored(window["frames"], draws)
    return window


def flipped(window: dict) -> dict:
    """Mirrors a window left to right.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes [T, N] and more.
    """
    top, left, bottom, right = tf.unstack(window["boxes"], axis=-1)
    boxes = tf.stack([top, 1 - right, bottom, 1 - left], axis=-1)
    there = window["classes"][..., None] > 0
    return {**window, "frames": window["frames"][:, :, ::-1],
            "boxes": tf.where(there, boxes, 0.)}


def cropped(window: dict, scale: tf.Tensor, place: tf.Tensor) -> dict:
    """Cuts one rectangle out of every frame and resizes it to the frame's size.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes and tracks [T, N] and more.
      scale: [] float, in (0, 1]: part of each side that is kept, rounded to even pixels.
      place: [2] float in [0, 1): where, between topmost and leftmost and the other ends.
    """
    size = tf.shape(window["frames"])[1:3]
    kept = tf.maximum(2 * tf.cast(tf.round(scale * tf.cast(size, tf.float32) / 2), tf.int32), 2)
    kept = tf.minimum(kept, size)
    corner = 2 * tf.cast(place * tf.cast((size - kept) // 2 + 1, tf.float32), tf.int32)
    corner = tf.minimum(corner, size - kept)
    frames = tf.slice(window["frames"], [0, *tf.unstack(corner), 0], [-1, *tf.unstack(kept), -1])
    frames = tf.ensure_shape(_resize(frames, size), window["frames"].shape)
    return {**window, "frames": frames, **_boxes_in(window, corner, kept, size)}


def shifted(window: dict, offset: tf.Tensor) -> dict:
    """Moves the view of every frame by whole pixels; what enters is grey.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes and tracks [T, N] and more.
      offset: [2] int32, pixels down and right; may be negative.
    """
    size = tf.shape(window["frames"])[1:3]
    before, after = tf.maximum(-offset, 0), tf.maximum(offset, 0)
    frames = tf.pad(
        window["frames"],
        [[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]],
        constant_values=tf.constant(PADDING_GREY, tf.uint8))
    frames = tf.slice(frames, [0, *tf.unstack(after), 0], [-1, *tf.unstack(size), -1])
    frames = tf.ensure_shape(frames, window["frames"].shape)
    return {**window, "frames": frames, **_boxes_in(window, offset, size, size)}


def _boxes_in(window, corner, kept, size):
    """Objects in the view that starts at `corner` and is `kept` pixels large, clipped to it.

    An object whose centre has left the view is dropped.
    """
    corner, kept, size = (tf.tile(tf.cast(v, tf.float32), [2]) for v in (corner, kept, size))
    boxes = (window["boxes"] * size - corner) / kept
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = tf.reduce_all((centre >= 0) & (centre <= 1), axis=-1) & (window["classes"] > 0)
    return {
        "boxes": tf.where(inside[..., None], tf.clip_by_value(boxes, 0., 1.), 0.),
        "classes": tf.where(inside, window["classes"], 0),
        "tracks": tf.where(inside, window["tracks"], PADDING_TRACK),
    }


def recolored(frames: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """One change of saturation, contrast and brightness for all frames of a window.

    Args:
      frames: [T, H, W, 3] uint8.
      draws: [3] float in [0, 1): positions in the ranges of saturation, contrast, brightness.

    Returns:
      [T, H, W, 3] uint8.
    """
    low = tf.constant([SATURATION_RANGE[0], CONTRAST_RANGE[0], -BRIGHTNESS_DELTA])
    high = tf.constant([SATURATION_RANGE[1], CONTRAST_RANGE[1], BRIGHTNESS_DELTA])
    saturation, contrast, brightness = tf.unstack(low + (high - low) * draws)
    # All three are linear in the colours, so one 3x3 matrix and an offset do it in a pass.
    weights = tf.constant([.299, .587, .114])
    grey = tf.ones([3, 1]) * weights
    matrix = contrast * (saturation * tf.eye(3) + (1 - saturation) * grey)
    values = tf.cast(frames, tf.float32)
    mean = tf.reduce_mean(values, axis=(0, 1, 2))
    level = (1 - contrast) * tf.reduce_sum(mean * weights) + brightness
    changed = tf.linalg.matmul(values, matrix, transpose_b=True) + level
    return tf.cast(tf.clip_by_value(tf.round(changed), 0., 255.), tf.uint8)
