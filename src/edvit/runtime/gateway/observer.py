"""What a gateway tells of each prediction to whoever counts or traces it, whatever protocol asked for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from edvit.runtime.gateway.gather import Gathered
from edvit.runtime.prediction import Prediction


@dataclass
class Observed:
    """One prediction that a gateway was asked for, filled in while it is made."""

    started_at: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when the gateway was asked."""
    waited_s: float | None = None
    """How long the request had waited for its turn, seconds; None where it was refused before that was known."""
    gathered: Gathered | None = None
    """What the devices gave; None where they were not asked."""
    prediction: Prediction | None = None
    """The answer; None where there is none."""
    code: str | None = None
    """The code of the error in place of an answer."""


class Observer(Protocol):
    """Is told of every prediction when it has ended, in the thread that made it. It must be quick and not raise."""

    def observe(self, observed: Observed) -> None: ...
