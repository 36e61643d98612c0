"""How far a flow is from where tracked objects were: supervision by boxes, without labelled flow.

At a place within the box of an object that the key frame shows too, the flow should be the way from
the object's centre to its centre in the key frame, in cells. Places outside of boxes, or within
several, teach nothing.
"""

import tensorflow as tf


def targets(now, tracks_now, key, tracks_key, map_size: tuple[int, int]):
    """What the flow of frames should be.

    Args:
      now: [B, N, 4] float32 boxes `ymin, xmin, ymax, xmax` of a frame, in 0..1.
      tracks_now: [B, N] int32 identities of its objects, -1 where padded.
      key, tracks_key: the same of its key frame, [B, M, 4] and [B, M].
      map_size: H, W.

    Returns:
      [B, H, W, 2] float32 in cells, and [B, H, W] float32, 1 where it is known, else 0.
    """
    height, width = map_size
    same = (tracks_now[:, :, tf.newaxis] == tracks_key[:, tf.newaxis]) & (
        tracks_now[:, :, tf.newaxis] >= 0
    )
    same = tf.cast(same, tf.float32)

    def centres(boxes):
        return (boxes[..., :2] + boxes[..., 2:]) / 2

    way = tf.matmul(same, centres(key)) - centres(now)
    way *= tf.constant([height, width], tf.float32)
    y = (tf.range(height, dtype=tf.float32)[:, tf.newaxis, tf.newaxis] + 0.5) / height
    x = (tf.range(width, dtype=tf.float32)[:, tf.newaxis] + 0.5) / width
    top, left, bottom, right = tf.unstack(now[:, tf.newaxis, tf.newaxis], axis=-1)
    inside = tf.cast((top <= y) & (y <= bottom) & (left <= x) & (x <= right), tf.float32)
    inside *= tf.cast(tracks_now >= 0, tf.float32)[:, tf.newaxis, tf.newaxis]
    alone = inside * tf.cast(tf.reduce_sum(inside, -1, keepdims=True) == 1, tf.float32)
    followed = alone * tf.reduce_sum(same, -1)[:, tf.newaxis, tf.newaxis]
    flow = tf.reduce_sum(followed[..., tf.newaxis] * way[:, tf.newaxis, tf.newaxis], -2)
    return flow, tf.reduce_sum(followed, -1)


def flow_loss(flow, wanted, known, largest: float):
    """Mean distance, the sum of both axes', in cells over the places where it is known.

    Args:
      flow: [B, H, W, 2] float32 in cells.
      wanted, known: what `targets` returned.
      largest: what the flow is bounded to.

    Returns:
      A scalar, 0 where nothing is known.
    """
    distance = tf.reduce_sum(tf.abs(flow - tf.clip_by_value(wanted, -largest, largest)), -1)
    return tf.math.divide_no_nan(tf.reduce_sum(known * distance), tf.reduce_sum(known))
