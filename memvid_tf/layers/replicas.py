"""What the replicas of a training share: sums, means and batch statistics.

On one device each of these is what it would be without replicas, and adds nothing to the graph.
"""

import tensorflow as tf


def several() -> bool:
    """Whether there are others."""
    return _context() is not None and _context().num_replicas_in_sync > 1


def _context():
    return tf.distribute.get_replica_context()


def mean(x):
    """The mean of a tensor, or of a list of tensors, over the replicas; gradients pass through."""
    return _context().all_reduce(tf.distribute.ReduceOp.MEAN, x) if several() else x


def sums(xs):
    """The sums of a list of tensors over the replicas."""
    return _context().all_reduce(tf.distribute.ReduceOp.SUM, xs) if several() else xs


def moments(x):
    """Mean and variance of [B, H, W, C] over the batches of all replicas, which are of one size:
    float32, whatever x is."""
    x = tf.cast(x, tf.float32)
    first, second = mean([tf.reduce_mean(x, [0, 1, 2]), tf.reduce_mean(x * x, [0, 1, 2])])
    # Rounding may leave a constant channel below zero.
    return first, tf.maximum(second - first * first, 0.0)


def apply(optimizer, gradients, variables) -> None:
    """Takes a step with gradients that are the same on all replicas."""
    # Not every optimizer takes the argument, and on one device it says nothing.
    summed = {"experimental_aggregate_gradients": False} if several() else {}
    optimizer.apply_gradients(zip(gradients, variables), **summed)
