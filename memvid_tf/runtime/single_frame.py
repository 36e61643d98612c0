"""A single-frame network from a bundle: every frame is seen whole, and nothing is remembered.

It has the interface of `patchwork.PatchworkNetwork`, as far as a frame that is seen whole needs it.
"""

import numpy as np

from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import load_graph
from memvid_tf.runtime.patchwork import Memory
from memvid_tf.runtime.preprocess import whole_frame


class SingleFrameNetwork:
    """The graph of one bundle, for one thread.

    Attributes:
      prepare: see `preprocess.whole_frame`.
      windows: None; there are none.
      outputs: names of the graph's outputs.
      body_ms: wall time of the latest invoke.
      tail_ms: 0; the graph is whole.
    """

    windows = None
    tail_ms = 0.0

    def __init__(self, bundle: Bundle, num_threads: int = 1):
        """Loads the graph.

        Raises:
          BundleError: another system, or a graph that differs from the manifest.
          GraphError: a graph that cannot be loaded.
        """
        manifest = bundle.manifest
        bundle.require_system("single_frame")
        (call,) = manifest.calls["first"]
        self.body_ms = 0.0
        self.outputs = tuple(manifest.signature(call).outputs)
        self._run = load_graph(bundle, call, num_threads).bind(("image",), self.outputs)
        image = manifest.tensor(f"{call}/image", "inputs")
        self.prepare = whole_frame(manifest.image, image)

    def first(self, image: np.ndarray) -> tuple[dict[str, np.ndarray], Memory]:
        """Any frame, which is the first of what the network knows.

        Args:
          image: [1, h, w, 3], what `prepare` returned.

        Returns:
          The outputs as stored, and an empty memory: one tile that was just seen.
        """
        outputs = self._run(image)
        self.body_ms = self._run.last_ms
        memory = Memory(np.zeros([0, 0], np.int8), {}, np.zeros([1, 1], np.int32))
        return dict(zip(self.outputs, outputs)), memory
