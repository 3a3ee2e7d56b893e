"""Small Vision Transformers for small images, registered with timm under their own names."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

default_cfgs = generate_default_cfgs(
    {
        "vit_digits_patch4_8": {
            "url": "",
            "num_classes": 10,
            "input_size": (1, 8, 8),
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": (0.5,),
            "std": (0.5,),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]
def vit_digits_patch4_8(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT for 8x8 images: 4 patches of 4x4, dim 96, 6 blocks of 6 heads, hidden 384; 0.67 M parameters."""
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 6, "mlp_ratio": 4.0}
    return build_model_with_cfg(VisionTransformer, "vit_digits_patch4_8", pretrained, **{**shape, **kwargs})
