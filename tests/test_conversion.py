"""Readers of real layouts and their conversion, on small trees built here and on real sequences."""

import os
import re

import cv2
import layout_trees
import numpy as np
import pytest

from memvid_tf.data import annotation_xml, classes, conversion, layouts, pictures, records, sharding
from memvid_tf.data.conversion import ConversionConfig
from memvid_tf.data.records import DatasetError
from memvid_tf.runtime import pictures as runtime_pictures

CONFIG = ConversionConfig(image_size=(24, 32), clip_frames=6, min_clip_frames=2, eval_clip_frames=4)


def convert(name, source, config=CONFIG):
    """split -> clips, without writing anything."""
    plan = conversion.plan(conversion.open_layout(name, source), config)
    return {
        split: [plan.make_clip(split, i) for i in range(of.clips)]
        for split, of in plan.splits.items()
    }


def decoded(data, mode=cv2.IMREAD_GRAYSCALE):
    return cv2.imdecode(np.frombuffer(data, np.uint8), mode)


def test_the_thirty_classes():
    assert len(classes.VID_LABELS) == len(set(classes.VID_LABELS)) == 30
    # Alphabetical in English, as the challenge lists them; so are ours, but for the cat.
    assert list(classes.VID_LABELS) == sorted(classes.VID_LABELS, key=lambda n: n.replace("_", "}"))
    assert set(classes.COCO_TO_VID.values()) <= set(classes.VID_LABELS)
    assert len(classes.COCO_TO_VID) == 15


def test_vid(tmp_path):
    truth = layout_trees.vid(tmp_path)
    found = convert("imagenet_vid", tmp_path)
    first = "ILSVRC2015_train_00000000"
    # 12 frames in clips of 6; 3 are one short clip; 5 of val are 4 and 1.
    assert [(c.clip_id, len(c.images)) for c in found["train"]] == [
        (f"imagenet_vid-{first}:00000", 6),
        (f"imagenet_vid-{first}:00006", 6),
        ("imagenet_vid-ILSVRC2015_train_00000001:00000", 3),
    ]
    assert [(c.clip_id[-20:], len(c.images)) for c in found["val"]] == [
        ("5_val_00000000:00000", 4),
        ("5_val_00000000:00004", 1),
    ]
    ids = {wnid: i + 1 for i, wnid in enumerate(classes.VID_WNIDS)}
    for clip, start in zip(found["train"], (0, 6)):
        assert (clip.source_height, clip.source_width, clip.left_out) == (48, 64, 0)
        for t, (boxes, class_ids, tracks) in enumerate(zip(clip.boxes, clip.classes, clip.tracks)):
            video = f"train/ILSVRC2015_VID_train_0000/{first}"
            expected = truth[video, start + t]
            np.testing.assert_allclose(
                boxes, np.reshape([o[1] for o in expected], (-1, 4)) / [48, 64, 48, 64], rtol=1e-6
            )
            assert class_ids.tolist() == [ids[o[0]] for o in expected]
            assert tracks.tolist() == [o[2] for o in expected]
        image = decoded(clip.images[0], cv2.IMREAD_COLOR)
        assert image.shape == (24, 32, 3)
        # The dog's block, (200, 120, 30) in OpenCV's order; red and blue are
        # 170 apart, JPEG twice costs some grey levels.
        assert np.abs(image[6:10, 6 + start // 2] - (200.0, 120, 30)).max() < 25


def test_det_gives_pictures_with_a_class_of_vid(tmp_path):
    layout_trees.det(tmp_path)
    found = convert("imagenet_det", tmp_path)
    assert [clip.clip_id for clip in found["train"]] == ["imagenet_det-with_dog:00000"]
    (clip,) = found["val"]
    assert clip.classes[0].tolist() == [9, 9] and clip.tracks[0].tolist() == [0, 2]
    assert clip.left_out == 0  # An accordion is no object of VID.


def test_a_picture_of_the_classification_set_is_one_object(tmp_path):
    layout_trees.cls(tmp_path)
    layout = conversion.open_layout("imagenet_cls", tmp_path)
    assert layout.labels == (layout_trees.DOG, layout_trees.TRAIN)
    found = convert("imagenet_cls", tmp_path)
    assert [clip.classes[0].tolist() for clip in found["train"]] == [[1]] * 3 + [[2]] * 2
    assert [clip.classes[0].tolist() for clip in found["val"]] == [[2], [1]]
    for clip in found["train"] + found["val"]:
        assert clip.boxes[0].tolist() == [[0, 0, 1, 1]] and clip.left_out == 0
    assert [clip.source_height for clip in found["train"]] == [30, 31, 32, 30, 31]
    assert list(layout.findings("val")) == []
    (tmp_path / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000002.xml").unlink()
    (finding,) = layout.findings("val")
    assert finding.kind == "picture without an annotation" and "00000002.xml" in finding.where
    with pytest.raises(DatasetError, match="Data/CLS-LOC/train is missing"):
        conversion.open_layout("imagenet_cls", tmp_path / "Data").videos("train")


@pytest.mark.parametrize("name, boats", [("coco2017", False), ("coco2017_boats", True)])
def test_coco(tmp_path, name, boats):
    layout_trees.coco(tmp_path)
    found = convert(name, tmp_path)
    ids = {
        clip.clip_id: [classes.VID_LABELS[i - 1] for i in clip.classes[0]]
        for clip in found["train"]
    }
    expected = {
        f"{name}-000000000009:00000": ["domestic_cat"],
        f"{name}-000000000034:00000": ["cattle"],
    }
    if boats:
        expected[f"{name}-000000000025:00000"] = ["watercraft"]
    assert ids == expected
    np.testing.assert_allclose(
        found["train"][0].boxes[0], [[8 / 48, 4.5 / 64, 24 / 48, 20.75 / 64]], rtol=1e-6
    )
    # Validation is over all pictures.
    assert [len(clip.classes[0]) for clip in found["val"]] == [1, int(boats), 0, 1]


def test_voc(tmp_path):
    mask = layout_trees.voc(tmp_path)
    found = convert("voc2012", tmp_path, ConversionConfig(image_size=layout_trees.SIZE))
    (clip,), (plain,) = found["train"], found["val"]
    labels = [classes.VOC_LABELS[i - 1] for i in clip.classes[0]]
    assert labels == ["dog", "cat"]
    # Pixels count from one: columns 5..20 are 4..19 from zero.
    np.testing.assert_allclose(
        clip.boxes[0] * [48, 64, 48, 64], [[8, 4, 24, 20], [29, 10, 48, 50]], atol=1e-4
    )
    expected = np.zeros_like(mask)
    expected[mask == 1], expected[mask == 3] = 1, 2  # Neither the difficult person nor void.
    np.testing.assert_array_equal(decoded(clip.masks[0]), expected)
    assert plain.masks == [b""]


def test_davis_2016_through_the_writer(tmp_path):
    blocks = layout_trees.davis(tmp_path / "DAVIS", {"bear": 20, "ant": 10}, empty={("ant", 8)})
    # Half the size in both directions, so blocks of even corners stay exact.
    config = ConversionConfig(image_size=(24, 32), clip_frames=6, min_clip_frames=2, train_part=0.7)
    plan = conversion.plan(conversion.open_layout("davis2016", tmp_path / "DAVIS"), config)
    info, _ = sharding.write_dataset(tmp_path / "set", plan, workers=1)
    assert info.labels == ("object",) and info.image_size == (24, 32)
    train = list(records.read_clips(info, "train"))
    test = list(records.read_clips(info, "test"))
    # ant: 7 of 10 frames train: 6 and a tail of 1, too short. bear: 14 of 20: 6, 6 and 2.
    assert [(clip.clip_id, len(clip.images)) for clip in train] == [
        ("davis2016-ant:00000", 6),
        ("davis2016-bear:00000", 6),
        ("davis2016-bear:00006", 6),
        ("davis2016-bear:00012", 2),
    ]
    assert [(clip.clip_id, len(clip.images)) for clip in test] == [
        ("davis2016-ant:00007", 3),
        ("davis2016-bear:00014", 6),
    ]
    statistics = info.split("train").statistics
    assert info.split("test").clip_frames == 6 and statistics["min_clip_frames"] == 2
    assert statistics["objects_by_class"] == {"object": 20} and statistics["left_out"] == 0
    for clip in train + test:
        assert (clip.source_height, clip.source_width) == (48, 64)
        _, name, first = re.split("[-:]", clip.clip_id)
        for t, (boxes, mask, data) in enumerate(zip(clip.boxes, clip.masks, clip.images)):
            frame = int(first) + t
            if (name, frame) == ("ant", 8):
                assert len(boxes) == 0 and mask == b""
                continue
            y0, x0, y1, x1 = blocks[name, frame]
            np.testing.assert_allclose(boxes, [[y0 / 48, x0 / 64, y1 / 48, x1 / 64]], rtol=1e-6)
            expected = np.zeros((48, 64), np.uint8)
            expected[y0:y1, x0:x1] = 1
            # Nearest neighbour at exactly one half takes every second pixel.
            np.testing.assert_array_equal(decoded(mask), expected[::2, ::2])
            inside = cv2.erode(decoded(mask), np.ones((3, 3), np.uint8)) > 0
            assert abs(int(decoded(data, cv2.IMREAD_COLOR)[inside][:, 0].mean()) - 200) < 6
    # Another picture in the folder is another data set, whatever the settings say.
    layout_trees.davis(tmp_path / "DAVIS", {"bear": 21, "ant": 10})
    plan = conversion.plan(conversion.open_layout("davis2016", tmp_path / "DAVIS"), config)
    with pytest.raises(DatasetError, match="holds another data set: config.windows_sha256"):
        sharding.write_dataset(tmp_path / "set", plan, workers=0)


@pytest.mark.parametrize("year", [2016, 2017])
def test_davis_has_splits_of_its_own(tmp_path, year):
    layout_trees.davis(tmp_path, {"ant": 6, "cow": 6, "bear": 5}, year=year)
    found = convert(f"davis{year}", tmp_path)
    assert [clip.clip_id for clip in found["train"]] == [
        f"davis{year}-{name}:00000" for name in ("ant", "cow")
    ]
    assert [clip.clip_id for clip in found["val"]] == [
        f"davis{year}-bear:00000",
        f"davis{year}-bear:00004",
    ]
    clip = found["train"][0]
    # Void belongs to no object; a track is the number in the mask.
    assert clip.tracks[2].tolist() == ([1] if year == 2016 else [1, 3])
    if year == 2017:
        np.testing.assert_allclose(
            clip.boxes[0][1], [30 / 48, 40 / 64, 40 / 48, 60 / 64], rtol=1e-6
        )
        assert set(np.unique(decoded(clip.masks[0]))) == {0, 1, 2}


def test_cuts_cover_without_overlap():
    rng = np.random.default_rng(1)
    for _ in range(200):
        first, length, shortest = rng.integers(0, 9), int(rng.integers(4, 20)), 4
        end = first + int(rng.integers(1, 90))
        clips = conversion.cut(first, end, length, shortest)
        used = [t for start, count in clips for t in range(start, start + count)]
        assert used == list(range(first, first + len(used)))
        assert 0 <= end - first - len(used) < shortest
        assert all(shortest <= count <= length for _, count in clips)


def test_unusable_boxes_are_left_out_and_counted(tmp_path):
    layout_trees.vid(tmp_path, train=(2,), val=(1,))
    dog = layout_trees.DOG
    path = (
        tmp_path
        / "Annotations/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
        / "000001.xml"
    )
    path.write_text(
        layout_trees.annotation_xml(
            [
                (dog, (-5, -9, 20, 30), 0, ""),  # partly outside: clipped
                (dog, (20, 70, 30, 90), 1, ""),  # outside
                (dog, (20, 30, 20, 40), 2, ""),  # empty
                (dog, (30, 40, 20, 20), 3, ""),  # inverted
                (dog, (1, 1, 9, 9), 0, ""),  # the track again
                ("n99999999", (1, 1, 9, 9), 9, ""),  # no class of VID
            ]
        )
    )
    clip = convert("imagenet_vid", tmp_path)["train"][0]
    assert clip.left_out == 4
    np.testing.assert_allclose(clip.boxes[1], [[0, 0, 20 / 48, 30 / 64]], rtol=1e-6)


# --- Files that are not what they should be ------------------------------------------------------


def test_missing_folders_are_named(tmp_path):
    for name, missing in (
        ("imagenet_vid", "Data/VID/train is missing; --source is the folder ILSVRC2015"),
        ("imagenet_det", "Data/DET/train is missing"),
        ("coco2017", "train2017 is missing; --source is the folder which holds annotations"),
        ("voc2012", "JPEGImages is missing; --source is the folder VOC2012"),
        ("davis2016", "JPEGImages/480p is missing"),
        ("davis2017", "480p is missing"),
    ):
        with pytest.raises(DatasetError, match=f"not laid out like .*{missing}"):
            conversion.plan(conversion.open_layout(name, tmp_path), CONFIG)
    with pytest.raises(DatasetError, match="'imagenet' is not one of coco2017, "):
        conversion.open_layout("imagenet", tmp_path)
    with pytest.raises(DatasetError, match="source .*nothing is not a folder"):
        conversion.open_layout("voc2012", tmp_path / "nothing")


def test_wrong_davis_trees_are_named(tmp_path):
    layout_trees.davis(tmp_path, {"ant": 8, "bear": 8})
    plan = conversion.plan(conversion.open_layout("davis2016", tmp_path), CONFIG)
    mask = tmp_path / "Annotations/480p/ant/00003.png"
    for content, message in (
        (np.full((48, 64), 7, np.uint8), r"00003.png is no DAVIS 2016 mask: it holds \[7\]"),
        (np.zeros((48, 60), np.uint8), "00003.jpg is 48 x 64 .* its annotation says 48 x 60"),
        (np.zeros((48, 64, 3), np.uint8), "00003.png is no mask: its pixels are RGB"),
    ):
        cv2.imwrite(str(mask), content)
        with pytest.raises(DatasetError, match=message):
            plan.make_clip("train", 0)
    mask.unlink()
    with pytest.raises(DatasetError, match="00003.png is missing"):
        plan.make_clip("train", 0)
    with pytest.raises(DatasetError, match="no video in train .* min_clip_frames, 6"):
        conversion.plan(
            conversion.open_layout("davis2016", tmp_path),
            ConversionConfig(clip_frames=6, min_clip_frames=6, train_part=0.5),
        )
    (tmp_path / "ImageSets/480p/val.txt").unlink()
    with pytest.raises(DatasetError, match="val.txt is missing, .*--train_part=0.7"):
        conversion.plan(conversion.open_layout("davis2016", tmp_path), CONFIG)


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="clip_frames 2 is not allowed: at least min_clip_frames"):
        ConversionConfig(clip_frames=2)
    layout_trees.voc(tmp_path)
    with pytest.raises(DatasetError, match="train_part 0.5 is not allowed for voc2012"):
        conversion.plan(
            conversion.open_layout("voc2012", tmp_path), ConversionConfig(train_part=0.5)
        )


def test_pictures_are_bounded_and_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    layout_trees.write_picture(path, size=(480, 640), blocks=[(10, 10, 300, 200)])
    whole = path.read_bytes()
    assert pictures.read_rgb(path).shape == (480, 640, 3)
    path.write_bytes(whole[: len(whole) // 2])
    assert pictures.check(path, decode=False).size == (480, 640)
    with pytest.raises(DatasetError, match="a.jpg is damaged or truncated"):
        pictures.check(path, decode=True)
    path.write_bytes(b"GIF89a" + whole)
    with pytest.raises(DatasetError, match="a.jpg is no picture that can be read; known are JPEG"):
        pictures.read_rgb(path)
    path.write_bytes(whole)
    monkeypatch.setattr(runtime_pictures, "MAX_PIXELS", 1000)
    with pytest.raises(DatasetError, match="a.jpg is 640x480 pixels, allowed are 1000"):
        pictures.read_rgb(path)
    monkeypatch.setattr(runtime_pictures, "MAX_FILE_BYTES", 100)
    with pytest.raises(DatasetError, match="bytes, allowed are 100"):
        pictures.read_rgb(path)


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>'
    "<annotation><filename>&c;</filename></annotation>"
)


@pytest.mark.parametrize(
    "content, message",
    [
        (LAUGHS.encode(), "declares a document type, a"),
        (LAUGHS.encode("utf-16"), "declares a document type, a"),
        (b"<annotation><object>", "cannot be used: no element found"),
        (b"<annotation><object><name>x</name></object></annotation>", "no bndbox"),
        (b"<a><object><name>x</name><bndbox><xmin>1</xmin></bndbox></object></a>", "has no ymin"),
        (layout_trees.annotation_xml([("x", (1, "nan", 2, 3), 0, "")]).encode(), "xmin is nan"),
        (layout_trees.annotation_xml([("x", (1, "two", 2, 3), 0, "")]).encode(), "two"),
        (layout_trees.annotation_xml([(" ", (1, 1, 2, 3), 0, "")]).encode(), "has no name"),
        (b" " * 100_000, "more than 1000 bytes"),
    ],
)
def test_untrusted_xml(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(annotation_xml, "MAX_BYTES", 1000)
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"a.xml cannot be used: .*{message}|{message}"):
        annotation_xml.read(path)


def test_elements_are_found_by_name(tmp_path):
    for order in ("xmax xmin ymax ymin", "xmin ymin xmax ymax", "ymax xmax ymin xmin"):
        (tmp_path / "a.xml").write_text(
            layout_trees.annotation_xml([("x", (1, 2, 3, 4), 5, "")], order=order)
        )
        (found,) = annotation_xml.read(tmp_path / "a.xml").objects
        assert (found.box, found.track) == ((1, 2, 3, 4), 5)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ""])
def test_paths_in_lists_stay_inside(tmp_path, name):
    with pytest.raises(DatasetError, match="no path inside the data set"):
        layouts.inside(name, tmp_path / "list.txt")


def test_coco_lists_are_checked(tmp_path):
    layout_trees.coco(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    good = path.read_text()
    for content, message in (
        ("[]", "no list of COCO instances"),
        ("{", "no list of COCO instances"),
        ("[" * 100_000, "no list of COCO instances: maximum recursion"),
        (good.replace('"id": 25,', '"id": 9,', 1), "picture id 9 is listed twice, for 0*9.jpg and"),
        (
            good.replace("000000000025.jpg", "000000000009.jpg"),
            "file 000000000009.jpg is listed twice, as pictures 9 and 25",
        ),
        (good.replace('"categories"', '"kinds"'), "it lacks 'categories'"),
        (good.replace("000000000009.jpg", "../../9.jpg"), "no path inside"),
        (good.replace('"image_id": 25', '"image_id": 26'), "annotation 3 is of picture 26"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=message):
            conversion.plan(conversion.open_layout("coco2017", tmp_path), CONFIG)


def test_real_sequences(fixtures_dir):
    source = fixtures_dir / "davis2016"
    if not source.is_dir():
        pytest.skip(f"no DAVIS sequences at {source}")
    layout = conversion.open_layout("davis2016", source)
    config = ConversionConfig(image_size=(96, 160), clip_frames=24, train_part=0.7)
    plan = conversion.plan(layout, config)
    frames = {path.name: len(os.listdir(path)) for path in (source / "JPEGImages/480p").iterdir()}
    assert frames.items() >= {("blackswan", 50), ("bmx-trees", 80), ("car-shadow", 40)}
    assert [tuple(video) for video in layout.videos("all")] == sorted(frames.items())
    # What is left of a training part behind whole windows is a clip unless it is too short.
    parts = [divmod(round(0.7 * count), 24) for count in frames.values()]
    clips = sum(whole + (rest >= config.min_clip_frames) for whole, rest in parts)
    assert plan.splits["train"].clips == clips and plan.splits["test"].clips == len(frames)
    clip = plan.make_clip("train", 0)
    mask = cv2.imread(str(source / "Annotations/480p/blackswan/00000.png"), 0) > 0
    ys, xs = np.nonzero(mask)
    expected = [ys.min() / 480, xs.min() / 854, (ys.max() + 1) / 480, (xs.max() + 1) / 854]
    np.testing.assert_allclose(clip.boxes[0], [expected], rtol=1e-6)
    # Sampling a fifth of the rows and columns keeps the area but for the outline.
    assert decoded(clip.masks[0]).mean() == pytest.approx(mask.mean(), rel=0.03)
    assert clip.images[0] != clip.images[1] and len(clip.images) == 24
