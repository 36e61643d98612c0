"""Where Patchwork looks next (PW 3.1): the history of actions, and a bundle's attention network."""

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import dequantizer, load_graph


def next_history(history: np.ndarray, actions: np.ndarray, decay: float) -> np.ndarray:
    """Equation 1, F_t = min(α·F_{t−1} + onehot(A_t), 1).

    Args:
      history: [B, A] float32 in [0, 1], zeros before the first action.
      actions: [B] integers, the windows that were looked at.
      decay: α.

    Returns:
      [B, A] float32, a new array.
    """
    taken = np.eye(history.shape[1], dtype=np.float32)[actions]
    return np.minimum(np.float32(decay) * history + taken, np.float32(1))


class Attention:
    """`attention.tflite` of a bundle, for one thread.

    Attributes:
      spec: what the manifest says about it.
    """

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        """Loads the graph.

        Raises:
          UserError: a bundle without an attention network.
          BundleError: a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        if manifest.attention is None:
            raise UserError(
                f"bundle {bundle.path} has no attention network; export the --model_dir of a "
                "training that has one (--experiment=detector_patchwork), or use scanning or random"
            )
        self.spec = manifest.attention
        call = manifest.calls["attention"][0]
        graph = load_graph(bundle, call, num_threads)
        self._call = graph.bind(("prediction", "history"), ("q_values",))
        self._dequantize = dequantizer(manifest.tensor(f"{call}/q_values", "outputs"))
        history = graph.inputs["history"]
        self._store = (lambda x: x) if history.scale is None else history.quantize

    @property
    def last_ms(self) -> float:
        """Wall time of the latest invoke."""
        return self._call.last_ms

    def q_values(self, prediction: np.ndarray, history: np.ndarray) -> np.ndarray:
        """Values of the windows of the next frame.

        Args:
          prediction: as stored, the output of the tail that `spec.prediction` names.
          history: [1, A] float32 in [0, 1], of `next_history`.

        Returns:
          [A] float32.
        """
        stored = self._store(history * np.float32(self.spec.one))
        return self._dequantize(self._call(prediction, stored)[0])[0]
