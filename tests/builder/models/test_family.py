from __future__ import annotations

import pytest
import torch

from edvit.builder.conv.apoz import Activity
from edvit.builder.models import checkpoint
from edvit.builder.models.family import CONV, VIT, Scored, Scoring, describe, family_for, family_of
from edvit.builder.subspace.rms import to_rms
from edvit.errors import ModelError
from edvit.shape.conv import ConvArchitecture
from edvit.shape.vit import Architecture
from tiny_build import MODEL

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "family", "kind"),
    [(MODEL, VIT, Architecture), ("vgg5", CONV, ConvArchitecture), ("spiking_vgg5", CONV, ConvArchitecture)],
)
def test_a_model_is_planned_made_described_and_kept(name, family, kind, tmp_path):
    assert family_of(name) is family
    size = 8 if family is VIT else 16
    shape = family.plan(name, image_size=size, channels=1, classes=10)
    assert isinstance(shape, kind)
    model = family.create(shape).eval()
    assert family_for(model) is family
    assert describe(model) == shape
    checkpoint.save_model(tmp_path / "model.safetensors", model)
    again = checkpoint.load_model(tmp_path / "model.safetensors")
    assert describe(again) == shape
    images = torch.randn(2, 1, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(again(images), model(images))


@pytest.mark.parametrize("name", [MODEL, "vgg5", "spiking_vgg5"])
def test_it_is_scored_and_cut_with_a_rotation_that_selects(name, tmp_path):
    family = family_of(name)
    size = 8 if family is VIT else 16
    model = family.create(family.plan(name, image_size=size, channels=1, classes=10))
    images = torch.randn(6, 1, size, size)
    model(images)
    criterion = "fisher-kl" if family is VIT else "apoz"
    steps = []
    how = Scoring(criterion, batch_size=4)
    family.score(model.eval(), images, how, lambda *step: steps.append(step), tmp_path / "scores")
    assert steps
    budget = describe(model).narrowed(describe(model).keep_steps // 2).widths
    narrowed = family.cut(model, [Scored(tmp_path / "scores", 6)], budget, "uniform")
    assert describe(narrowed.model).widths == budget
    rotation = narrowed.rotation
    assert rotation.shape == (describe(model).feature_dim, describe(narrowed.model).feature_dim)
    assert torch.equal(rotation.sum(dim=0), torch.ones(rotation.shape[1], dtype=rotation.dtype))
    assert narrowed.model(images).shape == (6, 10)


@pytest.mark.parametrize(("name", "size"), [(MODEL, 8), ("vgg5", 16), ("spiking_vgg5", 16)])
def test_scores_of_parts_are_those_of_all_images(name, size, tmp_path):
    family = family_of(name)
    torch.manual_seed(0)
    model = family.create(family.plan(name, image_size=size, channels=1, classes=10)).eval()
    images = torch.randn(7, 1, size, size)
    how = Scoring("fisher-kl" if family is VIT else "apoz", batch_size=4)
    parts = []
    for number, part in enumerate([images, images[:5], images[5:]]):
        path = tmp_path / str(number)
        family.score(model, part, how, lambda done, total: None, path)
        parts.append(Scored(path, len(part)))
    budget = describe(model).narrowed(describe(model).keep_steps // 2).widths
    whole, joined = (family.cut(model, scores, budget, "uniform") for scores in (parts[:1], parts[1:]))
    assert torch.equal(whole.rotation, joined.rotation)
    for kind in ("attention", "ffn", "filters"):
        assert getattr(joined.kept, kind) == pytest.approx(getattr(whole.kept, kind))


def test_a_convnet_keeps_a_share_of_its_activity(tmp_path):
    shape = CONV.plan("vgg5", image_size=16, channels=1, classes=10)
    sets = tuple(torch.arange(1, width + 1, dtype=torch.float64) for width in shape.widths.filters)
    Activity(sets).save(tmp_path / "scores")
    kept = CONV.cut(CONV.create(shape), [Scored(tmp_path / "scores", 1)], shape.narrowed(8).widths, "uniform").kept
    assert kept.filters[0] == pytest.approx(sum(range(17, 33)) / sum(range(1, 33)))
    assert kept.attention == kept.ffn == ()


def test_widths_of_the_other_family_are_a_defect(tmp_path):
    shape = CONV.plan("vgg5", image_size=16, channels=1, classes=10)
    with pytest.raises(TypeError, match="no ViT"):
        VIT.create(shape)
    with pytest.raises(TypeError, match="no convolutional network"):
        CONV.create(VIT.plan(MODEL, image_size=8, channels=1, classes=10))


def test_other_names_are_timms():
    with pytest.raises(ModelError, match="unknown model"):
        family_of("vgg_nine").plan("vgg_nine", image_size=None, channels=3, classes=10)


def test_another_pooling_is_planned_made_cut_and_kept(tmp_path):
    shape = VIT.plan(MODEL, image_size=8, channels=1, classes=10, pool="avg")
    model = VIT.create(shape).eval()
    assert describe(model) == shape
    checkpoint.save_model(tmp_path / "model.safetensors", model)
    assert describe(checkpoint.load_model(tmp_path / "model.safetensors")) == shape
    VIT.score(model, torch.randn(4, 1, 8, 8), Scoring("magnitude", batch_size=4), lambda *_: None, tmp_path / "scores")
    narrowed = VIT.cut(model, [Scored(tmp_path / "scores", 4)], shape.narrowed(1).widths, "uniform")
    assert describe(narrowed.model) == shape.narrowed(1)
    with pytest.raises(ModelError, match="vgg5 has no tokens"):
        CONV.plan("vgg5", image_size=16, channels=1, classes=10, pool="avg")


def test_an_attention_pool_gives_way_to_a_pooling_of_ones_own():
    """timm's smallest model with the pooling of SigLIP."""
    name = "test_vit3"
    with pytest.raises(ModelError, match="its pooling is an attention pool"):
        VIT.plan(name, image_size=32, channels=3, classes=3)
    shape = VIT.plan(name, image_size=32, channels=3, classes=3, pool="avg")
    assert VIT.input(name).mean == (0.5,) * 3
    model, x = VIT.create(shape).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(to_rms(model)(x), model(x), atol=1e-5, rtol=1e-5)


def test_statistics_follow_the_tag_of_a_name():
    assert VIT.input("vit_base_patch16_224.mae").mean == (0.485, 0.456, 0.406)
    assert VIT.input("vit_base_patch16_224").mean == (0.5, 0.5, 0.5)
