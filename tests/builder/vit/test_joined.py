"""Heads on two vectors: a distilled DeiT answers as timm's with two heads, and DINOv2's classifier as transformers'."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import calibration_images
from edvit.builder.export.onnx_file import export_submodel
from edvit.builder.models.checkpoint import load_model, save_model
from edvit.builder.models.origin import find_weights
from edvit.builder.models.weights import load_weights
from edvit.builder.subspace.cut import CutGroup, cut
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import collect
from edvit.builder.vit import backbone, importance, surgery
from edvit.builder.vit.joined import JoinedViT
from edvit.errors import ModelError
from edvit.plan.cost import vit_flops, vit_params
from edvit.shape.vit import pruned_widths
from vit_variants import CLASSES, NAMES, images

torch.set_num_threads(1)

DISTILLED = timm.list_models("*distilled*", module="deit")


def timms(name, size, classes=7):
    """timm's own model in evaluation mode, every parameter random."""
    return random_weights(timm.create_model(name, img_size=size, num_classes=classes, depth=2))


def random_weights(model):
    """The model in evaluation mode, every parameter random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    return model.eval()


def ours(theirs, size):
    """The model that edvit makes of timm's."""
    state = theirs.state_dict()
    model = JoinedViT(timm.create_model(theirs.pretrained_cfg["architecture"], img_size=size, num_classes=7, depth=2))
    model.load_state_dict(backbone.fit_weights(state, model), strict=True)
    return model.eval()


def test_timm_has_distilled_models():
    assert len(DISTILLED) >= 4


@pytest.mark.parametrize("name", DISTILLED)
def test_the_logits_are_timms(name):
    theirs = timms(name, 48)
    x = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        expected, found = theirs(x), ours(theirs, 48)(x)
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_position_embeddings_are_resampled_as_timm_does():
    """From 3x3 patches to 5x5; those of the class and the distillation token stay as they are."""
    theirs = timms("deit_tiny_distilled_patch16_224", 48)
    fitted = ours(theirs, 80)
    larger = timm.create_model("deit_tiny_distilled_patch16_224", img_size=80, num_classes=7, depth=2).eval()
    larger.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), larger))
    x = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(fitted(x), larger(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(fitted.pos_embed[:, :2], theirs.pos_embed[:, :2])


def test_a_weights_file_gives_timms_logits(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model(NAMES["distilled"], num_classes=CLASSES).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    model, head_kept = load_weights(
        find_weights(tmp_path / "w.safetensors"),
        backbone.describe(backbone.template(NAMES["distilled"], classes=CLASSES)),
    )
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images()), theirs(images()), atol=1e-5, rtol=1e-5)
    other, head_kept = load_weights(
        find_weights(tmp_path / "w.safetensors"),
        backbone.describe(backbone.template(NAMES["distilled"], classes=CLASSES + 1)),
    )
    assert not head_kept
    assert torch.equal(other.reg_token, theirs.dist_token)


def test_its_own_tensors_are_taken_too():
    model = ours(timms("deit_tiny_distilled_patch16_224", 48), 48)
    again = backbone.fit_weights(model.state_dict(), model)
    assert {name: value.shape for name, value in again.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_a_head_on_the_class_token_alone_reads_it_alone():
    theirs = timms("deit_tiny_distilled_patch16_224", 48)
    model = ours(theirs, 48)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head_dist.")}
    model.load_state_dict(backbone.fit_weights(state, model), strict=True)
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        same(model(x), theirs.head(theirs.forward_features(x)[:, 0]))


def test_a_head_on_the_distillation_token_alone_is_left_out():
    theirs = timms("deit_tiny_distilled_patch16_224", 48)
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("head.")}
    fitted = backbone.fit_weights(state, ours(theirs, 48))
    assert not [name for name in fitted if name.startswith("head")]


def test_what_it_costs():
    name = "deit_tiny_distilled_patch16_224"
    shape = backbone.describe(backbone.template(name, classes=10))
    plain = backbone.describe(backbone.template("deit_tiny_patch16_224", classes=10))
    timm_params = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
    assert vit_params(shape) == timm_params - 10, "the heads' two biases are one"
    assert (shape.prefix_tokens, shape.tokens, shape.pooled_vectors, shape.feature_dim) == (2, 198, 2, 384)
    with FlopCounterMode(display=False) as counted:
        timm.create_model(name, num_classes=10, device="meta").eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    assert vit_flops(shape) == counted.get_total_flops()
    blocks = sum(2 * 192 * (4 * b.attention + 2 * b.hidden) for b in shape.widths.blocks)
    attention = sum(4 * (198**2 - 197**2) * b.attention for b in shape.widths.blocks)
    assert vit_flops(shape) - vit_flops(plain) == blocks + attention + 2 * 192 * 10


def test_a_new_model_is_drawn_as_timm_draws_it():
    torch.manual_seed(0)
    model = backbone.create("deit_tiny_distilled_patch16_224", image_size=32, classes=10)
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=10)
    assert float(model.reg_token.detach().std()) == pytest.approx(float(theirs.dist_token.detach().std()), rel=0.3)
    assert model.head.weight.shape == (10, 384)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_distillation_token_learns_as_slowly_as_the_class_token():
    model = backbone.create("deit_tiny_distilled_patch16_224", image_size=32, classes=10)
    layers = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["reg_token"] == layers["cls_token"] == 0


def test_another_pooling_is_refused():
    with pytest.raises(ModelError, match=r"deit_tiny_distilled_patch16_224: .*class and distillation tokens"):
        backbone.template("deit_tiny_distilled_patch16_224", classes=10, pool="avg")


def test_heads_that_read_no_norm_are_refused():
    model = timm.create_model(NAMES["distilled"], final_norm=False)
    assert "no norm stands before its pooling" in (backbone.why_not_splittable(model) or "")


# --- class token and mean of the patches -------------------------------------------------------------------

JOINED = ("plain", "layer_scale", "reg_tokens", "pre_norm", "rms_norm")


def joined(variant):
    return random_weights(backbone.create(NAMES[variant], classes=CLASSES, pool="token+avg"))


def same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", JOINED)
def test_the_head_reads_the_class_token_and_the_mean_of_the_patches(variant):
    model = joined(variant)
    plain = timm.create_model(NAMES[variant], num_classes=0).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("head")})
    shape = backbone.describe(model)
    assert (shape.pool, shape.pooled_vectors, shape.feature_dim) == ("token+avg", 2, 48)
    with torch.no_grad():
        tokens = plain.forward_features(images())
        vectors = torch.cat([tokens[:, 0], tokens[:, plain.num_prefix_tokens :].mean(dim=1)], dim=1)
        same(model(images()), model.head(vectors))


@pytest.mark.parametrize("variant", JOINED)
def test_it_is_kept_converted_cut_and_exported(variant, tmp_path):
    model, calibration = joined(variant), calibration_images.calibration()
    shape = backbone.describe(model)
    assert vit_params(shape) == sum(p.numel() for p in model.parameters())
    save_model(tmp_path / "m.safetensors", model)
    converted = to_rms(load_model(tmp_path / "m.safetensors"))
    assert backbone.describe(converted) == shape.rotated_form()
    sums = collect(converted, calibration, gradients=True)
    whole, narrow = (
        cut(converted, sums, calibration, [CutGroup((0, 1), widths)])[0].model
        for widths in (shape.widths, pruned_widths(shape.widths, 1))
    )
    everything = surgery.select(importance.score(model, images(), criterion="magnitude"), shape, shape.widths)
    with torch.no_grad():
        expected = model(images())
        same(converted(images()), expected)
        same(surgery.prune(model, everything)(images()), expected)
        torch.testing.assert_close(whole(images()), expected, atol=1e-4, rtol=1e-4)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    export_submodel(backbone.FeatureExtractor(narrow, (0.5,) * 3, (0.25,) * 3), pixels, tmp_path / "m.onnx")


def test_what_has_no_class_token_or_norm_is_refused():
    with pytest.raises(ModelError, match="Token pooling needs the class token"):
        backbone.template(NAMES["avg_pool"], classes=2, pool="token+avg")
    with pytest.raises(ModelError, match="two vectors, and no norm stands before"):
        backbone.template(NAMES["no_final_norm"], classes=2, pool="token+avg")
    with pytest.raises(ModelError, match=r"it has no token\+avg pooling"):
        backbone.template(NAMES["distilled"], classes=2, pool="token+avg")
