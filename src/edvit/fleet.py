"""The devices a bundle is placed on, and the links to them (`fleet.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edvit.errors import FleetError
from edvit.validation import NAME_PATTERN, first_problem

MOST_CHARACTERS = 1_000_000
"""A fleet.yaml has so many at most; a device takes some two hundred."""
MOST_DEPTH = 10
"""Lists and maps stand in each other so deep at most; a fleet needs four."""


class Link(BaseModel):
    """The network between the gateway and one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mbps: float = Field(default=100.0, gt=0)
    """Bandwidth, 10^6 bits per second."""
    rtt_ms: float = Field(default=0.5, ge=0)
    """Round-trip time, milliseconds."""


class Profile(BaseModel):
    """What a kind of device can do."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gflops: float = Field(gt=0)
    """Effective speed on a ViT, 10^9 floating-point operations per second (a multiply-add counts as two)."""
    watts: float = Field(gt=0)
    """Power drawn while it computes."""
    memory_mb: float = Field(gt=0)
    """Memory that models may use, 10^6 bytes."""


PROFILES: dict[str, Profile] = {
    # Effective speeds are estimates from public single-core GEMM figures, to be replaced by measured ones.
    "raspberry-pi-4b": Profile(gflops=12.0, watts=6.0, memory_mb=2000),
    "raspberry-pi-5": Profile(gflops=30.0, watts=8.0, memory_mb=4000),
    "jetson-orin-nano": Profile(gflops=60.0, watts=10.0, memory_mb=4000),
    "mini-pc": Profile(gflops=60.0, watts=15.0, memory_mb=8000),
    "local": Profile(gflops=40.0, watts=10.0, memory_mb=4000),
}


class Device(BaseModel):
    """One device of the fleet. What is left out comes from its profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=NAME_PATTERN)
    profile: str = "local"
    memory_mb: float = Field(gt=0)
    """Memory limit for all its sub-models together, 10^6 bytes."""
    energy_j: float | None = Field(default=None, gt=0)
    """Energy limit per inference, joules; None is no limit."""
    gflops: float = Field(gt=0)
    watts: float = Field(gt=0)
    link: Link = Link()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("profile", "local")
        profile = PROFILES.get(name) if isinstance(name, str) else None
        if profile is None:
            raise ValueError(f"unknown profile {name!r}; known: {', '.join(sorted(PROFILES))}")
        return {**profile.model_dump(), **values}

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_mb * 1_000_000)


class GatewaySpec(BaseModel):
    """The machine that fans out the input and fuses the features."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    uplink_mbps: float = Field(default=1000.0, gt=0)
    """Shared by all devices: N inputs leave through it."""


class Fleet(BaseModel):
    """A named set of devices. Immutable; device names are unique."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(pattern=NAME_PATTERN)
    gateway: GatewaySpec = GatewaySpec()
    devices: tuple[Device, ...] = Field(min_length=1)

    @field_validator("devices")
    @classmethod
    def _names_are_unique(cls, devices: tuple[Device, ...]) -> tuple[Device, ...]:
        names = [device.name for device in devices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"device name used twice: {', '.join(twice)}")
        return devices

    def device(self, name: str) -> Device:
        """The device of that name. Raises KeyError."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)


def local_fleet(size: int, name: str = "local") -> Fleet:
    """`size` equal devices `dev-1` ... on this machine.

    Raises:
        FleetError: fewer than one device.
    """
    if size < 1:
        raise FleetError(f"a fleet of {size} devices runs nothing: give at least 1")
    return Fleet(name=name, devices=tuple(Device.model_validate({"name": f"dev-{i + 1}"}) for i in range(size)))


def _check_depth(path: Path | str, text: str) -> None:
    """PyYAML takes seconds for thousands of nested lists. Raises FleetError, and what `yaml.parse` raises."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise FleetError(f"{path}: lists and maps are nested over {MOST_DEPTH} deep{_at_line(event.start_mark)}")


def _at_line(mark: Any) -> str:
    return "" if mark is None else f" at line {mark.line + 1}"


def load_fleet(path: Path | str) -> Fleet:
    """Read `fleet.yaml`.

    Raises:
        FleetError: the file is missing, not YAML, or describes no valid fleet; the message names the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:
            raise FleetError(f"{path}: has {len(text):,} characters, at most {MOST_CHARACTERS:,} are read")
        _check_depth(path, text)
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise FleetError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{path}: cannot be read ({type(error).__name__})") from None
    except yaml.YAMLError as error:
        raise FleetError(f"{path}: not valid YAML{_at_line(getattr(error, 'problem_mark', None))}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        # PyYAML lets these through from values that are not what their tag says, such as `!!bool x` or 2001-99-99.
        raise FleetError(f"{path}: a value is not what its tag says") from None
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"holds no keys but a {type(values).__name__}"
        raise FleetError(
            f"{path}: {found}: give a name and devices, such as {{name: shelf, devices: [{{name: pi-1}}]}}"
        )
    try:
        return Fleet.model_validate(values)
    except ValidationError as error:
        raise FleetError(f"{path}: {first_problem(error)}") from None
