"""Connections to the HTTP server: how many there may be, and how long they may stay without a request.

A server that has too many closes one that waits, of the address that has the most, and takes the new one.
A connection waits for its client before a request, in the midst of one, and while its answer is not read.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from anyio import CancelScope
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import ssl

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST = 512
"""Connections, where the process may have enough handles for them."""

OTHER_HANDLES = 150
"""Handles that are left for everything else: devices, files, connections that are accepted only to be closed."""

HEADER_S = 10.0
"""Seconds that a TLS handshake may take; also those from a request's first byte, or from the connection, to the end
of its headers."""

UNREAD_S = 10.0
"""Seconds in which a client that has an answer to read must read some of it."""

LOOK_S = 0.5
"""Seconds between two looks at how long connections have been waiting."""

POLL_S = 0.01

Address: TypeAlias = tuple[str, int]

REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
)
_BODY = b'{"error":{"code":"overloaded","message":"too many connections are open: try again in a moment"}}'


def most_connections() -> int:
    """How many connections the process has handles for."""
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST if handles == resource.RLIM_INFINITY else max(16, min(MOST, handles - OTHER_HANDLES))


@dataclass(eq=False)
class Connection:
    """One open connection.

    Attributes:
        transport: to close it.
        address: of the client.
        since: when it was opened, the first byte of a request came, or a body began; seconds of the monotonic clock.
        state: `handshake`: TLS is not agreed upon yet;
            `header`: a request is to come or its headers are incomplete; `idle`: it had requests, and is kept for
            more; `body`: the body of a request arrives; `answer`: the request is worked on.
        unread: bytes of answers that wait here for the client, when they were last looked at.
        read_since: when the client last read some of them, or had nothing to read; seconds of the monotonic clock.
        writable: set unless too much of the answers is unread.
    """

    transport: asyncio.Transport
    address: Address
    since: float = field(default_factory=time.monotonic)
    state: str = "header"
    unread: int = 0
    read_since: float = field(default_factory=time.monotonic)
    writable: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.writable.set()

    def turn(self, state: str) -> None:
        self.state, self.since = state, time.monotonic()

    def look(self) -> None:
        """Note how much of the answers is unread."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread != self.unread:
            self.reads()
        self.unread = unread

    def reads(self) -> None:
        self.read_since = time.monotonic()


class Connections:
    """The connections of one server, all within its event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[Address, Connection] = {}
        self._watching = False

    def opened(self, transport: asyncio.Transport, state: str = "header") -> Connection | None:
        """A new connection; None where it is refused, because none of the others can be closed."""
        peer = transport.get_extra_info("peername")
        connection = Connection(transport, peer[:2], state=state)
        self._watch()
        if len(self._open) >= self._most and not self._close_one():
            if state == "handshake":
                transport.abort()  # words would need the handshake
            else:
                transport.write(REFUSAL % (len(_BODY), _BODY))
                transport.close()
            return None
        self._open[connection.address] = connection
        return connection

    def closed(self, connection: Connection) -> None:
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]

    def of(self, scope: Scope) -> Connection | None:
        """The connection that a request came over."""
        client = scope.get("client")
        return None if client is None else self._open.get((client[0], client[1]))

    def _close_one(self) -> bool:
        """Close the connection that waits longest, of the address that has the most."""
        for one in self._open.values():
            one.look()
        waiting = [one for one in self._open.values() if one.state != "answer" or one.unread > 0]
        if not waiting:
            return False
        of_host = Counter(one.address[0] for one in self._open.values())
        order = {"handshake": 0, "idle": 1, "header": 2, "body": 3, "answer": 4}
        victim = min(waiting, key=lambda one: (-of_host[one.address[0]], order[one.state], one.since))
        self._abort(victim)
        return True

    def _abort(self, connection: Connection) -> None:
        del self._open[connection.address]
        connection.transport.abort()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        for connection in list(self._open.values()):
            connection.look()
            slow = connection.state in ("handshake", "header") and now - connection.since > HEADER_S
            if slow or now - connection.read_since > UNREAD_S:
                self._abort(connection)
        self._watching = False
        if self._open:
            self._watch()


def protocol_for(connections: Connections, tls: ssl.SSLContext | None = None) -> type[asyncio.Protocol]:
    """uvicorn's protocol, whose connections are counted from the moment they are accepted.

    Args:
        tls: what HTTPS is served with; None serves HTTP.
    """

    class CountedProtocol(H11Protocol):
        connection: Connection | None = None
        made = False
        early = b""
        """What came before `connection_made`: the event loop may hand it over first after a handshake."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.made = True
            if self.connection is None:
                self.connection = connections.opened(transport)
            if self.early:
                self.data_received(self.early)

        def data_received(self, data: bytes) -> None:
            if not self.made:
                self.early += data
                return
            if self.connection is None:
                return  # it is refused, and being closed
            if self.connection.state == "idle":
                self.connection.turn("header")
            super().data_received(data)

        def pause_writing(self) -> None:
            if self.connection is not None:
                self.connection.writable.clear()
            super().pause_writing()

        def resume_writing(self) -> None:
            if self.connection is not None:
                self.connection.reads()
                self.connection.writable.set()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            if self.connection is not None:
                connections.closed(self.connection)
                self.connection.writable.set()
            if self.made:
                super().connection_lost(exc)

    class TlsFirst(asyncio.Protocol):
        """Counts a connection, then agrees upon TLS, then hands it over to a `CountedProtocol`."""

        def __init__(self, **given: Any) -> None:
            self._given = given
            self._connection: Connection | None = None
            self._handshake: asyncio.Task[None] | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._connection = connections.opened(transport, "handshake")
            if self._connection is not None:
                self._handshake = asyncio.get_running_loop().create_task(self._agree(self._connection))

        def connection_lost(self, exc: Exception | None) -> None:
            if self._connection is not None:
                connections.closed(self._connection)

        async def _agree(self, connection: Connection) -> None:
            assert tls is not None
            protocol = CountedProtocol(**self._given)
            protocol.connection = connection
            raw = connection.transport
            try:
                agreed = await asyncio.get_running_loop().start_tls(raw, protocol, tls, server_side=True)
            except OSError:  # also what TLS raises
                agreed = None
            if agreed is None or agreed.is_closing():
                raw.abort()
                connections.closed(connection)
                return
            connection.transport = agreed
            connection.turn("header")
            protocol.connection_made(agreed)

    return CountedProtocol if tls is None else TlsFirst


class Followed:
    """An ASGI application whose requests are followed: each tells its connection how far it is.

    Requests can be ended all at once, each with an answer.
    """

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections
        self._under_way: set[CancelScope] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False

    def end(self, within_s: float) -> None:
        """Refuse new requests, and end those that are still under way after so many seconds; from another thread."""
        self._ending = True
        until = time.monotonic() + within_s
        while self._under_way and time.monotonic() < until:
            time.sleep(POLL_S)
        if self._loop is not None and self._under_way:
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for request in list(self._under_way):
            request.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._loop = asyncio.get_running_loop()
        if self._ending:
            await _say_that_it_ends(send)
            return
        connection = self._connections.of(scope)
        if connection is not None:
            await connection.writable.wait()  # the answer before this one may be unread
            if connection.transport.is_closing():
                return
            connection.turn("body" if _has_body(scope) else "answer")
        begun = False

        async def receive_and_note() -> Message:
            message = await receive()
            if connection is not None and not message.get("more_body", False):
                connection.turn("answer")
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        with CancelScope() as under_way:
            self._under_way.add(under_way)
            try:
                await self._app(scope, receive_and_note, send_and_note)
            finally:
                self._under_way.discard(under_way)
        if under_way.cancelled_caught and not begun:
            await _say_that_it_ends(send)
        if connection is not None:
            connection.turn("idle")


def _has_body(scope: Scope) -> bool:
    names = {name.lower() for name, _ in scope["headers"]}
    return not names.isdisjoint((b"content-length", b"transfer-encoding"))


_ENDING = b'{"error":{"code":"unavailable","message":"the gateway is ending: ask again when it has started again"}}'


async def _say_that_it_ends(send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_ENDING)).encode()),
        (b"retry-after", b"5"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _ENDING})
