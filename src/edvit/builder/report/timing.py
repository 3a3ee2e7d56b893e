"""Seconds of a call, and of several that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

ROUNDS, FEWEST_ROUNDS = 30, 5
LIMIT_S = 60.0
"""After this no further round begins, once there are `FEWEST_ROUNDS`."""


def median_s(call: Callable[[], object], runs: int = 30, warm_up: int = 3) -> float:
    """Median seconds of a call over `runs`, after `warm_up` more that do not count."""
    return statistics.median([_seconds(call) for _ in range(warm_up + runs)][warm_up:])


def interleaved_s(
    calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, warm_up: int = 2
) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds of several calls by name, `[rounds]` each; every round makes each call once.

    A machine that is busy for a while slows all of them alike. There are fewer rounds where they take long.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    start = time.monotonic()
    taken: list[list[float]] = []
    while len(taken) < rounds and (len(taken) < FEWEST_ROUNDS or time.monotonic() - start < LIMIT_S):
        taken.append([_seconds(call) for call in calls.values()])
    return dict(zip(calls, np.array(taken).T, strict=True))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
