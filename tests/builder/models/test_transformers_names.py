"""Models of Hugging Face's transformers, saved by it and read by us: the same scores as its own forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edvit.builder.models.family import VIT
from edvit.builder.models.origin import find_weights
from edvit.builder.models.weights import load_weights
from edvit.errors import WeightsError
from vit_variants import NAMES, images

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

SHAPE = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 8, "patch_size": 4,
    "num_labels": 5,
}  # fmt: skip
FFN = {"intermediate_size": 48}


def drawn(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5) + 0.1)
    return model.eval()


def vit(tmp_path, **config):
    model = drawn(transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, **FFN, **config)))
    model.save_pretrained(tmp_path)
    return model


def load(folder, name=NAMES["plain"], classes=5):
    return load_weights(find_weights(folder), VIT.plan(name, image_size=8, channels=3, classes=classes))


def test_a_vit_scores_as_in_transformers(tmp_path):
    model = vit(tmp_path)
    ours, head_kept = load(tmp_path)
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), model(images()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_a_small_epsilon_makes_no_difference(eps, tmp_path):
    model = vit(tmp_path, layer_norm_eps=eps)
    ours, _ = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), model(images()).logits, rtol=1e-3, atol=1e-3)


def test_a_vit_in_shards(tmp_path):
    model = drawn(transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, **FFN)))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(find_weights(tmp_path).files) > 1
    ours, head_kept = load(tmp_path)
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), model(images()).logits, rtol=1e-4, atol=1e-4)
    shard = find_weights(tmp_path).files[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"lists {shard.name}, which is not beside it"):
        load(tmp_path)


def test_a_vit_without_a_head_and_with_a_pooler(tmp_path):
    model = drawn(transformers.ViTModel(transformers.ViTConfig(**SHAPE, **FFN)))
    model.save_pretrained(tmp_path)
    ours, head_kept = load(tmp_path)
    assert not head_kept
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval().forward_features(images()), model(images()).last_hidden_state, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_scores_as_in_transformers(registers, tmp_path):
    """Its classifier reads the class token and the mean of the patches."""
    shape = {**SHAPE, "mlp_ratio": 2}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersForImageClassification(config)
    else:
        model = transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**shape))
    drawn(model).save_pretrained(tmp_path)
    origin, name = find_weights(tmp_path), NAMES["dinov2_reg4" if registers else "layer_scale"]
    assert origin.facts.pool == "token+avg"
    plan = VIT.plan(name, image_size=8, channels=3, classes=5, pool=origin.facts.pool)
    ours, head_kept = load_weights(origin, plan)
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), model(images()).logits, rtol=1e-4, atol=1e-4)


def test_a_dinov2_without_a_head(tmp_path):
    model = drawn(transformers.Dinov2Model(transformers.Dinov2Config(**{**SHAPE, "mlp_ratio": 2})))
    model.save_pretrained(tmp_path)
    assert find_weights(tmp_path).facts.pool is None
    ours, head_kept = load(tmp_path, NAMES["layer_scale"])
    assert not head_kept
    with torch.no_grad():
        theirs = model(images()).last_hidden_state
        torch.testing.assert_close(ours.eval().forward_features(images()), theirs, rtol=1e-4, atol=1e-4)


def test_a_masked_autoencoder_gives_its_encoder(tmp_path):
    config = transformers.ViTMAEConfig(
        **{name: value for name, value in {**SHAPE, **FFN}.items() if name != "num_labels"},
        decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=3,
        decoder_intermediate_size=48, mask_ratio=0.0,
    )  # fmt: skip
    model = drawn(transformers.ViTMAEForPreTraining(config))
    model.save_pretrained(tmp_path)
    ours, head_kept = load(tmp_path)
    assert not head_kept
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(ours.blocks[2].mlp.fc2.weight, stored["vit.encoder.layer.2.output.dense.weight"])
    assert torch.equal(ours.pos_embed, stored["vit.embeddings.position_embeddings"])


def test_what_the_config_says(tmp_path):
    names = ["cat", "dog", "owl", "bee", "ant"]
    vit(tmp_path, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2})
    )
    facts = find_weights(tmp_path).facts
    assert facts.classes == ("cat", "dog", "owl", "bee", "ant")
    assert (facts.mean, facts.std, facts.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert (facts.image_size, facts.pool, facts.model) == ((8, 8), "token", None)
    assert find_weights(tmp_path / "model.safetensors").facts == facts, "the file in the folder says the same"


def test_names_that_stand_for_nothing_are_none(tmp_path):
    vit(tmp_path)
    assert find_weights(tmp_path).facts.classes is None


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "vit", "hidden_size": 768}, "vit_base_patch16_224"),
        ({"model_type": "vit", "hidden_size": 1024, "image_size": 384}, "vit_large_patch16_384"),
        ({"model_type": "vit", "hidden_size": 192, "patch_size": 16}, "vit_tiny_patch16_224"),
        ({"model_type": "vit_mae", "hidden_size": 768}, "vit_base_patch16_224"),
        ({"model_type": "deit", "hidden_size": 384}, "deit_small_distilled_patch16_224"),
        ({"model_type": "dinov2", "hidden_size": 384, "patch_size": 14}, "vit_small_patch14_dinov2"),
        ({"model_type": "dinov2_with_registers", "patch_size": 14}, "vit_base_patch14_reg4_dinov2"),
        ({"model_type": "vit", "hidden_size": 100}, None),
    ],
)
def test_the_config_names_the_model(config, name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert find_weights(tmp_path).facts.model == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "swin"}, "is of a model of type 'swin'; of transformers' models vit, deit, dinov2"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "has the activation quick_gelu"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, "a gated FFN"),
        ({"model_type": "vit", "layer_norm_eps": 0.1}, "has layer_norm_eps 0.1, and models are split with timm's"),
        ({"model_type": "vit", "image_size": "large"}, r"config\.json: image_size"),
    ],
)
def test_other_models_are_refused_by_what_they_are(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        find_weights(tmp_path)


@pytest.mark.parametrize("teacher", [True, False])
def test_a_deit_scores_as_in_transformers(teacher, tmp_path):
    """With a teacher both heads are averaged; without, one head reads the class token alone."""
    config = transformers.DeiTConfig(**SHAPE, **FFN)
    kind = transformers.DeiTForImageClassificationWithTeacher if teacher else transformers.DeiTForImageClassification
    model = drawn(kind(config))
    model.save_pretrained(tmp_path)
    ours, head_kept = load(tmp_path, NAMES["distilled"])
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images()), model(images()).logits, rtol=1e-4, atol=1e-4)
