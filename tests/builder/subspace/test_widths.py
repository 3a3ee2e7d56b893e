"""Fitted widths against exhaustive search."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edvit.builder.subspace.losses import Losses
from edvit.builder.subspace.widths import fit_widths
from edvit.errors import BuildError, ConfigError
from edvit.plan.cost import model_cost
from edvit.shape.vit import Architecture, BlockWidths, Widths

SIZES = {"few tokens": 8, "many tokens": 64}
"""Of images; with many tokens, activations weigh more than weights."""


def uniform(dim, head_dim, hidden, blocks=2, heads=2):
    return Widths(dim=dim, blocks=(BlockWidths(heads=heads, head_dim=head_dim, hidden=hidden),) * blocks)


def architecture(image_size=8, base=None):
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
    cost = model_cost(of.model_copy(update={"widths": chosen, "classes": 0}))
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
    """One hidden layer is worth most: its weights would fit when the other gives some, its activations would not."""
    base = uniform(16, 8, 128, heads=1)
    of, reference = architecture(32, base), uniform(16, 8, 64, heads=1)
    losses = random_losses(base, 0)
    losses = replace(losses, units=losses.units * np.array([[1e3], [1e-3]]))
    limit = costs(of, reference)
    fits = {one: costs(of, one) <= limit for one in every_choice(base)}
    least = min(loss_of(losses, one) for one, there in fits.items() if there.all())
    found = fit_widths(of, losses, reference)
    assert fits[found].all()
    assert loss_of(losses, found) == pytest.approx(least)
    assert min(loss_of(losses, one) for one, there in fits.items() if there[:2].all()) < 0.99 * least


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
