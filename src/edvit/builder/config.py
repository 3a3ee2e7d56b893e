"""What a build is asked to do, on which fleet, with every default resolved."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from edvit.builder.options import BuildOptions, ChannelCriterion, Fit, Pruner
from edvit.errors import ConfigError
from edvit.fleet import Fleet
from edvit.shape.conv import is_convnet
from edvit.validation import first_problem

LONG_RECOVERY = 16
"""Epochs from which sub-models learn more from images that are changed so much that only the base model can say what
they show."""
RECOVER_LR: dict[Pruner, float] = {"subspace": 1e-3, "channels": 5e-3}
"""What pruning left is worth more by subspace, and a large step undoes it."""


class BuildConfig(BuildOptions):
    """Settings of a build: its options, and the fleet that it is for."""

    fleet: Fleet

    @property
    def resolved_groups(self) -> int:
        return self.groups or len(self.fleet.devices)

    @property
    def resolved_criterion(self) -> ChannelCriterion:
        return self.criterion or ("apoz" if is_convnet(self.model) else "fisher-kl")

    @property
    def resolved_widths(self) -> Fit:
        return self.widths or ("fitted" if self.rotated and self.attention == "dims" else "uniform")

    @property
    def resolved_recover_lr(self) -> float:
        return self.recover_lr or RECOVER_LR[self.resolved_prune]

    @property
    def training_precision(self) -> dict[str, bool]:
        """What of it a stage depends on: `amp` where it was asked for.

        Where it follows from the machine it is one of the machine's roundings, as the number of threads is, and no
        reason to train again.
        """
        return {} if self.amp is None else {"amp": self.amp}

    @property
    def resolved_views(self) -> int:
        return self.views or max(1, min(20, self.recover_epochs))

    @property
    def resolved_mix(self) -> float:
        return self.mix if self.mix is not None else 0.5 if self.recover_epochs >= LONG_RECOVERY else 0.0

    @property
    def resolved_strength(self) -> float:
        return self.strength if self.strength is not None else 1.75 if self.recover_epochs >= LONG_RECOVERY else 1.0


def make_config(**settings: Any) -> BuildConfig:
    """A `BuildConfig` from keyword arguments.

    Raises:
        ConfigError: a setting is unknown or out of range; the message names it.
    """
    try:
        return BuildConfig(**settings)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
