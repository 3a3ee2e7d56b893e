"""Numeric options of every command: `inf` and `nan` are read as numbers, and none of them means anything."""

from __future__ import annotations

import pytest
from benchmarks.compare.__main__ import app as compare_app
from cyclopts import CycloptsError

from edvit.cli import usage_problem
from edvit.cli.commands import app


def commands_of(group):
    """Every command of an app by its name; `keys` is a group of commands."""
    for name in group:
        if not name.startswith("-"):
            yield from [(name, group[name])] if group[name].default_command else commands_of(group[name])


COMMANDS = {**dict(commands_of(app)), "compare": compare_app}
REQUIRED = {
    "build": ["-o", "x"],
    "deploy": ["http://127.0.0.1:1", "x"],
    "device": ["--name", "x"],
    "serve": ["x"],
    "python -m benchmarks.compare": ["-o", "x"],
}
NUMBERS = [
    pytest.param(command, argument.name, id=f"{name} {argument.name}")
    for name, command in COMMANDS.items()
    for argument in command.assemble_argument_collection()
    if "float" in str(argument.field_info.annotation) and argument.name.startswith("--")
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_none_is_refused(command, option, value):
    with pytest.raises(CycloptsError) as caught:
        command([*REQUIRED.get(command.name[0], []), f"{option}={value}"], exit_on_error=False, print_error=False)
    said = usage_problem(caught.value)
    assert option in said
    assert any(word in said for word in ("finite", "Must be", "greater"))


def test_every_command_with_such_options_is_looked_at():
    assert len(NUMBERS) > 10
