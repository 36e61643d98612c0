"""What a training left behind: its configuration and its network."""

import dataclasses

from official.core import config_definitions, task_factory

from memvid_tf.models.attention import Attention
from memvid_tf.models.attentive import AttentiveNetwork
from memvid_tf.models.deeplab import Segmenter
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.models.policy import AdaptiveDetector, Policy
from memvid_tf.models.single_frame import SingleFrameDetector
from memvid_tf.tasks import attention as _registers_attention  # noqa: F401
from memvid_tf.tasks import checkpoints, configuration
from memvid_tf.tasks import detection as _registers_interleaved  # noqa: F401
from memvid_tf.tasks import patchwork as _registers_patchwork  # noqa: F401
from memvid_tf.tasks import policy as _registers_interleaved_policy  # noqa: F401
from memvid_tf.tasks import single_frame as _registers_single_frame  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network restored from a checkpoint.

    Attributes:
      params: the configuration it was trained with.
      model: the network: an interleaved detector, a single-frame network, or one in windows.
      checkpoint: prefix of the checkpoint.
      step: global step of the checkpoint.
      policy: what picks the detector's extractors, where the training was of a policy.
      attention: what picks the windows of a network in windows.
    """

    params: config_definitions.ExperimentConfig
    model: InterleavedDetector | SingleFrameDetector | Segmenter | Patchwork
    checkpoint: str
    step: int
    policy: Policy | None = None
    attention: Attention | None = None


def load(model_dir: str, checkpoint: str = "", quantization: str = "") -> Trained:
    """Builds the network that `params.yaml` describes and restores it.

    Args:
      model_dir: folder of a training.
      checkpoint: name of a checkpoint in it, such as "ckpt-800"; by default the newest.
      quantization: instead of the configured one, for instance "none" for the float network of a
        quantization-aware training.

    Raises:
      UserError: if something is missing, damaged, or of another configuration.
    """
    params = configuration.load_saved(model_dir)
    if quantization:
        params.override({"task": {"model": {"quantization": quantization}}})
    path = checkpoints.find(model_dir, checkpoint)
    model = task_factory.get_task(params.task).build_model()
    checkpoints.restore(model, path)
    step = checkpoints.step_of(path)
    if isinstance(model, AdaptiveDetector):
        return Trained(params, model.detector, path, step, model.policy)
    if isinstance(model, AttentiveNetwork):
        return Trained(params, model.patchwork, path, step, attention=model.attention)
    return Trained(params, model, path, step)
