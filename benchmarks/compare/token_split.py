"""A whole Vision Transformer of which every device computes some of the tokens in every block.

After Voltage (Hu and Li, *When the Edge Meets Transformers: Distributed Inference with Transformer Models*, ICDCS
2024): a device computes the queries of its own tokens and the keys and values of all, so that it needs the others'
tokens before every block and nothing else; the FFN needs its own alone. Of Voltage's orders of computation this is the
plain one. ASTRA (Liu et al., arXiv 2505.19342) sends codes of the tokens in the place of the tokens, in a model trained
for that; here they are sent as they are, so that nothing is trained and the answer is the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compare.exchange import AllGather, Work
from benchmarks.compare.layer_pipeline import check_head
from benchmarks.compare.onnx_model import OnnxModel
from edvit.builder.export.onnx_file import export_module
from edvit.builder.vit import backbone
from edvit.builder.vit.backbone import FeatureExtractor
from edvit.errors import ConfigError
from edvit.plan.cost import ACTIVATION_BYTES


class BlockShare(nn.Module):
    """Tokens `start` to `stop` of what a block gives.

    The stream before the block, float32 `[batch, tokens, dim]`, to these of its tokens after it, `[batch, stop - start,
    dim]`.
    """

    def __init__(self, block: Any, start: int, stop: int) -> None:
        super().__init__()
        self.block = block
        self._start, self._stop = start, stop

    def forward(self, stream: Tensor) -> Tensor:
        block, own = self.block, stream[:, self._start : self._stop]
        own = own + block.ls1(self._attend(block.norm1(stream)))
        after: Tensor = own + block.ls2(block.mlp(block.norm2(own)))
        return after

    def _attend(self, normed: Tensor) -> Tensor:
        attn, own = self.block.attn, normed[:, self._start : self._stop]
        width = attn.num_heads * attn.head_dim
        weight, bias = attn.qkv.weight, attn.qkv.bias
        query = F.linear(own, weight[:width], None if bias is None else bias[:width])
        key, value = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
        q, k, v = (x.view(*x.shape[:2], attn.num_heads, -1).transpose(1, 2) for x in (query, key, value))
        heads = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
        projected: Tensor = attn.proj(heads.transpose(1, 2).flatten(2))
        return projected


class FirstShare(nn.Module):
    """As `BlockShare` of block 0, of uint8 images `[batch, channels, H, W]`: every device embeds all tokens itself."""

    def __init__(self, extractor: FeatureExtractor, start: int, stop: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.share = BlockShare(extractor.model.blocks[0], start, stop)

    def forward(self, image: Tensor) -> Tensor:
        part: Tensor = self.share(backbone.embed(self.extractor.model, self.extractor.normalise(image)))
        return part


class Finish(nn.Module):
    """What the gateway does: tokens after the last block, float32 `[batch, tokens, dim]`, to scores."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.model = extractor.model

    def forward(self, stream: Tensor) -> Tensor:
        return backbone.classify(self.model, stream, len(self.model.blocks))


class TokenSplit(nn.Module):
    """A model whose tokens are shared out: uint8 images `[batch, channels, H, W]` to scores `[batch, classes]`.

    Args:
        extractor: the whole model, its head included, and its normalisation.
        shares: tokens of each device, in the order of the stream; class and register tokens count.

    Raises:
        ConfigError: the shares are not all tokens, or a device has none.
        ModelError: the model has no head.
    """

    def __init__(self, extractor: FeatureExtractor, shares: Sequence[int]) -> None:
        super().__init__()
        check_head(extractor)
        tokens = count_tokens(extractor)
        if not shares or min(shares) < 1 or sum(shares) != tokens:
            raise ConfigError(f"{tokens} tokens cannot be shared out as {', '.join(map(str, shares)) or 'nothing'}")
        self.extractor = extractor.eval()
        self.shares = tuple(shares)
        model = extractor.model
        self.parts = nn.ModuleList(
            nn.ModuleList(
                BlockShare(block, start, stop) if index else FirstShare(extractor, start, stop)
                for start, stop in pairwise(accumulate(shares, initial=0))
            )
            for index, block in enumerate(model.blocks)
        )
        self.finish = Finish(extractor)
        self.read_by_head = backbone.tokens_read(model) or tokens
        """Tokens that the head reads, from the first on."""

    def forward(self, images: Tensor) -> Tensor:
        value = images
        for parts in self.parts:
            value = self.gathered(parts, value)
        scores: Tensor = self.finish(value[:, : self.read_by_head])
        return scores

    @staticmethod
    def gathered(parts: Any, value: Tensor) -> Tensor:
        """One block: what each device makes of `value`, as all of them have it after the exchange."""
        return torch.cat([part(value) for part in parts], dim=1)


def count_tokens(extractor: FeatureExtractor) -> int:
    """Tokens of the residual stream."""
    return backbone.describe(extractor.model).tokens


def even_shares(tokens: int, devices: int) -> tuple[int, ...]:
    """Tokens of each device: equal, or one more for the first ones.

    Raises:
        ConfigError: fewer tokens than devices, or no device.
    """
    if not 1 <= devices <= tokens:
        raise ConfigError(f"{tokens} tokens can be shared out among 1 to {tokens} devices, not {devices}")
    least, more = divmod(tokens, devices)
    return tuple(least + (i < more) for i in range(devices))


def measure(split: TokenSplit, images: Tensor, folder: Path, *, every_block: bool = False) -> AllGather:
    """The exchange, with the seconds that each device's part of each block takes alone in ONNX Runtime on one thread.

    Parts that only differ in which block they belong to, or in which tokens of equal number, take equally long: one of
    them is exported, compared with PyTorch and timed.

    Args:
        images: uint8 `[batch, channels, H, W]`, at least two to compare on.
        folder: where the ONNX files are written; it is made if it is not there.
        every_block: export all of them, so that a replay can run them.

    Raises:
        BuildError: ONNX Runtime's part differs from PyTorch's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    widths = backbone.describe(split.extractor.model).widths
    seconds: dict[tuple[Any, ...], float] = {}
    value, rounds = images, []
    parts: Any  # torch knows a list of lists of modules as a list of modules
    for index, parts in enumerate(split.parts):
        works = []
        for device, (part, share) in enumerate(zip(parts, split.shares, strict=True)):
            kind = (index == 0, share, widths.blocks[index])
            path = folder / f"block-{index}-device-{device + 1}.onnx"
            if every_block or kind not in seconds:
                export_module(part, (value,), ["stream" if index else "image"], "part", path)
            if kind not in seconds:
                seconds[kind] = OnnxModel(path).seconds()
            works.append(Work(seconds[kind], path if every_block else None))
        rounds.append(tuple(works))
        with torch.inference_mode():
            value = split.gathered(parts, value)
    finish = folder / "finish.onnx"
    export_module(split.finish, (value[:, : split.read_by_head],), ["tokens"], "scores", finish)
    token_bytes = widths.dim * ACTIVATION_BYTES
    read = [
        max(0, min(stop, split.read_by_head) - start) for start, stop in pairwise(accumulate(split.shares, initial=0))
    ]
    return AllGather(
        input_bytes=images[0].numel(),
        work=tuple(rounds),
        part_bytes=tuple(share * token_bytes for share in split.shares),
        result_bytes=tuple(tokens * token_bytes for tokens in read),
        finish=Work(OnnxModel(finish).seconds(), finish),
    )
