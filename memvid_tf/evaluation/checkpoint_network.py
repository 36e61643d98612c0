"""A network of Keras as `rollout.Network`: what training made, before any export."""

import numpy as np
import tensorflow as tf

from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.policy import ETA_ONE, Policy, PolicyConfig
from memvid_tf.runtime.manifest import PolicySpec
from memvid_tf.runtime.schedules import ACTIONS


def policy_spec(config: PolicyConfig) -> PolicySpec:
    """How a policy network is called, as a bundle's manifest says it."""
    return PolicySpec(ACTIONS, config.history, ETA_ONE, config.observes)


class CheckpointNetwork:
    """Runs an `InterleavedDetector` with its variables as they are.

    Args:
      model: a built network, restored from a checkpoint.
      policy: its policy, built, or None.
    """

    def __init__(self, model: InterleavedDetector, policy: Policy | None = None):
        self.model, self._policy = model, policy
        self.policy = None if policy is None else policy_spec(policy.config)
        self.f1_only_reads = model.memory.f1_only_reads
        self.anchors = model.anchors
        self._values = tf.function(
            lambda after, before, eta: policy(after, before, eta), autograph=False
        )
        self._extract = tf.function(self._extract_graph, autograph=False)
        self._step = tf.function(self._step_graph, autograph=False)

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

    def choose(self, first, a, b):
        """See `rollout.Network`."""
        if first.all() or not first.any():
            return a if first.all() else b
        first = first[:, None, None, None]
        return type(a)(*(tf.where(first, x, y) for x, y in zip(a, b)))

    def q_values(self, after, before, eta: np.ndarray) -> np.ndarray:
        """See `rollout.Network`."""
        ones = tf.constant(eta * np.float32(ETA_ONE))
        return self._values(after, before, ones).numpy()
