"""The doctor finds every kind of fault, names where it is, and survives anything."""

import hashlib
import json
import random
import re
import shutil
import struct
import zlib

import layout_trees
import numpy as np
import pytest
import tensorflow as tf

from memvid_tf.data import (
    clips,
    conversion,
    doctor,
    pictures,
    reading,
    records,
    sharding,
    sheet,
)

DOG = layout_trees.DOG
VIDEO = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
TREES = {
    "imagenet_vid": lambda root: layout_trees.vid(root, train=(4,), val=(2,)),
    "imagenet_det": layout_trees.det,
    "coco2017": layout_trees.coco,
    "voc2012": layout_trees.voc,
    "davis2016": lambda root: layout_trees.davis(root, {"ant": 3, "bear": 2}),
    "davis2017": lambda root: layout_trees.davis(root, {"ant": 3, "bear": 2}, year=2017),
}


def examine(name, root, **arguments):
    """kind -> places."""
    found = {}
    for kind, where in doctor.examine(conversion.open_layout(name, root), **arguments):
        found.setdefault(kind, []).append(where)
    return found


@pytest.mark.parametrize("name", TREES)
def test_whole_trees_are_well(tmp_path, name):
    TREES[name](tmp_path)
    assert examine(name, tmp_path) == {}


def test_empty_folders_are_named(tmp_path):
    for name in TREES:
        found = examine(name, tmp_path)
        assert set(found) == {"split train that cannot be found", "split val that cannot be found"}
        assert "is missing" in found["split train that cannot be found"][0]


def annotate(root, objects, frame=0, **arguments):
    path = root / f"Annotations/VID/{VIDEO}/{frame:06d}.xml"
    path.write_text(layout_trees.annotation_xml(objects, **arguments))


@pytest.mark.parametrize(
    "kind, objects, arguments",
    [
        ("box that is inverted", [(DOG, (20, 4, 8, 20), 0, "")], {}),
        ("box outside the frame", [(DOG, (50, 4, 60, 20), 0, "")], {}),
        ("box partly outside the frame", [(DOG, (8, 4, 24, 70), 0, "")], {}),
        ("class that is unknown", [("n99999999", (8, 4, 24, 20), 0, "")], {}),
        (
            "track twice in a frame",
            [(DOG, (8, 4, 24, 20), 5, ""), (DOG, (30, 4, 40, 20), 5, "")],
            {},
        ),
        ("picture of another size than annotated", [], {"size": (64, 48)}),
        ("annotation that cannot be read", [(DOG, (8, "x", 24, 20), 0, "")], {}),
    ],
)
def test_wrong_annotations(tmp_path, kind, objects, arguments):
    TREES["imagenet_vid"](tmp_path)
    annotate(tmp_path, objects, frame=1, **arguments)
    found = examine("imagenet_vid", tmp_path)
    assert list(found) == [kind] and kind in doctor.ADVICE
    (where,) = found[kind]
    assert f"{VIDEO} frame 1" in where or f"{VIDEO}/000001.xml" in where
    # Frame 1 is not looked at.
    assert examine("imagenet_vid", tmp_path, every=2) == {}


def test_the_last_pixel_may_be_counted(tmp_path):
    TREES["imagenet_vid"](tmp_path)
    annotate(tmp_path, [(DOG, (0, 0, 48.5, 65), 0, "")])
    assert examine("imagenet_vid", tmp_path) == {}


def test_missing_files(tmp_path):
    TREES["imagenet_vid"](tmp_path)
    (tmp_path / f"Annotations/VID/{VIDEO}/000001.xml").unlink()
    (tmp_path / f"Data/VID/{VIDEO}/000002.JPEG").unlink()
    with open(tmp_path / "ImageSets/VID/val.txt", "a", encoding="utf-8") as file:
        file.write("ILSVRC2015_val_00000000/000007 99\n")
    (tmp_path / "ImageSets/VID/train.txt").write_text("")
    found = examine("imagenet_vid", tmp_path)
    assert [where[-11:] for where in found["frame without an annotation"]] == ["000001.JPEG"]
    assert [where[-10:] for where in found["annotation without its frame"]] == ["000002.xml"]
    (gap,) = found["video whose frames are not numbered 000000, 000001, ..."]
    assert gap.endswith("3 frames, 000002.JPEG is not there")
    assert found["video that no image set lists"] == [VIDEO]
    (line,) = found["image set naming what is not there"]
    assert line.endswith("val.txt: ILSVRC2015_val_00000000/000007 99")


def test_damaged_pictures_need_decoding(tmp_path):
    TREES["imagenet_vid"](tmp_path)
    path = tmp_path / f"Data/VID/{VIDEO}/000001.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    assert (
        "damaged or truncated"
        in examine("imagenet_vid", tmp_path)["picture that cannot be read"][0]
    )
    assert examine("imagenet_vid", tmp_path, decode=False) == {}
    layout_trees.write_picture(tmp_path / f"Data/VID/{VIDEO}/000002.JPEG", size=(30, 40))
    found = examine("imagenet_vid", tmp_path, decode=False)
    assert found["video of frames of different sizes"] == [f"{VIDEO}: 40 x 30, 64 x 48"]


def test_other_classes_of_det_and_coco_are_no_fault_but_voc_has_none(tmp_path):
    TREES["voc2012"](tmp_path)
    path = tmp_path / "Annotations/2008_000002.xml"
    path.write_text(path.read_text().replace("cat", "unicorn"))
    assert examine("voc2012", tmp_path) == {
        "class that is unknown": ["unicorn: 1 objects, the first 2008_000002"]
    }


# Of DET and COCO what shows no class of VID is not used, Pascal's masks may be missing.
NOT_USED = (
    "SegmentationObject",
    "unlabelled",
    "accordion",
    "empty",
    "train2017/000000000025",
    "train2017/000000000030",
)


def damage(path, rng):
    data = path.read_bytes()
    what = rng.choice(["delete", "truncate", "empty", "garbage", "folder", "flip"])
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "flip":
        changed = bytearray(data)
        for _ in range(5):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
    elif what != "delete":
        path.write_bytes(
            {"truncate": data[: len(data) // 2], "empty": b"", "garbage": rng.randbytes(100)}[what]
        )
    return what


@pytest.mark.parametrize("name", TREES)
def test_nothing_crashes_it(tmp_path, name):
    """Random damage: the examination ends, and what is gone is missed."""
    TREES[name](tmp_path / "whole")
    files = sorted(
        p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.*") if p.is_file()
    )
    rng = random.Random(3)
    for _ in range(25):
        shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
        path = rng.choice(files)
        what = damage(tmp_path / "hurt" / path, rng)
        found = examine(name, tmp_path / "hurt")
        shorter_list = what == "truncate" and path.suffix == ".txt"
        if not (what == "flip" or shorter_list or any(part in str(path) for part in NOT_USED)):
            assert found, (path, what)
        shutil.rmtree(tmp_path / "hurt")


def test_without_lists_every_sequence_is_looked_at(tmp_path):
    TREES["davis2016"](tmp_path)
    shutil.rmtree(tmp_path / "ImageSets")
    (tmp_path / "JPEGImages/480p/bear/00001.jpg").write_bytes(b"")
    found = examine("davis2016", tmp_path)
    # --train_part needs no lists, so that they are missing is no fault.
    assert list(found) == ["picture that cannot be read"]


def test_the_diagnosis_counts_and_gives_examples():
    diagnosis = doctor.Diagnosis(examples=2)
    assert (diagnosis.count, diagnosis.text()) == (0, "nothing is wrong")
    for i in range(4):
        diagnosis.add(doctor.Finding("box outside the frame", f"frame {i}"))
    diagnosis.add(doctor.Finding("new kind", "there"))
    assert diagnosis.count == 5
    assert diagnosis.text() == (
        "4 x box outside the frame (convert leaves it out):\n    frame 0\n    frame 1\n"
        "    and 2 more\n1 x new kind:\n    there"
    )


@pytest.fixture(name="converted", scope="module")
def fixture_converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    TREES["davis2016"](folder / "source")
    config = conversion.ConversionConfig(image_size=(24, 32), clip_frames=3, min_clip_frames=2)
    plan = conversion.plan(conversion.open_layout("davis2016", folder / "source"), config)
    sharding.write_dataset(folder / "set", plan, workers=0)
    return folder / "set"


def rewrite(folder, split, changed):
    """Writes other records into a set whose description and checksums fit their bytes."""
    with tf.io.TFRecordWriter(str(next(folder.glob(f"{split}*")))) as writer:
        for record in changed:
            writer.write(record)
    told = json.loads((folder / "dataset.json").read_text())
    shard = told["splits"][split]["shards"][0]
    data = (folder / shard["file"]).read_bytes()
    shard.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "dataset.json").write_text(json.dumps(told))
    names = [of["shards"][0]["file"] for of in told["splits"].values()] + ["dataset.json"]
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    (folder / "SHA256SUMS").write_text("".join(f"{s}  {n}\n" for s, n in zip(sums, names)))


def without(clip, name):
    example = tf.train.SequenceExample.FromString(records.serialize(clip))
    del example.context.feature[name]
    return example.SerializeToString()


def huge_png():
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rest = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + struct.pack(">I", zlib.crc32(head)) + rest


NAME = r"davis2016-bear:00000 frame 1"
# Change of the only clip of val, which has two frames; what check says; whether show can show it.
BROKEN = [
    (lambda c: c.images.__setitem__(1, b""), f"{NAME} is no JPEG or PNG", False),
    (lambda c: c.images.__setitem__(1, b"RIFF"), f"{NAME} is no JPEG or PNG", False),
    (lambda c: c.images.__setitem__(1, c.images[1][:-60]), f"{NAME} is damaged or trunc", False),
    (lambda c: c.images.__setitem__(1, huge_png()), f"{NAME} has more pixels than allow", False),
    (lambda c: c.masks.__setitem__(1, b"\x89PNG"), f"{NAME} mask is no picture", False),
    (lambda c: c.masks.__setitem__(1, huge_png()), f"{NAME} mask has more pixels", False),
    (
        lambda c: c.masks.__setitem__(1, pictures.encode_png(np.full((24, 32), 3, np.uint8))),
        f"{NAME} mask shows object 3 of 1",
        True,
    ),
    (lambda c: c.classes.__setitem__(1, [7]), "record 0 of .* it has class 7, .* names 1", False),
    (lambda c: c.boxes.__setitem__(1, np.ones((1, 4)) * np.nan), "record 0 of .*boxes must", False),
    (lambda c: c.boxes.__setitem__(1, np.zeros((2, 4))), "record 0 .*: 2 boxes, 1 classes", False),
    (lambda c: setattr(c, "height", 10**6), "it is .1000000, 32. high and wide, data", False),
    (lambda c: c.images.append(c.images[0]), "record 0 of .*: a record is no clip: zip", False),
    (lambda c: [part.clear() for part in (c.images, c.boxes, c.classes, c.tracks, c.masks)],
     "record 0 of .*: a record is no clip: it has no frame", False),
]  # fmt: skip


@pytest.mark.parametrize("change, message, shown", BROKEN)
def test_broken_clips_are_named(tmp_path, converted, change, message, shown):
    shutil.copytree(converted, tmp_path / "set")
    (clip,) = records.read_clips(records.read_info(converted), "val")
    change(clip)
    rewrite(tmp_path / "set", "val", [records.serialize(clip)])
    info = records.read_info(tmp_path / "set")
    found = list(doctor.examine_records(info))
    assert [kind for kind, _ in found] == ["clip that cannot be read"]
    assert re.search(message, found[0].where)
    if shown:
        assert sheet.contact_sheet(info, "val", [0], 10**9).shape[2] == 3
    else:
        with pytest.raises(records.DatasetError) as error:
            sheet.contact_sheet(info, "val", [0])
        assert len(str(error.value)) < 700


def test_broken_records_are_named(tmp_path, converted):
    (clip,) = records.read_clips(records.read_info(converted), "val")
    whole = records.serialize(clip)
    for number, (content, message) in enumerate(
        (
            ([], "holds 0 clips, dataset.json says 1"),
            ([whole, whole], "holds 2 clips, dataset.json says 1"),
            ([without(clip, "clip/id")], "it lacks clip/id"),
            ([b"\xff\xff"], "is no SequenceExample"),
            ([whole[:50]], "is no SequenceExample|it lacks"),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(converted, folder)
        rewrite(folder, "val", content)
        (finding,) = doctor.examine_records(records.read_info(folder))
        assert finding.kind == "clip that cannot be read" and re.search(message, finding.where)


@pytest.mark.parametrize("broken", ["no id", "mask"])
def test_reading_broken_records_is_one_line(tmp_path, converted, broken):
    """As evaluation does, where a graph would say it in ten."""
    shutil.copytree(converted, tmp_path / "set")
    (clip,) = records.read_clips(records.read_info(converted), "val")
    clip.masks[1] = b"\x89PNG"
    made = {"no id": without(clip, "clip/id"), "mask": records.serialize(clip)}
    rewrite(tmp_path / "set", "val", [made[broken]])
    config = clips.ClipConfig(
        input_path=str(tmp_path / "set"),
        split="val",
        is_training=False,
        unroll_frames=0,
        image_size=(24, 32),
        masks=broken == "mask",
    )
    with pytest.raises(records.DatasetError) as error, reading.dataset_errors():
        list(clips.clip_dataset(config).as_numpy_iterator())
    assert "data check --input=" in str(error.value) and len(str(error.value)) < 400


def test_descriptions_that_do_not_fit_are_named(tmp_path, converted):
    shutil.copytree(converted, tmp_path / "set")
    path = tmp_path / "set/dataset.json"
    told = json.loads(path.read_text())
    told["splits"]["val"]["statistics"]["objects"] = 99
    told["splits"]["train"]["frames"] = 9
    path.write_text(json.dumps(told))
    found = list(doctor.examine_records(records.read_info(path.parent)))
    assert {kind for kind, _ in found} == {"description that does not fit"}
    assert [where.partition(": ")[2] for _, where in found] == [
        "dataset.json has another sum",
        "frames is 3, dataset.json says 9",
        "objects is 2, dataset.json says 99",
    ]
    (path.parent / "SHA256SUMS").unlink()
    assert "SHA256SUMS cannot be read" in next(
        doctor.examine_records(records.read_info(path.parent))
    ).where


def test_converted_sets_are_checked(tmp_path, converted):
    shutil.copytree(converted, tmp_path / "set")
    info = records.read_info(tmp_path / "set")
    assert list(doctor.examine_records(info)) == []
    shard = next((tmp_path / "set").glob("val*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    kinds = [finding.kind for finding in doctor.examine_records(records.read_info(info.folder))]
    assert kinds == ["shard that is damaged", "clip that cannot be read"]
    shard.write_bytes(data[:-1])
    (finding,) = doctor.examine_records(records.read_info(info.folder))
    assert "was truncated or replaced" in finding.where
