"""Models in the words that ONNX has: attention and RMS norm one operator each, a layer and its bias one Gemm.

A small ViT is slowed by the number of its operators, and the exporter's own graph of one has three times as many
(docs/decisions/2026-11-26-onnx-form.md). What is changed here computes the same, to rounding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RmsNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from edvit.builder.vit.backbone import FeatureExtractor, tokens_read
from edvit.builder.vit.joined import JoinedViT

OPSET = 23
"""The first with Attention and RMSNormalization."""

_VITS = (VisionTransformer, JoinedViT)


def onnx_form(module: nn.Module) -> nn.Module:
    """A copy for `torch.onnx.export`; it shares the weights that it does not change.

    Where a model's head reads the class token alone, or it and the distillation token, its last block computes no
    other.
    """
    tensors = (*module.parameters(), *module.buffers())
    copied = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    return _replaced(copied)


def _replaced(part: nn.Module) -> nn.Module:
    """What takes the place of a copied module and, in it, of the modules below."""
    form = _form(part).train(part.training)
    for name, child in list(form.named_children()):
        setattr(form, name, _replaced(child))
    return form


def _form(part: Any) -> nn.Module:
    if type(part) is FeatureExtractor and type(part.model) in _VITS:
        return _folded(part)
    if type(part) in _VITS and _is_plain(part.blocks[-1]) and (read := tokens_read(part)) is not None:
        part.blocks[-1] = _LastBlock(part.blocks[-1], read)
    if type(part) is Block and _is_plain(part):
        return _Block(part)
    if type(part) is RmsNorm:
        return _RmsNorm(part)
    whole: nn.Module = part
    return whole


def _is_plain(block: Any) -> bool:
    """Whether queries and keys are as the projection leaves them."""
    return isinstance(block.attn.q_norm, nn.Identity) and isinstance(block.attn.k_norm, nn.Identity)


class _Block(nn.Module):
    """The tokens of all images in one list, `[batch x tokens, dim]`; heads side by side, `[..., heads x head_dim]`.

    Args:
        block: timm's, whose parts it takes over by their names, which the exported file holds.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.norm2, self.mlp, self.ls2 = block.norm2, block.mlp, block.ls2

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        stream = x.flatten(0, 1)
        q, k, v = self.attn.qkv(self.norm1(stream)).view(*x.shape[:2], 3 * self.attn.attn_dim).chunk(3, dim=-1)
        return self._write(stream, q, k, v).view(x.shape)

    def _write(self, stream: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention of queries, keys and values, `[batch, tokens, heads x head_dim]`, in the queries' tokens."""
        heads = self.attn.num_heads
        mixed, *_ = torch.onnx.ops.attention(q, k, v, q_num_heads=heads, kv_num_heads=heads)
        stream = stream + self.ls1(self.attn.proj(mixed.flatten(0, 1)))
        after: Tensor = stream + self.ls2(self.mlp(self.norm2(stream)))
        return after


class _LastBlock(_Block):
    """To the first tokens alone, `[batch, tokens, dim]` to `[batch, read, dim]`.

    Args:
        block: timm's.
        read: how many tokens the head reads.
    """

    def __init__(self, block: Any, read: int) -> None:
        super().__init__(block)
        self.read = read
        qkv, width = block.attn.qkv, block.attn.attn_dim
        self.query, self.key_value = _rows(qkv, slice(width)), _rows(qkv, slice(width, None))

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        normed = self.norm1(x.flatten(0, 1))
        k, v = self.key_value(normed).view(*x.shape[:2], 2 * self.attn.attn_dim).chunk(2, dim=-1)
        q = self.query(self._first(normed.view(x.shape)))
        return self._apart(self._write(self._first(x), self._apart(q), k, v))

    def _first(self, x: Tensor) -> Tensor:
        """`[batch, tokens, width]` to `[batch x read, width]`; to take one token is one operator, to slice is two."""
        return x[:, 0] if self.read == 1 else x[:, : self.read].flatten(0, 1)

    def _apart(self, x: Tensor) -> Tensor:
        """`[batch x read, width]` to `[batch, read, width]`."""
        return x[:, None] if self.read == 1 else x.view(-1, self.read, x.shape[-1])


def _rows(linear: nn.Linear, rows: slice) -> nn.Linear:
    """Some outputs of a layer."""
    weight, bias = linear.weight[rows].detach(), linear.bias
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    part.weight = nn.Parameter(weight)
    if bias is not None:
        part.bias = nn.Parameter(bias[rows].detach())
    return part


class _RmsNorm(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Folded(FeatureExtractor):
    """Its patch embedding takes images as they are, on a scale of 0 to 255."""

    def normalise(self, image: Tensor) -> Tensor:
        return image


class _Patches(nn.Module):
    """timm's patch embedding as a product, uint8 `[batch, channels, H, W]` to `[batch, tokens, dim]`.

    Pixels are put in order while they are bytes. In int8 a product is quantised, and a convolution is not.

    Args:
        embed: timm's.
        mean, std: of the pixels that it expects, on a scale of 0 to 1.
    """

    def __init__(self, embed: Any, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.grid, self.patch = embed.grid_size, embed.patch_size
        weight = embed.proj.weight / std
        bias = -(weight * mean).sum(dim=(1, 2, 3))
        if embed.proj.bias is not None:
            bias = bias + embed.proj.bias
        dim = len(weight)
        self.proj = nn.Linear(weight[0].numel(), dim)
        self.proj.weight = nn.Parameter((weight / 255).reshape(dim, -1).detach())
        self.proj.bias = nn.Parameter(bias.detach())

    def forward(self, image: Tensor) -> Tensor:
        (rows, columns), (height, width), channels = self.grid, self.patch, image.shape[1]
        patches = image.view(-1, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        embedded: Tensor = self.proj(patches.reshape(-1, channels * height * width).float())
        return embedded.view(-1, rows * columns, embedded.shape[-1])


def _folded(extractor: FeatureExtractor) -> _Folded:
    """`W ((x / 255 - mean) / std) + b` is a product of `x`; the model of the copied extractor is changed."""
    extractor.model.patch_embed = _Patches(extractor.model.patch_embed, extractor.mean, extractor.std)
    return _Folded(extractor.model, extractor.mean.flatten().tolist(), extractor.std.flatten().tolist())
