"""Seconds of one call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_s(call: Callable[[], object], runs: int = 30, warm_up: int = 3) -> float:
    """Median seconds of a call over `runs`, after `warm_up` more that do not count."""
    taken = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[warm_up:])
