"""Several networks as one `window_rollout.WindowNetwork`: their predictions are averaged (PW 4)."""

from collections.abc import Sequence

import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.evaluation.window_rollout import Costs, WindowNetwork


def _sum(costs: Sequence[int | None]) -> int | None:
    return None if None in costs else sum(costs)


class Ensemble:
    """Averages the predictions of networks; the first one's attention picks the windows of all.

    Args:
      networks: at least one, of the same windows and anchors.

    Raises:
      UserError: networks whose predictions do not belong to the same boxes or windows.
    """

    def __init__(self, networks: Sequence[WindowNetwork]):
        first = networks[0]
        for other in networks[1:]:
            if first.windows != other.windows:
                raise UserError(
                    f"ensemble: networks of {first.windows} and of {other.windows}, wanted the same"
                )
            if not np.array_equal(first.anchors, other.anchors):
                raise UserError("ensemble: networks of different anchors, wanted the same")
        self._networks = networks
        self.windows, self.decay, self.anchors = first.windows, first.decay, first.anchors

    @property
    def costs(self) -> Costs:
        """The sum of the networks', with one attention network."""
        costs = [network.costs for network in self._networks]
        full, window = (_sum([getattr(c, field) for c in costs]) for field in ("full", "window"))
        return Costs(full, window, costs[0].attention)

    @staticmethod
    def _mean(done):
        outputs, states = zip(*done)
        return {name: np.mean([o[name] for o in outputs], 0) for name in outputs[0]}, list(states)

    def first(self, frames: np.ndarray):
        """See `window_rollout.WindowNetwork`; a state of each network."""
        return self._mean([network.first(frames) for network in self._networks])

    def step(self, frames: np.ndarray, actions: np.ndarray, state: list, context: bool):
        """See `window_rollout.WindowNetwork`."""
        return self._mean(
            [
                network.step(frames, actions, own, context)
                for network, own in zip(self._networks, state)
            ]
        )

    def q_values(self, state: list, history: np.ndarray) -> np.ndarray:
        """See `window_rollout.WindowNetwork`."""
        return self._networks[0].q_values(state[0], history)
