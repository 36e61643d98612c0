"""Makes, converts and shows data sets.

    python -m memvid_tf.data synthetic --output=/tmp/synthetic --preset=demo
    python -m memvid_tf.data synthetic --output=/tmp/mine --preset=demo --train_clips=200 --seed=7
    python -m memvid_tf.data davis --source=/data/DAVIS --output=/tmp/davis --image_size=96,160
    python -m memvid_tf.data show --input=/tmp/synthetic --split=test --output=/tmp/sheet.png
    python -m memvid_tf.data frames --input=/tmp/synthetic --clips=0,1 --output=/tmp/frames

synthetic generates the embedded video set: a preset (tiny: seconds; demo: the set of the README;
paper: 320 px frames), single settings changed by flags. The same set found in --output is reused,
an interrupted run is continued. davis converts the DAVIS 2016 layout. show draws frames of some
clips with boxes, track ids, class labels and masks. frames writes the frames of clips as a folder
of images, as they are stored, for `python -m memvid_tf.detect --video=FOLDER`.
"""

import dataclasses
import pathlib

from absl import flags

from memvid_tf import errors, files
from memvid_tf.data import davis, records, sharding, synthetic

FLAGS = flags.FLAGS

_OUTPUT = flags.DEFINE_string(
    "output", None, "synthetic, davis: folder of the data set, e.g. /tmp/synthetic. "
    "show: the picture's file, e.g. sheet.png. frames: folder of the images.")
_INPUT = flags.DEFINE_string(
    "input", None, "show, frames: folder of the data set, e.g. /tmp/synthetic.")
_SOURCE = flags.DEFINE_string(
    "source", None, "davis: folder with JPEGImages/480p and Annotations/480p, e.g. /data/DAVIS.")
_SPLIT = flags.DEFINE_string("split", "test", "show, frames: the split, e.g. train.")
_CLIPS = flags.DEFINE_list("clips", ["0", "1", "2", "3"], "show, frames: clip numbers, e.g. 0,5,9.")
_FRAMES = flags.DEFINE_integer("frames", 6, "show: frames of each clip, e.g. 6.", lower_bound=1)
_PRESET = flags.DEFINE_enum(
    "preset", "demo", sorted(synthetic.PRESETS), "synthetic: the settings to start from.")
_WORKERS = flags.DEFINE_integer(
    "workers", 2, "synthetic, davis: processes that make clips, e.g. 2; 0 makes them in this one.",
    lower_bound=0)
_IMAGE_SIZE = flags.DEFINE_list(
    "image_size", None, "synthetic: side of the frames in pixels, e.g. 96. "
    "davis: height,width, e.g. 96,160, or one number for both.")
_LABEL = flags.DEFINE_string(
    "label", None, "davis: name of the only class, e.g. object; '' makes each sequence a class.")
_CLIP_FRAMES = flags.DEFINE_integer(
    "clip_frames", None, "davis: frames of a training clip, e.g. 24.")
_UNROLL_FRAMES = flags.DEFINE_integer(
    "unroll_frames", None, "davis: the shortest training clip to keep, in frames, e.g. 8.")
_TRAIN_PART = flags.DEFINE_float(
    "train_part", None, "davis: part of each sequence that becomes training clips, e.g. 0.7.")
_JPEG_QUALITY = flags.DEFINE_integer(
    "jpeg_quality", None, "synthetic, davis: quality of the stored frames, e.g. 95.")

# Settings of the synthetic set, each a flag which changes the preset.
_SETTINGS = {
    "num_classes": "classes: 2, 4, 6 or 8",
    "train_clips": "number of training clips, e.g. 1500",
    "test_clips": "number of test clips, e.g. 100",
    "train_clip_frames": "frames of a training clip, e.g. 24",
    "test_clip_frames": "frames of a test clip, e.g. 40",
    "seed": "of everything, e.g. 0",
    "min_objects": "fewest objects in a clip, e.g. 1",
    "max_objects": "most objects in a clip, e.g. 4",
    "min_side": "smallest object, part of the frame's side, e.g. 0.17",
    "max_side": "largest object, part of the frame's side, e.g. 0.38",
    "speed_median": "median speed in object sides a frame, e.g. 0.0105",
    "speed_sigma": "log-normal spread of the speed, e.g. 1.5",
    "max_speed": "fastest object in its sides a frame, e.g. 0.25",
    "camera_speed": "median camera speed in frame sides a frame, e.g. 0.0006",
    "crossing": "part of the objects that enter or leave, e.g. 0.15",
    "scaling": "part of the objects that change size, e.g. 0.4",
    "clutter": "mean number of distractors in view, e.g. 4",
    "noise": "standard deviation of sensor noise in grey levels, e.g. 3",
}
for _field in dataclasses.fields(synthetic.SyntheticConfig):
    if _field.name in _SETTINGS:
        _define = flags.DEFINE_integer if _field.type is int else flags.DEFINE_float
        _define(_field.name, None, f"synthetic: {_SETTINGS[_field.name]}.")

_COMMAND_FLAGS = {
    "synthetic": {"output", "preset", "workers", "image_size", "jpeg_quality", *_SETTINGS},
    "davis": {"output", "source", "workers", "image_size", "label", "clip_frames",
              "unroll_frames", "train_part", "jpeg_quality"},
    "show": {"input", "split", "clips", "frames", "output"},
    "frames": {"input", "split", "clips", "output"},
}


def main(argv: list[str]) -> None:
    """Runs one of the commands."""
    if len(argv) != 2 or argv[1] not in _COMMAND_FLAGS:
        raise errors.UserError(
            f"command {' '.join(argv[1:])!r} is not one of {', '.join(_COMMAND_FLAGS)}; "
            "see python -m memvid_tf.data --help")
    command = argv[1]
    for name in set().union(*_COMMAND_FLAGS.values()) - _COMMAND_FLAGS[command]:
        if FLAGS[name].present:
            raise errors.UserError(f"--{name} is not a flag of {command}; its flags are "
                                   f"{', '.join(sorted(_COMMAND_FLAGS[command]))}")
    if not _OUTPUT.value:
        raise errors.UserError(f"{command} needs --output, e.g. --output=/tmp/{command}")
    if command in ("show", "frames"):
        if not _INPUT.value:
            raise errors.UserError(f"{command} needs --input, e.g. --input=/tmp/synthetic")
        if command == "show" and pathlib.Path(_OUTPUT.value).suffix not in (".png", ".jpg"):
            raise errors.UserError(f"--output {_OUTPUT.value} must end in .png or .jpg")
        info = records.read_info(_INPUT.value)
        clips = _numbers("clips", _CLIPS.value, range(1, 101))
        if not FLAGS["clips"].present:
            clips = [clip for clip in clips if clip < info.split(_SPLIT.value).clips]
        (_show if command == "show" else _write_frames)(info, clips)
    else:
        _write(_synthetic_plan() if command == "synthetic" else _davis_plan())


def _synthetic_plan():
    changes = {name: FLAGS[name].value for name in (*_SETTINGS, "jpeg_quality")
               if FLAGS[name].value is not None}
    if _IMAGE_SIZE.value is not None:
        changes["image_size"] = _numbers("image_size", _IMAGE_SIZE.value, (1,))[0]
    try:
        config = dataclasses.replace(synthetic.PRESETS[_PRESET.value], **changes)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from error
    return synthetic.plan(config)


def _davis_plan():
    if not _SOURCE.value:
        raise errors.UserError("davis needs --source, e.g. --source=/data/DAVIS")
    changes = {name: FLAGS[name].value for name in (
        "label", "clip_frames", "unroll_frames", "train_part", "jpeg_quality")
               if FLAGS[name].value is not None}
    if _IMAGE_SIZE.value is not None:
        size = _numbers("image_size", _IMAGE_SIZE.value, (1, 2))
        changes["image_size"] = (size[0], size[-1])
    try:
        config = davis.DavisConfig(**changes)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from error
    return davis.plan(_SOURCE.value, config)


def _write(plan):
    from tqdm import tqdm

    total = sum(split.clips for split in plan.splits.values())
    try:
        with tqdm(total=total, unit="clip", desc=plan.name, leave=False) as bar:
            info, found = sharding.write_dataset(
                _OUTPUT.value, plan, workers=_WORKERS.value, advance=bar.update)
    except OSError as error:
        raise errors.UserError(f"--output {_OUTPUT.value} cannot be written: {error}") from error
    print(f"{info.folder}: {'found as it should be' if found else 'written'}")
    for name, split in info.splits.items():
        motion = ", ".join(f"{part:.1%} {speed}" for speed, part
                           in split.statistics["motion_split"].items())
        print(f"  {name}: {split.clips} clips, {split.frames} frames, "
              f"{split.statistics['objects_per_frame']:.2f} objects a frame, motion {motion}")


def _show(info, clips):
    import cv2

    from memvid_tf.data import sheet

    output = _OUTPUT.value
    picture = sheet.contact_sheet(info, _SPLIT.value, clips, _FRAMES.value)
    try:
        with files.atomic_path(output) as temporary:
            cv2.imwrite(temporary, picture[..., ::-1])
    except OSError as error:
        raise errors.UserError(f"--output {output} cannot be written: {error}") from error
    print(f"{output}: clips {', '.join(map(str, clips))} of {_SPLIT.value}")


def _write_frames(info, clips):
    try:
        with files.atomic_folder(_OUTPUT.value) as folder:
            count = 0
            for clip in records.pick_clips(info, _SPLIT.value, clips):
                for image in clip.images:
                    suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
                    pathlib.Path(folder, f"{count:06d}.{suffix}").write_bytes(image)
                    count += 1
    except OSError as error:
        raise errors.UserError(f"--output {_OUTPUT.value} cannot be written: {error}") from error
    print(f"{_OUTPUT.value}: {count} frames of clips {', '.join(map(str, clips))}")


def _numbers(name, values, lengths):
    """The whole numbers of a list flag."""
    try:
        numbers = [int(value) for value in values]
    except ValueError as error:
        raise errors.UserError(f"--{name}={','.join(values)} must be whole numbers") from error
    if len(numbers) not in lengths:
        raise errors.UserError(f"--{name}={','.join(values)} has {len(numbers)} numbers, "
                               f"allowed are {min(lengths)}..{max(lengths)}")
    return numbers


if __name__ == "__main__":
    errors.run(main)
