"""`edvit build`: from training data to a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from edvit.builder.jobs.idle import sleep_while_waiting
from edvit.builder.options import COMMON, DATA, MACHINE, UNRECORDED, BuildOptions, Stage
from edvit.cli.console.loading import loading
from edvit.cli.fleet import FleetOptions
from edvit.errors import MissingExtraError


def build(
    *,
    out: Annotated[Path, COMMON, Parameter(alias="-o", help="Folder of the bundle.")],
    fleet: FleetOptions = FleetOptions(),
    options: Annotated[BuildOptions, Parameter(name="*")] = BuildOptions(),
    work: Annotated[
        Path | None, COMMON, Parameter(help="Folder where stages are kept for resuming; default: OUT-work.")
    ] = None,
    download: Annotated[bool, DATA, Parameter(help="Fetch the data set into --data-root.")] = False,
    force: Annotated[
        tuple[Stage, ...], MACHINE, Parameter(help="Redo this stage and what follows from it; may be given again.")
    ] = (),
) -> None:
    """Build a bundle: train, partition, prune, recover, export, fuse, measure. Run again to resume."""
    sleep_while_waiting()
    try:
        with loading():
            from edvit.builder.config import make_config
            from edvit.builder.jobs.progress import Reporter
            from edvit.builder.pipeline import build as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"edvit build needs {error.name}: pip install 'edvit[build]'") from None

    if download:
        from edvit.builder.download import download as fetch

        fetch(options.data, options.data_root)
    config = make_config(**options.given(), fleet=fleet.read())
    bundle, _ = run(
        config,
        out,
        work=work,
        force=frozenset(force),
        flags=recorded(options, fleet),
        command=("edvit", *sys.argv[1:]),
        report=Reporter(),
    )
    print(f"\nNext: edvit serve {bundle.path} --local")


def recorded(options: BuildOptions, fleet: FleetOptions) -> dict[str, Any]:
    """What the user typed, as JSON values; what does not change the result is left out."""
    typed = options.model_dump(mode="json", include=options.model_fields_set - UNRECORDED)
    chosen = {"fleet": str(fleet.fleet)} if fleet.fleet is not None else {"devices": fleet.devices}
    return dict(sorted({**typed, **chosen}.items()))
