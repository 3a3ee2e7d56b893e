"""The keep ratio `s = (h - h_p) / h`, as users give it and as heads pruned `h_p`."""

from __future__ import annotations

from fractions import Fraction

from edvit.errors import ConfigError


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


def heads_pruned_at(keep: Fraction | float, heads: int) -> int:
    """`h_p` whose keep ratio is nearest to `keep`; at least one head's worth is kept."""
    return heads - max(1, min(heads, int(keep * heads + Fraction(1, 2))))


def default_keep(heads: int) -> Fraction:
    """A third of the heads (at least one): about nine times fewer parameters."""
    return Fraction(heads - heads_pruned_at(Fraction(1, 3), heads), heads)
