"""The command line: one file per command group, imports of the build world only inside its commands."""

from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edvit.errors import NO_ROOM, EdvitError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="edvit",
    help="Split a Vision Transformer into small class-specific models that run in parallel on edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DATA_HELP = (
    "digits, imagefolder:DIR, audiofolder:DIR, or by name: cifar10, mnist, fashion-mnist, caltech256, gtzan, "
    "speech-commands."
)
PIPE_WIDTH = 10_000
"""Characters; tables take what they need of it."""
DATA_ROOT_HELP = "Folder with the files of cifar10, mnist and so on."


def finite(value: float | None) -> float | None:
    """Callback of numeric options, which read `inf` and `nan` as numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("give a finite number")
    return value


def given(context: typer.Context) -> dict[str, Any]:
    """The options that the user typed, by the names of the parameters."""
    return {
        name: value
        for name, value in sorted(context.params.items())
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


def plain_console() -> Console:
    """For text and tables as they are: as wide as the terminal, and without a limit into a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def main() -> None:
    """Entry point of the `edvit` command."""
    from edvit.cli import commands  # noqa: F401  (registers every command on `app`)

    run_app(app)


def run_app(command: typer.Typer) -> None:
    """Run a command line to its end: an `EdvitError` becomes one line on stderr and an exit code."""
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:  # it is where there is no standard output
                sys.stdout.flush()  # else what is wrong with it comes out when nothing can be said any more
    except EdvitError as error:
        print(f"edvit: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno not in (errno.EPIPE, *NO_ROOM):
            raise
        if error.errno in NO_ROOM:
            print(f"edvit: cannot write: {error.strerror}", file=sys.stderr)
        _drop_output()
        raise SystemExit(1) from None


def _drop_output() -> None:
    """What is left in the buffer of standard output goes nowhere, so that leaving does not fail on it again."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
