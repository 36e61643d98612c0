"""Training of single-frame networks: the first stage of Patchwork (PW 3.4), and the baselines.

"The video data is split into single frames and mixed with augmentation data to train a single-image
model with BN." Every frame of a clip is an example of its own. Experiments: `detector` and
`segmenter`.
"""

import dataclasses

import tensorflow as tf
from official.core import config_definitions, exp_factory, task_factory

from memvid_tf.detection.loss import LossConfig
from memvid_tf.errors import UserError
from memvid_tf.models import patchwork
from memvid_tf.models.deeplab import SegmenterConfig
from memvid_tf.models.single_frame import SingleFrameConfig
from memvid_tf.tasks.clip_task import ClipTask, ClipTaskConfig, experiment
from memvid_tf.tasks.objectives import MaskLossConfig, frames_of

DETECTOR, SEGMENTER = "detector", "segmenter"
# PW 4; `SingleFrameConfig` has the size of LFS.
IMAGE_SIZE = (384, 384)


@dataclasses.dataclass
class DetectorTaskConfig(ClipTaskConfig):
    """The task. model: the network; losses: what it learns by."""

    model: SingleFrameConfig = dataclasses.field(
        default_factory=lambda: SingleFrameConfig(image_size=IMAGE_SIZE)
    )
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)


@dataclasses.dataclass
class SegmenterTaskConfig(ClipTaskConfig):
    """The same of masks."""

    model: SegmenterConfig = dataclasses.field(default_factory=SegmenterConfig)
    losses: MaskLossConfig = dataclasses.field(default_factory=MaskLossConfig)


def every_frame(model, frames, training: bool = False):
    """Predictions of a single-frame network for every frame of clips.

    Args:
      model: the network.
      frames: [B, T, H, W, 3] uint8.
      training: whether observers and batch statistics are updated.

    Returns:
      What the network predicts, [B, T, ...] float32 each.
    """
    outputs = model(frames_of(frames), training=training)
    shape = [-1, frames.shape[1]]
    return {name: tf.reshape(x, [*shape, *x.shape[1:]]) for name, x in outputs.items()}


@task_factory.register_task_cls(DetectorTaskConfig)
@task_factory.register_task_cls(SegmenterTaskConfig)
class SingleFrameTask(ClipTask):
    """See the module."""

    replicates = True

    def build_model(self):
        config = self.task_config.model
        try:
            return patchwork.NETWORKS[type(config)](config)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def forward(self, inputs, model, step):
        return self.objective.loss(every_frame(model, inputs["frames"], True), inputs)

    def predict(self, inputs, model):
        return every_frame(model, inputs["frames"])


@exp_factory.register_config_factory(DETECTOR)
def detector_experiment() -> config_definitions.ExperimentConfig:
    """MobileNetV2-SSDLite at 384 px (PW 4.1)."""
    return experiment(DetectorTaskConfig(name=DETECTOR), "mAP", 0.002, 200_000)


@exp_factory.register_config_factory(SEGMENTER)
def segmenter_experiment() -> config_definitions.ExperimentConfig:
    """MobileNetV2 with a DeepLab-style head at 384 px (PW 4.2)."""
    return experiment(SegmenterTaskConfig(name=SEGMENTER), "J", 0.002, 100_000)
