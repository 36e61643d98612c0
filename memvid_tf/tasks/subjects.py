"""What can be scored: the network of a training or of a bundle, with the clips it is meant for."""

from collections.abc import Callable
from typing import Any, NamedTuple

from memvid_tf.data.clips import ClipConfig
from memvid_tf.detection.matching import CODER_WEIGHTS
from memvid_tf.evaluation import rollout, scoring, window_rollout, window_scoring
from memvid_tf.evaluation.bundle_network import BundleNetwork
from memvid_tf.evaluation.bundle_windows import BundleWindows
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows, PlainNetwork
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.manifest import BoxCoder
from memvid_tf.tasks import trained

INTERLEAVED_MODES = ("f0", "f1", "1", "4", "9", "19", "async9")


class Subject(NamedTuple):
    """What is scored.

    Attributes:
      network: a `rollout.Network`, or a `window_rollout.WindowNetwork`.
      windowed: whether it is the latter.
      coder: scales of its box code.
      labels: class names.
      data: where its clips are.
      source: its name in the results.
      evaluate: what scores it, see `scoring.evaluate` and `window_scoring.evaluate`.
    """

    network: Any
    windowed: bool
    coder: Any
    labels: tuple[str, ...]
    data: Any
    source: dict
    evaluate: Callable

    def modes(self, words) -> list:
        """The modes of a user's words; without any, the system's own. One word more than once, or
        another word for the same, is one mode."""
        if not self.windowed:
            words = words or INTERLEAVED_MODES
            return list(dict.fromkeys(rollout.parse_mode(word) for word in words))
        known = window_rollout.MODES
        if self.network.windows is None:
            known = (window_rollout.FULL,)
        elif self.network.decay is None:
            known = known[:-1]
        return list(dict.fromkeys(window_rollout.parse_mode(word) for word in words or known))

    def score(self, batches, modes, **options) -> dict:
        """Results of `evaluate` by mode."""
        return self.evaluate(self.network, batches, modes, self.labels, self.coder, **options)


def from_model_dir(model_dir: str, checkpoint: str, simulate_quantization: bool) -> Subject:
    """The network of a training."""
    found = trained.load(model_dir, checkpoint, "" if simulate_quantization else "none")
    if isinstance(found.model, InterleavedDetector):
        network = CheckpointNetwork(found.model, found.policy)
    elif isinstance(found.model, Patchwork):
        network = CheckpointWindows(found.model, found.attention)
    else:
        network = PlainNetwork(found.model)
    task, windowed = found.params.task, not isinstance(network, CheckpointNetwork)
    return Subject(
        network,
        windowed,
        BoxCoder(*CODER_WEIGHTS),
        tuple(task.labels),
        task.validation_data,
        {
            "model_dir": model_dir,
            "precision": "int8" if task.model.quantization == "int8" else "float32",
            "step": found.step,
            "seed": task.seed,
        },
        window_scoring.evaluate if windowed else scoring.evaluate,
    )


def from_bundle(path: str) -> Subject:
    """The network of a bundle."""
    bundle = Bundle.load(path)
    manifest = bundle.manifest
    windowed = manifest.system != "interleaved"
    task = manifest.config["task"]
    return Subject(
        BundleWindows(bundle) if windowed else BundleNetwork(bundle),
        windowed,
        manifest.box_coder,
        bundle.labels,
        ClipConfig(task["validation_data"]),
        {
            "bundle": path,
            "precision": manifest.precision,
            "step": manifest.checkpoint.step,
            "seed": task["seed"],
        },
        window_scoring.evaluate if windowed else scoring.evaluate,
    )
