"""Training and validation of the interleaved detector (LFS 3.3).

A step unrolls a clip in which each frame goes to a random extractor. The draw is made for the whole
batch, so that only the extractor that was picked is computed. Where frames of f1 only read the
memory, the first frame is f0's: of an empty memory they have nothing to say.
"""

import dataclasses

import tensorflow as tf
from official.core import config_definitions, exp_factory, task_factory

from memvid_tf.detection import loss as detection_loss
from memvid_tf.detection.flow_loss import flow_loss, targets
from memvid_tf.errors import UserError
from memvid_tf.layers.flow import GUIDED, LARGEST_FLOW
from memvid_tf.models import interleaved
from memvid_tf.runtime import schedules
from memvid_tf.tasks import backbone_weights
from memvid_tf.tasks.clip_task import ClipTask, ClipTaskConfig, experiment, require

EXPERIMENT = "interleaved"


@dataclasses.dataclass
class InterleavedTaskConfig(ClipTaskConfig):
    """The task.

    Attributes:
      model, losses: of the detector.
      validation_tau: interleave ratio at which validation during training runs whole clips.
      f0_probability: of running f0 on a frame of a training clip; at least one frame of a clip
        goes to each extractor.
      flow_weight: of cells that follow a flow (`flow.GUIDED`), weight of `detection.flow_loss`; with
        0 the detections alone teach it.
      backbone_weights_f0, backbone_weights_f1: files of MobileNetV2 weights, as those of
        tf_keras.applications, from which a new run starts where nothing else is said.
    """

    model: interleaved.InterleavedConfig = dataclasses.field(
        default_factory=interleaved.InterleavedConfig
    )
    losses: detection_loss.LossConfig = dataclasses.field(default_factory=detection_loss.LossConfig)
    validation_tau: int = 9
    f0_probability: float = 0.5
    flow_weight: float = 0.0
    backbone_weights_f0: str = ""
    backbone_weights_f1: str = ""


def sample_schedule(steps: int, probability: float, seed, f0_first: bool = False):
    """Draws which extractor sees which frame of a clip.

    Args:
      steps: frames of the clip, at least two.
      probability: of f0 on each frame.
      seed: [2] int32; the draw is a pure function of it.
      f0_first: whether f0 sees the first frame whatever is drawn.

    Returns:
      Ascending times of f0 and of f1, [n0] and [n1] int32, neither empty, n0 + n1 = steps.
    """
    draws = tf.random.stateless_uniform([steps], seed)
    # Picking the n0 smallest draws is the same as comparing each with the probability, except that
    # n0 can be kept away from 0 and from `steps`: an extractor needs a batch to normalise.
    count = tf.clip_by_value(tf.reduce_sum(tf.cast(draws < probability, tf.int32)), 1, steps - 1)
    if f0_first:
        draws = tf.concat([[-1.0], draws[1:]], 0)
    order = tf.argsort(draws)
    return tf.sort(order[:count]), tf.sort(order[count:])


def _of_frames(x, steps):
    """[B, T, ...] to [n·B, ...] of the frames at n times, one time after another."""
    x = tf.gather(x, steps, axis=1)
    x = tf.transpose(x, [1, 0, *range(2, x.shape.rank)])
    return tf.reshape(x, [-1, *x.shape[2:]])


def start_backbones(task: InterleavedTaskConfig, model: interleaved.InterleavedDetector) -> None:
    """Gives the extractors the weights of the files that are named, or raises UserError."""
    for extractor, path in (("f0", task.backbone_weights_f0), ("f1", task.backbone_weights_f1)):
        if path:
            backbone_weights.load(model.extractors[extractor], path)


@task_factory.register_task_cls(InterleavedTaskConfig)
class InterleavedTask(ClipTask):
    """See the module."""

    replicates = True

    @classmethod
    def check_numbers(cls, config: InterleavedTaskConfig) -> None:
        super().check_numbers(config)
        unroll, follows = config.train_data.unroll_frames, config.model.cell in GUIDED
        require(
            (
                ("validation_tau", config.validation_tau, config.validation_tau >= 0, "0 or more"),
                (
                    "f0_probability",
                    config.f0_probability,
                    0 <= config.f0_probability <= 1,
                    "0 to 1",
                ),
                (
                    "train_data.unroll_frames",
                    unroll,
                    unroll >= 2,
                    "at least 2, one for each extractor",
                ),
                (
                    "flow_weight",
                    config.flow_weight,
                    config.flow_weight >= 0 and (not config.flow_weight or follows),
                    f"0, or above 0 with model.cell one of {sorted(GUIDED)}",
                ),
            )
        )

    def build_model(self) -> interleaved.InterleavedDetector:
        try:
            return interleaved.build(self.task_config.model)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def initialize(self, model):
        """Gives a new run its weights: those of an earlier phase, and those of backbones."""
        super().initialize(model)
        start_backbones(self.task_config, model)

    def metric_names(self):
        names = super().metric_names()
        return (*names, "flow_loss") if self.task_config.flow_weight else names

    def forward(self, inputs, model, step):
        config = self.task_config
        f0_steps, f1_steps = sample_schedule(
            inputs["frames"].shape[1],
            config.f0_probability,
            tf.stack([config.seed, step]),
            f0_first=model.memory.f1_only_reads,
        )
        found = model.remember(inputs["frames"], f0_steps, f1_steps, training=True)
        predictions = model.detect(found.outputs, training=True)
        outputs = {name: found.in_time(p) for name, p in predictions.items()}
        loss, values = self.objective.loss(outputs, inputs)
        if not config.flow_weight:
            return loss, values
        earlier = tf.cast(f0_steps < f1_steps[:, tf.newaxis], tf.int32)
        key_steps = tf.gather(f0_steps, tf.reduce_sum(earlier, 1) - 1)
        truth = (
            _of_frames(inputs[name], steps)
            for steps in (f1_steps, key_steps)
            for name in ("boxes", "tracks")
        )
        flow = model.memory.flow_of(found.f1_features, found.f1_states)
        distance = flow_loss(flow, *targets(*truth, model.map_size), LARGEST_FLOW)
        return loss + config.flow_weight * distance, {**values, "flow_loss": distance}

    def predict(self, inputs, model):
        """Runs whole clips at a fixed interleave ratio."""
        picks = schedules.FixedSchedule(self.task_config.validation_tau)
        by_extractor = {"f0": [], "f1": []}
        for t in range(inputs["frames"].shape[1]):
            by_extractor[picks.pick(t)].append(t)
        return model(inputs["frames"], *(tf.constant(t, tf.int32) for t in by_extractor.values()))


@exp_factory.register_config_factory(EXPERIMENT)
def interleaved_experiment() -> config_definitions.ExperimentConfig:
    """Paper scale (LFS 3.3): batch 12, unroll 6, learning rate .002 with cosine decay."""
    return experiment(InterleavedTaskConfig(name=EXPERIMENT), "mAP", 0.002, 200_000)
