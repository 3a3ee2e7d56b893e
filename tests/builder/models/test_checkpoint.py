from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from edvit.builder.conv import network
from edvit.builder.models.checkpoint import load_model, parse_architecture, save_model
from edvit.builder.subspace import rms
from edvit.builder.vit import backbone, importance, surgery
from edvit.errors import BuildError
from edvit.shape.conv import convnet
from edvit.shape.vit import pruned_widths
from vit_variants import VARIANTS, images, make

torch.set_num_threads(1)


def cut(model):
    base = backbone.describe(model)
    scores = importance.score(model, images(), criterion="magnitude")
    return surgery.prune(model, surgery.select(scores, base, pruned_widths(base.widths, 1, "dims")))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("change", [lambda model: model, cut], ids=["whole", "pruned"])
def test_what_was_saved_is_loaded(tmp_path, variant, change):
    model = change(make(variant))
    save_model(tmp_path / "m.safetensors", model)
    loaded = load_model(tmp_path / "m.safetensors")
    assert not loaded.training
    assert backbone.describe(loaded) == backbone.describe(model)
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))


def spiking():
    """A spiking network whose running means and variances are not the initial ones."""
    pytest.importorskip("spikingjelly")
    model = network.create(convnet("spiking_vgg5", classes=3).narrowed(8))
    return _moved(model)


def convolutional():
    return _moved(network.create(convnet("vgg5", classes=3).narrowed(8)))


def _moved(model):
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.add_(1)
    return model.eval()


@pytest.mark.parametrize(
    "create",
    [*(partial(make, variant) for variant in VARIANTS), lambda: rms.to_rms(make("pre_norm")), convolutional, spiking],
    ids=[*VARIANTS, "rotated", "convolutional", "spiking"],
)
def test_loading_draws_nothing_and_gives_every_tensor(tmp_path, create):
    model, path = create(), tmp_path / "m.safetensors"
    save_model(path, model)
    before = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    # Parameters and buffers, also those that no state dict holds.
    for kind in ("named_parameters", "named_buffers"):
        expected, got = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor)
            assert (got[name].dtype, got[name].requires_grad) == (tensor.dtype, tensor.requires_grad)


def test_a_loaded_model_does_not_depend_on_its_file(tmp_path):
    model, path = make("plain"), tmp_path / "m.safetensors"
    save_model(path, model)
    loaded = load_model(path)
    with path.open("r+b") as file:  # in place, as a file that is written again may be
        file.write(b"\xff" * path.stat().st_size)
    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))


def test_other_sizes_channels_and_classes_are_kept(tmp_path):
    model = backbone.create("vit_digits_patch4_8", image_size=16, channels=3, classes=4).eval()
    save_model(tmp_path / "m.safetensors", model)
    loaded, x = load_model(tmp_path / "m.safetensors"), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_the_same_model_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, make("plain"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text", "no architecture", "architecture of nothing"])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "m.safetensors"
    save_model(path, make("plain"))
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "no architecture":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "architecture of nothing":
        save_file({"x": torch.zeros(2)}, path, metadata={"architecture": "{}"})
    else:
        path.write_bytes({"cut": whole[:-100], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(BuildError, match=r"m\.safetensors: no readable model \(\w+\); remove it and build again") as e:
        load_model(path)
    assert "\n" not in str(e.value)


def test_weights_that_do_not_fit_their_architecture_are_refused(tmp_path):
    model = make("plain")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    state["head.weight"] = torch.zeros(3, 3)
    metadata = {"architecture": backbone.describe(model).model_dump_json()}
    save_file(state, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(BuildError, match="remove it and build again") as caught:
        load_model(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [convnet("vgg5", classes=3), backbone.describe(make("plain"))], ids=["conv", "vit"])
def test_an_architecture_comes_back_from_json_values(shape):
    assert parse_architecture(json.loads(json.dumps(shape.model_dump(mode="json")))) == shape
