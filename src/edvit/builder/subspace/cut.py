"""From a base model to narrow sub-models without a gradient step: rotate, cut, refit, half a block at a time.

Groups are cut together, so one pass of the base model serves them all. At every moment only one state of the stream is
kept, the base's and each sub-model's: `state_bytes`. As many groups are cut together as stay below `STATE_LIMIT_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.jobs.checkpoint import Checkpoint, State
from edvit.builder.subspace import forward
from edvit.builder.subspace.calibration import Calibration
from edvit.builder.subspace.group import Cutting, Options, narrow
from edvit.builder.subspace.statistics import Sums
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError, DataError
from edvit.shape.vit import Architecture, Widths

__all__ = ["Cut", "CutGroup", "Options", "cut", "largest_state_bytes", "state_bytes"]

STATE_LIMIT_BYTES = 2 * 1024**3
"""Memory for the streams that are kept at a time. `largest_state_bytes` tells beforehand where one group passes it."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CutGroup:
    """What one sub-model is to be.

    Attributes:
        classes: the class group.
        widths: at most the base's, in every block.
        bins: the bins of the statistics that are the group's own; the classes by default.
    """

    classes: tuple[int, ...]
    widths: Widths
    bins: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cut:
    """A sub-model and how it stands to the base.

    Attributes:
        model: rotated, with a head over all classes, in evaluation mode.
        rotation: `Q`, float32 `[base dim, dim]`, orthonormal columns. The stream after any block of `model` stands in
            for that of the converted base times `Q`; so does each vector of the feature, for the base's.
        energy: share of the base's normalised stream that lies in the kept directions, for this group, 0 to 1.
        after_attention: per block, the share of the variance of the base's stream times `Q` that the sub-model's stream
            explains after attention, on the calibration images, at most 1.
        after_ffn: as `after_attention`, after the FFN.
    """

    model: VisionTransformer
    rotation: Tensor
    energy: float
    after_attention: tuple[float, ...]
    after_ffn: tuple[float, ...]

    def state(self) -> State:
        """For a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "rotation": self.rotation,
            "energy": self.energy,
            "after_attention": self.after_attention,
            "after_ffn": self.after_ffn,
        }

    @classmethod
    def of_state(cls, state: State, base: VisionTransformer, widths: Widths) -> Cut:
        """What `state` was taken from."""
        model = narrow(base, widths)
        model.load_state_dict(state["model"])
        return cls(model, **{name: value for name, value in state.items() if name != "model"})


@torch.no_grad()
def cut(
    base: VisionTransformer,
    sums: Sums,
    calibration: Calibration,
    groups: Sequence[CutGroup],
    options: Options | None = None,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cut]:
    """Cut the base model once for each class group.

    Args:
        base: what `rms.to_rms` returned.
        sums: what `statistics.collect` returned for `base`.
        calibration: labelled images to refit to; with `Options` that refit nothing, none are run.
        groups: class groups and widths.
        options: what to do; each step can be switched off.
        seed: of the draw of foreign images.
        checkpoint: keeps the cuts and streams so far; the result is the same to the last bit.
        progress: called with half-blocks done, and of how many.

    Raises:
        BuildError: the base is not converted, or activations are NaN or infinite.
        ConfigError: a width is larger than the base's.
        DataError: a class of a group has no calibration images, or they are not of the base's shape.
    """
    options = options or Options()
    architecture = backbone.describe(base)
    if not architecture.rotated:
        raise BuildError("only a converted base model can be cut; call rms.to_rms first")
    calibration.check(architecture.channels, architecture.image_size)
    if options.fisher is not None and sums.gradient.shape[-1] == 0:
        raise ConfigError("these are statistics without gradients: no Fisher-weighted rotation")
    for group in groups:
        _check_widths(group.widths, architecture.widths)
    chosen = [_Chosen(group, *group_rows(calibration.labels, group.classes, options, seed)) for group in groups]
    chunks = _chunks(architecture, chosen)
    state = None if checkpoint is None else checkpoint.load()
    cuts: list[Cut] = []
    if state is not None:
        cuts = [Cut.of_state(made, base, group.widths) for made, group in zip(state["cuts"], groups, strict=False)]
    halves = 2 * len(base.blocks)
    for index, (together, used) in enumerate(chunks):
        if sum(len(chunk) for chunk, _ in chunks[: index + 1]) <= len(cuts):
            continue
        begun = None if state is None else state["begun"]
        state = None
        if begun is not None:
            progress(index * halves + begun["half"], len(chunks) * halves)
        keep = _Keeper(checkpoint, progress, tuple(cuts), index * halves, len(chunks) * halves).keep
        cuts += _cut_together(base, sums, calibration, together, used=used, options=options, begun=begun, keep=keep)
    return cuts


@dataclass(frozen=True)
class _Chosen:
    """A group and the calibration images it is refitted to, as `group_rows` draws them."""

    group: CutGroup
    rows: Ints
    weights: Tensor


@dataclass(frozen=True)
class _Keeper:
    """Keeps the state of a chunk.

    Attributes:
        checkpoint: where, if anywhere.
        progress: called with half-blocks done, and of how many.
        cuts: that earlier chunks left.
        before: half-blocks of these.
        total: half-blocks of all chunks.
    """

    checkpoint: Checkpoint | None
    progress: Callable[[int, int], None]
    cuts: Sequence[Cut]
    before: int
    total: int

    def keep(self, half: int, state: State) -> None:
        """So many half-blocks of the chunk are done."""
        done = self.before + half
        self.progress(done, self.total)
        if self.checkpoint is not None and self.checkpoint.due:
            made = {"cuts": [one.state() for one in self.cuts], "begun": {"half": half, **state}}
            self.checkpoint.save(made, done, self.total)


def _chunks(architecture: Architecture, chosen: Sequence[_Chosen]) -> list[tuple[list[_Chosen], Ints]]:
    """Which groups are cut together, and over which images the base model runs with them.

    Over those of all groups where their streams fit beside each sub-model's: its batches, and with them every rounding,
    are then the same however many groups are cut together. Else over the chunk's own.
    """
    every = _images_of(chosen)
    shared = all(_state_bytes(architecture, every, [one]) <= STATE_LIMIT_BYTES for one in chosen)

    def used(together: Sequence[_Chosen]) -> Ints:
        return every if shared else _images_of(together)

    chunks: list[list[_Chosen]] = []
    for one in chosen:
        more = [*chunks[-1], one] if chunks else [one]
        if chunks and _state_bytes(architecture, used(more), more) <= STATE_LIMIT_BYTES:
            chunks[-1] = more
        else:
            chunks.append([one])
    return [(together, used(together)) for together in chunks]


def _images_of(chosen: Sequence[_Chosen]) -> Ints:
    return np.unique(np.concatenate([one.rows for one in chosen])) if chosen else np.zeros(0, np.int64)


def _state_bytes(architecture: Architecture, used: Ints, chosen: Sequence[_Chosen]) -> int:
    return state_bytes(architecture, len(used), [(len(one.rows), one.group.widths) for one in chosen])


def _cut_together(
    base: VisionTransformer,
    sums: Sums,
    calibration: Calibration,
    chosen: Sequence[_Chosen],
    *,
    used: Ints,
    options: Options,
    begun: State | None,
    keep: Callable[[int, State], None],
) -> list[Cut]:
    """Cut these groups in one pass of the base model over the images `used`.

    Args:
        begun: what `keep` was given, to go on from.
        keep: called after each half block with how many are done and a state.
    """
    cuttings = [
        Cutting(
            base,
            sums.weighted(bin_weights(sums, one.group.bins or one.group.classes, options.foreign)),
            one.group.widths,
            rows=torch.as_tensor(np.searchsorted(used, one.rows)),
            weights=one.weights,
            options=options,
            batch_size=calibration.batch_size,
        )
        for one in chosen
    ]
    first = 0
    if begun is None:
        before = _embed(base, calibration, used, cuttings)
    else:
        first, before = begun["half"], begun["stream"].to(base.head.weight.device)
        for cutting, state in zip(cuttings, begun["cuttings"], strict=True):
            cutting.restore(state)
    for half in range(first, 2 * len(base.blocks)):
        index, is_ffn = divmod(half, 2)
        for cutting in cuttings:
            (cutting.read_ffn if is_ffn else cutting.read_attention)(index, before)
        step = partial(forward.after_ffn if is_ffn else forward.after_attention, base.blocks[index])
        after = _advance(step, before, calibration.batch_size)
        for cutting in cuttings:
            (cutting.write_ffn if is_ffn else cutting.write_attention)(index, before, after)
        before = after
        keep(half + 1, {"stream": before, "cuttings": [cutting.state() for cutting in cuttings]})
    return [
        Cut(
            model=cutting.finish(before),
            rotation=cutting.rotation.float(),
            energy=cutting.energy,
            after_attention=tuple(cutting.explained[::2]),
            after_ffn=tuple(cutting.explained[1::2]),
        )
        for cutting in cuttings
    ]


def state_bytes(architecture: Architecture, images: int, groups: Sequence[tuple[int, Widths]]) -> int:
    """Memory of the streams that are kept: the base's before and after half a block, each sub-model's one.

    Args:
        images: calibration images of all groups together.
        groups: images and widths of each.
    """
    floats = 2 * images * architecture.widths.dim + sum(count * widths.dim for count, widths in groups)
    return 4 * architecture.tokens * floats


def largest_state_bytes(
    architecture: Architecture, groups: Sequence[tuple[int, Widths]], images: int, options: Options
) -> int:
    """What `cut` keeps at least: `state_bytes` of the largest group, cut alone.

    Where widths are fitted, a sub-model may become wider than planned, and this larger by at most half.

    Args:
        architecture: of the base model.
        groups: calibration images of its own classes, and planned widths, of each.
        images: calibration images of all groups together.
        options: as for `cut`.
    """
    counts = [(own + _foreign_count(own, images - own, options), widths) for own, widths in groups]
    return max(state_bytes(architecture, count, [(count, widths)]) for count, widths in counts)


def group_rows(labels: Ints, classes: Sequence[int], options: Options, seed: int) -> tuple[Ints, Tensor]:
    """The calibration images a group is refitted to, ascending, and their weights, float64 `[rows]`.

    All images of its own classes, each of weight 1, and a draw of the foreign ones, `Options.foreign_images` times as
    many, whose weights add up to `Options.foreign` times those of the own.

    Raises:
        DataError: a class has none.
    """
    for label in classes:
        if not bool((labels == label).any()):
            raise DataError(f"class {label} has no calibration images; every class of a group needs some")
    own = np.flatnonzero(np.isin(labels, list(classes)))
    others = np.flatnonzero(~np.isin(labels, list(classes)))
    count = _foreign_count(len(own), len(others), options)
    drawn = np.random.default_rng(seed).permutation(others)[:count]
    rows = np.sort(np.concatenate([own, drawn]))
    weight = options.foreign * len(own) / max(count, 1)
    return rows, torch.as_tensor(np.where(np.isin(rows, own), 1.0, weight))


def _foreign_count(own: int, others: int, options: Options) -> int:
    """How many foreign images a group is refitted to, of so many that there are."""
    return min(others, math.ceil(options.foreign_images * own)) if options.foreign > 0 else 0


def bin_weights(sums: Sums, own: Sequence[int], foreign: float) -> Tensor:
    """Weights for `Sums.weighted`: own bins 1, the others so that their images count `foreign` times as much in all.

    Raises:
        DataError: an own bin has no images.
    """
    mine = torch.zeros(sums.bins, dtype=torch.bool)
    for index in own:
        if index >= sums.bins or float(sums.images[index]) == 0.0:
            raise DataError(f"class {index} has no images in the statistics; every class of a group needs some")
        mine[index] = True
    others = float(sums.images[~mine].sum())
    weight = foreign * float(sums.images[mine].sum()) / others if others else 0.0
    return torch.where(mine, 1.0, weight).double()


def _check_widths(widths: Widths, base: Widths) -> None:
    pairs = [("dim", widths.dim, base.dim), ("blocks", len(widths.blocks), len(base.blocks))]
    for i, (small, large) in enumerate(zip(widths.blocks, base.blocks, strict=False)):
        pairs += [
            (f"blocks.{i}.heads", small.heads, large.heads),
            (f"blocks.{i}.head_dim", small.head_dim, large.head_dim),
            (f"blocks.{i}.hidden", small.hidden, large.hidden),
        ]
    for where, wanted, there in pairs:
        if wanted > there or (where == "blocks" and wanted != there):
            raise ConfigError(f"{where}: cannot keep {wanted} of {there}")


def _embed(base: VisionTransformer, calibration: Calibration, used: Ints, cuttings: Sequence[Cutting]) -> Tensor:
    """The base's stream before block 0, `[images, tokens, dim]`; the sub-models' are set beside it."""
    pieces, inner = [], []
    for _, images in calibration.batches(used):
        if forward.has_pre_norm(base):
            inner.append(backbone.before_pre_norm(base, images))
        pieces.append(backbone.embed(base, images))
    stream = torch.cat(pieces)
    for cutting in cuttings:
        cutting.embed(stream, torch.cat(inner) if inner else None)
    return stream


def _advance(half: Callable[[Tensor], Tensor], stream: Tensor, batch_size: int) -> Tensor:
    after = torch.empty_like(stream)
    for start in range(0, len(stream), batch_size):
        after[start : start + batch_size] = half(stream[start : start + batch_size])
    return after
