"""Views of pictures: SSD's patches, and stills that move, against positions worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from memvid_tf.data import augmentation
from memvid_tf.runtime import preprocess


def axis_weights(source, target):
    """[target, source]: the area mean along an axis that shrinks, bilinear along one that grows."""
    weights = np.zeros((target, source))
    for i in range(target):
        if target <= source:
            for j in range(source):
                low, high = i * source / target, (i + 1) * source / target
                weights[i, j] = max(0.0, min(high, j + 1) - max(low, j)) * target / source
        else:
            centre = (i + 0.5) * source / target - 0.5
            low = int(np.floor(centre))
            for j, part in ((low, 1 - (centre - low)), (low + 1, centre - low)):
                weights[i, min(max(j, 0), source - 1)] += part
    return weights


@pytest.mark.parametrize(
    "size", [(20, 31), (37, 30), (53, 80), (20, 90), (61, 31), (37, 53), (1, 1), (18, 26)]
)
def test_resizing_is_one_definition(size):
    """Training and runtime against weights worked out pixel by pixel, of a picture of 37 x 53."""
    picture = np.random.default_rng(4).integers(0, 256, (37, 53, 3), np.uint8)
    rows, columns = axis_weights(37, size[0]), axis_weights(53, size[1])
    wanted = np.einsum("ij,jkc,lk->ilc", rows, picture.astype(float), columns)
    trained = augmentation.resized(tf.constant(picture), size).numpy()
    assert trained.dtype == np.uint8
    np.testing.assert_allclose(trained, wanted, atol=0.51)  # it rounds to nearest
    used = preprocess.resize(picture, size)
    # OpenCV weighs with eleven bits, and rounds between the axes where only one shrinks.
    np.testing.assert_allclose(used, wanted, atol=1.2)
    assert np.abs(used.astype(int) - trained).max() <= 1
    # Pictures of a size that a graph does not know, several at once.
    many = tf.function(
        lambda images: augmentation.resized(images, size),
        input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
    )(picture[None].repeat(2, 0))
    np.testing.assert_array_equal(many, np.stack([trained, trained]))


def window(pictures, boxes=((0.25, 0.25, 0.75, 0.75),)):
    count = len(boxes)
    return {
        "frames": tf.constant(pictures, tf.uint8),
        "boxes": tf.constant([boxes], tf.float32),
        "classes": tf.constant([[1 + i for i in range(count)]]),
        "tracks": tf.constant([[10 + i for i in range(count)]]),
    }


def test_views_of_whole_pixels_are_cuts_with_grey_outside():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 20, 30, 3), np.uint8)
    for top, left in ((0, 0), (4, 7), (-3, 5), (12, -6)):
        seen = augmentation.viewed(
            window(picture),
            tf.constant([[top, left]], tf.float32),
            tf.constant([[10.0, 16.0]]),
            (10, 16),
        )
        padded = np.pad(picture[0], ((20, 20), (20, 20), (0, 0)), constant_values=128)
        np.testing.assert_array_equal(
            seen["frames"][0], padded[20 + top : 30 + top, 20 + left : 36 + left]
        )


def test_a_view_keeps_positions_when_it_zooms():
    """On a ramp the grey says where a pixel is: x = 4.5 + extent (j + .5) / 40 - .5."""
    picture = np.broadcast_to((5 * np.arange(48))[:, None], (1, 32, 48, 3)).astype(np.uint8)
    for extent in (20.0, 40.0):
        seen = augmentation.viewed(
            window(picture),
            tf.constant([[2.0, 4.5]]),
            tf.constant([[extent / 2, extent]]),
            (20, 40),
        )
        x = 4.5 + extent * (np.arange(40) + 0.5) / 40 - 0.5
        # Rounded to a grey level, a fifth of a pixel.
        np.testing.assert_allclose(
            seen["frames"][0, :, :, 0], np.broadcast_to(5 * x, (20, 40)), atol=0.51
        )


def test_every_frame_of_a_still_has_its_own_view_and_its_boxes():
    picture = np.full((1, 40, 40, 3), 20, np.uint8)
    picture[0, 10:30, 10:30] = 200
    corner, extent = (
        tf.constant([[0.0, 0.0], [5.0, 0.0], [0.0, 25.0]]),
        tf.constant([[40.0, 40.0]] * 3),
    )
    one = window(picture)
    three = {
        **one,
        **{name: tf.repeat(one[name], 3, axis=0) for name in ("boxes", "classes", "tracks")},
    }
    seen = augmentation.viewed(three, corner, extent, (40, 40))
    np.testing.assert_allclose(
        seen["boxes"][:, 0],
        [[0.25, 0.25, 0.75, 0.75], [0.125, 0.25, 0.625, 0.75], [0, 0, 0, 0]],
        atol=1e-6,
    )
    # The third view starts beyond the object's centre.
    assert seen["classes"][:, 0].numpy().tolist() == [1, 1, 0]
    assert seen["tracks"][:, 0].numpy().tolist() == [10, 10, -1]
    for t, top in ((0, 10), (1, 5)):
        rows = np.flatnonzero(seen["frames"][t, :, 20, 0].numpy() > 150)
        assert (rows[0], rows[-1]) == (top, top + 19)


def seeds(count):
    return [tf.constant([3, i]) for i in range(count)]


def test_stills_move_evenly_and_stay_inside():
    scales, drifts = [], []
    motion = tf.function(lambda seed: augmentation.still_motion(6, 0.5, seed))
    for seed in seeds(100):
        corner, extent = (x.numpy() for x in motion(seed))
        assert corner.shape == extent.shape == (6, 2)
        assert (corner >= -1e-6).all() and (corner + extent <= 1 + 1e-6).all()
        assert (extent >= 0.5 - 1e-6).all() and (extent[:, 0] == extent[:, 1]).all()
        for steps in (np.diff(corner, axis=0), np.diff(extent, axis=0)):
            np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6)
        centre = corner + extent / 2
        drifts.append(np.abs(centre[-1] - centre[0]).max() / extent[0, 0])
        scales.append(extent[0, 0])
    # Uniform in .5..1, moving by up to .15 of the view; the border may add half of a zoom of .15.
    assert min(scales) < 0.55 and max(scales) > 0.95
    assert 0.05 < np.mean(drifts) and max(drifts) <= 0.15 + 0.075 + 1e-6


def test_views_go_from_box_to_box_at_a_gaussian_speed():
    boxes = np.array([[0.05, 0.7, 0.15, 0.9]], np.float32)
    speeds, firsts, shown = [], [], []
    motion = tf.function(
        lambda seed: augmentation.motion_between_boxes(9, 0.3, tf.constant(boxes), seed)
    )
    for seed in seeds(200):
        corner, extent = (x.numpy() for x in motion(seed))
        assert corner.shape == extent.shape == (9, 2)
        assert (corner >= -1e-6).all() and (corner + extent <= 1 + 1e-6).all()
        assert (extent >= 0.3 - 2e-3).all()
        np.testing.assert_allclose(extent[:, 0], extent[:, 1], atol=2e-3)
        ends = [covered(boxes[0], corner[t], extent[t], np.ones(2)) for t in (0, -1)]
        assert max(ends) >= augmentation.BOX_COVERS - 0.02
        firsts.append(ends[0] >= augmentation.BOX_COVERS)
        shown.append(min(ends))
        # Both move along one line, by the same part of it in each frame.
        whole = np.concatenate([corner, extent], 1)
        axis = np.abs(whole[-1] - whole[0]).argmax()
        part = np.diff(whole[:, axis]) / (whole[-1, axis] - whole[0, axis])
        assert (part >= 0).all()
        speeds.append(8 * part)
    # Any of the two may be the one that shows the object; the other often does not.
    assert 0.3 < np.mean(firsts) < 0.9 and np.mean(np.array(shown) < 0.05) > 0.3
    # Mean 1 by design; cut at 0 and divided by its mean, .5 becomes some .45.
    assert 0.38 < np.std(speeds) < 0.52


def covered(box, corner, extent, size):
    """Part of a box that lies in a patch."""
    low = np.maximum(box[:2] * size, corner)
    high = np.minimum(box[2:] * size, corner + extent)
    area = np.prod((box[2:] - box[:2]) * size)
    return np.prod(np.maximum(high - low, 0)) / area


def test_patches_are_ssds():
    size = np.array([200.0, 300.0])
    boxes = np.array([[0.1, 0.1, 0.3, 0.3], [0.5, 0.6, 0.9, 0.8]], np.float32)
    whole, expanded, best = 0, 0, []
    patch = tf.function(
        lambda seed: augmentation.random_patch(
            tf.constant(size, tf.float32), tf.constant(boxes), 3.0, seed
        )
    )
    for seed in seeds(300):
        corner, extent = (x.numpy() for x in patch(seed))
        beyond = (corner < -0.5).any() or (corner + extent > size + 0.5).any()
        expanded += beyond
        assert (extent <= 3 * size + 1).all() and (corner >= -2 * size - 1).all()
        if (corner == 0).all() and (extent == size).all():
            whole += 1
            continue
        ratio = extent[1] / extent[0]
        # Between 1/2 and 2, a rounded pixel aside, or a zoomed-out canvas of 3:2.
        assert 0.45 < ratio < 2.1
        best.append(max(covered(box, corner, extent, size) for box in boxes))
    # No zoom (1/2) and no patch (1/7): 21 of 300 expected, standard deviation 4.5.
    assert 8 <= whole <= 40
    assert 60 <= expanded <= 150
    # Only one patch in seven, of any cover, may miss all objects.
    assert np.mean(np.array(best) < 0.1) < 0.12 and np.mean(np.array(best) > 0.89) > 0.5


def test_without_objects_views_move_too():
    corner, extent = augmentation.motion_between_boxes(
        3, 0.5, tf.zeros([0, 4]), tf.constant([0, 4])
    )
    assert (corner >= 0).numpy().all() and (corner + extent <= 1 + 1e-6).numpy().all()
    corner, _ = augmentation.motion_between_boxes(1, 0.5, tf.zeros([0, 4]), tf.constant([0, 4]))
    assert corner.shape == (1, 2)


def test_without_objects_there_are_patches_too():
    corner, extent = augmentation.random_patch(
        tf.constant([200.0, 300.0]), tf.zeros([0, 4]), 1.0, tf.constant([0, 4])
    )
    assert (corner.numpy() >= 0).all() and (extent.numpy() > 0).all()


@pytest.mark.parametrize("pictures", [1, 3])
def test_one_view_for_all_frames_of_a_video(pictures):
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (pictures, 16, 16, 3), np.uint8)
    one = window(frames)
    three = {
        **one,
        **{name: tf.repeat(one[name], 3, axis=0) for name in ("boxes", "classes", "tracks")},
    }
    seen = augmentation.viewed(three, tf.zeros([3, 2]), tf.fill([3, 2], 16.0), (16, 16))
    np.testing.assert_array_equal(seen["frames"], np.broadcast_to(frames, (3, 16, 16, 3)))
