"""Double Q-learning (van Hasselt et al. 2016): of the interleaving policy, Algorithm 1 of LFS 3.4,
and of Patchwork's attention network (PW 3.3).

Differs from the paper: it names neither discount nor loss nor exploration. The loss is Huber's, as
in Mnih et al. 2015; the discount is short, since what a run of f0 is worth fades within some frames;
ε falls linearly. A random extractor is f0 with a probability of its own in each game, from seldom to
often: with equal chances memories would hardly ever grow old, and old ones are what π must know.
Rewards count from their mean (reward centering, Naik et al. 2024): which action is better does not
depend on a constant, but it would have to be learned a discount at a time, and int8 would spend its
levels on it. The squares of the kernels are a part of the loss: without it the network learns its
clips by heart.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from official.modeling import hyperparams

from memvid_tf.errors import UserError
from memvid_tf.layers.conv_lstm import State
from memvid_tf.models.policy import ETA_ONE, Policy
from memvid_tf.rl.replay import Replay, Transition

# States are stored on the grid of the int8 network: [0, 6] in 255 steps.
STATE_STEP = 6.0 / 255
MOST_F0 = 0.5
REWARD_MOMENTUM = 0.9  # of their mean, a step; the policy changes over tens of steps


@dataclasses.dataclass
class DdqnConfig(hyperparams.Config):
    """The learner. Steps are training steps, each of which plays some games and learns from them.

    Attributes:
      discount: weight of the next frame's value, in [0, 1).
      epsilon_begin, epsilon_end: probability of a random action, at the start and after
        `epsilon_steps` steps.
      epsilon_steps: steps over which ε falls linearly.
      least_f0: least probability of f0 among the random extractors of a game; the largest is half,
        and in between it is as likely to lie in one octave as in another.
      replay_capacity: transitions kept.
      batch_size: transitions of one update.
      both_actions: whether a frame teaches what every action would have earned and led to, not the
        picked one alone as in Algorithm 1.
      games_per_step: clips that are played in a step, all at once.
      updates_per_step: updates after them.
      target_period: steps between two copies of the online network to the target network.
      huber_delta: error beyond which the loss is linear.
      reward_scale: what rewards are multiplied with. Values of about one are many times a step of the
        optimizer, which far smaller ones are not, and fill the ranges of the int8 network.
      kernel_decay: weight of the sum of the squares of all kernels in the loss.
    """

    discount: float = 0.9
    epsilon_begin: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 200
    least_f0: float = 0.02
    replay_capacity: int = 10_000
    batch_size: int = 64
    both_actions: bool = True
    games_per_step: int = 32
    updates_per_step: int = 16
    target_period: int = 10
    huber_delta: float = 1.0
    reward_scale: float = 1.0
    kernel_decay: float = 0.0


def check(config: DdqnConfig) -> None:
    """Raises ValueError naming a number with which nothing can be learned."""
    counts = "replay_capacity batch_size games_per_step updates_per_step target_period"
    for field in counts.split():
        if getattr(config, field) < 1:
            raise ValueError(f"ddqn.{field} {getattr(config, field)} is not at least 1")
    for field in ("epsilon_begin", "epsilon_end"):
        if not 0 <= getattr(config, field) <= 1:
            raise ValueError(f"ddqn.{field} {getattr(config, field)} is not in [0, 1]")
    if not 0 < config.least_f0 <= MOST_F0:
        raise ValueError(f"ddqn.least_f0 {config.least_f0} is not in (0, {MOST_F0}]")
    if not 0 <= config.discount < 1:
        raise ValueError(f"ddqn.discount {config.discount} is not in [0, 1)")
    if config.huber_delta <= 0 or config.epsilon_steps < 0:
        raise ValueError("ddqn.huber_delta must be above 0 and ddqn.epsilon_steps at least 0")
    if config.reward_scale <= 0:
        raise ValueError(f"ddqn.reward_scale {config.reward_scale} is not above 0")
    if config.kernel_decay < 0:
        raise ValueError(f"ddqn.kernel_decay {config.kernel_decay} is not at least 0")


class Observation(NamedTuple):
    """S of one clip, or with a leading batch axis of several, as the replay stores it.

    Attributes:
      c, h: [H, W, C] uint8 in steps of `STATE_STEP`, c_t and h_t.
      c_before, h_before: the same, c_{t-1} and h_{t-1}.
      eta: [history] uint8, 1 where f1 ran k steps ago.
    """

    c: np.ndarray
    h: np.ndarray
    c_before: np.ndarray
    h_before: np.ndarray
    eta: np.ndarray


def stacked(observations: list[tuple]) -> tuple:
    """One observation with a leading batch axis, of observations of one type."""
    return type(observations[0])(*(np.stack(parts) for parts in zip(*observations)))


def epsilon(config: DdqnConfig, step: int) -> float:
    """Probability of a random action at a training step."""
    done = min(1.0, step / config.epsilon_steps) if config.epsilon_steps else 1.0
    return config.epsilon_begin + done * (config.epsilon_end - config.epsilon_begin)


def double_q_target(r_t, discount_t, q_t_online, q_t_target):
    """What Q(s_tm1, a_tm1) should be: the online network picks, the target network values.

    Args:
      r_t, discount_t: [N] float32.
      q_t_online, q_t_target: [N, A] float32 Q-values of s_t.

    Returns:
      [N] float32, of which no gradient is taken.
    """
    picked = tf.argmax(q_t_online, 1)
    value = tf.gather(q_t_target, picked, batch_dims=1)
    return tf.stop_gradient(r_t + discount_t * value)


def huber(error, delta: float):
    """Half the square of the error up to `delta`, linear beyond; the slope is continuous."""
    size = tf.abs(error)
    return tf.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def stored(state) -> list[np.ndarray]:
    """Maps [B, H, W, C] float32 in [0, 6] as observations have them, an array of each example."""
    levels = np.rint(np.asarray(state) / np.float32(STATE_STEP)).astype(np.uint8)
    return [row.copy() for row in levels]


def interleaving_values(policy: Policy, s: Observation, training: bool):
    """Q-values [B, 2] of an interleaving policy for stored observations."""

    def real(x):
        return tf.cast(x, tf.float32) * STATE_STEP

    after, before = State(real(s.c), real(s.h)), State(real(s.c_before), real(s.h_before))
    return policy(after, before, tf.cast(s.eta, tf.float32) * ETA_ONE, training=training)


class Learner:
    """The two networks and the update.

    Args:
      online: the network that is trained.
      target: another of the same configuration.
      config: the learner.
      read: Q-values of a network for stored observations, see `interleaving_values`.

    Attributes:
      mean_reward: scalar variable, what rewards count from.
    """

    def __init__(self, online, target, config: DdqnConfig, read: Callable = interleaving_values):
        check(config)
        self.online, self.target, self.config = online, target, config
        self._read = read
        self.mean_reward = tf.Variable(0.0, trainable=False, name="mean_reward")
        self._values = tf.function(self._values_graph, autograph=False)
        self._update = tf.function(self._update_graph, autograph=False)

    def _values_graph(self, s):
        return self._read(self.online, s, False)

    def _update_graph(self, batch: Transition, optimizer):
        q_t_online = self._read(self.online, batch.s_t, False)
        q_t_target = self._read(self.target, batch.s_t, False)
        reward = self.config.reward_scale * (batch.r_t - self.mean_reward)
        wanted = double_q_target(reward, batch.discount_t, q_t_online, q_t_target)
        variables = self.online.trainable_variables
        with tf.GradientTape() as tape:
            q_tm1 = self._read(self.online, batch.s_tm1, True)
            error = wanted - tf.gather(q_tm1, batch.a_tm1, batch_dims=1)
            loss = tf.reduce_mean(huber(error, self.config.huber_delta))
            squares = tf.add_n([tf.reduce_sum(v**2) for v in variables if "kernel" in v.name])
            loss += self.config.kernel_decay * squares
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
        return loss

    def q_values(self, observations: list[tuple]) -> np.ndarray:
        """[B, A] float32 Q-values of the online network."""
        return self._values(stacked(observations)).numpy()

    def chances(self, games: int, rng: np.random.Generator) -> np.ndarray:
        """Probability of f0, the first action, among the random ones of each game: [games]."""
        low, high = np.log(self.config.least_f0), np.log(MOST_F0)
        return np.exp(rng.uniform(low, high, games))

    def act(
        self,
        q_values: np.ndarray,
        exploration: float | np.ndarray,
        chances: np.ndarray | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """[B] int32 actions: the best of `q_values` [B, A], or a random one with probability ε.

        Args:
          q_values: [B, A].
          exploration: ε, or [B] of them.
          chances: [B] of `chances`, of the first of two actions; None where all are equally likely.
          rng: decides.
        """
        explore = rng.random(len(q_values)) < exploration
        if chances is None:
            any_action = rng.integers(0, q_values.shape[1], len(q_values))
        else:
            any_action = rng.random(len(q_values)) >= chances
        return np.where(explore, any_action, q_values.argmax(1)).astype(np.int32)

    def watch(self, rewards: np.ndarray, is_first: bool) -> None:
        """Takes note of the rewards of a step's games; of the first step, these alone."""
        change = rewards.mean() - self.mean_reward
        self.mean_reward.assign_add(change if is_first else (1 - REWARD_MOMENTUM) * change)

    def update(self, batch: Transition, optimizer):
        """One step of the optimizer on a sampled batch; returns the loss, a scalar tensor."""
        return self._update(batch, optimizer)

    def study(self, content: Replay, optimizer, rng: np.random.Generator, step: int):
        """The updates of one training step, and in its turn the copy to the target network.

        Args:
          content: of the replay.
          optimizer: makes the steps.
          rng: decides which transitions are sampled.
          step: number of the training step.

        Returns:
          The mean loss, a scalar tensor.

        Raises:
          UserError: if the loss is not a number.
        """
        losses = [
            self.update(content.sample(self.config.batch_size, rng), optimizer)
            for _ in range(self.config.updates_per_step)
        ]
        if step % self.config.target_period == 0:
            self.copy_to_target()
        loss = tf.reduce_mean(losses)
        if not np.isfinite(loss):
            raise UserError(
                f"loss is {float(loss)} at step {step}; lower the learning rate, or "
                "task.speed_reward of an interleaving policy"
            )
        return loss

    def copy_to_target(self) -> None:
        """The target network becomes the online one, quantization ranges included."""
        for to, source in zip(self.target.variables, self.online.variables, strict=True):
            to.assign(source)
