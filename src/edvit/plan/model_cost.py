"""What a model costs, of whichever family it is."""

from __future__ import annotations

from edvit.plan.conv_cost import conv_cost
from edvit.plan.cost import Cost, vit_cost
from edvit.shape.conv import AnyArchitecture, ConvArchitecture


def model_cost(architecture: AnyArchitecture, bytes_per_param: int = 4) -> Cost:
    """As `vit_cost` or `conv_cost`."""
    if isinstance(architecture, ConvArchitecture):
        return conv_cost(architecture, bytes_per_param)
    return vit_cost(architecture, bytes_per_param)
