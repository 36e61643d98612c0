"""Training and validation of the interleaving policy (LFS 3.4, Algorithm 1).

A training step plays some recorded clips with the policy as it is, some actions being random, puts
every frame into the replay, and updates the policy a few times from it. What does not depend on
actions is computed once, before the first step. The detector comes from another training and stays
as it is; it is part of this one's checkpoints, so that the folder of a policy needs no other.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, config_definitions, exp_factory, task_factory
from official.modeling import optimization

from memvid_tf.data import clips
from memvid_tf.detection import loss as detection_loss
from memvid_tf.errors import UserError
from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.models import policy as policies
from memvid_tf.models.interleaved import InterleavedConfig
from memvid_tf.rl import ddqn as learning
from memvid_tf.rl import game, interleaving, replay
from memvid_tf.tasks import checkpoints, configuration, devices
from memvid_tf.tasks.clip_task import check_clips, check_labels, clip_inputs
from memvid_tf.tasks.detection import InterleavedTaskConfig
from memvid_tf.tasks.validation import ClipScores, per_replica

EXPERIMENT = "interleaved_policy"
FROM_BASE = ("model", "losses", "labels")
VALIDATION_MODE = rollout.Mode(None, adaptive=True)


@dataclasses.dataclass
class PolicyTaskConfig(config_definitions.TaskConfig):
    """The task.

    Attributes:
      base_model_dir: folder of the detector's training.
      base_checkpoint: name of a checkpoint in it; the newest by default.
      model, losses, labels: of the base; they are filled in from its params.yaml.
      policy: the policy network.
      ddqn: the learner.
      speed_reward: γ of equation 2, what a frame of f1 is worth; the larger, the rarer f0.
      train_data: clips that are played; every frame of a window is a step of the game. The batch is
        that of extracting features.
      windows: how many windows of train_data there are to play; games are of some of them. The
        features of all are kept in memory.
      validation_data: clips on which the policy decides alone.
      seed: of weights, exploration and the replay's samples.
    """

    base_model_dir: str = ""
    base_checkpoint: str = ""
    model: InterleavedConfig = dataclasses.field(default_factory=InterleavedConfig)
    losses: detection_loss.LossConfig = dataclasses.field(default_factory=detection_loss.LossConfig)
    labels: tuple[str, ...] = ()
    policy: policies.PolicyConfig = dataclasses.field(default_factory=policies.PolicyConfig)
    ddqn: learning.DdqnConfig = dataclasses.field(default_factory=learning.DdqnConfig)
    speed_reward: float = 1.0
    windows: int = 512
    train_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=True)
    )
    validation_data: clips.ClipConfig = dataclasses.field(
        default_factory=lambda: clips.ClipConfig(is_training=False)
    )
    seed: int = 0


def sections_of_base(config, base, default, sections: Sequence[str]) -> dict[str, object]:
    """Sections that a task takes over from the task of its `base_model_dir`.

    Args:
      config: the task.
      base: the other.
      default: the task as it is where nothing is given.
      sections: their names.

    Raises:
      UserError: if the task gives one of them and it is another there.
    """
    for section in sections:
        own, theirs, unset = (
            {section: _plain(getattr(c, section))} for c in (config, base, default)
        )
        given = configuration.difference(unset, own, "task.")
        if given and configuration.difference(theirs, own):
            raise UserError(
                f"configuration: {given.partition(' is ')[0]} is given, but task.{section} is that "
                f"of task.base_model_dir {config.base_model_dir!r}; leave it out"
            )
    return {section: getattr(base, section) for section in sections}


class ReplayState(tf.train.experimental.PythonState):
    """A replay as a part of a checkpoint."""

    def __init__(self, content: replay.Replay):
        self._content = content

    def serialize(self):
        return replay.to_bytes(self._content.get_state())

    def deserialize(self, string_value):
        self._content.set_state(replay.from_bytes(string_value))


@task_factory.register_task_cls(PolicyTaskConfig)
class PolicyTask(base_task.Task):
    """See the module.

    Attributes:
      start_step: global step from which training goes on; the input stream starts there.
    """

    start_step = 0
    _network = _footage = None

    @classmethod
    def completed(cls, config: PolicyTaskConfig) -> PolicyTaskConfig:
        """The task with what comes from its base.

        Raises:
          UserError: if the base is missing, contradicts the configuration, or the clips do not fit.
        """
        if not config.base_model_dir:
            raise UserError(
                "task.base_model_dir is missing; name the folder of a detector's training, for "
                "example --params_override=task.base_model_dir=runs/tiny"
            )
        base = configuration.load_saved(config.base_model_dir).task
        if not isinstance(base, InterleavedTaskConfig):
            raise UserError(
                f"task.base_model_dir {config.base_model_dir!r} holds a training of {base.name!r}, "
                "wanted one of 'interleaved'"
            )
        taken = sections_of_base(config, base, PolicyTaskConfig(), FROM_BASE)
        config = config.replace(**taken)
        check_clips(config)
        check_labels(config)
        return config

    def build_model(self) -> policies.AdaptiveDetector:
        config = self.task_config
        try:
            learning.check(config.ddqn)
            batch = config.train_data.global_batch_size
            if config.windows < 1 or config.windows % batch:
                raise ValueError(
                    f"task.windows {config.windows} is not a multiple of "
                    f"task.train_data.global_batch_size {batch}"
                )
            return policies.AdaptiveDetector(config.model, config.policy)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def checkpoint_items(self, model: policies.AdaptiveDetector) -> dict[str, object]:
        """What a checkpoint needs beside the model, and training too: replay and target network."""
        config = self.task_config
        target = policies.build_policy(model.detector, config.policy, name="target")
        self._learner = learning.Learner(model.policy, target, config.ddqn)
        self._replay = replay.Replay(config.ddqn.replay_capacity, learning.Observation)
        self._environment = interleaving.InterleavingEnvironment(
            model.detector,
            config.losses,
            config.policy,
            config.speed_reward,
            config.ddqn.discount,
        )
        return {
            "target": target,
            "mean_reward": self._learner.mean_reward,
            "replay": ReplayState(self._replay),
        }

    def initialize(self, model):
        """Restores the base into a new run."""
        config = self.task_config
        path = checkpoints.find(config.base_model_dir, config.base_checkpoint)
        checkpoints.restore(model.detector, path)
        self._learner.copy_to_target()

    def build_inputs(self, params, input_context=None):
        """Clips for validation; the numbers of the steps for training, which has its own clips."""
        stream = clip_inputs(params, input_context, 0)
        if not params.is_training:
            return stream
        return tf.data.Dataset.range(self.start_step, np.iinfo(np.int64).max)

    def _watched(self) -> interleaving.Footage:
        """All windows of the training clips: those with which the stream begins."""
        if self._footage is None:
            data = self.task_config.train_data
            count = self.task_config.windows // data.global_batch_size
            batches = clip_inputs(data, None, 0).take(count).as_numpy_iterator()
            parts = [self._environment.watch(batch) for batch in batches]
            self._footage = interleaving.joined(parts)
        return self._footage

    def build_metrics(self, training: bool = True):
        names = ("q_f0", "q_f1", "f0_share", "f0_share_greedy", "reward", "loss_f0", "loss_f1")
        return [tf_keras.metrics.Mean(name) for name in names + ("epsilon",)] if training else []

    def train_step(self, inputs, model, optimizer, metrics=None):
        """Algorithm 1, lines 2 to 18, for some clips. Runs eagerly.

        Args:
          inputs: scalar, the number of the step.
          model, optimizer, metrics: see the base class.
        """
        if not tf.executing_eagerly():
            raise UserError(
                "configuration: a policy is trained with trainer.train_tf_function=false and "
                "trainer.train_tf_while_loop=false: the replay is no part of a graph"
            )
        config, learner = self.task_config.ddqn, self._learner
        step = int(inputs)
        # A generator a step: what a resumed run draws does not depend on where it stopped.
        rng = np.random.default_rng([self.task_config.seed, step])
        exploration = learning.epsilon(config, step)
        chances = learner.chances(config.games_per_step, rng)
        footage = self._watched()
        self._environment.load(footage.of(rng.integers(0, footage.clips, config.games_per_step)))
        values, steps = game.play(
            self._environment, learner, self._replay, exploration, rng, chances
        )
        learner.watch(np.concatenate([one.reward for one in steps]), is_first=step == 0)
        loss = learner.study(self._replay, optimizer, rng, step)
        self._log(metrics or (), values, steps, exploration)
        return {self.loss: loss}

    def _log(self, metrics, q_values, steps, exploration):
        losses = np.concatenate([s.losses for s in steps])
        logged = {
            "q_f0": q_values[:, interleaving.F0].mean(),
            "q_f1": q_values[:, interleaving.F1].mean(),
            "f0_share": np.mean([s.actions == interleaving.F0 for s in steps]),
            "f0_share_greedy": np.mean(q_values.argmax(1) == interleaving.F0),
            "reward": np.mean([s.reward for s in steps]),
            "loss_f0": losses[:, interleaving.F0].mean(),
            "loss_f1": losses[:, interleaving.F1].mean(),
            "epsilon": exploration,
        }
        for metric in metrics:
            metric.update_state(logged[metric.name])

    def validation_step(self, inputs, model, metrics=None):
        """Runs whole clips as the policy decides. Runs eagerly."""
        network = self._validated(model)
        frames = inputs["frames"].numpy()
        features = rollout.extract_all(network, frames)
        rolled = rollout.roll(network, features, len(frames), VALIDATION_MODE)
        return {**{name: tf.constant(x) for name, x in rolled._asdict().items()}, **inputs}

    def _validated(self, model):
        if self._network is None:
            self._network = CheckpointNetwork(model.detector, model.policy)
        return self._network

    def aggregate_logs(self, state=None, step_logs=None):
        if state is None:
            scores = ClipScores(self.task_config.labels, self._network.anchors)
            state = {"scores": scores, "f0": []}
        for batch in per_replica(step_logs):
            state["scores"].add(batch)
            state["f0"] += [f0[:n] for f0, n in zip(batch["f0"], batch["num_frames"])]
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        share = float(np.concatenate(aggregated_logs["f0"]).mean())
        return {**aggregated_logs["scores"].summaries(global_step), "f0_share": share}


def _plain(section):
    return section.as_dict() if hasattr(section, "as_dict") else list(section)


def replay_experiment(task) -> config_definitions.ExperimentConfig:
    """An experiment of Q-learning from a replay on one device, as far as the papers say what that
    is."""
    return config_definitions.ExperimentConfig(
        task=task,
        runtime=devices.RuntimeConfig(),
        trainer=config_definitions.TrainerConfig(
            train_steps=20_000,
            steps_per_loop=10,
            summary_interval=10,
            checkpoint_interval=500,
            validation_interval=1_000,
            max_to_keep=2,
            # The replay is Python's, and so are the loops around it.
            train_tf_function=False,
            train_tf_while_loop=False,
            eval_tf_function=False,
            optimizer_config=optimization.OptimizationConfig(
                {
                    "optimizer": {"type": "adam", "adam": {"global_clipnorm": 10.0}},
                    "learning_rate": {
                        "type": "constant",
                        "constant": {"learning_rate": 0.0005},
                    },
                }
            ),
        ),
        restrictions=[
            "task.train_data.is_training != None",
            "task.validation_data.is_training != None",
        ],
    )


@exp_factory.register_config_factory(EXPERIMENT)
def policy_experiment() -> config_definitions.ExperimentConfig:
    """Paper scale, as far as LFS 3.4 says what that is."""
    return replay_experiment(PolicyTaskConfig(name=EXPERIMENT))
