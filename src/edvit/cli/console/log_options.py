"""The options by which a command that runs for long says what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from edvit.runtime.logs import LogFormat, LogLevel


@Parameter(name="*")
@dataclass(frozen=True)
class LogOptions:
    """Names and defaults are the same in every command."""

    log_format: Annotated[
        LogFormat,
        Parameter(help="Of what is said: text for people, or json, one event a line on standard error."),
    ] = "text"
    log_level: Annotated[
        LogLevel | None, Parameter(help="The least that is logged. Default: warning in text, info in json.")
    ] = None
