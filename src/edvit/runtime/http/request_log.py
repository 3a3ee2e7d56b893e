"""An id and a line in the log for every HTTP request."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from edvit.runtime.logs import event
from edvit.runtime.request import working_on

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

HEADER = b"x-request-id"

PATH_CHARS = 200
"""Characters of a path that are logged. Its query is not: a client may put a token there."""


class RequestLog:
    """An ASGI application that names each request of `app`, answers with its name, and logs it when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status: int | None = None
        with working_on(_given(scope)) as request:

            async def send_named(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    message = {**message, "headers": [*message.get("headers", ()), (HEADER, request.id.encode())]}
                await send(message)

            try:
                await self._app(scope, receive, send_named)
            finally:
                event(
                    log,
                    logging.INFO,
                    "request",
                    request=request.id,
                    method=scope["method"],
                    path=scope["path"][:PATH_CHARS],
                    status=status,
                    seconds=round(time.perf_counter() - start, 6),
                    client=_client(scope),
                    **request.notes,
                )


def _given(scope: Scope) -> str | None:
    values = [value for name, value in scope["headers"] if name == HEADER]
    return values[0].decode("latin-1") if len(values) == 1 else None


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
