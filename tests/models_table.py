"""The table of models in docs/models.md. `python tests/models_table.py` prints it."""

from __future__ import annotations

from edvit.builder.vit import backbone
from edvit.plan.cost import model_cost
from edvit.plan.keep import default_keep, heads_pruned_at
from edvit.shape.conv import NAMES as CONV_NAMES
from edvit.shape.conv import convnet
from edvit.shape.vit import pruned_widths

NAMES = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_large_patch16_224",
    "vit_small_patch32_224",
    "vit_base_patch32_224",
    "vit_large_patch32_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit_base_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch14_dinov2",
    "vit_large_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_gap_224",
    "vit_digits_patch4_8",
)
HEADER = (
    "| timm name | what is special | pixels | parameters | heads | sub-model at the default keep ratio |\n"
    "|---|---|---|---|---|---|"
)


def widths_at_default(architecture):
    """Of a sub-model where `--keep` is not given."""
    keep = default_keep(architecture.heads)
    return pruned_widths(architecture.widths, heads_pruned_at(keep, architecture.heads))


def row(name):
    """One line: of ten classes, at the model's own image size."""
    base = backbone.describe(backbone.template(name, classes=10))
    small = base.model_copy(update={"widths": widths_at_default(base), "classes": 0, "rotated": True})
    whole, cut = model_cost(base).params, model_cost(small).params
    heads = f"{base.heads} × {base.widths.blocks[0].head_dim}"
    return (
        f"| `{name}` | {specialities(base)} | {base.image_size} | {whole / 1e6:.1f} M | {heads} | "
        f"{cut / 1e6:.2f} M, {whole / cut:.1f}× smaller |"
    )


def specialities(base):
    """What a model has that the plain one has not."""
    found = [
        (base.pooled_vectors == 2, "distillation token"),
        (base.prefix_tokens > base.pooled_vectors, f"{base.prefix_tokens - base.pooled_vectors} register tokens"),
        (base.prefix_tokens == 0, "no class token"),
        (base.layer_scale, "LayerScale"),
        (base.qk_norm, "qk-norm"),
        (base.pre_norm, "norm before the blocks"),
        (not base.qkv_bias, "no bias of q, k, v"),
    ]
    return ", ".join(text for there, text in found if there)


CONV_HEADER = "| name | parameters | operations at 32 pixels | sub-model at the default keep ratio |\n|---|---|---|---|"


def conv_row(name):
    """One line: of ten classes, three channels, 32 pixels."""
    base = convnet(name, classes=10)
    pruned = heads_pruned_at(default_keep(base.keep_steps), base.keep_steps)
    whole, cut = model_cost(base), model_cost(base.narrowed(pruned).model_copy(update={"classes": 0}))
    return (
        f"| `{name}` | {whole.params / 1e6:.2f} M | {whole.flops / 1e6:,.0f} M | "
        f"{cut.params / 1e6:.2f} M, {whole.params / cut.params:.1f}× smaller |"
    )


if __name__ == "__main__":
    print(HEADER)
    print("\n".join(map(row, NAMES)))
    print(CONV_HEADER)
    print("\n".join(map(conv_row, CONV_NAMES)))
