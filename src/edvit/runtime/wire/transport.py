"""How bytes reach other processes: serve a key, ask many at once, announce oneself, watch who is there.

`ZenohTransport` is the real one; tests have another with the same semantics inside one process. Both know nothing of
what the bytes mean. Keys are Zenoh key expressions: `/`-separated, `*` stands for one part.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edvit.errors import EdvitError, ServiceError, printable
from edvit.runtime.wire.packet import Packet

log = logging.getLogger(__name__)

MAX_WAITING = 64
"""Requests that wait at one key. When one more comes, the oldest is dropped, because its asker gives up first."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question as its handler gets it."""

    key: str
    """The key as it was asked; may contain `*`."""
    packet: Packet
    arrived: float
    """`time.monotonic()` when it arrived, before it waited for the handler."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, under a key that the asked key matches."""

    key: str
    packet: Packet


@dataclass(frozen=True, slots=True)
class Failure:
    """A server answered with an error."""

    error: EdvitError


@dataclass(frozen=True, slots=True)
class Ended:
    """Whoever was asked at a key says nothing more."""

    key: str
    """As it was asked."""


Handler = Callable[[Request], Iterable[Reply]]
"""Answers a request: none, one or many times. What it raises becomes a `Failure` at the asker."""


class Replies:
    """An iterator over what servers reply, as it arrives. `close` ends the wait for it, from any thread.

    Args:
        servers: how many times `end` will be called; the iteration ends when it was.
        until: `time.monotonic()` at which it ends in any case, seconds.
    """

    def __init__(self, servers: int, until: float) -> None:
        self.until = until
        self._servers = servers
        self._arrived: queue.SimpleQueue[Reply | Failure | Ended | None] = queue.SimpleQueue()
        self._closed = False

    def put(self, reply: Reply | Failure) -> None:
        self._arrived.put(reply)

    def end(self, key: str = "") -> None:
        """Who was asked at `key` says nothing more."""
        self._arrived.put(Ended(key))

    def expect(self, servers: int) -> None:
        """So many more will call `end`. Only for the thread that iterates."""
        self._servers += servers

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self._servers <= 0 or self._closed

    def take(self, until: float) -> Reply | Failure | Ended | None:
        """What comes next, or that a key has ended; None at `until` (`time.monotonic()`), or where it is `over`."""
        if self.over:
            return None
        try:
            arrived = self._arrived.get(timeout=max(0.0, min(until, self.until) - time.monotonic()))
        except queue.Empty:
            return None
        if isinstance(arrived, Ended):
            self._servers -= 1
        return arrived

    def close(self) -> None:
        """Wait for nothing more."""
        self._closed = True
        self._arrived.put(None)

    def __iter__(self) -> Replies:
        return self

    def __next__(self) -> Reply | Failure:
        while isinstance(arrived := self.take(self.until), Ended):
            pass
        if arrived is None:
            raise StopIteration
        return arrived


class Waits:
    """The replies that are being waited for. Closing ends every wait, also those that begin later."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[Replies] = weakref.WeakSet()
        self.closed = False
        self._lock = threading.Lock()

    def add(self, replies: Replies) -> Replies:
        with self._lock:
            self._open.add(replies)
            if self.closed:
                replies.close()
        return replies

    def close(self) -> None:
        with self._lock:
            self.closed = True
            for replies in self._open:
                replies.close()


class Registration:
    """Something served, announced or watched, until it is closed. Closing twice is fine. Thread-safe."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo = [undo]

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            self._undo.pop()()


class Registrations:
    """All registrations of one transport."""

    def __init__(self) -> None:
        self._open: set[Registration] = set()
        self._closed = False
        self._lock = threading.Lock()

    def add(self, *steps: Callable[[], None]) -> Registration:
        """Remember what undoes a registration. Raises ServiceError, with it undone, after `close`."""

        def undo() -> None:
            with self._lock:
                self._open.discard(registration)
            for step in steps:
                step()

        registration = Registration(undo)
        with self._lock:
            if not self._closed:
                self._open.add(registration)
                return registration
        registration.close()
        raise ServiceError("the network session is closed")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            left = list(self._open)
        for registration in left:
            registration.close()


class Transport(Protocol):
    """One participant of the network. Once it is closed, asking gives no reply, and all else raises ServiceError."""

    def serve(self, key: str, handler: Handler) -> Registration:
        """Reply what is asked at `key`, one request after the other in a thread of its own.

        Closing it, or the transport, ends the wait of those whose request is being handled.
        """

    def ask(self, key: str, packet: Packet, *, deadline_s: float, urgent: bool = True) -> Replies:
        """Ask everyone who serves `key`; replies come as they arrive.

        The request has left when this returns. The replies end when everyone has answered, closed or died, when this
        transport closes, or after `deadline_s` seconds; iterating never raises for what a server did.
        `urgent=False` lets other traffic pass first.
        """

    def ask_each(
        self, keys: Sequence[str], packet: Packet, *, deadline_s: float, into: Replies | None = None
    ) -> Replies:
        """Ask at several keys side by side, urgently: one whose server takes nothing holds up no other, nor the caller.

        The replies are those of `ask`, for all of them, and `Replies.take` says which key has ended. They come by
        `into` where it is given, the replies of an earlier question of the same thread.
        """

    def announce(self, key: str) -> Registration:
        """Be alive under `key` until closed, or until this process or its link dies."""

    def watch(self, key: str, on_change: Callable[[str, bool], None]) -> Registration:
        """Call `on_change(key, alive)` for everyone who is or comes alive under `key`, and who ceases to be."""

    def close(self) -> None: ...


def answers(handler: Handler, request: Request) -> Iterator[Reply | Exception]:
    """Run a handler; an exception ends it, and is its last item."""
    try:
        yield from handler(request)
    except EdvitError as error:
        log.info("refused a request at %s: %s", printable(request.key), error)
        yield error
    except Exception as error:
        log.exception("a request at %s failed", printable(request.key))
        yield error


class Reception:
    """One request on the side of its server: where its answers go, and whether anyone still wants them."""

    def __init__(self, request: Request, send: Callable[[Reply | Exception], None], end: Callable[[], None]) -> None:
        self.request = request
        self._send = send
        self._end = end
        self._ended = False
        self._lock = threading.Lock()

    def send(self, answer: Reply | Exception) -> None:
        with self._lock:
            if not self._ended:
                self._send(answer)

    def end(self) -> None:
        with self._lock:
            if not self._ended:
                self._ended = True
                self._end()


class Lane:
    """The thread that answers the requests of one key, in order."""

    def __init__(self, key: str, handler: Handler) -> None:
        self._handler = handler
        self._waiting: deque[Reception] = deque()
        self._current: Reception | None = None
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name=f"serve {key}", daemon=True).start()

    def put(self, reception: Reception) -> None:
        """Never blocks, and never raises: it is called from the transport's own threads."""
        dropped = None
        with self._changed:
            if self._closed:
                dropped = reception
            else:
                if len(self._waiting) >= MAX_WAITING:
                    dropped = self._waiting.popleft()
                self._waiting.append(reception)
                self._changed.notify()
        if dropped is not None:
            log.info("dropped a request at %s: too many wait", printable(dropped.request.key))
            dropped.end()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = [*self._waiting, *([self._current] if self._current else [])]
            self._waiting.clear()
            self._changed.notify()
        for reception in left:
            reception.end()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                reception = self._current = self._waiting.popleft()
            for answer in answers(self._handler, reception.request):
                reception.send(answer)
            reception.end()
            with self._changed:
                self._current = None
