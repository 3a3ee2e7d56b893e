"""How long a prediction may take: what the operator says, or what the last answers took."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Collection

LONGEST_S = 2.0
"""The deadline until enough answers are known, and the longest one that is learned."""
FLOOR_S = 0.5
FACTOR = 4.0
"""A learned deadline is so many times the 99th percentile of the last answers."""
WINDOW = 512
"""Answers that are looked at, for each size of batch."""
ENOUGH = 50
EVERY = 16
"""Answers after which the deadline is computed anew."""
CUTS = 32
"""So many answers in a row that were cut off say that the deadline is too short: a device that hangs cuts off fewer
before it is left alone."""


class Deadline:
    """The deadline of predictions, seconds. Thread-safe.

    Batches are told apart by their size, rounded up to a power of two, because larger ones take longer.

    A deadline that cuts off every answer would never learn what they take. It begins anew with the longest one where
    `CUTS` answers in a row were cut off, and where a device has answered a probe, but later than the deadline.

    Args:
        fixed_s: the deadline of every prediction; None to learn it.
    """

    def __init__(self, fixed_s: float | None) -> None:
        self._fixed_s = fixed_s
        self._taken: dict[int, deque[float]] = {}
        self._learned: dict[int, float] = {}
        self._since: dict[int, int] = {}
        self._cuts: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def longest_s(self) -> float:
        """No deadline is longer."""
        return LONGEST_S if self._fixed_s is None else self._fixed_s

    def of(self, batch: int) -> float:
        """Seconds that a prediction of so many images may take."""
        return self._learned.get(size_class(batch), self.longest_s)

    def took(self, batch: int, seconds: float) -> None:
        """Learn from an answer that was not held up by a device that hangs."""
        if self._fixed_s is not None:
            return
        size = size_class(batch)
        with self._lock:
            taken = self._taken.setdefault(size, deque(maxlen=WINDOW))
            taken.append(seconds)
            self._cuts.pop(size, None)
            self._since[size] = self._since.get(size, 0) + 1
            if len(taken) >= ENOUGH and self._since[size] >= EVERY:
                self._since[size] = 0
                self._learned[size] = learned_s(taken)

    def cut(self, batch: int) -> None:
        """A device that seems to hang has held up an answer until the deadline."""
        size = size_class(batch)
        with self._lock:
            self._cuts[size] = self._cuts.get(size, 0) + 1
            if self._cuts[size] >= CUTS:
                self._begin_anew(size)

    def probed(self, seconds: float) -> None:
        """A device that does not hang took so long for one image."""
        with self._lock:
            if seconds > self.of(1):
                for size in [*self._taken]:
                    self._begin_anew(size)

    def _begin_anew(self, size: int) -> None:
        for known in (self._taken, self._learned, self._since, self._cuts):
            known.pop(size, None)


def learned_s(taken: deque[float]) -> float:
    """How long to wait, by what was waited for before, seconds."""
    return min(max(FACTOR * percentile(taken, 0.99), FLOOR_S), LONGEST_S)


def percentile(taken: Collection[float], share: float) -> float:
    """The smallest of some times that at least this share of them does not exceed."""
    return sorted(taken)[math.ceil(share * len(taken)) - 1]


def size_class(batch: int) -> int:
    """The same for batches whose sizes are rounded up to the same power of two."""
    return (batch - 1).bit_length()
