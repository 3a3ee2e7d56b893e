"""Places for requests: so many at once, more wait their turn, and each client gets as many turns as any other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edvit.errors import OverloadedError, TooManyRequestsError


class Places:
    """Places within one event loop.

    Args:
        at_once: requests that have a place at a time.
        waiting: requests that wait for one, at most, over all clients.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = at_once
        self._most_waiting = waiting
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Client -> its waiting requests, oldest first; the client whose turn is next comes first."""

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Wait for a place and hold it for the block.

        Raises:
            OverloadedError: too many requests wait, all of them of this client.
            TooManyRequestsError: too many requests wait, and this client has more than its share of them: at once, or
                when another client's request takes the place of this one in the queue.
        """
        if self._free > 0:
            self._free -= 1
        else:
            await self._turn(client)
        try:
            yield
        finally:
            self._give_back()

    async def _turn(self, client: str) -> None:
        if sum(map(len, self._queues.values())) >= self._most_waiting:
            self._make_room(client)
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()
            else:
                self._forget(client, turn)
            raise

    def _make_room(self, client: str) -> None:
        """End the newest waiting request of the client that has the most; raise where that is this client's own."""
        mine = len(self._queues.get(client, ()))
        greedy = max(self._queues, key=lambda name: len(self._queues[name]), default=client)
        if len(self._queues.get(greedy, ())) <= mine + 1:
            if len(self._queues) <= 1:
                raise OverloadedError(f"{self._most_waiting} requests are waiting already: try again in a moment")
            raise _too_many()
        turn = self._queues[greedy][-1]
        self._forget(greedy, turn)
        turn.set_exception(_too_many())

    def _give_back(self) -> None:
        if not self._queues:
            self._free += 1
            return
        client, queue = next(iter(self._queues.items()))
        turn = queue[0]
        self._forget(client, turn)
        if client in self._queues:
            self._queues.move_to_end(client)
        turn.set_result(None)

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues[client]
        queue.remove(turn)
        if not queue:
            del self._queues[client]


def _too_many() -> TooManyRequestsError:
    return TooManyRequestsError(
        "too many requests of this address are waiting, and others wait as well: send fewer at once"
    )
