"""The transport over Eclipse Zenoh: peers that find each other by multicast, or by explicit endpoints."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import zenoh

from edvit.errors import ConfigError, PortInUseError, ServiceError
from edvit.runtime.wire.messages import MAX_PAYLOAD_BYTES, decode_error, encode_error
from edvit.runtime.wire.transport import Answer, Failure, Handler, Lane, Packet, Reception, Registration, Request

log = logging.getLogger(__name__)

PROTOCOLS = ("tcp", "tls", "quic", "ws")

MAX_UNSENT = 16
"""Requests that wait to leave for one key. A further one is not sent: those before it will hardly be in time."""

ROOM_BYTES = 2 * 65_535
"""What an idle peer's queue takes at once: two of Zenoh's messages."""

_Replies = queue.SimpleQueue[zenoh.Reply | None]
"""None once for every query: nothing more comes for it."""

_RETRY = {"period_init_ms": 100, "period_max_ms": 1000, "period_increase_factor": 2}


@dataclass(frozen=True, slots=True)
class _Query:
    packet: Packet
    replies: _Replies
    until: float
    """`time.monotonic()` after which nobody waits for it any more."""

    def end(self) -> None:
        self.replies.put(None)


class ZenohTransport:
    """One Zenoh session. See `Transport`. Close it: an open session keeps the interpreter from ending.

    Args:
        connect: endpoints to reach and, when lost, to reach again: `tcp/HOST:PORT`. They need not be up yet.
        listen: endpoints to be reached at; empty for none.
        scouting: find peers on the local network by multicast.

    Raises:
        ConfigError: an endpoint is not of the form `tcp/HOST:PORT`.
        PortInUseError: an endpoint to listen on is taken.
        ServiceError: Zenoh cannot start.
    """

    def __init__(self, *, connect: Sequence[str] = (), listen: Sequence[str] = (), scouting: bool = True) -> None:
        for endpoint in (*connect, *listen):
            check_endpoint(endpoint)
        try:
            self._session = zenoh.open(_config(connect, listen, scouting))
        except zenoh.ZError as error:
            where = ", ".join(listen)
            if "in use" in str(error):
                raise PortInUseError(f"{where} is in use: stop what listens there, or choose another port") from None
            if listen:
                raise ConfigError(f"cannot listen on {where}: use an address of this machine") from None
            raise ServiceError("cannot start the network session") from None
        self._registrations: list[Registration] = []
        self._outboxes: dict[str, _Outbox] = {}
        self._lock = threading.Lock()

    def serve(self, key: str, handler: Handler) -> Registration:
        lane = Lane(key, handler)

        def receive(query: zenoh.Query) -> None:
            lane.put(_reception(query))

        queryable = self._session.declare_queryable(key, zenoh.handlers.Callback(receive, indirect=False))
        return self._keep(queryable.undeclare, lane.close)

    def ask(self, key: str, packet: Packet, *, deadline_s: float, urgent: bool = True) -> Iterator[Answer | Failure]:
        query = _Query(packet, queue.SimpleQueue(), time.monotonic() + deadline_s)
        self._get(key, query, query.end, urgent=urgent)
        return _gather(query, 1)

    def ask_each(self, keys: Sequence[str], packet: Packet, *, deadline_s: float) -> Iterator[Answer | Failure]:
        query = _Query(packet, queue.SimpleQueue(), time.monotonic() + deadline_s)
        for key in keys:
            self._outbox(key).send(query)
        return _gather(query, len(keys))

    def _get(self, key: str, query: _Query, end: Callable[[], None], *, urgent: bool) -> None:
        """Waits while a peer that serves `key` takes no more. `end` is called once, when no further reply can come."""
        self._session.get(
            key,
            zenoh.handlers.Callback(query.replies.put, end, indirect=False),
            payload=query.packet.payload,
            attachment=query.packet.header,
            target=zenoh.QueryTarget.ALL,
            consolidation=zenoh.ConsolidationMode.NONE,
            timeout=max(0.0, query.until - time.monotonic()),
            congestion_control=zenoh.CongestionControl.BLOCK,
            priority=zenoh.Priority.INTERACTIVE_HIGH if urgent else zenoh.Priority.DATA_LOW,
            express=urgent,
        )

    def announce(self, key: str) -> Registration:
        token = self._session.liveliness().declare_token(key)
        return self._keep(token.undeclare)

    def watch(self, key: str, on_change: Callable[[str, bool], None]) -> Registration:
        def changed(sample: zenoh.Sample) -> None:
            on_change(str(sample.key_expr), sample.kind == zenoh.SampleKind.PUT)

        subscriber = self._session.liveliness().declare_subscriber(key, changed, history=True)
        return self._keep(subscriber.undeclare)

    def close(self) -> None:
        for registration in self._registrations:
            registration.close()
        if not self._session.is_closed():
            self._session.close()  # type: ignore[no-untyped-call]
        for outbox in self._outboxes.values():
            outbox.close()

    def _outbox(self, key: str) -> _Outbox:
        with self._lock:
            if key not in self._outboxes:
                self._outboxes[key] = _Outbox(key, partial(self._get, key, urgent=True))
            return self._outboxes[key]

    def _keep(self, *undo: Callable[[], None]) -> Registration:
        registration = _Undo(*undo)
        self._registrations.append(registration)
        return registration


class _Outbox:
    """Where requests to one key leave: from a thread of its own as soon as sending them may have to wait.

    Args:
        get: sends a query, and calls back when no further reply can come.
    """

    def __init__(self, key: str, get: Callable[[_Query, Callable[[], None]], None]) -> None:
        self._get = get
        self._open = 0
        self._lock = threading.Lock()
        self._waiting: queue.Queue[_Query | None] = queue.Queue(MAX_UNSENT)
        threading.Thread(target=self._run, name=f"ask {key}", daemon=True).start()

    def send(self, query: _Query) -> None:
        """Never waits."""
        with self._lock:
            self._open += 1
            idle = self._open == 1
        if idle and len(query.packet.payload) <= ROOM_BYTES:
            self._ask(query)
            return
        try:
            self._waiting.put_nowait(query)
        except queue.Full:
            self._end(query)

    def close(self) -> None:
        with suppress(queue.Full):
            self._waiting.put_nowait(None)

    def _run(self) -> None:
        while (query := self._waiting.get()) is not None:
            if time.monotonic() < query.until:
                self._ask(query)
            else:
                self._end(query)

    def _ask(self, query: _Query) -> None:
        try:
            self._get(query, partial(self._end, query))
        except zenoh.ZError as error:
            log.warning("a request could not be sent: %s", error)
            self._end(query)

    def _end(self, query: _Query) -> None:
        with self._lock:
            self._open -= 1
        query.end()


class _Undo:
    def __init__(self, *undo: Callable[[], None]) -> None:
        self._undo: tuple[Callable[[], None], ...] = undo

    def close(self) -> None:
        undo, self._undo = self._undo, ()
        for step in undo:
            step()


def check_endpoint(endpoint: str) -> None:
    """Raises ConfigError unless `endpoint` is `PROTOCOL/HOST:PORT`."""
    protocol, slash, address = endpoint.partition("/")
    host, colon, port = address.rpartition(":")
    if protocol not in PROTOCOLS or not slash or not colon or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{endpoint!r} is no endpoint: write tcp/HOST:PORT, for example tcp/192.168.1.10:7447")
    if int(port) > 65535:
        raise ConfigError(f"{endpoint!r}: a port is at most 65535")


def _config(connect: Sequence[str], listen: Sequence[str], scouting: bool) -> zenoh.Config:
    config: zenoh.Config = zenoh.Config()
    # Peers that scout must be reachable for each other; a device with an explicit gateway needs no open port.
    listening = list(listen) or (["tcp/[::]:0"] if scouting else [])
    settings: dict[str, Any] = {
        "mode": "peer",
        "connect/endpoints": list(connect),
        "connect/retry": _RETRY,
        "listen/endpoints": listening,
        "scouting/multicast/enabled": scouting,
        "scouting/gossip/enabled": scouting,
        "transport/shared_memory/enabled": False,
        "transport/link/rx/max_message_size": MAX_PAYLOAD_BYTES + 1024 * 1024,
    }
    for name, value in settings.items():
        config.insert_json5(name, json.dumps(value))
    return config


def _bytes(data: zenoh.ZBytes | None) -> bytes:
    return b"" if data is None else data.to_bytes()


def _reception(query: zenoh.Query) -> Reception:
    packet = Packet(header=_bytes(query.attachment), payload=_bytes(query.payload))

    def send(answer: Answer | Exception) -> None:
        try:
            if isinstance(answer, Exception):
                query.reply_err(encode_error(answer), encoding=zenoh.Encoding.APPLICATION_JSON)
            else:
                query.reply(answer.key, answer.packet.payload, attachment=answer.packet.header, express=True)
        except zenoh.ZError as error:
            log.warning("an answer could not be sent: %s", error)

    return Reception(Request(str(query.key_expr), packet, time.monotonic()), send, query.drop)


def _gather(query: _Query, asked: int) -> Iterator[Answer | Failure]:
    while asked > 0:
        try:
            reply = query.replies.get(timeout=max(0.0, query.until - time.monotonic()))
        except queue.Empty:
            return
        if reply is None:
            asked -= 1
        elif reply.ok is not None:
            sample = reply.ok
            yield Answer(str(sample.key_expr), Packet(_bytes(sample.attachment), _bytes(sample.payload)))
        elif reply.err is not None and reply.err.encoding == zenoh.Encoding.APPLICATION_JSON:
            # Errors of another encoding are Zenoh's own: the query timed out, and the iterator ends anyway.
            yield Failure(decode_error(reply.err.payload.to_bytes()))
