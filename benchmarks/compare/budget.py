"""The gentlest keep ratio at which a sub-model fits on its device."""

from __future__ import annotations

from fractions import Fraction

from edvit.errors import ConfigError
from edvit.plan.cost import model_cost
from edvit.shape.any import AnyArchitecture

FINENESS = 8
"""Keep ratios tried for each head, or each of a convolutional network's steps."""


def keep_within(base: AnyArchitecture, budget_bytes: float, *, rotated: bool) -> Fraction:
    """The largest keep ratio whose sub-model has no more bytes of fp32 weights than `budget_bytes`.

    Args:
        base: the whole model.
        rotated: sub-models are of its rotated form, as pruning by subspace leaves it.

    Raises:
        ConfigError: the smallest one has more; the message says how many.
    """
    form = base.rotated_form() if rotated else base
    count = base.keep_steps * FINENESS
    for kept in range(count, 0, -1):
        keep = Fraction(kept, count)
        narrow = form.narrowed(base.keep_steps * (1 - keep)).model_copy(update={"classes": 0})
        size = model_cost(narrow).weight_bytes
        if size <= budget_bytes:
            return keep
    raise ConfigError(
        f"a budget of {budget_bytes / 1e6:.3g} MB a device is too little for {base.name}: "
        f"its smallest sub-model takes {size / 1e6:.3g} MB"
    )
