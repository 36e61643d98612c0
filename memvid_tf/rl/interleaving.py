"""Interleaving as a game on recorded clips (LFS 3.4, Algorithm 1).

Several clips are played at once. On frame t the action a_t runs one extractor, but the rewards of
both are known: the frozen detector computes the detections of either from the same memory. With L^i
the loss of extractor i's detections (equation 2),

    R(f0) = min_i L^i − L^0
    R(f1) = γ + min_i L^i − L^1

A game begins after frame 0, on which f0 always runs, and has a step for every other frame. Features
do not depend on actions: `InterleavingEnvironment.watch` extracts those of a clip once, and all its
games are played with memory, head and loss alone.

Differs from the paper: L is the multibox loss of the frame for each of its positive anchors. The
end of a clip is no end of the video, so the last transition's discount is that of the others. Since
the game knows what the extractor that was not picked would have led to, `game.run_loop` can hand
out that transition as well: Algorithm 1 runs both and throws one away.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from memvid_tf.detection.loss import LossConfig, frame_loss
from memvid_tf.detection.matching import Targets, match
from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.layers.conv_lstm import EXTRACTORS, State
from memvid_tf.models.interleaved import InterleavedDetector
from memvid_tf.models.policy import PolicyConfig
from memvid_tf.rl.ddqn import Observation, stored
from memvid_tf.runtime.schedules import ActionHistory

F0, F1 = (EXTRACTORS.index(extractor) for extractor in EXTRACTORS)


def rewards(losses: np.ndarray, speed_reward: float) -> np.ndarray:
    """Equation 2 for every action.

    Args:
      losses: [..., 2], L^0 and L^1.
      speed_reward: γ.

    Returns:
      [..., 2], R(f0) and R(f1).
    """
    accuracy = losses.min(-1, keepdims=True) - losses
    accuracy[..., F1] += speed_reward
    return accuracy


class Footage(NamedTuple):
    """N clips of T frames as games need them: all that does not depend on actions.

    Attributes:
      f0, f1: [N, T, H, W, C] float32 features.
      targets: what the network should predict, [N, T, A] and [N, T, A, 4].
    """

    f0: np.ndarray
    f1: np.ndarray
    targets: Targets

    @property
    def clips(self) -> int:
        """N."""
        return len(self.f0)

    @property
    def frames(self) -> int:
        """T."""
        return self.f0.shape[1]

    def of(self, clips: np.ndarray) -> "Footage":
        """Some of the clips, by their numbers [n]."""
        return Footage(self.f0[clips], self.f1[clips], Targets(*(x[clips] for x in self.targets)))


def joined(parts: Sequence[Footage]) -> Footage:
    """The clips of all parts, which have equally many frames."""
    f0, f1, targets = zip(*parts)
    return Footage(
        np.concatenate(f0),
        np.concatenate(f1),
        Targets(*(np.concatenate(x) for x in zip(*targets))),
    )


class TimeStep(NamedTuple):
    """What is known after one frame.

    Attributes:
      actions: [B] int32, what ran.
      outcomes: of each clip, S_t after either action.
      rewards: [B, 2] float32, R_t of either action.
      losses: [B, 2] float32, L^0 and L^1.
      is_last: whether the clips end here.
    """

    actions: np.ndarray
    outcomes: list[tuple[Observation, Observation]]
    rewards: np.ndarray
    losses: np.ndarray
    is_last: bool

    @property
    def observations(self) -> list[Observation]:
        """S_t of each clip."""
        return [after[action] for after, action in zip(self.outcomes, self.actions)]

    @property
    def reward(self) -> np.ndarray:
        """[B] float32 R_t(a_t)."""
        return self.rewards[np.arange(len(self.actions)), self.actions]


class InterleavingEnvironment:
    """A batch of clips in which a frozen detector is steered.

    Args:
      detector: the detector, in inference mode.
      losses: the loss of which the rewards are made.
      policy: what of the detector is observed.
      speed_reward: γ.
      discount: of every step.
    """

    def __init__(
        self,
        detector: InterleavedDetector,
        losses: LossConfig,
        policy: PolicyConfig,
        speed_reward: float,
        discount: float,
    ):
        self._detector, self._config, self._losses = detector, policy, losses
        self._network = CheckpointNetwork(detector)
        self._speed_reward, self.discount = speed_reward, discount
        self._advance = tf.function(self._advance_graph, autograph=False)
        self._match = tf.function(self._match_graph, autograph=False)

    def watch(self, clips: dict[str, np.ndarray]) -> Footage:
        """Extracts the features of clips and matches their objects.

        Args:
          clips: a batch of `clips.clip_dataset`, of which every frame is valid.
        """
        features = rollout.extract_all(self._network, clips["frames"])
        f0, f1 = (np.stack([x.numpy() for x in features[e]], 1) for e in EXTRACTORS)
        matched = self._match(clips["boxes"], clips["classes"])
        return Footage(f0, f1, Targets(*(x.numpy() for x in matched)))

    def load(self, footage: Footage) -> None:
        """Takes other clips."""
        self._footage = footage

    def reset(self) -> TimeStep:
        """Begins a game; returns what is known after frame 0."""
        clips = self._footage.clips
        self._state = self._detector.initial_state(clips)
        self._rows = self._seen = list(zip(*(stored(s) for s in self._state)))
        self._history = ActionHistory(clips, self._config.history)
        self._t = 0
        return self._run(np.full(clips, F0, np.int32))

    def step(self, actions: np.ndarray) -> TimeStep:
        """Runs an extractor of each clip on the next frame.

        Args:
          actions: [B] int32, indices into `conv_lstm.EXTRACTORS`.
        """
        if self._t == self._footage.frames:
            raise ValueError("the clips have ended; reset, or load others")
        return self._run(actions)

    def _run(self, actions) -> TimeStep:
        footage, t = self._footage, self._t
        losses, written, self._state = self._advance(
            tf.constant(footage.f0[:, t]),
            tf.constant(footage.f1[:, t]),
            self._state,
            tf.constant(actions),
            Targets(*(tf.constant(x[:, t]) for x in footage.targets)),
        )
        losses, before = losses.numpy(), self._rows
        by_f0, by_f1 = (list(zip(*(stored(s) for s in state))) for state in written)
        # A map that did not change stays the same array, of which the replay keeps one.
        self._rows = [w if a == F0 else b for w, b, a in zip(by_f0, before, actions)]
        shown = by_f0, by_f1 if self._config.observes == "candidate" else before
        etas = [self._history.after(action == F0) for action in (F0, F1)]
        self._history.record(actions == F0)
        outcomes = [
            [
                Observation(*after, *earlier, eta)
                for after, earlier, eta in zip(states, self._seen, rows)
            ]
            for states, rows in zip(shown, etas)
        ]
        self._seen = [shown[action][clip] for clip, action in enumerate(actions)]
        self._t += 1
        return TimeStep(
            actions,
            list(zip(*outcomes)),
            rewards(losses, self._speed_reward),
            losses,
            self._t == self._footage.frames,
        )

    def _match_graph(self, boxes, classes):
        clips, frames = boxes.shape[:2]

        def merged(x):
            return tf.reshape(x, [-1, *x.shape[2:]])

        threshold = self._losses.match_threshold
        targets = match(self._detector.anchors, merged(boxes), merged(classes), threshold)
        return Targets(*(tf.reshape(x, [clips, frames, *x.shape[1:]]) for x in targets))

    def _advance_graph(self, f0_features, f1_features, state, actions, targets):
        """Losses [B, 2]; what f0 writes and what f1 would; the state that is kept."""
        losses, written = [], []
        for extractor, features in zip(EXTRACTORS, (f0_features, f1_features)):
            output, next_state = self._detector.step(features, state, extractor)
            predictions = self._detector.detect(output)
            loss = frame_loss(**predictions, targets=targets, config=self._losses)
            losses.append(loss.per_frame(self._losses.box_weight))
            written.append(next_state)
        is_f0 = tf.reshape(actions == F0, [-1, 1, 1, 1])
        kept = State(*(tf.where(is_f0, a, b) for a, b in zip(written[F0], state)))
        return tf.stack(losses, 1), written, kept
