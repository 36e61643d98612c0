"""Networks that were never trained, for what does not depend on their weights.

Weights are random, and ranges and batch statistics are observed on noise: how long a network takes,
how large its files are and whether it can be exported are the same for any weights.
"""

import numpy as np

OBSERVED_STEPS = 2  # the first initialises ranges and batch statistics
NOISE_SEED = 0


def in_precision(config, precision: str):
    """A network's configuration for "int8" or "float32", whose statistics settle at once."""
    quantization = "int8" if precision == "int8" else "none"
    return config.replace(quantization=quantization, norm_momentum=0.5)


def observe(network, *leading: int, steps: int = OBSERVED_STEPS):
    """Runs noise through a network, so that it can be exported.

    Args:
      network: reads uint8 frames of its configuration's `image_size`.
      *leading: sizes in front of a frame's own.
      steps: how often.

    Returns:
      The network.
    """
    import tensorflow as tf

    rng = np.random.default_rng(NOISE_SEED)
    for _ in range(steps):
        shape = (*leading, *network.config.image_size, 3)
        network(tf.constant(rng.integers(0, 256, shape, np.uint8)), training=True)
    return network


def observe_attention(attention):
    """The same of an attention network, which it returns."""
    import tensorflow as tf

    windows = attention.windows
    presence = tf.random.uniform([1, windows.slices, windows.slices, 1], seed=NOISE_SEED)
    attention(presence, tf.zeros([1, windows.count]), training=True)
    return attention


def flatbuffer(network, precision: str) -> bytes:
    """The `.tflite` of a single-frame network: from a stored frame to what its tail returns."""
    from export import bundle, single_frame_bundle

    graphs = single_frame_bundle.convert_graphs(network, bundle.Options(precision=precision))
    return graphs["network"]
