"""Masks of clips go where the pixels go: on painted clips, whose colours say what is an object."""

import cv2
import numpy as np
import painted
import pytest

from memvid_tf.data import records

SIZE = painted.SIZE


def make_clip(split, index):
    """The painted clip with masks; a frame without objects has none stored."""
    plain = painted.make_clip(split, index)
    clip = records.ClipRecord(plain.clip_id, *SIZE)
    for t in range(len(plain.images)):
        mask = np.zeros(SIZE, np.uint8)
        for number, (_, _, y0, x0, y1, x1) in enumerate(painted.objects(split, index, t), 1):
            mask[y0:y1, x0:x1] = number
        stored = cv2.imencode(".png", mask)[1].tobytes() if mask.any() else b""
        clip.add_frame(
            plain.images[t], plain.boxes[t], plain.classes[t], plain.tracks[t], mask=stored
        )
    return clip


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks") / "set"
    return painted.write_set(folder, make_clip)


@pytest.fixture(name="stills", scope="module")
def fixture_stills(tmp_path_factory):
    def still(split, index):
        whole = make_clip(split, index)
        parts = (whole.images, whole.boxes, whole.classes, whole.tracks, whole.masks)
        clip = records.ClipRecord(whole.clip_id, *SIZE)
        clip.add_frame(*(part[1] for part in parts))
        return clip

    folder = tmp_path_factory.mktemp("stills") / "set"
    return painted.write_set(folder, still, train=(6, 1), test=(2, 1))


def coloured(frames):
    """[..., H, W] bool: where a block is painted; the ground is grey."""
    return frames.max(-1).astype(int) - frames.min(-1) > 80


def test_masks_are_the_painted_blocks(folder):
    for batch in painted.batches(painted.evaluating(folder, masks=True, global_batch_size=2), -1):
        assert batch["masks"].dtype == np.uint8
        np.testing.assert_array_equal(batch["masks"][..., 0], coloured(batch["frames"]))
    assert "masks" not in painted.batches(painted.evaluating(folder), 1)[0]


@pytest.mark.parametrize(
    "change",
    [{"flip": True}, {"max_shift": 0.3}, {"time_reversal": True, "max_stride": 2}],
    ids=lambda change: next(iter(change)),
)
def test_whole_pixels_stay_whole(folder, change):
    shown = 0
    for example in painted.examples(painted.training(folder, masks=True, **change), 30):
        np.testing.assert_array_equal(example["masks"][..., 0], coloured(example["frames"]))
        shown += example["masks"].sum()
    assert shown > 1000


@pytest.mark.parametrize(
    "change",
    [{"random_crop": True, "crop_min_scale": 0.5}, {"ssd_crop": True, "max_expand": 2.0}],
    ids=lambda change: next(iter(change)),
)
def test_resampled_masks_follow_the_pixels(folder, change):
    """But at borders, which resampling blurs: a pixel in fifteen."""
    for example in painted.examples(painted.training(folder, masks=True, **change), 20):
        assert set(np.unique(example["masks"])) <= {0, 1}
        wrong = example["masks"][..., 0] != coloured(example["frames"])
        assert wrong.mean() < 1 / 15


def test_a_still_moves_with_its_mask(folder, stills):
    config = painted.training(
        folder, masks=True, still_paths=(str(stills),), still_share=0.5, still_min_scale=0.6
    )
    moved = 0
    for example in painted.examples(config, 24):
        mask = example["masks"][..., 0]
        assert (mask != coloured(example["frames"])).mean() < 1 / 15
        is_still = example["clip_index"] >= painted.TRAIN_CLIPS
        moved += is_still and np.any(mask[0] != mask[-1])
    assert moved > 5


def test_masks_of_another_size_are_resized(folder):
    config = painted.evaluating(folder, masks=True, image_size=(16, 24), global_batch_size=1)
    batch = painted.batches(config, 1)[0]
    assert batch["masks"].shape == (1, 8, 16, 24, 1)
    assert batch["masks"][0, 0, 3, 3] == 1 and batch["masks"][0, 0, 14, 2] == 0
