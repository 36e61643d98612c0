"""A bundle of Patchwork, or of a single-frame network, as `window_rollout.WindowNetwork`: what a
client runs."""

import copy

import numpy as np

from memvid_tf.evaluation.window_rollout import Costs
from memvid_tf.runtime.attention import Attention
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import dequantizer
from memvid_tf.runtime.windowed import load_network


class BundleWindows:
    """Runs the graphs of a bundle, one clip after another.

    Args:
      bundle: a bundle whose system is "patchwork" or "single_frame".
    """

    def __init__(self, bundle: Bundle):
        manifest = bundle.manifest
        self._network = load_network(bundle)
        self.windows = self._network.windows
        self.anchors = None if manifest.anchors is None else bundle.anchors
        self._attention = None if manifest.attention is None else Attention(bundle)
        self.decay = None if manifest.attention is None else manifest.attention.decay
        *_, tail = manifest.calls["first"]
        self._dequantize = {
            name: dequantizer(spec) for name, spec in manifest.signature(tail).outputs.items()
        }

        def cost(*calls: str) -> int | None:
            parts = [manifest.signature(call).multiply_adds for call in calls]
            return None if None in parts else sum(parts)

        self.costs = Costs(
            full=cost(*manifest.calls["first"]),
            window=None if self.windows is None else cost(*manifest.calls["step"]),
            attention=None if self.decay is None else cost(*manifest.calls["attention"]),
        )

    def _stacked(self, outputs: list[dict]) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate([real(o[name]) for o in outputs]).astype(np.float32)
            for name, real in self._dequantize.items()
        }

    def first(self, frames: np.ndarray):
        """See `window_rollout.WindowNetwork`; the state of a clip is its outputs and its memory."""
        state = [self._network.first(self._network.prepare(frame)) for frame in frames]
        return self._stacked([outputs for outputs, _ in state]), state

    def step(self, frames: np.ndarray, actions: np.ndarray, state: list, context: bool):
        """See `window_rollout.WindowNetwork`."""
        done = []
        for frame, action, (_, memory) in zip(frames, actions, copy.deepcopy(state)):
            if not context:
                memory.strips[:-1] = memory.strips[-1]
            image = self._network.prepare(frame)
            done.append((self._network.step(image, int(action), memory), memory))
        return self._stacked([outputs for outputs, _ in done]), done

    def q_values(self, state: list, history: np.ndarray) -> np.ndarray:
        """See `window_rollout.WindowNetwork`."""
        name = self._attention.spec.prediction
        return np.stack(
            [
                self._attention.q_values(outputs[name], row[None])
                for (outputs, _), row in zip(state, history)
            ]
        )
