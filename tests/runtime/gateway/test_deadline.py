from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.runtime.gateway.deadline import ENOUGH, FACTOR, FLOOR_S, LONGEST_S, WINDOW, Deadline, learned_s


def test_until_enough_is_known_it_is_the_longest():
    deadline = Deadline(None)
    for _ in range(ENOUGH - 1):
        deadline.took(1, 0.01)
    assert deadline.of(1) == LONGEST_S
    for _ in range(ENOUGH):
        deadline.took(1, 0.01)
    assert deadline.of(1) == FLOOR_S


def test_it_follows_the_answers_of_batches_of_the_same_size():
    deadline = Deadline(None)
    for _ in range(WINDOW):
        deadline.took(1, 0.001)
        deadline.took(64, 0.2)
    assert deadline.of(1) == FLOOR_S
    assert deadline.of(64) == deadline.of(33) == pytest.approx(FACTOR * 0.2)
    assert deadline.of(65) == LONGEST_S


def test_one_that_is_given_is_not_changed():
    deadline = Deadline(7.0)
    for _ in range(WINDOW):
        deadline.took(1, 0.001)
    assert deadline.of(1) == deadline.longest_s == 7.0


def test_a_load_that_rises_raises_it():
    """Answers that are cut off at the deadline are learned from as well, so that it can grow."""
    deadline = Deadline(None)
    for _ in range(WINDOW):
        deadline.took(1, 0.01)
    for _ in range(WINDOW):
        deadline.took(1, min(0.4, deadline.of(1)))
    assert deadline.of(1) == pytest.approx(FACTOR * 0.4)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=WINDOW))
def test_it_stays_between_its_floor_and_the_longest(taken):
    assert FLOOR_S <= learned_s(deque(taken)) <= LONGEST_S
