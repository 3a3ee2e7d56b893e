"""The conversion changes no output, for every kind of model that has a rotated form."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer

import vit_variants
from edvit.builder.models import checkpoint
from edvit.builder.subspace.rms import to_rms
from edvit.builder.vit import backbone
from edvit.builder.vit.joined import JoinedViT
from edvit.errors import BuildError, ModelError
from edvit.plan.cost import vit_params
from edvit.shape.vit import BlockWidths, Widths

CONVERTIBLE = [variant for variant in vit_variants.VARIANTS if variant != "no_final_norm"]


def randomised(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            parameter.copy_(0.3 * torch.randn_like(parameter) + (1.0 if gain else 0.0))
    return model.eval()


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_output_is_the_same(variant):
    model = vit_variants.make(variant)
    converted = to_rms(model)
    images = vit_variants.images()
    with torch.no_grad():
        torch.testing.assert_close(converted(images), model(images), atol=1e-5, rtol=1e-5)
    assert type(converted) is (JoinedViT if variant == "distilled" else VisionTransformer)
    for norm in backbone.stream_norms(converted):
        assert type(norm) is RmsNorm
        assert bool((norm.weight == 1).all())


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_the_plan_knows_the_converted_shape_before_there_is_one(variant):
    model = vit_variants.make(variant)
    assert backbone.describe(model).rotated_form() == backbone.describe(to_rms(model))


@pytest.mark.parametrize("options", [{"qkv_bias": False}, {"proj_bias": False}])
def test_a_norms_bias_finds_a_layer_that_had_none(options):
    model = randomised(timm.create_model("vit_test_plain", num_classes=5, **options))
    images = vit_variants.images()
    with torch.no_grad():
        torch.testing.assert_close(to_rms(model)(images), model(images), atol=1e-5, rtol=1e-5)


def test_epsilon_counts():
    """Weights so small that epsilon is a large part of what the norms divide by."""
    model = vit_variants.make("plain")
    with torch.no_grad():
        for parameter in (model.patch_embed.proj.weight, model.patch_embed.proj.bias, model.cls_token, model.pos_embed):
            parameter.mul_(1e-3)
        images = vit_variants.images()
        torch.testing.assert_close(to_rms(model)(images), model(images), atol=1e-5, rtol=1e-5)


def test_the_model_is_left_alone_and_the_copy_is_its_own():
    model = vit_variants.make("layer_scale")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = to_rms(to_rms(model))
    with torch.no_grad():
        images = vit_variants.images()
        torch.testing.assert_close(again(images), model(images), atol=1e-5, rtol=1e-5)
        for parameter in again.parameters():
            parameter.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("variant", CONVERTIBLE)
@pytest.mark.parametrize("dim", [24, 16])
def test_survives_the_disk_and_is_counted(variant, dim, tmp_path):
    architecture = backbone.describe(to_rms(vit_variants.make(variant)))
    assert architecture.rotated
    blocks = tuple(BlockWidths(heads=3, head_dim=4, hidden=hidden) for hidden in (40, 16, 24))
    model = backbone.create(
        architecture.name, image_size=8, classes=5, widths=Widths(dim=dim, blocks=blocks), rotated=True
    ).eval()
    described = backbone.describe(model)
    assert described == architecture.model_copy(update={"widths": described.widths})
    assert vit_params(described) == sum(parameter.numel() for parameter in model.parameters())
    checkpoint.save_model(tmp_path / "model.safetensors", model)
    loaded = checkpoint.load_model(tmp_path / "model.safetensors")
    assert backbone.describe(loaded) == described
    with torch.no_grad():
        assert torch.equal(loaded(vit_variants.images()), model(vit_variants.images()))


def test_refusals():
    with pytest.raises(ModelError, match="without a norm"):
        to_rms(vit_variants.make("no_final_norm"))
    with pytest.raises(ModelError, match="max pooling"):
        to_rms(timm.create_model("vit_test_plain", num_classes=5, global_pool="max"))
    with pytest.raises(BuildError, match="with a head"):
        to_rms(backbone.create("vit_test_plain", classes=0))
    narrow = Widths(dim=16, blocks=(BlockWidths(heads=3, head_dim=8, hidden=48),) * 3)
    with pytest.raises(BuildError, match="lost channels"):
        to_rms(backbone.create("vit_test_plain", classes=5, widths=narrow))
    broken = vit_variants.make("plain")
    with torch.no_grad():
        broken.blocks[1].mlp.fc1.weight[3, 4] = float("nan")
    with pytest.raises(BuildError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN"):
        to_rms(broken)
