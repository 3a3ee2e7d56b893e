"""Estimated losses against the KL divergence of small cuts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import calibration_images
import vit_variants
from edvit.builder.subspace import attention, losses, rotation
from edvit.builder.subspace.cut import CutGroup, Options, bin_weights, cut, group_rows
from edvit.builder.subspace.losses import estimate_losses
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import collect
from edvit.builder.subspace.widths import fit_widths
from edvit.builder.vit import backbone
from edvit.errors import BuildError, ConfigError, DataError
from edvit.shape.vit import BlockWidths, Widths

CONVERTIBLE = [variant for variant in vit_variants.VARIANTS if variant != "no_final_norm"]


def estimated(base, calibration, options=None, classes=(0, 1)):
    options = options or Options(fisher=0.3)
    sums = collect(base, calibration, gradients=True)
    of_group = sums.weighted(bin_weights(sums, classes, options.foreign))
    rows, weights = group_rows(calibration.labels, classes, options, 0)
    return estimate_losses(base, of_group, calibration, rows, weights, fisher=options.fisher)


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_every_kind_of_model_has_falling_curves_and_can_be_cut_to_what_is_fitted(variant):
    base, calibration = to_rms(vit_variants.make(variant)), calibration_images.calibration()
    found = estimated(base, calibration)
    for curve in (found.stream, found.heads, found.units):
        assert (np.diff(curve, axis=-1) <= 0).all()
        assert (curve[..., -1] == 0).all()
        assert (curve[..., 0] > 0).all()
    of = backbone.describe(base)
    narrow = (BlockWidths(heads=3, head_dim=8, hidden=24),) * 3
    fitted = fit_widths(of, found, Widths(dim=16, blocks=narrow))
    sums = collect(base, calibration, gradients=True)
    made = cut(base, sums, calibration, [CutGroup((0, 1), fitted)], Options(fisher=0.3))[0]
    assert backbone.describe(made.model).widths == fitted
    again = estimated(base, calibration)
    assert all(np.array_equal(getattr(found, name), getattr(again, name)) for name in ("stream", "heads", "units"))


def test_components_are_those_that_a_cut_keeps():
    base = to_rms(vit_variants.make("plain"))
    sums = collect(base, calibration_images.calibration(), gradients=True).weighted(torch.ones(5))
    parts = losses._parts(base, sums, 0.3, 5)
    query, key = sums.query[0, 1, 2], sums.key[0, 1, 2]
    of_query, of_key = attention.logit_maps(query, key, 3)
    logits = parts.logits[1]
    close = {"atol": 1e-4, "rtol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(logits.read[2, :, :3] @ logits.back[2, :3], of_query @ of_key.T, **close)
    total = sums.images[0] * 5
    mean = sums.output_mean[0, 1, 2] / total
    covariance = sums.output[0, 1, 2] / total - torch.outer(mean, mean)
    writer = base.blocks[1].attn.proj.weight.detach().double().T[16:24]
    of_output, back = attention.value_maps(covariance, writer, 3)
    outputs = parts.outputs[1]
    kept = (outputs.read[2, :, :3] @ outputs.back[2, :3]).double() @ writer
    torch.testing.assert_close(kept, of_output @ back, **close)
    directions = rotation.leading(sums.stream[0], 7, sums.gradient[0], 0.3)
    read = torch.linalg.qr(parts.stream.read[:, :7].double())[0]
    torch.testing.assert_close(read @ read.T, directions @ directions.T, **close)


def test_losses_are_kl_divergences_of_small_cuts(monkeypatch):
    """Taking off a hundredth of a component costs a ten-thousandth of the loss; many draws of `y`."""
    monkeypatch.setattr(losses, "HEADS", 1.0)
    monkeypatch.setattr(losses, "UNITS", 1.0)
    monkeypatch.setattr(losses, "SHARED", 0.0)
    base = to_rms(vit_variants.make("plain"))
    pixels = np.tile(calibration_images.calibration(count=6).images.pixels(np.arange(6)), (400, 1, 1, 1))
    many = calibration_images.of(pixels, np.zeros(2400, np.int64), batch_size=600)
    sums = collect(base, many, gradients=True).weighted(torch.tensor([1.0, 0, 0, 0, 0]))
    found = estimate_losses(base, sums, many, np.arange(2400), torch.ones(2400), fisher=0.3)
    parts = losses._parts(base, sums, 0.3, 5)
    (_, images), *_ = many.batches(np.arange(6))
    whole = copy.deepcopy(base).double()
    log_p = whole(images.double()).log_softmax(-1).detach()

    def divergence(cut_off):
        """KL divergence over the square of what is taken off; `cut_off(block 1, how much)` takes it off."""
        model = copy.deepcopy(whole)
        with torch.no_grad():
            cut_off(model, 1e-2)
            log_q = model(images.double()).log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) * 1e4

    def unit(model, share):
        fc2, j = model.blocks[1].mlp.fc2, int(parts.unit_order[1, 2])
        fc2.bias += share * parts.unit_mean[1, j] * fc2.weight[:, j]
        fc2.weight[:, j] *= 1 - share

    def part_of(factors, head, j):
        return torch.outer(factors[1].read[head, :, j], factors[1].back[head, j]).double()

    def value(head, j):
        def cut_off(model, share):
            proj, lost = model.blocks[1].attn.proj, share * part_of(parts.outputs, head, j)
            rows = slice(8 * head, 8 * head + 8)
            proj.bias += proj.weight[:, rows] @ (parts.output_mean[1, head, 0].double() @ lost)
            proj.weight[:, rows] -= proj.weight[:, rows] @ lost.T

        return cut_off

    def logit(head, j):
        def cut_off(model, share):
            qkv, lost = model.blocks[1].attn.qkv, share * part_of(parts.logits, head, j)
            rows = slice(8 * head, 8 * head + 8)
            qkv.weight[rows] -= lost.T @ qkv.weight[rows]
            qkv.bias[rows] -= lost.T @ qkv.bias[rows]

        return cut_off

    def direction(model, share):
        lost = share * torch.outer(parts.stream.read[:, 1], parts.stream.back[1]).double()
        for norm in backbone.stream_norms(model):
            norm.register_forward_hook(lambda _m, _i, out: out - out @ lost)

    assert found.units[1, 2] - found.units[1, 3] == pytest.approx(divergence(unit), rel=0.2)
    heads = sum(divergence(kind(head, 1)) for kind in (value, logit) for head in range(3))
    assert found.heads[1, 1] - found.heads[1, 2] == pytest.approx(heads, rel=0.2)
    assert found.stream[1] - found.stream[2] == pytest.approx(divergence(direction), rel=0.2)


def test_blocks_share_a_part_of_their_losses():
    curves = np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    shared = losses._shared(curves)
    np.testing.assert_allclose(shared.sum(axis=0), curves.sum(axis=0))
    assert shared[0, 0] < 3.0
    assert shared[1, 0] > 1.0


def test_estimate_refusals():
    model, calibration = vit_variants.make("plain"), calibration_images.calibration()
    base = to_rms(model)
    sums = collect(base, calibration, gradients=True).weighted(torch.ones(5))
    rows, weights = np.arange(4), torch.ones(4)
    with pytest.raises(BuildError, match="to_rms"):
        estimate_losses(model, sums, calibration, rows, weights)
    nan = replace(sums, unit=sums.unit * float("nan"))
    with pytest.raises(BuildError, match="statistics are empty, NaN"):
        estimate_losses(base, nan, calibration, rows, weights)
    with pytest.raises(BuildError, match="statistics are empty"):
        estimate_losses(base, sums.weighted(torch.zeros(1)), calibration, rows, weights)
    plain = collect(base, calibration).weighted(torch.ones(5))
    with pytest.raises(ConfigError, match="without gradients"):
        estimate_losses(base, plain, calibration, rows, weights, fisher=0.3)
    with pytest.raises(DataError, match=r"\[3, 4, 4\]"):
        estimate_losses(
            base, sums, calibration_images.of(np.zeros((4, 3, 4, 4), np.uint8), np.zeros(4, np.int64)), rows, weights
        )
    with torch.no_grad():
        base.blocks[0].mlp.fc1.bias[0] = float("inf")
    with pytest.raises(BuildError, match="gradients are NaN"):
        estimate_losses(base, sums, calibration, rows, weights)
