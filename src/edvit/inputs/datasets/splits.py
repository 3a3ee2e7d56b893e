"""Cuts of a data set whose authors made none.

Hashes decide, and no random generator: a cut must be the same in ten years, whatever NumPy then does, on any disk, and
in `edvit build` and `edvit evaluate` alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edvit.inputs.datasets.images import Labels, Split

TEST_SHARE = 0.2


def fixed_split(
    names: Sequence[str], labels: Labels, split: Split, groups: Sequence[str] | None = None
) -> npt.NDArray[np.int64]:
    """Indices of a split. Of each class a fifth is for testing: those whose names come first in order of their SHA-256.
    A class of one image is for training.

    Args:
        names: of the images, each once in its class.
        labels: `[images]`.
        split: which indices are wanted.
        groups: of the images; where they are given, whole groups are for testing, see `grouped_split`.
    """
    if groups is not None:
        test = grouped_split(groups, labels, TEST_SHARE)
    else:
        rank = _ranks(names)
        test = np.zeros(len(names), dtype=np.bool_)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            count = min(max(1, round(TEST_SHARE * len(members))), len(members) - 1)
            test[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(test if split == "test" else ~test)


def grouped_split(groups: Sequence[str], labels: Labels, share: float) -> npt.NDArray[np.bool_]:
    """Which images are held out, `[images]`: whole groups, and of each class about `share`.

    Groups are gone through in the order of their SHA-256, and one is taken where that brings its classes nearer to
    their share. A class of which nothing was taken then gives its smallest group. No class is taken whole, so one whose
    images are all of one group is not held out at all.
    """
    names, member = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max(initial=-1)) + 1), dtype=np.int64)
    np.add.at(counts, (member, labels), 1)
    total, held = counts.sum(axis=0), np.zeros(counts.shape[1], dtype=np.int64)
    wanted = share * total
    taken = np.zeros(len(names), dtype=np.bool_)
    order = np.argsort(_ranks([str(name) for name in names]), kind="stable")

    def can_take(group: int) -> bool:
        own = np.flatnonzero(counts[group])
        return bool(not taken[group] and (held[own] + counts[group, own] < total[own]).all())

    for group in order:
        own = np.flatnonzero(counts[group])
        before, after = np.abs(wanted - held)[own], np.abs(wanted - held - counts[group])[own]
        if can_take(group) and ((before - after) / total[own]).sum() > 0:
            taken[group] = True
            held += counts[group]
    for label in range(len(total)):
        if held[label] == 0:
            able = [group for group in order if counts[group, label] and can_take(group)]
            if able:
                smallest = min(able, key=lambda group: counts[group].sum())
                taken[smallest] = True
                held += counts[smallest]
    return np.asarray(taken[member], dtype=np.bool_)


def _ranks(names: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in names], dtype=np.int64)
