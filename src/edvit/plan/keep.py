"""The keep ratio `s = (h - h_p) / h`, as users give it and as heads pruned `h_p`."""

from __future__ import annotations

from fractions import Fraction

from edvit.errors import ConfigError
from edvit.shape.any import AnyArchitecture
from edvit.shape.vit import WIDTH_MULTIPLE, Architecture, AttentionMode

PARTS = 8
"""Steps that take one head's worth away where heads are narrowed: a head of 64 loses a width's multiple in each."""


def parse_keep(text: str) -> Fraction:
    """Read a keep ratio such as `2/12` or `0.25`.

    Raises:
        ConfigError: not a number, or not above 0 and at most 1.
    """
    try:
        keep = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"keep ratio {text!r} is no number: give a fraction such as 2/12, or 0.25") from None
    if not 0 < keep <= 1:
        raise ConfigError(f"keep ratio {text!r} is not above 0 and at most 1: give a fraction such as 2/12")
    return keep


def heads_pruned_at(keep: Fraction, heads: int, mode: AttentionMode = "dims") -> Fraction:
    """`h_p` of a keep ratio: `h (1 - s)`, a fraction where heads are narrowed.

    Where whole heads go, the nearest whole number; at least one head is kept.
    """
    if mode == "dims":
        return heads * (1 - keep)
    return Fraction(heads - max(1, min(heads, int(keep * heads + Fraction(1, 2)))))


def heads_pruned_for(keep: str | None, heads: int, mode: AttentionMode = "dims") -> Fraction:
    """`h_p` of a keep ratio as a user gives it; None is `default_keep`. Raises ConfigError as `parse_keep`."""
    return heads_pruned_at(default_keep(heads) if keep is None else parse_keep(keep), heads, mode)


def format_keep(heads: int, heads_pruned: Fraction | int) -> str:
    """The keep ratio `(h - h_p) / h`, as `parse_keep` reads it: in whole heads, or as a number."""
    kept = Fraction(heads) - heads_pruned
    return f"{kept}/{heads}" if kept.denominator == 1 else f"{float(kept / heads):.4g}"


def default_keep(heads: int) -> Fraction:
    """A third of the heads (at least one): about eight times fewer parameters."""
    return 1 - heads_pruned_at(Fraction(1, 3), heads, "heads") / heads


def steps_below_one_head(base: AnyArchitecture, heads_pruned: int | Fraction) -> list[Fraction]:
    """Every `h_p` past `heads_pruned`, at which one head's worth or less is kept, in parts of one head; the narrowest
    model there is comes last. Only where heads are narrowed."""
    heads = base.keep_steps
    parts = [heads - Fraction(kept, PARTS) for kept in range(PARTS - 1, 0, -1)]
    last = heads * (1 - smallest_keep(base))
    return [h_p for h_p in (*(part for part in parts if part < last), last) if h_p > heads_pruned]


def smallest_keep(base: AnyArchitecture) -> Fraction:
    """The ratio at which every width is as small as it gets; below it nothing changes."""
    if isinstance(base, Architecture):
        widest = max(base.widths.dim, *(max(block.head_dim, block.hidden) for block in base.widths.blocks))
    else:
        widest = max(base.widths.filters)
    return min(Fraction(1), Fraction(WIDTH_MULTIPLE, widest))
