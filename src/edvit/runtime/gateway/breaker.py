"""Whether a device is asked or left alone: a circuit breaker, as a pure state machine that is given the time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

MISSES = 3
"""Requests in a row without a good answer, after which a device is left alone."""
FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 5.0
"""The pause before a probe doubles with each that fails, up to this."""
STEADY_S = 5.0
"""A device that is left alone again within this time of its return is probed with the pause doubled."""


BreakerState = Literal["closed", "suspected", "open"]
"""`closed`: the device is asked. `suspected`: copies of what it holds are asked first. `open`: it is left alone."""


@dataclass(frozen=True)
class Breaker:
    """The state of one device. Every time is of one clock, in seconds; it never goes back.

    It begins open: a device is asked only once a probe of it has passed.
    """

    closed: bool = False
    """Whether requests go to the device."""
    misses: int = 0
    """Requests in a row that it did not answer well."""
    overtakes: int = 0
    """Requests in a row that a second copy answered before it."""
    pause_s: float = FIRST_PAUSE_S
    """The pause after the next probe that fails."""
    probe_at: float = -math.inf
    """When it may be probed next; has no meaning while it is closed."""
    closed_at: float = -math.inf
    answered_at: float = -math.inf
    """When it last answered a request well."""

    @property
    def suspected(self) -> bool:
        """Whether copies of what it holds are asked first, until it answers a request or a probe tells what it does."""
        return self.closed and self.overtakes >= MISSES

    @property
    def state(self) -> BreakerState:
        """Whether the device is asked, in a word."""
        if not self.closed:
            return "open"
        return "suspected" if self.suspected else "closed"

    def due(self, now: float) -> bool:
        """Whether a probe may be made."""
        return not self.closed and now >= self.probe_at

    def answered(self, now: float) -> Breaker:
        """A request was answered well."""
        return replace(self, misses=0, overtakes=0, answered_at=now) if self.closed else self

    def missed(self, asked_at: float, now: float) -> Breaker:
        """A request, sent at `asked_at`, was not answered by its deadline.

        A device that has answered others in the second half of that time has much to do, and does not hang.
        """
        return self if self._is_busy(asked_at, now) else self.failed_request(now)

    def overtaken(self, asked_at: float, now: float) -> Breaker:
        """A request, sent at `asked_at`, was answered by the second copy before this device.

        That says less than a deadline that is missed, and comes sooner: it does not open the breaker.
        """
        if not self.closed or self._is_busy(asked_at, now):
            return self
        return replace(self, overtakes=self.overtakes + 1)

    def _is_busy(self, asked_at: float, now: float) -> bool:
        return asked_at < self.closed_at or self.answered_at >= (asked_at + now) / 2

    def failed_request(self, now: float) -> Breaker:
        """A request was answered wrongly, or the device missed it for sure."""
        if not self.closed:
            return self
        if self.misses + 1 < MISSES:
            return replace(self, misses=self.misses + 1)
        return self.lost(now)

    def lost(self, now: float) -> Breaker:
        """The device is known not to answer: leave it alone at once."""
        if not self.closed:
            return self
        pause = min(2 * self.pause_s, MOST_PAUSE_S) if now - self.closed_at < STEADY_S else FIRST_PAUSE_S
        return replace(self, closed=False, misses=0, overtakes=0, probe_at=now + pause, pause_s=pause)

    def failed(self, now: float) -> Breaker:
        """A probe failed: the next one is due after a pause, and the pause after that is twice as long."""
        return replace(self, probe_at=now + self.pause_s, pause_s=min(2 * self.pause_s, MOST_PAUSE_S))

    def passed(self, now: float) -> Breaker:
        """A probe passed: requests go to the device again."""
        return replace(self, closed=True, misses=0, closed_at=now, answered_at=now)
