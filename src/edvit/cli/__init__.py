"""The command line: one file per command, imports of the build world only inside its commands."""

from __future__ import annotations

import errno
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from pydantic import ValidationError

from edvit import __version__
from edvit.cli.console.output import lose_what_cannot_be_written
from edvit.errors import NO_ROOM, ConfigError, EdvitError
from edvit.validation import first_problem

if TYPE_CHECKING:
    from rich.console import Console

HOW = Parameter(negative=(), show_default=lambda value: None if value is False or value == () else value)
"""How every command's options are made: a flag has no `--no-` form, unless it says so, and `--help` shows defaults."""

app = App(
    name="edvit",
    help="Split a Vision Transformer into small class-specific models that run in parallel on edge devices.",
    help_format="plaintext",
    version=__version__,
    default_parameter=HOW,
)
PositiveInt = Annotated[int, Parameter(validator=Number(gte=1))]
NaturalInt = Annotated[int, Parameter(validator=Number(gte=0))]
Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
Share = Annotated[float, Parameter(validator=Number(gt=0, lt=1))]
PositiveFloat = Annotated[float, Parameter(validator=Number(gt=0, lt=math.inf))]
Json = Annotated[bool, Parameter(name="--json")]

PIPE_WIDTH = 10_000
"""Characters; tables take what they need of it."""


def plain_console() -> Console:
    """For text and tables as they are: as wide as the terminal, and without a limit into a file or a pipe."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def main() -> None:
    """Entry point of the `edvit` command."""
    if sys.argv[1:2] in (["serve"], ["device"]):
        lose_what_cannot_be_written()
    if sys.argv[1:2] == ["device"]:  # a device has little memory: what other commands import stays away
        from edvit.cli.device import device

        if "device" not in app:
            app.command(device)
    else:
        import edvit.cli.commands  # noqa: F401 - it registers every command
    run_app(app)


def run_app(command: App) -> None:
    """Run a command line to its end: what the user did wrong is one line on stderr and an exit code.

    A command returns its exit code, or None for 0.
    """
    try:
        try:
            code = command(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            raise ConfigError(usage_problem(error)) from None
        finally:
            if sys.stdout is not None:  # it is where there is no standard output
                sys.stdout.flush()  # else what is wrong with it comes out when nothing can be said any more
        raise SystemExit(code or 0)
    except EdvitError as error:
        _say(error)
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


def _say(error: EdvitError) -> None:
    import logging

    from edvit.runtime.logs import event, is_json

    if is_json():
        event(logging.getLogger(__name__), logging.ERROR, str(error), code=error.code)
    else:
        print(f"edvit: {error}", file=sys.stderr)


def usage_problem(error: CycloptsError) -> str:
    """What is wrong with the words that were typed, in one line that names the option as it is typed."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        options = error.argument.children if error.argument is not None else []
        return first_problem(cause, names={option.keys[-1]: option.name for option in options if option.keys})
    return " ".join(str(error).split())


def _drop_output() -> None:
    """What is left in the buffer of standard output goes nowhere, so that leaving does not fail on it again."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
