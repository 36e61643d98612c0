"""Uniform experience replay (Mnih et al. 2015), with the names of the textbooks.

Transitions are kept as the tuples they were given: a map that is the state after one step and
before the next, or that several steps share since f1 left the memory alone, exists once. So does it
in a checkpoint.
"""

import io
from typing import Any, NamedTuple

import numpy as np


class Transition(NamedTuple):
    """What one step of one clip taught. States are tuples of arrays.

    Attributes:
      s_tm1: state in which the action was chosen.
      a_tm1: the action, an index into `conv_lstm.EXTRACTORS`.
      r_t: the reward it earned.
      discount_t: weight of what follows.
      s_t: state after it.
    """

    s_tm1: tuple[np.ndarray, ...]
    a_tm1: int
    r_t: float
    discount_t: float
    s_t: tuple[np.ndarray, ...]


class Replay:
    """A ring of transitions: the newest `capacity` of them.

    Args:
      capacity: most transitions that are kept.
      structure: type of a state: a NamedTuple class.
    """

    def __init__(self, capacity: int, structure: type):
        if capacity < 1:
            raise ValueError(f"replay capacity {capacity} is not at least 1")
        self.capacity, self._structure = capacity, structure
        self._ring: list[Transition] = []
        self._added = 0

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, item: Transition) -> None:
        """Takes a transition in, in the place of the oldest where there is no room."""
        if len(self._ring) < self.capacity:
            self._ring.append(item)
        else:
            self._ring[self._added % self.capacity] = item
        self._added += 1

    def sample(self, size: int, rng: np.random.Generator) -> Transition:
        """Draws transitions uniformly, with replacement.

        Args:
          size: how many, N.
          rng: decides which.

        Returns:
          One `Transition` of arrays with a leading axis N; states have the replay's structure.

        Raises:
          ValueError: if the replay is empty.
        """
        if not self._ring:
            raise ValueError("an empty replay has nothing to sample")
        items = [self._ring[i] for i in rng.integers(0, len(self._ring), size)]
        before, actions, rewards, discounts, after = zip(*items)

        def stacked(states):
            return self._structure(*(np.stack(parts) for parts in zip(*states)))

        return Transition(
            stacked(before),
            np.array(actions, np.int32),
            np.array(rewards, np.float32),
            np.array(discounts, np.float32),
            stacked(after),
        )

    def get_state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays: every distinct array once, and which of them a state has."""
        tables: dict[str, list[np.ndarray]] = {name: [] for name in self._structure._fields}
        places: dict[tuple[str, int], int] = {}

        def place(name: str, array: np.ndarray) -> int:
            key = (name, id(array))
            if key not in places:
                places[key] = len(tables[name])
                tables[name].append(array)
            return places[key]

        def indices(states) -> np.ndarray:
            rows = [[place(name, x) for name, x in zip(tables, state)] for state in states]
            return np.array(rows, np.int32).reshape(-1, len(tables))

        columns = list(zip(*self._ring)) or [()] * len(Transition._fields)
        before, actions, rewards, discounts, after = columns
        return {
            "added": np.array(self._added, np.int64),
            "s_tm1": indices(before),
            "a_tm1": np.array(actions, np.int32),
            "r_t": np.array(rewards, np.float32),
            "discount_t": np.array(discounts, np.float32),
            "s_t": indices(after),
            **{f"state/{name}": np.array(table) for name, table in tables.items()},
        }

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Becomes the replay that `get_state` described.

        Raises:
          ValueError: if it holds more than this one's capacity.
        """
        count = len(state["a_tm1"])
        if count > self.capacity:
            raise ValueError(f"{count} transitions do not fit a replay of {self.capacity}")
        tables = [list(state[f"state/{name}"]) for name in self._structure._fields]

        def states(indices):
            return [self._structure(*(t[i] for t, i in zip(tables, row))) for row in indices]

        rows = zip(
            states(state["s_tm1"]),
            state["a_tm1"].tolist(),
            state["r_t"].tolist(),
            state["discount_t"].tolist(),
            states(state["s_t"]),
        )
        self._ring = [Transition(*row) for row in rows]
        self._added = int(state["added"])


def to_bytes(state: dict[str, Any]) -> bytes:
    """The arrays of `Replay.get_state` as one string, for a checkpoint."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **state)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, np.ndarray]:
    """What `to_bytes` was given.

    Raises:
      ValueError: if the string is not of `to_bytes`.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return dict(arrays)
