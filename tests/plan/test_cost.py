"""Parameters against timm's count, operations against torch's counter, seconds and joules against hand sums."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from edvit.builder.vit import backbone
from edvit.fleet import Device, Fleet
from edvit.plan import cost as costs
from edvit.shape.image import ImageSize
from edvit.shape.vit import Architecture, BlockWidths, Widths, pruned_widths


def uniform(dim: int, heads: int, head_dim: int, hidden: int, depth: int) -> Widths:
    return Widths(dim=dim, blocks=(BlockWidths(heads=heads, head_dim=head_dim, hidden=hidden),) * depth)


def vit(name: str = "vit_base_patch16_224", **changes) -> Architecture:
    values = {
        "name": name,
        "image_size": 224,
        "patch_size": 16,
        "channels": 3,
        "prefix_tokens": 1,
        "classes": 0,
        "widths": uniform(768, 12, 64, 3072, 12),
    }
    return Architecture(**{**values, **changes})


BASE = vit()
SMALL = vit("vit_small_patch16_224", widths=uniform(384, 6, 64, 1536, 12), classes=1000)
TINY = vit("deit_tiny_patch16_224", widths=uniform(192, 3, 64, 768, 12), classes=10)
DINO = vit(
    "vit_base_patch14_reg4_dinov2",
    image_size=518,
    patch_size=14,
    prefix_tokens=5,
    layer_scale=True,
    position_embeddings="patches",
)
CLIP = vit("vit_base_patch16_clip_224", pre_norm=True, classes=512)


def on_meta(architecture: Architecture, **options) -> torch.nn.Module:
    return timm.create_model(
        architecture.name,
        pretrained=False,
        num_classes=architecture.classes,
        img_size=architecture.image_size,
        in_chans=architecture.channels,
        device="meta",
        **options,
    ).eval()


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        (BASE, {}),
        (SMALL, {}),
        (TINY, {}),
        (DINO, {}),
        (CLIP, {}),
        (TINY.model_copy(update={"image_size": ImageSize(112, 64), "channels": 1}), {}),
        (TINY.model_copy(update={"qk_norm": True}), {"qk_norm": True}),
        (TINY.model_copy(update={"qkv_bias": False}), {"qkv_bias": False}),
        (TINY.model_copy(update={"prefix_tokens": 0}), {"class_token": False, "global_pool": "avg"}),
    ],
    ids=["base", "small", "tiny", "dinov2-reg4", "clip", "112px-grey", "qk-norm", "no-qkv-bias", "average-pool"],
)
def test_params_are_those_of_the_timm_model(architecture, options):
    assert costs.model_cost(architecture).params == count(on_meta(architecture, **options))


@pytest.mark.parametrize("architecture", [SMALL, TINY, DINO, CLIP], ids=lambda a: a.name)
def test_flops_are_those_of_torchs_counter(architecture):
    model = on_meta(architecture)
    # The plain formulation, so that the counter sees each product of the attention.
    for block in model.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, architecture.channels, *architecture.image_size, device="meta"))
    assert costs.model_cost(architecture).flops == counter.get_total_flops()


def test_headline_of_the_paper():
    """Keep ratio 2/12 on ViT-B/16 at 224 px: 85.8 M to about 2.5 M parameters, 34x (ED-ViT's 34.1x)."""
    widths = pruned_widths(BASE.widths, heads_pruned=10, mode="heads")
    assert widths == uniform(128, 2, 64, 512, 12)
    base, pruned = costs.model_cost(BASE), costs.model_cost(BASE.model_copy(update={"widths": widths}))
    model = VisionTransformer(num_classes=0, embed_dim=128, num_heads=2, depth=12, device="meta")
    assert pruned.params == count(model)
    assert base.params == pytest.approx(85.8e6, rel=1e-3)
    assert pruned.params == pytest.approx(2.5e6, rel=1e-2)
    assert base.params / pruned.params == pytest.approx(34.3, abs=0.1)


def test_blocks_may_differ():
    blocks = (BlockWidths(heads=2, head_dim=16, hidden=64), BlockWidths(heads=1, head_dim=24, hidden=8))
    both = vit(widths=Widths(dim=32, blocks=blocks))
    alone = [vit(widths=Widths(dim=32, blocks=(block,))) for block in blocks]
    shell = 32 * (3 * 256 + 1) + (197 + 1) * 32 + 64  # patch embedding, positions and class token, final norm
    assert costs.vit_params(both) == sum(costs.vit_params(one) for one in alone) - shell


def test_bytes():
    cost = costs.model_cost(TINY)
    assert cost.input_bytes == 3 * 224 * 224
    assert cost.feature_bytes == 192 * 4
    assert cost.weight_bytes == cost.params * 4
    # The attention's moment is the largest at 197 tokens: stream twice, q k v, logits and softmax.
    attention = 2 * 197 * 192 + 3 * 197 * 192 + 2 * 3 * 197 * 197
    ffn = 2 * 197 * 192 + 2 * 197 * 768
    assert cost.peak_memory_bytes - cost.weight_bytes == 3 * 224 * 224 + 4 * max(attention, ffn)


def test_bytes_in_int8_are_those_of_quantised_matrices():
    block = BlockWidths(heads=2, head_dim=16, hidden=64)
    one = vit(widths=Widths(dim=32, blocks=(block,)))
    in_fp32, in_int8 = costs.model_cost(one), costs.model_cost(one, "int8")
    # Patches of 16 x 16 pixels in three colours to 32, qkv 32 x 96, proj 32 x 32, FFN 32 x 64 and 64 x 32.
    weights, outputs = 3 * 16 * 16 * 32 + 32 * 96 + 32 * 32 + 2 * 32 * 64, 32 + 96 + 32 + 64 + 32
    others = in_fp32.params - weights
    # A byte a weight; a scale and a zero point for each output, three bytes in the file and five in memory.
    assert in_int8.weight_bytes == weights + 3 * outputs + 2 * others
    loaded = weights + 5 * outputs + 4 * others
    assert in_fp32.peak_memory_bytes - in_int8.peak_memory_bytes == in_fp32.weight_bytes - loaded
    assert (in_int8.params, in_int8.flops) == (in_fp32.params, in_fp32.flops)


def test_bytes_in_int4_are_half_of_those_in_int8_and_memory_is_the_same():
    block = BlockWidths(heads=2, head_dim=16, hidden=48)
    one = vit(widths=Widths(dim=24, blocks=(block,)))
    in_fp32, in_int8, in_int4 = (costs.model_cost(one, precision) for precision in ("fp32", "int8", "int4"))
    weights = 3 * 16 * 16 * 24 + 24 * 96 + 32 * 24 + 24 * 48 + 48 * 24
    # A multiplier for each output and 32 inputs: 24 blocks of the patches, one of 24 and 32 inputs, two of 48.
    multipliers = 24 * 24 + 96 + 24 + 48 + 2 * 24
    outputs = 24 + 96 + 24 + 48 + 24
    assert in_int4.weight_bytes == (weights + multipliers) // 2 + 2 * outputs + 2 * (in_fp32.params - weights)
    assert in_int4.peak_memory_bytes == in_int8.peak_memory_bytes
    assert (in_int4.params, in_int4.flops) == (in_fp32.params, in_fp32.flops)


def test_seconds_and_joules():
    device = Device(name="pi", memory_mb=100, gflops=10, watts=5, link={"mbps": 50, "rtt_ms": 2})
    fleet = Fleet(name="f", gateway={"uplink_mbps": 100}, devices=(device,))
    cost = costs.Cost(
        params=1, flops=10**9, weight_bytes=4, peak_memory_bytes=8, input_bytes=150_000, feature_bytes=500
    )
    assert costs.latency_s(cost, device) == pytest.approx(0.1)
    assert costs.energy_j(cost, device) == pytest.approx(0.5)
    # One device: its own 50 Mbit/s link is the bottleneck (1.2 Mbit: 24 ms), 2 ms round trip, 80 us for the feature.
    one = costs.communication_s(fleet, device, devices=1, input_bytes=150_000, feature_bytes=500)
    assert one == pytest.approx(0.024 + 0.002 + 0.00008)
    # Five devices: the uplink's five inputs (6 Mbit at 100 Mbit/s: 60 ms) are.
    five = costs.communication_s(fleet, device, devices=5, input_bytes=150_000, feature_bytes=500)
    assert five == pytest.approx(0.060 + 0.002 + 0.00008)
    assert costs.uplink_s(fleet, 5, 150_000) == pytest.approx(0.060)


def test_fusion():
    assert costs.mlp_flops((640, 256, 10)) == 2 * (640 * 256 + 256 * 10)
    assert costs.fusion_s((100, 10), gflops=2) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "vit_digits_patch4_8",
        "vit_base_patch14_reg4_dinov2",
        "vit_intern300m_patch14_448",
        "vit_little_patch16_reg4_gap_256",
    ],
)
@pytest.mark.parametrize(("heads_pruned", "mode"), [(1, "dims"), (2, "heads")])
def test_params_of_what_the_build_cuts(name, heads_pruned, mode):
    """Whole and pruned, the plan's count is that of the model that surgery would fill."""
    base = backbone.describe(backbone.template(name, channels=1, classes=7))
    widths = pruned_widths(base.widths, min(heads_pruned, base.heads - 1), mode)
    pruned = backbone.template(name, channels=1, classes=7, widths=widths)
    assert costs.model_cost(backbone.describe(pruned)).params == count(pruned)
