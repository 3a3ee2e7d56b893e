"""When an image is taken for none of the classes."""

from __future__ import annotations

from dataclasses import dataclass

from edvit.bundle import Manifest
from edvit.errors import ConfigError


@dataclass(frozen=True)
class Rejection:
    """By a probability, or by the share of the validation images that may be taken for unknown; by neither, never.

    Args:
        below: an image whose most probable class is less probable than this is unknown.
        rate: the same, where that probability is looked up in each bundle: so large a share of its validation images
            is unknown.

    Raises:
        ConfigError: both are given, or one of them is not between 0 and 1.
    """

    below: float | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.below is not None and self.rate is not None:
            raise ConfigError("--unknown-below and --unknown-rate: give one of them")
        for option, value in (("--unknown-below", self.below), ("--unknown-rate", self.rate)):
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{option} must be between 0 and 1, not {value:g}")

    def probability(self, manifest: Manifest) -> float:
        """Below which an image is unknown, by a bundle; 0 for none.

        Raises:
            ConfigError: the bundle does not know the rate.
        """
        if self.rate is not None:
            return manifest.unknown_below(self.rate)
        return self.below or 0.0


NEVER = Rejection()
