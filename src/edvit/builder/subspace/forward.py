"""A ViT's forward in halves of blocks, with what the cut needs in between: the one file here that runs timm's layers.

Each half reads the stream through a norm and writes to it through one layer:
`stream + proj(heads(norm1(stream)))`, then `stream + fc2(hidden(norm2(stream)))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edvit.builder.vit import backbone


@dataclass(frozen=True)
class Heads:
    """Queries and keys after their norms, and each head's output, `[batch, heads, tokens, head_dim]`."""

    query: Tensor
    key: Tensor
    output: Tensor


def heads(block: Any, normal: Tensor) -> Heads:
    """Attention up to `proj`, of the normalised stream `[batch, tokens, dim]`."""
    attention = block.attn
    batch, tokens, _ = normal.shape
    projected = attention.qkv(normal).reshape(batch, tokens, 3, attention.num_heads, attention.head_dim)
    query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    return Heads(query, key, F.scaled_dot_product_attention(query, key, value))


def side_by_side(output: Tensor) -> Tensor:
    """Heads' outputs as `proj` reads them, `[batch, tokens, heads x head_dim]`."""
    return output.transpose(1, 2).flatten(2)


def hidden(block: Any, normal: Tensor) -> Tensor:
    """FFN units after the activation, `[batch, tokens, hidden]`, of the normalised stream."""
    units: Tensor = block.mlp.act(block.mlp.fc1(normal))
    return units


def after_attention(block: Any, stream: Tensor) -> Tensor:
    """The stream after the block's attention."""
    written: Tensor = block.attn.proj(side_by_side(heads(block, block.norm1(stream)).output))
    return stream + written


def after_ffn(block: Any, stream: Tensor) -> Tensor:
    """The stream after the block's FFN, given that after its attention."""
    written: Tensor = block.mlp.fc2(hidden(block, block.norm2(stream)))
    return stream + written


def pooled(model: VisionTransformer, stream: Tensor) -> Tensor:
    """The tokens of the last block that anything reads: those that are pooled."""
    first = backbone.tokens_read(model)
    if first is not None:
        return stream[:, :first]
    every = model.pool_include_prefix or backbone.pooled_vectors(model) > 1
    return stream if every else stream[:, model.num_prefix_tokens :]


def has_pre_norm(model: VisionTransformer) -> bool:
    """Whether a norm stands before block 0."""
    return not isinstance(model.norm_pre, nn.Identity)
