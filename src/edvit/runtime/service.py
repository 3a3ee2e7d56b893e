"""The gateway with its HTTP API, started and ended together."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from edvit.bundle import Bundle
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.http.server import HttpServer, bind, missing_serve_extra
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.runtime.wire.zenoh_transport import ZenohTransport


@dataclass(frozen=True)
class Service:
    """A running gateway.

    Attributes:
        url: where it answers over HTTP.
        gateway: for questions within this process.
    """

    url: str
    gateway: Gateway


@contextlib.contextmanager
def serve(
    bundle: Bundle,
    *,
    host: str,
    port: int,
    listen: str,
    deadline_s: float | None = None,
    image_encoding: ImageEncoding = "raw",
    strict: bool = False,
) -> Iterator[Service]:
    """Serve a bundle until the block ends; devices may come and go, and find it by multicast or by `listen`.

    Args:
        bundle: a verified bundle.
        host, port: the HTTP address; port 0 takes a free one.
        listen: the Zenoh endpoint that devices connect to, e.g. `tcp/0.0.0.0:7447`.
        deadline_s, image_encoding, strict: as for `Gateway`.

    Raises:
        PortInUseError: the HTTP address or the Zenoh endpoint is taken.
        ConfigError: one of them is no address of this machine, or Pillow cannot write that encoding.
        MissingExtraError: FastAPI or uvicorn is not installed.
    """
    with (
        bind(host, port) as bound,
        serve_on(
            bound, bundle, listen=listen, deadline_s=deadline_s, image_encoding=image_encoding, strict=strict
        ) as service,
    ):
        yield service


@contextlib.contextmanager
def serve_on(
    bound: socket.socket,
    bundle: Bundle,
    *,
    listen: str,
    deadline_s: float | None,
    image_encoding: ImageEncoding,
    strict: bool = False,
    scouting: bool = True,
) -> Iterator[Service]:
    """Serve as `serve` does, on a socket that is bound; `scouting` lets devices find the gateway by multicast."""
    try:
        from edvit.runtime.http.app import create_app
    except ImportError:
        raise missing_serve_extra() from None
    with (
        contextlib.closing(ZenohTransport(listen=[listen], scouting=scouting)) as transport,
        contextlib.closing(
            Gateway(bundle, transport, deadline_s=deadline_s, image_encoding=image_encoding, strict=strict)
        ) as gateway,
        HttpServer(create_app(gateway, bundle.manifest), bound) as server,
    ):
        yield Service(server.url, gateway)


@contextlib.contextmanager
def until_signalled() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block quietly, from wherever it is; only in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        for name in signals:
            signal.signal(name, signal.SIG_IGN)  # a second one must not break the clean-up off
        raise KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {name: signal.signal(name, stop) for name in signals}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
