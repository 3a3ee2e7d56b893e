from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from checkpoint_kinds import KINDS, by_timm, prefixed
from edvit.builder.conv import network
from edvit.builder.models.family import family_of
from edvit.builder.models.origin import find_weights
from edvit.builder.models.weights import load_weights
from edvit.builder.models.weights_file import read_weights
from edvit.builder.vit import backbone
from edvit.errors import ModelError, WeightsError
from edvit.shape.conv import convnet
from vit_variants import CLASSES, NAMES, VARIANTS, images, make

torch.set_num_threads(1)

PLAIN = NAMES["plain"]
DEIT = Path(__file__).parents[4] / "shared" / "weights" / "deit_tiny_patch16_224_in1k.fp16.safetensors"


def saved(model, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def load(path: Path, name: str = PLAIN, **kwargs):
    how = {"image_size": 8, "channels": 3, "classes": CLASSES, **kwargs}
    return load_weights(find_weights(path), family_of(name).plan(name, **how))


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_round_trip(variant, tmp_path):
    model = make(variant)
    loaded, head_kept = load(saved(model, tmp_path / "w.safetensors"), NAMES[variant])
    assert head_kept
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), model(images()))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_pytorch_files_are_unwrapped(wrap, prefix, suffix, tmp_path):
    model = make("plain")
    path = tmp_path / f"w{suffix}"
    torch.save(wrap({prefix + name: value for name, value in model.state_dict().items()}), path)
    loaded, head_kept = load(path)
    assert head_kept
    assert torch.equal(loaded.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)


def test_half_precision_becomes_float32(tmp_path):
    model = make("plain").half()
    loaded, _ = load(saved(model, tmp_path / "w.safetensors"))
    assert loaded.head.weight.dtype == torch.float32
    assert torch.equal(loaded.head.weight, model.head.weight.float())


def test_another_number_of_classes_replaces_the_head(tmp_path):
    model = make("plain")
    loaded, head_kept = load(saved(model, tmp_path / "w.safetensors"), classes=2)
    assert not head_kept
    assert loaded.head.weight.shape == (2, 24)
    assert torch.equal(loaded.norm.weight, model.norm.weight)


def test_a_file_without_head_is_fine(tmp_path):
    loaded, head_kept = load(saved(make("plain"), tmp_path / "full.safetensors"), classes=0)
    assert not head_kept
    loaded, head_kept = load(saved(loaded, tmp_path / "w.safetensors"))
    assert not head_kept
    assert loaded.head.weight.shape == (CLASSES, 24)


def test_position_embeddings_are_resampled(tmp_path):
    model = make("plain")
    loaded, _ = load(saved(model, tmp_path / "w.safetensors"), image_size=16)
    assert loaded.pos_embed.shape == (1, 17, 24)
    assert torch.equal(loaded.pos_embed[:, 0], model.pos_embed[:, 0]), "the class token's stays as it is"
    assert loaded(torch.zeros(1, 3, 16, 16)).shape == (1, CLASSES)


def test_input_projection_is_adapted_to_one_channel(tmp_path):
    model = make("plain")
    loaded, _ = load(saved(model, tmp_path / "w.safetensors"), channels=1)
    grey = images(channels=1)
    with torch.no_grad():
        same = (loaded.eval()(grey) - model(grey.expand(-1, 3, -1, -1))).abs().max()
    assert same < 1e-4, "a grey image means the same to both"


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("reg_tokens", "it has no register or distillation tokens"),
        ("layer_scale", r"blocks\.0\.ls1\.gamma is missing, \[24\] was expected"),
        ("qk_norm", r"blocks\.0\.attn\.q_norm\.weight is missing, \[8\] was expected"),
        ("avg_pool", "it has a class token, and the model has none"),
    ],
)
def test_weights_of_another_variant_name_the_tensor(variant, message, tmp_path):
    path = saved(make("plain"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message):
        load(path, NAMES[variant])


def test_weights_of_another_width_name_the_tensor_and_both_shapes(tmp_path):
    path = saved(make("plain"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"cls_token is \[1, 1, 24\], \[1, 1, 192\] was expected"):
        load(path, "vit_tiny_patch16_224", image_size=32)


def test_a_tensor_too_many_is_named(tmp_path):
    path = saved(make("layer_scale"), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.0\.ls1\.gamma \[24\] has no place in it"):
        load(path)


def test_nan_weights_are_refused(tmp_path):
    model = make("plain")
    with torch.no_grad():
        model.blocks[1].mlp.fc2.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc2\.weight holds NaN"):
        load(saved(model, tmp_path / "w.safetensors"))


class Exploit:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused_and_not_run(write, tmp_path):
    write({"model": Exploit(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="refused, it holds Python objects or code"):
        load(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_with_other_objects_is_refused(tmp_path):
    torch.save({"model": make("plain").state_dict(), "trainer": Exploit(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="save the state dict alone"):
        load(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar"])
def test_checkpoints_as_people_have_them(kind, suffix, tmp_path):
    """Equal to timm's reading where timm reads them; otherwise equal to what was saved, or refused by what it is."""
    path, saved_model = KINDS[kind].write(tmp_path / f"w{suffix}")
    theirs = by_timm(path, KINDS[kind])
    if KINDS[kind].refused is not None:
        with pytest.raises(WeightsError, match=KINDS[kind].refused):
            load(path, KINDS[kind].model)
        return
    ours, head_kept = load(path, KINDS[kind].model)
    assert head_kept == KINDS[kind].head
    for key, value in (theirs or saved_model.state_dict()).items():
        if head_kept or not key.startswith("head."):
            assert torch.equal(ours.state_dict()[key], value.float()), key


def test_the_table_of_checkpoints_is_what_is_tested(tmp_path):
    """docs/models.md, line by line."""
    lines = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    wanted = []
    for kind, what in KINDS.items():
        path, _ = what.write(tmp_path / f"{kind}.pth")
        wanted.append(what.row(timm_reads=by_timm(path, what) is not None))
    missing = [row for row in wanted if row not in lines]
    assert not missing, "\n".join(["docs/models.md lacks these rows:", *missing])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_in_safetensors(prefix, tmp_path):
    model = make("plain")
    save_file(
        {prefix + name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    loaded, _ = load(tmp_path / "w.safetensors")
    assert torch.equal(loaded.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("name", ["vgg5", "spiking_vgg5"])
def test_weights_of_a_convolutional_network(name, prefix, tmp_path):
    model = network.create(convnet(name, image_size=16, channels=3, classes=CLASSES))
    torch.save(prefixed(prefix, model.state_dict()), tmp_path / "w.pth")
    loaded, head_kept = load(tmp_path / "w.pth", name, image_size=16)
    assert head_kept
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_precision_is_read_as_float32(dtype, tmp_path):
    state = {name: value.to(dtype) for name, value in make("plain").state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    loaded, _ = load(tmp_path / "w.pth")
    assert torch.equal(loaded.head.weight, state["head.weight"].float())


def test_two_models_in_one_file_are_named(tmp_path):
    state = make("plain").state_dict()
    torch.save({"state_dict": {**prefixed("student.", state), **prefixed("teacher.", state)}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds several models \(student\., teacher\.\); save the one to split"):
        load(tmp_path / "w.pth")


def test_a_checkpoint_without_a_state_dict_names_its_keys(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 1.0}, "best": 0.5}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="its first keys are epoch, optimizer, best"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(suffix, keep, tmp_path):
    path = tmp_path / f"w{suffix}"
    state = {name: value.contiguous() for name, value in make("plain").state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"just text, no weights", b"\x80\x04.", bytes(range(256)) * 4])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_files_are_refused(content, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_weights([path])
    assert "\n" not in str(caught.value)


HTML = b"\xef\xbb\xbf\n<!DOCTYPE html><html>login</html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 22880000\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HTML, "is a web page, such as a login or an error, in place of the weights; download the file itself"),
        (LFS, "is a Git LFS pointer in place of the weights; run git lfs pull in its repository"),
        (b"Entry not found", "is a text file in place of the weights; it begins with 'Entry not found'"),
        (b'{"error": "gated"}', "is a text file in place of the weights; it begins with"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_came_in_place_of_the_weights_is_named(content, message, suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    for read in (find_weights, lambda path: read_weights([path])):
        with pytest.raises(WeightsError, match=message):
            read(path)


def test_a_file_of_the_other_ending_is_told_its_own(tmp_path):
    state = make("plain").state_dict()
    save_file(state, tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=r"is a safetensors file; give it the ending \.safetensors"):
        find_weights(tmp_path / "w.bin")
    for zipped in (True, False):
        torch.save(state, tmp_path / "w.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match=r"is a PyTorch file; give it the ending \.pth"):
            find_weights(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and models are not written for it
def test_torchscript_is_named_and_its_weights_can_be_saved(tmp_path):
    model = make("plain")
    torch.jit.trace(model, images()).save(tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="is TorchScript, which holds code; save its weights alone") as caught:
        find_weights(tmp_path / "model.pt")
    (snippet,) = re.findall(r'python -c "(.*)"', str(caught.value))
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, check=True)
    loaded, head_kept = load(tmp_path / "weights.pth")
    assert head_kept
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_weights([tmp_path / "absent.pth"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match=r"is a folder without model\.safetensors or pytorch_model\.bin; it has no"):
        find_weights(tmp_path / "folder")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"\.safetensors, \.pth"):
        read_weights([tmp_path / "w.npz"])
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_weights([tmp_path / "list.pth"])
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match="no tensors"):
        read_weights([tmp_path / "empty.safetensors"])


def test_an_unknown_model_is_a_model_error(tmp_path):
    path = saved(make("plain"), tmp_path / "w.safetensors")
    with pytest.raises(ModelError):
        load(path, "vit_nonesuch")


@pytest.mark.skipif(not DEIT.is_file(), reason=f"the DeiT-Tiny weights are not there ({DEIT.name})")
def test_real_deit_tiny():
    model, head_kept = load(DEIT, "deit_tiny_patch16_224", image_size=112, classes=1000)
    assert head_kept
    assert backbone.describe(model).tokens == 50
    with torch.no_grad():
        probabilities = model.eval()(images(1).repeat(1, 1, 14, 14)).softmax(dim=1)
    assert float(probabilities.max()) > 5 / 1000, "trained weights are surer than chance"
    with pytest.raises(WeightsError, match=r"\[1, 1, 192\], \[1, 1, 384\] was expected"):
        load(DEIT, "deit_small_patch16_224", image_size=112, classes=10)
