"""Ten times as many requests as a fleet of slow devices can answer: the short form of `benchmarks/overload.py`."""

from __future__ import annotations

import pytest
from benchmarks.overload import POLITE_RATE, a_fleet, measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_overload_costs_neither_answers_nor_memory_nor_the_polite_client(tmp_path):
    """The bounds are wide, because other work on this machine changes the capacity from one second to the next.

    Where waiting and work at once have no bounds, 40 % of the capacity is left here.
    """
    with a_fleet(tmp_path, ballast_mb=300) as fleet:
        figures = measure(fleet, seconds=20, times=10, addresses=2, capacity_s=10)
    assert figures.wrong == []
    assert figures.goodput >= 0.5 * figures.capacity
    fair_share = min(1.0, figures.capacity / 3 / POLITE_RATE)
    assert figures.polite_share >= 0.5 * fair_share
    assert figures.growth_bytes <= 20_000_000
