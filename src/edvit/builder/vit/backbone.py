"""timm's VisionTransformer, whole or pruned: the one file that knows how timm lays it out.

What timm calls a parameter, and which of its axes a width belongs to, is written down once in `axes`; surgery
and importance work on axes and never on timm's names. A pruned model is a plain `VisionTransformer` with
narrower parts, and its forward is timm's own. Where the head reads two vectors it is a
`JoinedViT` (`edvit.builder.vit.joined`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import timm
import torch
from timm.layers import (
    Attention,
    GluMlp,
    LayerNorm,
    LayerScale,
    Mlp,
    PatchEmbed,
    RmsNorm,
    SwiGLU,
    resample_abs_pos_embed,
)
from timm.models import adapt_input_conv
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from edvit.builder.vit import suggest, zoo  # noqa: F401  (registers our small models with timm)
from edvit.builder.vit.joined import JoinedViT, with_one_head
from edvit.errors import ModelError
from edvit.shape.image import ImageSize
from edvit.shape.vit import Architecture, BlockWidths, Pool, Widths

Axis = Literal["dim", "feature", "qkv", "attention", "head_dim", "hidden"] | None
"""What an axis of a parameter counts: residual channels, those of every pooled vector (`pooled_vectors`) one after the
other, the three stacked projections of the heads, the heads' concatenated outputs, the dimensions of one head (shared
by all heads), FFN units; None is never pruned."""

_STEM_AXES: dict[str, tuple[Axis, ...]] = {
    "cls_token": (None, None, "dim"),
    "reg_token": (None, None, "dim"),
    "pos_embed": (None, None, "dim"),
    "patch_embed.proj.weight": ("dim", None, None, None),
    "patch_embed.proj.bias": ("dim",),
    "norm_pre.weight": ("dim",),
    "norm_pre.bias": ("dim",),
    "norm.weight": ("dim",),
    "norm.bias": ("dim",),
    "fc_norm.weight": ("dim",),
    "fc_norm.bias": ("dim",),
    "head.weight": (None, "feature"),
    "head.bias": (None,),
}
_BLOCK_AXES: dict[str, tuple[Axis, ...]] = {
    "norm1.weight": ("dim",),
    "norm1.bias": ("dim",),
    "attn.qkv.weight": ("qkv", "dim"),
    "attn.qkv.bias": ("qkv",),
    "attn.q_norm.weight": ("head_dim",),
    "attn.q_norm.bias": ("head_dim",),
    "attn.k_norm.weight": ("head_dim",),
    "attn.k_norm.bias": ("head_dim",),
    "attn.proj.weight": ("dim", "attention"),
    "attn.proj.bias": ("dim",),
    "ls1.gamma": ("dim",),
    "norm2.weight": ("dim",),
    "norm2.bias": ("dim",),
    "mlp.fc1.weight": ("hidden", "dim"),
    "mlp.fc1.bias": ("hidden",),
    "mlp.fc2.weight": ("dim", "hidden"),
    "mlp.fc2.bias": ("dim",),
    "ls2.gamma": ("dim",),
}


def axes(parameter: str) -> tuple[int | None, tuple[Axis, ...]]:
    """The block a parameter is in (None outside the blocks) and what each of its axes counts.

    Raises:
        KeyError: no splittable model has a parameter of that name.
    """
    if parameter.startswith("blocks."):
        _, block, rest = parameter.split(".", 2)
        return int(block), _BLOCK_AXES[rest]
    return None, _STEM_AXES[parameter]


# --- creating ----------------------------------------------------------------------------------------------


def create(
    name: str,
    *,
    image_size: ImageSize | int | None = None,
    channels: int = 3,
    classes: int,
    pool: Pool | None = None,
    fc_norm: bool | None = None,
    widths: Widths | None = None,
    rotated: bool = False,
) -> VisionTransformer:
    """A freshly initialised timm VisionTransformer, float32 on the CPU.

    Args:
        name: timm model name, e.g. `deit_tiny_patch16_224`.
        image_size: one number is a square, pixels; the model's own by default.
        channels: input channels.
        classes: outputs of the classifier head; 0 leaves the head out.
        pool: how tokens are pooled; the named model's own by default.
        fc_norm: whether the last norm comes after pooling; as timm has it for that model and pooling by default.
        widths: of a pruned model; the named model's own by default.
        rotated: of the form that `Architecture.rotated` describes.

    Raises:
        ModelError: no such model, it cannot be split, or it takes no such image or pooling.
    """
    return initialised(
        template(
            name,
            image_size=image_size,
            channels=channels,
            classes=classes,
            pool=pool,
            fc_norm=fc_norm,
            widths=widths,
            rotated=rotated,
        )
    )


def initialised(model: VisionTransformer) -> VisionTransformer:
    """A template, in place, on the CPU with weights drawn from torch's global generator."""
    model.to_empty(device="cpu")
    model.init_weights(needs_reset=True)
    return model


def template(
    name: str,
    *,
    image_size: ImageSize | int | None = None,
    channels: int = 3,
    classes: int,
    pool: Pool | None = None,
    fc_norm: bool | None = None,
    widths: Widths | None = None,
    rotated: bool = False,
) -> VisionTransformer:
    """The model that `create` makes, on torch's meta device: every name and shape, no memory and no values."""
    name = name.strip()
    if not timm.is_model(name):
        near = suggest.near(name, why_not_splittable)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models('vit_*') lists the names"
        raise ModelError(f"unknown model {name!r}; {hint}")
    with torch.device("meta"):
        pooling = _pooling(name, pool, fc_norm)
        other, pool = _timms(pooling), pooling.get("pool")
        probe = timm_model(name, **other)
        reason = why_not_splittable(probe) or _why_not_joined(probe, pool)
        if reason is not None:
            raise ModelError(f"{name} cannot be split: {reason}")
        size = _checked_image_size(probe, name, image_size)
        # Some models resize their position embeddings at run time; a sub-model has one size, fixed in its graph.
        fixed = {"dynamic_img_size": False, "dynamic_img_pad": False}
        model = timm_model(name, num_classes=classes, in_chans=channels, img_size=size, **fixed, **other)
        if pool == "token+avg" or isinstance(model, VisionTransformerDistilled):
            model = JoinedViT(model)
        model.pooling = pooling
        if widths is not None:
            if len(widths.blocks) != len(model.blocks):
                raise ModelError(f"{name} has {len(model.blocks)} blocks, the widths have {len(widths.blocks)}")
            _narrow(model, widths)
        if rotated:
            _make_rotated(model, probe.embed_dim)
    return model


def template_of(architecture: Architecture) -> VisionTransformer:
    """The `template` that `describe` describes."""
    return template(
        architecture.name,
        image_size=architecture.image_size,
        channels=architecture.channels,
        classes=architecture.classes,
        pool=architecture.pool,
        fc_norm=architecture.fc_norm,
        widths=architecture.widths,
        rotated=architecture.rotated,
    )


def _pooling(name: str, pool: Pool | None, fc_norm: bool | None) -> dict[str, Any]:
    """The fields of `Architecture` for what is asked otherwise than timm's model of that name has it."""
    found: dict[str, Any] = {}
    if pool is not None and pool != getattr(timm_model(name), "global_pool", None):
        found["pool"] = pool
    if fc_norm is not None:
        norm = getattr(timm_model(name, **_timms(found)), "fc_norm", None)
        if fc_norm == isinstance(norm, nn.Identity):
            found["fc_norm"] = fc_norm
    return found


def _timms(pooling: dict[str, Any]) -> dict[str, Any]:
    """timm's options for what `_pooling` found."""
    options = dict(pooling)
    if (pool := options.pop("pool", None)) is not None:
        options["global_pool"] = "token" if pool == "token+avg" else pool
    return options


def pretrained_cfg(name: str) -> dict[str, Any]:
    """What timm knows of the weights that go by a name: their mean, deviation and interpolation among others.

    Raises:
        ModelError: timm has no such model.
    """
    with torch.device("meta"):
        return dict(timm_model(name.strip()).pretrained_cfg)


def timm_model(name: str, **options: Any) -> VisionTransformer:
    """timm's model of a name; of any class."""
    try:
        model: VisionTransformer = timm.create_model(name, pretrained=False, **options)
    except Exception as error:  # timm builds any architecture here, and each fails in its own way
        raise ModelError(f"{name}: timm cannot build it ({type(error).__name__}: {_one_line(error)})") from None
    return model


def like(model: VisionTransformer, *, widths: Widths | None = None, rotated: bool = False) -> VisionTransformer:
    """The `template` that weights of `model`, cut or converted, are to be put into.

    Raises:
        ModelError: `model` pools its tokens or has an activation otherwise than timm's model of its name.
    """
    shape = describe(model)
    built = template_of(shape.model_copy(update={"widths": widths or shape.widths, "rotated": rotated}))
    for what, own, named in (
        ("global_pool", model.global_pool, built.global_pool),
        ("act_layer", type(model.blocks[0].mlp.act).__name__, type(built.blocks[0].mlp.act).__name__),
    ):
        if own != named:
            raise ModelError(
                f"this {shape.name} has {what} {own}, and timm's model of that name has {named}; "
                "register the variant with timm under a name of its own"
            )
    return built


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _checked_image_size(model: VisionTransformer, name: str, image_size: ImageSize | int | None) -> ImageSize:
    patch = model.patch_embed.patch_size[0]
    size = ImageSize(*model.patch_embed.img_size) if image_size is None else ImageSize.of(image_size)
    if any(side % patch for side in size):
        down = ImageSize(*(max(patch, side // patch * patch) for side in size))
        up = ImageSize(*(-(-side // patch) * patch for side in size))
        nearest = up if down == up else f"{down} or {up}"
        raise ModelError(f"image size {size} is no multiple of {name}'s patch of {patch} pixels; use {nearest}")
    return size


def why_not_splittable(model: Any) -> str | None:
    """The reason why a model cannot be split, or None if it can.

    A reason here is a part that surgery, gates or widths have no rule for; nothing is skipped in silence.
    """
    if type(model) not in (VisionTransformer, VisionTransformerDistilled, JoinedViT):
        return f"its class in timm is {type(model).__name__}, not VisionTransformer"
    if model.attn_pool is not None:
        like = " (as in SigLIP)" if model.global_pool == "map" else ""
        return f"its pooling is an attention pool{like}, not token, average or maximum pooling"
    if model.global_pool not in get_args(Pool):
        return "it is an encoder without pooling, so a head has no vector to read"
    embed = model.patch_embed
    if type(embed) is not PatchEmbed:
        return f"its patch embedding is {type(embed).__name__}, not one projection of every patch"
    if not isinstance(embed.norm, nn.Identity):
        return "its patch embedding has a norm of its own"
    if embed.patch_size[0] != embed.patch_size[1]:
        return "its patches are not square"
    if not isinstance(model.patch_drop, nn.Identity):
        return "it drops patches"
    for block in model.blocks:
        reason = _why_not_block(block)
        if reason is not None:
            return reason
    for norm in norms(model):
        if type(norm) not in (nn.LayerNorm, LayerNorm, RmsNorm) or norm.weight is None:
            return f"its normalisation ({type(norm).__name__}) is not LayerNorm or RmsNorm with weights"
    return _why_not_joined(model, None)


def _why_not_joined(model: VisionTransformer, pool: Pool | None) -> str | None:
    """The reason why a model's head cannot read two vectors, where it is to."""
    distilled = isinstance(model, VisionTransformerDistilled)
    if distilled and pool is not None:
        return f"its heads read its class and distillation tokens, so it has no {pool} pooling"
    if (distilled or isinstance(model, JoinedViT) or pool == "token+avg") and isinstance(model.norm, nn.Identity):
        return "its head would read two vectors, and no norm stands before its pooling"
    return None


def _why_not_block(block: Any) -> str | None:
    if type(block) is not Block:
        return f"its blocks are {type(block).__name__}, not attention then FFN, each after a norm"
    if type(block.attn) is not Attention:
        return f"its attention is {type(block.attn).__name__}, not timm's plain one"
    if getattr(block.attn, "gate", None) is not None:
        return "its attention is gated"
    if type(block.mlp) is not Mlp or not isinstance(block.mlp.fc1, nn.Linear):
        gated = " (gated, SwiGLU)" if isinstance(block.mlp, GluMlp | SwiGLU) else ""
        return f"its FFN is {type(block.mlp).__name__}{gated}, not two plain layers"
    if not isinstance(block.attn.norm, nn.Identity) or not isinstance(block.mlp.norm, nn.Identity):
        return "it has norms inside attention or FFN (scale_norm)"
    return None


def _narrow(model: VisionTransformer, widths: Widths) -> None:
    """Replace, in place, every part of a freshly built model by one of the given widths."""
    dim = widths.dim
    conv = model.patch_embed.proj
    model.patch_embed.proj = nn.Conv2d(conv.in_channels, dim, conv.kernel_size, conv.stride, bias=conv.bias is not None)
    for token in ("cls_token", "reg_token", "pos_embed"):
        parameter = getattr(model, token)
        if parameter is not None:
            setattr(model, token, nn.Parameter(torch.empty(*parameter.shape[:-1], dim)))
    model.norm_pre = _norm_like(model.norm_pre, dim)
    model.norm = _norm_like(model.norm, dim)
    model.fc_norm = _norm_like(model.fc_norm, dim)
    model.head = _linear_like(model.head, dim * pooled_vectors(model), model.num_classes)
    model.embed_dim = model.num_features = model.head_hidden_size = dim
    for info in model.feature_info:
        info["num_chs"] = dim
    for block, width in zip(model.blocks, widths.blocks, strict=True):
        _narrow_block(block, dim, width)


def _narrow_block(block: Any, dim: int, width: BlockWidths) -> None:
    old = block.attn
    qk_norm = not isinstance(old.q_norm, nn.Identity)
    norm_type: Any = type(old.q_norm)
    block.norm1 = _norm_like(block.norm1, dim)
    block.attn = Attention(
        dim,
        num_heads=width.heads,
        attn_head_dim=width.head_dim,
        qkv_bias=old.qkv.bias is not None,
        qk_norm=qk_norm,
        proj_bias=old.proj.bias is not None,
        attn_drop=old.attn_drop.p,
        proj_drop=old.proj_drop.p,
        norm_layer=partial(norm_type, eps=old.q_norm.eps) if qk_norm else None,
    )
    block.ls1 = _layer_scale_like(block.ls1, dim)
    block.norm2 = _norm_like(block.norm2, dim)
    block.mlp.fc1 = _linear_like(block.mlp.fc1, dim, width.hidden)
    block.mlp.fc2 = _linear_like(block.mlp.fc2, width.hidden, dim)
    block.ls2 = _layer_scale_like(block.ls2, dim)


def _norm_like(norm: Any, width: int) -> Any:
    return norm if isinstance(norm, nn.Identity) else type(norm)(width, eps=norm.eps)


def _linear_like(linear: Any, inputs: int, outputs: int) -> nn.Module:
    return linear if isinstance(linear, nn.Identity) else nn.Linear(inputs, outputs, bias=linear.bias is not None)


def _layer_scale_like(scale: Any, dim: int) -> Any:
    if isinstance(scale, nn.Identity):
        return scale
    return LayerScale(dim, init_values=scale.init_values, inplace=scale.inplace)


def _make_rotated(model: VisionTransformer, base_dim: int) -> None:
    """Give a freshly built model, in place, the parts of a rotated one.

    RmsNorm divides by the root of the mean over its own width; over `d` of `D` rotated channels the base's mean is
    `d/D` of that, so epsilon grows by `D/d` (the factor `sqrt(D/d)` on the output is in the norm's weight).
    """
    model.rotated = True
    dim = model.embed_dim

    def rms(norm: Any) -> Any:
        return norm if isinstance(norm, nn.Identity) else RmsNorm(dim, eps=norm.eps * base_dim / dim)

    if not isinstance(model.norm_pre, nn.Identity):
        # Gains after a norm are a diagonal matrix; once what it writes is rotated, they are a full one.
        model.norm_pre = nn.Sequential(OrderedDict(norm=rms(model.norm_pre), mix=nn.Linear(dim, dim)))
    model.norm, model.fc_norm = rms(model.norm), rms(model.fc_norm)
    for block in model.blocks:
        block.norm1, block.norm2 = rms(block.norm1), rms(block.norm2)
        block.ls1, block.ls2 = nn.Identity(), nn.Identity()
        for layer, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"), (block.mlp, "fc2")):
            linear = getattr(layer, name)
            setattr(layer, name, nn.Linear(linear.in_features, linear.out_features))


def fit_weights(
    state: dict[str, Tensor], model: VisionTransformer, image_size: ImageSize | None = None
) -> dict[str, Tensor]:
    """A state dict with position embeddings, patch projection and names as `model` has them, where timm knows how.

    Args:
        state: of a checkpoint.
        model: it is fitted to.
        image_size: of the checkpoint's model; None: that of timm's model of the name, where it can be, else a square.

    Raises:
        Exception: of any kind, where the state is of an architecture that timm's conversion was not written for.
    """
    projection, state = "patch_embed.proj.weight", dict(state)
    with torch.no_grad():
        positions = _resampled_positions(state, model, image_size)
        if positions is not None:  # timm takes them for those of a square, of which there may be as many
            del state["pos_embed"]
        # DeiT III's own files call LayerScale `gamma_1` and `gamma_2`; no other splittable model has such names.
        fitted: dict[str, Tensor] = checkpoint_filter_fn(state, model, adapt_layer_scale=True)
        if positions is not None:
            fitted["pos_embed"] = positions
        if isinstance(model, JoinedViT):
            fitted = with_one_head(fitted)
        channels = model.patch_embed.proj.in_channels
        if projection in fitted and fitted[projection].shape[1] == 3 != channels:
            fitted[projection] = adapt_input_conv(channels, fitted[projection])
    return fitted


def _resampled_positions(
    state: dict[str, Tensor], model: VisionTransformer, image_size: ImageSize | None
) -> Tensor | None:
    """The position embeddings of a checkpoint on the grid of `model`; None where the checkpoint's grid is not known."""
    positions = state.get("pos_embed")
    if positions is None or model.pos_embed is None or positions.dim() != 3:
        return None
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    for size in (image_size, ImageSize(*model.pretrained_cfg["input_size"][1:])):
        grid = [side // model.patch_embed.patch_size[0] for side in size or ()]
        if grid and math.prod(grid) + prefix == positions.shape[1]:
            resampled: Tensor = resample_abs_pos_embed(
                positions, new_size=list(model.patch_embed.grid_size), old_size=grid, num_prefix_tokens=prefix
            )
            return resampled
    return None


# --- reading -----------------------------------------------------------------------------------------------


def describe(model: VisionTransformer) -> Architecture:
    """The shape of a model that `create` or surgery made, pruned or not."""
    first = model.blocks[0]
    rotated = getattr(model, "rotated", False)
    qk_norm = not isinstance(first.attn.q_norm, nn.Identity)
    return Architecture(
        name=model.pretrained_cfg["architecture"],
        image_size=ImageSize(*model.patch_embed.img_size),
        patch_size=model.patch_embed.patch_size[0],
        channels=model.patch_embed.proj.in_channels,
        prefix_tokens=model.num_prefix_tokens,
        classes=model.num_classes,
        qkv_bias=first.attn.qkv.bias is not None,
        qk_norm=qk_norm,
        layer_scale=isinstance(first.ls1, LayerScale),
        pre_norm=not isinstance(model.norm_pre, nn.Identity),
        final_norm=has_final_norm(model),
        proj_bias=first.attn.proj.bias is not None,
        rms_norm=isinstance(first.attn.q_norm if rotated and qk_norm else first.norm1, RmsNorm),
        rotated=rotated,
        position_embeddings=("none" if model.pos_embed is None else "patches" if model.no_embed_class else "all"),
        pooled_vectors=pooled_vectors(model),
        **getattr(model, "pooling", {}),
        widths=Widths(
            dim=model.embed_dim,
            blocks=tuple(
                BlockWidths(heads=block.attn.num_heads, head_dim=block.attn.head_dim, hidden=block.mlp.fc1.out_features)
                for block in model.blocks
            ),
        ),
    )


def norms(model: VisionTransformer) -> list[Any]:
    """Every norm of the model that is not an Identity: of the residual stream, of queries and of keys."""
    others = [model.norm_pre] + [norm for block in model.blocks for norm in (block.attn.q_norm, block.attn.k_norm)]
    return stream_norms(model) + [norm for norm in others if not isinstance(norm, nn.Identity)]


def stream_norms(model: VisionTransformer) -> list[Any]:
    """The norms between the residual stream and what reads it (attention, FFN, head), in forward order."""
    every = [norm for block in model.blocks for norm in (block.norm1, block.norm2)] + [model.norm, model.fc_norm]
    return [norm for norm in every if not isinstance(norm, nn.Identity)]


def pooled_vectors(model: VisionTransformer) -> int:
    """Vectors of length `dim` that the head reads side by side."""
    return 2 if isinstance(model, JoinedViT) else 1


def tokens_read(model: VisionTransformer) -> int | None:
    """How many tokens the head reads, where it reads the first ones alone; None: it reads others."""
    if model.global_pool != "token" or (isinstance(model, JoinedViT) and not model.distilled):
        return None
    return pooled_vectors(model)


def has_final_norm(model: VisionTransformer) -> bool:
    """Whether a norm stands between the last block and the head."""
    return not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity))


# --- running -----------------------------------------------------------------------------------------------


def before_pre_norm(model: VisionTransformer, images: Tensor) -> Tensor:
    """Patches and prefix tokens with their positions, `[batch, tokens, dim]`, before `norm_pre`."""
    # timm has no public way to the stream before block 0: `forward_features` runs every block.
    embedded: Tensor = model.patch_drop(model._pos_embed(model.patch_embed(images)))
    return embedded


def embed(model: VisionTransformer, images: Tensor) -> Tensor:
    """Normalised images `[batch, channels, H, W]` to the residual stream before block 0, `[batch, tokens, dim]`."""
    stream: Tensor = model.norm_pre(before_pre_norm(model, images))
    return stream


def classify(model: VisionTransformer, stream: Tensor, start: int = 0) -> Tensor:
    """The stream before block `start`, `[batch, tokens, dim]`, to logits `[batch, classes]`."""
    for block in model.blocks[start:]:
        stream = block(stream)
    logits: Tensor = model.forward_head(model.norm(stream))
    return logits


def read_by_head(model: VisionTransformer, stream: Tensor) -> Tensor:
    """What the head reads, `[batch, feature_dim]`, of the stream after the last block."""
    vector: Tensor = model.forward_head(model.norm(stream), pre_logits=True)
    return vector


def feature(model: VisionTransformer, images: Tensor) -> Tensor:
    """What the head reads, `[batch, feature_dim]`, of normalised images `[batch, channels, H, W]`."""
    vector: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return vector


class FeatureExtractor(nn.Module):
    """What a device runs: uint8 images `[batch, channels, H, W]` to features `[batch, feature_dim]`, float32.

    Args:
        model: a sub-model of any family; its head is not used.
        mean: per channel, on a scale of 0 to 1.
        std: per channel, on a scale of 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return feature(self.model, self.normalise(image))

    def normalise(self, image: Tensor) -> Tensor:
        """Images on a scale of 0 to 255 as the model takes them, float32."""
        return (image.float() / 255.0 - self.mean) / self.std

    def follow(self, image: Tensor, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What `forward` gives, and the residual stream after each of `blocks`, `[batch, tokens, dim]`."""
        if not blocks:
            return self(image), []
        stream, after = embed(self.model, self.normalise(image)), []
        for index, block in enumerate(self.model.blocks):
            stream = block(stream)
            if index in blocks:
                after.append(stream)
        return read_by_head(self.model, stream), after

    def streams(self, image: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """The second of what `follow` gives; blocks behind the last of `blocks` do not run."""
        stream, after = embed(self.model, self.normalise(image)), []
        for index, block in enumerate(self.model.blocks[: max(blocks) + 1]):
            stream = block(stream)
            if index in blocks:
                after.append(stream)
        return after
