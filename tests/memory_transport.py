"""The transport inside one process, with the semantics of the real one: for tests, and for reading."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from edvit.runtime.wire.failure import decode_error, encode_error
from edvit.runtime.wire.packet import Packet
from edvit.runtime.wire.transport import (
    Failure,
    Handler,
    Lane,
    Reception,
    Registration,
    Registrations,
    Replies,
    Reply,
    Request,
    Waits,
)


class MemoryNetwork:
    """What the transports of one test share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.served: list[tuple[str, Lane]] = []
        self.alive: list[str] = []
        self.watchers: list[tuple[str, queue.SimpleQueue[tuple[str, bool] | None]]] = []

    def tell(self, key: str, alive: bool) -> None:
        for pattern, changes in self.watchers:
            if matches(pattern, key):
                changes.put((key, alive))


class MemoryTransport:
    """One participant of a `MemoryNetwork`. See `Transport`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._registrations = Registrations()
        self._waits = Waits()

    def serve(self, key: str, handler: Handler) -> Registration:
        network = self._network
        entry = (key, Lane(key, handler))

        def undo() -> None:
            with network.lock:
                network.served.remove(entry)
            entry[1].close()

        with network.lock:
            network.served.append(entry)
        return self._registrations.add(undo)

    def ask(self, key: str, packet: Packet, *, deadline_s: float, urgent: bool = True) -> Replies:
        del urgent  # nothing queues here
        return self.ask_each([key], packet, deadline_s=deadline_s)

    def ask_each(
        self, keys: Sequence[str], packet: Packet, *, deadline_s: float, into: Replies | None = None
    ) -> Replies:
        with self._network.lock:
            lanes = {key: [lane for served, lane in self._network.served if matches(served, key)] for key in keys}
        replies = into or self._waits.add(Replies(0, time.monotonic() + deadline_s))
        replies.expect(len(lanes))

        def send(key: str, answer: Reply | Exception) -> None:
            if isinstance(answer, Exception):
                # Through the same bytes as on the wire, so that nothing more than on the wire gets through.
                replies.put(Failure(decode_error(encode_error(answer))))
            elif matches(key, answer.key):
                replies.put(answer)

        for key, asked in lanes.items() if not self._waits.closed else ():
            end = _Last(len(asked), partial(replies.end, key))
            for lane in asked:
                lane.put(Reception(Request(key, packet, time.monotonic()), partial(send, key), end))
        return replies

    def announce(self, key: str) -> Registration:
        network = self._network

        def undo() -> None:
            with network.lock:
                network.alive.remove(key)
                if key not in network.alive:
                    network.tell(key, False)

        with network.lock:
            if key not in network.alive:
                network.tell(key, True)
            network.alive.append(key)
        return self._registrations.add(undo)

    def watch(self, key: str, on_change: Callable[[str, bool], None]) -> Registration:
        network = self._network
        changes: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        entry = (key, changes)

        def run() -> None:
            while (change := changes.get()) is not None:
                on_change(*change)

        def undo() -> None:
            with network.lock:
                network.watchers.remove(entry)
            changes.put(None)

        threading.Thread(target=run, name=f"watch {key}", daemon=True).start()
        with network.lock:
            network.watchers.append(entry)
            for present in dict.fromkeys(network.alive):
                if matches(key, present):
                    changes.put((present, True))
        return self._registrations.add(undo)

    def close(self) -> None:
        self._waits.close()
        self._registrations.close()


class _Last:
    """Calls `then` at the last of so many calls: a key has ended when all who serve it have, or none does."""

    def __init__(self, calls: int, then: Callable[[], None]) -> None:
        self._left, self._then, self._lock = calls, then, threading.Lock()
        if not calls:
            then()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            over = self._left == 0
        if over:
            self._then()


def matches(a: str, b: str) -> bool:
    """Whether two keys, each perhaps with `*` for whole parts, have a key in common."""
    left, right = a.split("/"), b.split("/")
    return len(left) == len(right) and all(x == y or "*" in (x, y) for x, y in zip(left, right, strict=True))
