from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.plan.keep import (
    default_keep,
    format_keep,
    heads_pruned_at,
    parse_keep,
    smallest_keep,
    steps_below_one_head,
)
from edvit.shape.conv import convnet
from edvit.shape.vit import Architecture, BlockWidths, Widths, pruned_widths

BASE = Architecture(
    name="deit_tiny_patch16_224",
    image_size=224,
    patch_size=16,
    channels=3,
    prefix_tokens=1,
    classes=10,
    widths=Widths(dim=192, blocks=(BlockWidths(heads=3, head_dim=64, hidden=768),) * 2),
)

ratios = st.fractions(min_value=Fraction(1, 64), max_value=1, max_denominator=64)


@given(ratios, st.integers(1, 16))
def test_narrowed_heads_are_pruned_exactly_as_asked(keep, heads):
    pruned = heads_pruned_at(keep, heads)
    assert 0 <= pruned < heads
    assert (heads - pruned) / heads == keep
    assert float(parse_keep(format_keep(heads, pruned))) == pytest.approx(float(keep), rel=1e-3)


@given(ratios, st.integers(1, 16))
def test_whole_heads_are_the_nearest_number_of_them(keep, heads):
    kept = heads - heads_pruned_at(keep, heads, "heads")
    assert kept.denominator == 1
    assert 1 <= kept <= heads
    assert abs(kept - keep * heads) <= Fraction(1, 2) or kept == 1


def test_ratios_are_shown_in_heads_where_they_are_whole():
    assert format_keep(12, 10) == "2/12"
    assert format_keep(3, heads_pruned_at(Fraction(1, 4), 3)) == "0.25"
    assert [str(default_keep(heads)) for heads in (1, 3, 6, 12)] == ["1", "1/3", "1/3", "1/3"]


@given(st.sampled_from([(192, 3, 64, 768), (768, 12, 64, 3072), (24, 3, 8, 48), (4, 1, 4, 8)]))
def test_nothing_is_narrower_than_at_the_smallest_keep(shape):
    dim, heads, head_dim, hidden = shape
    widths = Widths(dim=dim, blocks=(BlockWidths(heads=heads, head_dim=head_dim, hidden=hidden),))
    base = BASE.model_copy(update={"widths": widths})
    smallest = smallest_keep(base)
    least = pruned_widths(widths, heads * (1 - smallest))
    assert (least.dim, least.blocks[0].head_dim, least.blocks[0].hidden) == (min(dim, 8), min(head_dim, 8), 8)
    assert pruned_widths(widths, heads * (1 - smallest / 1000)) == least


def test_steps_below_one_head_fall_to_the_narrowest_and_start_past_what_was_tried():
    steps = steps_below_one_head(BASE, 2)
    assert steps == [*(3 - Fraction(kept, 8) for kept in range(7, 0, -1)), 3 - Fraction(1, 32)]
    assert steps_below_one_head(BASE, Fraction(5, 2)) == steps[4:]
    assert steps_below_one_head(BASE, 3 - Fraction(1, 100)) == []
    network = convnet("vgg16", classes=10)  # sixteenths of 512 filters at most
    assert steps_below_one_head(network, 15)[-1] == 16 * (1 - smallest_keep(network)) == 15 + Fraction(3, 4)


def test_widths_between_two_heads():
    base = Widths(dim=192, blocks=(BlockWidths(heads=3, head_dim=64, hidden=768),))
    assert pruned_widths(base, Fraction(3, 2)) == Widths(
        dim=96, blocks=(BlockWidths(heads=3, head_dim=32, hidden=384),)
    )
    with pytest.raises(ValueError, match="whole number of heads, not 3/2"):
        pruned_widths(base, Fraction(3, 2), "heads")
