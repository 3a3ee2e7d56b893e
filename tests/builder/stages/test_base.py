"""Weights that are given: taken right, or refused before anything is cut, with the likely cause."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from edvit.builder.models import checkpoint
from edvit.builder.stages.base import load, weights_path
from edvit.builder.stages.source import open_source
from edvit.builder.train.base import accuracy as accuracy_of
from edvit.builder.train.base import logits_of
from edvit.errors import ConfigError, WeightsError
from tiny_build import opened, tiny_config
from vit_variants import NAMES, make

torch.set_num_threads(1)

CLASSES = ("1", "2", "3", "10", "20")
AS_SORTED = ("1", "10", "2", "20", "3")
"""As torchvision's ImageFolder has them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes that differ in brightness."""
    root, rng = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    (root / "class_order.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    for split, images in (("train", 40), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                pixels = 25 + 50 * label + rng.normal(0, 5, (8, 8, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index}.png")
    return root


def config_of(folder, **settings):
    known = {
        "model": NAMES["plain"],
        "data": f"imagefolder:{folder}",
        "augment": "none",
        "base_epochs": None,
        "base_lr": None,
    }
    return tiny_config(**{**known, **settings})


def trained(folder, work, **settings):
    config = config_of(folder, **{"base_epochs": 60, "base_lr": 3e-3, "validation": 0.25, **settings})
    base = opened(config, work).base
    assert base.artifact.note["validation"] > 0.9, "or these tests say nothing"
    return weights_path(base.artifact)


@pytest.fixture(scope="module")
def weights(folder, tmp_path_factory):
    """A file of a model that knows the classes."""
    return trained(folder, tmp_path_factory.mktemp("work"))


def accuracy(folder, work, weights, **settings):
    return opened(config_of(folder, weights=weights, **settings), work).base.artifact.note["validation"]


def reordered(weights, path, order):
    state = load_file(weights)
    rows = [CLASSES.index(name) for name in order]
    save_file({key: value[rows] if key.startswith("head.") else value for key, value in state.items()}, path)
    return path


def test_weights_that_know_the_classes_are_taken_as_given(folder, weights, tmp_path):
    assert accuracy(folder, tmp_path, weights) > 0.9


def test_classes_in_torchvisions_order_are_refused_and_named(folder, weights, tmp_path):
    other = reordered(weights, tmp_path / "w.safetensors", AS_SORTED)
    with pytest.raises(WeightsError, match=r"sorted letter by letter, as torchvision.*give --class-names FILE"):
        accuracy(folder, tmp_path / "work", other)


def test_a_learning_rate_of_a_base_that_is_not_trained_is_refused(folder, tmp_path):
    save_file(make("plain").state_dict(), tmp_path / "w.safetensors")
    config = config_of(folder, weights=tmp_path / "w.safetensors", base_lr=1e-3)
    with pytest.raises(ConfigError, match="--base-lr: the weights know the classes, so the base model is not trained"):
        load(config, open_source(config))


def test_class_names_put_them_right(folder, weights, tmp_path):
    other = reordered(weights, tmp_path / "w.safetensors", AS_SORTED)
    names = tmp_path / "names.txt"
    names.write_text("\r\n".join(AS_SORTED), encoding="utf-8-sig")
    assert accuracy(folder, tmp_path / "work", other, class_names=names) == accuracy(folder, tmp_path / "w2", weights)


def test_the_names_in_a_config_put_them_right(folder, weights, tmp_path):
    model = checkpoint.load_model(reordered_model(weights, tmp_path))
    save_for_hf(model, tmp_path / "hub", model_config={"label_names": list(AS_SORTED)}, safe_serialization=True)
    assert accuracy(folder, tmp_path / "work", tmp_path / "hub", model=None) > 0.9


def reordered_model(weights, tmp_path):
    model = checkpoint.load_model(weights)
    rows = [CLASSES.index(name) for name in AS_SORTED]
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight[rows])
        model.head.bias.copy_(model.head.bias[rows])
    checkpoint.save_model(tmp_path / "reordered.safetensors", model)
    return tmp_path / "reordered.safetensors"


def test_wrong_names_in_a_config_are_refused(folder, weights, tmp_path):
    wrong = {str(number): name for number, name in enumerate(AS_SORTED)}
    hub = transformers_folder(weights, tmp_path / "hub", id2label=wrong)
    told = r"output 1 like '2', output 2 like '3', output 3 like '10', output 4 like '20'; config\.json names them "
    with pytest.raises(WeightsError, match=told + "otherwise; give --class-names FILE"):
        accuracy(folder, tmp_path / "work", hub)
    sorted_head = reordered(weights, tmp_path / "w.safetensors", AS_SORTED)
    wrong = {str(number): name for number, name in enumerate(CLASSES)}
    hub = transformers_folder(sorted_head, tmp_path / "sorted", id2label=wrong)
    with pytest.raises(
        WeightsError, match=r"sorted letter by letter, as torchvision.*config\.json names them otherwise"
    ):
        accuracy(folder, tmp_path / "work", hub)


def test_a_head_of_more_classes_gives_its_outputs_by_name(folder, weights, tmp_path):
    state = load_file(weights)
    more = {key: torch.cat([torch.zeros_like(value[:2]), value]) if key.startswith("head.") else value
            for key, value in state.items()}  # fmt: skip
    save_file(more, tmp_path / "w.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(["cat", "dog", *CLASSES]), encoding="utf-8")
    found = accuracy(folder, tmp_path / "work", tmp_path / "w.safetensors", class_names=tmp_path / "names.txt")
    assert found == accuracy(folder, tmp_path / "w2", weights)


@pytest.fixture(scope="module")
def raw(folder, tmp_path_factory):
    """A file of a model that learnt from images of 0 to 1, not normalised."""
    return trained(folder, tmp_path_factory.mktemp("raw"), mean=(0.0,), std=(1.0,))


def transformers_folder(weights, path, processor=None, **config):
    """As transformers saves them, with tensors under timm's names, which are read there as well."""
    path.mkdir()
    shutil.copy(weights, path / "model.safetensors")
    shape = {"model_type": "vit", "hidden_size": 24, "image_size": 8, "patch_size": 4, "num_attention_heads": 3}
    (path / "config.json").write_text(json.dumps({**shape, **config}))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 8}, **processor}))
    return path


def test_another_mean_and_deviation_is_refused_and_named(folder, raw, tmp_path):
    with pytest.raises(WeightsError, match=f"than those of {NAMES['plain']}; give --mean 0 0 0 --std 1 1 1"):
        accuracy(folder, tmp_path / "work", raw)
    assert accuracy(folder, tmp_path / "work", raw, mean=(0.0,), std=(1.0,)) > 0.9


def test_another_mean_and_deviation_than_those_that_are_typed_is_refused(folder, raw, tmp_path):
    with pytest.raises(WeightsError, match="than those of --mean/--std; give --mean 0 0 0 --std 1 1 1"):
        accuracy(folder, tmp_path / "work", raw, mean=(0.5,), std=(0.5,))


def test_another_mean_and_deviation_of_grey_images_is_refused(folder, tmp_path):
    weights = trained(folder, tmp_path / "a", mean=(0.0,), std=(1.0,), channels=1)
    with pytest.raises(WeightsError, match=r"give --mean 0 --std 1$"):
        accuracy(folder, tmp_path / "work", weights, channels=1)


@pytest.mark.parametrize("processor", [{"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {}])
def test_another_mean_and_deviation_than_those_of_a_config_is_refused(processor, folder, raw, tmp_path):
    hub = transformers_folder(raw, tmp_path / "hub", processor)
    with pytest.raises(WeightsError, match=r"than those of preprocessor_config\.json; give --mean 0 0 0 --std 1 1 1"):
        accuracy(folder, tmp_path / "work", hub)


@pytest.mark.parametrize(
    "processor",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [0.0] * 3, "image_std": [255.0] * 3},
        {"rescale_factor": 1 / 127.5, "image_mean": [0.0] * 3, "image_std": [2.0] * 3},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": [-1.0] * 3, "image_std": [2.0] * 3},
    ],
)
def test_a_config_that_rescales_is_followed(processor, folder, raw, tmp_path):
    source = open_source(config_of(folder, weights=transformers_folder(raw, tmp_path / "hub", processor)))
    assert source.statistics == "preprocessor_config.json"
    assert source.preprocessing.mean == pytest.approx((0.0, 0.0, 0.0))
    assert source.preprocessing.std == pytest.approx((1.0, 1.0, 1.0))


def test_without_a_processor_the_model_that_is_typed_says_mean_and_deviation(folder, weights, tmp_path):
    """A config of transformers says a shape, and several models of timm's have it."""
    shape = {"hidden_size": 192, "image_size": 224, "patch_size": 16}
    hub = transformers_folder(weights, tmp_path / "hub", **shape)
    typed = open_source(config_of(folder, weights=hub, model="deit_tiny_patch16_224"))
    assert typed.statistics == "deit_tiny_patch16_224"
    assert typed.preprocessing.mean == (0.485, 0.456, 0.406)
    assert open_source(config_of(folder, weights=hub, model=None)).statistics == "vit_tiny_patch16_224"


def test_what_is_done_to_images_otherwise_is_one_line(folder, weights, tmp_path):
    how = {"size": {"height": 16, "width": 16}, "resample": 1}
    source = open_source(config_of(folder, weights=transformers_folder(weights, tmp_path / "hub", how)))
    assert source.remark == (
        "the weights' own images were stretched to a square, resized by lanczos, shown at 16 pixels (--img-size 16 "
        "does so); here they are scaled by bicubic until they cover 8 pixels, and their middle is taken"
    )
    same = transformers_folder(weights, tmp_path / "same", {})
    assert open_source(config_of(folder, weights=same)).remark is None


def test_the_checkpoints_own_arguments_say_mean_and_deviation(folder, tmp_path):
    weights = trained(folder, tmp_path / "a", mean=(0.0,), std=(1.0,))
    args = argparse.Namespace(model=NAMES["plain"], mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    torch.save({"state_dict": load_file(weights), "args": args}, tmp_path / "w.pth.tar")
    assert accuracy(folder, tmp_path / "work", tmp_path / "w.pth.tar") > 0.9


def test_pooling_by_mean_without_a_norm_after_it_is_refused(folder, tmp_path):
    weights = trained(folder, tmp_path / "a", model=NAMES["avg_pool_norm_first"])
    with pytest.raises(WeightsError, match=r"if its tokens are pooled by their mean.*give --pool avg"):
        accuracy(folder, tmp_path / "work", weights)
    assert accuracy(folder, tmp_path / "work", weights, pool="avg") > 0.9


def test_weights_of_images_with_blue_first_are_refused_and_can_be_turned(tmp_path):
    """Classes differ in red alone; the file is as OpenCV's readers train it, and is turned as docs/models.md says."""
    root, rng = tmp_path / "red", np.random.default_rng(0)
    for split, images in (("train", 40), ("test", 4)):
        for label, name in enumerate("abcde"):
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                colour = np.array([25 + 50 * label, 100, rng.integers(20, 230)])
                pixels = colour + rng.normal(0, 5, (8, 8, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index}.png")
    rgb = trained(root, tmp_path / "a")
    projection = "patch_embed.proj.weight"
    state = load_file(rgb)
    save_file({**state, projection: state[projection].flip(1).contiguous()}, tmp_path / "bgr.safetensors")
    with pytest.raises(WeightsError, match=rf"with blue first, as OpenCV reads.*flip\(1\) of their {projection}"):
        accuracy(root, tmp_path / "work", tmp_path / "bgr.safetensors")
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r'python -c "(.*bgr\.safetensors.*)"', page)
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
    assert accuracy(root, tmp_path / "work", tmp_path / "rgb.safetensors") > 0.9


def test_weights_that_know_nothing_are_refused(folder, tmp_path):
    state = make("plain").state_dict()
    save_file({**state, "head.weight": torch.zeros_like(state["head.weight"])}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"and chance is 20\.0%: the weights do not know these classes"):
        accuracy(folder, tmp_path / "work", tmp_path / "w.safetensors")


def test_weights_that_know_nothing_are_told_by_their_key(folder, weights, tmp_path):
    state, nothing = load_file(weights), make("plain").state_dict()
    nothing["head.weight"].zero_()
    torch.save(
        {"model": nothing, "swa_model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth"
    )
    with pytest.raises(WeightsError, match=r"with the weights of model, not swa_model, gets .*chance is 20\.0%"):
        accuracy(folder, tmp_path / "work", tmp_path / "w.pth")


def test_names_of_none_of_the_classes_are_the_cause_that_is_given(folder, tmp_path):
    model = make("plain")
    torch.nn.init.zeros_(model.head.weight)
    save_for_hf(model, tmp_path / "hub", model_config={"label_names": list("vwxyz")}, safe_serialization=True)
    told = r"config\.json names 5 outputs, none a class of the data: v, w, x, y, z;"
    with pytest.raises(WeightsError, match=told):
        accuracy(folder, tmp_path / "work", tmp_path / "hub", model=None)
    two = timm.create_model(NAMES["plain"], num_classes=2)
    save_for_hf(two, tmp_path / "two", model_config={"label_names": list("vw")}, safe_serialization=True)
    config = config_of(folder, weights=tmp_path / "two", model=None, base_epochs=0)
    with pytest.raises(WeightsError, match=r"has no head for the 5 classes of the data \(config\.json names 2 outputs"):
        load(config, open_source(config))


def test_a_new_head_is_trained_or_refused(folder, tmp_path):
    save_file(make("plain").state_dict(), tmp_path / "w.safetensors")
    state = load_file(tmp_path / "w.safetensors")
    more = {key: torch.cat([value, value]) if key.startswith("head.") else value for key, value in state.items()}
    save_file(more, tmp_path / "ten.safetensors")
    with pytest.raises(WeightsError, match="has no head for the 5 classes of the data, and --base-epochs 0"):
        config = config_of(folder, weights=tmp_path / "ten.safetensors", base_epochs=0)
        load(config, open_source(config))  # before anything is decoded
    assert accuracy(folder, tmp_path / "work", tmp_path / "ten.safetensors", base_epochs=30, base_lr=3e-3) > 0.5


def test_heads_are_those_that_the_config_says(folder, weights, tmp_path):
    """No tensor tells how many there are."""
    shutil.copy(weights, tmp_path / "model.safetensors")
    config = {"model_type": "vit", "hidden_size": 24, "image_size": 8, "patch_size": 4, "num_attention_heads": 6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"config\.json says 6 heads, and vit_test_plain has 3"):
        open_source(config_of(folder, weights=tmp_path))
    with pytest.raises(ConfigError, match=r"config\.json names no model of timm's; give --model"):
        open_source(config_of(folder, weights=tmp_path, model=None))


def test_a_new_model_is_trained_or_refused(folder):
    config = config_of(folder, base_epochs=0)
    with pytest.raises(ConfigError, match="--base-epochs 0 leaves a model without weights as it was drawn"):
        load(config, open_source(config))


def test_less_than_the_checkpoint_says_is_refused(folder, weights, tmp_path):
    state = load_file(weights)
    torch.manual_seed(0)
    state["head.bias"][:2] += 8.0  # two classes that it now sees everywhere
    torch.save({"state_dict": state, "metric": 97.5}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"its checkpoint says 97\.5%"):
        accuracy(folder, tmp_path / "work", tmp_path / "w.pth")


def test_what_the_statistics_are_taken_from(folder, weights, tmp_path):
    def source(**settings):
        return open_source(config_of(folder, **settings))

    assert source(weights=weights).statistics == NAMES["plain"]
    assert source(weights=weights, mean=(0.5,), std=(0.5,)).statistics == "--mean/--std"
    given = source(weights=weights, mean=(0.1, 0.2, 0.3))
    assert given.statistics == f"--mean and {NAMES['plain']}"
    assert given.preprocessing.mean == (0.1, 0.2, 0.3)
    assert source(mean=(0.5,), channels=1).preprocessing.mean == (0.5,)
    with pytest.raises(ConfigError, match="--mean takes 1 or 3 numbers, one a channel, not 2"):
        source(mean=(0.1, 0.2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ndog\n", r"names\.txt: names none of .*; it has to be a text file of one name a line, in the order"),
        (b"\xff", "read as UTF-8"),
        (b'["a", "b"]', "is JSON, and so names none of"),
        (b'{\n"0": "a",\n"1": "b"\n}', "is JSON, and so names none of"),
        (b"0 a\n1 b\n", "has numbers before the names, and so names none of"),
        (b"0: a\n1: b\n", "has numbers before the names, and so names none of"),
        (b"7,a\n8,b\n", "has numbers before the names, and so names none of"),
    ],
)
def test_class_names_that_say_nothing(content, message, folder, weights, tmp_path):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        open_source(config_of(folder, weights=weights, class_names=tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": "x"}, "class_names: names the outputs of the head of --weights, which is not given"),
        ({"pretrained": True, "weights": "x"}, "pretrained: the base model starts from"),
        ({"pretrained": True, "model": None}, "pretrained: needs --model"),
    ],
)
def test_options_that_go_together(settings, message, folder):
    with pytest.raises(ConfigError, match=message):
        config_of(folder, **settings)


def test_balanced_classes_find_the_rare_one(folder, tmp_path):
    """Two classes of nearly the same brightness, of which one is rare."""
    rng, root = np.random.default_rng(3), tmp_path / "rare"
    for split, images in (("train", {"common": 120, "rare": 8}), ("test", {"common": 2, "rare": 2})):
        for name, count in images.items():
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = (120 if name == "common" else 132) + rng.normal(0, 6, (1, 1, 3)) + np.zeros((8, 8, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{index}.png")

    def recall(**settings):
        config = config_of(root, base_epochs=30, base_lr=3e-3, validation=0.3, **settings)
        build = opened(config, tmp_path / "work")
        rare = build.data.train.take(build.data.train.of_classes([1]))
        return accuracy_of(logits_of(build.base.extractor, rare), rare)

    assert recall(class_weights="balanced") > recall()
