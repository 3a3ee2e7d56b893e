"""The gateway with its HTTP API, started and ended together."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from edvit.bundle import Bundle
from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.gateway.lease import Lease
from edvit.runtime.http.server import HttpServer, HttpsFiles, bind, missing_serve_extra
from edvit.runtime.keys.tokens import RATE, TokenList
from edvit.runtime.rejection import NEVER, Rejection
from edvit.runtime.watching.watching import NO_METRICS, MetricsAt, Watching
from edvit.runtime.wire.image_encoding import ImageEncoding
from edvit.runtime.wire.mutual_tls import MutualTls
from edvit.runtime.wire.zenoh_transport import ZenohTransport

METRICS_CONNECTIONS = 16
"""Connections that the port of metrics takes at a time: the API's are not to lack handles for them."""


@dataclass(frozen=True)
class Service:
    """A running gateway.

    Attributes:
        url: where it answers over HTTP.
        switch: what it serves.
        metrics_url: the port that has metrics alone; None where there is none.
    """

    url: str
    switch: Switch
    metrics_url: str | None

    @property
    def gateway(self) -> Gateway:
        """The gateway of the bundle that is served now, for questions within this process."""
        return self.switch.current.gateway


if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from edvit.runtime.deploy.switch import Switch


@dataclass(frozen=True)
class Protection:
    """What keeps strangers out of a service.

    Attributes:
        https: the certificate of the HTTP API.
        tokens: who may do what over HTTP.
        wire: certificates and rules of the devices' network; None where no device is reached over one.
        rate: requests that each token may make, e.g. `100/second`.
    """

    https: HttpsFiles
    tokens: TokenList
    wire: MutualTls | None
    rate: str = RATE


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
    replicas: int = 1,
    rejection: Rejection = NEVER,
    scouting: bool = True,
    protection: Protection | None = None,
    metrics: MetricsAt = NO_METRICS,
) -> Iterator[Service]:
    """Serve a bundle until the block ends; devices may come and go, and find it by multicast or by `listen`.

    Args:
        bundle: a verified bundle.
        host, port: the HTTP address; port 0 takes a free one.
        listen: the Zenoh endpoint that devices connect to, e.g. `tcp/0.0.0.0:7447`.
        deadline_s, image_encoding, strict, replicas: as for `Gateway`.
        rejection: which images are taken for none of the classes.
        scouting: whether devices may find the gateway by multicast.
        protection: what keeps strangers out; with None everybody who reaches an address may use it.
        metrics: where metrics are shown.

    Raises:
        PortInUseError: an HTTP address or the Zenoh endpoint is taken.
        ConfigError: one of them is no address of this machine, Pillow cannot write that encoding, or a file of
            `protection` cannot be used.
        MissingExtraError: FastAPI or uvicorn is not installed.
    """
    with (
        bind(host, port) as bound,
        serve_on(
            bound,
            bundle,
            listen=listen,
            deadline_s=deadline_s,
            image_encoding=image_encoding,
            strict=strict,
            replicas=replicas,
            rejection=rejection,
            scouting=scouting,
            protection=protection,
            metrics=metrics,
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
    replicas: int = 1,
    rejection: Rejection = NEVER,
    scouting: bool = True,
    protection: Protection | None = None,
    metrics: MetricsAt = NO_METRICS,
) -> Iterator[Service]:
    """Serve as `serve` does, on a socket that is bound."""
    try:
        from edvit.runtime.deploy.deploys import Deploys
        from edvit.runtime.http.request_log import RequestLog
    except ImportError:
        raise missing_serve_extra() from None
    wire, https = (protection.wire, protection.https) if protection else (None, None)
    guarded = _guard(protection)

    def make_gateway(bundle: Bundle, beside: tuple[str, ...], away: Collection[str]) -> Gateway:
        return Gateway(
            bundle,
            transport,
            deadline_s=deadline_s,
            image_encoding=image_encoding,
            strict=strict,
            replicas=replicas,
            lease=lease,
            beside=beside,
            away=away,
            unknown_below=rejection.probability(bundle.manifest),
            observers=watching.observers,
        )

    with (
        contextlib.closing(Watching(metrics)) as watching,
        contextlib.closing(ZenohTransport(listen=[listen], scouting=scouting, tls=wire)) as transport,
        contextlib.closing(Lease(bundle.manifest.plan.fleet.name, bundle.digest, transport)) as lease,
        contextlib.closing(Deploys(bundle, lease, make_gateway)) as deploys,
        _metrics_server(metrics, watching, guarded, https) as metrics_server,
        HttpServer(RequestLog(watching.around(guarded(watching.with_page(deploys.switch)))), bound, https) as server,
    ):
        watching.follow(lambda: deploys.switch.current.gateway)
        yield Service(server.url, deploys.switch, None if metrics_server is None else metrics_server.url)


def _metrics_server(
    at: MetricsAt, watching: Watching, guarded: Callable[[ASGIApp], ASGIApp], https: HttpsFiles | None
) -> contextlib.AbstractContextManager[HttpServer | None]:
    """What shows metrics on a port of their own. Raises as `bind` and `HttpServer` do."""
    if at.port is None or watching.metrics is None:
        return contextlib.nullcontext()
    from edvit.runtime.http.request_log import RequestLog
    from edvit.runtime.watching.page import MetricsPage

    page = MetricsPage(watching.metrics.registry)
    bound = bind(at.host, at.port, options="--metrics-host and --metrics-port")
    return HttpServer(RequestLog(guarded(page)), bound, https, connections=METRICS_CONNECTIONS)


def _guard(protection: Protection | None) -> Callable[[ASGIApp], ASGIApp]:
    """What is put before the API. Raises ConfigError for a rate that is none."""
    if protection is None:
        return lambda app: app
    from edvit.runtime.http.guard import Guard, parse_rate

    rate = parse_rate(protection.rate)
    return lambda app: Guard(app, protection.tokens, rate)


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
