r"""A picture of synthetic clips: what an interleaved bundle found in them, and the truth.

  python -m benchmarks.sheets --bundle=demo/bundles/int8 --input=demo/data --clips=0,1 \
    --output=demo/seen.png

A clip gets two rows. Columns are frames of one period of the schedule, from the one that f0 sees to
the one whose memory is oldest. The upper row shows what the extractor was given: f1 gets half the
size, in which textures are gone, and what names them is the memory. Clips are rendered anew, which
needs no TensorFlow.
"""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from absl import flags

from memvid_tf import errors, files
from memvid_tf.data import activity, records, synthetic
from memvid_tf.runtime.annotate import annotate, draw_truth
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector
from memvid_tf.runtime.preprocess import box_mean
from memvid_tf.runtime.runners import SyncRunner
from memvid_tf.runtime.schedules import FixedSchedule, Schedule

FLAGS = flags.FLAGS
GAP_PX, LINE_PX = 6, 30
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Objects(NamedTuple):
    """What is really in a frame, what is in front first.

    Attributes:
      boxes: [n, 4] float32 (ymin, xmin, ymax, xmax), normalised.
      classes: [n], from 0.
    """

    boxes: np.ndarray
    classes: np.ndarray


class Clip(NamedTuple):
    """A clip with its truth.

    Attributes:
      title: what it is called in the picture.
      frames: [T, H, W, 3] uint8 RGB.
      truth: one entry a frame.
    """

    title: str
    frames: np.ndarray
    truth: Sequence[Objects]


def config_of(info: records.DatasetInfo) -> synthetic.SyntheticConfig:
    """How a synthetic set was made.

    Raises:
      UserError: if it is another set.
    """
    if info.name != "synthetic":
        raise errors.UserError(
            f"{info.folder} is the set {info.name!r}, not a synthetic one; memvid_tf.data show "
            "draws its truth"
        )
    events = info.config.get("events")
    return synthetic.SyntheticConfig(
        **{**info.config, "events": events and activity.EventConfig(**events)}
    )


def rendered(config: synthetic.SyntheticConfig, index: int) -> Clip:
    """A test clip of a synthetic set."""
    frames, owners, tracks = synthetic.render_clip(config, "test", index)
    truth = []
    for time, owner in enumerate(owners):
        boxes, ids, _ = synthetic.frame_truth(owner, tracks, time)  # the hindmost first
        classes = np.array([tracks[i].class_id - 1 for i in ids], np.int64)
        truth.append(Objects(boxes[::-1], classes[::-1]))
    return Clip(f"test clip {index}", frames, truth)


def period(tau: int) -> list[int]:
    """Four frames of the second period of a schedule: f0's, and three of increasing age."""
    return [tau + 1 + age for age in sorted({0, min(1, tau), (tau + 1) // 2, tau})]


def rows(bundle: Bundle, clip: Clip, schedule: Schedule, shown: Sequence[int]) -> list[np.ndarray]:
    """Two rows of frames with a line of text above each.

    Args:
      bundle: of an interleaved detector.
      clip: what it sees, from an empty memory on.
      schedule: which extractor runs.
      shown: numbers of the frames that are drawn.

    Returns:
      Images [H, W, 3] uint8 RGB of one width.
    """
    end, labels = max(shown) + 1, bundle.labels
    results = list(SyncRunner(InterleavedDetector(bundle), schedule).run(clip.frames[:end]))
    found = [annotate(given(bundle, clip.frames[t], results[t].extractor), results[t], labels)
             for t in shown]  # fmt: skip
    true = [draw_truth(clip.frames[t], *clip.truth[t], labels) for t in shown]
    name, precision = bundle.manifest.name, bundle.manifest.precision
    if precision not in name:
        name = f"{name} ({precision})"
    return [
        _row(f"{clip.title}: what f0 and f1 are given, and what bundle {name} found in it", found),
        _row(f"{clip.title}: the truth", true),
    ]


def given(bundle: Bundle, frame: np.ndarray, extractor: str) -> np.ndarray:
    """What an extractor sees of a frame, at the frame's size: [H, W, 3] uint8 RGB."""
    sizes = bundle.manifest.image.sizes
    factor = sizes["f0"][0] // sizes[extractor][0]
    return box_mean(frame, factor).repeat(factor, axis=0).repeat(factor, axis=1)


def write(path: str, images: Iterable[np.ndarray]) -> None:
    """Writes images of one width, one below the other, as PNG or JPEG."""
    picture = np.concatenate(list(images))
    done, data = cv2.imencode(os.path.splitext(path)[1], picture[..., ::-1])
    if not done:
        raise errors.UserError(f"{path!r} cannot be written as a picture: .png or .jpg")
    with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(data.tobytes())


def _row(title, frames):
    gap = ((0, GAP_PX), (0, GAP_PX), (0, 0))
    line = np.concatenate([np.pad(frame, gap, constant_values=255) for frame in frames], axis=1)
    head = np.full((LINE_PX, line.shape[1], 3), 255, np.uint8)
    cv2.putText(head, title, (2, LINE_PX - 9), _FONT, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([head, line])


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("bundle", None, "Interleaved bundle. Example: --bundle=bundles/tiny")
    flags.DEFINE_string("input", None, "Synthetic data set. Example: --input=data/synthetic")
    flags.DEFINE_list("clips", ["0", "1"], "Numbers of test clips. Example: --clips=0,3")
    flags.DEFINE_string("output", None, "The picture. Example: --output=seen.png")


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    for name in ("bundle", "input", "output"):
        if not FLAGS[name].value:
            raise errors.UserError(f"--{name} is missing; see --help")
    bundle, info = Bundle.load(FLAGS.bundle), records.read_info(FLAGS.input)
    if bundle.manifest.system != "interleaved":
        raise errors.UserError(
            f"--bundle={FLAGS.bundle} is of system {bundle.manifest.system!r}, not 'interleaved'; "
            "memvid_tf.detect shows what it finds"
        )
    config = config_of(info)
    info.check_labels(bundle.labels)
    for word in FLAGS.clips:
        if not word.isdecimal() or int(word) >= config.test_clips:
            raise errors.UserError(f"--clips={word!r} is not in 0..{config.test_clips - 1}")
    schedule = FixedSchedule(bundle.manifest.tau)
    shown, pictures = period(schedule.tau), []
    for word in FLAGS.clips:
        pictures += rows(bundle, rendered(config, int(word)), schedule, shown)
    write(FLAGS.output, pictures)
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
