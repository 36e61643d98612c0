r"""Measures the evaluators and the input pipeline.

  python -m memvid_tf.data convert --dataset=davis2016 --source=DAVIS --output=data/davis320 \
    --train_part=0.7
  python -m benchmarks.data --input=data/davis320 --output=benchmarks/results/data

The input pipeline hands out clips of six frames at 320 px with the augmentation of
configs/interleaved.yaml; the limit is decoding the same JPEGs and doing nothing with them. The
evaluator of ImageNet VID scores as many frames as VID's validation set has, of random detections.
Times are processor seconds, which other programs on the machine disturb least.
"""

import itertools
import time

from absl import flags

from benchmarks import pages
from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "input", "", "Data set with a split train, as convert writes it. Example: --input=data/davis320"
)
flags.DEFINE_integer("clips", 200, "Clips that a turn reads. Example: --clips=200", 1)
flags.DEFINE_integer("repeats", 3, "Turns of each way of reading. Example: --repeats=3", 1)
flags.DEFINE_integer("frames", 176_000, "Frames to score. Example: --frames=176000", 300)
flags.DEFINE_integer("detections", 20, "Detections of a frame. Example: --detections=20", 3)
flags.DEFINE_string(
    "output",
    "",
    "Results, as PATH.json and PATH.md; by default they are only "
    "printed. Example: --output=benchmarks/results/data",
)

UNROLL_FRAMES, IMAGE_SIZE, BATCH = 6, (320, 320), 12
CLASSES, CLIP_FRAMES = 30, 300
WAYS = {
    "limit": "JPEG decoding alone",
    "plain": "windows without augmentation",
    "augmented": "windows with SSD's patches, flips and colours",
}


def limit(info):
    """Batches of UNROLL_FRAMES decoded pictures for each of BATCH clips."""
    import tensorflow as tf

    from memvid_tf.data import records

    images = [image for clip in records.read_clips(info, "train") for image in clip.images]
    dataset = tf.data.Dataset.from_tensor_slices(images).repeat()
    dataset = dataset.map(tf.io.decode_jpeg, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(BATCH * UNROLL_FRAMES)


def windows(info, **settings):
    """Batches of training windows."""
    from memvid_tf.data import clips as clip_data

    config = clip_data.ClipConfig(
        input_path=str(info.folder),
        unroll_frames=UNROLL_FRAMES,
        image_size=IMAGE_SIZE,
        global_batch_size=BATCH,
        max_objects=info.split("train").statistics["max_objects"],
        **settings,
    )
    return clip_data.clip_dataset(config)


def read_seconds(dataset, batches: int) -> float:
    """Processor seconds of reading some batches, after as many of warm-up as fill the buffers."""
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    start = time.process_time()
    for _ in range(batches):
        next(iterator)
    return time.process_time() - start


def score_seconds(frames: int, detections: int, matching: str) -> float:
    """Processor seconds of scoring random detections in clips of CLIP_FRAMES."""
    import numpy as np

    from memvid_tf.evaluation.vid_map import VidMap

    rng = np.random.default_rng(0)
    made = []
    for _ in range(8):
        corner, side = rng.uniform(0, 0.6, (3, 2)), rng.uniform(0.1, 0.4, (3, 2))
        objects = np.concatenate([corner, corner + side], axis=1)
        classes, truth, found = rng.integers(1, CLASSES + 1, 3), [], []
        for _ in range(CLIP_FRAMES):
            count = rng.integers(1, 4)
            truth.append((objects[:count], classes[:count], np.arange(count)))
            others = rng.uniform(0, 0.5, (detections - 3, 4)) + [0, 0, 0.5, 0.5]
            found.append(
                (
                    np.concatenate([objects + rng.normal(0, 0.02, (3, 4)), others]),
                    rng.random(detections),
                    np.concatenate([classes, rng.integers(1, CLASSES + 1, detections - 3)]),
                )
            )
        made.append((found, truth))
    scores = VidMap(CLASSES, matching=matching)
    start = time.process_time()
    for found, truth in itertools.islice(itertools.cycle(made), frames // CLIP_FRAMES):
        scores.add_clip(found, truth, image_size=(720, 1280))
    scores.result()
    return time.process_time() - start


def measure(info, clips: int, repeats: int, frames: int, detections: int) -> dict:
    """Everything; see `markdown`."""
    import statistics

    from memvid_tf import provenance
    from memvid_tf.evaluation import vid_map

    augmented = {"ssd_crop": True, "max_expand": 4.0, "flip": True, "photometric": True}
    ways = {
        "limit": limit(info),
        "plain": windows(info, flip=False, photometric=False),
        "augmented": windows(info, **augmented),
    }
    batches = -(-clips // BATCH)
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, dataset in ways.items():
            seconds[name].append(read_seconds(dataset, batches))
    return {
        "schema_version": 1,
        "data_set": info.name,
        "clips": batches * BATCH,
        "seconds": seconds,
        "clips_a_second": {
            name: batches * BATCH / statistics.median(s) for name, s in seconds.items()
        },
        "frames": frames // CLIP_FRAMES * CLIP_FRAMES,
        "detections": detections,
        "score_seconds": {
            matching: score_seconds(frames, detections, matching) for matching in vid_map.MATCHING
        },
        "provenance": provenance.describe(),
    }


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    made, rate = result["provenance"], result["clips_a_second"]
    rows = [
        [WAYS[name], f"{value:.1f}", f"{rate['limit'] / value:.2f}"] for name, value in rate.items()
    ]
    scores = [
        [name, f"{value:.1f}", f"{1e6 * value / result['frames']:.0f}"]
        for name, value in result["score_seconds"].items()
    ]
    return "\n".join(
        [
            "# Data and evaluators",
            "",
            f"{made['machine']['processor']}, {made['date']}, version {made['code_version']}. Processor "
            "seconds: a second of wall time has one for each core.",
            "",
            f"## Input: {result['clips']} clips of {UNROLL_FRAMES} frames of "
            f"{IMAGE_SIZE[0]}×{IMAGE_SIZE[1]}, data set {result['data_set']}",
            "",
            tabulate(
                rows,
                ["way of reading", "clips a processor second", "times the limit's work"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            f"## ImageNet VID's evaluator: {result['frames']} frames of {result['detections']} "
            "detections",
            "",
            tabulate(
                scores,
                ["matching", "seconds", "µs a frame"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.input:
        raise errors.UserError("--input is missing, for example --input=data/davis320")
    from memvid_tf.data import records

    info = records.read_info(FLAGS.input)
    result = measure(info, FLAGS.clips, FLAGS.repeats, FLAGS.frames, FLAGS.detections)
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    errors.run(main)
