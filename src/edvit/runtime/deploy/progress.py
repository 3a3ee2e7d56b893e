"""How far a deploy is, as a client sees it."""

from __future__ import annotations

import secrets
import threading

from edvit.errors import EdvitError
from edvit.runtime.http.answers import DeployAnswer, ErrorDetail


class Progress:
    """One deploy from its beginning to its end. Thread-safe."""

    def __init__(self) -> None:
        self._answer = DeployAnswer(serving="", state="under-way", id=secrets.token_hex(8))
        self._lock = threading.Lock()

    @property
    def under_way(self) -> bool:
        return self._answer.state == "under-way"

    def is_of(self, bundle: str) -> None:
        """The digest of the new bundle is known."""
        self._update(bundle=bundle)

    def say(self, step: str) -> None:
        """One more step is done."""
        self._update(steps=(*self._answer.steps, step))

    def done(self) -> None:
        self._update(state="done")

    def failed(self, error: EdvitError) -> None:
        self._update(state="failed", error=ErrorDetail(code=error.code, message=str(error)))

    def answer(self, serving: str) -> DeployAnswer:
        """What to tell a client; `serving` is the digest of what is served now."""
        return self._answer.model_copy(update={"serving": serving})

    def _update(self, **changes: object) -> None:
        with self._lock:
            self._answer = self._answer.model_copy(update=changes)
