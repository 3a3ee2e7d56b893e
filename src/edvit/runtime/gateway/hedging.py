"""When a second copy of a sub-model is asked: the first device is late, and there is budget; or it has ended.

After Dean and Barroso, The Tail at Scale (CACM 56(2), 2013): a second request goes out once the first one has taken
longer than the 95th percentile. A budget keeps that from adding to an overload.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from edvit.runtime.gateway.deadline import ENOUGH, EVERY, WINDOW, percentile, size_class

LATE_PERCENTILE = 0.95
LATE_FLOOR_S = 0.005
"""A device is never late sooner."""
LATE_MOST = 0.5
"""Share of the time that is left after which an answer is late in any case, so that the copy has time as well."""
LATE_UNKNOWN = 0.25
"""The same until enough answers are known."""
BUDGET = 0.1
"""Late devices whose copies may be asked, for each device that is asked: one in twenty is late without any cause."""
BURST = 16
"""So many more may be asked at once: as many as the gateway's requests that wait for one device when it stops."""


@dataclass(frozen=True)
class CopiesAsked:
    """How many times copies were asked, since the gateway started."""

    late: int = 0
    """A device was late."""
    ended: int = 0
    """A device ended a request without an answer, answered wrongly, or was given up."""


@dataclass
class _Times:
    """How long the last answers took."""

    taken: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    count: int = 0
    late_s: float | None = None
    """Time after which the next answer is late; None until enough are known."""

    def add(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.count += 1
        if self.count >= ENOUGH and (self.late_s is None or self.count % EVERY == 0):
            self.late_s = percentile(self.taken, LATE_PERCENTILE)


class Hedging:
    """What devices usually take, and how many copies may still be asked. Thread-safe.

    Batches are told apart by their size, rounded up to a power of two.
    """

    def __init__(self) -> None:
        self._devices: dict[tuple[str, int], _Times] = {}
        self._fleet: dict[int, _Times] = {}
        self._budget = float(BURST)
        self._asked = CopiesAsked()
        self._lock = threading.Lock()

    @property
    def asked(self) -> CopiesAsked:
        return self._asked

    def begin(self, devices: Collection[str], batch: int, left_s: float) -> dict[str, float]:
        """A request begins: after how many seconds each of these devices is late, if it has `left_s` seconds in all."""
        size = size_class(batch)
        with self._lock:
            self._budget = min(self._budget + BUDGET * len(devices), float(BURST))
            return {device: self._late_s(device, size, left_s) for device in devices}

    def _late_s(self, device: str, size: int, left_s: float) -> float:
        for times in (self._devices.get((device, size)), self._fleet.get(size)):
            if times is not None and times.late_s is not None:
                return min(max(times.late_s, LATE_FLOOR_S), LATE_MOST * left_s)
        return LATE_UNKNOWN * left_s

    def took(self, device: str, batch: int, seconds: float) -> None:
        """A device has answered, or was not waited for any longer after so many seconds.

        Without the second kind a percentile of what was waited for would fall further and further.
        """
        size = size_class(batch)
        with self._lock:
            self._devices.setdefault((device, size), _Times()).add(seconds)
            self._fleet.setdefault(size, _Times()).add(seconds)

    def may_ask(self, *, hangs: bool = False) -> bool:
        """Whether the copies of a late device may be asked; takes it from the budget.

        Args:
            hangs: the device seems to hang; then they may be asked in any case.
        """
        with self._lock:
            if self._budget < 1 and not hangs:
                return False
            self._budget = max(self._budget - 1, 0.0)
            self._asked = CopiesAsked(self._asked.late + 1, self._asked.ended)
            return True

    def asked_as_ended(self) -> None:
        """The copies of a device that has ended a request are asked: that is not limited."""
        with self._lock:
            self._asked = CopiesAsked(self._asked.late, self._asked.ended + 1)
