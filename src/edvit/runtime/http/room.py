"""Memory for the bodies of requests: what they may take together, and what one client's may."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from anyio import CancelScope, Event, move_on_after

from edvit.errors import OverloadedError, SlowUploadError, TooManyRequestsError

WAIT_S = 5.0
"""Seconds for which a body waits for room, before any of it is read."""

SLOW_S = 1.0
SLOW_BYTES_A_S = 250_000
"""A body that has been arriving for longer than so many seconds, at less than so many bytes a second, gives its room to
another that waits for it."""

LOOK_S = 0.1
"""Seconds between two looks for a slow body, while others wait."""


@dataclass(eq=False)
class Held:
    """Room that one body has.

    Attributes:
        size: bytes.
        client: whose body it is.
        received: bytes of it that have arrived.
    """

    size: int = 0
    client: str = ""
    received: int = 0
    _began: float = field(default_factory=time.monotonic)
    _scope: CancelScope | None = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The body arrives within the block. Raises SlowUploadError where it is too slow while others wait for room."""
        self._began = time.monotonic()
        with CancelScope() as scope:
            self._scope = scope
            yield
        self._scope = None
        if scope.cancelled_caught:
            raise SlowUploadError("the body arrives slowly, and others wait for the memory that it takes: try again")

    def rate(self) -> float | None:
        """Bytes a second; None: it is too early to tell, or the body is there."""
        taken = time.monotonic() - self._began
        return None if self._scope is None or taken < SLOW_S else self.received / taken

    def cut_off(self) -> None:
        if self._scope is not None:
            self._scope.cancel()


@dataclass(eq=False)
class _Waiting:
    held: Held
    granted: Event


class Room:
    """Room within one event loop.

    Args:
        size: bytes, of all bodies together.
        a_client: bytes, of the bodies of one client.
    """

    def __init__(self, size: int, a_client: int) -> None:
        self._size = size
        self._a_client = a_client
        self._held: list[Held] = []
        self._waiting: deque[_Waiting] = deque()

    @asynccontextmanager
    async def hold(self, size: int, client: str) -> AsyncIterator[Held]:
        """Wait for room for a body and hold it for the block; who waited longest and fits comes first.

        Raises:
            TooManyRequestsError: the client's other bodies took all of its room for `WAIT_S`.
            OverloadedError: the bodies of all clients did.
        """
        held = Held(size, client)
        if self._fits(held) and not self._waiting:
            self._held.append(held)
        else:
            await self._wait(held)
        try:
            yield held
        finally:
            self._held.remove(held)
            self._grant()

    async def _wait(self, held: Held) -> None:
        waiting = _Waiting(held, Event())
        self._waiting.append(waiting)
        self._grant()
        try:
            with move_on_after(WAIT_S):
                while not waiting.granted.is_set():
                    with move_on_after(LOOK_S):
                        await waiting.granted.wait()
                    if not waiting.granted.is_set():
                        self._cut_off_the_slowest(None if self._has_share(held) else held.client)
        except BaseException:
            self._leave(waiting)
            raise
        if not waiting.granted.is_set():
            self._leave(waiting)
            if not self._has_share(held):
                raise TooManyRequestsError("other uploads of this address are under way: send fewer at once")
            raise OverloadedError("the gateway has no memory for the upload: try again in a moment")

    def _leave(self, waiting: _Waiting) -> None:
        if waiting.granted.is_set():
            self._held.remove(waiting.held)
            self._grant()
        else:
            self._waiting.remove(waiting)

    def _grant(self) -> None:
        for waiting in list(self._waiting):
            if self._fits(waiting.held):
                self._waiting.remove(waiting)
                self._held.append(waiting.held)
                waiting.granted.set()

    def _fits(self, held: Held) -> bool:
        return sum(other.size for other in self._held) + held.size <= self._size and self._has_share(held)

    def _has_share(self, held: Held) -> bool:
        return sum(other.size for other in self._held if other.client == held.client) + held.size <= self._a_client

    def _cut_off_the_slowest(self, client: str | None) -> None:
        """End the slowest body, of one client or of any, if it is slow."""
        rates = [(rate, held) for held in self._held if (rate := held.rate()) is not None]
        rates = [(rate, held) for rate, held in rates if client in (None, held.client) and rate < SLOW_BYTES_A_S]
        if rates:
            min(rates, key=lambda rate_and_held: rate_and_held[0])[1].cut_off()
