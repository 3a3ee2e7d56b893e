"""A ViT whose head reads two vectors side by side, `[batch, 2 * dim]`: the class token and another.

- A distilled DeiT (timm's `VisionTransformerDistilled`) has a head on the class token and one on the distillation
  token, and answers with the mean of their logits. That mean is one linear layer over both tokens side by side:
  `(W x + b + W' x' + b') / 2 = [W / 2, W' / 2] [x, x'] + (b + b') / 2`.
- A DINOv2 classifier in transformers' form has a head on the class token and the mean of the patches.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

_SHARED = (
    "patch_embed", "cls_token", "reg_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "norm",
    "fc_norm", "head_drop", "feature_info", "pretrained_cfg", "default_cfg", "weight_init_mode",
)  # fmt: skip


class JoinedViT(VisionTransformer):  # type: ignore[misc]
    """A ViT with one head on two vectors; a distillation token is its one register token.

    Args:
        model: timm's, with a class token and a norm before pooling; all its parts but the heads are taken over.
    """

    def __init__(self, model: VisionTransformer) -> None:
        distilled = isinstance(model, VisionTransformerDistilled)
        super().__init__(
            img_size=model.patch_embed.img_size,
            patch_size=model.patch_embed.patch_size,
            in_chans=model.patch_embed.proj.in_channels,
            num_classes=model.num_classes,
            embed_dim=model.embed_dim,
            depth=0,
            num_heads=1,
            reg_tokens=1 if distilled else model.num_reg_tokens,
            no_embed_class=model.no_embed_class,
            weight_init="skip",
        )
        for part in _SHARED:
            setattr(self, part, getattr(model, part))
        self.distilled = distilled
        if distilled:
            self.reg_token = model.dist_token
        if model.num_classes:
            self.head = nn.Linear(2 * model.embed_dim, model.num_classes)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Both vectors, `[batch, 2 * dim]`, of the normalised tokens `[batch, tokens, dim]`."""
        if self.distilled:
            return x[:, :2].flatten(1)
        return torch.cat([x[:, 0], x[:, self.num_prefix_tokens :].mean(dim=1)], dim=1)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw every weight as timm does."""
        super().init_weights(mode, needs_reset)
        if self.distilled:
            nn.init.trunc_normal_(self.reg_token, std=0.02)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to; the distillation token, like the class token, to the first."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        return {**groups, "stem": groups["stem"] + "|reg_token"} if self.distilled else groups


def with_one_head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of a `VisionTransformerDistilled` as a `JoinedViT` has them; others stay.

    A head on the class token alone, as transformers' `DeiTForImageClassification` has, reads nothing of the other; a
    head on the distillation token alone is left out.
    """
    if "dist_token" not in state:
        return state
    kept = {name: value for name, value in state.items() if name != "dist_token" and not name.startswith("head")}
    kept["reg_token"] = state["dist_token"]
    first, second = (
        {kind: state[f"{head}.{kind}"] for kind in ("weight", "bias") if f"{head}.{kind}" in state}
        for head in ("head", "head_dist")
    )
    if len(first) < 2:
        return kept
    weight, bias = first["weight"], first["bias"]
    if len(second) < 2:
        return {**kept, "head.weight": torch.cat([weight, torch.zeros_like(weight)], dim=1), "head.bias": bias}
    joined = torch.cat([weight, second["weight"]], dim=1) / 2
    return {**kept, "head.weight": joined, "head.bias": (bias + second["bias"]) / 2}
