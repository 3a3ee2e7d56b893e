"""The two options that say which fleet a plan or a build is for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from edvit.builder.options import COMMON
from edvit.cli import PositiveInt
from edvit.errors import ConfigError
from edvit.fleet import Fleet, load_fleet, local_fleet


@Parameter(name="*")
@dataclass(frozen=True)
class FleetOptions:
    """One of them has to be given."""

    fleet: Annotated[Path | None, COMMON, Parameter(help="fleet.yaml that describes the devices.")] = None
    devices: Annotated[PositiveInt | None, COMMON, Parameter(help="Number of equal devices, in place of --fleet.")] = (
        None
    )

    def read(self) -> Fleet:
        """The fleet.

        Raises:
            ConfigError: not exactly one option was given.
            FleetError: the file is no fleet.
        """
        if self.fleet is not None and self.devices is None:
            return load_fleet(self.fleet)
        if self.devices is not None and self.fleet is None:
            return local_fleet(self.devices)
        raise ConfigError("give either --fleet or --devices: the plan needs to know what it runs on")
