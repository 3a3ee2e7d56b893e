"""What stands before the HTTP API on a network: bearer tokens with scopes, and a limit of requests for each of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from edvit.errors import ConfigError, EdvitError, ForbiddenError, RateLimitError, UnauthorizedError, UnavailableError
from edvit.runtime.http.answers import ErrorAnswer, ErrorDetail
from edvit.runtime.keys.tokens import Scope, Token, TokenList
from edvit.runtime.request import note

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as Connection

log = logging.getLogger(__name__)

SCOPE_OF: Mapping[str, Scope] = {
    "/predict": "predict",
    "/health": "watch",
    "/fleet": "watch",
    "/metrics": "watch",
    "/deploy": "operate",
}
"""By path; whatever is not named here needs `operate`, so that a new route is not open by mistake."""

OPEN = re.compile(r"/docs|/openapi\.json|/static-offline-docs/.*")
"""The description of the API says nothing that the program's source does not."""

FAILURES = RateLimitItemPerSecond(5)
"""Requests without a good token that one address is told of and that are logged; more are 429, and not logged."""

DAMAGED = RateLimitItemPerMinute(1)
"""Lines of the log about a list of tokens that cannot be used."""

REFUSED_BODY_BYTES = 2_000_000
REFUSED_BODY_S = 2.0
"""What is read and thrown away of a refused request, so that its sender sees the answer and no broken connection."""


def parse_rate(text: str) -> RateLimitItem:
    """`100/second`, `10 per minute`. Raises ConfigError."""
    try:
        return parse(text)
    except ValueError:
        raise ConfigError(f"--rate-limit {text!r}: write for example 100/second or 10/minute") from None


class Guard:
    """An ASGI application that lets through to `app` what carries a token with the right scope.

    Args:
        app: the API.
        tokens: who may do what.
        rate: requests that each token may make.
    """

    def __init__(self, app: ASGIApp, tokens: TokenList, rate: RateLimitItem) -> None:
        self._app = app
        self._tokens = tokens
        self._rate = rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, connection: Connection, receive: Receive, send: Send) -> None:
        if connection["type"] == "http" and not OPEN.fullmatch(connection["path"]):
            try:
                self.check(connection["path"], _token(connection["headers"]), _address(connection))
            except EdvitError as error:
                await _discard(receive)
                await _refuse(send, error)
                return
        await self._app(connection, receive, send)

    def check(self, path: str, token: str | None, address: str) -> None:
        """Whether a request may pass.

        Args:
            path: what is asked.
            token: what the request carries; None for nothing.
            address: where it comes from.

        Raises:
            UnauthorizedError: there is no such token.
            ForbiddenError: the token lacks the scope.
            RateLimitError: too many requests, of this token or without one from this address.
            UnavailableError: the list of tokens cannot be used; only the log says why.
        """
        known = None if token is None else self._find(token)
        if known is None:
            self._count(FAILURES, "address", address)
            what = "no token" if token is None else "unknown token"
            log.warning("refused a request for %s from %s: %s", ascii(path), address, what)
            raise UnauthorizedError(
                "this gateway wants a token: set EDVIT_TOKEN, or send the header Authorization: Bearer TOKEN"
                if token is None
                else "this gateway does not know that token: ask its operator for one (`edvit keys token`)"
            )
        self._count(self._rate, "token", known.name)
        scope = SCOPE_OF.get(path, "operate")
        if scope not in known.scopes:
            log.warning("refused a request for %s from %s: token %s lacks %s", ascii(path), address, known.name, scope)
            raise ForbiddenError(f"this token may not do that: {path} needs the scope {scope}")

    def _find(self, token: str) -> Token | None:
        try:
            return self._tokens.find(token)
        except ConfigError as error:
            if self._limiter.hit(DAMAGED, "damaged"):
                log.error("no token can be checked: %s", error)
            raise UnavailableError(
                "the gateway cannot check tokens now: its operator finds the reason in its log"
            ) from None

    def _count(self, limit: RateLimitItem, *who: str) -> None:
        if not self._limiter.hit(limit, *who):
            reset = self._limiter.get_window_stats(limit, *who).reset_time
            error = RateLimitError(
                f"too many requests: {limit.amount} in {limit.get_expiry()} s are allowed; try again in a moment"
            )
            error.retry_after_s = max(1, math.ceil(reset - time.time()))
            raise error


def _token(headers: list[tuple[bytes, bytes]]) -> str | None:
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return None
    kind, _, token = values[0].decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _address(connection: Connection) -> str:
    client = connection.get("client")
    return str(client[0]) if client else "unknown"


async def _discard(receive: Receive) -> None:
    async def read() -> None:
        size = 0
        more = True
        while more and size < REFUSED_BODY_BYTES:
            message: Message = await receive()
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), REFUSED_BODY_S)


async def _refuse(send: Send, error: EdvitError) -> None:
    note(code=error.code)
    body = ErrorAnswer(error=ErrorDetail(code=error.code, message=str(error))).model_dump_json().encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of the request's body is no new request
    ]
    if isinstance(error, UnauthorizedError):
        headers.append((b"www-authenticate", b'Bearer realm="edvit"'))
    if isinstance(error, ForbiddenError):
        headers.append((b"www-authenticate", b'Bearer realm="edvit", error="insufficient_scope"'))
    if isinstance(error, RateLimitError):
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
