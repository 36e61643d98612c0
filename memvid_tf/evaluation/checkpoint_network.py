"""A network of Keras as `rollout.Network`: what training made, before any export."""

import numpy as np
import tensorflow as tf

from memvid_tf.models.interleaved import InterleavedDetector


class CheckpointNetwork:
    """Runs an `InterleavedDetector` with its variables as they are.

    Args:
      model: a built network, restored from a checkpoint.
    """

    def __init__(self, model: InterleavedDetector):
        self.model = model
        self.anchors = model.anchors
        self._extract = tf.function(self._extract_graph)
        self._step = tf.function(self._step_graph)

    def _extract_graph(self, frames, extractor):
        return self.model.extract(self.model.preprocess(frames, extractor), extractor)

    def _step_graph(self, features, state, extractor):
        output, next_state = self.model.step(features, state, extractor)
        return self.model.detect(output), next_state

    def extract(self, frames: np.ndarray, extractor: str):
        """See `rollout.Network`."""
        return self._extract(tf.constant(frames), extractor)

    def initial_state(self, batch: int):
        """See `rollout.Network`."""
        return self.model.initial_state(batch)

    def step(self, features, state, extractor: str):
        """See `rollout.Network`."""
        predictions, next_state = self._step(features, state, extractor)
        return (
            predictions["box_encodings"].numpy(),
            predictions["class_logits"].numpy(),
            next_state,
        )
