"""The DAVIS 2016 converter, on a small tree built here and on real sequences."""

import cv2
import numpy as np
import pytest

from memvid_tf.data import davis, records, sharding
from memvid_tf.data.davis import DavisConfig
from memvid_tf.data.records import DatasetError


def build(root, lengths, size=(48, 64), empty=()):
    """A DAVIS 2016 tree; in frame t of a sequence the object is a block that moves by t pixels.

    Frames in `empty`, (sequence, t), have no object. Returns the blocks, `[y0, x0, y1, x1]`.
    """
    blocks = {}
    for number, (name, count) in enumerate(lengths.items()):
        for part in (davis.IMAGES, davis.MASKS):
            (root / part / name).mkdir(parents=True)
        for t in range(count):
            image = np.full((*size, 3), 40 + 10 * number, np.uint8)
            mask = np.zeros(size, np.uint8)
            top, left = 5 + number, 8 + t
            if (name, t) not in empty:
                image[top:top + 12, left:left + 20] = 200
                mask[top:top + 12, left:left + 20] = 255
            blocks[name, t] = [top, left, top + 12, left + 20]
            cv2.imwrite(str(root / davis.IMAGES / name / f"{t:05d}.jpg"), image,
                        [cv2.IMWRITE_JPEG_QUALITY, 98])
            cv2.imwrite(str(root / davis.MASKS / name / f"{t:05d}.png"), mask)
    return blocks


def test_conversion_of_a_small_tree(tmp_path):
    blocks = build(tmp_path / "DAVIS", {"bear": 20, "ant": 10}, empty={("ant", 8)})
    # Half the size in both directions, so blocks of even corners stay exact.
    config = DavisConfig(image_size=(24, 32), clip_frames=6, unroll_frames=2)
    info, _ = sharding.write_dataset(
        tmp_path / "set", davis.plan(tmp_path / "DAVIS", config), workers=0)
    assert info.labels == ("object",) and info.image_size == (24, 32)
    train = list(records.read_clips(info, "train"))
    test = list(records.read_clips(info, "test"))
    # ant: 7 of 10 frames train: 6 and a tail of 1, too short. bear: 14 of 20: 6, 6 and 2.
    assert [(clip.clip_id, len(clip.images)) for clip in train] == [
        ("davis2016-ant-00000", 6), ("davis2016-bear-00000", 6), ("davis2016-bear-00006", 6),
        ("davis2016-bear-00012", 2)]
    assert [(clip.clip_id, len(clip.images)) for clip in test] == [
        ("davis2016-ant-00007", 3), ("davis2016-bear-00014", 6)]
    assert info.split("test").clip_frames == 6
    assert info.split("train").statistics["min_clip_frames"] == 2
    for clip in train + test:
        _, name, first = clip.clip_id.split("-")
        for t, (boxes, mask, data) in enumerate(zip(clip.boxes, clip.masks, clip.images)):
            frame = int(first) + t
            if (name, frame) == ("ant", 8):
                assert len(boxes) == 0 and mask == b""
                continue
            y0, x0, y1, x1 = blocks[name, frame]
            np.testing.assert_allclose(boxes, [[y0 / 48, x0 / 64, y1 / 48, x1 / 64]], rtol=1e-6)
            stored = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)
            expected = np.zeros((48, 64), np.uint8)
            expected[y0:y1, x0:x1] = 1
            # Nearest neighbour at exactly one half takes every second pixel.
            np.testing.assert_array_equal(stored, expected[::2, ::2])
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            inside = cv2.erode(stored, np.ones((3, 3), np.uint8)) > 0
            # JPEG twice at 95 and more: a few grey levels.
            assert abs(int(image[inside].mean()) - 200) < 6


def test_a_class_for_every_sequence(tmp_path):
    build(tmp_path, {"bear": 6, "ant": 6})
    plan = davis.plan(tmp_path, DavisConfig(clip_frames=4, unroll_frames=2, label=""))
    assert plan.labels == ["ant", "bear"]
    assert [plan.make_clip("test", i).classes[0].tolist() for i in range(2)] == [[1], [2]]


def test_windows_cover_without_overlap():
    rng = np.random.default_rng(1)
    for _ in range(200):
        config = DavisConfig(clip_frames=int(rng.integers(4, 20)), unroll_frames=4,
                             train_part=rng.uniform(.1, .9))
        count = int(rng.integers(2, 90))
        train, (test,) = davis.split_sequence("x", count, config)
        assert test.first + test.count == count and test.count >= 1
        assert test.first == np.clip(int(config.train_part * count), 1, count - 1)
        used = [t for w in train for t in range(w.first, w.first + w.count)]
        assert used == list(range(len(used)))
        assert test.first - len(used) < config.unroll_frames
        assert all(4 <= w.count <= config.clip_frames for w in train)


def test_tight_boxes():
    mask = np.zeros((10, 20), bool)
    assert davis.tight_box(mask) is None
    mask[3, 4] = mask[7, 18] = True
    np.testing.assert_allclose(davis.tight_box(mask), [.3, .2, .8, .95], rtol=1e-6)


def test_wrong_trees_are_named(tmp_path):
    config = DavisConfig(clip_frames=4, unroll_frames=4)
    with pytest.raises(DatasetError, match="not laid out like DAVIS 2016: .*JPEGImages"):
        davis.plan(tmp_path, config)
    build(tmp_path, {"bear": 8})
    mask = tmp_path / davis.MASKS / "bear" / "00003.png"
    cv2.imwrite(str(mask), np.full((48, 64), 7, np.uint8))
    plan = davis.plan(tmp_path, config)
    with pytest.raises(DatasetError, match=r"00003.png is no DAVIS 2016 mask: it holds \[7\]"):
        plan.make_clip("train", 0)
    cv2.imwrite(str(mask), np.zeros((48, 60), np.uint8))
    with pytest.raises(DatasetError, match=r"00003.jpg is \(48, 64\) and its mask \(48, 60\)"):
        plan.make_clip("train", 0)
    mask.write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match="00003.png is not an image"):
        plan.make_clip("train", 0)
    mask.unlink()
    with pytest.raises(DatasetError, match="00003.jpg has no mask"):
        davis.plan(tmp_path, config)
    build(tmp_path / "short", {"bear": 3})
    with pytest.raises(DatasetError, match="no sequence long enough: the longest has 3"):
        davis.plan(tmp_path / "short", config)
    with pytest.raises(ValueError, match="clip_frames 2 is not allowed: at least unroll_frames"):
        DavisConfig(clip_frames=2)


def test_real_sequences(fixtures_dir, tmp_path):
    source = fixtures_dir / "davis2016"
    if not source.is_dir():
        pytest.skip(f"no DAVIS sequences at {source}")
    plan = davis.plan(source, DavisConfig(image_size=(96, 160), clip_frames=24))
    assert set(plan.config["sequences"]) == {
        "blackswan", "bmx-trees", "car-shadow", "dog", "drift-straight"}
    info, _ = sharding.write_dataset(tmp_path / "set", plan, workers=0)
    total = sum(plan.config["sequences"].values())
    frames = sum(split.frames for split in info.splits.values())
    # What is lost are tails of training parts, each shorter than a window.
    assert total - 5 * 7 <= frames <= total
    assert info.split("test").clips == 5
    assert 0 < info.split("train").statistics["objects_per_frame"] <= 1
    clip = next(records.read_clips(info, "train"))
    mask = davis.read_mask(source / davis.MASKS / "blackswan" / "00000.png")
    ys, xs = np.nonzero(mask)
    expected = [ys.min() / 480, xs.min() / 854, (ys.max() + 1) / 480, (xs.max() + 1) / 854]
    np.testing.assert_allclose(clip.boxes[0], [expected], rtol=1e-6)
    stored = cv2.imdecode(np.frombuffer(clip.masks[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    # Sampling a fifth of the rows and columns keeps the area but for the outline.
    assert stored.mean() == pytest.approx(mask.mean(), rel=.03)
    assert clip.images[0] != clip.images[1]
