"""How bytes reach other processes: serve a key, ask many at once, announce oneself, watch who is there.

`ZenohTransport` is the real one; `MemoryTransport` has the same semantics inside one process, for tests. Both
know nothing of what the bytes mean. Keys are Zenoh key expressions: `/`-separated, `*` stands for one part.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edvit.errors import EdvitError

log = logging.getLogger(__name__)

MAX_WAITING = 64
"""Requests that wait at one key. When one more comes the oldest is dropped: its asker will give up first."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A message as bytes."""

    header: bytes
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler is given."""

    key: str
    """The key as it was asked; may contain `*`."""
    packet: Packet
    arrived: float
    """`time.monotonic()` when it arrived, before it waited for the handler."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply, under a key that the asked key matches."""

    key: str
    packet: Packet


@dataclass(frozen=True, slots=True)
class Failure:
    """A server answered with an error."""

    error: EdvitError


Handler = Callable[[Request], Iterable[Answer]]
"""Answers a request: none, one or many times. What it raises becomes a `Failure` at the asker."""


class Registration(Protocol):
    """Something served, announced or watched, until it is closed. Closing twice is fine."""

    def close(self) -> None: ...


class Transport(Protocol):
    """One participant of the network."""

    def serve(self, key: str, handler: Handler) -> Registration:
        """Answer what is asked at `key`, one request after the other in a thread of its own.

        Closing it, or the transport, ends the wait of those whose request is being handled.
        """

    def ask(self, key: str, packet: Packet, *, deadline_s: float, urgent: bool = True) -> Iterator[Answer | Failure]:
        """Ask everyone who serves `key`; replies come as they arrive.

        The request has left when this returns. The iterator ends when everyone has answered, closed or died, or
        after `deadline_s` seconds; it never raises for what a server did. `urgent=False` lets other traffic pass
        first.
        """

    def ask_each(self, keys: Sequence[str], packet: Packet, *, deadline_s: float) -> Iterator[Answer | Failure]:
        """Ask at several keys side by side, urgently: one whose server takes nothing holds up no other, nor the caller.

        The iterator is that of `ask`, for all of them.
        """

    def announce(self, key: str) -> Registration:
        """Be alive under `key` until closed, or until this process or its link dies."""

    def watch(self, key: str, on_change: Callable[[str, bool], None]) -> Registration:
        """Call `on_change(key, alive)` for everyone who is or comes alive under `key`, and who ceases to be."""

    def close(self) -> None: ...


def answers(handler: Handler, request: Request) -> Iterator[Answer | Exception]:
    """Run a handler; an exception ends it, and is its last item."""
    try:
        yield from handler(request)
    except EdvitError as error:
        log.info("refused a request at %s: %s", request.key, error)
        yield error
    except Exception as error:
        log.exception("a request at %s failed", request.key)
        yield error


class Reception:
    """One request on the side of its server: where its answers go, and whether anyone still wants them."""

    def __init__(self, request: Request, send: Callable[[Answer | Exception], None], end: Callable[[], None]) -> None:
        self.request = request
        self._send = send
        self._end = end
        self._ended = False
        self._lock = threading.Lock()

    def send(self, answer: Answer | Exception) -> None:
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
