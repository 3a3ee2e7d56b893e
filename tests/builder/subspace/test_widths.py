"""Fitted widths against exhaustive search, and estimated losses against the KL divergence of small cuts."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import calibration_images
import vit_variants
from edvit.architecture import Architecture, BlockWidths, Widths
from edvit.builder import backbone
from edvit.builder.subspace import attention, rotation, widths
from edvit.builder.subspace.cut import Group, Options, bin_weights, cut, group_rows
from edvit.builder.subspace.rms import to_rms
from edvit.builder.subspace.statistics import collect
from edvit.builder.subspace.widths import Losses, estimate_losses, fit_widths
from edvit.errors import BuildError, ConfigError, DataError
from edvit.plan.cost import vit_cost

CONVERTIBLE = [variant for variant in vit_variants.VARIANTS if variant != "no_final_norm"]
SIZES = {"few tokens": 8, "many tokens": 64}


def uniform(dim, head_dim, hidden, blocks=2, heads=2):
    return Widths(dim=dim, blocks=(BlockWidths(heads=heads, head_dim=head_dim, hidden=hidden),) * blocks)


def architecture(image_size=8, base=None):
    """Of numbers alone; with many tokens, activations weigh more than weights."""
    return Architecture(
        name="none",
        image_size=image_size,
        patch_size=4,
        channels=3,
        prefix_tokens=1,
        classes=5,
        rotated=True,
        widths=base or uniform(24, 24, 32),
    )


def random_losses(base, seed, power=2.0):
    """Convex curves, each of its own height."""
    rng = np.random.default_rng(seed)

    def curves(count, width):
        falls = np.sort(rng.random((count, width)) ** power, axis=1)[:, ::-1] * rng.gamma(1.0, 1.0, (count, 1))
        return np.concatenate([np.cumsum(falls[:, ::-1], axis=1)[:, ::-1], np.zeros((count, 1))], axis=1)

    block = base.blocks[0]
    return Losses(
        curves(1, base.dim)[0], curves(len(base.blocks), block.head_dim), curves(len(base.blocks), block.hidden)
    )


def loss_of(losses, chosen):
    return float(
        losses.stream[chosen.dim]
        + sum(losses.heads[i, b.head_dim] + losses.units[i, b.hidden] for i, b in enumerate(chosen.blocks))
    )


def costs(of, chosen):
    cost = vit_cost(of.model_copy(update={"widths": chosen, "classes": 0}))
    return np.array([cost.params, cost.flops, cost.peak_memory_bytes])


def every_choice(base):
    def levels(width):
        return range(8, width + 1, 8)

    block = base.blocks[0]
    pairs = [
        BlockWidths(heads=block.heads, head_dim=r, hidden=f)
        for r, f in itertools.product(levels(block.head_dim), levels(block.hidden))
    ]
    for dim, *blocks in itertools.product(levels(base.dim), *[pairs] * len(base.blocks)):
        yield Widths(dim=dim, blocks=tuple(blocks))


# --- the best widths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("reference", [uniform(16, 16, 16), uniform(8, 16, 24), uniform(24, 8, 32)], ids=str)
def test_no_choice_is_better(image_size, reference):
    of = architecture(image_size)
    limit = costs(of, reference)
    feasible = [one for one in every_choice(of.widths) if (costs(of, one) <= limit).all()]
    for seed in range(20):
        losses = random_losses(of.widths, seed)
        found = fit_widths(of, losses, reference)
        assert found in feasible
        assert loss_of(losses, found) == pytest.approx(min(loss_of(losses, one) for one in feasible))


def test_memory_can_be_what_decides():
    """One hidden layer is worth most, and its activations would pass the reference's peak, though not its weights."""
    of, reference = architecture(64), uniform(16, 16, 16)
    losses = random_losses(of.widths, 0)
    losses = replace(losses, units=losses.units * np.array([[1e3], [1e-3]]))
    found = fit_widths(of, losses, reference)
    assert (costs(of, found) <= costs(of, reference)).all()
    wider = Widths(dim=8, blocks=(BlockWidths(heads=2, head_dim=8, hidden=32), found.blocks[1]))
    assert (costs(of, wider)[:2] <= costs(of, reference)[:2]).all()
    assert costs(of, wider)[2] > costs(of, reference)[2]


def test_a_measured_cost_is_kept_too():
    of, reference = architecture(), uniform(16, 16, 16)

    def seconds(one):
        return one.widths.blocks[0].hidden * 3.0 + sum(b.attention + b.hidden for b in one.widths.blocks)

    limit = costs(of, reference)
    feasible = [
        one
        for one in every_choice(of.widths)
        if (costs(of, one) <= limit).all()
        and seconds(of.model_copy(update={"widths": one})) <= seconds(of.model_copy(update={"widths": reference}))
    ]
    for seed in range(10):
        losses = random_losses(of.widths, seed)
        assert fit_widths(of, losses, reference, seconds=seconds) in feasible


@settings(max_examples=60, deadline=None)
@given(
    dims=st.tuples(*[st.integers(1, 6)] * 4),
    shares=st.tuples(*[st.floats(0.0, 1.0)] * 3),
    odd=st.tuples(*[st.integers(0, 7)] * 3),
    seed=st.integers(0, 2**16),
    convex=st.booleans(),
)
def test_costs_and_widths_keep_their_limits(dims, shares, odd, seed, convex):
    dim, head_dim, hidden = (8 * n + extra for n, extra in zip(dims[:3], odd, strict=True))
    base = uniform(dim, head_dim, hidden, blocks=dims[3], heads=3)
    smaller = [
        max(min(8, width), int(width * share)) for width, share in zip((dim, head_dim, hidden), shares, strict=True)
    ]
    of, reference = architecture(32, base), uniform(*smaller, blocks=dims[3], heads=3)
    losses = random_losses(base, seed)
    if not convex:
        rng = np.random.default_rng(seed)
        losses = Losses(*(rng.random(curve.shape) for curve in (losses.stream, losses.heads, losses.units)))
    found = fit_widths(of, losses, reference)
    assert found == fit_widths(of, losses, reference)
    assert (costs(of, found) <= costs(of, reference)).all()
    pairs = [(found.dim, dim)]
    for block in found.blocks:
        assert block.heads == 3
        pairs += [(block.head_dim, head_dim), (block.hidden, hidden)]
    assert all(width == whole or (width % 8 == 0 and 0 < width < whole) for width, whole in pairs)
    assert fit_widths(of, losses, base) == base


def test_the_whole_is_kept_where_nothing_is_lost_at_all():
    of = architecture()
    nothing = Losses(np.zeros(25), np.zeros((2, 25)), np.zeros((2, 33)))
    assert fit_widths(of, nothing, of.widths) == of.widths


def test_fit_refusals():
    of = architecture()
    losses = random_losses(of.widths, 0)
    with pytest.raises(BuildError, match="to_rms"):
        fit_widths(of.model_copy(update={"rotated": False}), losses, of.widths)
    for name in ("stream", "heads", "units"):
        curve = getattr(losses, name).copy()
        curve.flat[3] = np.nan
        with pytest.raises(BuildError, match=f"{name} are NaN"):
            fit_widths(of, replace(losses, **{name: curve}), of.widths)
        with pytest.raises(BuildError, match=f"losses of {name}: .* do not fit"):
            fit_widths(of, replace(losses, **{name: curve[..., 1:]}), of.widths)
    with pytest.raises(ConfigError, match="all heads"):
        fit_widths(of, losses, uniform(24, 24, 32, heads=1))
    with pytest.raises(ConfigError, match="all heads"):
        fit_widths(of, losses, uniform(24, 24, 32, blocks=1))
    with pytest.raises(ConfigError, match="at least 8"):
        fit_widths(of, losses, uniform(8, 8, 4))


# --- the estimate --------------------------------------------------------------------------------------------------


def estimated(base, calibration, options=None, classes=(0, 1)):
    options = options or Options(fisher=0.3)
    sums = collect(base, calibration, gradients=True)
    of_group = sums.weighted(bin_weights(sums, classes, options.foreign))
    rows, weights = group_rows(calibration.labels, classes, options, 0)
    return estimate_losses(base, of_group, calibration, rows, weights, fisher=options.fisher)


@pytest.mark.parametrize("variant", CONVERTIBLE)
def test_every_kind_of_model_has_falling_curves_and_can_be_cut_to_what_is_fitted(variant):
    base, calibration = to_rms(vit_variants.make(variant)), calibration_images.calibration()
    losses = estimated(base, calibration)
    for curve in (losses.stream, losses.heads, losses.units):
        assert (np.diff(curve, axis=-1) <= 0).all()
        assert (curve[..., -1] == 0).all()
        assert (curve[..., 0] > 0).all()
    of = backbone.describe(base)
    found = fit_widths(of, losses, uniform(16, 8, 24, blocks=3, heads=3))
    sums = collect(base, calibration, gradients=True)
    narrow = cut(base, sums, calibration, [Group((0, 1), found)], Options(fisher=0.3))[0]
    assert backbone.describe(narrow.model).widths == found
    again = estimated(base, calibration)
    assert all(np.array_equal(getattr(losses, name), getattr(again, name)) for name in ("stream", "heads", "units"))


def test_components_are_those_that_a_cut_keeps():
    base = to_rms(vit_variants.make("plain"))
    sums = collect(base, calibration_images.calibration(), gradients=True).weighted(torch.ones(5))
    parts = widths._parts(base, sums, 0.3, 5)
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
    monkeypatch.setattr(widths, "HEADS", 1.0)
    monkeypatch.setattr(widths, "UNITS", 1.0)
    monkeypatch.setattr(widths, "SHARED", 0.0)
    base = to_rms(vit_variants.make("plain"))
    pixels = np.tile(calibration_images.calibration(count=6).images.pixels(np.arange(6)), (400, 1, 1, 1))
    many = calibration_images.of(pixels, np.zeros(2400, np.int64), batch_size=600)
    sums = collect(base, many, gradients=True).weighted(torch.tensor([1.0, 0, 0, 0, 0]))
    losses = estimate_losses(base, sums, many, np.arange(2400), torch.ones(2400), fisher=0.3)
    parts = widths._parts(base, sums, 0.3, 5)
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

    assert losses.units[1, 2] - losses.units[1, 3] == pytest.approx(divergence(unit), rel=0.2)
    heads = sum(divergence(kind(head, 1)) for kind in (value, logit) for head in range(3))
    assert losses.heads[1, 1] - losses.heads[1, 2] == pytest.approx(heads, rel=0.2)
    assert losses.stream[1] - losses.stream[2] == pytest.approx(divergence(direction), rel=0.2)


def test_blocks_share_a_part_of_their_losses():
    curves = np.array([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    shared = widths._shared(curves)
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
