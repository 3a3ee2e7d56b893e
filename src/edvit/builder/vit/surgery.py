"""Cutting a model to the components that are kept: tensors only, and always into a new model.

Three kinds of component (ED-ViT, arXiv 2410.11650): residual channels, shared by every
block; attention, as whole heads or as dimensions inside them; FFN units. A dimension of a head is one
component of its query, key and value together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from edvit.builder.vit import backbone
from edvit.builder.vit.scores import Scores
from edvit.errors import BuildError
from edvit.shape.vit import Architecture, BlockWidths, Widths


@dataclass(frozen=True)
class BlockSelection:
    """What one block keeps: indices into the base model's widths, int64 on the CPU, ascending."""

    heads: Tensor
    """`[heads']`"""
    head_dims: Tensor
    """`[heads', head_dim']`: for each kept head, the dimensions it keeps."""
    hidden: Tensor
    """`[hidden']`"""


@dataclass(frozen=True)
class Selection:
    """What a sub-model keeps of its base model."""

    dim: Tensor
    """`[dim']`, int64 on the CPU, ascending."""
    blocks: tuple[BlockSelection, ...]

    @property
    def widths(self) -> Widths:
        return Widths(
            dim=len(self.dim),
            blocks=tuple(
                BlockWidths(heads=block.head_dims.shape[0], head_dim=block.head_dims.shape[1], hidden=len(block.hidden))
                for block in self.blocks
            ),
        )


def select(scores: Scores, base: Architecture, target: Widths) -> Selection:
    """The most important components, as many as the target widths hold.

    The target says which attention mode it is: fewer heads keeps the best heads, a smaller `head_dim` keeps
    in every kept head its own best dimensions. Where the base normalises queries and keys (qk-norm), one set
    of norm weights serves all heads of a block, so they keep the same dimensions, best by their sum of scores.
    Equal scores: the lower index is kept.

    Args:
        scores: of the base model.
        base: the base model.
        target: of the sub-model; may differ from block to block.

    Raises:
        BuildError: a target width is larger than the base's, or the scores are of another model.
    """
    _check_fits(scores, base.widths, target)
    blocks = []
    for i, width in enumerate(target.blocks):
        heads = _best(scores.heads[i], width.heads)
        dim_scores = scores.attn[i][heads]
        if base.qk_norm:
            dim_scores = dim_scores.sum(dim=0, keepdim=True).expand(len(heads), -1)
        head_dims = torch.stack([_best(row, width.head_dim) for row in dim_scores])
        blocks.append(BlockSelection(heads, head_dims, _best(scores.hidden[i], width.hidden)))
    return Selection(_best(scores.dim, target.dim), tuple(blocks))


def _best(scores: Tensor, count: int) -> Tensor:
    return torch.sort(torch.argsort(scores, descending=True, stable=True)[:count]).values


def _check_fits(scores: Scores, base: Widths, target: Widths) -> None:
    if len(target.blocks) != len(base.blocks):
        raise BuildError(f"the target has {len(target.blocks)} blocks, the base {len(base.blocks)}")
    if len(scores.dim) != base.dim or len(scores.hidden) != len(base.blocks):
        raise BuildError("the scores are of a model of other widths; score the base model again")
    pairs = [("dim", target.dim, base.dim)]
    for i, (small, large) in enumerate(zip(target.blocks, base.blocks, strict=True)):
        if scores.attn[i].shape != (large.heads, large.head_dim) or len(scores.hidden[i]) != large.hidden:
            raise BuildError(f"the scores of block {i} are of a model of other widths; score the base model again")
        pairs += [
            (f"blocks.{i}.heads", small.heads, large.heads),
            (f"blocks.{i}.head_dim", small.head_dim, large.head_dim),
            (f"blocks.{i}.hidden", small.hidden, large.hidden),
        ]
    for where, wanted, there in pairs:
        if wanted > there:
            raise BuildError(f"{where}: cannot keep {wanted} of {there}")


def prune(model: VisionTransformer, selection: Selection) -> VisionTransformer:
    """A new model with the selected components alone; `model` is left as it is and shares no memory with it.

    Norms of the residual stream take their statistics over the kept channels. The attention logits keep the
    base's scale `1/sqrt(head_dim)`: what timm's attention will divide by too little is folded into the queries.

    Returns:
        A timm VisionTransformer on `model`'s device, of its dtype, in its training or evaluation mode.

    Raises:
        BuildError: the selection is not of this model, or the result differs in any name or shape from the
            template that `backbone.like` builds for the widths.
        ModelError: the name of the model does not say all, see `backbone.like`.
    """
    architecture = backbone.describe(model)
    _check_selection(selection, architecture)
    state = {name: _cut(name, value, selection, architecture) for name, value in model.state_dict().items()}
    pruned = backbone.like(model, widths=selection.widths)
    _check_matches(state, {name: value.shape for name, value in pruned.state_dict().items()})
    pruned.load_state_dict(state, strict=True, assign=True)
    return pruned.train(model.training)


def _cut(name: str, value: Tensor, selection: Selection, architecture: Architecture) -> Tensor:
    """One parameter of the base model, reduced along each of its axes to what is kept."""
    try:
        index, axes = backbone.axes(name)
    except KeyError:
        raise BuildError(f"surgery has no rule for parameter {name}") from None
    kept = value.detach().clone()
    for position, axis in enumerate(axes):
        if axis is not None:
            rows = _kept_rows(axis, index, selection, architecture)
            kept = kept.index_select(position, rows.to(kept.device))
    return kept * _query_scale(name, index, kept, selection, architecture)


def _kept_rows(axis: str, index: int | None, selection: Selection, architecture: Architecture) -> Tensor:
    if axis == "dim":
        return selection.dim
    if axis == "feature":
        vectors = range(architecture.pooled_vectors)
        return torch.cat([selection.dim + vector * architecture.widths.dim for vector in vectors])
    if index is None:
        raise BuildError(f"axis {axis} outside the blocks")
    block, base = selection.blocks[index], architecture.widths.blocks[index]
    if axis == "hidden":
        return block.hidden
    if axis == "head_dim":
        return block.head_dims[0]
    rows = (block.heads[:, None] * base.head_dim + block.head_dims).flatten()
    if axis == "attention":
        return rows
    return torch.cat([rows + part * base.attention for part in range(3)])


def _query_scale(
    name: str, index: int | None, kept: Tensor, selection: Selection, architecture: Architecture
) -> Tensor | float:
    """sqrt(new head_dim / old head_dim) where the parameter makes the queries last, else 1."""
    if index is None:
        return 1.0
    new = selection.blocks[index].head_dims.shape[1]
    scale = math.sqrt(new / architecture.widths.blocks[index].head_dim)
    if architecture.qk_norm:
        return scale if ".q_norm." in name else 1.0
    if ".qkv." not in name or scale == 1.0:
        return 1.0
    factors = torch.ones(kept.shape[0], dtype=kept.dtype, device=kept.device)
    factors[: kept.shape[0] // 3] = scale
    return factors.view(-1, *[1] * (kept.dim() - 1))


# --- checks ------------------------------------------------------------------------------------------------


def _check_selection(selection: Selection, architecture: Architecture) -> None:
    widths = architecture.widths
    if len(selection.blocks) != len(widths.blocks):
        raise BuildError(f"the selection has {len(selection.blocks)} blocks, the model {len(widths.blocks)}")
    _check_indices("dim", selection.dim, widths.dim)
    for i, (block, base) in enumerate(zip(selection.blocks, widths.blocks, strict=True)):
        where = f"blocks.{i}"
        _check_indices(f"{where}.heads", block.heads, base.heads)
        _check_indices(f"{where}.hidden", block.hidden, base.hidden)
        if block.head_dims.dim() != 2 or block.head_dims.shape[0] != len(block.heads):
            raise BuildError(f"{where}.head_dims: shape {list(block.head_dims.shape)}, not [{len(block.heads)}, kept]")
        for row in block.head_dims:
            _check_indices(f"{where}.head_dims", row, base.head_dim)
        if architecture.qk_norm and bool((block.head_dims != block.head_dims[0]).any()):
            raise BuildError(f"{where}.head_dims: with qk-norm every head must keep the same dimensions")


def _check_indices(where: str, indices: Tensor, width: int) -> None:
    values: Sequence[int] = indices.tolist()
    if not values or min(values) < 0 or max(values) >= width or len(set(values)) != len(values):
        raise BuildError(f"{where}: kept indices must be distinct, at least one, and in 0..{width - 1}")


def _check_matches(state: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    for name, shape in expected.items():
        if name not in state:
            raise BuildError(f"surgery made no {name}, {list(shape)} was expected")
        if state[name].shape != shape:
            raise BuildError(f"surgery made {name} {list(state[name].shape)}, {list(shape)} was expected")
    for name in state:
        if name not in expected:
            raise BuildError(f"surgery made {name}, which the template does not have")
