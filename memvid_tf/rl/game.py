"""Playing recorded clips to the end: what environments offer, and what the replay gets of it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from memvid_tf.rl.ddqn import Learner
from memvid_tf.rl.replay import Replay, Transition


class TimeStep(Protocol):
    """What is known after one frame.

    Attributes:
      actions: [B] int32, what was done.
      outcomes: of each clip, the observation after each action.
      rewards: [B, A] float32, of each action.
      is_last: whether the clips end here.
      observations: of each clip, the observation after what was done.
    """

    actions: np.ndarray
    outcomes: list[tuple]
    rewards: np.ndarray
    is_last: bool
    observations: list[tuple]


class Environment(Protocol):
    """A batch of clips in which something is steered.

    Attributes:
      discount: of every step.
    """

    discount: float

    def reset(self) -> TimeStep:
        """Begins a game; returns what is known after frame 0."""

    def step(self, actions: np.ndarray) -> TimeStep:
        """Does one thing to each clip on the next frame; actions: [B] int32."""


class Played(NamedTuple):
    """One frame of a run.

    Attributes:
      transitions: of the clips.
      step: what the environment said.
    """

    transitions: list[Transition]
    step: TimeStep


def run_loop(
    environment: Environment,
    act: Callable[[list[tuple]], np.ndarray],
    both_actions: bool = False,
) -> Iterator[Played]:
    """Plays one game to the end.

    Args:
      environment: where; it has clips.
      act: from observations to actions [B] int32.
      both_actions: whether the transitions are of every action, instead of the one that was picked.

    Yields:
      Every frame but the first.
    """
    step = environment.reset()
    while not step.is_last:
        before = step.observations
        step = environment.step(act(before))
        yield Played(
            [
                Transition(s_tm1, a, float(r[a]), environment.discount, after[a])
                for s_tm1, picked, r, after in zip(
                    before, step.actions.tolist(), step.rewards, step.outcomes
                )
                for a in (range(len(r)) if both_actions else (picked,))
            ],
            step,
        )


def play(
    environment: Environment,
    learner: Learner,
    content: Replay,
    exploration: float | np.ndarray,
    rng: np.random.Generator,
    chances: np.ndarray | None = None,
) -> tuple[np.ndarray, list[TimeStep]]:
    """Plays one game as a learner decides, and puts it into a replay.

    Args:
      environment: where; it has clips.
      learner: who.
      content: of the replay.
      exploration: ε, or [B] of them.
      rng: of the random actions.
      chances: of the actions, see `Learner.act`.

    Returns:
      Q-values [n, A] of everything that was decided on, and the steps of the game.
    """
    values, steps = [], []

    def act(observations):
        values.append(learner.q_values(observations))
        return learner.act(values[-1], exploration, chances, rng)

    for frame in run_loop(environment, act, learner.config.both_actions):
        steps.append(frame.step)
        for transition in frame.transitions:
            content.add(transition)
    return np.concatenate(values), steps
