"""Streamed sums against brute force over all tokens in float64, and their additivity."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

import calibration_images
import vit_variants
from edvit.builder.subspace import statistics
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import Sums, collect
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError, DataError

VARIANTS = ["plain", "qk_norm", "reg_tokens", "avg_pool", "avg_pool_norm_first", "pre_norm", "rms_norm"]


def normal_streams(base, images):
    """What leaves every norm of timm's own forward, by hooks: `[batch, tokens, dim]`, in order."""
    seen = []
    handles = [n.register_forward_hook(lambda _m, _i, out: seen.append(out)) for n in backbone.stream_norms(base)]
    with torch.no_grad():
        base(images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stream_is_that_of_the_models_own_forward(variant):
    base = to_rms(vit_variants.make(variant))
    calibration = calibration_images.calibration(count=20)
    sums = collect(base, calibration)
    for label in range(5):
        rows = np.flatnonzero(calibration.labels == label)
        (_, images), *_ = calibration.batches(rows)
        *blocks, last = normal_streams(base, images)
        pooled = {"token": slice(0, 1), "avg": slice(base.num_prefix_tokens, None)}[base.global_pool]
        seen = [*blocks[:-1], blocks[-1][:, pooled], last if last.dim() == 2 else last[:, pooled]]
        flat = torch.cat([x.double().flatten(0, -2) for x in seen])
        torch.testing.assert_close(sums.stream[label], flat.T @ flat, rtol=1e-5, atol=1e-5)
    assert sums.images.tolist() == [4.0] * 5


@pytest.mark.parametrize("variant", ["plain", "qk_norm"])
def test_heads_and_units_are_those_of_the_models_own_forward(variant):
    base = to_rms(vit_variants.make(variant))
    calibration = calibration_images.calibration(count=8, classes=1)
    sums = collect(base, calibration)
    (_, images), *_ = calibration.batches(np.arange(8))
    seen = {}
    block = base.blocks[1]
    handles = [
        block.attn.qkv.register_forward_hook(lambda _m, _i, out: seen.update(qkv=out)),
        block.attn.proj.register_forward_pre_hook(lambda _m, inputs: seen.update(output=inputs[0])),
        block.mlp.fc2.register_forward_pre_hook(lambda _m, inputs: seen.update(units=inputs[0])),
    ]
    with torch.no_grad():
        base(images)
    for handle in handles:
        handle.remove()
    tokens = images.shape[0] * 5
    query, key = (seen["qkv"].view(8, 5, 3, 3, 8)[:, :, part] for part in (0, 1))
    query, key = block.attn.q_norm(query).double(), block.attn.k_norm(key).double()
    key = key - key.mean(dim=1, keepdim=True)
    output, units = seen["output"].double().view(tokens, 3, 8), seen["units"].double().view(tokens, 48)
    for head in range(3):
        for name, value in (("query", query[:, :, head]), ("key", key[:, :, head]), ("output", output[:, head])):
            flat = value.reshape(tokens, 8)
            torch.testing.assert_close(getattr(sums, name)[0, 1, head], flat.T @ flat, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sums.output_mean[0, 1, head], output[:, head].sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.unit[0, 1], units.square().sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.unit_mean[0, 1], units.sum(0), rtol=1e-5, atol=1e-5)
    assert sums.tokens[0].tolist() == [tokens, tokens, 8.0]  # in the last block only the class token is read


def test_sums_of_classes_are_the_sums_of_their_images():
    base = to_rms(vit_variants.make("pre_norm"))
    calibration = calibration_images.calibration(batch_size=7)
    by_class = collect(base, calibration)
    by_group = collect(base, calibration, bins=[0 if label < 2 else 1 for label in calibration.labels])
    first = by_class.weighted(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))
    both = by_class.weighted(torch.tensor([1.0, 1.0, 0.25, 0.25, 0.25]))
    mixed = by_group.weighted(torch.tensor([1.0, 0.25]))
    for f in fields(Sums):
        torch.testing.assert_close(getattr(first, f.name)[0], getattr(by_group, f.name)[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(getattr(both, f.name), getattr(mixed, f.name), rtol=1e-5, atol=1e-6)


def test_batches_do_not_matter():
    base = to_rms(vit_variants.make("plain"))
    one, many = (collect(base, calibration_images.calibration(batch_size=size)) for size in (1, 60))
    for f in fields(Sums):
        torch.testing.assert_close(getattr(one, f.name), getattr(many, f.name), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_a_sampled_log_probability():
    """The same six images many times: their mean comes close to the sum over every class, weighted by `p`."""
    base = to_rms(vit_variants.make("plain"))
    calibration = calibration_images.calibration(count=6, classes=1)
    (_, images), *_ = calibration.batches(np.arange(6))
    repeats = 300
    pixels = np.tile(calibration.images.pixels(np.arange(6)), (repeats, 1, 1, 1))
    many = calibration_images.of(pixels, np.zeros(6 * repeats, np.int64), batch_size=600)
    mean = collect(base, many, gradients=True).gradient[0] / repeats
    expected = torch.zeros_like(mean)
    seen = []
    handles = [n.register_forward_hook(lambda _m, _i, out: seen.append(out)) for n in backbone.stream_norms(base)]
    log_p = base(images).log_softmax(dim=-1)
    for handle in handles:
        handle.remove()
    for y in range(vit_variants.CLASSES):
        gradients = torch.autograd.grad(log_p[:, y].sum(), seen, retain_graph=True)
        p = log_p[:, y].detach().exp().double()
        for gradient in gradients:
            expected += torch.einsum("n,ntd,nte->de", p, gradient.double(), gradient.double())
    assert float((mean - expected).norm() / expected.norm()) < 0.1


def test_survives_the_disk(tmp_path):
    sums = collect(to_rms(vit_variants.make("plain")), calibration_images.calibration())
    sums.save(tmp_path / "sums.safetensors")
    again = Sums.load(tmp_path / "sums.safetensors")
    for f in fields(Sums):
        assert torch.equal(getattr(sums, f.name), getattr(again, f.name))
    (tmp_path / "sums.safetensors").write_bytes(b"short")
    with pytest.raises(BuildError, match="no readable statistics"):
        Sums.load(tmp_path / "sums.safetensors")


def test_refusals(monkeypatch):
    model, calibration = vit_variants.make("plain"), calibration_images.calibration()
    with pytest.raises(BuildError, match="to_rms"):
        collect(model, calibration)
    base = to_rms(model)
    with pytest.raises(DataError, match="no images"):
        collect(base, calibration_images.of(np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, np.int64)))
    with pytest.raises(DataError, match=r"\[3, 4, 4\]"):
        collect(base, calibration_images.of(np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64)))
    with torch.no_grad():
        base.blocks[0].mlp.fc1.bias[0] = float("inf")
    with pytest.raises(BuildError, match="NaN or infinite"):
        collect(base, calibration)
    monkeypatch.setattr(statistics, "SUMS_LIMIT_BYTES", 1000)
    with pytest.raises(ConfigError, match="GiB, the limit is 0; give --prune channels"):
        collect(to_rms(model), calibration)


def test_vit_large_fits_the_limit_by_group():
    architecture = backbone.describe(backbone.template("vit_large_patch16_224", classes=1000, rotated=True))
    assert statistics.sums_bytes(architecture, 10, gradients=True) < statistics.SUMS_LIMIT_BYTES
    assert statistics.sums_bytes(architecture, 1000) > statistics.SUMS_LIMIT_BYTES
