"""Gates: a factor on every component, so that removing one is a number and importance is a derivative.

A gate of 1 leaves a component as it is and a gate of 0 removes it, exactly as surgery would: a norm over gated
channels weighs its mean and variance by the gates, so at 0 and 1 they are the statistics of what is kept.
The forward stays timm's own; gates are hooks that are there for the length of a `with`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edvit.builder.vit import backbone
from edvit.shape.vit import Widths


@dataclass(frozen=True)
class BlockGates:
    """Gates of one block, one row per sample or one row for all; None gates nothing."""

    attn: Tensor | None = None
    """`[batch or 1, heads, head_dim]`"""
    heads: Tensor | None = None
    """`[batch or 1, heads]`"""
    hidden: Tensor | None = None
    """`[batch or 1, hidden]`"""


@dataclass(frozen=True)
class Gates:
    """Gates of a model, by block number; a block that is absent is not gated."""

    dim: Tensor | None
    """`[batch or 1, dim]`, over the residual stream of every block."""
    blocks: dict[int, BlockGates]


def open_gates(widths: Widths, batch: int, like: Tensor) -> Gates:
    """Gates of 1 on every component of every sample, on `like`'s device and of its dtype."""

    def ones(*shape: int) -> Tensor:
        return torch.ones(batch, *shape, dtype=like.dtype, device=like.device)

    blocks = {
        i: BlockGates(ones(block.heads, block.head_dim), ones(block.heads), ones(block.hidden))
        for i, block in enumerate(widths.blocks)
    }
    return Gates(ones(widths.dim), blocks)


@contextmanager
def gated(model: VisionTransformer, gates: Gates) -> Iterator[None]:
    """Within the block, `model` runs with these gates: any of its forwards, from any block on."""
    handles: list[Any] = []
    try:
        if gates.dim is not None:
            handles += _gate_channels(model, gates.dim)
        for index, block_gates in gates.blocks.items():
            handles += _gate_block(model.blocks[index], block_gates)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gate_channels(model: VisionTransformer, gate: Tensor) -> list[Any]:
    """Gate what reads the residual stream. Its writers need no gate: nobody reads what they write.

    `norm_pre` writes the stream; only its statistics are gated.
    """
    handles = [norm.register_forward_hook(_normalise(gate)) for norm in backbone.stream_norms(model)]
    if not isinstance(model.norm_pre, nn.Identity):
        handles.append(model.norm_pre.register_forward_hook(_normalise(gate, output_gate=False)))
    if not backbone.has_final_norm(model):
        handles.append(model.head.register_forward_pre_hook(_multiply_input(gate)))
    return handles


def _gate_block(block: Any, gates: BlockGates) -> list[Any]:
    handles = []
    output = None
    if gates.attn is not None:
        output = gates.attn.flatten(1)
        if isinstance(block.attn.q_norm, nn.Identity):
            handles.append(block.attn.qkv.register_forward_hook(_multiply_queries(output)))
        else:
            handles.append(block.attn.q_norm.register_forward_hook(_normalise(gates.attn)))
            # A logit is a product of query and key: the gate goes into one of them.
            handles.append(block.attn.k_norm.register_forward_hook(_normalise(gates.attn, output_gate=False)))
    if gates.heads is not None:
        per_dim = gates.heads.repeat_interleave(block.attn.head_dim, dim=1)
        output = per_dim if output is None else output * per_dim
    if output is not None:
        # Attention is linear in its values: a gate on a value is the same gate on the head's output.
        handles.append(block.attn.proj.register_forward_pre_hook(_multiply_input(output)))
    if gates.hidden is not None:
        handles.append(block.mlp.fc2.register_forward_pre_hook(_multiply_input(gates.hidden)))
    return handles


# --- hooks -------------------------------------------------------------------------------------------------


def _over_tokens(gate: Tensor, like: Tensor) -> Tensor:
    """`[batch, ..., width]` to the rank of `like`, `[batch, ..., tokens, width]` or pooled `[batch, width]`."""
    return gate.unsqueeze(-2) if like.dim() > gate.dim() else gate


def _multiply_input(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0] * _over_tokens(gate, inputs[0]),)

    return hook


def _multiply_queries(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(_module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
        query, rest = output.tensor_split([gate.shape[-1]], dim=-1)
        return torch.cat([query * _over_tokens(gate, query), rest], dim=-1)

    return hook


def _normalise(gate: Tensor, output_gate: bool = True) -> Callable[[Any, tuple[Tensor], Tensor], Tensor]:
    def hook(norm: Any, inputs: tuple[Tensor], _output: Tensor) -> Tensor:
        over_tokens = _over_tokens(gate, inputs[0])
        normal = weighted_norm(norm, inputs[0], over_tokens)
        return normal * over_tokens if output_gate else normal

    return hook


def weighted_norm(norm: Any, x: Tensor, gate: Tensor) -> Tensor:
    """LayerNorm or RmsNorm over the last axis with statistics weighted by the gates.

    `mean = sum(g x) / sum(g)`, `var = sum(g (x - mean)^2) / sum(g)`; RmsNorm: `mean = 0`.
    """
    share = gate / gate.sum(dim=-1, keepdim=True)
    centred = x if isinstance(norm, RmsNorm) else x - (x * share).sum(dim=-1, keepdim=True)
    variance = (centred.square() * share).sum(dim=-1, keepdim=True)
    normal = centred * torch.rsqrt(variance + norm.eps)
    affine: Tensor = normal * norm.weight
    if getattr(norm, "bias", None) is not None:
        affine = affine + norm.bias
    return affine
