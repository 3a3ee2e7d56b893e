"""The partition of the classes into groups: which ones each sub-model answers for."""

from __future__ import annotations

import random


def partition(classes: int, groups: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Class groups whose sizes differ by at most one, drawn with a seed (ED-ViT, arXiv 2410.11650).

    Args:
        classes: number of classes, at least 1.
        groups: number of groups wanted, at least 1. More groups than classes gives one group per class.
        seed: the same seed gives the same groups, on every machine and Python version.

    Returns:
        Class indices per group, sorted within a group, larger groups first.

    Raises:
        ValueError: `classes` or `groups` is below 1.
    """
    if classes < 1 or groups < 1:
        raise ValueError(f"classes and groups must be at least 1, not {classes} and {groups}")
    groups = min(groups, classes)
    # Sorting by random keys: `random()` is the one method whose sequence Python promises to keep.
    source = random.Random(seed)
    keys = [source.random() for _ in range(classes)]
    order = sorted(range(classes), key=keys.__getitem__)
    return tuple(tuple(sorted(order[group::groups])) for group in range(groups))
