r"""A picture of what the ready bundles see: a row for each, some frames of a clip with what was found.

  python -m benchmarks.pictures --output=benchmarks/results/seen.jpg
"""

import numpy as np
from absl import flags

from benchmarks import card
from memvid_tf import errors
from memvid_tf.models import zoo

FLAGS = flags.FLAGS
FIRST, EVERY, COLUMNS = 6, 2, 4  # frames that are shown
GAP_PIXELS = 6
JPEG_QUALITY = 80


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string(
        "output", "benchmarks/results/seen.jpg", "The picture. Example: --output=seen.jpg"
    )
    flags.DEFINE_integer("clip", 0, "Test clip of each bundle's set. Example: --clip=3", 0)


def seen(entry: zoo.Entry, clip: int) -> list[np.ndarray]:
    """Frames of a clip as `memvid_tf.detect` draws them: [H, W, 3] uint8 RGB each.

    Args:
      entry: with a ready bundle, which runs in the mode that learned where or when to look.
      clip: number of the test clip.
    """
    from memvid_tf.data.clips import ClipConfig
    from memvid_tf.runtime import annotate, schedules
    from memvid_tf.runtime.bundle import Bundle
    from memvid_tf.runtime.detector import InterleavedDetector
    from memvid_tf.runtime.policy import Policy
    from memvid_tf.runtime.runners import SyncRunner
    from memvid_tf.runtime.windowed import LEARNED, WindowRunner

    bundle = Bundle.load(entry.bundle)
    windowed = bundle.manifest.system != "interleaved"
    if windowed:
        runner, draw = WindowRunner(bundle, LEARNED), annotate.annotate_windows
    else:
        schedule = schedules.AdaptiveSchedule(Policy(bundle))
        runner, draw = SyncRunner(InterleavedDetector(bundle), schedule), annotate.annotate
    data = ClipConfig(bundle.manifest.config["task"]["validation_data"])
    data.global_batch_size = 1
    with card.preset_clips(data, entry.card["preset"], clip + 1) as stream:
        frames = list(stream.as_numpy_iterator())[clip]["frames"][0]
    end = FIRST + EVERY * COLUMNS
    results = runner.run(iter(frames[:end]))
    drawn = [draw(frame, result, bundle.labels) for frame, result in zip(frames[:end], results)]
    return drawn[FIRST::EVERY]


def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Rows of frames as one picture on white, [H, W, 3] uint8 RGB; frames of a row are alike."""
    lines = []
    for frames in rows:
        gap = ((0, GAP_PIXELS), (0, GAP_PIXELS), (0, 0))
        lines.append(np.concatenate([np.pad(f, gap, constant_values=255) for f in frames], 1))
    width = max(line.shape[1] for line in lines)
    return np.concatenate(
        [
            np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255)
            for line in lines
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    import cv2

    from memvid_tf import files

    picture = sheet([seen(entry, FLAGS.clip) for entry in zoo.ENTRIES if entry.bundle])
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    data = cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()
    files.write_bytes(FLAGS.output, data)
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
