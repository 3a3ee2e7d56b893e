from __future__ import annotations

import re

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

from edvit.builder.vit import backbone
from edvit.builder.vit.joined import JoinedViT
from edvit.errors import ModelError
from edvit.plan import cost
from edvit.shape.image import ImageSize
from edvit.shape.vit import BlockWidths, Widths, pruned_widths
from vit_variants import CLASSES, NAMES, VARIANTS, images, make

torch.set_num_threads(1)


def test_describe_says_what_the_model_is():
    model = backbone.create("deit_tiny_patch16_224", image_size=112, classes=7)
    architecture = backbone.describe(model)
    assert architecture.name == "deit_tiny_patch16_224"
    assert (architecture.image_size, architecture.patch_size, architecture.channels) == ((112, 112), 16, 3)
    assert (architecture.tokens, architecture.prefix_tokens, architecture.classes) == (50, 1, 7)
    assert architecture.qkv_bias
    assert not (architecture.qk_norm or architecture.layer_scale or architecture.pre_norm)
    assert architecture.widths == Widths(dim=192, blocks=(BlockWidths(heads=3, head_dim=64, hidden=768),) * 12)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("qk_norm", {"qk_norm": True}),
        ("rms_norm", {"qk_norm": True, "qkv_bias": False, "rms_norm": True}),
        ("rms_norm_plain", {"proj_bias": False}),
        ("no_final_norm", {"final_norm": False}),
        ("no_position", {"position_embeddings": "none"}),
        ("plain", {"position_embeddings": "all", "proj_bias": True, "final_norm": True, "rms_norm": False}),
        ("layer_scale", {"layer_scale": True}),
        ("pre_norm", {"pre_norm": True}),
        ("reg_tokens", {"prefix_tokens": 4, "position_embeddings": "patches"}),
        ("avg_pool", {"prefix_tokens": 0}),
    ],
)
def test_describe_sees_the_options(variant, expected):
    architecture = backbone.describe(make(variant))
    assert {key: getattr(architecture, key) for key in expected} == expected


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["dims", "heads"])
def test_a_pruned_model_is_a_plain_timm_model_of_its_widths(variant, mode):
    full = backbone.describe(make(variant)).widths
    target = pruned_widths(full, 1, mode)
    model = backbone.create(NAMES[variant], classes=CLASSES, widths=target)
    assert type(model) is (JoinedViT if variant == "distilled" else VisionTransformer)
    assert backbone.describe(model).widths == target
    assert model(images()).shape == (4, CLASSES)
    assert backbone.feature(model, images()).shape == (4, backbone.describe(model).feature_dim)
    assert {type(m) for m in model.modules()} <= {type(m) for m in make(variant).modules()}
    assert backbone.why_not_splittable(model) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_own_widths_make_the_same_model(variant):
    model = make(variant)
    same = backbone.create(NAMES[variant], classes=CLASSES, widths=backbone.describe(model).widths).eval()
    same.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(same(images()), model(images()))


def test_a_new_model_is_initialised_as_timm_initialises_it():
    torch.manual_seed(0)
    ours = backbone.create("deit_tiny_patch16_224", image_size=32, classes=10)
    theirs = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert a.isfinite().all(), name
        assert float(a.std(unbiased=False)) == pytest.approx(float(b.std(unbiased=False)), rel=0.2, abs=1e-5), name
        assert float(a.mean()) == pytest.approx(float(b.mean()), abs=0.02), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads_pruned", [0, 1])
def test_the_plan_counts_the_parameters_that_the_model_has(variant, heads_pruned):
    target = pruned_widths(backbone.describe(make(variant)).widths, heads_pruned)
    model = backbone.create(NAMES[variant], classes=CLASSES, widths=target)
    assert cost.vit_params(backbone.describe(model)) == sum(p.numel() for p in model.parameters())


def test_same_seed_same_model():
    first, second = (_seeded() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def _seeded() -> VisionTransformer:
    torch.manual_seed(7)
    return backbone.create("vit_digits_patch4_8", channels=1, classes=10)


def test_the_digits_model():
    architecture = backbone.describe(_seeded())
    assert (architecture.image_size, architecture.patch_size, architecture.channels) == ((8, 8), 4, 1)
    assert architecture.widths == Widths(dim=96, blocks=(BlockWidths(heads=6, head_dim=16, hidden=384),) * 6)
    assert backbone.create("vit_digits_patch4_8", classes=10)(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "its class in timm is SwinTransformer, not VisionTransformer"),
        ("convnext_atto", "ConvNeXt"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_base_patch16_siglip_224", r"its pooling is an attention pool \(as in SigLIP\)"),
        ("vit_giant_patch14_dinov2", r"its FFN is GluMlp \(gated, SwiGLU\), not two plain layers"),
        ("vit_dwee_patch16_reg1_gap_256", "DiffAttention"),
        ("beit3_base_patch16_224", "scale_norm"),
        ("aimv2_large_patch14_224", "patch embedding has a norm of its own"),
        ("vit_tiny_r_s16_p8_224", "patch embedding is HybridEmbed, not one projection"),
    ],
)
def test_models_that_cannot_be_split_are_refused_with_the_reason(name, reason):
    with pytest.raises(ModelError, match=f"{name} cannot be split: .*{reason}"):
        backbone.create(name, classes=10)


def test_more_reasons():
    plain = make("plain")
    plain.blocks[1].attn.gate = torch.nn.Linear(24, 24)
    assert "gated" in (backbone.why_not_splittable(plain) or "")
    plain = make("plain")
    plain.blocks[1].norm1 = torch.nn.GroupNorm(1, 24)
    assert "GroupNorm" in (backbone.why_not_splittable(plain) or "")
    plain = make("plain")
    plain.blocks[0].attn.norm = torch.nn.LayerNorm(24)
    assert "scale_norm" in (backbone.why_not_splittable(plain) or "")
    plain = make("plain")
    plain.global_pool = ""
    assert "an encoder without pooling" in (backbone.why_not_splittable(plain) or "")
    assert "Linear" in (backbone.why_not_splittable(torch.nn.Linear(2, 2)) or "")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"global_pool": "avg", "fc_norm": False},
            r"vit_test_plain has global_pool avg, and timm's .* has token;",
        ),
        ({"act_layer": "relu"}, r"this vit_test_plain has act_layer ReLU, and timm's model of that name has GELU;"),
    ],
)
def test_what_the_name_does_not_say_is_not_lost_in_silence(given, said):
    with pytest.raises(ModelError, match=said):
        backbone.like(timm.create_model("vit_test_plain", num_classes=5, **given))
    backbone.like(timm.create_model("vit_test_plain", num_classes=5))


@pytest.mark.parametrize("name", ["deit_tiny_patch16", "vit_tiny_patch16_244"])
def test_an_unknown_model_comes_with_near_matches(name):
    with pytest.raises(ModelError, match=r"did you mean .*tiny_patch16_224"):
        backbone.create(name, classes=10)


@pytest.mark.parametrize("name", ["vit_base", "deit_base_distilled", "vit_base_patch16_siglip"])
def test_only_models_that_can_be_split_are_suggested(name):
    with pytest.raises(ModelError, match="did you mean") as caught:
        backbone.template(name, classes=10)
    suggested = str(caught.value).partition("did you mean ")[2].rstrip("?").split(", ")
    for other in suggested:
        backbone.template(other, classes=10)
    assert 1 <= len(suggested) <= 3


@pytest.mark.parametrize("name", ["", "no such thing at all", "hf-hub:somebody/some-model", "../x"])
def test_names_that_are_like_nothing(name):
    with pytest.raises(ModelError, match="unknown model"):
        backbone.create(name, classes=10)


@pytest.mark.parametrize(
    ("size", "hint"),
    [
        (100, "image size 100 is no .* patch of 16 pixels; use 96 or 112"),
        (5, "use 16"),
        (ImageSize(90, 161), "image size 90x161 is no .* patch of 16 pixels; use 80x160 or 96x176"),
        (ImageSize(96, 161), "use 96x160 or 96x176"),
        (ImageSize(5, 160), "use 16x160"),
    ],
)
def test_an_image_size_that_the_patches_do_not_tile(size, hint):
    with pytest.raises(ModelError, match=hint):
        backbone.create("deit_tiny_patch16_224", image_size=size, classes=10)


def test_widths_of_another_depth_are_refused():
    widths = Widths(dim=8, blocks=(BlockWidths(heads=1, head_dim=8, hidden=8),) * 2)
    with pytest.raises(ModelError, match="3 blocks, the widths have 2"):
        backbone.create(NAMES["plain"], classes=CLASSES, widths=widths)


def test_a_model_of_dynamic_image_size_gets_a_fixed_one():
    model = backbone.template("vit_small_patch14_dinov2", image_size=56, classes=10)
    assert not model.dynamic_img_size
    assert backbone.describe(model).tokens == 17


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_has_axes_of_its_rank(variant):
    model = make(variant)
    widths = backbone.describe(model).widths
    block = widths.blocks[0]
    sizes = {
        "dim": widths.dim,
        "feature": backbone.describe(model).feature_dim,
        "qkv": 3 * block.attention,
        "attention": block.attention,
        "head_dim": block.head_dim,
        "hidden": block.hidden,
    }
    for name, parameter in model.state_dict().items():
        _, axes = backbone.axes(name)
        assert len(axes) == parameter.dim(), name
        for axis, size in zip(axes, parameter.shape, strict=True):
            assert axis is None or sizes[axis] == size, name


def test_running_in_parts_is_the_forward():
    model, x = make("pre_norm"), images()
    with torch.no_grad():
        stream = backbone.embed(model, x)
        assert torch.equal(backbone.classify(model, stream), model(x))
        assert torch.equal(backbone.classify(model, model.blocks[0](stream), 1), model(x))
        assert torch.equal(model.head(backbone.feature(model, x)), model(x))


def test_feature_extractor_normalises_bytes():
    model = make("plain")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = backbone.FeatureExtractor(model, mean, std)
    normal = torch.stack([(image[:, c] / 255.0 - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        assert torch.allclose(extractor(image), backbone.feature(model, normal), atol=1e-5)
    assert extractor(image).shape == (2, 24)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
@pytest.mark.parametrize("variant", ["plain", "layer_scale", "reg_tokens"])
def test_another_pooling_than_the_names_own_is_timms_and_is_recorded(variant, pool):
    torch.manual_seed(0)
    model = backbone.create(NAMES[variant], classes=CLASSES, pool=pool).eval()
    theirs = timm.create_model(NAMES[variant], num_classes=CLASSES, global_pool=pool).eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(model(images()), theirs(images()))
    shape = backbone.describe(model)
    assert shape.pool == pool
    assert backbone.describe(backbone.template_of(shape)) == shape
    assert backbone.describe(backbone.like(model)) == shape
    assert cost.vit_params(shape) == sum(p.numel() for p in model.parameters())


def test_the_names_own_pooling_needs_no_record():
    assert backbone.describe(backbone.template(NAMES["plain"], classes=2, pool="token")).pool is None
    assert backbone.describe(backbone.template(NAMES["avg_pool"], classes=2, pool="avg")).pool is None


def test_an_attention_pool_can_be_replaced():
    shape = backbone.describe(backbone.template("vit_base_patch16_siglip_224", classes=10, pool="avg"))
    assert (shape.pool, shape.prefix_tokens) == ("avg", 0)


def test_a_pooling_of_a_class_token_that_is_not_there():
    with pytest.raises(ModelError, match=r"vit_test_avg_pool: .*Token pooling needs the class token"):
        backbone.template(NAMES["avg_pool"], classes=2, pool="token")


def test_a_name_with_a_tag_is_the_model_with_that_tags_statistics():
    """Without its head, as the weights of a masked autoencoder come; its shape is that of the name alone."""
    tagged = backbone.template("vit_base_patch16_224.mae", classes=10)
    assert backbone.describe(tagged) == backbone.describe(backbone.template("vit_base_patch16_224", classes=10))
    assert tagged.pretrained_cfg["tag"] == "mae"
    with pytest.raises(ModelError, match=r"vit_base_patch16_224\.nope: .*Invalid pretrained tag"):
        backbone.template("vit_base_patch16_224.nope", classes=10)


def test_layer_scale_under_the_names_of_deit_iii():
    model = make("layer_scale")
    state = {re.sub(r"ls(.)\.gamma", r"gamma_\1", name): value for name, value in model.state_dict().items()}
    assert "blocks.0.gamma_1" in state
    fitted = backbone.fit_weights(state, model)
    assert fitted.keys() == model.state_dict().keys()
    assert all(torch.equal(fitted[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("variant", ["plain", "layer_scale", "reg_tokens"])
def test_a_norm_before_average_pooling_is_timms_and_is_recorded(variant):
    """What timm leaves where a model's pooling is changed after it was made."""
    torch.manual_seed(0)
    model = backbone.create(NAMES[variant], classes=CLASSES, pool="avg", fc_norm=False).eval()
    theirs = timm.create_model(NAMES[variant], num_classes=CLASSES)
    theirs.reset_classifier(CLASSES, "avg")
    theirs.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(model(images()), theirs.eval()(images()))
    shape = backbone.describe(model)
    assert (shape.pool, shape.fc_norm) == ("avg", False)
    assert backbone.describe(backbone.template_of(shape)) == shape


@pytest.mark.parametrize(
    ("variant", "given", "recorded"),
    [
        ("plain", {"pool": "avg", "fc_norm": True}, ("avg", None)),
        ("plain", {"fc_norm": False}, (None, None)),
        ("plain", {"fc_norm": True}, (None, True)),
        ("avg_pool", {"pool": "avg", "fc_norm": True}, (None, None)),
        ("avg_pool_norm_first", {"pool": "avg", "fc_norm": False}, (None, None)),
    ],
)
def test_what_timm_would_do_anyway_is_not_recorded(variant, given, recorded):
    shape = backbone.describe(backbone.template(NAMES[variant], classes=2, **given))
    assert (shape.pool, shape.fc_norm) == recorded
    assert backbone.describe(backbone.template_of(shape)) == shape


# --- inputs that are not square ------------------------------------------------------------------------------------

WIDE = ImageSize(8, 20)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_another_shape_than_square_is_timms(variant):
    torch.manual_seed(0)
    theirs = timm.create_model(NAMES[variant], img_size=(8, 20), num_classes=CLASSES).eval()
    ours = backbone.create(NAMES[variant], image_size=WIDE, classes=CLASSES).eval()
    ours.load_state_dict(backbone.fit_weights(theirs.state_dict(), ours, WIDE), strict=True)
    wide = torch.randn(4, 3, 8, 20)
    with torch.no_grad():
        assert torch.allclose(ours(wide), theirs(wide), atol=1e-6)
    architecture = backbone.describe(ours)
    assert architecture.image_size == WIDE
    assert architecture.tokens == backbone.embed(ours, wide).shape[1]
    assert cost.vit_params(architecture) == sum(parameter.numel() for parameter in ours.parameters())


@pytest.mark.parametrize("variant", ["plain", "reg_tokens", "avg_pool", "distilled"])
@pytest.mark.parametrize(
    ("own", "new"),
    [
        (ImageSize(16, 16), ImageSize(8, 20)),
        (ImageSize(16, 16), ImageSize(8, 32)),  # as many patches
        (ImageSize(8, 32), ImageSize(16, 16)),
        (ImageSize(8, 20), ImageSize(16, 16)),
        (ImageSize(8, 20), ImageSize(20, 8)),
    ],
    ids=str,
)
def test_position_embeddings_are_resampled_from_the_checkpoints_own_grid(variant, own, new):
    theirs = make(variant, image_size=own)
    fitted = backbone.fit_weights(
        theirs.state_dict(), backbone.template(NAMES[variant], image_size=new, classes=5), own
    )
    prefix = 0 if theirs.no_embed_class else theirs.num_prefix_tokens
    grids = [[side // 4 for side in size] for size in (own, new)]
    expected = resample_abs_pos_embed(
        theirs.pos_embed.detach(), new_size=grids[1], old_size=grids[0], num_prefix_tokens=prefix
    )
    assert torch.equal(fitted["pos_embed"], expected)
    assert not torch.equal(fitted["pos_embed"], theirs.pos_embed) or own == new


def test_a_checkpoint_that_says_nothing_has_the_grid_of_its_name():
    """A model of 8 pixels has 2 x 2 patches, and so has one of 4 x 16, in another order."""
    theirs = make("plain")
    for size in (ImageSize(4, 16), ImageSize(8, 20)):
        fitted = backbone.fit_weights(
            theirs.state_dict(), backbone.template(NAMES["plain"], image_size=size, classes=5)
        )
        expected = resample_abs_pos_embed(
            theirs.pos_embed.detach(), new_size=[side // 4 for side in size], old_size=[2, 2]
        )
        assert torch.equal(fitted["pos_embed"], expected)


def test_a_checkpoint_of_the_models_own_size_stays_as_it_is():
    theirs = make("plain", image_size=WIDE)
    fitted = backbone.fit_weights(theirs.state_dict(), backbone.template(NAMES["plain"], image_size=WIDE, classes=5))
    assert torch.equal(fitted["pos_embed"], theirs.pos_embed)
