"""The command line: one file per command group, imports of the build world only inside its commands."""

from __future__ import annotations

import math
import sys

import typer

from edvit.errors import EdvitError

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
DATA_ROOT_HELP = "Folder with the files of cifar10, mnist and so on."


def finite(value: float | None) -> float | None:
    """Callback of numeric options, which read `inf` and `nan` as numbers."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("give a finite number")
    return value


def main() -> None:
    """Entry point of the `edvit` command: an `EdvitError` becomes one line on stderr and an exit code."""
    from edvit.cli import commands  # noqa: F401  (registers every command on `app`)

    try:
        app()
    except EdvitError as error:
        print(f"edvit: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
