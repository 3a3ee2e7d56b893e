"""Greedy assignment, and the loop that prunes more until everything fits (ED-ViT, arXiv 2410.11650).

What is the paper's: sub-models in order of decreasing demand, each to the device with the most remaining energy
that can hold it, and a larger `h_p` where one fits nowhere. What is ours: a free device comes first, devices
tied in energy are told apart by who is done first, and who else is pruned when the sub-model in question cannot be.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from edvit.errors import ConfigError, InfeasibleError
from edvit.fleet import Device, Fleet
from edvit.plan.cost import Precision, model_cost
from edvit.plan.keep import format_keep, steps_below_one_head
from edvit.plan.plan import Demand, Placement, Plan, PlannedSubModel
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import AttentionMode

FUSION_HIDDEN = 256
ROUNDING = 1e-9
"""Share by which a sum of seconds may differ when it is added in another order."""


@dataclass
class _Load:
    """What one device has taken so far."""

    device: Device
    submodels: int = 0
    memory_bytes: int = 0
    busy_s: float = 0.0

    def seconds(self, demand: Demand) -> float:
        return demand.flops / (self.device.gflops * 1e9)

    def memory_short(self, demand: Demand) -> int:
        """Bytes missing to hold it; not above 0 where it fits."""
        return self.memory_bytes + demand.memory_bytes - self.device.memory_bytes

    def energy_short(self, demand: Demand) -> float:
        """Joules missing to run it; not above 0 where it fits."""
        if self.device.energy_j is None:
            return -math.inf
        return (self.busy_s + self.seconds(demand)) * self.device.watts - self.device.energy_j

    def fits(self, demand: Demand, slack: float = 0.0) -> bool:
        """Whether it fits; `slack` is a share of the energy limit by which sums in another order may differ."""
        allowed = slack * (self.device.energy_j or 0.0)
        return self.memory_short(demand) <= 0 and self.energy_short(demand) <= allowed

    def preference(self, demand: Demand) -> tuple[bool, float, float, int]:
        """Larger is better: free, most remaining energy, done first, most remaining memory."""
        limit = self.device.energy_j
        remaining_energy = math.inf if limit is None else limit - self.busy_s * self.device.watts
        remaining_memory = self.device.memory_bytes - self.memory_bytes
        return (self.submodels == 0, remaining_energy, -(self.busy_s + self.seconds(demand)), remaining_memory)

    def take(self, demand: Demand) -> None:
        self.submodels += 1
        self.memory_bytes += demand.memory_bytes
        self.busy_s += self.seconds(demand)


def place(submodels: Sequence[Demand], fleet: Fleet, *, kept: Placement = MappingProxyType({})) -> Placement:
    """Put each sub-model on a device, greedily; the same input gives the same answer.

    In order of decreasing demand (operations, then memory) each goes to a device that can hold it within its memory
    and its energy: a free one if there is one, then the one with the most remaining energy (no limit counts as
    infinite), then the one that would be done first, then the one with the most remaining memory, then fleet order.

    Args:
        kept: sub-models that stay on the devices they are on, whatever the limits.

    Raises:
        InfeasibleError: a sub-model fits on no device.
    """
    loads = [_Load(device) for device in fleet.devices]
    by_name = {load.device.name: load for load in loads}
    placement: dict[int, str] = {}
    for demand in submodels:
        if demand.submodel in kept:
            placement[demand.submodel] = kept[demand.submodel]
            by_name[kept[demand.submodel]].take(demand)
    loose = [demand for demand in submodels if demand.submodel not in kept]
    for demand in sorted(loose, key=_decreasing):
        able = [load for load in loads if load.fits(demand)]
        if not able:
            raise _infeasible(demand, loads)
        chosen = max(able, key=lambda load: load.preference(demand))
        chosen.take(demand)
        placement[demand.submodel] = chosen.device.name
    return placement


def mend(
    submodels: Sequence[Demand],
    fleet: Fleet,
    here: Sequence[Device],
    *,
    planned: Placement,
    homeless: Collection[int],
    moved: Placement,
) -> Placement:
    """Where the sub-models of devices that are gone go meanwhile; the same input gives the same answer.

    Nothing else moves. One that has a place among the devices that are here keeps it, and the others are placed as
    `place` does. One that fits nowhere is left out.

    Args:
        here: devices that take sub-models.
        planned: the plan's placement of every sub-model.
        homeless: sub-models whose device is gone.
        moved: where sub-models went before.

    Returns:
        sub-model id -> device, of the homeless ones that have a place.
    """
    names = {device.name for device in here}
    kept = {submodel: name for submodel, name in planned.items() if name in names and submodel not in homeless}
    kept |= {submodel: name for submodel, name in moved.items() if name in names and submodel in homeless}
    left = set(homeless) if here else set()
    while left:
        wanted = [demand for demand in submodels if demand.submodel in kept or demand.submodel in left]
        try:
            placement = place(wanted, fleet.model_copy(update={"devices": tuple(here)}), kept=kept)
        except InfeasibleError as error:
            left.discard(error.submodel)
            continue
        return {submodel: placement[submodel] for submodel in sorted(left)}
    return {}


def second_copies(
    submodels: Sequence[Demand], here: Sequence[Device], *, first: Placement, copies: Placement
) -> Placement:
    """Where second copies of sub-models go; the same input gives the same answer.

    A copy stays where it is while it may. The others are placed as `place` does, never on the device of the first
    copy, within what the first copies leave of memory and energy. One that fits nowhere is left out.

    Args:
        here: devices that take copies.
        first: the device of every sub-model's first copy; it need not be here.
        copies: where second copies went before.

    Returns:
        sub-model id -> device, of those that have a second copy.
    """
    loads = {device.name: _Load(device) for device in here}
    for demand in submodels:
        if first[demand.submodel] in loads:
            loads[first[demand.submodel]].take(demand)
    placement: dict[int, str] = {}
    by_demand = sorted(submodels, key=_decreasing)
    for demand in by_demand:
        name = copies.get(demand.submodel)
        load = None if name is None or name == first[demand.submodel] else loads.get(name)
        if load is not None and load.fits(demand, ROUNDING):
            load.take(demand)
            placement[demand.submodel] = load.device.name
    for demand in by_demand:
        able = [load for name, load in loads.items() if name != first[demand.submodel] and load.fits(demand)]
        if demand.submodel not in placement and able:
            chosen = max(able, key=lambda load: load.preference(demand))
            chosen.take(demand)
            placement[demand.submodel] = chosen.device.name
    return dict(sorted(placement.items()))


def _decreasing(demand: Demand) -> tuple[int, int, int]:
    return (-demand.flops, -demand.memory_bytes, demand.submodel)


def _infeasible(demand: Demand, loads: Sequence[_Load]) -> InfeasibleError:
    """Name the constraint: energy where some device has the memory, else memory; and the device that fails least."""
    roomy = [load for load in loads if load.memory_short(demand) <= 0]
    if roomy:
        nearest = min(roomy, key=lambda load: load.energy_short(demand))
        energy_short = nearest.energy_short(demand)
        need = nearest.seconds(demand) * nearest.device.watts
        lack = f"it takes {need:.3g} J, and {nearest.device.name}, the nearest to it, lacks {energy_short:.3g} J"
        return InfeasibleError(
            f"sub-model {demand.submodel} fits on no device: {lack}",
            submodel=demand.submodel,
            constraint="energy",
            shortfall=energy_short,
        )
    nearest = min(loads, key=lambda load: load.memory_short(demand))
    memory_short = nearest.memory_short(demand)
    lack = (
        f"it needs {demand.memory_bytes / 1e6:.3g} MB, and {nearest.device.name}, the roomiest, "
        f"lacks {memory_short / 1e6:.3g} MB"
    )
    return InfeasibleError(
        f"sub-model {demand.submodel} fits on no device: {lack}",
        submodel=demand.submodel,
        constraint="memory",
        shortfall=memory_short,
    )


def assign(
    base: AnyArchitecture,
    groups: Sequence[Sequence[int]],
    fleet: Fleet,
    *,
    heads_pruned: int | Fraction,
    mode: AttentionMode = "dims",
    rotated: bool = False,
    precision: Precision = "fp32",
    fusion_hidden: int = FUSION_HIDDEN,
) -> Plan:
    """Widths and a device for the sub-model of each class group, pruning more than asked only where it must.

    Every sub-model starts at `heads_pruned`. While one fits nowhere its `h_p` is raised by one; once it cannot rise,
    that of the sub-model with the largest demand is. Once none can, heads that are narrowed go on below one head's
    worth in the same way, down to the narrowest model there is; only then no assignment was found. So whether there
    is one does not depend on `heads_pruned`.

    Args:
        base: the base model.
        groups: class indices per sub-model, in the order of their ids.
        heads_pruned: `h_p` to start from, 0 and below h; whole where `mode` drops whole heads. Of a convolutional
            network in its `keep_steps`.
        rotated: sub-models are of the base's rotated form (`Architecture.rotated`), as pruning by subspace leaves it.
        precision: of the sub-models' weights.

    Raises:
        ConfigError: `heads_pruned` is out of range, or there is no group.
        InfeasibleError: it names the sub-model, the constraint and by how much it fails.
    """
    if not groups:
        raise ConfigError("nothing to place: give at least one class group")
    count = base.keep_steps
    if not 0 <= heads_pruned < count:
        raise ConfigError(f"cannot prune {heads_pruned} of {count} heads: give 0 to {count - 1}")
    whole = [heads_pruned + more for more in range(count) if heads_pruned + more < count]
    every = [*whole, *(steps_below_one_head(base, whole[-1]) if mode == "dims" else [])]
    form = base.rotated_form() if rotated else base
    shapes = {h_p: form.narrowed(h_p, mode).model_copy(update={"classes": 0}) for h_p in every}
    costs = {h_p: model_cost(shape, precision) for h_p, shape in shapes.items()}
    pruned = [heads_pruned] * len(groups)
    steps = whole
    while True:
        demands = [Demand(i, costs[h_p].peak_memory_bytes, costs[h_p].flops) for i, h_p in enumerate(pruned)]
        try:
            placement = place(demands, fleet)
            break
        except InfeasibleError as error:
            if _prune_more(pruned, error.submodel, steps):
                continue
            if steps[-1] == every[-1]:
                raise _exhausted(error, format_keep(count, every[-1]), mode) from None
            steps = every
    submodels = tuple(
        PlannedSubModel(
            id=i,
            classes=tuple(groups[i]),
            heads_pruned=h_p,
            architecture=shapes[h_p],
            cost=costs[h_p],
            device=placement[i],
        )
        for i, h_p in enumerate(pruned)
    )
    return Plan(base=base, mode=mode, fleet=fleet, submodels=submodels, fusion_hidden=fusion_hidden)


def _prune_more(pruned: list[int | Fraction], failed: int, steps: Sequence[int | Fraction]) -> bool:
    """Move one entry of `pruned` on to its next step: of the sub-model that failed, else of the least pruned one."""
    least = min(range(len(pruned)), key=lambda i: (pruned[i], -i))
    for submodel in (failed, least):
        if pruned[submodel] < steps[-1]:
            pruned[submodel] = steps[steps.index(pruned[submodel]) + 1]
            return True
    return False


def _exhausted(error: InfeasibleError, keep: str, mode: AttentionMode) -> InfeasibleError:
    """`error`, with what was tried and what is left to the user; `keep` is the least ratio."""
    limit = "memory_mb" if error.constraint == "memory" else "energy_j"
    narrow = "" if mode == "dims" else "narrow the heads (--attention dims), "
    return InfeasibleError(
        f"{error}, even at keep ratio {keep} for all, whatever --keep starts from; {narrow}raise {limit}, "
        "add devices, split into fewer groups, or take a smaller model or image size",
        submodel=error.submodel,
        constraint=error.constraint,
        shortfall=error.shortfall,
    )
