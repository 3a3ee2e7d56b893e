"""A line in a device's log for every inference that it is asked for."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from edvit.runtime.logs import event
from edvit.runtime.wire.messages import InferRequest

log = logging.getLogger(__name__)

Outcome = Literal["answered", "dropped", "late"]
"""`dropped`: it was past its deadline before it began; `late`: it passed its deadline while it ran."""


@dataclass
class Inference:
    """What its line will say: the sub-models that answered, and how it ended."""

    submodels: list[int] = field(default_factory=list)
    outcome: Outcome = "answered"


@contextlib.contextmanager
def inference_logged(device: str, asked: InferRequest) -> Iterator[Inference]:
    """Log the inference of the block when it ends; `wire` is the id under which the gateway's line names it."""
    inference = Inference()
    start = time.perf_counter()
    problem: str | None = None
    try:
        yield inference
    except Exception as error:
        problem = str(error)
        raise
    finally:
        event(
            log,
            logging.INFO,
            "inference",
            device=device,
            wire=asked.request,
            images=asked.shape[0],
            submodels=inference.submodels,
            seconds=round(time.perf_counter() - start, 6),
            outcome=inference.outcome if problem is None else "failed",
            problem=problem,
        )
