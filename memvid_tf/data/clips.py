"""Training windows and evaluation clips from clip records, as a `tf.data.Dataset`.

A training example is a window of `unroll_frames` frames of one clip, at a random start and a
random temporal stride, with one flip, crop and colour change for the whole window (LFS section
4.1 unrolls six steps). An evaluation example is the beginning of a clip, as stored. A still image
becomes a window by a view that moves and zooms over it; `still_paths` mixes them into training.

The training stream is a pure function of (seed, step). Example n belongs to epoch n // clips; a
seeded permutation of the epoch says which clip it is; the record is read by its byte offset; the
window and the augmentation are drawn from a counter-based generator keyed by (seed, n). So there
is no shuffle buffer to refill, `start_step` resumes exactly at no cost, and every epoch is a full
shuffle. Only the frames that are used are decoded.

Differs from the paper: LFS gives neither the share of still images nor the way they move.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Optional, Tuple

import numpy as np
import tensorflow as tf
from absl import logging
from official.core import config_definitions as cfg

from memvid_tf.data import augmentation, reading, records
from memvid_tf.data.augmentation import PADDING_TRACK


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
      masks: whether clips bring the foreground: what any object covers. A frame without a stored
        mask, as of a set that has boxes alone, is background.
      max_stride: training windows take every 1st to max_stride-th frame.
      time_reversal: turn half of the training windows round in time.
      flip: mirror half of the training windows left to right.
      photometric: change brightness, contrast and saturation of training windows.
      random_crop: crop training windows to between crop_min_scale and 1 of each side and resize.
      crop_min_scale: 1 switches the zoom off: resizing destroys the synthetic set's textures.
      max_shift: shift training windows by up to this part of a side, in even pixels, so that
        the 2x2 box mean of a texture stays what it was; 0 is off.
      ssd_crop: zoom out of and take patches from training windows as SSD does; replaces
        random_crop.
      max_expand: the largest zoom out of ssd_crop; 1 is off.
      still_paths: folders of still images to mix into training, with the same classes and split.
      still_share: part of the training examples that are still images, in steps of .001.
      still_min_scale: the smallest view that moves over a still image, part of its side.
      still_motion: how it moves: "drift", a little and evenly, or "between_boxes", from one random
        box to another (PW 3.4).
      max_unreadable: part of the clips that training may skip because a frame cannot be decoded;
        with more it stops and lists them.
      seed: of order, windows and augmentation.
      drop_remainder: evaluation only: drop the last batch when it is not full.
    """

    split: str = "train"
    unroll_frames: int = 8
    image_size: Tuple[int, int] = (96, 96)
    max_objects: int = 8
    masks: bool = False
    max_stride: int = 1
    time_reversal: bool = False
    flip: bool = True
    photometric: bool = True
    random_crop: bool = False
    crop_min_scale: float = 1.0
    max_shift: float = 0.0
    ssd_crop: bool = False
    max_expand: float = 1.0
    still_paths: Tuple[str, ...] = ()
    still_share: float = 0.0
    still_min_scale: float = 0.5
    still_motion: str = "drift"
    max_unreadable: float = 0.0
    is_training: bool = True
    global_batch_size: int = 8
    seed: Optional[int] = 0
    drop_remainder: bool = False


def clip_dataset(
    config: ClipConfig,
    input_context: tf.distribute.InputContext | None = None,
    start_step: int = 0,
    names: bool = False,
    warn: Callable[[str], None] = logging.warning,
) -> tf.data.Dataset:
    """Batches of clips.

    Args:
      config: see `ClipConfig`.
      input_context: of `tf.distribute`; the pipelines together give what one would give.
      start_step: training only: the first global step of the stream.
      names: whether to add clip_id, which accelerators cannot hold.
      warn: told of each clip that is skipped, see `ClipConfig.max_unreadable`.

    Returns:
      A data set, endless in training and in file order otherwise, of dicts:
        frames: [B, T, H, W, 3] uint8; zeros beyond num_frames.
        boxes: [B, T, N, 4] float32 `[ymin, xmin, ymax, xmax]` in [0, 1]; zeros where padded.
        classes: [B, T, N] int32, 1..C; 0 where padded.
        tracks: [B, T, N] int32; -1 where padded.
        masks: [B, T, H, W, 1] uint8, 1 in the foreground; where asked for.
        num_frames: [B] int32, frames that the clip really has; 0 for a clip that only fills a step
          of several replicas.
        source_size: [B, 2] int32, (height, width) of the frames before they were stored.
        clip_index: [B] int32, position of the clip in the split; still images follow.
        clip_id: [B] string, where asked for.

    Raises:
      ValueError: when the data set or the split is missing or damaged, or does not fit the
        configuration; the message names the path and what makes a data set. While reading, a frame
        that cannot be decoded is a `tf.errors.InvalidArgumentError` with a DatasetError's text.
    """
    info = records.read_info(config.input_path)
    split = info.split(config.split)
    frames = _checked_frames(config, info, split, start_step)
    stills = _still_sets(config, info)
    table = reading.record_table([(of, config.split) for of in (info, *stills)])
    pipelines = input_context.num_input_pipelines if input_context else 1
    pipeline = input_context.input_pipeline_id if input_context else 0
    batch = config.global_batch_size
    if input_context and config.is_training:
        batch = input_context.get_per_replica_batch_size(batch)
    elif input_context:  # the last batch is filled anyhow, so the others may be larger
        batch = -(-batch // input_context.num_replicas_in_sync)
    if config.is_training:
        dataset = _training_examples(
            config, split.clips, len(table.shard), start_step, pipelines, pipeline
        )
    else:
        # Replicas cannot work on nothing: in their last step some repeat the last clip, without
        # frames.
        replicas = input_context.num_replicas_in_sync // pipelines if input_context else 1
        step = batch * replicas if replicas > 1 else 1
        filled = -(-split.clips // step) * step
        dataset = tf.data.Dataset.range(filled).shard(pipelines, pipeline)
        dataset = dataset.map(lambda index: (index, tf.minimum(index, split.clips - 1)))
    allowed = int(config.max_unreadable * len(table.shard)) if config.is_training else 0
    skipped = reading.Skipped(table, allowed, warn)

    def read(number, clip):
        place = tf.data.Dataset.from_tensors((number, clip))
        return tf.data.Dataset.zip(place, reading.read_record(table, clip))

    dataset = dataset.flat_map(read)
    dataset = dataset.map(
        lambda place, record: (tf.strings.length(record) > 0, place[1], (*place, record))
    )
    dataset = reading.keep_readable(dataset, skipped)
    make = _whole_clip
    if config.is_training:
        has_stills = bool(stills) or split.clip_frames == 1
        make = functools.partial(_training_window, has_stills=has_stills)
    size = (int(config.image_size[0]), int(config.image_size[1]))

    def example(number, clip, serialized):
        record = _parse(serialized)
        readable, found = make(config, record, number, frames, size)
        if config.masks:
            found["masks"] = augmentation.decided(found["masks"])
        found["clip_index"] = tf.cast(clip, tf.int32)
        found["source_size"] = record["source_size"]
        if not config.is_training:
            found["num_frames"] *= tf.cast(number < split.clips, tf.int32)
        return readable, clip, {**found, "clip_id": record["clip_id"]} if names else found

    dataset = dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = reading.keep_readable(dataset, skipped)
    dataset = dataset.batch(batch, drop_remainder=config.is_training or config.drop_remainder)
    dataset = dataset.prefetch(config.prefetch_buffer_size or tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = True
    # Clips are worked on in parallel; to divide the operations of one as well only costs.
    options.threading.max_intra_op_parallelism = 1
    # Sharding is done above; tf.distribute must not do it a second time.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _checked_frames(config, info, split, start_step):
    """T; raises ValueError when the configuration does not fit the data set."""
    longest, shortest = split.clip_frames, split.statistics["min_clip_frames"]
    stills = config.is_training and longest == 1
    frames = config.unroll_frames
    if not config.is_training and frames == 0:
        frames = longest
    checks = (
        ("unroll_frames", frames >= 1, "at least 1; 0 only in evaluation"),
        ("split", split.statistics["objects"] > 0, f"{info.folder} has no object in it"),
        (
            "unroll_frames",
            not config.is_training or stills or frames <= shortest,
            f"at most {shortest}, the shortest clip of {config.split} in {info.folder}",
        ),
        (
            "image_size",
            len(config.image_size) == 2 and min(config.image_size) >= 1,
            "(height, width)",
        ),
        (
            "max_objects",
            config.max_objects >= split.statistics["max_objects"],
            f"at least {split.statistics['max_objects']}, which a frame of {config.split} holds",
        ),
        ("max_stride", config.max_stride >= 1, "at least 1"),
        ("crop_min_scale", 0.1 <= config.crop_min_scale <= 1, "in .1..1"),
        ("max_shift", 0 <= config.max_shift < 0.5, "in 0...5"),
        ("max_expand", 1 <= config.max_expand <= 8, "in 1..8"),
        ("max_expand", config.ssd_crop or config.max_expand == 1, "1 without ssd_crop"),
        ("ssd_crop", not (config.ssd_crop and config.random_crop), "false with random_crop"),
        ("still_share", 0 <= config.still_share < 1, "in 0..1, below 1"),
        (
            "still_share",
            bool(config.still_paths) == (config.still_share > 0),
            "above 0 with still_paths, 0 without",
        ),
        ("still_min_scale", 0.1 <= config.still_min_scale <= 1, "in .1..1"),
        (
            "still_motion",
            config.still_motion in augmentation.STILL_MOTIONS,
            f"one of {', '.join(augmentation.STILL_MOTIONS)}",
        ),
        ("max_unreadable", 0 <= config.max_unreadable < 1, "in 0..1, below 1"),
        ("global_batch_size", config.global_batch_size >= 1, "at least 1"),
        ("seed", config.seed is not None and 0 <= config.seed < 2**31, "in 0..2^31-1"),
        ("tfds_name", not config.tfds_name, "empty: clips are read from input_path"),
    )
    for name, right, allowed in checks:
        if not right:
            raise records.DatasetError(
                f"{name} {getattr(config, name)!r} is not allowed: {allowed}"
            )
    if start_step < 0 or (start_step and not config.is_training):
        raise ValueError(
            f"start_step {start_step} is not allowed: at least 0 in training, 0 in evaluation"
        )
    return frames


def _still_sets(config, info):
    """The data sets of still images; raises DatasetError where they do not fit."""
    found = []
    for path in config.still_paths if config.is_training else ():
        stills = records.read_info(path)
        split = stills.split(config.split)
        if split.clip_frames != 1:
            raise records.DatasetError(
                f"still_paths: {path} holds clips of up to "
                f"{split.clip_frames} frames, wanted are still images"
            )
        if stills.labels != info.labels:
            raise records.DatasetError(
                f"still_paths: {path} has the classes {', '.join(stills.labels)}, "
                f"{info.folder} has {', '.join(info.labels)}"
            )
        if split.statistics["max_objects"] > config.max_objects:
            raise records.DatasetError(
                f"max_objects {config.max_objects} is not allowed: at least "
                f"{split.statistics['max_objects']}, which a picture of {path} holds"
            )
        found.append(stills)
    return found


def _training_examples(config, clips, total, start_step, pipelines, pipeline):
    """Endless (example number, clip) of one of the input pipelines, int64.

    Of `total` records the first `clips` are the data set's own, the others are still images.
    """
    batch = config.global_batch_size
    if batch % pipelines:
        raise ValueError(f"global_batch_size {batch} does not divide among {pipelines} pipelines")
    local = batch // pipelines
    seed = tf.constant(config.seed, tf.int64)
    per_mille = round(1000 * config.still_share)

    def shuffled(number, count, stream):
        # Each count of examples is an epoch: a permutation of its own.
        epoch, place = number // count, number % count
        return tf.random.experimental.index_shuffle(
            place, tf.stack([seed, stream * (epoch + 1) - (stream + 1) // 2]), count - 1
        )

    def pick(position):
        # Of every global batch a pipeline takes its own run of examples.
        number = position // local * batch + pipeline * local + position % local
        before = number * per_mille // 1000
        clip = shuffled(number - before, clips, 1)
        if per_mille:
            is_still = (number + 1) * per_mille // 1000 > before
            clip = tf.where(is_still, clips + shuffled(before, total - clips, -1), clip)
        return number, clip

    return tf.data.Dataset.range(start_step * local, np.iinfo(np.int64).max // batch).map(pick)


def _parse(serialized):
    """The record's lists; objects are padded to the fullest frame of the clip."""
    integer = tf.io.FixedLenFeature([], tf.int64)
    same = tf.io.FixedLenFeature([], tf.int64, default_value=0)
    context, lists = tf.io.parse_single_sequence_example(
        serialized,
        context_features={
            "clip/id": tf.io.FixedLenFeature([], tf.string),
            "clip/height": integer,
            "clip/width": integer,
            # Missing where frames are stored as they were.
            "clip/source_height": same,
            "clip/source_width": same,
        },
        sequence_features={
            "image/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
            "object/bbox": tf.io.VarLenFeature(tf.float32),
            "object/class": tf.io.VarLenFeature(tf.int64),
            "object/track": tf.io.VarLenFeature(tf.int64),
            "mask/encoded": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
        },
    )
    boxes = tf.sparse.to_dense(lists["object/bbox"])
    stored = tf.stack([context["clip/height"], context["clip/width"]])
    source = tf.stack([context["clip/source_height"], context["clip/source_width"]])
    return {
        "clip_id": context["clip/id"],
        "source_size": tf.cast(tf.where(source > 0, source, stored), tf.int32),
        "stored_size": tf.cast(stored, tf.int32),
        "images": lists["image/encoded"],
        "masks": lists["mask/encoded"],
        "boxes": tf.reshape(boxes, [tf.shape(boxes)[0], -1, 4]),
        "classes": tf.cast(tf.sparse.to_dense(lists["object/class"]), tf.int32),
        "tracks": tf.cast(
            tf.sparse.to_dense(lists["object/track"], default_value=PADDING_TRACK), tf.int32
        ),
    }


def _select(config, clip, used, frames, size):
    """Whether the frames at `used` [n] can be decoded, and the window: T frames, N objects."""
    images, readable = reading.decode_if_possible(
        tf.gather(clip["images"], used), lambda data: _decode(data, size), (*size, 3)
    )
    missing = [[0, frames - tf.shape(images)[0]], [0, 0], [0, 0], [0, 0]]
    window = {
        "frames": tf.ensure_shape(tf.pad(images, missing), (frames, *size, 3)),
        **_truth(config, clip, used, frames),
    }
    if config.masks:
        masks = augmentation.resized(_decoded_masks(clip, used), size)
        window["masks"] = tf.ensure_shape(tf.pad(masks, missing), (frames, *size, 1))
    return readable, window


def _truth(config, clip, used, frames):
    """The objects of the frames at `used` [n], padded to T frames and N objects."""
    room = config.max_objects
    missing = frames - tf.shape(used)[0]

    def padded(name, rest, value):
        array = tf.gather(clip[name], used)
        objects = tf.shape(array)[1]
        array = tf.pad(
            array, [[0, missing], [0, room - objects]] + [[0, 0]] * len(rest), constant_values=value
        )
        return tf.ensure_shape(array, (frames, room, *rest))

    return {
        "boxes": padded("boxes", (4,), 0.0),
        "classes": padded("classes", (), 0),
        "tracks": padded("tracks", (), PADDING_TRACK),
        "num_frames": tf.shape(used)[0],
    }


def _decoded_masks(clip, used):
    """The masks of the frames at `used` [n] as pictures [n, h, w, 1], 255 in the foreground.

    A frame without a stored mask has one that shows nothing.
    """

    def decode(data):
        return tf.cond(
            tf.strings.length(data) > 0,
            lambda: 255 * tf.cast(tf.io.decode_png(data, channels=1) > 0, tf.uint8),
            lambda: tf.zeros(tf.concat([clip["stored_size"], [1]], 0), tf.uint8),
        )

    spec = tf.TensorSpec((None, None, 1), tf.uint8)
    return tf.map_fn(decode, tf.gather(clip["masks"], used), fn_output_signature=spec)


def _decode_stored(data):
    # It decodes PNG too. Its default is a faster transform, up to three grey levels from what the
    # runtime's reader makes of the same file.
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _decode(data, size):
    image = _decode_stored(data)
    same = tf.reduce_all(tf.equal(tf.shape(image)[:2], size))
    return tf.cond(same, lambda: image, lambda: augmentation.resized(image, size))


def _whole_clip(config, clip, number, frames, size):
    del number  # Nothing is random.
    count = tf.minimum(tf.shape(clip["images"])[0], frames)
    return _select(config, clip, tf.range(count), frames, size)


def _training_window(config, clip, number, frames, size, has_stills):
    # One generator for each decision: a new one must not change what the others draw.
    seeds = tf.random.split([tf.constant(config.seed, tf.int64), number], 7, alg="philox")

    def uniform(which, low, high, dtype=tf.float32):
        return tf.random.stateless_uniform([], seeds[which], low, high, dtype, alg="philox")

    length = tf.shape(clip["images"])[0]
    widest = tf.minimum(config.max_stride, (length - 1) // max(1, frames - 1))
    stride = uniform(0, 1, tf.maximum(widest, 1) + 1, tf.int32)
    span = (frames - 1) * stride
    # A still image has one frame and no span; which one is used is not asked.
    used = uniform(1, 0, tf.maximum(length - span, 1), tf.int32) + stride * tf.range(frames)
    if config.time_reversal:
        used = tf.cond(uniform(2, 0, 2, tf.int32) > 0, lambda: used[::-1], lambda: used)

    def video():
        if config.ssd_crop:
            return _viewed(config, clip, used, frames, size, seeds[4])
        return _select(config, clip, used, frames, size)

    def still():
        return _viewed(config, clip, tf.zeros([frames], tf.int32), frames, size, seeds[4])

    readable, window = tf.cond(length > 1, video, still) if has_stills else video()
    if config.flip:
        window = tf.cond(
            uniform(3, 0, 2, tf.int32) > 0, lambda: augmentation.flipped(window), lambda: window
        )
    if config.random_crop and config.crop_min_scale < 1:
        draws = tf.random.stateless_uniform([3], seeds[4], alg="philox")
        scale = config.crop_min_scale + (1 - config.crop_min_scale) * draws[0]
        window = augmentation.cropped(window, scale, draws[1:])
    if config.max_shift > 0:
        draws = tf.random.stateless_uniform([2], seeds[5], -1.0, 1.0, alg="philox")
        limit = config.max_shift * tf.cast(size, tf.float32)
        window = augmentation.shifted(window, 2 * tf.cast(tf.round(draws * limit / 2), tf.int32))
    if config.photometric:
        draws = tf.random.stateless_uniform([3], seeds[6], alg="philox")
        window["frames"] = augmentation.recolored(window["frames"], draws)
    return readable, window


def _viewed(config, clip, used, frames, size, seed):
    """A window seen through SSD's patch, and a moving view where the clip is a still image."""
    seeds = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    still = tf.equal(tf.shape(clip["images"])[0], 1)
    first = tf.gather(clip["images"], tf.cond(still, lambda: used[:1], lambda: used))
    pictures, readable = reading.decode_if_possible(first, _decode_stored, (None, None, 3))
    whole = tf.cast(tf.shape(pictures)[1:3], tf.float32)
    window = {"frames": pictures, **_truth(config, clip, used, frames)}
    if config.masks:
        shown = tf.cond(still, lambda: used[:1], lambda: used)
        window["masks"] = _decoded_masks(clip, shown)
    corner, extent = tf.zeros([2]), whole
    if config.ssd_crop:
        middle = frames // 2
        boxes = tf.boolean_mask(window["boxes"][middle], window["classes"][middle] > 0)
        corner, extent = augmentation.random_patch(whole, boxes, config.max_expand, seeds[0])
    if config.still_motion == "drift":
        start, part = augmentation.still_motion(frames, config.still_min_scale, seeds[1])
    else:
        objects = tf.boolean_mask(window["boxes"][0], window["classes"][0] > 0)
        in_patch = (objects * tf.tile(whole, [2]) - tf.tile(corner, [2])) / tf.tile(extent, [2])
        start, part = augmentation.motion_between_boxes(
            frames, config.still_min_scale, in_patch, seeds[1]
        )
    start = tf.where(still, start, 0.0)
    part = tf.where(still, part, 1.0)
    return readable, augmentation.viewed(window, corner + start * extent, part * extent, size)
