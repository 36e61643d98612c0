"""An exported bundle as `rollout.Network`: what a phone would compute."""

import numpy as np

from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector, dequantizer
from memvid_tf.runtime.policy import Policy


class BundleNetwork:
    """Runs the graphs of a bundle, clip by clip since their batch is one.

    Args:
      bundle: a bundle whose system is "interleaved".
      num_threads: threads of one invoke.
    """

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        self._detector = InterleavedDetector(bundle, num_threads)
        self._policy = None if bundle.manifest.policy is None else Policy(bundle, num_threads)
        self.policy = bundle.manifest.policy
        self.f1_only_reads = self._detector.f1_only_reads
        self.anchors = bundle.anchors
        step = bundle.manifest.calls["f0"][1]
        self._dequantize = [
            dequantizer(bundle.manifest.tensor(f"{step}/{head}", "outputs"))
            for head in ("box_encodings", "class_logits")
        ]

    def extract(self, frames: np.ndarray, extractor: str) -> list[np.ndarray]:
        """See `rollout.Network`."""
        features = []
        for frame in frames:
            image = getattr(self._detector.prepare(frame, (extractor,)), extractor)
            features.append(self._detector.extract(extractor, image))
        return features

    def initial_state(self, batch: int) -> list:
        """See `rollout.Network`."""
        return [self._detector.initial_state() for _ in range(batch)]

    def step_stored(self, features: np.ndarray, state, extractor: str):
        """One step of one clip: box encodings and class logits as stored, and the next state."""
        return self._detector.step(features, state, extractor, update_state=True)

    def step(self, features, state, extractor: str):
        """See `rollout.Network`."""
        boxes, logits, next_state = [], [], []
        for clip_features, clip_state in zip(features, state):
            box, logit, written = self.step_stored(clip_features, clip_state, extractor)
            boxes.append(self._dequantize[0](box)[0])
            logits.append(self._dequantize[1](logit)[0])
            next_state.append(written)
        return np.stack(boxes), np.stack(logits), next_state

    def choose(self, first, a, b):
        """See `rollout.Network`."""
        return [x if chosen else y for chosen, x, y in zip(first, a, b)]

    def q_values(self, after, before, eta: np.ndarray) -> np.ndarray:
        """See `rollout.Network`."""
        return np.stack([self._policy.q_values(*clip) for clip in zip(after, before, eta)])
