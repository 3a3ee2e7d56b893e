from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.runtime.gateway.deadline import CUTS, ENOUGH, FACTOR, FLOOR_S, LONGEST_S, WINDOW, Deadline, learned_s


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


def learned(deadline, batch=1):
    for _ in range(WINDOW):
        deadline.took(batch, 0.01)
    return deadline


def test_one_that_cuts_off_every_answer_begins_anew():
    deadline = learned(Deadline(None), batch=64)
    for _ in range(CUTS - 1):
        deadline.cut(64)
    assert deadline.of(64) == FLOOR_S
    deadline.cut(64)
    assert deadline.of(64) == LONGEST_S
    learned(deadline, batch=64)
    assert deadline.of(64) == FLOOR_S


def test_an_answer_in_time_says_that_it_is_long_enough():
    deadline = learned(Deadline(None))
    for _ in range(CUTS):
        deadline.cut(1)
        deadline.took(1, 0.01)
    assert deadline.of(1) == FLOOR_S


def test_a_probe_that_takes_longer_says_that_it_is_too_short():
    deadline = learned(learned(Deadline(None)), batch=64)
    deadline.probed(FLOOR_S)
    assert (deadline.of(1), deadline.of(64)) == (FLOOR_S, FLOOR_S)
    deadline.probed(FLOOR_S + 0.1)
    assert (deadline.of(1), deadline.of(64)) == (LONGEST_S, LONGEST_S)


def test_one_that_is_given_is_not_changed_by_what_it_cuts_off():
    deadline = Deadline(7.0)
    for _ in range(CUTS):
        deadline.cut(1)
    deadline.probed(8.0)
    assert deadline.of(1) == 7.0
