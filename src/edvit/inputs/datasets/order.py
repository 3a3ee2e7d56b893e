"""The order of classes whose names alone are known: timm's, so that weights that timm trained fit without a table."""

from __future__ import annotations

import re
from collections.abc import Iterable

Key = tuple[list[tuple[str, int]], str]


def natural_key(name: str) -> Key:
    """A sort key: digits count as numbers, upper and lower case are the same; two names that tie go by their bytes.

    The order is that of `timm.utils.misc.natural_key`, which leaves ties open.
    """
    parts = re.split(r"(\d+)", name.lower())
    numbers = [*map(int, parts[1::2]), -1]  # the text after the last number stands before one that a number follows
    return list(zip(parts[::2], numbers, strict=True)), name


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in the order of their labels."""
    return sorted(names, key=natural_key)
