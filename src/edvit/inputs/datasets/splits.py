"""A fixed split of a data set whose authors made none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edvit.inputs.datasets.images import Labels, Split

TEST_SHARE = 0.2


def fixed_split(names: Sequence[str], labels: Labels, split: Split) -> npt.NDArray[np.int64]:
    """Indices of a split. Of each class a fifth is for testing: those whose names come first in order of their SHA-256.

    A hash, and no random generator: the draw must be the same in ten years, whatever NumPy then does.
    """
    rank = np.array([int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) for name in names], dtype=np.int64)
    test = np.zeros(len(names), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, round(TEST_SHARE * len(members)))
        test[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(test if split == "test" else ~test)
