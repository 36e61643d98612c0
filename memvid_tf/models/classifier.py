"""The interleaved network as a classifier, for pretraining (LFS 3.3, first phase).

The detection layers are left out; one average pooling and one fully connected layer follow the
memory. The next phase takes extractors and memory and leaves the classifier's layer behind.
"""

import numpy as np
import tensorflow as tf
import tf_keras

from memvid_tf.models.interleaved import InterleavedConfig, build


class InterleavedClassifier(tf_keras.Model):
    """Extractors, memory and a classifier.

    Attributes:
      detector: the interleaved detector, built, whose detection layers are not trained.
    """

    def __init__(self, config: InterleavedConfig, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.detector = build(config)
        self.detector.head.trainable = False
        self.logits = tf_keras.layers.Dense(num_classes, name="logits")

    @property
    def norm(self):
        """See `BatchNorm`."""
        return self.detector.norm

    def call(self, frames, f0_steps=None, f1_steps=None, training=False):
        """Classifies what a clip shows, after each of its frames.

        Args:
          frames: [B, T, H, W, 3] uint8.
          f0_steps, f1_steps: see `InterleavedDetector.remember`.
          training: whether batch statistics are updated.

        Returns:
          [B, T, num_classes] float32 logits.
        """
        found = self.detector.remember(frames, f0_steps, f1_steps, training)
        logits = self.logits(tf.reduce_mean(found.outputs, [1, 2]))
        return tf.cast(found.in_time(logits), tf.float32)


def build_classifier(config: InterleavedConfig, num_classes: int) -> InterleavedClassifier:
    """The network with all its variables, so that a checkpoint can be restored into it."""
    model = InterleavedClassifier(config, num_classes)
    model(tf.constant(np.zeros([1, 2, *config.image_size, 3], np.uint8)))
    return model
