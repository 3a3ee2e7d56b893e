"""Cutting a convolutional network to the filters that are kept: tensors only, and always into a new network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edvit.builder.conv import network
from edvit.builder.conv.apoz import Activity
from edvit.builder.conv.network import ConvNet
from edvit.errors import BuildError
from edvit.plan.cost import Cost, model_cost
from edvit.shape.conv import ConvArchitecture, FilterWidths
from edvit.shape.vit import WIDTH_MULTIPLE

THRESHOLD_STEP = 0.005


def active_widths(base: ConvArchitecture, scores: Activity, budget: FilterWidths) -> FilterWidths:
    """As many filters in each set as are more active than one threshold, raised by a step until all is within budget.

    EC-SNN's outer loop (IJCAI 2024), from keeping everything. Widths are rounded down to `WIDTH_MULTIPLE`; where no
    threshold helps, the budget itself.

    Args:
        base: the whole network.
        scores: of its filters.
        budget: no more parameters, operations and peak memory than a network of these widths has, without a head: a
            plan made for those stays valid.
    """
    limit = _cost(base, budget)
    for step in range(int(1 / THRESHOLD_STEP) + 1):
        kept = [int((values > step * THRESHOLD_STEP).sum()) for values in scores.sets]
        rounded = tuple(max(WIDTH_MULTIPLE, count // WIDTH_MULTIPLE * WIDTH_MULTIPLE) for count in kept)
        widths = FilterWidths(filters=tuple(map(min, rounded, base.widths.filters)))
        if _cost(base, widths).within(limit):
            return widths
    return budget


def _cost(base: ConvArchitecture, widths: FilterWidths) -> Cost:
    return model_cost(base.model_copy(update={"widths": widths, "classes": 0}))


def select(scores: Activity, base: ConvArchitecture, target: FilterWidths) -> tuple[Tensor, ...]:
    """The most active filters of each set, int64, ascending. Equal scores: the lower index is kept.

    Raises:
        BuildError: a target width is larger than the base's, or the scores are of another network.
    """
    there = base.widths.filters
    if tuple(len(values) for values in scores.sets) != there:
        raise BuildError("the scores are of a network of other widths; score the base model again")
    if len(target.filters) != len(there) or any(map(int.__gt__, target.filters, there)):
        raise BuildError(f"cannot keep {list(target.filters)} filters of {list(there)}")
    return tuple(
        torch.sort(torch.argsort(values, descending=True, stable=True)[:count]).values
        for values, count in zip(scores.sets, target.filters, strict=True)
    )


def cut(model: ConvNet, kept: Sequence[Tensor]) -> ConvNet:
    """A new network with the kept filters alone; `model` is left as it is and shares no memory with it.

    Args:
        kept: of each set, which filters.
    """
    base = model.architecture
    widths = FilterWidths(filters=tuple(len(rows) for rows in kept))
    pruned = network.create(base.model_copy(update={"widths": widths}))
    state = dict(model.state_dict())
    for conv in base.convs:
        rows = kept[conv.writes]
        weight = state[f"{conv.conv}.weight"].index_select(0, rows)
        state[f"{conv.conv}.weight"] = weight if conv.reads is None else weight.index_select(1, kept[conv.reads])
        vectors = [f"{conv.norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        for name in (*vectors, *((f"{conv.conv}.bias",) if conv.bias else ())):
            state[name] = state[name].index_select(0, rows)
    if base.classes:
        state["head.weight"] = state["head.weight"].index_select(1, kept[base.feature])
    pruned.load_state_dict(state, strict=True)
    return pruned.train(model.training)
