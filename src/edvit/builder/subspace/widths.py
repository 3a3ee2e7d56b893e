"""Where a sub-model should be wide, when its cost is given: its stream, the heads and the FFN of which block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.jobs.checkpoint import Checkpoint
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.cut import CutGroup, Options, bin_weights, group_rows
from edvit.builder.subspace.losses import Floats, Ints, Losses, estimate_losses
from edvit.builder.subspace.statistics import Sums
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError
from edvit.plan.cost import model_cost, peak_activation_bytes
from edvit.shape.vit import WIDTH_MULTIPLE, Architecture, BlockWidths, Widths


def fit_group(
    base: VisionTransformer,
    sums: Sums,
    calibration: Calibration,
    group: CutGroup,
    options: Options,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CutGroup:
    """The group with the widths at which it loses least, at no larger cost than those it came with.

    Args:
        checkpoint: as for `losses.estimate_losses`.
        progress: called with images done, and of how many.

    The rest, and errors, are as for `cut.cut`, which takes the groups that this returns.
    """
    rows, weights = group_rows(calibration.labels, group.classes, options, seed)
    of_group = sums.weighted(bin_weights(sums, group.bins or group.classes, options.foreign))
    lost = estimate_losses(
        base,
        of_group,
        calibration,
        rows,
        weights,
        fisher=options.fisher,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    return replace(group, widths=fit_widths(backbone.describe(base), lost, group.widths))


def fit_widths(architecture: Architecture, losses: Losses, reference: Widths) -> Widths:
    """The widths of least estimated loss that cost no more than the reference's: a plan made for those stays valid.

    Parameters, operations and peak memory (`plan.cost.model_cost`, without a head) are each at most the reference's.
    Every block keeps all heads. Widths are multiples of `WIDTH_MULTIPLE`, or the base's own.

    At a given `dim`, what a block costs is linear in its head width and in its hidden units, at one price in all
    blocks. So for every total it is best to widen where the loss falls fastest, and a walk through the totals finds
    the best pair: exactly, for convex curves; others are replaced by their lower convex hull. Only peak memory depends
    on the largest block: the walk is repeated for every limit on that.

    Args:
        architecture: of the converted base model.
        losses: of a class group.
        reference: the budget, e.g. `pruned_widths` at the keep ratio that the plan placed on a device.

    Raises:
        BuildError: the base is not converted, or the losses are NaN, infinite or of other widths.
        ConfigError: the reference has other heads or blocks than the base, or is too narrow for any choice.
    """
    _check(architecture, losses, reference)
    budget = _Budget(architecture.model_copy(update={"classes": 0}), reference)
    stream = _falling(losses.stream)
    heads = cache(lambda widest: _ladder(losses.heads, widest))
    units = cache(lambda widest: _ladder(losses.units, widest))
    least, best = math.inf, None
    for dim in reversed(_levels(architecture.widths.dim)):
        if stream[dim] >= least:
            break  # so is that of every narrower stream
        for activations, head_dim, hidden in _activation_limits(architecture, dim):
            of_heads, of_units = heads(head_dim), units(hidden)
            most = budget.most_steps(dim, activations, of_heads, of_units)
            loss = np.where(most < 0, math.inf, stream[dim] + of_heads.loss + of_units.loss[most])
            for step in np.lexsort((-np.arange(len(loss)), loss)).tolist():  # of equal losses the widest first
                if loss[step] >= least:
                    break
                per_head = of_heads.widths(step)
                count = budget.last_step(dim, per_head, of_units, int(most[step]))
                if count >= 0 and (total := stream[dim] + of_heads.loss[step] + of_units.loss[count]) < least:
                    least, best = float(total), _with(architecture, dim, per_head, of_units.widths(count)).widths
    if best is None:
        raise ConfigError(f"no widths of at least {WIDTH_MULTIPLE} cost as little as the reference's")
    return best


@dataclass(frozen=True)
class _Ladder:
    """The order in which one stage's widths grow, all blocks together: where the loss falls fastest first."""

    narrowest: int
    block: Ints
    """`[steps]`, which grows."""
    added: Ints
    """`[steps]`, by how much."""
    loss: Floats
    """`[steps + 1]`, of all blocks, before the first step and after each."""
    blocks: int

    @property
    def grown(self) -> Ints:
        """`[steps + 1]`, by how much all blocks together."""
        return np.concatenate([[0], np.cumsum(self.added)])

    def widths(self, steps: int) -> Ints:
        """The width of every block after so many steps, `[blocks]`."""
        grown = np.bincount(self.block[:steps], weights=self.added[:steps], minlength=self.blocks)
        return self.narrowest + grown.astype(np.int64)


def _ladder(curves: Floats, widest: int) -> _Ladder:
    """The ladder of curves `[blocks, width + 1]`, no block wider than `widest`."""
    levels = np.array([level for level in _levels(curves.shape[1] - 1) if level <= widest])
    added = np.diff(levels)
    hulls = np.stack([_hull(levels, _falling(curve)[levels]) for curve in curves])
    fall = -np.diff(hulls, axis=1)
    rate = np.minimum.accumulate(fall / added, axis=1)  # rounding must not put a block's steps out of order
    order = np.argsort(-rate.ravel(), kind="stable")
    # Summed from the end, so that the loss of the whole is exactly 0.
    rest = np.concatenate([np.cumsum(fall.ravel()[order][::-1])[::-1], [0.0]])
    return _Ladder(
        narrowest=int(levels[0]),
        block=np.repeat(np.arange(len(curves)), len(added))[order],
        added=np.tile(added, len(curves))[order],
        loss=hulls[:, -1].sum() + rest,
        blocks=len(curves),
    )


def _hull(x: Ints, y: Floats) -> Floats:
    """The lower convex hull of `y` over ascending `x`, at every `x`."""
    corners: list[int] = []
    for i in range(len(x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break  # the slope rises at b
            corners.pop()
        corners.append(i)
    hull: Floats = np.interp(x, x[corners], y[corners])
    return hull


def _falling(curve: Floats) -> Floats:
    """The curve, raised where a larger width is estimated to lose more: noise, which must not look like a gain."""
    return np.maximum.accumulate(curve[::-1])[::-1]


class _Budget:
    """What the reference costs."""

    def __init__(self, architecture: Architecture, reference: Widths) -> None:
        self.architecture = architecture
        self.cost = model_cost(architecture.model_copy(update={"widths": reference}))

    def most_steps(self, dim: int, activations: int, heads: _Ladder, units: _Ladder) -> Ints:
        """For every number of steps in `heads` the most steps in `units`, -1 for none.

        Args:
            dim: of the stream.
            activations: bytes that no choice's activations pass.
            heads: of all blocks.
            units: of all blocks.
        """
        narrowest = np.full(heads.blocks, heads.narrowest), np.full(units.blocks, units.narrowest)
        first = np.eye(1, heads.blocks, dtype=np.int64)[0]
        least, of_heads, of_units = (
            model_cost(_with(self.architecture, dim, narrowest[0] + head, narrowest[1] + unit))
            for head, unit in ((0 * first, 0 * first), (first, 0 * first), (0 * first, first))
        )
        weights = (self.cost.peak_memory_bytes - activations) // (self.cost.weight_bytes // self.cost.params)
        room = np.full(len(heads.loss), np.iinfo(np.int64).max)
        for limit, base, head, unit in (
            (min(self.cost.params, weights), least.params, of_heads.params, of_units.params),
            (self.cost.flops, least.flops, of_heads.flops, of_units.flops),
        ):
            room = np.minimum(room, (limit - base - (head - base) * heads.grown) // (unit - base))
        steps: Ints = np.searchsorted(units.grown, room, side="right") - 1
        return steps

    def last_step(self, dim: int, heads: Ints, units: _Ladder, most: int) -> int:
        """The most steps in `units`, up to `most`, that cost no more; -1 for none."""
        low, high = -1, most + 1
        middle = most  # it is nearly always the answer
        while high - low > 1:
            low, high = (middle, high) if self._holds(dim, heads, units.widths(middle)) else (low, middle)
            middle = (low + high) // 2
        return low

    def _holds(self, dim: int, heads: Ints, units: Ints) -> bool:
        return model_cost(_with(self.architecture, dim, heads, units)).within(self.cost)


def _activation_limits(architecture: Architecture, dim: int) -> list[tuple[int, int, int]]:
    """Bytes, and the widest head and hidden layer whose activations they hold; the largest first."""
    width = architecture.widths.blocks[0]
    head_dims, hiddens = _levels(width.head_dim), _levels(width.hidden)

    def size(head_dim: int, hidden: int) -> int:
        return peak_activation_bytes(_with(architecture, dim, np.array([head_dim]), np.array([hidden])))

    of_heads = [size(head_dim, hiddens[0]) for head_dim in head_dims]
    of_units = [size(head_dims[0], hidden) for hidden in hiddens]
    return [
        (
            limit,
            max(w for w, there in zip(head_dims, of_heads, strict=True) if there <= limit),
            max(w for w, there in zip(hiddens, of_units, strict=True) if there <= limit),
        )
        for limit in sorted({*of_heads, *of_units}, reverse=True)
    ]


def _with(architecture: Architecture, dim: int, heads: Ints, units: Ints) -> Architecture:
    """With these widths, `heads` and `units` `[blocks]`."""
    blocks = tuple(
        BlockWidths(heads=architecture.heads, head_dim=head_dim, hidden=hidden)
        for head_dim, hidden in zip(heads.tolist(), units.tolist(), strict=True)
    )
    return architecture.model_copy(update={"widths": Widths(dim=dim, blocks=blocks)})


def _levels(width: int) -> list[int]:
    """Widths to choose from, ascending."""
    return [*range(WIDTH_MULTIPLE, width, WIDTH_MULTIPLE), width]


def _check(architecture: Architecture, losses: Losses, reference: Widths) -> None:
    if not architecture.rotated:
        raise BuildError("widths are fitted to a converted base model; call rms.to_rms first")
    base = architecture.widths
    blocks, width = len(base.blocks), base.blocks[0]
    shapes = {"stream": (base.dim + 1,), "heads": (blocks, width.head_dim + 1), "units": (blocks, width.hidden + 1)}
    for name, shape in shapes.items():
        curve = getattr(losses, name)
        if curve.shape != shape:
            raise BuildError(f"losses of {name}: {list(curve.shape)} do not fit the base's {list(shape)}")
        if not np.isfinite(curve).all():
            raise BuildError(f"losses of {name} are NaN or infinite")
    if [block.heads for block in reference.blocks] != [block.heads for block in base.blocks]:
        raise ConfigError("widths are fitted with all heads in all blocks; the reference has others")
