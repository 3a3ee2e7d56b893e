"""What is served over HTTP now: one bundle, which can be exchanged for another between two requests."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edvit.runtime.gateway.gateway import Gateway
from edvit.runtime.http.uploads import Uploads

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(frozen=True, eq=False)
class Serving:
    """One bundle with all that serves it.

    Attributes:
        gateway: asks the devices.
        uploads: reads what requests ask about. Two servings share it where their bundles take the same input.
        app: the HTTP API.
    """

    gateway: Gateway
    uploads: Uploads
    app: ASGIApp

    def close(self, keep: Serving | None = None) -> None:
        """End it; `keep` is another serving whose uploads stay."""
        self.gateway.close()
        if keep is None or keep.uploads is not self.uploads:
            self.uploads.close()


class Switch:
    """An ASGI application: each request runs to its end on the serving that it began with. Thread-safe.

    Attributes:
        current: what new requests run on.
    """

    def __init__(self, current: Serving) -> None:
        self.current = current
        self._under_way: Counter[Serving] = Counter()
        self._changed = threading.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._changed:
            serving = self.current
            self._under_way[serving] += 1
        try:
            await serving.app(scope, receive, send)
        finally:
            with self._changed:
                self._under_way[serving] -= 1
                self._under_way += Counter()  # drops those of which none is left
                self._changed.notify_all()

    def turn_to(self, serving: Serving) -> None:
        """New requests run on this one."""
        with self._changed:
            self.current = serving

    def wait_unused(self, serving: Serving, timeout_s: float) -> bool:
        """Whether no request runs on it any more within `timeout_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way[serving], timeout_s)
