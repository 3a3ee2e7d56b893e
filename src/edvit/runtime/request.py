"""The HTTP request that is worked on, also by threads that work on it: its id, and what its log line will say."""

from __future__ import annotations

import contextlib
import contextvars
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class CurrentRequest:
    """One request.

    Attributes:
        id: as its client has named it, or drawn at random.
        notes: fields for its line in the log.
        stages: seconds that its stages took outside of the gateway's prediction, by name of the stage.
    """

    id: str
    notes: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


_current: contextvars.ContextVar[CurrentRequest | None] = contextvars.ContextVar("current_request", default=None)


def current() -> CurrentRequest | None:
    """The request that is worked on; None outside of any."""
    return _current.get()


@contextlib.contextmanager
def working_on(given: str | None) -> Iterator[CurrentRequest]:
    """Work on a request in the block.

    Args:
        given: the id that its client gives it; one that may not stand in a log is replaced by a new one.
    """
    request = CurrentRequest(given if given is not None and ID.fullmatch(given) else secrets.token_hex(8))
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)


def note(**fields: Any) -> None:
    """Say something in the log line of the request that is worked on, if there is one."""
    if (request := current()) is not None:
        request.notes.update(fields)


def note_wire(wire: str) -> None:
    """Say under which id the devices are asked for the request that is worked on; it may be called several times."""
    if (request := current()) is not None:
        request.notes.setdefault("wire", []).append(wire)


def took(stage: str, seconds: float) -> None:
    """Say how long a stage of the request that is worked on took, if there is one."""
    if (request := current()) is not None:
        request.stages[stage] = seconds
