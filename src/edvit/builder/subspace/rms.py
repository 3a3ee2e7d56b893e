"""Exact conversion of a ViT to one whose residual stream can be rotated.

LayerNorm is `(x - mean) / std * gain + bias`. Gain and bias go into the layers that read the norm's output, the mean
subtraction `P = I - 11'/D` into the layers that write the stream. What is left between them is division by the root
mean square, which no rotation changes: with writers `W Q` and readers `Q' W` the outputs are the same for any
orthogonal `Q` (SliceGPT, arXiv 2401.15024). LayerScale is a diagonal matrix on a writer and goes into it.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edvit.builder.vit import backbone
from edvit.errors import BuildError, ModelError
from edvit.shape.vit import Architecture


def to_rms(model: VisionTransformer) -> VisionTransformer:
    """The same function with `Architecture.rotated` set: norms of gain 1 and no bias, LayerScale folded away.

    Computed in float64; a new model of `model`'s dtype and mode on the CPU. A rotated model is copied.

    Raises:
        ModelError: no such form of the model exists, see `why_not_rotatable`, or its name does not say all, see
            `backbone.like`.
        BuildError: the model is not a whole base model with a head, or its weights are NaN or infinite.
    """
    check_rotatable(model)
    architecture = backbone.describe(model)
    if architecture.classes == 0:
        raise BuildError("only a model with a head can be converted: gains and biases of the last norm go into it")
    if not architecture.rotated and architecture.widths.dim != _whole_dim(architecture):
        raise BuildError("only a whole base model can be converted; this one has lost channels")
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise BuildError(f"{name} holds NaN or infinite values; the model's training diverged")
    converted = backbone.like(model, rotated=True)
    state = dict(model.state_dict()) if architecture.rotated else _converted_state(model)
    like = model.patch_embed.proj.weight
    cpu = {name: value.detach().to(device="cpu", dtype=like.dtype, copy=True) for name, value in state.items()}
    converted.load_state_dict(cpu, strict=True, assign=True)
    return converted.train(model.training)


def check_rotatable(model: VisionTransformer) -> None:
    """Raise ModelError for a model that has no rotated form."""
    reason = why_not_rotatable(model)
    if reason is not None:
        raise ModelError(f"this model's residual stream cannot be rotated: {reason}; give --prune channels")


def why_not_rotatable(model: VisionTransformer) -> str | None:
    """The reason why a splittable model has no rotated form, or None if it has one."""
    if "max" in model.global_pool:
        return f"its {model.global_pool} pooling takes maxima over single channels"
    if not backbone.has_final_norm(model) and not isinstance(model.blocks[0].norm1, RmsNorm):
        return "its head reads the stream without a norm, so the mean that every LayerNorm drops matters there"
    return None


def _whole_dim(architecture: Architecture) -> int:
    whole = backbone.template(architecture.name, classes=1, pool=architecture.pool)
    return int(whole.embed_dim)


def _converted_state(model: VisionTransformer) -> dict[str, Tensor]:
    centre = not isinstance(model.blocks[0].norm1, RmsNorm)
    pre_norm = not isinstance(model.norm_pre, nn.Identity)

    def written(value: Tensor, dim: int) -> Tensor:
        """What a writer adds to the stream, its mean over channels taken off."""
        value = value.detach().double()
        return value - value.mean(dim=dim, keepdim=True) if centre else value

    state = {"patch_embed.proj.weight": written(model.patch_embed.proj.weight, 0)}
    if model.patch_embed.proj.bias is not None:
        state["patch_embed.proj.bias"] = written(model.patch_embed.proj.bias, 0)
    for name in ("cls_token", "reg_token", "pos_embed"):
        if getattr(model, name) is not None:
            state[name] = written(getattr(model, name), -1)
    if pre_norm:
        gain, bias = _affine(model.norm_pre)
        state["norm_pre.norm.weight"] = torch.ones_like(gain)
        state["norm_pre.mix.weight"] = written(torch.diag(gain), 0)
        state["norm_pre.mix.bias"] = written(bias, 0)
    for index, block in enumerate(model.blocks):
        state.update({f"blocks.{index}.{name}": value for name, value in _converted_block(block, written).items()})
    last = "fc_norm" if isinstance(model.norm, nn.Identity) else "norm"
    norm = getattr(model, last)
    if backbone.has_final_norm(model):
        state[f"{last}.weight"] = torch.ones_like(norm.weight)
    state["head.weight"], state["head.bias"] = _reader(norm, model.head)
    return state


def _converted_block(block: Any, written: Any) -> dict[str, Tensor]:
    state = {"norm1.weight": torch.ones_like(block.norm1.weight), "norm2.weight": torch.ones_like(block.norm2.weight)}
    for name in ("q_norm", "k_norm"):
        norm = getattr(block.attn, name)
        state.update({f"attn.{name}.{key}": value for key, value in norm.state_dict().items()})
    readers = (("attn.qkv", block.norm1, block.attn.qkv), ("mlp.fc1", block.norm2, block.mlp.fc1))
    for name, norm, linear in readers:
        state[f"{name}.weight"], state[f"{name}.bias"] = _reader(norm, linear)
    writers = (("attn.proj", block.attn.proj, block.ls1), ("mlp.fc2", block.mlp.fc2, block.ls2))
    for name, linear, scale in writers:
        weight, bias = linear.weight.detach().double(), _bias(linear)
        if not isinstance(scale, nn.Identity):
            gamma = scale.gamma.detach().double()
            weight, bias = gamma[:, None] * weight, gamma * bias
        state[f"{name}.weight"], state[f"{name}.bias"] = written(weight, 0), written(bias, 0)
    return state


def _reader(norm: Any, linear: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that reads vectors of a norm of gain 1 and no bias in place of `norm`."""
    weight, bias = linear.weight.detach().double(), _bias(linear)
    if isinstance(norm, nn.Identity):
        return weight, bias
    vectors = linear.in_features // len(norm.weight)
    gain, shift = (part.repeat(vectors) for part in _affine(norm))
    return weight * gain, bias + weight @ shift


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    gain = norm.weight.detach().double()
    bias = getattr(norm, "bias", None)
    return gain, torch.zeros_like(gain) if bias is None else bias.detach().double()


def _bias(linear: Any) -> Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=torch.float64, device=linear.weight.device)
    bias: Tensor = linear.bias.detach().double()
    return bias
