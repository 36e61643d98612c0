"""People's own data sets: turned pictures, names and lists as tools write them, other classes."""

import dataclasses
import io
import json
import shutil

import cv2
import flagless
import layout_trees
import numpy as np
import pytest
from PIL import Image

from memvid_tf.data import clips, conversion, doctor, records, sharding
from memvid_tf.data.conversion import ConversionConfig
from memvid_tf.data.records import DatasetError
from memvid_tf.runtime import pictures, preprocess

program = flagless.program("memvid_tf.data.__main__")
CONFIG = ConversionConfig(image_size=(24, 32), clip_frames=6, min_clip_frames=2, eval_clip_frames=4)
RED = (220, 30, 30)


def convert(name, source, config=CONFIG):
    """split -> clips, without writing anything."""
    plan = conversion.plan(conversion.open_layout(name, source), config)
    return {
        split: [plan.make_clip(split, i) for i in range(of.clips)]
        for split, of in plan.splits.items()
    }



def voc_pictures(root, pictures_of, lists=None, **annotations):
    """A VOC tree of (file name -> content); every picture shows a dog at rows 8..23, columns 4..19.

    `annotations` go to `layout_trees.annotation_xml`.
    """
    objects = annotations.pop("objects", [("dog", (9, 5, 24, 20), None, "")])
    for name, content in pictures_of.items():
        path = root / "JPEGImages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        layout_trees.write_text(
            root / "Annotations" / f"{path.stem}.xml",
            layout_trees.annotation_xml(objects, **annotations),
        )
    listed = "\n".join(name.rpartition(".")[0] for name in pictures_of) + "\n"
    for split in ("train", "val"):
        path = root / f"ImageSets/Main/{split}.txt"
        layout_trees.write_text(path, "")
        path.write_bytes(lists or listed.encode())


def dog(form="PNG", tag=1, turned=False):
    """A picture of layout_trees.SIZE with a red dog; `turned` stores what tag 6 shows as that."""
    image = np.full((*layout_trees.SIZE, 3), 90, np.uint8)
    image[8:24, 4:20] = RED
    if turned:
        image = np.rot90(image)
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = tag
    options = {} if form == "PNG" else {"quality": 98}
    Image.fromarray(image).save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def colours_in_boxes(clip):
    """Mean colours [n, 3] in the boxes of a clip's first frame, without their outlines."""
    image = cv2.imdecode(np.frombuffer(clip.images[0], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    corners = np.rint(clip.boxes[0] * [*image.shape[:2], *image.shape[:2]]).astype(int)
    return [image[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].mean((0, 1)) for y0, x0, y1, x1 in corners]


def assert_red(clip):
    colours = colours_in_boxes(clip)
    assert len(colours) == 1 and np.abs(colours[0] - RED).max() < 8, colours


@pytest.mark.parametrize("size", [layout_trees.SIZE, (0, 0)], ids=["annotated", "unknown"])
def test_boxes_are_on_turned_pictures(tmp_path, size):
    voc_pictures(tmp_path, {"a.png": dog(tag=6, turned=True)}, size=size)
    (clip,) = convert("voc2012", tmp_path)["train"]
    assert_red(clip)
    assert (clip.source_height, clip.source_width) == layout_trees.SIZE
    (finding,) = {*doctor.examine(conversion.open_layout("voc2012", tmp_path))}
    assert finding == ("picture with an EXIF orientation", "a: tag 6, turned")


def test_boxes_of_stored_pixels_are_on_them(tmp_path):
    """The tag says to turn it, the annotated size that it was annotated as it is stored."""
    voc_pictures(tmp_path, {"a.png": dog(tag=6)})
    assert_red(convert("voc2012", tmp_path)["train"][0])
    (finding,) = {*doctor.examine(conversion.open_layout("voc2012", tmp_path))}
    assert finding.where == "a: tag 6, not turned, since its annotation states the stored size"


def test_what_is_stored_is_what_the_runtime_sees(tmp_path):
    """16 bits, transparency and turns are in the stored pixels, in the size of the runtime."""
    rng = np.random.default_rng(2)
    image = rng.integers(0, 2**16, (48, 64, 4)).astype(np.uint16)
    image = cv2.GaussianBlur(image, (0, 0), 3)  # so that JPEG costs little
    voc_pictures(tmp_path, {"a.png": cv2.imencode(".png", image)[1].tobytes()}, size=(0, 0))
    (clip,) = convert("voc2012", tmp_path, ConversionConfig(image_size=(33, 40)))["train"]
    frame = pictures.read(tmp_path / "JPEGImages/a.png")
    wanted = preprocess.resize(frame, (33, 40)).astype(int)
    stored = pictures.decode(clip.images[0], "stored")
    np.testing.assert_allclose(stored, wanted, atol=6)
    assert np.abs(stored - wanted).mean() < 1.2
    # Training and evaluation decode by TensorFlow.
    np.testing.assert_array_equal(clips._decode_stored(clip.images[0]), stored)


@pytest.mark.parametrize(
    "name, lists",
    [
        ("a.jpg", b"\xef\xbb\xbfa\r\n"),
        ("a.jpg", "a\n".encode("utf-16")),
        ("a.jpg", b"a.JPG\n"),
        ("a.JPG", b"a\n"),
        ("a.jpeg", b"a.xml\n"),
        ("a.webp", b"a  -1\n"),
        ("my photo 1.jpg", b"my photo 1\n"),
        ("my photo 1.jpg", b"my photo 1 1\n\n"),
    ],
)
def test_names_in_lists(tmp_path, name, lists):
    voc_pictures(tmp_path, {name: dog("WEBP" if "webp" in name else "JPEG")}, lists)
    (tmp_path / "JPEGImages/._a.jpg").write_bytes(b"\0\5\26\7")
    assert list(doctor.examine(conversion.open_layout("voc2012", tmp_path))) == []
    assert_red(convert("voc2012", tmp_path)["train"][0])


def test_two_pictures_of_one_name_are_refused(tmp_path):
    voc_pictures(tmp_path, {"a.jpg": dog("JPEG")})
    (tmp_path / "JPEGImages/a.png").write_bytes(dog())
    plan = conversion.plan(conversion.open_layout("voc2012", tmp_path), CONFIG)
    with pytest.raises(DatasetError, match="holds a.jpg and a.png, wanted is one of them"):
        plan.make_clip("train", 0)
    kinds = {kind for kind, _ in doctor.examine(conversion.open_layout("voc2012", tmp_path))}
    assert "two pictures of one name" in kinds


def frames_of(found):
    return {split: [(c.clip_id, c.images) for c in of_split] for split, of_split in found.items()}


def test_hidden_files_are_no_frames(tmp_path):
    layout_trees.vid(tmp_path / "vid", train=(4,), val=(2,))
    layout_trees.davis(tmp_path / "davis", {"ant": 3, "bear": 2})
    for name in ("imagenet_vid", "davis2016"):
        source = tmp_path / name.replace("2016", "").replace("imagenet_", "")
        before = frames_of(convert(name, source))
        for path in [p for p in source.rglob("*.*") if p.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        assert frames_of(convert(name, source)) == before
        assert list(doctor.examine(conversion.open_layout(name, source))) == []


OWN = [("Forklift", (9, 5, 24, 20), None, ""), ("helmet", (9, 5, 24, 20), None, "")]


def test_a_set_without_objects_is_refused(tmp_path):
    voc_pictures(tmp_path / "own", {"a.png": dog(), "b.png": dog()}, objects=OWN)
    layout_trees.davis(tmp_path / "davis", {"ant": 3, "bear": 2}, empty={("bear", 0), ("bear", 1)})
    for name, folder, message in (
        ("voc2012", "own", "no object of voc2012 in train: annotated are Forklift 2, helmet 2"),
        ("davis2016", "davis", "no object of davis2016 in val: annotated are none"),
    ):
        layout = conversion.open_layout(name, tmp_path / folder)
        with pytest.raises(DatasetError, match=message):
            conversion.plan(layout, CONFIG)
        found = {}
        for kind, where in doctor.examine(layout):
            found.setdefault(kind, []).append(where)
        assert found["split without an object"][-1] == "val: 2 frames"
    # Boxes without extent are annotated, but none can be used.
    voc_pictures(tmp_path / "flat", {"a.png": dog()}, objects=[("dog", (9, 20, 24, 5), None, "")])
    plan = conversion.plan(conversion.open_layout("voc2012", tmp_path / "flat"), CONFIG)
    with pytest.raises(DatasetError, match="train of voc2012 has no object that can be used: 1 wi"):
        sharding.write_dataset(tmp_path / "set", plan, workers=0)


def test_unknown_classes_are_counted_by_name(tmp_path):
    objects = [*OWN, OWN[0], ("dog", (9, 5, 24, 20), None, "")]
    voc_pictures(tmp_path / "own", {"a.png": dog(), "b.png": dog()}, objects=objects)
    layout = conversion.open_layout("voc2012", tmp_path / "own")
    info, _ = sharding.write_dataset(tmp_path / "set", conversion.plan(layout, CONFIG), workers=0)
    told = info.split("train").statistics
    assert told["unknown_classes"] == {"Forklift": 4, "helmet": 2} and told["left_out"] == 0
    lines = list(program._told("train", info.split("train")))
    assert "motion" not in lines[0]  # stills
    assert lines[-1] == "    left out: 6 objects of other classes: Forklift 4, helmet 2"
    found = [where for kind, where in doctor.examine(layout) if kind == "class that is unknown"]
    assert found == ["Forklift: 8 objects, the first a", "helmet: 4 objects, the first a"]


def test_one_bad_picture_stops_a_conversion_or_is_skipped(tmp_path):
    files = {"a.png": dog(), "b.png": dog()[:-50], "c.png": dog(), "d.png": b""}
    voc_pictures(tmp_path / "source", files)
    layout = conversion.open_layout("voc2012", tmp_path / "source")

    def write(allowed, workers=0):
        config = dataclasses.replace(CONFIG, skip_unreadable=allowed)
        return sharding.write_dataset(tmp_path / "set", conversion.plan(layout, config), workers)

    with pytest.raises(DatasetError, match="b.png is damaged .*leave such clips out with --skip"):
        write(0)
    with pytest.raises(DatasetError, match="4 clips cannot be read, allowed are 3: .*b.png.*d.png"):
        write(3)
    info, found = write(4)  # goes on with what the others had done
    assert not found
    for split in ("train", "val"):
        ids = [clip.clip_id for clip in records.read_clips(info, split)]
        assert ids == ["voc2012-a:00000", "voc2012-c:00000"] and info.split(split).clips == 2
        reasons = info.split(split).statistics["unreadable"]
        assert [reason.split()[0][-5:] for reason in reasons] == ["b.png", "d.png"]
        assert list(program._told(split, info.split(split)))[-3:-1] == [
            "    left out: 2 clips that cannot be read:",
            f"      {reasons[0]}",
        ]
    assert list(doctor.examine_records(info)) == []
    assert write(4) == (info, True)
    with pytest.raises(DatasetError, match="without 4 clips that .*--skip_unreadable=4 accepts"):
        write(3)


def test_single_splits_and_videos_that_are_too_short(tmp_path):
    layout_trees.vid(tmp_path / "vid", train=(12, 3, 1), val=(5,))
    layout = conversion.open_layout("imagenet_vid", tmp_path / "vid")
    shutil.rmtree(tmp_path / "vid/Data/VID/train")
    config = dataclasses.replace(CONFIG, splits=("val",))
    assert list(conversion.plan(layout, config).splits) == ["val"]
    with pytest.raises(DatasetError, match="splits tes are not of train, val"):
        conversion.plan(layout, dataclasses.replace(CONFIG, splits=("tes",)))
    layout_trees.vid(tmp_path / "vid", train=(12, 3, 1), val=(5,))
    plan = conversion.plan(layout, dataclasses.replace(CONFIG, min_clip_frames=4))
    video = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_0000000"
    assert plan.too_short == {"train": [f"{video}1", f"{video}2"], "val": []}
    info, _ = sharding.write_dataset(tmp_path / "set", plan, workers=0)
    assert list(program._told("train", info.split("train")))[-1] == (
        f"    left out: 2 videos shorter than --min_clip_frames: {video}1, {video}2"
    )


@pytest.mark.parametrize("bbox", [[], None, [None, 1, 2, 3], [float("nan"), 8, 40, 32], [1, 2, 3]])
def test_coco_boxes_that_are_none_are_named(tmp_path, bbox):
    layout_trees.coco(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = bbox
    path.write_text(json.dumps(content))
    layout = conversion.open_layout("coco2017", tmp_path)
    with pytest.raises(DatasetError, match=r"train2017.json: annotation 1 has bbox .*four numbers"):
        conversion.plan(layout, CONFIG).make_clip("train", 0)
    (finding,) = doctor.examine(layout)
    assert finding.kind == "annotation that cannot be read" and "annotation 1 " in finding.where


@pytest.mark.parametrize(
    "names, ids",
    [
        (("a/1.jpg", "b/1.jpg"), ("2", "train2017/a/1", "train2017/b/1")),
        (("a/1.jpg", "a/1.png"), ("2", "1.jpg", "1.png")),
    ],
)
def test_coco_pictures_of_one_stem_are_different_pictures(tmp_path, names, ids):
    layout_trees.coco(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    content = path.read_text()
    for number, name in zip((9, 25, 34), (*names, "2.JPG")):
        layout_trees.write_picture(tmp_path / "train2017" / name)
        written = name if number < 34 else f"train2017\\\\{name}"  # as a tool of Windows does
        content = content.replace(f"{number:012d}.jpg", written)
    content = content.replace('"height": 48', '"height": null', 1)
    path.write_text(content)
    layout = conversion.open_layout("coco2017_boats", tmp_path)
    assert list(doctor.examine(layout)) == []
    train = convert("coco2017_boats", tmp_path)["train"]
    assert tuple(clip.clip_id[len("coco2017_boats-") : -len(":00000")] for clip in train) == ids
