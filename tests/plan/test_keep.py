from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edvit.architecture import BlockWidths, Widths, pruned_widths
from edvit.plan.keep import default_keep, format_keep, heads_pruned_at, parse_keep

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


def test_widths_between_two_heads():
    base = Widths(dim=192, blocks=(BlockWidths(heads=3, head_dim=64, hidden=768),))
    assert pruned_widths(base, Fraction(3, 2)) == Widths(
        dim=96, blocks=(BlockWidths(heads=3, head_dim=32, hidden=384),)
    )
    with pytest.raises(ValueError, match="whole number of heads, not 3/2"):
        pruned_widths(base, Fraction(3, 2), "heads")
