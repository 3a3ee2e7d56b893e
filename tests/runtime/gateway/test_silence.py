from __future__ import annotations

import time

import pytest

from edvit.runtime.gateway import silence
from edvit.runtime.gateway.deadline import ENOUGH, EVERY, FACTOR, FLOOR_S
from edvit.runtime.gateway.silence import GivenUpError, Silence
from edvit.runtime.wire.transport import Replies


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(silence, "time", clock)
    return clock


def replies():
    return Replies(1, time.monotonic() + 60)


def regular(watch, clock, gap_s):
    """Enough answers of two devices, each after so many seconds."""
    for _ in range(ENOUGH + EVERY):
        one = replies()
        watch.asked(["pi-1", "pi-2"], 1, one)
        clock.now += gap_s
        watch.heard("pi-1"), watch.heard("pi-2")
        watch.ended(one)


def test_a_device_is_given_up_after_much_longer_than_it_takes_and_who_waits_is_told(clock):
    watch = Silence()
    regular(watch, clock, 0.2)
    clock.now += 1000  # nothing was asked
    waiting = [replies(), replies()]
    for one in waiting:
        watch.asked(["pi-1", "pi-2"], 1, one)
    watch.heard("pi-2")
    clock.now += FACTOR * 0.2 - 0.01
    assert watch.give_up() == ()
    watch.heard("pi-2")
    clock.now += 0.02
    assert watch.give_up() == ("pi-1",)
    for one in waiting:
        error = next(one).error
        assert isinstance(error, GivenUpError)
        assert error.device == "pi-1"
    clock.now += 1000
    assert watch.give_up() == ()


def test_a_device_that_answers_others_is_not_given_up(clock):
    watch = Silence()
    regular(watch, clock, 0.01)
    watch.asked(["pi-1"], 1, replies())
    for _ in range(100):
        clock.now += FLOOR_S - 0.01
        watch.heard("pi-1")
        assert watch.give_up() == ()


def test_a_batch_may_take_longer(clock):
    watch = Silence()
    regular(watch, clock, 0.01)
    watch.asked(["pi-1", "pi-2"], 10, replies())
    clock.now += 9 * FLOOR_S
    assert watch.give_up() == ()
    watch.heard("pi-2")
    clock.now += 2 * FLOOR_S
    assert watch.give_up() == ("pi-1",)


def test_until_enough_is_known_nobody_is_given_up(clock):
    watch = Silence()
    watch.asked(["pi-1"], 1, replies())
    clock.now += 1000
    assert watch.give_up() == ()


def test_where_most_are_silent_the_gateway_is_held_up_and_nobody_is_given_up(clock):
    watch = Silence()
    regular(watch, clock, 0.01)
    watch.asked(["pi-1", "pi-2"], 1, replies())
    clock.now += 1000
    assert watch.give_up() == ()
    watch.heard("pi-2")
    assert watch.give_up() == ("pi-1",)


def test_the_last_device_that_is_asked_is_not_given_up(clock):
    """One that has gone, and is not asked any more, does not count."""
    watch = Silence()
    regular(watch, clock, 0.01)
    clock.now += 1
    watch.asked(["pi-1"], 1, replies())
    clock.now += 1000
    assert watch.give_up() == ()
