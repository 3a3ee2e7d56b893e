"""Which gateway is in charge of a fleet: the oldest. Another one with the same bundle stands by and answers as well."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from edvit.errors import FleetTakenError, ServiceError, WireError
from edvit.runtime.wire.header import decode, encode
from edvit.runtime.wire.messages import GatewayInfo, GatewayRequest
from edvit.runtime.wire.topics import ANY, GATEWAY, GATEWAY_ALIVE
from edvit.runtime.wire.transport import Registration, Reply, Request, Transport, Waits

log = logging.getLogger(__name__)

ASK_S = 1.0
ASK_PAUSES_S = (0.0, 0.2, 1.0)
"""Before each try to ask another gateway: the network may take a moment to tell of a key that is newly served."""
MAX_GATEWAYS = 16
"""Other gateways that are looked at; more are ignored."""
ASK_AGAIN_S = 5.0
"""Another gateway is asked again after so long: it may have taken over a new bundle."""
SAME_AGE_S = 0.05
"""Gateways whose ages differ by less are ordered by their random instance: the network delays what tells of an age."""


@dataclass(frozen=True)
class Contender:
    """A gateway of the fleet."""

    instance: str
    host: str
    pid: int
    bundle: str
    """The digest of its bundle."""
    born: float
    """When it started, by the clock of whoever compares, seconds."""


def senior(me: Contender, others: Iterable[Contender]) -> Contender | None:
    """The gateway that is in charge in place of `me`; None where `me` is."""

    def before(one: Contender, two: Contender) -> bool:
        if abs(one.born - two.born) < SAME_AGE_S:
            return one.instance < two.instance
        return one.born < two.born

    older = [other for other in others if before(other, me)]
    return min(older, key=lambda other: (other.born, other.instance), default=None)


class Lease:
    """Announces one gateway to the fleet and watches for others. Thread-safe.

    Args:
        fleet: the fleet's name.
        bundle: digest of the bundle that this gateway serves.
    """

    def __init__(self, fleet: str, bundle: str, transport: Transport) -> None:
        self._fleet = fleet
        self._transport = transport
        self._listeners: list[Callable[[], None]] = []
        self._me = Contender(secrets.token_hex(8), socket.gethostname(), os.getpid(), bundle, time.monotonic())
        self._present: set[str] = set()
        self._others: dict[str, Contender] = {}
        self._lock = threading.Lock()
        self._waits = Waits()
        self._changes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        here = {"fleet": fleet, "instance": self._me.instance}
        self._registrations = [
            transport.serve(GATEWAY.key(**here), self._on_request),
            transport.announce(GATEWAY_ALIVE.key(**here)),
            transport.watch(GATEWAY_ALIVE.key(fleet=fleet, instance=ANY), self._on_token),
        ]
        self._thread.start()

    @property
    def instance(self) -> str:
        """This gateway's own."""
        return self._me.instance

    @property
    def host(self) -> str:
        return self._me.host

    def serve(self, bundle: str) -> None:
        """This gateway serves another bundle from now on."""
        with self._lock:
            self._me = replace(self._me, bundle=bundle)

    def tell(self, on_change: Callable[[], None]) -> Registration:
        """Call `on_change`, which must not wait, when another gateway may be in charge, until the result is closed."""

        def no_more() -> None:
            with self._lock:
                self._listeners.remove(on_change)

        with self._lock:
            self._listeners.append(on_change)
        return Registration(no_more)

    def in_charge(self) -> Contender | None:
        """The other gateway that is in charge; None where this one is."""
        with self._lock:
            return senior(self._me, self._others.values())

    def check(self) -> None:
        """Raises FleetTakenError where another gateway is in charge, with another bundle."""
        other = self.in_charge()
        if other is not None and other.bundle != self._me.bundle:
            raise FleetTakenError(
                f"fleet {self._fleet} is served by the gateway on {other.host} (process {other.pid}) with another "
                f"bundle, {other.bundle[:12]}: serve that bundle here too, stop that gateway, or build this bundle "
                "for a fleet of another name"
            )

    def close(self) -> None:
        self._waits.close()
        self._changes.put(None)
        for registration in reversed(self._registrations):
            registration.close()
        self._thread.join()

    def _on_request(self, request: Request) -> Iterator[Reply]:
        decode(GatewayRequest, request.packet)
        me = self._me
        info = GatewayInfo(
            instance=me.instance, host=me.host, pid=me.pid, bundle=me.bundle, age_s=time.monotonic() - me.born
        )
        yield Reply(GATEWAY.key(fleet=self._fleet, instance=me.instance), encode(info))

    def _on_token(self, key: str, alive: bool) -> None:
        try:
            instance = GATEWAY_ALIVE.parts(key)["instance"]
        except WireError:
            return
        if instance == self._me.instance:
            return
        with self._lock:
            if not alive:
                self._present.discard(instance)
                gone = self._others.pop(instance, None) is not None
            elif len(self._present) < MAX_GATEWAYS:
                self._present.add(instance)
                self._changes.put(instance)
                return
            else:
                return
        if gone:
            self._changed()

    def _changed(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for on_change in listeners:
            on_change()

    def _run(self) -> None:
        while True:
            try:
                instance = self._changes.get(timeout=ASK_AGAIN_S)
            except queue.Empty:
                self._ask_again()
                continue
            if instance is None:
                return
            for pause in ASK_PAUSES_S:
                time.sleep(pause)
                if self._waits.closed or self._asked(instance):
                    break

    def _ask_again(self) -> None:
        with self._lock:
            present = sorted(self._present)
        for instance in present:
            if not self._waits.closed:
                self._asked(instance)

    def _asked(self, instance: str) -> bool:
        """Whether that gateway has said what it is, or is gone."""
        key = GATEWAY.key(fleet=self._fleet, instance=instance)
        with contextlib.suppress(ServiceError):
            for reply in self._waits.add(self._transport.ask(key, encode(GatewayRequest()), deadline_s=ASK_S)):
                if isinstance(reply, Reply):
                    info = decode(GatewayInfo, reply.packet)
                    if info.instance == instance:
                        self._found(info)
                        return True
        with self._lock:
            return instance not in self._present

    def _found(self, info: GatewayInfo) -> None:
        born = time.monotonic() - info.age_s
        with self._lock:
            if info.instance not in self._present:
                return
            known = self._others.get(info.instance)
            if known is not None and known.bundle == info.bundle:
                return
            # Its age is taken from its first answer: the network delays each one by another time.
            born = born if known is None else known.born
            self._others[info.instance] = Contender(info.instance, info.host, info.pid, info.bundle, born)
        log.info("another gateway of this fleet runs on %s, with bundle %s", info.host, info.bundle[:12])
        self._changed()
