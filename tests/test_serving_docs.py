"""docs/guide/serving.md against the code: commands, options, and the fields of an answer."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from edvit.cli import app, commands
from edvit.runtime.answers import Predicted, Timings

GUIDE = (Path(__file__).parents[1] / "docs" / "guide" / "serving.md").read_text()
COMMANDS = re.findall(r"^    edvit (.+)$", GUIDE, re.MULTILINE)


def options_of(name):
    assert commands
    command = typer.main.get_command(app).commands[name]
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_exists_with_its_options(line):
    name, *words = shlex.split(line)
    assert {word for word in words if word.startswith("--")} <= options_of(name)


def test_every_option_in_the_text_exists():
    known = set().union(*map(options_of, ("serve", "device", "predict", "evaluate", "inspect", "build")))
    assert set(re.findall(r"`(--[a-z-]+)", GUIDE)) <= known


def test_every_field_of_an_answer_is_explained():
    for field in {*Predicted.model_fields, *Timings.model_fields}:
        assert f"`{field}`" in GUIDE


def test_the_guide_has_commands():
    assert {line.split()[0] for line in COMMANDS} == {"inspect", "serve", "device", "predict", "evaluate"}
