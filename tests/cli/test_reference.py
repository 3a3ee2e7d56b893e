"""docs/cli.md and `--help`."""

from __future__ import annotations

import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import get_args

import pytest

from edvit.builder.options import BuildOptions, PlanOptions, Stage
from edvit.cli.commands import app

ROOT = Path(__file__).parents[2]


def commands(of, *above):
    """The words of every command, those of groups included: `("build",)`, `("keys", "init")`."""
    names = [name for name in of if not name.startswith("-")]
    return [(*above, name) for name in names if of[name].default_command] + [
        words for name in names if not of[name].default_command for words in commands(of[name], *above, name)
    ]


COMMANDS = commands(app)


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == app.generate_docs(), "run `make docs`"


def test_the_reference_names_every_stage_that_force_takes() -> None:
    line = next(line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if "`--force" in line)
    assert f"[choices: {', '.join(get_args(Stage))}]" in line


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_fits_80_columns_and_describes_every_option(edvit, monkeypatch, command) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = edvit(*command, "--help")
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    for argument in reduce(getitem, command, app).assemble_argument_collection():
        assert argument.parameter.help or argument.children, argument.name


def test_the_help_of_build_shows_ten_common_options_first_then_groups(edvit, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, said, _ = edvit("build", "--help")
    titles = re.findall(r"^╭─ ([\w ]+) ─", said, re.MULTILINE)
    assert titles == ["Common options", "Data", "Model", "Fleet", "Pruning", "Training", "Machine"]
    common = said.partition("─ Data ─")[0]
    assert len(re.findall(r"^│ [ *]+--", common, re.MULTILINE)) == 10


def test_plan_takes_every_option_of_build_that_it_shares() -> None:
    shared = {"--" + name.replace("_", "-") for name in PlanOptions.model_fields} - {"--image-size"} | {"--img-size"}
    for command in ("plan", "build"):
        names = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
        assert shared <= names
    assert PlanOptions.model_fields.keys() < BuildOptions.model_fields.keys()


def test_version(edvit) -> None:
    code, said, _ = edvit("--version")
    assert (code, said) == (0, "0.1.0\n")
