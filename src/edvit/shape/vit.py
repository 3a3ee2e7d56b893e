"""The shape of a Vision Transformer, whole or pruned: numbers only, no tensors and no torch.

Both worlds share it: the build world cuts models to these widths, the plan counts what they cost, and the
bundle records them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from edvit.shape.image import ImageSize

AttentionMode = Literal["dims", "heads"]
Pool = Literal["token", "avg", "max", "avgmax", "token+avg"]
"""How tokens become what the head reads. In timm's words: the class token, the mean of the patches, their maximum, or
the mean of the last two. Ours: class token and mean of the patches side by side, as transformers' DINOv2 has them."""

WIDTH_MULTIPLE = 8
"""Widths are multiples of this: odd ones run slower on SIMD kernels, not faster."""


class BlockWidths(BaseModel):
    """Widths of one transformer block."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """FFN hidden units."""

    @property
    def attention(self) -> int:
        """Attention width: heads x head_dim."""
        return self.heads * self.head_dim


class Widths(BaseModel):
    """Every width that pruning can change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(gt=0, strict=True)
    """Embedding dimension, shared by every block."""
    blocks: tuple[BlockWidths, ...] = Field(min_length=1)


_LATER = ("pool", "fc_norm", "pooled_vectors")
"""Fields of `Architecture` that were added after bundles had been written."""


class Architecture(BaseModel):
    """A timm `VisionTransformer`, as far as its cost and its surgery depend on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """timm model name of the base, e.g. `deit_tiny_patch16_224`."""
    image_size: ImageSize
    patch_size: int = Field(gt=0)
    channels: int = Field(gt=0)
    """Input channels: 1 or 3."""
    prefix_tokens: int = Field(ge=0)
    """Class token, distillation token and register tokens."""
    classes: int = Field(ge=0)
    """Outputs of the classifier head; 0 where the model ends at its feature."""
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    pre_norm: bool = False
    final_norm: bool = True
    """A norm after the last block, before or after pooling."""
    proj_bias: bool = True
    """Biases in proj, fc1 and fc2."""
    rms_norm: bool = False
    """RmsNorm (a weight) in place of LayerNorm (a weight and a bias)."""
    rotated: bool = False
    """Converted for pruning by subspace (`edvit.builder.subspace`): RmsNorm over the residual stream, whatever the base
    has; biases in every layer; LayerScale folded into them; with `pre_norm`, a `dim x dim` layer after that norm.
    `rms_norm` then speaks of the norms of queries and keys alone."""
    position_embeddings: Literal["all", "patches", "none"] = "all"
    """The tokens that have one: all, those of patches but not of the prefix, or none."""
    pool: Pool | None = None
    """How tokens are pooled; None: as in timm's model of that name."""
    fc_norm: bool | None = None
    """Whether the last norm comes after pooling, as timm's option of that name says; None: as in timm's model of that
    name and pooling."""
    pooled_vectors: int = Field(default=1, gt=0)
    """Vectors of length `dim` that the head reads side by side: 2 in a distilled DeiT, its class token and its
    distillation token, and with the pooling `token+avg`."""
    widths: Widths

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Later fields are written only where they differ from their defaults, so that a model that has no need of them
        keeps its digest."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if name not in _LATER or value != fields[name].default}

    @property
    def tokens(self) -> int:
        """Tokens in the residual stream, prefix tokens included."""
        height, width = self.image_size
        return (height // self.patch_size) * (width // self.patch_size) + self.prefix_tokens

    @property
    def heads(self) -> int:
        """Heads per block of an unpruned model."""
        return self.widths.blocks[0].heads

    @property
    def keep_steps(self) -> int:
        """What the keep ratio counts in: heads."""
        return self.heads

    @property
    def feature_dim(self) -> int:
        """Length of the feature."""
        return self.widths.dim * self.pooled_vectors

    def narrowed(self, heads_pruned: int | Fraction, mode: AttentionMode = "dims") -> Architecture:
        """The same model at the widths of `pruned_widths`."""
        return self.model_copy(update={"widths": pruned_widths(self.widths, heads_pruned, mode)})

    def rotated_form(self) -> Architecture:
        """The same model converted for pruning by subspace."""
        norms = self.rms_norm or not self.qk_norm
        kept = {"qkv_bias": True, "proj_bias": True, "layer_scale": False, "rms_norm": norms, "rotated": True}
        return self.model_copy(update=kept)


def round_width(width: float) -> int:
    """Nearest multiple of `WIDTH_MULTIPLE`, at least one of it."""
    return max(WIDTH_MULTIPLE, int(width / WIDTH_MULTIPLE + 0.5) * WIDTH_MULTIPLE)


def pruned_widths(base: Widths, heads_pruned: int | Fraction, mode: AttentionMode = "dims") -> Widths:
    """Widths at keep ratio `s = (h - h_p) / h` (ED-ViT, arXiv 2410.11650): dim, attention and hidden all x s.

    Args:
        base: widths of the base model, the same heads in every block.
        heads_pruned: `h_p`, from 0 and below h. 0 returns `base` itself.
        mode: `"dims"` keeps every head and narrows it, `"heads"` keeps whole heads.

    Raises:
        ValueError: `heads_pruned` is out of range, or no whole number where whole heads go; or blocks differ in their
            heads.
    """
    heads = base.blocks[0].heads
    if any(block.heads != heads for block in base.blocks):
        raise ValueError("blocks differ in their number of heads: this is not a base model")
    if not 0 <= heads_pruned < heads:
        raise ValueError(f"heads_pruned must be 0..{heads - 1}, not {heads_pruned}")
    if mode == "heads" and heads_pruned != int(heads_pruned):
        raise ValueError(f"heads_pruned must be a whole number of heads, not {heads_pruned}")
    if heads_pruned == 0:
        return base
    keep = float(heads - heads_pruned) / heads

    def shrink(width: int) -> int:
        return min(width, round_width(width * keep))

    def shrink_block(block: BlockWidths) -> BlockWidths:
        if mode == "heads":
            return BlockWidths(heads=heads - int(heads_pruned), head_dim=block.head_dim, hidden=shrink(block.hidden))
        return BlockWidths(heads=heads, head_dim=shrink(block.head_dim), hidden=shrink(block.hidden))

    return Widths(dim=shrink(base.dim), blocks=tuple(shrink_block(block) for block in base.blocks))
