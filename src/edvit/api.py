"""What the package offers beyond its parts: building a bundle with one call."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, get_origin

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
        settings: any other field of `edvit.builder.config.BuildConfig`. `keep` may be a number as well, and an option
            that takes several values may be given one alone.

    Raises:
        MissingExtraError: the build world is not installed.
        EdvitError: the input cannot be used, the fleet cannot hold the sub-models, or a stage failed.
    """
    from edvit.builder.jobs.idle import sleep_while_waiting

    sleep_while_waiting()
    try:
        from edvit.builder.config import BuildConfig, make_config
        from edvit.builder.jobs.progress import Reporter
        from edvit.builder.options import UNRECORDED
        from edvit.builder.pipeline import build as run
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"building needs {error.name}: pip install 'edvit[build]'") from None
    settings = {
        name: _as_on_command_line(name, value, BuildConfig.model_fields.get(name)) for name, value in settings.items()
    }
    flags = {name: value for name, value in {"data": data, **settings}.items() if name not in UNRECORDED}
    bundle, _ = run(
        make_config(data=data, fleet=fleet, **settings),
        Path(out),
        work=None if work is None else Path(work),
        flags={name: str(value) if isinstance(value, Path) else value for name, value in flags.items()},
        report=Reporter(quiet=quiet),
    )
    return bundle


def _as_on_command_line(name: str, value: Any, field: Any) -> Any:
    """A setting as its option has it: a keep ratio as text, a single value of several as a tuple."""
    if name == "keep" and isinstance(value, int | float | Fraction):
        return str(value)
    several = field is not None and get_origin(field.annotation) is tuple
    return (value,) if several and isinstance(value, str) else value
