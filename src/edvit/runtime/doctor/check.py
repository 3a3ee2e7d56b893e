"""What one look at a machine found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from edvit.errors import printable

State = Literal["good", "warning", "bad"]

SIGNS: dict[State, str] = {"good": "✓", "warning": "!", "bad": "✗"}


@dataclass(frozen=True)
class Check:
    """One line of `edvit doctor`.

    Attributes:
        name: what was looked at.
        state: `bad` keeps a device or a gateway from working; `warning` may.
        says: what was found.
        advice: what to do; empty where nothing has to be done.
    """

    name: str
    state: State
    says: str
    advice: str = ""


def good(name: str, says: str) -> Check:
    return Check(name, "good", says)


def warning(name: str, says: str, advice: str) -> Check:
    return Check(name, "warning", says, advice)


def bad(name: str, says: str, advice: str) -> Check:
    return Check(name, "bad", says, advice)


def healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing is bad."""
    return all(check.state != "bad" for check in checks)


def as_text(check: Check) -> str:
    """One line: its state, its name, what was found, and what to do."""
    advice = f". To do: {check.advice}" if check.advice else ""
    return printable(f"{SIGNS[check.state]} {check.name:14} {check.says}{advice}")


def as_json(checks: Sequence[Check]) -> str:
    """Every check, and whether nothing is bad."""
    return json.dumps({"healthy": healthy(checks), "checks": [asdict(check) for check in checks]}, indent=1)
