from __future__ import annotations

import argparse
import json
import shutil

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from checkpoint_kinds import KINDS
from edvit.builder.models.checkpoint import save_model
from edvit.builder.models.class_names import HeadOrder, head_order
from edvit.builder.models.family import VIT
from edvit.builder.models.origin import find_weights, pretrained_weights
from edvit.builder.models.weights import load_weights
from edvit.errors import WeightsError
from edvit.shape.image import ImageSize
from vit_variants import CLASSES, NAMES, images, make

torch.set_num_threads(1)
PLAIN = NAMES["plain"]
LABELS = ["cat", "dog", "owl", "bee", "ant"]


def hub_folder(folder, model, **config):
    save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return folder


def load(origin, classes=CLASSES, order=None, name=PLAIN):
    return load_weights(origin, VIT.plan(name, image_size=None, channels=3, classes=classes), order)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Hugging Face's cache in a folder of the test, without a network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(name, source):
        repository = folder / f"models--{name.replace('/', '--')}"
        shutil.copytree(source, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)

    return put


def test_timms_own_folder_to_the_same_numbers(tmp_path):
    model = make("plain")
    origin = find_weights(hub_folder(tmp_path / "m", model, label_names=LABELS))
    assert origin.facts.model == PLAIN
    assert origin.facts.classes == tuple(LABELS)
    assert origin.facts.image_size == (8, 8)
    assert (origin.facts.mean, origin.facts.std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    loaded, head_kept = load(origin, CLASSES)
    assert head_kept
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), model(images()))


def test_a_folder_with_a_pytorch_file(tmp_path):
    model = make("plain")
    save_for_hf(model, tmp_path, safe_serialization=False)
    loaded, _ = load(find_weights(tmp_path), CLASSES)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_a_folder_with_one_file_of_another_name(tmp_path):
    save_file(make("plain").state_dict(), tmp_path / "best.safetensors")
    assert find_weights(tmp_path).files == (tmp_path / "best.safetensors",)
    save_file(make("plain").state_dict(), tmp_path / "last.safetensors")
    with pytest.raises(WeightsError, match=r"it has several, such as best\.safetensors: give one"):
        find_weights(tmp_path)


def test_how_timm_wrote_configs_at_first(tmp_path):
    save_file(make("plain").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": PLAIN, "mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 8, 8]})
    )
    facts = find_weights(tmp_path).facts
    assert (facts.model, facts.mean, facts.std, facts.image_size) == (PLAIN, (0.1,) * 3, (0.2,) * 3, (8, 8))


def with_arguments(folder, **arguments):
    """A folder of a model whose config says that it was built with arguments."""
    hub_folder(folder, make("plain"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_args": arguments}))
    return folder


def test_arguments_that_the_model_of_that_name_has_anyway_change_nothing(tmp_path):
    model = make("plain")
    own = {
        "mlp_ratio": model.blocks[0].mlp.fc1.out_features / model.embed_dim,
        "embed_dim": model.embed_dim, "num_heads": model.blocks[0].attn.num_heads,
        "patch_size": list(model.patch_embed.patch_size), "act_layer": "gelu", "qkv_bias": True, "reg_tokens": 0,
        "init_values": None, "depth": None, "norm_layer": "layernorm",
        "weight_init": "jax", "img_size": [16, 16],
    }  # fmt: skip
    folder = with_arguments(tmp_path / "m", **own)
    assert find_weights(folder).facts == find_weights(with_arguments(tmp_path / "n")).facts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("depth", 1), ("depth", "2"), ("num_heads", 1), ("act_layer", "relu"), ("qk_norm", True),
        ("mlp_ratio", 3.0), ("init_values", 1e-5), ("no_embed_class", True), ("norm_layer", "rmsnorm"), ("new", 0),
        ("checkpoint_path", "x.pth"), ("pretrained", True),
    ],
)  # fmt: skip
def test_another_model_under_the_same_name_is_refused(name, value, tmp_path):
    folder = with_arguments(tmp_path / "m", **{name: value, "qkv_bias": True})
    with pytest.raises(WeightsError) as caught:
        find_weights(folder)
    assert str(caught.value) == (
        f"{folder}: was built with {name} {json.dumps(value)}, and timm's {PLAIN} is not; only models that timm has a "
        "name for are split: if it has one for this model, write it in config.json as architecture, and remove "
        "model_args"
    )


def test_the_model_goes_by_the_name_that_timm_has_for_it(tmp_path):
    """What the refusal says to do is enough."""
    model = make("plain")
    folder = with_arguments(tmp_path / "m", depth=len(model.blocks), embed_dim=model.embed_dim)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "vit_tiny_patch16_224"}))
    with pytest.raises(WeightsError, match=r"was built with depth \d+, embed_dim \d+, and timm's vit_tiny_patch16_224"):
        find_weights(folder)
    del config["model_args"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded, _ = load(find_weights(folder), CLASSES)
    assert torch.equal(loaded.head.weight, model.head.weight)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"pretrained_cfg": 3, "architecture": "x"}', '"x"'])
def test_a_config_that_is_none_is_one_line(content, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json: ") as caught:
        find_weights(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_of_the_hub(cache, tmp_path):
    model = make("plain")
    cache("me/mine", hub_folder(tmp_path / "m", model, label_names=LABELS))
    from pathlib import Path

    origin = find_weights(Path("hf-hub:me/mine"))
    assert origin.facts.classes == tuple(LABELS)
    loaded, _ = load(origin, CLASSES)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_a_name_that_is_not_in_the_cache_is_one_line(cache):
    from pathlib import Path

    with pytest.raises(WeightsError, match=r"hf-hub:me/absent: cannot be downloaded.* give its folder"):
        find_weights(Path("hf-hub:me/absent"))
    with pytest.raises(WeightsError, match=r"hf-hub:a/b/c: cannot be downloaded"):
        find_weights(Path("hf-hub:a/b/c"))


def test_timms_pretrained_weights(cache, tmp_path):
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    model = timm.create_model(name)
    cache(timm.get_pretrained_cfg(name).hf_hub_id, hub_folder(tmp_path / "m", model))
    origin = pretrained_weights(name)
    assert (origin.facts.model, origin.facts.mean) == (name, (0.5, 0.5, 0.5))
    loaded, head_kept = load(origin, 1000, name=name)
    assert head_kept
    assert torch.equal(loaded.head.weight, model.head.weight)


@pytest.mark.parametrize("name", [PLAIN, "vit_digits_patch4_8", "nonesuch"])
def test_a_model_without_pretrained_weights(name):
    with pytest.raises(WeightsError, match=f"timm has no pretrained weights for {name}"):
        pretrained_weights(name)


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("timm-train", ("state_dict_ema", "state_dict")),
        ("deit", ("model_ema", "model")),
        ("dino", ("teacher", "student")),
        ("model", ()),
        ("plain", ()),
    ],
)
def test_which_weights_of_several_are_taken(name, taken, tmp_path):
    """That these are indeed the ones is checked with the kinds of checkpoints."""
    kind = KINDS[name]
    path, _ = kind.write(tmp_path / "w.pth")
    assert find_weights(path).facts.weights == taken
    assert all(f"`{key}`" in kind.what for key in taken)


def test_a_synset_comes_with_its_words(tmp_path):
    words = {"n01440764": "tench, Tinca tinca", "cat": "an animal"}
    names = ["n01440764", "n01443537", "cat", "dog", "owl"]
    folder = hub_folder(tmp_path / "m", make("plain"), label_names=names, label_descriptions=words)
    assert find_weights(folder).facts.classes == ("n01440764 tench, Tinca tinca", *names[1:])


@pytest.mark.parametrize("args", [argparse.Namespace, dict])
def test_what_timms_training_script_writes_down(args, tmp_path):
    asked = {"model": PLAIN, "mean": [0.3], "std": [0.4], "img_size": 8, "interpolation": "bilinear", "gp": None}
    torch.save(
        {"state_dict": make("plain").state_dict(), "args": args(**asked), "arch": PLAIN, "metric": 85.5},
        tmp_path / "model_best.pth.tar",
    )
    facts = find_weights(tmp_path / "model_best.pth.tar").facts
    assert (facts.model, facts.mean, facts.std, facts.image_size) == (PLAIN, (0.3,), (0.4,), (8, 8))
    assert (facts.interpolation, facts.accuracy) == ("bilinear", 0.855)


def test_a_metric_that_is_a_loss_is_no_accuracy(tmp_path):
    args = argparse.Namespace(model=PLAIN, eval_metric="loss")
    torch.save({"state_dict": {}, "args": args, "metric": 1.5}, tmp_path / "w.pth")
    assert find_weights(tmp_path / "w.pth").facts.accuracy is None


def test_the_head_is_put_into_the_order_of_the_data(tmp_path):
    model = make("plain")
    origin = find_weights(hub_folder(tmp_path / "m", model, label_names=LABELS))
    order = head_order(LABELS, ["Ant", "cat", "owl"], "config.json")
    assert order == HeadOrder("config.json", 5, (4, 0, 2))
    loaded, head_kept = load(origin, 3, order)
    assert head_kept
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images()), model(images())[:, [4, 0, 2]])


def test_as_many_names_as_outputs(tmp_path):
    origin = find_weights(hub_folder(tmp_path / "m", make("plain")))
    with pytest.raises(WeightsError, match=r"names 4 outputs, and the head of .* has 5"):
        load(origin, 4, head_order(LABELS[:4], LABELS[:4], "names.txt"))


def test_the_pooling_that_a_config_says(tmp_path):
    model = timm.create_model(PLAIN, global_pool="avg", num_classes=CLASSES).eval()
    origin = find_weights(hub_folder(tmp_path / "m", model))
    assert origin.facts.pool == "avg"
    loaded, _ = load_weights(origin, VIT.plan(PLAIN, image_size=8, channels=3, classes=CLASSES, pool="avg"))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), model(images()))


# --- inputs that are not square ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ({"input_size": [3, 8, 20]}, (8, 20)),
        ({"img_size": 16, "input_size": [3, 8, 20]}, (16, 16)),
        ({"input_size": [3, 8, 0]}, None),
        ({"img_size": "big"}, None),
        ({}, None),
    ],
)
def test_a_training_checkpoint_says_height_and_width(tmp_path, args, size):
    torch.save({"state_dict": make("plain").state_dict(), "args": args}, tmp_path / "w.pth")
    assert find_weights(tmp_path / "w.pth").facts.image_size == size


def test_a_config_says_height_and_width(tmp_path):
    save_file(make("plain", image_size=ImageSize(8, 20)).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": PLAIN, "input_size": [3, 8, 20]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_weights(tmp_path).facts.image_size == (8, 20)
    (tmp_path / "config.json").write_text(json.dumps({**config, "input_size": [3, 0, 0]}))
    assert find_weights(tmp_path).facts.image_size is None
    transformers = {"model_type": "vit", "hidden_size": 24, "image_size": [8, 20], "patch_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(transformers))
    assert find_weights(tmp_path).facts.image_size == (8, 20)


def test_a_base_model_of_ours_says_its_size(tmp_path):
    """Of 4 x 16 pixels: as many patches as in the 8 x 8 of its name."""
    model = make("plain", image_size=ImageSize(4, 16))
    save_model(tmp_path / "base.safetensors", model)
    origin = find_weights(tmp_path / "base.safetensors")
    assert origin.facts.image_size == (4, 16)
    loaded, _ = load_weights(origin, VIT.plan(PLAIN, image_size=ImageSize(4, 16), channels=3, classes=CLASSES))
    assert torch.equal(loaded.pos_embed, model.pos_embed)
