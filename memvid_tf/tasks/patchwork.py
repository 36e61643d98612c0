"""Joint training of Patchwork: the third stage (PW 3.4).

"With BN frozen, we fine-tune the main network jointly using the task-specific loss and the
attention network with Q-learning at a lower learning rate." A step unrolls clips: the first frame
whole, then a window of each frame, which attention or chance picks. The task's loss is of every
frame, the loss of Q-learning of the transitions of these same clips; its gradient ends at the
attention network. Quantization-aware where the network is. Experiments: `detector_patchwork` and
`segmenter_patchwork`.

Differs from the paper: no replay, since what older networks saw is not what this one sees; the
target network follows the attention network as an exponential average.
"""

import dataclasses

import tensorflow as tf
from official.core import config_definitions, exp_factory, task_factory
from official.modeling import hyperparams

from memvid_tf.errors import UserError
from memvid_tf.evaluation import window_rollout
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows
from memvid_tf.models.attention import AttentionConfig, next_history
from memvid_tf.models.attentive import AttentiveNetwork, build_attention
from memvid_tf.models.patchwork import WindowConfig
from memvid_tf.rl import ddqn, rewards
from memvid_tf.rl.attention import TRUTH
from memvid_tf.tasks import checkpoints, configuration, objectives
from memvid_tf.tasks.clip_task import ClipTask, experiment, require
from memvid_tf.tasks.objectives import frames_of
from memvid_tf.tasks.single_frame import DetectorTaskConfig, SegmenterTaskConfig, SingleFrameTask

DETECTOR, SEGMENTER = "detector_patchwork", "segmenter_patchwork"


@dataclasses.dataclass
class QLearningConfig(hyperparams.Config):
    """Q-learning beside the task.

    Attributes:
      exploration: probability of a random window; 1 looks anywhere, whatever attention says.
      discount: weight of the next frame's value, in [0, 1).
      reward_scale: as of the earlier stage, see `ddqn.DdqnConfig`.
      weight: of its loss beside the task's.
      rate: share of the optimizer's step that the attention network makes, in (0, 1]. The few
        transitions of a batch of clips say far less than a replay, which it was trained from.
      target_momentum: share of the old weights in the target network, each step.
      huber_delta: error beyond which the loss is linear.
    """

    exploration: float = 0.3
    discount: float = 0.9
    reward_scale: float = 1.0
    weight: float = 1.0
    rate: float = 0.03
    target_momentum: float = 0.99
    huber_delta: float = 1.0


@dataclasses.dataclass
class DetectorPatchworkConfig(DetectorTaskConfig):
    """The task. `init_checkpoint` is the folder of an earlier stage: of attention, whose network
    and attention go on, or of single frames, whose attention then begins anew.

    Attributes:
      windows, attention: as of the earlier stage.
      q_learning: of attention.
      validation_mode: of `memvid_tf.evaluate`, in which validation runs whole clips.
    """

    windows: WindowConfig = dataclasses.field(default_factory=WindowConfig)
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    q_learning: QLearningConfig = dataclasses.field(default_factory=QLearningConfig)
    validation_mode: str = "dqn"
    freeze_norm_step: int = 0


@dataclasses.dataclass
class SegmenterPatchworkConfig(SegmenterTaskConfig):
    """The same of masks."""

    windows: WindowConfig = dataclasses.field(default_factory=WindowConfig)
    attention: AttentionConfig = dataclasses.field(default_factory=AttentionConfig)
    q_learning: QLearningConfig = dataclasses.field(default_factory=QLearningConfig)
    validation_mode: str = "dqn"
    freeze_norm_step: int = 0


@task_factory.register_task_cls(DetectorPatchworkConfig)
@task_factory.register_task_cls(SegmenterPatchworkConfig)
class PatchworkTask(ClipTask):
    """See the module."""

    _windows = None

    @classmethod
    def check_numbers(cls, config) -> None:
        super().check_numbers(config)
        window_rollout.parse_mode(config.validation_mode)
        q, unroll = config.q_learning, config.train_data.unroll_frames
        require(
            (
                ("q_learning.exploration", q.exploration, 0 <= q.exploration <= 1, "0 to 1"),
                ("q_learning.discount", q.discount, 0 <= q.discount < 1, "0 to 1, below 1"),
                ("q_learning.reward_scale", q.reward_scale, q.reward_scale > 0, "above 0"),
                ("q_learning.weight", q.weight, q.weight >= 0, "0 or more"),
                ("q_learning.rate", q.rate, 0 < q.rate <= 1, "above 0, at most 1"),
                (
                    "q_learning.target_momentum",
                    q.target_momentum,
                    0 <= q.target_momentum < 1,
                    "0 to 1, below 1",
                ),
                ("q_learning.huber_delta", q.huber_delta, q.huber_delta > 0, "above 0"),
                (
                    "train_data.unroll_frames",
                    unroll,
                    unroll >= 2,
                    "at least 2: a frame seen whole, and one in a window",
                ),
                (
                    "freeze_norm_step",
                    config.freeze_norm_step,
                    config.freeze_norm_step == 0,
                    "0: frames of one clip are no batch to normalise (PW 3.4)",
                ),
            )
        )

    def build_model(self) -> AttentiveNetwork:
        config = self.task_config
        try:
            return AttentiveNetwork(config.model, config.windows, config.attention)
        except ValueError as error:
            raise UserError(f"configuration: {error}") from error

    def network(self, model):
        return model.network

    def checkpoint_items(self, model: AttentiveNetwork) -> dict[str, object]:
        """What a checkpoint needs beside model and optimizer: the target network."""
        self._target = build_attention(model.patchwork, self.task_config.attention, name="target")
        return {"target": self._target}

    def initialize(self, model: AttentiveNetwork):
        """Restores `init_checkpoint` into a new run."""
        path = self.task_config.init_checkpoint
        if not path:
            raise UserError(
                "task.init_checkpoint is missing: windows are trained on what knows frames; name "
                "the folder of a training of single frames or of attention"
            )
        folder = path if tf.io.gfile.isdir(path) else tf.io.gfile.dirname(path)
        earlier = task_factory.get_task_cls(type(configuration.load_saved(folder).task))
        part = model.network if earlier is SingleFrameTask else model
        if tf.io.gfile.isdir(path):
            path = checkpoints.find(path)
        checkpoints.restore(part, path, allow_new_ranges=True)
        for to, source in zip(self._target.variables, model.attention.variables, strict=True):
            to.assign(source)

    def metric_names(self) -> tuple[str, ...]:
        return (*super().metric_names(), "q_loss", "q_mean", "quality", "reward")

    def forward(self, inputs, model, step):
        config, q = self.task_config, self.task_config.q_learning
        images = model.network.preprocess(inputs["frames"])
        batch, frames = tf.shape(images)[0], images.shape[1]
        count = model.patchwork.windows.count
        slices = model.patchwork.windows.slices

        def presence(predicted):
            # The gradient of Q-learning ends at the attention network.
            return tf.stop_gradient(model.network.presence(predicted, slices))

        outputs, state = model.patchwork.start(images[:, 0], training=True)
        predictions, presences, actions = [outputs], [presence(outputs)], []
        histories = [tf.zeros([batch, count])]
        # Traced for one frame instead of for each: a training starts in a third of the time.
        look = tf.function(model.patchwork.step, autograph=False)
        for t in range(1, frames):
            values = model.attention(presences[-1], histories[-1])
            draw = 2 * (step * frames + t)
            seeds = [tf.stack([config.seed, draw + k]) for k in (0, 1)]
            anywhere = tf.random.stateless_uniform([batch], seeds[0], 0, count, tf.int32)
            explores = tf.random.stateless_uniform([batch], seeds[1]) < q.exploration
            best = tf.argmax(values, 1, output_type=tf.int32)
            action = tf.where(explores, anywhere, best)
            outputs, state = look(images[:, t], action, state, training=True)
            predictions.append(outputs)
            presences.append(presence(outputs))
            histories.append(next_history(histories[-1], action, config.attention.decay))
            actions.append(action)
        stacked = {name: tf.stack([p[name] for p in predictions], 1) for name in predictions[0]}
        loss, logged = self.objective.loss(stacked, inputs)
        quality, reward = self._rewards(stacked, inputs)
        q_loss, q_mean = self._q_loss(model, presences, histories, actions, reward)
        values = {
            **logged,
            "q_loss": q_loss,
            "q_mean": q_mean,
            "quality": tf.reduce_mean(quality),
            "reward": tf.reduce_mean(reward),
        }
        return loss + q.weight * q_loss, values

    def _rewards(self, predictions, inputs):
        """f of the frames after the first, and what it gained over the frame before: [B, T-1]."""

        def quality(first_prediction, last_prediction):
            shown = {
                name: frames_of(x[:, first_prediction:last_prediction])
                for name, x in predictions.items()
            }
            truth = {name: frames_of(inputs[name][:, 1:]) for name in TRUTH if name in inputs}
            frames = inputs["frames"].shape[1]
            return tf.reshape(self.objective.quality(shown, truth), [-1, frames - 1])

        after = quality(1, None)
        return after, tf.stop_gradient(rewards.gained(after, quality(0, -1)))

    def _q_loss(self, model, presences, histories, actions, reward):
        """Equations 4 and 5 on the transitions of the clips, and the mean value."""
        config = self.task_config.q_learning
        histories = tf.stack(histories, 1)
        states = frames_of(tf.stack(presences, 1)), frames_of(histories)
        # s_t of one transition is s_tm1 of the next.
        q_online = model.attention(*states, training=True)
        q_target = self._target(*states)
        q_online, q_target = (
            tf.reshape(x, [-1, histories.shape[1], x.shape[-1]]) for x in (q_online, q_target)
        )
        # Rewards count from their mean, as in the stage before.
        reward = config.reward_scale * (reward - tf.reduce_mean(reward))
        wanted = ddqn.double_q_target(
            tf.reshape(reward, [-1]),
            tf.fill([tf.size(reward)], config.discount),
            frames_of(q_online[:, 1:]),
            frames_of(q_target[:, 1:]),
        )
        taken = tf.gather(
            frames_of(q_online[:, :-1]), tf.reshape(tf.stack(actions, 1), [-1]), batch_dims=1
        )
        loss = tf.reduce_mean(ddqn.huber(wanted - taken, config.huber_delta))
        return loss, tf.reduce_mean(q_online)

    @tf.autograph.experimental.do_not_convert
    def train_step(self, inputs, model, optimizer, metrics=None):
        attention = model.attention.trainable_variables
        before = [tf.identity(variable) for variable in attention]
        logs = super().train_step(inputs, model, optimizer, metrics)
        config = self.task_config.q_learning
        for variable, old in zip(attention, before):
            variable.assign(old + config.rate * (variable - old))
        momentum = config.target_momentum
        pairs = zip(self._target.variables, model.attention.variables, strict=True)
        for target, online in pairs:
            # Ranges are no weights: an average that starts from none would clip for long.
            mean = momentum * target + (1 - momentum) * online
            target.assign(mean if online.trainable else online)
        return logs

    def validation_step(self, inputs, model, metrics=None):
        """Runs whole clips in `validation_mode`. Runs eagerly."""
        self.objective = objectives.make(self.task_config, model.network)
        if self._windows is None:
            self._windows = CheckpointWindows(model.patchwork, model.attention)
        mode = window_rollout.parse_mode(self.task_config.validation_mode)
        rolled = window_rollout.roll(self._windows, inputs["frames"].numpy(), mode)
        return {**{name: tf.constant(x) for name, x in rolled.predictions.items()}, **inputs}


def _experiment(task, best: str) -> config_definitions.ExperimentConfig:
    made = experiment(task, best, 0.0002, 20_000)
    made.trainer.eval_tf_function = False  # whole clips, a frame after the other
    return made


@exp_factory.register_config_factory(DETECTOR)
def detector_patchwork_experiment() -> config_definitions.ExperimentConfig:
    """A detector in windows, with its attention, as far as PW 3.4 says what that is."""
    return _experiment(DetectorPatchworkConfig(name=DETECTOR), "mAP")


@exp_factory.register_config_factory(SEGMENTER)
def segmenter_patchwork_experiment() -> config_definitions.ExperimentConfig:
    """The same of a segmenter."""
    return _experiment(SegmenterPatchworkConfig(name=SEGMENTER), "J")
