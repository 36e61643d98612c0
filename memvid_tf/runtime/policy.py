"""The learned interleaving policy of a bundle (LFS section 3.4): which extractor runs next."""

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import State, dequantizer, load_graph


class Policy:
    """`policy.tflite` of a bundle, for one thread; a `schedules.PolicyNetwork`.

    Attributes:
      spec: what the manifest says about it.
    """

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        """Loads the graph.

        Raises:
          UserError: a bundle without a policy.
          BundleError: a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        if manifest.policy is None:
            raise UserError(
                f"bundle {bundle.path} has no policy; export the --model_dir of a policy's training "
                "(--experiment=interleaved_policy), or use a fixed schedule"
            )
        self.spec = manifest.policy
        call = manifest.calls["policy"][0]
        states = [state.input for state in manifest.state]
        inputs = (*states, *(f"{name}_before" for name in states), "eta")
        graph = load_graph(bundle, call, num_threads)
        self._call = graph.bind(inputs, ("q_values",))
        self._dequantize = dequantizer(manifest.tensor(f"{call}/q_values", "outputs"))
        eta = graph.inputs["eta"]
        levels = np.array([0.0, self.spec.eta_one], np.float32)
        self._eta_levels = levels if eta.scale is None else eta.quantize(levels)
        self._order = [self.spec.actions.index(name) for name in ("f0", "f1")]

    @property
    def last_ms(self) -> float:
        """Wall time of the latest invoke."""
        return self._call.last_ms

    def q_values(self, after: State, before: State, eta: np.ndarray) -> np.ndarray:
        """Values of f0 and f1 for the next frame.

        Args:
          after: the state that is shown after the latest frame, as stored.
          before: the one that was shown after the frame before.
          eta: [history] uint8, 1 where f1 ran k frames ago.

        Returns:
          [2] float32.
        """
        stored = self._call(*after, *before, self._eta_levels[eta][None])[0]
        return self._dequantize(stored)[0, self._order]
