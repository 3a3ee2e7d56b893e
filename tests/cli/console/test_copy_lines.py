from __future__ import annotations

from edvit.cli.console.copy_lines import EVERY_S, SETTLED_S, CopyLines
from edvit.runtime.gateway.device_state import DeviceStatus
from edvit.runtime.gateway.hedging import CopiesAsked


def device(name, planned, submodels):
    return DeviceStatus(
        name=name,
        alive=True,
        planned=planned,
        submodels=submodels,
        memory_bytes=1,
        memory_limit_bytes=None,
        host=None,
        pid=None,
        problem=None,
    )


WHOLE = [device("a", (0,), (0, 1)), device("b", (1,), (0, 1))]
HALF = [device("a", (0,), (0, 1)), device("b", (1,), (1,))]


def test_what_has_no_copy_is_said_once_it_has_settled():
    lines, none = CopyLines(2), CopiesAsked()
    assert lines.new(HALF, none, 100.0) == []
    assert lines.new(HALF, none, 100.0 + SETTLED_S) == [
        "without a second copy: sub-model 0; no other device is there with room"
    ]
    assert lines.new(HALF, none, 200.0) == []
    assert lines.new(WHOLE, none, 300.0) == []
    assert lines.new(WHOLE, none, 300.0 + SETTLED_S) == ["every sub-model has a second copy"]


def test_how_often_copies_were_asked_is_said_at_most_once_a_minute():
    lines = CopyLines(2)
    lines.new(WHOLE, CopiesAsked(), 100.0)
    lines.new(WHOLE, CopiesAsked(), 110.0)
    said = [
        lines.new(WHOLE, CopiesAsked(late=3, ended=1), 120.0),
        lines.new(WHOLE, CopiesAsked(late=5, ended=1), 121.0),
        lines.new(WHOLE, CopiesAsked(late=5, ended=1), 120.0 + EVERY_S),
        lines.new(WHOLE, CopiesAsked(late=5, ended=1), 120.0 + 3 * EVERY_S),
    ]
    assert said == [
        ["second copies were asked 4 times: 3 as a device was late, 1 as one ended a request"],
        [],
        ["second copies were asked 2 times: 2 as a device was late, 0 as one ended a request"],
        [],
    ]


def test_with_one_replica_nothing_is_said():
    assert CopyLines(1).new(HALF, CopiesAsked(), 1000.0) == []
