"""Attention as a game on recorded clips (PW 3.3), from tables.

What the network remembers of a place is what it saw there when the place was last in a window. So
the maps of the full frame are put together from tiles of the maps that the plain network makes of
each frame, and a game needs no convolution of the body: only which frame each tile was last seen
in. The body runs once a frame, whatever is played; a step gathers tiles, runs the tail, and knows
what every window would have earned.

A game begins after frame 0, which is seen whole.

Differs from the paper: around a window the plain network saw the frame at hand, where the true
recurrence remembers older features. Where convolutions read nothing from outside the window, the
tables are exact (a test shows both).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from memvid_tf.models.attention import HISTORY_ONE, AttentionConfig
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.rl import rewards
from memvid_tf.runtime.attention import next_history

TRUTH = ("boxes", "classes", "masks")


class WindowObservation(NamedTuple):
    """What attention reads of one clip, or with a leading batch axis of several.

    Attributes:
      presence: [M, M, 1] float32 in [0, 1], of each tile.
      history: [A] float32 in [0, 1], F of equation 1.
    """

    presence: np.ndarray
    history: np.ndarray


def attention_values(attention, s: WindowObservation, training: bool):
    """Q-values [B, A] of an attention network for stored observations."""
    return attention(s.presence, s.history * HISTORY_ONE, training=training)


class WindowStep(NamedTuple):
    """What is known after one frame.

    Attributes:
      actions: [B] int32, which windows were looked at; -1 for the full frame.
      outcomes: of each clip, the observation after each action.
      rewards: [B, A] float32, R_t of each action; zeros after the first frame.
      quality: [B] float32, f(gt_t, p_t).
      is_last: whether the clips end here.
      observations: of each clip, the observation after what was done.
    """

    actions: np.ndarray
    outcomes: list[tuple[WindowObservation, ...]]
    rewards: np.ndarray
    quality: np.ndarray
    is_last: bool
    observations: list[WindowObservation]

    @property
    def reward(self) -> np.ndarray:
        """[B] float32 R_t(a_t); zeros after the first frame."""
        return self.rewards[np.arange(len(self.actions)), self.actions]


def covered(windows) -> np.ndarray:
    """[A, M²] bool: the tiles, row by row, that are in the window of each action."""
    inside = np.zeros([windows.count, windows.slices, windows.slices], bool)
    for action in range(windows.count):
        row, column = windows.tile(action)
        inside[action, row : row + windows.adjacent, column : column + windows.adjacent] = True
    return inside.reshape(windows.count, -1)


class AttentionEnvironment:
    """A batch of clips in which the windows of a frozen network are steered.

    Args:
      model: the network in its windows, in inference mode.
      quality: f: from the predictions of a batch of frames and their truth (a dictionary with what
        clips have of `TRUTH`) to [B] float32.
      config: of attention, whose history is observed.
      discount: of every step.
    """

    def __init__(
        self,
        model: Patchwork,
        quality: Callable[[dict, dict], tf.Tensor],
        config: AttentionConfig,
        discount: float,
    ):
        self._model, self._quality, self._config = model, quality, config
        self.discount = discount
        self._inside = covered(model.windows)
        self._maps = tf.function(self._maps_graph, autograph=False)
        self._look = tf.function(self._look_graph, autograph=False)

    def load(self, clips: dict[str, np.ndarray]) -> None:
        """Takes other clips and computes what does not depend on actions: the maps of all frames.

        Args:
          clips: a batch of `clips.clip_dataset`, of which every frame is valid.
        """
        frames = clips["frames"]
        self._clips, self._frames = frames.shape[:2]
        by_frame = [self._maps(tf.constant(frames[:, t])) for t in range(self._frames)]
        # [B, M², T, part of a map]
        self._tables = {name: tf.stack([m[name] for m in by_frame], 2) for name in by_frame[0]}
        self._truth = {name: clips[name] for name in TRUTH if name in clips}

    def reset(self) -> WindowStep:
        """Begins a game; returns what is known after frame 0."""
        actions = self._model.windows.count
        self._seen = np.zeros([self._clips, self._inside.shape[1]], np.int32)
        self._history = np.zeros([self._clips, actions], np.float32)
        self._t = 0
        quality, presence = self._look(self._tables, self._seen[:, None], self._truth_at(0))
        first = [WindowObservation(p, h) for p, h in zip(presence[:, 0].numpy(), self._history)]
        nothing = np.zeros([self._clips, actions], np.float32)
        return WindowStep(
            np.full(self._clips, -1, np.int32),
            [(observation,) * actions for observation in first],
            nothing,
            quality[:, 0].numpy(),
            self._frames == 1,
            first,
        )

    def step(self, actions: np.ndarray) -> WindowStep:
        """Looks at a window of each clip on the next frame.

        Args:
          actions: [B] int32.
        """
        if self._t + 1 == self._frames:
            raise ValueError("the clips have ended; reset, or load others")
        self._t += 1
        # Every window, and at last none, whose value the others have to exceed.
        choices = np.concatenate([self._inside, np.zeros_like(self._inside[:1])])
        seen = np.where(choices[None], self._t, self._seen[:, None]).astype(np.int32)
        quality, presence = self._look(self._tables, seen, self._truth_at(self._t))
        earned = rewards.gained(quality[:, :-1], quality[:, -1:]).numpy()
        presence = presence.numpy()
        all_actions = range(len(self._inside))
        histories = [
            next_history(self._history, np.full(self._clips, a), self._config.decay)
            for a in all_actions
        ]
        outcomes = [
            tuple(WindowObservation(presence[b, a], histories[a][b]) for a in all_actions)
            for b in range(self._clips)
        ]
        clips = np.arange(self._clips)
        self._seen = seen[clips, actions]
        self._history = np.stack(histories)[actions, clips]
        return WindowStep(
            actions,
            outcomes,
            earned,
            quality.numpy()[clips, actions],
            self._t + 1 == self._frames,
            [after[action] for after, action in zip(outcomes, actions)],
        )

    def composed(self) -> dict[str, tf.Tensor]:
        """The maps [B, H, W, C] that are remembered now."""
        return {
            name: self._together(name, table, self._seen[:, None])
            for name, table in self._tables.items()
        }

    def _truth_at(self, t: int) -> dict[str, tf.Tensor]:
        return {name: tf.constant(value[:, t]) for name, value in self._truth.items()}

    def _maps_graph(self, frames):
        """Maps of the full frame as tiles, [B, M², h·w·C] each."""
        network, slices = self._model.network, self._model.windows.slices
        tiles = {}
        for name, x in network.body(network.preprocess(frames)).items():
            (height, width), channels = self._model.map_sizes[name], x.shape[-1]
            shape = [-1, slices, height // slices, slices, width // slices, channels]
            x = tf.transpose(tf.reshape(x, shape), [0, 1, 3, 2, 4, 5])
            size = height * width * channels // slices**2
            tiles[name] = tf.reshape(x, [-1, slices**2, size])
        return tiles

    def _together(self, name, table, seen):
        """Maps [B·K, H, W, C] of the tiles [B, M², T, part] of the frames `seen` [B, K, M²]."""
        slices = self._model.windows.slices
        (height, width), channels = self._model.map_sizes[name], self._model.map_channels[name]
        parts = tf.gather(table, tf.transpose(seen, [0, 2, 1]), axis=2, batch_dims=2)
        shape = [slices, slices, height // slices, width // slices, channels]
        parts = tf.reshape(tf.transpose(parts, [0, 2, 1, 3]), [-1, *shape])
        return tf.reshape(tf.transpose(parts, [0, 1, 3, 2, 4, 5]), [-1, height, width, channels])

    def _look_graph(self, tables, seen, truth):
        """f [B, K] and the presence [B, K, M, M, 1] of K choices."""
        clips, choices = seen.shape[:2]
        maps = {name: self._together(name, table, seen) for name, table in tables.items()}

        def repeated(value):
            # GPUs have no kernel that repeats bytes, of which masks are.
            value = tf.cast(value, tf.float32) if value.dtype == tf.uint8 else value
            return tf.repeat(value, choices, axis=0)

        truth = {name: repeated(value) for name, value in truth.items()}
        network = self._model.network
        predictions = network.tail(maps)
        presence = network.presence(predictions, self._model.windows.slices)
        return (
            tf.reshape(self._quality(predictions, truth), [clips, choices]),
            tf.reshape(presence, [clips, choices, *presence.shape[1:]]),
        )
