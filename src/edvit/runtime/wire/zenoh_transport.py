"""The transport over Eclipse Zenoh: peers that find each other by multicast, or by explicit endpoints."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import zenoh

from edvit.errors import ConfigError, PortInUseError, ServiceError, printable
from edvit.runtime.wire.failure import decode_error, encode_error
from edvit.runtime.wire.mutual_tls import PROTOCOL, MutualTls, settings
from edvit.runtime.wire.packet import MAX_PAYLOAD_BYTES, Packet
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

log = logging.getLogger(__name__)

PROTOCOLS = ("tcp", "tls", "quic", "ws")

MAX_UNSENT = 16
"""Requests that wait to be sent to one key. A further one is not sent, as those before it will hardly be in time."""

ROOM_BYTES = 2 * 65_535
"""Bytes that the queue of an idle peer takes at once: two of Zenoh's messages."""

REFUSALS = "off,zenoh_link_tls=warn,zenoh::net::routing::interceptor::access_control=info"
"""What of Zenoh's own log goes to standard output: connections that are refused, and links of who is no member."""

_RETRY = {"period_init_ms": 100, "period_max_ms": 1000, "period_increase_factor": 2}


class ZenohTransport:
    """One Zenoh session. See `Transport`. Close it: an open session keeps the interpreter from ending.

    Args:
        connect: endpoints to reach and, when lost, to reach again: `tcp/HOST:PORT`. They need not be up yet.
        listen: endpoints to be reached at; empty for none.
        scouting: find peers on the local network by multicast.
        tls: certificates on both sides, and on the gateway rules for who may do what; None for none, in the clear.

    Raises:
        ConfigError: an endpoint is not of the form `tcp/HOST:PORT`, or with `tls` not `tls/HOST:PORT`.
        PortInUseError: an endpoint to listen on is taken.
        ServiceError: Zenoh cannot start.
    """

    def __init__(
        self,
        *,
        connect: Sequence[str] = (),
        listen: Sequence[str] = (),
        scouting: bool = True,
        tls: MutualTls | None = None,
    ) -> None:
        for endpoint in (*connect, *listen):
            check_endpoint(endpoint)
            if tls is not None and not endpoint.startswith(f"{PROTOCOL}/"):
                raise ConfigError(f"{endpoint}: with keys, an endpoint is of the form {PROTOCOL}/HOST:PORT")
        if tls is not None and tls.access is not None:
            zenoh.init_log_from_env_or(REFUSALS)
        try:
            self._session = zenoh.open(_config(connect, listen, scouting, tls))
        except zenoh.ZError as error:
            where = ", ".join(listen)
            if "in use" in str(error):
                raise PortInUseError(
                    f"{where} is in use: choose another port, or stop the program that listens there"
                ) from None
            if listen:
                raise ConfigError(f"cannot listen on {where}: use an address of this machine") from None
            raise ServiceError("cannot start the network session") from None
        self._registrations = Registrations()
        self._waits = Waits()
        self._outboxes: dict[str, _Outbox] = {}
        self._lock = threading.Lock()

    def serve(self, key: str, handler: Handler) -> Registration:
        lane = Lane(key, handler)

        def receive(query: zenoh.Query) -> None:
            lane.put(_reception(query))

        with _while_open():
            queryable = self._session.declare_queryable(key, zenoh.handlers.Callback(receive, indirect=False))
        return self._registrations.add(queryable.undeclare, lane.close)

    def ask(self, key: str, packet: Packet, *, deadline_s: float, urgent: bool = True) -> Replies:
        query = _Query(key, packet, self._waits.add(Replies(1, time.monotonic() + deadline_s)))
        self._get(key, query, urgent=urgent)
        return query.replies

    def ask_each(
        self, keys: Sequence[str], packet: Packet, *, deadline_s: float, into: Replies | None = None
    ) -> Replies:
        replies = into or self._waits.add(Replies(0, time.monotonic() + deadline_s))
        replies.expect(len(keys))
        for key in keys if not self._waits.closed else ():
            self._outbox(key).send(packet, replies)
        return replies

    def _get(self, key: str, query: _Query, *, urgent: bool) -> None:
        """Waits while a peer that serves `key` takes no more."""
        try:
            self._session.get(
                key,
                zenoh.handlers.Callback(query.put, query.end, indirect=False),
                payload=query.packet.payload,
                attachment=query.packet.header,
                target=zenoh.QueryTarget.ALL,
                consolidation=zenoh.ConsolidationMode.NONE,
                timeout=max(0.0, query.replies.until - time.monotonic()),
                congestion_control=zenoh.CongestionControl.BLOCK,
                priority=zenoh.Priority.INTERACTIVE_HIGH if urgent else zenoh.Priority.DATA_LOW,
                express=urgent,
            )
        except zenoh.ZError as error:
            log.info("a request could not be sent: %s", printable(str(error)))
            query.end()

    def announce(self, key: str) -> Registration:
        with _while_open():
            token = self._session.liveliness().declare_token(key)
        return self._registrations.add(token.undeclare)

    def watch(self, key: str, on_change: Callable[[str, bool], None]) -> Registration:
        def changed(sample: zenoh.Sample) -> None:
            on_change(str(sample.key_expr), sample.kind == zenoh.SampleKind.PUT)

        with _while_open():
            subscriber = self._session.liveliness().declare_subscriber(key, changed, history=True)
        return self._registrations.add(subscriber.undeclare)

    def close(self) -> None:
        self._waits.close()
        self._registrations.close()
        if not self._session.is_closed():
            self._session.close()  # type: ignore[no-untyped-call]
        for outbox in self._outboxes.values():
            outbox.close()

    def _outbox(self, key: str) -> _Outbox:
        with self._lock:
            if key not in self._outboxes:
                self._outboxes[key] = _Outbox(key, partial(self._get, key, urgent=True))
            return self._outboxes[key]


@contextmanager
def _while_open() -> Iterator[None]:
    try:
        yield
    except zenoh.ZError:
        raise ServiceError("the network session is closed") from None


class _Query:
    """One question at one key, and where its replies go.

    Args:
        key: as it is asked.
        on_end: called once, when no further reply can come. Zenoh ends a query that it then refuses with an error, too.
    """

    def __init__(self, key: str, packet: Packet, replies: Replies, on_end: Callable[[], None] = lambda: None) -> None:
        self._key = key
        self.packet = packet
        self.replies = replies
        self._on_end = [on_end]

    def put(self, reply: zenoh.Reply) -> None:
        if reply.ok is not None:
            sample = reply.ok
            self.replies.put(Reply(str(sample.key_expr), Packet(_bytes(sample.attachment), _bytes(sample.payload))))
        elif reply.err is not None and reply.err.encoding == zenoh.Encoding.APPLICATION_JSON:
            # Errors of another encoding are Zenoh's own: the query timed out, and the replies end anyway.
            self.replies.put(Failure(decode_error(reply.err.payload.to_bytes())))

    def end(self) -> None:
        with suppress(IndexError):
            self._on_end.pop()()
            self.replies.end(self._key)


class _Outbox:
    """Sends the requests to one key, in a thread of its own where sending may have to wait.

    Args:
        get: sends a query, or waits; ends the query if it cannot be sent.
    """

    def __init__(self, key: str, get: Callable[[_Query], None]) -> None:
        self._key = key
        self._get = get
        self._open = 0
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Query | None] = queue.Queue(MAX_UNSENT)
        threading.Thread(target=self._run, name=f"ask {key}", daemon=True).start()

    def send(self, packet: Packet, replies: Replies) -> None:
        """Never waits."""
        query = _Query(self._key, packet, replies, self._ended)
        with self._lock:
            self._open += 1
            idle = self._open == 1
        if idle and len(packet.payload) <= ROOM_BYTES:
            self._get(query)
            return
        try:
            self._waiting.put_nowait(query)
        except queue.Full:
            query.end()

    def close(self) -> None:
        """Call it when the session is closed: what waits to leave is then given up at once."""
        self._waiting.put(None)

    def _run(self) -> None:
        while (query := self._waiting.get()) is not None:
            if time.monotonic() < query.replies.until:
                self._get(query)
            else:
                query.end()

    def _ended(self) -> None:
        with self._lock:
            self._open -= 1


def check_endpoint(endpoint: str) -> None:
    """Raises ConfigError unless `endpoint` is `PROTOCOL/HOST:PORT`."""
    protocol, slash, address = endpoint.partition("/")
    host, colon, port = address.rpartition(":")
    if protocol not in PROTOCOLS or not slash or not colon or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{endpoint!r} is not an endpoint: write tcp/HOST:PORT, for example tcp/192.168.1.10:7447")
    if int(port) > 65535:
        raise ConfigError(f"{endpoint!r} is not an endpoint: the port must be at most 65535")


def _config(connect: Sequence[str], listen: Sequence[str], scouting: bool, tls: MutualTls | None) -> zenoh.Config:
    config: zenoh.Config = zenoh.Config()
    # Peers that scout must be reachable for each other; a device with an explicit gateway needs no open port.
    listening = list(listen) or (["tcp/[::]:0"] if scouting and tls is None else [])
    values: dict[str, Any] = {
        "mode": "peer",
        "connect/endpoints": list(connect),
        "connect/retry": _RETRY,
        "listen/endpoints": listening,
        "scouting/multicast/enabled": scouting,
        "scouting/gossip/enabled": scouting,
        "transport/shared_memory/enabled": False,
        "transport/link/rx/max_message_size": MAX_PAYLOAD_BYTES + 1024 * 1024,
    }
    for name, value in (values | (settings(tls) if tls is not None else {})).items():
        config.insert_json5(name, json.dumps(value))
    return config


def _bytes(data: zenoh.ZBytes | None) -> bytes:
    return b"" if data is None else data.to_bytes()


def _reception(query: zenoh.Query) -> Reception:
    packet = Packet(header=_bytes(query.attachment), payload=_bytes(query.payload))

    def send(answer: Reply | Exception) -> None:
        try:
            if isinstance(answer, Exception):
                query.reply_err(encode_error(answer), encoding=zenoh.Encoding.APPLICATION_JSON)
            else:
                query.reply(answer.key, answer.packet.payload, attachment=answer.packet.header, express=True)
        except zenoh.ZError as error:
            log.warning("an answer could not be sent: %s", printable(str(error)))

    return Reception(Request(str(query.key_expr), packet, time.monotonic()), send, query.drop)
