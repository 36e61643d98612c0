"""Training of the attention network alone: the second stage of Patchwork (PW 3.3, 3.4).

"We place the trained single-image model in a recurrent Patchwork setting and only train the
attention network part with Q-learning." A step plays one batch of clips several times in the tables
of `rl.attention`, puts every frame into the replay, and updates the network from it. The network
comes from another training and stays as it is; it is part of this one's checkpoints. Experiments:
`detector_attention` and `segmenter_attention`.
"""

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions, exp_factory, task_factory

from memvid_tf.data import clips
from memvid_tf.detection.loss import LossConfig
from memvid_tf.errors import UserError
from memvid_tf.evaluation import window_rollout
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows
from memvid_tf.models.attention import AttentionConfig
from memvid_tf.models.attentive import AttentiveNetwork, build_attention
from memvid_tf.models.deeplab import SegmenterConfig
from memvid_tf.models.patchwork import WindowConfig
from memvid_tf.models.single_frame import SingleFrameConfig
from memvid_tf.rl import attention as attention_game
from memvid_tf.rl import ddqn as learning
from memvid_tf.rl import game, replay
from memvid_tf.tasks import checkpoints, configuration, objectives
from memvid_tf.tasks.clip_task import check_clips, check_labels, clip_inputs
from memvid_tf.tasks.policy import ReplayState, replay_experiment, sections_of_base
from memvid_tf.tasks.single_frame import DetectorTaskConfig, SegmenterTaskConfig
from memvid_tf.tasks.validation import per_replica

DETECTOR, SEGMENTER = "detector_attention", "segmenter_attention"
FROM_BASE = ("model", "losses", "labels")
LEAST_EXPLORATION = 4.0  # power of ε in the game that explores least
VALIDATION_MODE = window_rollout.WindowMode("dqn")
# Attention is learned from single frames' networks, or from those that know windows already.
BASES = {DETECTOR: DetectorTaskConfig, SEGMENTER: SegmenterTaskConfig}


@dataclasses.dataclass
class DetectorAttentionConfig(config_definitions.TaskConfig):
    """The task.

    Attributes:
      base_model_dir: folder of the training of the network, of experiment `detector`.
      base_checkpoint: name of a checkpoint in it; the newest by default.
      model, losses, labels: of the base; they are filled in from its params.yaml.
      windows: the attention windows.
      attention: the attention network.
      ddqn: the learner. Its `games_per_step` counts clips: the batch is played as often as gives at
        least so many.
      train_data: clips that are played; every frame of a window is a step of the game.
      validation_data: clips in which attention decides alone.
      seed: of weights, exploration and the replay's samples.
    """

    base_model_dir: str = ""
    base_checkpoint: str = ""
    model: SingleFrameConfig = dataclasses.field(default_factory=SingleFrameConfig)
    losses: LossConfig = dataclasses.field(default_factory=LossConfig)
    labels: tuple[str, ...] = ()
    windows: WindowConfig = dataclasses.field(default_factory=WindowConfig)
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    ddqn: learning.DdqnConfig = dataclasses.field(default_factory=learning.DdqnConfig)
    train_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=True)
    )
    validation_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=False)
    )
    seed: int = 0


@dataclasses.dataclass
class SegmenterAttentionConfig(DetectorAttentionConfig):
    """The same of masks."""

    model: SegmenterConfig = dataclasses.field(default_factory=SegmenterConfig)
    losses: objectives.MaskLossConfig = dataclasses.field(default_factory=objectives.MaskLossConfig)


@task_factory.register_task_cls(DetectorAttentionConfig)
@task_factory.register_task_cls(SegmenterAttentionConfig)
class AttentionTask(base_task.Task):
    """See the module.

    Attributes:
      start_step: global step from which training goes on; the input stream starts there.
    """

    start_step = 0
    _windows = None

    @classmethod
    def completed(cls, config: DetectorAttentionConfig) -> DetectorAttentionConfig:
        """The task with what comes from its base.

        Raises:
          UserError: if the base is missing, contradicts the configuration, or the clips do not fit.
        """
        wanted = SEGMENTER if objectives.segments(config) else DETECTOR
        experiment = wanted.removesuffix("_attention")
        if not config.base_model_dir:
            raise UserError(
                f"task.base_model_dir is missing; name the folder of a training of {experiment!r}, "
                f"for example --params_override=task.base_model_dir=runs/{experiment}"
            )
        base = configuration.load_saved(config.base_model_dir).task
        if type(base) is not BASES[wanted]:
            raise UserError(
                f"task.base_model_dir {config.base_model_dir!r} holds a training of {base.name!r}, "
                f"wanted one of {experiment!r}"
            )
        config = config.replace(**sections_of_base(config, base, type(config)(), FROM_BASE))
        if objectives.segments(config):
            config = objectives.with_masks(config)
        else:
            check_labels(config)
        check_clips(config)
        return config

    def build_model(self) -> AttentiveNetwork:
        config = self.task_config
        try:
            learning.check(config.ddqn)
            return AttentiveNetwork(config.model, config.windows, config.attention)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def checkpoint_items(self, model: AttentiveNetwork) -> dict[str, object]:
        """What a checkpoint needs beside the model, and training too: replay and target network."""
        config = self.task_config
        target = build_attention(model.patchwork, config.attention, name="target")
        self._learner = learning.Learner(
            model.attention, target, config.ddqn, attention_game.attention_values
        )
        self._replay = replay.Replay(
            config.ddqn.replay_capacity, attention_game.WindowObservation
        )
        self._objective = objectives.make(config, model.network)
        self._environment = attention_game.AttentionEnvironment(
            model.patchwork, self._objective.quality, config.attention, config.ddqn.discount
        )
        return {
            "target": target,
            "replay": ReplayState(self._replay),
            "mean_reward": self._learner.mean_reward,
        }

    def initialize(self, model):
        """Restores the base into a new run."""
        config = self.task_config
        path = checkpoints.find(config.base_model_dir, config.base_checkpoint)
        checkpoints.restore(model.network, path)
        self._learner.copy_to_target()

    def build_inputs(self, params, input_context=None):
        return clip_inputs(params, input_context, self.start_step)

    def build_metrics(self, training: bool = True):
        names = ("q_mean", "q_best", "quality", "reward", "reward_best", "distinct", "epsilon")
        return [tf_keras.metrics.Mean(name) for name in names] if training else []

    def train_step(self, inputs, model, optimizer, metrics=None):
        """Plays a batch of clips and learns from the replay. Runs eagerly."""
        if not tf.executing_eagerly():
            raise UserError(
                "configuration: attention is trained with trainer.train_tf_function=false and "
                "trainer.train_tf_while_loop=false: the replay is no part of a graph"
            )
        config, learner = self.task_config.ddqn, self._learner
        step = int(optimizer.iterations) // config.updates_per_step
        # A generator a step: what a resumed run draws does not depend on where it stopped.
        rng = np.random.default_rng([self.task_config.seed, step])
        # From games of chance to nearly greedy ones, as in Ape-X (Horgan et al. 2018): the replay
        # holds what attention would meet and what it would not.
        epsilon = learning.epsilon(config, step)
        exploration = epsilon ** np.linspace(1, LEAST_EXPLORATION, len(inputs["frames"]))
        self._environment.load({name: value.numpy() for name, value in inputs.items()})
        values, played = [], []
        for _ in range(-(-config.games_per_step // len(inputs["frames"]))):
            q_values, steps = game.play(
                self._environment, learner, self._replay, exploration, rng
            )
            values.append(q_values)
            played += steps
        learner.watch(np.stack([s.rewards for s in played]), is_first=step == 0)
        loss = learner.study(self._replay, optimizer, rng, step)
        q_values = np.concatenate(values)
        logged = {
            "q_mean": q_values.mean(),
            "q_best": q_values.max(1).mean(),
            "quality": np.mean([s.quality for s in played]),
            "reward": np.mean([s.reward for s in played]),
            "reward_best": np.mean([s.rewards.max(1) for s in played]),
            # Of the windows, how many the greedy actions use.
            "distinct": len(np.unique(q_values.argmax(1))) / q_values.shape[1],
            "epsilon": epsilon,
        }
        for metric in metrics or ():
            metric.update_state(logged[metric.name])
        return {self.loss: loss}

    def validation_step(self, inputs, model, metrics=None):
        """Runs whole clips in the true recurrence as attention decides. Runs eagerly."""
        if self._windows is None:
            self._windows = CheckpointWindows(model.patchwork, model.attention)
        rolled = window_rollout.roll(self._windows, inputs["frames"].numpy(), VALIDATION_MODE)
        return {**{name: tf.constant(x) for name, x in rolled.predictions.items()}, **inputs}

    def aggregate_logs(self, state=None, step_logs=None):
        if state is None:
            state = self._objective.scores()
        for batch in per_replica(step_logs):
            state.add(batch)
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        return aggregated_logs.summaries(global_step)


@exp_factory.register_config_factory(DETECTOR)
def detector_attention_experiment() -> config_definitions.ExperimentConfig:
    """Attention of a detector, as far as PW 3.3 says what that is."""
    return replay_experiment(DetectorAttentionConfig(name=DETECTOR))


@exp_factory.register_config_factory(SEGMENTER)
def segmenter_attention_experiment() -> config_definitions.ExperimentConfig:
    """The same of a segmenter."""
    return replay_experiment(SegmenterAttentionConfig(name=SEGMENTER))
