from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.runtime.gateway.breaker import FIRST_PAUSE_S, MISSES, MOST_PAUSE_S, STEADY_S, Breaker

EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0), st.sampled_from(["answered", "missed", "overtaken", "wrong", "lost", "fails", "passes"])
    ),
    max_size=200,
)
"""Seconds since the last event, and what happens; probes happen only when they are due."""


def after(breaker, now, event):
    if event in ("missed", "overtaken"):
        return getattr(breaker, event)(now, now)
    return {
        "answered": breaker.answered,
        "wrong": breaker.failed_request,
        "lost": breaker.lost,
        "fails": breaker.failed,
        "passes": breaker.passed,
    }[event](now)


def history(events):
    """`(time, event, state before, state after)` of each event that happened."""
    now, breaker, found = 100.0, Breaker().passed(100.0), []
    for step, event in events:
        now += step
        if event in ("fails", "passes") and not breaker.due(now):
            continue
        before, breaker = breaker, after(breaker, now, event)
        found.append((now, event, before, breaker))
    return found


def test_a_new_device_may_be_probed_at_once_and_is_asked_once_that_passed():
    breaker = Breaker()
    assert breaker.due(0.0)
    assert not breaker.closed
    assert breaker.passed(0.0).closed
    assert not breaker.passed(0.0).due(1e9)


@given(EVENTS)
def test_it_opens_after_few_misses_in_a_row_and_never_after_fewer(events):
    row = 0
    for _, event, before, now in history(events):
        if event in ("missed", "wrong") and before.closed:
            row = row + 1 if now.misses > before.misses or not now.closed else row
        elif event in ("answered", "passes", "lost"):
            row = 0
        if before.closed and not now.closed:
            assert event == "lost" or row == MISSES
            row = 0


@given(EVENTS)
def test_probes_are_never_more_frequent_than_the_backoff(events):
    last, pause = None, None
    for time, event, before, now in history(events):
        if event in ("fails", "passes"):
            if last is not None and not before.closed:
                assert time - last >= pause - 1e-9
            last, pause = time, min(before.pause_s, MOST_PAUSE_S)
        if before.closed and not now.closed:
            last = None
        assert FIRST_PAUSE_S <= now.pause_s <= MOST_PAUSE_S


@given(st.integers(1, 12))
def test_the_pause_doubles_up_to_its_limit(failures):
    breaker, now = Breaker(), 0.0
    for i in range(failures):
        breaker = breaker.failed(now)
        assert breaker.probe_at - now == pytest.approx(min(FIRST_PAUSE_S * 2**i, MOST_PAUSE_S))
        assert not breaker.due(now)
        now = breaker.probe_at


@given(EVENTS, st.floats(0.0, 10.0))
def test_one_good_answer_to_a_probe_brings_it_back_whatever_happened(events, later):
    found = history(events)
    time, breaker = (found[-1][0], found[-1][3]) if found else (100.0, Breaker())
    time = max(time + later, breaker.probe_at)
    assert breaker.closed or breaker.due(time)
    assert breaker.passed(time).closed


@given(EVENTS)
def test_it_is_always_asked_or_due_within_the_longest_pause(events):
    for time, _, _, now in history(events):
        assert now.closed or now.due(time + MOST_PAUSE_S)


def test_a_device_that_answers_others_meanwhile_is_busy_and_stays():
    breaker = Breaker().passed(0.0)
    for i in range(10):
        breaker = breaker.answered(10.0 + i).missed(8.5 + i, 10.5 + i)
    assert breaker.closed
    for _ in range(MISSES):
        breaker = breaker.missed(20.0, 22.0)
    assert not breaker.closed


def test_what_was_asked_before_its_return_does_not_count():
    breaker = Breaker().passed(10.0)
    for _ in range(MISSES):
        breaker = breaker.missed(9.0, 30.0)
    assert breaker.closed


def test_a_device_that_keeps_failing_after_its_return_is_left_alone_for_longer():
    breaker, now = Breaker().passed(0.0), 100.0
    pauses = []
    for _ in range(8):
        breaker = breaker.lost(now)
        pauses.append(breaker.probe_at - now)
        now = breaker.probe_at
        breaker = breaker.passed(now)
        now += STEADY_S / 10
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]
    assert abs(breaker.lost(now + 10 * STEADY_S).probe_at - (now + 10 * STEADY_S) - FIRST_PAUSE_S) < 1e-9


def overtaken(breaker, times, start=200.0):
    for i in range(times):
        breaker = breaker.overtaken(start + i, start + i + 0.1)
    return breaker


def test_one_that_is_overtaken_again_and_again_is_suspected_but_still_asked():
    breaker = Breaker().passed(100.0)
    assert not overtaken(breaker, MISSES - 1).suspected
    suspected = overtaken(breaker, 10 * MISSES)
    assert suspected.suspected
    assert suspected.closed


def test_an_answer_or_a_probe_ends_the_suspicion():
    suspected = overtaken(Breaker().passed(100.0), MISSES)
    assert suspected.answered(300.0).suspected is False
    assert suspected.answered(300.0).misses == 0
    assert suspected.lost(300.0).suspected is False
    assert suspected.lost(300.0).passed(301.0).suspected is False


def test_one_that_answers_others_meanwhile_is_only_busy():
    breaker = Breaker().passed(100.0)
    for i in range(10):
        breaker = breaker.answered(200.0 + i + 0.08).overtaken(200.0 + i, 200.0 + i + 0.1)
    assert not breaker.suspected


def test_requests_of_before_its_return_say_nothing_of_it():
    breaker = Breaker().passed(100.0)
    for _ in range(10):
        breaker = breaker.overtaken(99.0, 101.5)
    assert not breaker.suspected


def test_the_state_in_a_word():
    closed = Breaker().passed(100.0)
    assert (Breaker().state, closed.state, closed.lost(101.0).state) == ("open", "closed", "open")
    suspected = overtaken(closed, MISSES)
    assert suspected.state == "suspected"
    assert suspected.lost(300.0).state == "open"


@given(EVENTS)
def test_a_device_is_suspected_only_while_it_is_asked(events):
    for _, event, before, after_ in history(events):
        assert after_.closed or not after_.suspected
        assert event == "overtaken" or before.suspected or not after_.suspected
