"""`GET /metrics`: what Prometheus scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from edvit.runtime.http.answers import ErrorAnswer, ErrorDetail

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/metrics"


class MetricsPage:
    """An ASGI application that shows a registry at `/metrics` and leaves everything else to `app`; None: to nobody."""

    def __init__(self, registry: CollectorRegistry, app: ASGIApp | None = None) -> None:
        self._registry = registry
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            await (await self._answer(Request(scope)))(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _error(404, "not-found", f"this port has {PATH} alone")(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _error(405, "method-not-allowed", f"Method Not Allowed: GET {PATH}")
        # It locks what it reads and may take some milliseconds, for which the event loop serves others.
        text = await to_thread.run_sync(generate_latest, self._registry)
        return Response(text, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


def _error(status: int, code: str, message: str) -> Response:
    body = ErrorAnswer(error=ErrorDetail(code=code, message=message)).model_dump_json()
    return Response(body, status_code=status, media_type="application/json")
