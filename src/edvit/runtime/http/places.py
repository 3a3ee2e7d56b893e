"""Places for requests: so many at once, more wait their turn, and each client gets as many turns as any other."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edvit.errors import OverloadedError, TooManyRequestsError


class Places:
    """Places within one event loop.

    Args:
        at_once: requests that have a place at a time.
        waiting: requests that wait for one, at most, over all clients.
        a_client: places that one client has at a time, at most; None: any number.
    """

    def __init__(self, at_once: int, waiting: int, a_client: int | None = None) -> None:
        self._at_once = at_once
        self._free = at_once  # less than none while there are fewer places than requests that have one
        self._most_waiting = waiting
        self._a_client = a_client or at_once
        self._held: Counter[str] = Counter()
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
        if self._free > 0 and self._has_share(client):  # then nobody waits who has a share
            self._take(client)
        else:
            await self._turn(client)
        try:
            yield
        finally:
            self._give_back(client)

    def resize(self, at_once: int) -> None:
        """From now on so many requests have a place at a time. None loses the one that it has."""
        self._free += at_once - self._at_once
        self._at_once = at_once
        while self._free > 0 and self._hand_on():
            pass

    def _has_share(self, client: str) -> bool:
        return self._held[client] < self._a_client

    def _take(self, client: str) -> None:
        self._free -= 1
        self._held[client] += 1

    async def _turn(self, client: str) -> None:
        if sum(map(len, self._queues.values())) >= self._most_waiting:
            self._make_room(client)
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.done() or turn.cancelled():
                self._forget(client, turn)
            elif turn.exception() is None:
                self._give_back(client)
            raise

    def _make_room(self, client: str) -> None:
        """End the newest waiting request of the client that has the most; raise where that is this client's own."""
        mine = len(self._queues.get(client, ()))
        greedy = max(self._queues, key=lambda name: len(self._queues[name]), default=client)
        if len(self._queues.get(greedy, ())) <= mine + 1:
            if len(self._queues) <= 1:
                raise OverloadedError(f"{self._most_waiting} requests are waiting already: try again in a moment")
            raise _too_many()
        # One that is cancelled leaves the queue by itself, in a moment.
        turn = next((turn for turn in reversed(self._queues[greedy]) if not turn.done()), None)
        if turn is not None:
            self._forget(greedy, turn)
            turn.set_exception(_too_many())

    def _give_back(self, client: str) -> None:
        self._free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        if self._free > 0:
            self._hand_on()

    def _hand_on(self) -> bool:
        """Give a free place to who is next; whether there is anyone."""
        turns = ((name, turn) for name, queue in self._queues.items() if self._has_share(name) for turn in queue)
        following, turn = next(((name, turn) for name, turn in turns if not turn.done()), ("", None))
        if turn is None:
            return False
        self._forget(following, turn)
        if following in self._queues:
            self._queues.move_to_end(following)
        self._take(following)
        turn.set_result(None)
        return True

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues[client]
        queue.remove(turn)
        if not queue:
            del self._queues[client]


def _too_many() -> TooManyRequestsError:
    return TooManyRequestsError(
        "too many requests of this address are waiting, and others wait as well: send fewer at once"
    )
