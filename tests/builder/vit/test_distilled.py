"""A distilled DeiT with one head answers as timm's with two."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from edvit.builder.models.weights import load_weights
from edvit.builder.vit import backbone
from edvit.builder.vit.distilled import DistilledViT
from edvit.errors import ModelError
from edvit.plan.cost import vit_flops, vit_params
from vit_variants import CLASSES, NAMES, images

torch.set_num_threads(1)

DISTILLED = timm.list_models("*distilled*", module="deit")


def timms(name, size, classes=7, seed=0):
    """timm's own model in evaluation mode, every parameter random."""
    torch.manual_seed(seed)
    model = timm.create_model(name, img_size=size, num_classes=classes, depth=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            centre = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    return model


def ours(theirs, size):
    """The model that edvit makes of timm's."""
    state = theirs.state_dict()
    model = DistilledViT(
        timm.create_model(theirs.pretrained_cfg["architecture"], img_size=size, num_classes=7, depth=2)
    )
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
    model, head_kept = load_weights(tmp_path / "w.safetensors", NAMES["distilled"], classes=CLASSES)
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images()), theirs(images()), atol=1e-5, rtol=1e-5)
    other, head_kept = load_weights(tmp_path / "w.safetensors", NAMES["distilled"], classes=CLASSES + 1)
    assert not head_kept
    assert torch.equal(other.reg_token, theirs.dist_token)


def test_its_own_tensors_are_taken_too():
    model = ours(timms("deit_tiny_distilled_patch16_224", 48), 48)
    again = backbone.fit_weights(model.state_dict(), model)
    assert {name: value.shape for name, value in again.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_a_head_without_the_other_is_left_out():
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
    assert "without a norm" in (backbone.why_not_splittable(model) or "")
