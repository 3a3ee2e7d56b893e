"""The one place where a plan is made, before anything is trained: class groups, widths and devices."""

from __future__ import annotations

from edvit.fleet import Fleet
from edvit.plan.cost import Precision
from edvit.plan.greedy import assign
from edvit.plan.keep import heads_pruned_for
from edvit.plan.partition import partition
from edvit.plan.plan import Plan
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import AttentionMode


def make_plan(
    base: AnyArchitecture,
    fleet: Fleet,
    *,
    groups: int | None,
    keep: str | None,
    attention: AttentionMode,
    rotated: bool,
    seed: int,
    precision: Precision = "fp32",
) -> Plan:
    """Partition the classes, prune each sub-model to the keep ratio or below it, and assign each to a device.

    Args:
        base: the whole model, with an output for each class.
        groups: number of class groups; None is one per device of the fleet.
        keep: keep ratio to start from, such as `2/12`; None is about a third.
        rotated: whether sub-models are of the base's rotated form, as pruning by subspace leaves them.
        seed: draws the class groups.
        precision: of the sub-models' weights, which decides how much memory they take.

    Raises:
        ConfigError: `keep` is no keep ratio.
        InfeasibleError: the fleet cannot hold the sub-models however much is pruned.
    """
    return assign(
        base,
        partition(base.classes, groups or len(fleet.devices), seed),
        fleet,
        heads_pruned=heads_pruned_for(keep, base.keep_steps, attention),
        mode=attention,
        rotated=rotated,
        precision=precision,
    )
