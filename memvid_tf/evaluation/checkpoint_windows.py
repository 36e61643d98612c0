"""Networks of Keras as `window_rollout.WindowNetwork`: what training made, before any export."""

import numpy as np
import tensorflow as tf

from memvid_tf.evaluation.counting import count
from memvid_tf.evaluation.window_rollout import Costs
from memvid_tf.models.attention import HISTORY_ONE, Attention
from memvid_tf.models.patchwork import Patchwork


def _arrays(predictions) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in predictions.items()}


def _full_cost(network) -> int:
    frame = tf.TensorSpec([1, *network.config.image_size, 3], tf.uint8)
    return count(network, frame).multiply_adds


class PlainNetwork:
    """A single-frame network, which knows the mode `full` alone.

    Args:
      network: built, restored from a checkpoint.
    """

    windows = decay = None

    def __init__(self, network):
        self.anchors = getattr(network, "anchors", None)
        self.costs = Costs(full=_full_cost(network))
        self._predict = tf.function(lambda frames: network(frames), autograph=False)

    def first(self, frames: np.ndarray):
        """See `window_rollout.WindowNetwork`; there is no state."""
        return _arrays(self._predict(tf.constant(frames))), None


class CheckpointWindows:
    """A network in its windows, with its variables as they are.

    Args:
      model: the network.
      attention: its attention network, or None.
    """

    def __init__(self, model: Patchwork, attention: Attention | None = None):
        self.windows, self.anchors = model.windows, getattr(model.network, "anchors", None)
        self.decay = None if attention is None else attention.config.decay
        self._model, self._attention = model, attention
        self._first = tf.function(
            lambda frames: model.start(model.network.preprocess(frames)), autograph=False
        )
        self._step = tf.function(self._step_graph, autograph=False)
        self._without = tf.function(self._step_without_context, autograph=False)
        self._values = tf.function(self._values_graph, autograph=False)

    @property
    def costs(self) -> Costs:
        """Counted when they are asked for, which takes seconds."""
        model, layout = self._model, self._model.layout
        body = count(
            model.body,
            tf.TensorSpec([1, *model.window_size, 3]),
            tf.TensorSpec([1, layout.halo, layout.chunk]),
        )
        maps = {
            name: tf.TensorSpec([1, *size, model.map_channels[name]])
            for name, size in model.map_sizes.items()
        }
        attention = None
        if self._attention is not None:
            slices = self.windows.slices
            presence = tf.TensorSpec([1, slices, slices, 1])
            history = tf.TensorSpec([1, self.windows.count])
            attention = count(self._attention, presence, history).multiply_adds
        return Costs(
            full=_full_cost(model.network),
            window=body.multiply_adds + count(model.network.tail, maps).multiply_adds,
            attention=attention,
        )

    def _step_graph(self, frames, actions, state):
        return self._model.step(self._model.network.preprocess(frames), actions, state)

    def _step_without_context(self, frames, actions, state):
        empty = state._replace(strips=tf.zeros_like(state.strips))
        return self._step_graph(frames, actions, empty)

    def _values_graph(self, predictions, history):
        presence = self._model.network.presence(predictions, self.windows.slices)
        return self._attention(presence, history)

    def first(self, frames: np.ndarray):
        """See `window_rollout.WindowNetwork`; a state has the predictions with it."""
        predictions, state = self._first(tf.constant(frames))
        return _arrays(predictions), (state, predictions)

    def step(self, frames: np.ndarray, actions: np.ndarray, state, context: bool):
        """See `window_rollout.WindowNetwork`."""
        step = self._step if context else self._without
        predictions, state = step(tf.constant(frames), tf.constant(actions), state[0])
        return _arrays(predictions), (state, predictions)

    def q_values(self, state, history: np.ndarray) -> np.ndarray:
        """See `window_rollout.WindowNetwork`."""
        ones = tf.constant(history * np.float32(HISTORY_ONE))
        return self._values(state[1], ones).numpy()
