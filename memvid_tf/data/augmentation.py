"""Augmentation of training windows: one change for all frames of a window.

A window is a dict of frames [T, H, W, 3] uint8, boxes [T, N, 4] `[ymin, xmin, ymax, xmax]` in
[0, 1], classes [T, N] int32, 0 where padded, tracks [T, N] int32, -1 where padded, and more. An
object whose centre leaves the frame is dropped. Where it has masks [T, H, W, 1] uint8, these are
pictures that change as the frames do, 255 in the foreground, until `decided`.

`viewed` makes every frame of a rectangle of the stored picture, in one resampling: SSD's patches
and zoom out (Liu et al., 2016, section 2.2), the same for all frames of a window, and rectangles
that move and grow, which make a video of a still image (LFS section 4.1 trains on both). How they
move is one of `STILL_MOTIONS`: a little, as LFS says, or from one random box to another, as PW 3.4.
A rectangle that is enlarged is bilinear as in `resized`; one that is made smaller is a little
softer, since its borders lie between pixels.

Differs from SSD: a patch has to cover part of an object, as TensorFlow's samplers have it, instead
of a minimum IoU; saturation, contrast and brightness change, hue and the order of channels do not.
"""

import tensorflow as tf

PADDING_TRACK = -1
# What a view shows where it leaves the picture: mid-grey, the model's zero.
PADDING_GREY = 128
# Pictures of a window, and what is around them.
PICTURES = {"frames": PADDING_GREY, "masks": 0}
# Bounds of the photometric change, one draw a window: SSD's brightness and saturation, with a
# narrower contrast because textures are contrast.
BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.8, 1.2)
SATURATION_RANGE = (0.5, 1.5)
# SSD's patches: one of these parts of an object has to be covered, or any; or there is no patch.
PATCH_COVERS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
PATCH_ASPECTS = (0.5, 2.0)
PATCH_AREAS = (0.1, 1.0)
# How far a still's view moves over a window, and how much it grows: parts of its side. An object as
# large as the view then moves as fast as the medium third of VID's (derived in shared design).
STILL_DRIFT = 0.15
STILL_ZOOM = 0.15
# PW's fake videos: part of an object that one of the two boxes has to show, and the standard
# deviation of the speed, part of its mean. PW 3.4 gives neither.
BOX_COVERS = 0.5
SPEED_DEVIATION = 0.5


def resized(images: tf.Tensor, size) -> tf.Tensor:
    """[n, H, W, C] or [H, W, C] uint8 to another (height, width), rounded to nearest.

    Area mean along an axis that shrinks, bilinear along one that grows: what
    `runtime.preprocess.resize` does, so that a network sees in use what it was trained on.
    """
    batch = images if images.shape.rank == 4 else images[None]
    shrunk = tf.minimum(tf.shape(batch)[1:3], size)
    scaled = tf.image.resize(batch, shrunk, tf.image.ResizeMethod.AREA)
    scaled = tf.cond(
        tf.reduce_all(shrunk == size), lambda: scaled, lambda: tf.image.resize(scaled, size)
    )
    rounded = tf.cast(tf.clip_by_value(tf.round(scaled), 0.0, 255.0), tf.uint8)
    return rounded if images.shape.rank == 4 else rounded[0]


def decided(masks: tf.Tensor) -> tf.Tensor:
    """Masks as pictures, of which resampling makes shades, to 1 where it is mostly foreground."""
    return tf.cast(masks >= 128, tf.uint8)


def _changed(window: dict, change) -> dict:
    """Pictures of a window after `change(picture, what is around it)`."""
    return {
        name: change(window[name], around) for name, around in PICTURES.items() if name in window
    }


def flipped(window: dict) -> dict:
    """Mirrors a window left to right.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes [T, N] and more.
    """
    top, left, bottom, right = tf.unstack(window["boxes"], axis=-1)
    boxes = tf.stack([top, 1 - right, bottom, 1 - left], axis=-1)
    there = window["classes"][..., None] > 0

    def mirrored(pictures, _):
        # Rows of pixels are the form in which TensorFlow reverses fast, ten times as a strided
        # slice.
        shape = tf.shape(pictures)
        rows = tf.reverse(tf.reshape(pictures, [-1, shape[2], shape[3]]), [1])
        return tf.ensure_shape(tf.reshape(rows, shape), pictures.shape)

    return {
        **window,
        **_changed(window, mirrored),
        "boxes": tf.where(there, boxes, 0.0),
    }


def cropped(window: dict, scale: tf.Tensor, place: tf.Tensor) -> dict:
    """Cuts one rectangle out of every frame and resizes it to the frame's size.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes and tracks [T, N] and more.
      scale: [] float, in (0, 1]: part of each side that is kept, rounded to even pixels.
      place: [2] float in [0, 1): where, between topmost and leftmost and the other ends.
    """
    size = tf.shape(window["frames"])[1:3]
    kept = tf.maximum(2 * tf.cast(tf.round(scale * tf.cast(size, tf.float32) / 2), tf.int32), 2)
    kept = tf.minimum(kept, size)
    corner = 2 * tf.cast(place * tf.cast((size - kept) // 2 + 1, tf.float32), tf.int32)
    corner = tf.minimum(corner, size - kept)

    def cut(pictures, _):
        part = tf.slice(pictures, [0, *tf.unstack(corner), 0], [-1, *tf.unstack(kept), -1])
        return tf.ensure_shape(resized(part, size), pictures.shape)

    return {**window, **_changed(window, cut), **_boxes_in(window, corner, kept, size)}


def shifted(window: dict, offset: tf.Tensor) -> dict:
    """Moves the view of every frame by whole pixels; what enters is grey.

    Args:
      window: frames [T, H, W, 3], boxes [T, N, 4], classes and tracks [T, N] and more.
      offset: [2] int32, pixels down and right; may be negative.
    """
    size = tf.shape(window["frames"])[1:3]
    before, after = tf.maximum(-offset, 0), tf.maximum(offset, 0)

    def moved(pictures, around):
        padded = tf.pad(
            pictures,
            [[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]],
            constant_values=tf.constant(around, tf.uint8),
        )
        part = tf.slice(padded, [0, *tf.unstack(after), 0], [-1, *tf.unstack(size), -1])
        return tf.ensure_shape(part, pictures.shape)

    return {**window, **_changed(window, moved), **_boxes_in(window, offset, size, size)}


def random_patch(
    size: tf.Tensor, boxes: tf.Tensor, max_expand: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws SSD's zoom out and patch.

    Args:
      size: [2] float, (height, width) of the picture.
      boxes: [n, 4] of the objects, in [0, 1].
      max_expand: every second time the picture is put at random on a canvas of up to so many times
        its sides; 1 never.
      seed: [2] integers.

    Returns:
      Corner and extent of the patch, [2] float pixels of the picture each; it may reach beyond it.
    """
    seeds = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    draws = tf.random.stateless_uniform([4], seeds[0], alg="philox")
    expand = tf.where(draws[0] < 0.5, 1 + (max_expand - 1) * draws[1], 1.0)
    canvas = size * expand
    corner = -draws[2:] * (canvas - size)
    two = tf.concat([size, size], 0)
    on_canvas = (boxes * two - tf.concat([corner, corner], 0)) / tf.concat([canvas, canvas], 0)
    which = tf.random.stateless_uniform(
        [], seeds[1], 0, len(PATCH_COVERS) + 1, tf.int32, alg="philox"
    )

    def patch():
        whole = tf.cast(tf.round(canvas), tf.int32)
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.concat([whole, [3]], 0),
            tf.clip_by_value(on_canvas, 0.0, 1.0)[None],
            seeds[2],
            min_object_covered=tf.gather(PATCH_COVERS, which - 1),
            aspect_ratio_range=PATCH_ASPECTS,
            area_range=PATCH_AREAS,
            max_attempts=50,
            use_image_if_no_bounding_boxes=True,
        )
        return corner + tf.cast(begin[:2], tf.float32), tf.cast(extent[:2], tf.float32)

    return tf.cond(which > 0, patch, lambda: (corner, canvas))


def still_motion(frames: int, min_scale: float, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a view that moves and grows evenly over a picture.

    Args:
      frames: T.
      min_scale: the smallest side of the view, part of the picture's.
      seed: [2] integers.

    Returns:
      Corner and extent, [T, 2] float, parts of the picture's sides, always inside.
    """
    draws = tf.random.stateless_uniform([6], seed, alg="philox")
    scale = min_scale + (1 - min_scale) * draws[0]
    other = tf.clip_by_value(scale * (1 + STILL_ZOOM * (2 * draws[1] - 1)), min_scale, 1.0)
    corner = draws[2:4] * (1 - scale)
    drift = STILL_DRIFT * scale * (2 * draws[4:] - 1)
    target = tf.clip_by_value(corner + (scale - other) / 2 + drift, 0.0, 1 - other)
    part = tf.linspace(0.0, 1.0, frames)[:, None]
    scales = scale + (other - scale) * part
    return corner + (target - corner) * part, tf.concat([scales, scales], 1)


def motion_between_boxes(
    frames: int, min_scale: float, boxes: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a view that moves from one random box to another at a Gaussian speed (PW 3.4).

    Args:
      frames: T.
      min_scale: the smallest side of the view, part of the picture's.
      boxes: [n, 4] of the objects in the picture, in [0, 1]; of one of them the first or the last
        view shows at least `BOX_COVERS`.
      seed: [2] integers.

    Returns:
      Corner and extent, as of `still_motion`.
    """
    seeds = tf.unstack(tf.random.split(seed, 4, alg="philox"))
    grid = 1000  # boxes are drawn in whole steps
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        [grid, grid, 3],
        tf.clip_by_value(boxes, 0.0, 1.0)[None],
        seeds[0],
        min_object_covered=BOX_COVERS,
        aspect_ratio_range=(1.0, 1.0),
        area_range=(min_scale**2, 1.0),
        max_attempts=50,
        use_image_if_no_bounding_boxes=True,
    )
    showing = tf.cast(tf.concat([begin[:2], size[:2]], 0), tf.float32) / grid
    draws = tf.random.stateless_uniform([3], seeds[1], alg="philox")
    scale = min_scale + (1 - min_scale) * draws[0]
    anywhere = tf.concat([draws[1:] * (1 - scale), [scale, scale]], 0)
    ends = tf.stack([showing, anywhere])
    ends = tf.cond(
        tf.random.stateless_uniform([], seeds[2], alg="philox") < 0.5,
        lambda: ends,
        lambda: ends[::-1],
    )
    speeds = tf.random.stateless_normal([max(frames - 1, 1)], seeds[3], alg="philox")
    speeds = tf.maximum(1 + SPEED_DEVIATION * speeds, 0.0) + 1e-6  # it moves one way, and arrives
    part = (tf.cumsum(speeds) / tf.reduce_sum(speeds))[: frames - 1]
    part = tf.concat([[0.0], part], 0)[:, None]
    views = ends[0] + (ends[1] - ends[0]) * part
    return views[:, :2], views[:, 2:]


STILL_MOTIONS = ("drift", "between_boxes")


def viewed(window: dict, corner: tf.Tensor, extent: tf.Tensor, size: tuple[int, int]) -> dict:
    """Makes every frame of a rectangle of its picture.

    Args:
      window: see the module; frames may be [1, H, W, 3] where all are the same picture.
      corner: [T, 2] float, top and left in pixels of the picture; may lie outside.
      extent: [T, 2] float, height and width in pixels of the picture.
      size: (height, width) of the frames that are made.
    """
    count = corner.shape[0]

    def seen(pictures, around):
        last, channels = tf.shape(pictures)[0] - 1, pictures.shape[-1]

        def frame(t):
            # The kernel leaves 0 where there is no picture, so 0 has to be what is around it.
            picture = tf.cast(pictures[tf.minimum(t, last)][None], tf.float32) - around
            scale = tf.cast(size, tf.float32) / extent[t]
            made = tf.raw_ops.ScaleAndTranslate(
                images=picture,
                size=size,
                scale=scale,
                translation=-corner[t] * scale,
                kernel_type="triangle",
                antialias=True,
            )[0]
            return tf.cast(tf.clip_by_value(tf.round(made + around), 0.0, 255.0), tf.uint8)

        spec = tf.TensorSpec((*size, channels), tf.uint8)
        made = tf.map_fn(frame, tf.range(count), fn_output_signature=spec)
        return tf.ensure_shape(made, (count, *size, channels))

    whole = tf.shape(window["frames"])[1:3]
    return {
        **window,
        **_changed(window, seen),
        **_boxes_in(window, corner[:, None], extent[:, None], whole),
    }


def _boxes_in(window, corner, kept, size):
    """Objects in the view that starts at `corner` and is `kept` pixels large, clipped to it.

    Views are [2], or [T, 1, 2] where every frame has its own. An object whose centre has left the
    view is dropped.
    """
    corner, kept, size = (
        tf.concat([v, v], -1) for v in (tf.cast(v, tf.float32) for v in (corner, kept, size))
    )
    boxes = (window["boxes"] * size - corner) / kept
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = tf.reduce_all((centre >= 0) & (centre <= 1), axis=-1) & (window["classes"] > 0)
    return {
        "boxes": tf.where(inside[..., None], tf.clip_by_value(boxes, 0.0, 1.0), 0.0),
        "classes": tf.where(inside, window["classes"], 0),
        "tracks": tf.where(inside, window["tracks"], PADDING_TRACK),
    }


def recolored(frames: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """One change of saturation, contrast and brightness for all frames of a window.

    Args:
      frames: [T, H, W, 3] uint8.
      draws: [3] float in [0, 1): positions in the ranges of saturation, contrast, brightness.

    Returns:
      [T, H, W, 3] uint8.
    """
    low = tf.constant([SATURATION_RANGE[0], CONTRAST_RANGE[0], -BRIGHTNESS_DELTA])
    high = tf.constant([SATURATION_RANGE[1], CONTRAST_RANGE[1], BRIGHTNESS_DELTA])
    saturation, contrast, brightness = tf.unstack(low + (high - low) * draws)
    # All three are linear in the colours, so one 3x3 matrix and an offset do it in a pass.
    weights = tf.constant([0.299, 0.587, 0.114])
    grey = tf.ones([3, 1]) * weights
    matrix = contrast * (saturation * tf.eye(3) + (1 - saturation) * grey)
    values = tf.cast(frames, tf.float32)
    mean = tf.reduce_mean(values, axis=(0, 1, 2))
    level = (1 - contrast) * tf.reduce_sum(mean * weights) + brightness
    changed = tf.linalg.matmul(values, matrix, transpose_b=True) + level
    return tf.cast(tf.clip_by_value(tf.round(changed), 0.0, 255.0), tf.uint8)
