"""Tiny Vision Transformers of every kind that can be split, registered with timm for tests."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm, RmsNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.vit import backbone

CLASSES = 5

VARIANTS = {
    "plain": {},
    "layer_scale": {"init_values": 0.5},
    "qk_norm": {"qk_norm": True},
    "reg_tokens": {"reg_tokens": 3, "no_embed_class": True},
    "avg_pool": {"class_token": False, "global_pool": "avg"},
    "avg_pool_norm_first": {"global_pool": "avg", "fc_norm": False},
    "pre_norm": {"pre_norm": True},
    "rms_norm": {"norm_layer": RmsNorm, "qk_norm": True, "qkv_bias": False},
    "rms_norm_plain": {"norm_layer": RmsNorm, "proj_bias": False},
    "no_final_norm": {"final_norm": False},
    "no_position": {"pos_embed": "none"},
    "dinov2_reg4": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "other_eps": {"norm_layer": LayerNorm, "act_layer": "gelu_tanh"},
    "distilled": {},
}

NAMES = {variant: f"vit_test_{variant}" for variant in VARIANTS}

default_cfgs = generate_default_cfgs(
    {
        name: {"num_classes": 5, "input_size": (3, 8, 8), "first_conv": "patch_embed.proj", "classifier": "head"}
        for name in NAMES.values()
    }
)


def _register(variant: str) -> None:
    name = NAMES[variant]

    def entrypoint(pretrained=False, **kwargs):
        shape = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}
        kind = VisionTransformerDistilled if variant == "distilled" else VisionTransformer
        return build_model_with_cfg(kind, name, pretrained, **{**shape, **VARIANTS[variant], **kwargs})

    entrypoint.__name__ = name
    register_model(entrypoint)


for _variant in VARIANTS:
    _register(_variant)


def make(variant: str, seed: int = 0, **kwargs) -> VisionTransformer:
    """A model of that kind in evaluation mode, every parameter random, so that no bias or gain is trivial."""
    torch.manual_seed(seed)
    model = backbone.create(NAMES[variant], classes=CLASSES, **kwargs).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model


def images(count: int = 4, seed: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
