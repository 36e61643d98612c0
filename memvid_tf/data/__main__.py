r"""Makes, converts and shows data sets.

    python -m memvid_tf.data synthetic --output=/tmp/synthetic --preset=demo
    python -m memvid_tf.data synthetic --output=/tmp/mine --preset=demo --train_clips=200 --seed=7
    python -m memvid_tf.data convert --dataset=imagenet_vid --source=/data/ILSVRC2015 \
      --output=/data/vid
    python -m memvid_tf.data convert --dataset=davis2016 --source=/data/DAVIS --output=/tmp/davis \
      --train_part=0.7 --image_size=96,160
    python -m memvid_tf.data check --dataset=imagenet_vid --source=/data/ILSVRC2015
    python -m memvid_tf.data check --input=/tmp/synthetic
    python -m memvid_tf.data show --input=/tmp/synthetic --split=test --output=/tmp/sheet.png
    python -m memvid_tf.data frames --input=/tmp/synthetic --clips=0,1 --output=/tmp/frames

synthetic generates the embedded video set: a preset (tiny: seconds; demo: the set of the README;
paper: 320 px frames; eventful: long clips with quiet stretches, bursts and cuts), single settings
changed by flags. convert makes clips of a real data set on
disk. Both reuse the same set found in --output, continue an interrupted run, and leave SHA256SUMS
for `sha256sum -c`. check says in plain words what is missing or wrong in a data set, before it is
converted (--dataset, --source) or after (--input); its exit code is 1 if it finds anything. show
draws frames of some clips with boxes, track ids, class labels and masks. frames writes the frames of
clips as a folder of images, as they are stored, for `python -m memvid_tf.detect --video=FOLDER`; it
replaces only a folder that it wrote.
"""

import dataclasses
import functools
import pathlib

from absl import flags

from memvid_tf import errors, files, locks
from memvid_tf.data import conversion, doctor, records, sharding, synthetic
from memvid_tf.data.layouts import counted

FLAGS = flags.FLAGS

_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "synthetic, convert: folder of the data set, e.g. /tmp/synthetic. "
    "show: the picture's file, e.g. sheet.png. frames: folder of the images.",
)
_INPUT = flags.DEFINE_string(
    "input", None, "check, show, frames: folder of the data set, e.g. /tmp/synthetic."
)
_DATASET = flags.DEFINE_enum(
    "dataset",
    None,
    sorted(conversion.LAYOUTS),
    "convert, check: the layout of --source. "
    "imagenet_det and coco2017 are still images in VID's classes; coco2017_boats counts boats as watercraft.",
)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "convert, check: folder of the data set as it was unpacked, e.g. /data/ILSVRC2015.",
)
_SPLIT = flags.DEFINE_string("split", "test", "show, frames: the split, e.g. train.")
_CLIPS = flags.DEFINE_list("clips", ["0", "1", "2", "3"], "show, frames: clip numbers, e.g. 0,5,9.")
_FRAMES = flags.DEFINE_integer("frames", 6, "show: frames of each clip, e.g. 6.", lower_bound=1)
_DECODE = flags.DEFINE_bool(
    "decode",
    True,
    "check: decode every picture, which finds truncated ones; --nodecode reads "
    "only headers and is much faster.",
)
_EVERY = flags.DEFINE_integer(
    "every", 1, "check: look at every n-th frame or still image, e.g. 25.", lower_bound=1
)
_PRESET = flags.DEFINE_enum(
    "preset", "demo", sorted(synthetic.PRESETS), "synthetic: the settings to start from."
)
_WORKERS = flags.DEFINE_integer(
    "workers",
    2,
    "synthetic, convert: processes that make clips, e.g. 2; 0 makes them in this one.",
    lower_bound=0,
)
_IMAGE_SIZE = flags.DEFINE_list(
    "image_size",
    None,
    "synthetic: side of the frames in pixels, e.g. 96. "
    "convert: height,width, e.g. 320,320, or one number for both.",
)
_JPEG_QUALITY = flags.DEFINE_integer(
    "jpeg_quality", None, "synthetic, convert: quality of the stored frames, e.g. 95."
)

_SPLITS = flags.DEFINE_list(
    "splits", [], "convert: the splits to convert, e.g. val; by default all that the data set has."
)

# Settings of a conversion, each a flag which changes the default.
_CONVERSION = {
    "clip_frames": "frames of a training clip, e.g. 24",
    "min_clip_frames": "the shortest training clip to keep, at the end of a video, e.g. 8",
    "eval_clip_frames": "most frames of a clip of the other splits, e.g. 100",
    "train_part": "part of each sequence that becomes training clips instead of the data set's own "
    "splits, DAVIS only, e.g. 0.7",
    "skip_unreadable": "how many clips may be left out because a picture or an annotation cannot be "
    "read, each of which is named, e.g. 10",
}
for _field in dataclasses.fields(conversion.ConversionConfig):
    if _field.name in _CONVERSION:
        _define = flags.DEFINE_integer if _field.type is int else flags.DEFINE_float
        _define(_field.name, None, f"convert: {_CONVERSION[_field.name]}.")

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
    "convert": {
        "output",
        "dataset",
        "source",
        "workers",
        "image_size",
        "jpeg_quality",
        "splits",
        *_CONVERSION,
    },
    "check": {"input", "dataset", "source", "decode", "every"},
    "show": {"input", "split", "clips", "frames", "output"},
    "frames": {"input", "split", "clips", "output"},
}


def main(argv: list[str]) -> int | None:
    """Runs one of the commands; returns 1 if a check finds anything."""
    if len(argv) != 2 or argv[1] not in _COMMAND_FLAGS:
        raise errors.UserError(
            f"command {' '.join(argv[1:])!r} is not one of {', '.join(_COMMAND_FLAGS)}; "
            "see python -m memvid_tf.data --help"
        )
    command = argv[1]
    for name in set().union(*_COMMAND_FLAGS.values()) - _COMMAND_FLAGS[command]:
        if FLAGS[name].present:
            raise errors.UserError(
                f"--{name} is not a flag of {command}; its flags are "
                f"{', '.join(sorted(_COMMAND_FLAGS[command]))}"
            )
    if command == "check":
        return _check()
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
        _write(_synthetic_plan() if command == "synthetic" else _conversion_plan())
    return None


def _synthetic_plan():
    changes = {
        name: FLAGS[name].value
        for name in (*_SETTINGS, "jpeg_quality")
        if FLAGS[name].value is not None
    }
    if _IMAGE_SIZE.value is not None:
        changes["image_size"] = _numbers("image_size", _IMAGE_SIZE.value, (1,))[0]
    try:
        config = dataclasses.replace(synthetic.PRESETS[_PRESET.value], **changes)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from error
    return synthetic.plan(config)


def _conversion_plan():
    from tqdm import tqdm

    layout = _layout("convert")
    changes = {
        name: FLAGS[name].value
        for name in (*_CONVERSION, "jpeg_quality")
        if FLAGS[name].value is not None
    }
    if _IMAGE_SIZE.value is not None:
        size = _numbers("image_size", _IMAGE_SIZE.value, (1, 2))
        changes["image_size"] = (size[0], size[-1])
    changes["splits"] = tuple(_SPLITS.value)
    try:
        config = conversion.ConversionConfig(**changes)
    except ValueError as error:
        raise errors.UserError(f"--{error}") from error
    return conversion.plan(layout, config, functools.partial(tqdm, desc="looking", leave=False))


def _check():
    from tqdm import tqdm

    progress = functools.partial(tqdm, desc="checking", leave=False)
    if _INPUT.value and not (_DATASET.value or _SOURCE.value):
        found = doctor.examine_records(records.read_info(_INPUT.value), progress)
    else:
        found = doctor.examine(_layout("check"), _DECODE.value, _EVERY.value, progress)
    diagnosis = doctor.Diagnosis()
    for finding in found:
        diagnosis.add(finding)
    print(diagnosis.text())
    return 1 if diagnosis.count else 0


def _layout(command):
    if not (_DATASET.value and _SOURCE.value):
        raise errors.UserError(
            f"{command} needs --dataset and --source, e.g. "
            "--dataset=imagenet_vid --source=/data/ILSVRC2015"
        )
    return conversion.open_layout(_DATASET.value, _SOURCE.value)


def _write(plan):
    from tqdm import tqdm

    total = sum(split.clips for split in plan.splits.values())
    try:
        with tqdm(total=total, unit="clip", desc=plan.name, leave=False) as bar:
            info, found = sharding.write_dataset(
                _OUTPUT.value, plan, workers=_WORKERS.value, advance=bar.update
            )
    except OSError as error:
        raise errors.UserError(f"--output {_OUTPUT.value} cannot be written: {error}") from error
    print(f"{info.folder}: {'found as it should be' if found else 'written'}")
    for name, split in info.splits.items():
        for line in _told(name, split):
            print(line)


def _told(name, split):
    """Yields what a split holds, and what was left out of it, in lines."""
    told = split.statistics
    motion = ""
    if split.clip_frames > 1:  # stills do not move
        shares = (f"{part:.1%} {speed}" for speed, part in told["motion_split"].items())
        motion = f", motion {', '.join(shares)}"
    yield (
        f"  {name}: {split.clips} clips, {split.frames} frames, "
        f"{told['objects_per_frame']:.2f} objects a frame{motion}"
    )
    objects = told["objects_by_class"]
    yield "    objects: " + ", ".join(f"{label} {count}" for label, count in objects.items())
    if left_out := told.get("left_out"):
        yield (
            f"    left out: {left_out} objects without extent in the frame, or of a track that "
            "the frame shows twice"
        )
    if unknown := told.get("unknown_classes"):
        yield f"    left out: {sum(unknown.values())} objects of other classes: {counted(unknown)}"
    if short := told.get("too_short"):
        names = ", ".join(short[:10]) + (f" and {len(short) - 10} more" if short[10:] else "")
        yield f"    left out: {len(short)} videos shorter than --min_clip_frames: {names}"
    if reasons := told.get("unreadable"):
        yield f"    left out: {len(reasons)} clips that cannot be read:"
        yield from (f"      {reason}" for reason in reasons)


def _show(info, clips):
    import cv2

    from memvid_tf.data import sheet

    output = _OUTPUT.value
    picture = sheet.contact_sheet(info, _SPLIT.value, clips, _FRAMES.value)
    _, encoded = cv2.imencode(pathlib.Path(output).suffix, picture[..., ::-1])
    try:
        files.write_bytes(output, encoded.tobytes())
    except OSError as error:
        raise errors.UserError(f"--output {output} cannot be written: {error}") from error
    print(f"{output}: clips {', '.join(map(str, clips))} of {_SPLIT.value}")


def _write_frames(info, clips):
    try:
        output = _OUTPUT.value
        with locks.target(output), files.atomic_folder(output, "frames") as folder:
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
        raise errors.UserError(
            f"--{name}={','.join(values)} has {len(numbers)} numbers, "
            f"allowed are {min(lengths)}..{max(lengths)}"
        )
    return numbers


if __name__ == "__main__":
    errors.run(main)
