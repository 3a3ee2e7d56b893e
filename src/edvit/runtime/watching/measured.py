"""Counts every HTTP request, whatever protocol is spoken over it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edvit.runtime.request import current
from edvit.runtime.watching.page import PATH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edvit.runtime.watching.metrics import Metrics

OTHER = "other"
"""What is asked and is no route, or is refused before its route is looked for."""


class Measured:
    """An ASGI application that counts the requests of `app`. It is to run within `RequestLog`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status: int | None = None
        received = sent = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive_counted, send_counted)
        finally:
            request = current()
            self._metrics.answered(
                route=route_of(scope),
                status=status,
                seconds=time.perf_counter() - start,
                received=received,
                sent=sent,
                code=None if request is None else request.notes.get("code"),
                stages={} if request is None else request.stages,
            )


def route_of(scope: Scope) -> str:
    """The route that a request was given to, as it is declared: of a bounded number of values."""
    if scope["path"] == PATH:
        return PATH
    return str(getattr(scope.get("route"), "path", OTHER))
