"""What the package offers beyond its parts: building a bundle with one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edvit.bundle import Bundle
from edvit.errors import MissingExtraError
from edvit.fleet import Fleet


def build(
    *,
    data: str = "digits",
    fleet: Fleet,
    out: Path | str,
    work: Path | str | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Bundle:
    """Build a bundle at `out`, as `edvit build` does, and return it verified.

    Args:
        data: data spec, see `edvit.inputs.datasets`.
        fleet: the devices; `local_fleet(n)` for n equal ones.
        out: the bundle's folder; replaced if it holds a bundle.
        work: where stages are kept for resuming; `OUT-work` by default.
        quiet: print nothing.
        settings: any other field of `edvit.builder.config.BuildConfig`.

    Raises:
        MissingExtraError: the build world is not installed.
        EdvitError: the input cannot be used, the fleet cannot hold the sub-models, or a stage failed.
    """
    from edvit.builder.jobs.idle import sleep_while_waiting

    sleep_while_waiting()
    try:
        from edvit.builder.config import make_config
        from edvit.builder.jobs.progress import Reporter
        from edvit.builder.options import UNRECORDED
        from edvit.builder.pipeline import build as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"building needs {error.name}: pip install 'edvit[build]'") from None
    flags = {name: value for name, value in {"data": data, **settings}.items() if name not in UNRECORDED}
    bundle, _ = run(
        make_config(data=data, fleet=fleet, **settings),
        Path(out),
        work=None if work is None else Path(work),
        flags={name: str(value) if isinstance(value, Path) else value for name, value in flags.items()},
        report=Reporter(quiet=quiet),
    )
    return bundle
