"""What a training left behind: its configuration and its network."""

import dataclasses

import tf_keras
from official.core import config_definitions, task_factory

from memvid_tf.tasks import checkpoints, configuration
from memvid_tf.tasks import detection as _registers_interleaved  # noqa: F401


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network restored from a checkpoint.

    Attributes:
      params: the configuration it was trained with.
      model: the network.
      checkpoint: prefix of the checkpoint.
      step: global step of the checkpoint.
    """

    params: config_definitions.ExperimentConfig
    model: tf_keras.Model
    checkpoint: str
    step: int


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
    return Trained(params, model, path, checkpoints.step_of(path))
