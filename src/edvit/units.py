"""Numbers for people: three significant digits and an SI prefix, a mean and its range, or a count of things."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def si(value: float, unit: str = "") -> str:
    """`si(0.0611, "s")` is `61.1 ms`, `si(10_600_000, "B")` is `10.6 MB`, `si(2_502_000)` is `2.50 M`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    power = min(12, max(-9, exponent // 3 * 3))
    if unit in ("", "B"):
        power = max(0, power)  # a count or a size has no thousandths
    if power == 0 and float(value).is_integer():
        return f"{value:.0f} {unit}".rstrip()
    decimals = max(0, 2 - (exponent - power))
    return f"{value / 10**power:.{decimals}f} {_PREFIXES[power]}{unit}".rstrip()


def spread(values: Sequence[float], unit: str = "", decimals: int = 1) -> str:
    """The mean, and the range where there is one: `spread([80, 90], "%")` is `85.0% (80.0 – 90.0)`."""
    low, high, mean = (f"{value:.{decimals}f}" for value in (min(values), max(values), statistics.mean(values)))
    return f"{mean}{unit}" if low == high else f"{mean}{unit} ({low} – {high})"


def counted(number: int, noun: str, plural: str = "s") -> str:
    """`counted(1, "class", "es")` is `1 class`, `counted(1200, "image")` is `1,200 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else plural)
