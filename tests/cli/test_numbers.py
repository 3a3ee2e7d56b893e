"""Numeric options of every command: `inf` and `nan` are read as numbers, and none of them means anything."""

from __future__ import annotations

import inspect

import pytest
from benchmarks.compare.__main__ import app as compare_app

from edvit.cli import app, commands  # noqa: F401  (registers the commands)

CALLBACKS = [info.callback for group in (app, compare_app) for info in group.registered_commands]
NUMBERS = [
    (callback.__name__, name, parameter.default)
    for callback in CALLBACKS
    for name, parameter in inspect.signature(callback).parameters.items()
    if "float" in str(parameter.annotation)
]


@pytest.mark.parametrize(
    ("command", "option"), [("build", "--fisher"), ("build", "--base-lr"), ("device", "--memory-mb")]
)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_none_is_refused(edvit, command, option, value):
    code, _, said = edvit(command, f"{option}={value}")
    assert code == 2
    assert option in said
    assert "finite" in said or "greater" in said


def test_every_option_that_takes_one_refuses_it():
    assert len(NUMBERS) > 8
    assert [(command, name) for command, name, option in NUMBERS if option.callback is None] == [
        ("serve", "deadline_s")
    ]
