"""docs/cli.md is what `--help` says today."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edvit.builder.config import STAGES

ROOT = Path(__file__).parents[2]


def test_the_reference_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "edvit.cli.commands", "utils", "docs"]
    command += ["--name", "edvit", "--title", "Command line", "--output", str(made)]
    subprocess.run(command, check=True, env={**os.environ, "TERM": "dumb"}, capture_output=True, timeout=120)
    assert (ROOT / "docs" / "cli.md").read_text() == made.read_text(), "run `make docs`"


def test_the_help_names_every_stage_that_force_takes_and_no_other() -> None:
    line = next(line for line in (ROOT / "docs" / "cli.md").read_text().splitlines() if "`--force" in line)
    assert line.partition("stage: ")[2].rstrip(".").split(", ") == list(STAGES)
