"""Who watches a gateway: metrics where they are asked for, traces where the environment names a collector."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edvit.errors import MissingExtraError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from edvit.runtime.gateway.gateway import Gateway
    from edvit.runtime.gateway.observer import Observer
    from edvit.runtime.watching.metrics import Metrics
    from edvit.runtime.watching.traces import Traces

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class MetricsAt:
    """Where metrics are shown.

    Attributes:
        route: as `/metrics` of the HTTP API.
        port: on a port of their own; 0 takes a free one, None for no such port.
        host: the address of that port.
    """

    route: bool = False
    port: int | None = None
    host: str = LOOPBACK

    @property
    def shown(self) -> bool:
        """Whether they are shown anywhere, and so counted."""
        return self.route or self.port is not None


NO_METRICS = MetricsAt()


class Watching:
    """What observes one gateway; the caller closes it after the gateway.

    Attributes:
        metrics: None where they are not asked for.

    Raises:
        MissingExtraError: metrics are asked for, and prometheus_client is not installed.
    """

    def __init__(self, metrics_at: MetricsAt) -> None:
        self._at = metrics_at
        self.metrics = _metrics() if metrics_at.shown else None
        self._traces = _traces(os.environ)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What the gateway tells of each prediction."""
        return tuple(one for one in (self.metrics, self._traces) if one is not None)

    def with_page(self, app: ASGIApp) -> ASGIApp:
        """The API, with the route `/metrics` where it is asked for."""
        if self.metrics is None or not self._at.route:
            return app
        from edvit.runtime.watching.page import MetricsPage

        return MetricsPage(self.metrics.registry, app)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The API behind its guard, with every request of it observed."""
        if self.metrics is not None:
            from edvit.runtime.watching.measured import Measured

            app = Measured(app, self.metrics)
        return app if self._traces is None else self._traces.around(app)

    def follow(self, current: Callable[[], Gateway]) -> None:
        """Show the state of the fleet as the gateway that `current` returns knows it."""
        if self.metrics is not None:
            self.metrics.follow(current)

    def close(self) -> None:
        """Send the traces that are left."""
        if self._traces is not None:
            self._traces.close()


def _metrics() -> Metrics:
    try:
        from edvit.runtime.watching.metrics import Metrics
    except ImportError:
        raise MissingExtraError('metrics need the serve extra: pip install "edvit[serve]"') from None
    return Metrics()


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables of OpenTelemetry ask for traces by OTLP."""
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter not in ("", "otlp"):
        return False
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return exporter == "otlp" or any(environment.get(name) for name in endpoints)


def _traces(environment: Mapping[str, str]) -> Traces | None:
    """What sends traces; None where they are not asked for, or cannot be sent, of which the log is told."""
    if not wants_traces(environment):
        return None
    protocols = (environment.get(f"OTEL_EXPORTER_OTLP_{part}PROTOCOL") for part in ("TRACES_", ""))
    protocol = next(filter(None, protocols), "http/protobuf")
    if protocol != "http/protobuf":
        log.warning("no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL is %s, and only http/protobuf is spoken", protocol)
        return None
    try:
        from edvit.runtime.watching.traces import exporting
    except ImportError:
        # The variables may be meant for other programs of this machine.
        log.warning('no traces are sent: OTEL_* asks for them, which needs pip install "edvit[otel]"')
        return None
    return exporting()
