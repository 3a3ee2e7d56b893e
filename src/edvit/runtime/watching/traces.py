"""OpenTelemetry traces: a span for each request, with a child span for each device that was asked."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edvit.runtime.request import current
from edvit.runtime.watching.measured import route_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edvit.runtime.gateway.gather import Gathered
    from edvit.runtime.gateway.observer import Observed

SERVICE = "edvit-gateway"
"""The name of the service, where the environment says no other."""

CLOSE_S = 1.0
"""What a collector that does not answer may delay the gateway's end, seconds."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})


class Traces:
    """Makes the spans of one gateway; an `Observer`. The caller closes it.

    Args:
        processor: takes the spans that have ended.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        # It is not made the process's provider: who uses a gateway in Python has their own.
        self._provider = TracerProvider(
            resource=Resource.create({} if named else {SERVICE_NAME: SERVICE}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("edvit")

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application, with a span for each of its HTTP requests."""
        return _Traced(app, self._tracer)

    def observe(self, observed: Observed) -> None:
        """Make the spans of the devices, within the span of the request; without one, within a span of their own."""
        if trace.get_current_span().get_span_context().is_valid:
            self._devices(observed)
            return
        span = self._tracer.start_span("predict", start_time=_nanoseconds(observed.started_at))
        token = context.attach(trace.set_span_in_context(span))
        try:
            self._devices(observed)
            if observed.code is not None:
                span.set_status(Status(StatusCode.ERROR, observed.code))
        finally:
            context.detach(token)
            span.end()

    def _devices(self, observed: Observed) -> None:
        if observed.gathered is None:
            return
        for device, submodels in observed.gathered.asked.items():
            self._device(observed.gathered, device, submodels)

    def _device(self, gathered: Gathered, device: str, submodels: set[int]) -> None:
        given = gathered.given.get(device, set())
        span = self._tracer.start_span(
            "infer",
            kind=SpanKind.CLIENT,
            start_time=_nanoseconds(gathered.first_asked_at[device]),
            attributes={"edvit.device": device, "edvit.submodels": sorted(submodels), "edvit.given": sorted(given)},
        )
        if not submodels <= given:
            span.set_status(Status(StatusCode.ERROR, _why(gathered, device)))
            span.end()
            return
        span.end(_nanoseconds(gathered.last_given_at[device]))

    def close(self) -> None:
        """Send what is left, within `CLOSE_S`."""
        # The processor waits for up to 30 s, and takes no other time.
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def _why(gathered: Gathered, device: str) -> str:
    """What is known of a device that has not given all that it was asked for."""
    for word, devices in (("silent", gathered.silent), ("wrong", gathered.wrong), ("ended", gathered.ended)):
        if device in devices:
            return word
    return "late" if gathered.late else "not waited for"


def _nanoseconds(monotonic: float) -> int:
    """A time of `time.monotonic()` in nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)


class _Traced:
    def __init__(self, app: ASGIApp, tracer: trace.Tracer) -> None:
        self._app = app
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status: int | None = None

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracer.start_as_current_span(
            "request",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            record_exception=False,  # its message may hold what a client has sent
            set_status_on_exception=False,
        ) as span:
            try:
                await self._app(scope, receive, send_noted)
            finally:
                _describe(span, scope, status)


def _describe(span: trace.Span, scope: Scope, status: int | None) -> None:
    route = route_of(scope)
    method = scope["method"] if scope["method"] in METHODS else "_OTHER"
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    request = current()
    if request is not None:
        span.set_attribute("edvit.request", request.id)
        if "degraded" in request.notes:
            span.set_attribute("edvit.degraded", request.notes["degraded"])
        if "code" in request.notes:
            span.set_attribute("error.type", request.notes["code"])
    if status is None or status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def exporting() -> Traces:
    """Traces that are sent by OTLP to where the environment says."""
    return Traces(BatchSpanProcessor(OTLPSpanExporter()))
