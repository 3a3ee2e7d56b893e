from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edvit.runtime.http.pace import ENOUGH, Pace

MOST = 16


def steady(pace, capacity, longest_s, answers=400):
    """Requests at once after so many answers of devices that give `capacity` answers a second, whatever is asked."""
    at_once = MOST
    for _ in range(answers):
        at_once = pace.after(at_once / capacity, longest_s, answered=True)
    return at_once


def test_devices_that_answer_soon_are_asked_as_much_at_once_as_can_be():
    assert steady(Pace(MOST), capacity=100.0, longest_s=2.0) == MOST


def test_slow_devices_are_asked_as_much_at_once_as_they_answer_in_time():
    for capacity in (2.5, 5.0, 10.0):
        at_once = steady(Pace(MOST), capacity, longest_s=2.0)
        assert 0.4 * ENOUGH * 2.0 <= at_once / capacity <= 1.5 * ENOUGH * 2.0


def test_devices_that_take_longer_than_that_for_one_are_asked_one_at_a_time():
    assert steady(Pace(MOST), capacity=0.6, longest_s=2.0) == 1


def test_what_fails_at_once_says_nothing():
    pace = Pace(MOST)
    slow = [pace.after(2.0, 2.0, answered=False) for _ in range(20)][-1]
    assert [pace.after(0.001, 2.0, answered=False) for _ in range(100)][-1] == slow < MOST


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.booleans())))
def test_it_stays_between_one_and_the_most(ended):
    pace = Pace(MOST)
    assert all(1 <= pace.after(seconds, 2.0, answered=answered) <= MOST for seconds, answered in ended)
