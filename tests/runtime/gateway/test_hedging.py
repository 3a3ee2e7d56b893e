from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.runtime.gateway.deadline import ENOUGH, EVERY, WINDOW, percentile
from edvit.runtime.gateway.hedging import (
    BUDGET,
    BURST,
    LATE_FLOOR_S,
    LATE_MOST,
    LATE_PERCENTILE,
    LATE_UNKNOWN,
    CopiesAsked,
    Hedging,
)


def late_of(hedging, device, batch=1, left_s=10.0):
    return hedging.begin([device], batch, left_s)[device]


def test_a_device_is_late_after_the_95th_percentile_of_its_own_answers():
    hedging = Hedging()
    for i in range(WINDOW):
        hedging.took("pi-1", 1, (i % 100 + 1) / 100)
        hedging.took("pi-2", 1, 3.0)
    assert late_of(hedging, "pi-1") == pytest.approx(0.95, abs=0.02)
    assert late_of(hedging, "pi-2") == 3.0


def test_until_a_device_is_known_the_fleet_stands_for_it():
    hedging = Hedging()
    assert late_of(hedging, "pi-1", left_s=2.0) == LATE_UNKNOWN * 2.0
    for _ in range(ENOUGH):
        hedging.took("pi-2", 1, 0.3)
    assert late_of(hedging, "pi-1") == 0.3
    assert late_of(hedging, "pi-1", batch=2) == LATE_UNKNOWN * 10.0  # another size of batch


def test_the_copy_gets_its_share_of_the_deadline():
    hedging = Hedging()
    for _ in range(ENOUGH):
        hedging.took("slow", 1, 100.0)
        hedging.took("fast", 1, 1e-6)
    assert late_of(hedging, "slow", left_s=1.0) == LATE_MOST
    assert late_of(hedging, "fast", left_s=1.0) == LATE_FLOOR_S


def test_a_device_that_gets_slow_is_late_only_until_that_is_known():
    hedging = Hedging()
    for _ in range(WINDOW):
        hedging.took("pi-1", 1, 0.1)
    for _ in range(WINDOW // 20 + EVERY):
        hedging.took("pi-1", 1, 0.5)
    assert late_of(hedging, "pi-1") == 0.5


def test_what_is_not_waited_for_does_not_pull_the_percentile_down():
    """Each answer that is late is overtaken at once: it is known only to have taken so long."""
    hedging = Hedging()
    for i in range(10 * WINDOW):
        seconds = (i * 37 % 100 + 1) / 100
        hedging.took("pi-1", 1, min(seconds, late_of(hedging, "pi-1")))
    assert late_of(hedging, "pi-1") >= 0.9


@given(st.lists(st.booleans(), max_size=400))
def test_the_budget_is_a_tenth_of_the_requests_and_a_burst(events):
    """Whatever comes, no stretch of requests has more late ones hedged than that."""
    hedging, log = Hedging(), []
    for is_request in events:
        if is_request:
            hedging.begin(["pi-1"], 1, 1.0)
            log.append("request")
        elif hedging.may_ask():
            log.append("hedge")
    for start in range(len(log)):
        part = log[start:]
        assert part.count("hedge") <= BURST + BUDGET * part.count("request") + 1e-6
    assert hedging.asked == CopiesAsked(late=log.count("hedge"))


def test_the_copies_of_a_device_that_hangs_are_asked_whatever_the_budget():
    hedging = Hedging()
    while hedging.may_ask():
        pass
    before = hedging.asked.late
    assert hedging.may_ask(hangs=True)
    assert not hedging.may_ask()
    assert hedging.asked.late == before + 1


def test_what_ended_is_counted_and_not_limited():
    hedging = Hedging()
    for _ in range(10 * BURST):
        hedging.asked_as_ended()
    assert hedging.may_ask()
    assert hedging.asked == CopiesAsked(late=1, ended=10 * BURST)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_at_most_a_twentieth_is_later_than_late(taken):
    assert sum(one > percentile(taken, LATE_PERCENTILE) for one in taken) <= 0.05 * len(taken)
