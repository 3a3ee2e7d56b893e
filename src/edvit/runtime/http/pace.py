"""How many requests are worked on at once, so that the devices can answer each of them in time."""

from __future__ import annotations

ENOUGH = 0.4
"""The share of the longest deadline that devices may take; as much is for waiting, and the rest is a reserve."""


class Pace:
    """More requests at once make every one of them slower once the devices have enough to do.

    It goes up by about one in the time that an answer takes, and down by half where the answers take too long.

    Args:
        most: requests at once.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._at_once = float(most)

    @property
    def is_lowered(self) -> bool:
        """Whether answers have lately taken too long."""
        return self._at_once < self._most

    def after(self, seconds: float, longest_s: float, *, answered: bool) -> int:
        """How many requests to work on at once, now that one was worked on for so many seconds.

        Args:
            longest_s: no prediction may take longer.
            answered: it was answered; one that failed sooner than it might have says nothing.
        """
        if seconds > ENOUGH * longest_s:
            self._at_once = max(1.0, self._at_once - 0.5)
        elif answered:
            self._at_once = min(self._most, self._at_once + 1 / self._at_once)
        return int(self._at_once)
